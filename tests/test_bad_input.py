"""Every wrong input is one line that says what is wrong, and exit code 2; nothing is overwritten, nothing left."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from bad_input import CASES, CNN, VIT, Case, pets
from fake_results import fake_run
from PIL import Image

import evaluate
import plot_results
import reproduce
import train_cnn_head
import train_vit_lora
from common import cli
from common.data import images
from common.evaluation.comparison import Comparison, compare
from common.evaluation.frames import frames_of
from common.evaluation.uncertainty import compute_uncertainty
from common.figures import draw_all
from common.runs.result import find_runs, read_result

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = {module.__name__: module for module in (evaluate, plot_results, reproduce, train_cnn_head, train_vit_lora)}


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _argv(case: Case, here: Path) -> list[str]:
    argv = [word.replace("{here}", str(here)) for word in case.argv]
    trains = case.script.startswith("train") and not any("--results-dir" in word for word in argv)
    return [*argv, "--results-dir", str(here / "out")] if trains else argv


def _check(code: int, said: str, case: Case) -> None:
    assert code == 2, said
    lines = [line for line in said.splitlines() if not line.startswith(("left out: ", "unfinished: "))]
    assert len(lines) == 1 and lines[0].startswith("error: "), said
    assert case.said in said
    assert "Traceback" not in said
    own = {each.name for each in dataclasses.fields(SCRIPTS[case.script].Config)}
    named = re.findall("--([a-z][a-z-]*)", re.sub("(python|hf) .*", "", lines[0]))  # commands have flags of their own
    assert own.issuperset(flag.replace("-", "_") for flag in named) or re.search("train(ing script| with)", said), said


def test_the_table_has_what_it_promises():
    assert len(CASES) >= 60 and len({case.name for case in CASES}) == len(CASES)
    assert sum(case.in_shell for case in CASES) >= 10


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_wrong_input_is_one_line(case, tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    case.make(tmp_path)
    before = _files(tmp_path)
    module = SCRIPTS[case.script]
    code = cli.run(module.main, module.Config, _argv(case, tmp_path))
    printed = capsys.readouterr()
    left_out = [line for line in printed.out.splitlines() if line.startswith("left out: ")]
    _check(code, "\n".join([*left_out, printed.err]).strip() + "\n", case)
    assert _files(tmp_path) == before


@pytest.mark.parametrize("case", [case for case in CASES if case.in_shell], ids=lambda case: case.name)
def test_a_wrong_input_is_one_line_in_a_shell_too(case, tmp_path):
    case.make(tmp_path)
    before = _files(tmp_path)
    command = [sys.executable, f"{case.script}.py", *_argv(case, tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    _check(done.returncode, done.stderr, case)
    assert _files(tmp_path) == before


ODD = ("a cat", "it's", 'say "hi"', "two\nlines", "-rf", "--help", "犬", "кот", "Ärger", "$(date)", "<b>&amp;", "%s{}",
       "\x1b[2J", "__all__", "@home")  # fmt: skip


@pytest.mark.parametrize(
    ("script", "flags"), [(train_cnn_head, [*CNN, "--head=linear"]), (train_vit_lora, [*VIT, "--rank=2"])]
)
def test_class_names_of_every_kind_are_trained_scored_and_drawn(script, flags, tmp_path, capsys):
    here = tmp_path / "-my data\nset <i>"
    here.mkdir()
    pets(here, classes=ODD)
    argv = [*flags, f"--dataset={here / 'pets'}", "--val-fraction=0.3", "--results-dir", str(tmp_path / "out")]
    assert cli.run(script.main, script.Config, argv) == 0, capsys.readouterr().err
    (path,) = (tmp_path / "out").rglob("result.json")
    assert read_result(path).data.classes == sorted(ODD)
    assert cli.run(evaluate.main, evaluate.Config, [str(path.parent)]) == 0
    for flags in (
        [f"--predict={here}", f"--out={tmp_path / 'labels.csv'}"],
        [f"--export={tmp_path / 'm.safetensors'}"],
    ):
        assert cli.run(evaluate.main, evaluate.Config, [str(path.parent), *flags]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "'two\\nlines'" in said


def test_their_figures_are_drawn(tmp_path):
    fake_run(tmp_path / "results", classes=tuple(sorted(ODD)), num_test=60)
    comparisons = _compared(tmp_path / "results")
    for _, files in draw_all(
        comparisons, frames_of(comparisons), compute_uncertainty(comparisons), tmp_path / "figures"
    ):
        assert all(path.stat().st_size for path in files)


def _compared(folder: Path) -> list[Comparison]:
    return compare(find_runs(folder)[0], {})[0]


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_images_of_extreme_shapes_are_trained_on(size, resize, tmp_path, capsys):
    folder = pets(tmp_path)
    Image.new("L", size, 77).save(folder / "cat" / "odd.png")
    argv = [*CNN, f"--dataset={folder}", "--val-fraction=0.3", f"--resize={resize}", f"--results-dir={tmp_path / 'o'}"]
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, argv) == 0, capsys.readouterr().err


def test_all_damaged_images_are_found_in_one_pass_and_can_be_left_out(tmp_path, capsys):
    folder = pets(tmp_path, count=20)
    bad = sorted(folder.rglob("1?.png"))[:12]
    for number, path in enumerate(bad):
        path.write_bytes([b"", b"text", path.read_bytes()[:70]][number % 3])
    names = [path.relative_to(folder).as_posix() for path in bad]
    argv = [*CNN, f"--dataset={folder}", "--val-fraction=0.3", f"--results-dir={tmp_path / 'out'}"]
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, argv) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: 12 of 40 images in") and "--skip-damaged" in printed.err
    assert [line.split("'")[1] for line in printed.out.splitlines() if line.startswith("damaged: ")] == names
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, [*argv, "--skip-damaged"]) == 0
    (path,) = (tmp_path / "out").rglob("result.json")
    assert read_result(path).skipped_images == names
    assert "12 damaged images were left out" in " ".join(read_result(path).notes)


def test_memory_that_is_short_is_no_damage_to_an_image(tmp_path, monkeypatch, capsys):
    folder = pets(tmp_path)
    monkeypatch.setattr(images, "_to_uint8", lambda image: (_ for _ in ()).throw(MemoryError("no room")))
    argv = [*CNN, f"--dataset={folder}", "--skip-damaged", f"--results-dir={tmp_path / 'out'}"]
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, argv) == 2
    assert "out of memory" in capsys.readouterr().err


def test_runs_with_other_test_images_are_left_out_by_name(tmp_path, capsys):
    for seed in range(2):
        fake_run(tmp_path, seed=seed, num_test=20)
    other = fake_run(tmp_path, "efficientnet_b0.ra_in1k-head_mlp", num_test=20, test_set=1)
    runs, _ = find_runs(tmp_path)
    compared, lines = compare(runs, {})
    assert [series.name for series in compared[0].series] == ["resnet50.tv2_in1k-head_mlp"]
    assert any(line.startswith("left out: ") and repr(str(other.folder)) in line for line in lines)


def test_letters_that_the_terminal_lacks_are_escaped(tmp_path):
    shutil.copytree(pets(tmp_path, classes=("犬", "кот")), tmp_path / "動物")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    command = [sys.executable, "train_cnn_head.py", *CNN, f"--dataset={tmp_path / '動物'}", "--train-limit=1"]
    command += [f"--results-dir={tmp_path / 'out'}", "--val-fraction=0.3"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, env=environment)
    assert done.returncode == 2 and b"Traceback" not in done.stderr, done.stderr
    assert b"\\u52d5" in done.stdout


def test_a_reader_who_leaves_is_no_traceback():
    command = f"{sys.executable} reproduce.py mini --print-commands | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: standard output was closed before all was printed\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_log_on_a_full_disk_is_a_line_and_exit_code_2():
    command = f"{sys.executable} reproduce.py mini --print-commands > /dev/full"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")
