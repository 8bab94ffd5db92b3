"""Nothing that comes from a file is run: weights are data, archives stay in their folder, names are only names."""

import ast
import io
import pickle
import shlex
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

import train_cnn_head
from common import cli
from common.data import images
from common.data.dataset import load_dataset, result_name
from common.data.images import FORMATS, decode_bytes
from common.grid.grid import job_for
from common.runs import record
from common.runtime.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = [*REPOSITORY.glob("*.py"), *(REPOSITORY / "common").rglob("*.py"), *REPOSITORY.glob("demo/*.py")]
FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "yaml.load",
             "tempfile.mktemp", "marshal.loads", "shelve.open", "joblib.load", "torch.hub.load"}  # fmt: skip


def _calls(source: str):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}, node.lineno


def _dangers(source: str) -> list[str]:
    """Return the calls by which a file could run code, leave its folder or reach a shell."""
    found = []
    for name, words, line in _calls(source):
        bad = name in FORBIDDEN or words.get("shell") == "True" or words.get("allow_pickle") == "True"
        bad |= name in ("pickle.load", "pickle.loads", "pickle.Unpickler")
        bad |= name == "torch.load" and words.get("weights_only") != "True"
        bad |= name in ("np.load", "numpy.load") and words.get("allow_pickle") != "False"
        bad |= name.endswith(".extractall") and "filter" not in words
        bad |= name == "Image.open" and "formats" not in words
        found += [f"{name} in line {line}"] * bad
    return found


# CIFAR-10's own files are pickles; they are opened only after their published MD5 sums were found.
CHECKED = {"formats.py": ["pickle.loads"]}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_source_file_runs_what_it_reads(path):
    allowed = CHECKED.get(path.name, [])
    assert [danger for danger in _dangers(path.read_text()) if danger.split(" ")[0] not in allowed] == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(file)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "np.load(path)",
        "archive.extractall(folder)",
        "Image.open(path)",
    ],
)
def test_the_guard_sees_each_danger(line):
    assert len(_dangers(line)) == 1


class _Trap:
    """A pickle of this writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w.pth"])
def test_a_pickle_given_as_weights_is_not_opened(name, tmp_path):
    (tmp_path / name).write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    argv = ["--dataset=digits", "--backbone=test_resnet", f"--weights={tmp_path / name}", f"--results-dir={tmp_path}"]
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, argv) == 2
    from common.models import backbones

    with pytest.raises(UserError, match="safetensors"):
        backbones.load("test_resnet.r160_in1k", weights=str(tmp_path / name), image_size=32)
    assert not (tmp_path / "sprung").exists()


def test_pickles_in_the_place_of_cifar10s_are_not_opened_and_archives_not_unpacked(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch",
                 "batches.meta"):  # fmt: skip
        (folder / name).write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    with tarfile.open(tmp_path / "data" / "cifar-10-python.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("../../escaped")
        archive.addfile(member, io.BytesIO())
    with pytest.raises(UserError, match="cifar10 is not there"):
        load_dataset("cifar10", data_dir=tmp_path / "data")
    assert not (tmp_path / "sprung").exists() and not list(tmp_path.rglob("escaped"))


def test_only_the_formats_of_the_list_are_opened(monkeypatch):
    opened = []
    monkeypatch.setattr(
        images.Image, "open", lambda file, formats: opened.append(formats) or (_ for _ in ()).throw(OSError)
    )
    with pytest.raises(ValueError):
        decode_bytes(b"x")
    assert opened == [FORMATS] and not {"EPS", "PSD", "FPX", "WMF", "SPIDER"} & set(FORMATS)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "", "C:\\x", "\\\\host\\x", "a\0b"])
def test_a_file_outside_the_runs_folder_is_not_named_by_a_result(name):
    assert not record._is_inside(name)
    assert record._is_inside("adapter/adapter_model.safetensors")


@pytest.mark.parametrize("name", ["$(touch x)", "a; touch x", "`id`", "two\nlines", "-rf", "it's", '"x', "a..", "~x"])
def test_names_reach_a_shell_quoted_and_paths_as_one_component(name, tmp_path):
    component = result_name(str(tmp_path / name))
    assert Path(component).name == component and component[0] not in ".-"
    job = job_for(train_cnn_head.Config(dataset=str(tmp_path / name), results_dir=tmp_path))
    assert shlex.split(job.shell_line) == list(job.command)
    for path in (job.folder, job.log):
        assert path.resolve().is_relative_to(tmp_path.resolve())


@pytest.mark.parametrize("name", ["~", "'", "$", "/"])
def test_a_folder_whose_name_leaves_nothing_cannot_name_results(name, tmp_path):
    with pytest.raises(UserError, match="train with a `dataset_name`"):
        result_name(name if name == "/" else str(tmp_path / name))


def test_weights_are_saved_as_numbers_alone(tmp_path):
    from common.models.heads import head_file

    content = head_file({"output.weight": torch.zeros(2, 2)})["head.safetensors"]
    assert b"pickle" not in content and content[8:9] == b"{"
