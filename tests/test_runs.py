"""A run's folder: its name, its lock, and that it holds a whole result or none."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_results import fake_run

import train_cnn_head
import train_vit_lora
from common import cli
from common.runs.folder import open_run_folder
from common.runs.naming import NOT_IDENTITY, run_identity, run_name
from common.runtime import environment, files
from common.runtime.errors import UserError
from common.runtime.files import write_atomically
from common.training.run import open_run

REPOSITORY = Path(__file__).resolve().parent.parent
VIT, RESNET = "vit_base_patch16_224.augreg_in1k", "resnet50.tv2_in1k"
LITE = "tf_efficientnet_lite0.in1k"
TINY = [
    *("--dataset=digits", "--backbone=test_resnet", "--weights=random", "--image-size=32", "--epochs=1"),
    *("--train-limit=60", "--test-limit=20"),
]


def _name(script, backbone: str, **changed) -> str:
    return run_name(script.Config(**changed), backbone=backbone, image_size=changed.get("image_size"))


def test_the_scripts_start_with_the_published_recipe_so_that_nothing_is_named():
    assert _name(train_cnn_head, RESNET) == "resnet50.tv2_in1k-head_mlp"
    assert _name(train_vit_lora, VIT) == f"{VIT}-lora_r16"


def test_each_setting_that_differs_is_named(tmp_path):
    (file := tmp_path / "some file.safetensors").touch()
    changed = {"lr": (1e-3,), "epochs": 20, "train_limit": 1000}
    assert _name(train_vit_lora, VIT, **changed) == f"{VIT}-lora_r16-lr1e-3-ep20-n1000"
    changed = {"targets": "all-linear", "also_train": "norms-and-embeddings"}
    assert _name(train_vit_lora, VIT, **changed) == f"{VIT}-lora_r16-all-linear-also-norms-and-embeddings"
    assert _name(train_cnn_head, RESNET, weights="random") == "resnet50.random-head_mlp"
    name = _name(train_cnn_head, LITE, weights=str(file), head="linear")
    assert name == "tf_efficientnet_lite0.some file-head_linear"
    assert _name(train_cnn_head, RESNET, lr=(2.5e-4, 0.5)) == "resnet50.tv2_in1k-head_mlp-lr2.5e-4+0.5"
    assert _name(train_vit_lora, VIT, rank=4, alpha=8.0).endswith("-lora_r4-alpha8")
    assert _name(train_vit_lora, VIT, rank=0, lr=(1e-4,), alpha=8.0) == f"{VIT}-head_linear"


def test_where_and_how_fast_a_run_is_computed_is_not_named():
    changed = {
        "device": "cuda:1",
        "workers": 7,
        "results_dir": Path("x"),
        "data_dir": Path("y"),
        "feature_cache": False,
    }
    assert _name(train_cnn_head, RESNET, **changed) == "resnet50.tv2_in1k-head_mlp"


# Another value of each setting of the scripts: a new setting is missing here, and the test below says so.
OTHER = {
    "dataset": "mnist", "backbone": "other", "weights": "random", "seed": 1, "rank": 4, "head": "probe",
    "lr": (1.25e-3, 0.5), "epochs": 7, "train_limit": 500, "batch_size": 8, "weight_decay": 0.5, "augment": "light",
    "alpha": 8.0, "dropout": 0.25, "head_dropout": 0.25, "image_size": 96, "resize": "crop", "val_fraction": 0.25,
    "test_limit": 300, "split_seed": 3, "skip_damaged": True, "precision": "fp32", "compile": "off",
    "deterministic": True, "schedule": "cosine", "warmup": 0.125,
    "extend": 2, "tuned_on": 7, "folds": 5, "fold": 2, "all_images": True,
    "targets": "all-linear", "also_train": "norms",
}  # fmt: skip
# Named by the folders around the run's, or not at all.
NAMED_OTHERWISE = {"dataset", "backbone", "seed", "extend", "tuned_on"}


def test_the_code_that_is_recorded_is_that_of_the_start(tmp_path, monkeypatch):
    environment.code_facts.cache_clear()
    settings = {"dataset": "digits", "weights": "random", "image_size": 32, "results_dir": tmp_path}
    with open_run(train_cnn_head.Config(backbone="test_resnet", **settings)) as run:
        monkeypatch.setattr(environment, "_git", lambda *_: "of a later commit")
        assert environment.describe_environment(run.device, "fp32")["git_commit"] != "of a later commit"


@pytest.mark.parametrize("script", [train_vit_lora, train_cnn_head])
def test_every_field_is_a_setting_or_on_the_list_of_those_that_change_no_result(script):
    with_it = {"extend": {"lr": (1e-3, 3e-3)}, "tuned_on": {"lr": (1e-3, 3e-3)}}  # what it needs to be possible
    with_it |= {"fold": {"folds": 5}}
    with_it |= {"head": {"rank": 0}} if script is train_vit_lora else {}
    for each in dataclasses.fields(script.Config):
        if each.name in NOT_IDENTITY:
            assert "published" not in each.metadata
            continue
        assert each.metadata["published"] == each.default  # what older records mean by its absence
        default = script.Config(**with_it.get(each.name, {}))
        changed = dataclasses.replace(default, **{each.name: OTHER[each.name]})
        mine, other = (run_identity(vars(config), config.method) for config in (default, changed))
        assert mine != other
        names = {run_name(config, backbone=VIT, image_size=config.image_size) for config in (default, changed)}
        assert len(names) == (1 if each.name in NAMED_OTHERWISE else 2)


@pytest.mark.parametrize("script", [train_vit_lora, train_cnn_head])
def test_the_longest_name_is_short_enough_for_a_folder_and_still_its_own(script):
    known = {each.name for each in dataclasses.fields(script.Config)} - {"backbone", "head", "all_images"}
    changed = {name: value for name, value in OTHER.items() if name in known}
    names = [_name(script, VIT, **changed, **more) for more in ({}, {"dataset_name": "x"}, {"run_name": None})]
    assert len(set(names)) == 1 and len(names[0]) < 150
    assert _name(script, VIT, **changed | {"deterministic": False}) not in names


def test_a_setting_that_older_records_lack_had_its_published_value(tmp_path):
    run = fake_run(tmp_path, num_test=20)
    asked = run_identity(run.result.config | {"schedule": "constant"}, run.result.method)
    with open_run_folder(run.folder, asked, absent={"schedule": "constant"}, overwrite=False) as folder:
        assert folder.finished == run.result
    with (
        pytest.raises(UserError, match="schedule 'constant' there, 'cosine' asked"),
        open_run_folder(run.folder, asked | {"schedule": "cosine"}, absent={"schedule": "constant"}, overwrite=False),
    ):
        pass


def test_a_setting_that_differs_is_never_told_to_be_finished(tmp_path, capsys):
    here = ("--results-dir", str(tmp_path), "--run-name", "run")
    assert _train(*here) == 0
    assert _train(*here, "--weight-decay", "0.02") == 2
    assert "weight_decay 0.01 there, 0.02 asked" in capsys.readouterr().err


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
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob(".seed0.*.new"))
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
