"""The benchmark's own arithmetic, and that both sides of its comparisons do the same work."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from bench import (
    compare,
    head_jobs,
    inputs,
    measuring,
    method_steps,
    profiles,
    record,
    samples,
    shell,
    textbook,
    vit_step,
)
from common import cli
from common.data.dataset import load_dataset
from common.models import backbones, heads, lora
from common.runtime.device import resolve_device, resolve_precision
from common.runtime.environment import describe_environment
from common.runtime.errors import UserError

TAG = "test_efficientnet.r160_in1k"


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A hundred digits for training and validation and twenty for the test, as PNG files."""
    folder = tmp_path_factory.mktemp("sample")
    sizes = samples.write(folder, dataset="digits", data_dir=folder, train_images=100, test_images=20)
    assert sizes == {"train": 90, "val": 10, "test": 20}
    return folder


def test_the_sides_take_turns():
    calls = []
    sides = {side: (lambda side=side: calls.append(side) or len(calls)) for side in "AB"}
    assert measuring.alternate(sides, 3, desc="turns") == {"A": [1, 3, 5], "B": [2, 4, 6]}
    assert calls == list("ABABAB")


def test_ratios_are_of_pairs_not_of_medians():
    found = measuring.paired("job", {"here": [1.0, 2.0, 10.0], "there": [3.0, 2.0, 20.0]})
    assert found["ratio"] == {"of": "there / here", "values": [3.0, 1.0, 2.0], "min": 1.0, "median": 2.0, "max": 3.0}
    assert found["sides"]["there"] == {"values": [3.0, 2.0, 20.0], "min": 2.0, "median": 3.0, "max": 20.0}
    assert measuring.lines(found)[-1].strip() == "there / here: min 1, median 2, max 3 (n=3)"


def test_an_odd_pair_is_no_pair():
    with pytest.raises(ValueError, match="shorter"):
        measuring.paired("job", {"here": [1.0, 2.0], "there": [3.0]})


def test_more_epochs_are_scaled_by_the_median_epoch():
    report = {"seconds": 100.0, "epoch_seconds": [10.0, 30.0, 11.0, 12.0, 9.0]}
    assert head_jobs.scaled_seconds(report, long_epochs=20) == 100.0 + 15 * 11.0
    found = {"here": [20.0], "here, long": [53.0], "textbook": [report]}
    short, long = head_jobs.whole_records(TAG, found, epochs=5, long_epochs=20)
    assert short["ratio"]["median"] == 5.0
    assert long["ratio"]["median"] == 5.0
    assert "scaled" in long["ratio"]["of"]


def test_a_script_that_fails_is_shown(capfd):
    with pytest.raises(UserError, match=r"train_cnn_head.py ended with exit code 2"):
        measuring.run_script("train_cnn_head.py", "--epochs", 0)
    assert "--epochs 0 is not possible" in capfd.readouterr().err


def _environment() -> dict:
    device = resolve_device("auto")
    return describe_environment(device, resolve_precision("auto", device))


def test_a_measurement_is_added_to_those_of_the_same_machine(tmp_path, capsys):
    out = tmp_path / "results.json"
    record.write(out, {"vit": {"environment": _environment(), "records": []}})
    threads = torch.get_num_threads()
    assert cli.run(compare.main, compare.Config, ["--only", "input", "--repeats", "2", "--out", str(out)]) == 0
    assert torch.get_num_threads() == threads
    measured = json.loads(out.read_text())["measurements"]
    assert list(measured) == ["vit", "input"]
    assert measured["input"]["settings"]["repeats"] == 2
    printed = capsys.readouterr().out
    for found in measured["input"]["records"]:
        assert all(len(side["values"]) == 2 and side["min"] > 0 for side in found["sides"].values())
        assert f"median {found['ratio']['median']:,.4g}" in printed


@pytest.mark.parametrize("key", record.SAME)
def test_measurements_of_another_machine_are_not_mixed_in_nor_overwritten(key, tmp_path):
    out = tmp_path / "results.json"
    record.write(out, {"vit": {"environment": _environment() | {key: "other"}, "records": []}})
    with pytest.raises(UserError, match=f"'vit' measured with {key} 'other'.*give another file"):
        record.read(out, _environment())


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"measurements": [1]}', '{"measurements": {"vit": {}}}'])
def test_another_file_is_not_overwritten(content, tmp_path):
    out = tmp_path / "results.json"
    out.write_text(content)
    with pytest.raises(UserError, match="holds no measurements"):
        record.read(out, _environment())


def test_where_nothing_was_measured_there_is_nothing(tmp_path):
    assert record.read(tmp_path / "results.json", _environment()) == {}


WRONG = [
    (["--repeats=0"], "--repeats"),
    (["--train-images=0"], "--train-images"),
    (["--epochs=0"], "--epochs"),
    (["--long-epochs=4"], "--long-epochs"),
    (["--batch-size=0"], "--batch-size"),
    (["--backbones"], "--backbones"),
    (["--backbones", "resnet5000"], "timm has no such model"),
    (["--dataset=/no/such/folder"], "no data set"),
    (["--dataset=digits", "--train-images=20", "--test-images=20"], "100 or more"),
    (["--dataset=digits", "--train-images=100", "--test-images=500"], "--test-images"),
    (["--dataset=digits", "--train-images=2000", "--test-images=20"], "--train-images"),
]


@pytest.mark.parametrize(("flags", "said"), WRONG, ids=[" ".join(flags) for flags, _ in WRONG])
def test_a_wrong_value_is_one_line_and_leaves_nothing(flags, said, tmp_path, capsys):
    out = tmp_path / "results.json"
    assert cli.run(compare.main, compare.Config, ["--only", "head", "--out", str(out), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert said in error
    assert not out.exists()


def test_the_help_of_every_script_is_timed():
    scripts = {path.name for path in measuring.ROOT.glob("*.py") if "__main__" in path.read_text()}
    assert {*shell.SCRIPTS} == {*scripts, "bench/compare.py"}


def test_help_loads_nothing_heavy_and_its_time_is_taken():
    (found,) = shell.start(repeats=1, scripts=["bench/compare.py"])["records"]
    assert 0 < found["sides"]["bench/compare.py --help"]["median"] < 30
    command = [sys.executable, "-X", "importtime", measuring.ROOT / "bench" / "compare.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "timm", "peft", "transformers", "matplotlib"}
    assert "python bench/compare.py" in done.stdout


@pytest.mark.parametrize("shape", inputs.SHAPES.values(), ids=inputs.SHAPES)
def test_both_ways_from_pixels_to_batches_give_the_same_within_two_grey_levels(shape):
    pixels = inputs.random_pixels(40, shape)
    ours, theirs = torch.cat(list(inputs.ours(pixels))), torch.cat(list(inputs.with_pillow(pixels)))
    assert ours.shape == theirs.shape == (40, 3, 224, 224)
    grey_levels = (ours - theirs).abs() * torch.tensor(inputs.TRANSFORM.std).view(3, 1, 1) * 255
    assert grey_levels.max() < 2.01


def test_the_textbook_reads_the_same_images_and_trains_the_same_head(sample, tmp_path, monkeypatch):
    dataset = load_dataset(str(sample), data_dir=tmp_path)
    monkeypatch.setattr(textbook, "WORKERS", 0)
    for split in ("train", "val", "test"):
        ours, theirs = getattr(dataset, split), textbook.loader(sample, split, 32).dataset
        assert [path for path, _ in theirs.samples] == [str(path) for path in ours.files]
        assert np.array_equal(theirs.targets, ours.labels)
    images, _ = next(iter(textbook.loader(sample, "train", 32)))
    assert images.shape == (64, 3, 32, 32)

    backbone = backbones.load(TAG, weights="random", image_size=32)
    head = heads.new_head(backbone.module, backbone.width, 10, kind="mlp", dropout=0.5, seed=0)
    shapes = [parameter.shape for parameter in head.parameters()]
    assert [p.shape for p in textbook.new_head(backbone.width, 10).parameters()] == shapes
    assert [textbook.new_head(width, 10)[1].out_features for width in (2048, 1280)] == [1024, 512]


def test_the_textbook_runs(sample, tmp_path):
    out = tmp_path / "report.json"
    flags = ("--backbone", TAG, "--epochs", 1, "--image-size", 32, "--out", out)
    seconds = measuring.run_script("bench/textbook.py", sample, *flags)
    report = json.loads(out.read_text())
    assert report["images"] == [90, 10, 20]
    assert len(report["epoch_seconds"]) == 1
    assert 0 < report["epoch_seconds"][0] + report["test_seconds"] < seconds
    assert 0 <= report["test_accuracy"] <= 1


def test_a_few_images_of_each_class_warm_up(sample, tmp_path):
    samples.write_few(tmp_path / "few", sample)
    few = load_dataset(str(tmp_path / "few"), data_dir=tmp_path)
    assert np.bincount(few.train.labels).tolist() == [2] * 10
    assert len(few.val) == 10 and len(few.test) == 20


def test_the_twin_trains_as_many_parameters():
    base = backbones.load("test_vit.r160_in1k", weights="random", image_size=vit_step.IMAGE_SIZE)
    vit = base.module
    shape = {"width": base.width, "depth": len(vit.blocks), "heads": vit.blocks[0].attn.num_heads}
    twin = vit_step.new_twin(**shape, hidden=vit.blocks[0].mlp.fc1.out_features, patch=16)
    ours = lora.attach(
        base, classes=vit_step.CLASSES, rank=vit_step.RANK, alpha=1.0, dropout=0.1, seed=0, precision="fp32"
    )
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, twin)]
    assert counts[0] == counts[1]


def test_a_step_moves_what_is_trained_and_nothing_else():
    base = backbones.load("test_vit.r160_in1k", weights="random", image_size=32)
    model = lora.attach(base, classes=10, rank=4, alpha=8.0, dropout=0.0, seed=0, precision="fp32").train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = vit_step.new_step(model, model, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    step(), step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_plain_step_of_each_method_trains_what_it_says():
    vit, cnn = "test_vit.r160_in1k", "test_resnet.r160_in1k"
    found = method_steps.compare(vit=vit, cnns=(cnn,), batch_size=2, repeats=1)
    assert len(found["records"]) == 4 and all(record["ratio"]["median"] > 0 for record in found["records"])
    for case in method_steps.cases(vit=vit, cnns=(cnn,)):
        base = backbones.load(case.tag, weights="random", image_size=vit_step.IMAGE_SIZE)
        models = case.ours(base, precision="fp32", device="cpu"), method_steps.new_plain(case, torch.device("cpu"))
        counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in models]
        if case.adapted == method_steps.LINEAR:  # one A for query, key and value there, one each here
            counts[1] += 2 * vit_step.RANK * base.width * len(base.module.blocks)
        assert counts[0] == counts[1]


def test_a_profile_names_the_operations_that_take_the_time():
    found = profiles.compare(vit="test_vit.r160_in1k", cnns=["test_resnet.r160_in1k"], batch_size=2)
    step, features = found["records"]
    for one in (step, features):
        shares = list(one["operations"].values())
        assert shares == sorted(shares, reverse=True) and 50 < sum(shares) <= 100
    assert any("conv" in name for name in features["operations"])
    assert any(name.startswith("aten::addmm x") or name.startswith("aten::mm x") for name in step["operations"])
