"""A run's folder: its name, its lock, and that it holds a whole result or none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import train_cnn_head
import train_vit_lora
from common import cli, config
from common.runs.folder import open_run_folder
from common.runs.naming import run_name
from common.runtime import files
from common.runtime.errors import UserError
from common.runtime.files import write_atomically

REPOSITORY = Path(__file__).resolve().parent.parent
VIT, RESNET = "vit_base_patch16_224.augreg_in1k", "resnet50.tv2_in1k"
LITE = "tf_efficientnet_lite0.in1k"
TINY = [
    *("--dataset=digits", "--backbone=test_resnet", "--weights=random", "--image-size=32", "--epochs=1"),
    *("--train-limit=60", "--test-limit=20"),
]


def _name(script, method: str, backbone: str, **changed) -> str:
    settings = config.as_record(script.Config()) | changed
    return run_name(settings, method=method, backbone=backbone)


def test_the_scripts_start_with_the_published_recipe_so_that_nothing_is_named():
    assert _name(train_cnn_head, "head_mlp", RESNET) == "resnet50.tv2_in1k-head_mlp"
    assert _name(train_vit_lora, "lora", VIT) == f"{VIT}-lora_r16"


def test_each_setting_that_differs_is_named():
    changed = {"lr": [1e-3], "epochs": 20, "train_limit": 1000}
    assert _name(train_vit_lora, "lora", VIT, **changed) == f"{VIT}-lora_r16-lr1e-3-ep20-n1000"
    assert _name(train_cnn_head, "head_mlp", RESNET, weights="random") == "resnet50.random-head_mlp"
    name = _name(train_cnn_head, "head_linear", LITE, weights="/x/some file.safetensors")
    assert name == "tf_efficientnet_lite0.some file-head_linear"
    assert _name(train_cnn_head, "head_mlp", RESNET, lr=[2.5e-4, 0.5]) == "resnet50.tv2_in1k-head_mlp-lr2.5e-4+0.5"
    assert _name(train_vit_lora, "lora", VIT, rank=4, alpha=8.0).endswith("-lora_r4-alpha8")
    assert _name(train_vit_lora, "head_linear", VIT, rank=0, lr=[1e-4], alpha=8.0) == f"{VIT}-head_linear"


def test_where_and_how_fast_a_run_is_computed_is_not_named():
    changed = {"device": "cuda:1", "workers": 7, "results_dir": "x", "data_dir": "y", "feature_cache": False}
    assert _name(train_cnn_head, "head_mlp", RESNET, **changed) == "resnet50.tv2_in1k-head_mlp"


def _train(*flags: str) -> int:
    return cli.run(train_cnn_head.main, train_cnn_head.Config, [*TINY, "--no-feature-cache", *flags])


def test_a_finished_run_is_not_trained_again_and_other_settings_are_refused(tmp_path, capsys):
    here = ("--results-dir", str(tmp_path), "--run-name", "run")
    assert _train(*here) == 0
    (result,) = tmp_path.rglob("result.json")
    before = result.read_bytes()
    assert _train(*here) == 0
    assert "already finished" in capsys.readouterr().out
    assert _train(*here, "--head", "linear") == 2
    assert "head 'mlp' there, 'linear' asked" in capsys.readouterr().err
    assert result.read_bytes() == before
    assert _train(*here, "--head", "linear", "--overwrite") == 0
    assert json.loads(result.read_text())["method"] == "head_linear"
    assert sorted(path.name for path in result.parent.parent.iterdir()) == ["seed0"]


@pytest.mark.parametrize("fault", ["full disk", "interrupt"])
def test_what_fails_while_saving_leaves_the_earlier_result_as_it_was(fault, tmp_path, monkeypatch, capsys):
    here = ("--results-dir", str(tmp_path), "--run-name", "run")
    assert _train(*here) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    error = OSError(28, "No space left on device") if fault == "full disk" else KeyboardInterrupt()
    replace = files.os.replace

    def failing(source, target):
        if Path(target).name == "result.json":
            raise error
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    assert _train(*here, "--overwrite", "--lr", "1e-2") == (2 if fault == "full disk" else 130)
    assert {path: path.read_bytes() for path in before} == before
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob(".seed0.new"))
    if fault == "full disk":
        assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("renames", [0, 1])
def test_an_exchange_of_folders_that_was_cut_in_two_is_completed(renames, tmp_path, monkeypatch):
    here = ("--results-dir", str(tmp_path), "--run-name", "run")
    assert _train(*here) == 0
    rename, count = Path.rename, iter(range(10))

    def killed(self, target):
        if next(count) == renames:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    assert _train(*here, "--overwrite", "--lr=1e-2") == 130
    monkeypatch.setattr(Path, "rename", rename)
    old, new = [], ["--lr=1e-2"]
    kept, lost = (new, old) if renames else (old, new)  # the new result counts from the first rename on
    assert _train(*here, *kept) == 0
    assert _train(*here, *lost) == 2
    assert sorted(path.name for path in (tmp_path / "digits" / "run").iterdir()) == ["seed0"]
    assert (tmp_path / "digits" / "run" / "seed0" / "result.json").exists()


def test_a_second_process_is_told_who_holds_the_folder(tmp_path, capsys):
    code = (
        "import sys, time; from pathlib import Path; from common.runtime.locks import locked\n"
        "with locked(Path(sys.argv[1]), what='it', wait=False): print('held', flush=True); time.sleep(60)"
    )
    lock = tmp_path / "digits" / "run" / ".seed0.lock"
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], cwd=REPOSITORY, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=f"in use by process {holder.pid} on .* since"),
            open_run_folder(tmp_path / "digits" / "run" / "seed0", {}, overwrite=False),
        ):
            pass
        assert _train("--results-dir", str(tmp_path), "--run-name=run") == 2
        assert "another --run-name" in capsys.readouterr().err
    finally:
        holder.kill()
        holder.communicate()
    with open_run_folder(tmp_path / "digits" / "run" / "seed0", {}, overwrite=False) as run:
        assert run.finished is None  # a killed holder does not block


def test_an_atomic_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def failing(*_):
        raise OSError(5, "Input/output error")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, step, failing)
            with pytest.raises(UserError, match="Input/output error"):
                write_atomically(path, b"new")
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
        assert path.read_bytes() == b"old"
