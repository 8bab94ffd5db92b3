"""What a run gives away: its model card, whose lines are executed, ONNX files, labels, features."""

import csv
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from finished import TINY
from huggingface_hub import ModelCard
from PIL import Image

import evaluate
import train_cnn_head
import train_cnn_lora
import train_full
import train_vit_lora
from common import cli
from common.data.dataset import load_dataset_of_run
from common.data.images import LabelledImages
from common.evaluation.metrics import softmax
from common.runs.predictions import read_predictions
from common.runs.result import Run, read_result
from common.training.loaders import ImageLoader
from common.training.model_card import model_card
from common.training.restore import RestoredModel, restore_run

MORE = ("--targets=all-linear", "--also-train=norms-and-embeddings", "--resize=crop")
RUNS = {
    "lora": (train_vit_lora, "--backbone=test_vit", "--rank=2", "--lr=1e-2"),
    "lora_more": (train_vit_lora, "--backbone=test_vit", "--rank=2", "--lr=1e-2", *MORE),
    "probe": (train_cnn_head, "--backbone=test_resnet", "--head=probe"),
    "cnn_lora": (train_cnn_lora, "--backbone=test_resnet", "--rank=2", "--lr=1e-2"),
    "full": (train_full, "--backbone=test_efficientnet", "--lr=1e-2"),
    "mlp": (train_cnn_head, "--backbone=test_efficientnet", "--lr=1e-2"),
}
RECIPE = ("--epochs", "--batch-size")  # what a probe has no use for


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A finished run of each kind on 60 digits, tested on 20."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for name, (script, *flags) in RUNS.items():
        tiny = [flag for flag in TINY if name != "probe" or not flag.startswith(RECIPE)]
        argv = [*tiny, "--no-feature-cache", "--results-dir", str(folder), "--run-name", name, *flags]
        assert cli.run(script.main, script.Config, argv) == 0
        found[name] = folder / "digits" / name / "seed0"
    return found


def _evaluate(*argv: object) -> int:
    return cli.run(evaluate.main, evaluate.Config, [str(word) for word in argv])


def _restored(run: Path) -> RestoredModel:
    result = read_result(run / "result.json")
    return restore_run(Run(run, result), weights=None, device=torch.device("cpu"), workers=0)


def _test_pixels(run: Path) -> np.ndarray:
    """The test images of a run, uint8 (N, 8, 8)."""
    return load_dataset_of_run(read_result(run / "result.json").config).test.pixels


def _stored(run: Path) -> np.ndarray:
    return read_predictions(run, read_result(run / "result.json")).logits


def _prepared(model: RestoredModel) -> np.ndarray:
    """The normalised test images of a run, (N, 3, S, S)."""
    images = load_dataset_of_run(model.run.result.config).test
    loader = ImageLoader(images, model.inputs.extractor.transform, torch.device("cpu"), 0)
    return next(loader.batches([np.arange(len(images))], epoch=0)).numpy()


def _card(run: Path) -> Path:
    return next(run.rglob("README.md"))


def _executed(card: Path, pixels: np.ndarray, folder: Path, monkeypatch) -> np.ndarray:
    """Run the card's lines in a copy of its folder, on each image as a file; return the logits (N, C)."""
    code = re.search("```python\n(.*?)```", card.read_text(), re.DOTALL)[1]
    for file in card.parent.glob("*.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(folder)
    logits = []
    for image in pixels:
        Image.fromarray(image).save("image.png")
        names = {}
        exec(code, names)
        logits.append(names["logits"][0])
    return torch.stack(logits).numpy()


@pytest.mark.parametrize("kind", RUNS)
def test_the_lines_of_a_card_give_the_stored_predictions(runs, kind, tmp_path, monkeypatch):
    run = runs[kind]
    logits = _executed(_card(run), _test_pixels(run)[:3], tmp_path, monkeypatch)
    np.testing.assert_allclose(logits, _stored(run)[:3], atol=1e-4)


@pytest.mark.parametrize("kind", RUNS)
def test_the_hub_reads_the_metrics_of_the_test_split_from_a_card(runs, kind):
    result, card = read_result(runs[kind] / "result.json"), ModelCard.load(_card(runs[kind]))
    found = {each.metric_type: each for each in card.data.eval_results}
    assert found["accuracy"].metric_value == result.test.scores["accuracy"]
    assert found["roc_auc"].metric_value == result.test.scores["auc_macro"]
    assert {each.dataset_split for each in found.values()} == {"test"}
    low, high = found["accuracy"].metric_args["interval_95"]
    assert low <= result.test.scores["accuracy"] <= high
    assert card.data.library_name == ("peft" if "lora" in kind else "timm")
    assert card.data.license is None and card.data.base_model is None  # random weights have neither
    assert "random weights" in card.text and "hf upload" in card.text


def test_a_card_names_a_published_base_and_its_licence(runs):
    model = _restored(runs["probe"])
    base = replace(model.backbone, source="pretrained")
    card = ModelCard(model_card(model.run.result, base, model.method, model.model).decode())
    assert card.data.license == timm.get_pretrained_cfg(base.tag).license == "apache-2.0"
    assert card.data.base_model == f"timm/{base.tag}"
    assert "timm.create_model('test_resnet.r160_in1k', pretrained=True)" in card.text


def test_the_lines_of_a_card_take_a_file_of_weights(runs, tmp_path, monkeypatch):
    """The run's random weights as a file, with a classifier of other classes, as a checkpoint has it."""
    from safetensors.torch import save_file

    model = _restored(runs["probe"])
    other = timm.create_model(model.backbone.tag, num_classes=7)
    other.load_state_dict(model.backbone.module.state_dict(), strict=False)
    save_file(other.state_dict(), tmp_path / "base.safetensors")
    base = replace(model.backbone, source="/home/somebody/base.safetensors")
    card = tmp_path / "card" / "README.md"
    card.parent.mkdir()
    card.write_bytes(model_card(model.run.result, base, model.method, model.model))
    (card.parent / "head.safetensors").write_bytes((runs["probe"] / "head.safetensors").read_bytes())
    assert "/home/somebody" not in card.read_text()
    logits = _executed(card, _test_pixels(runs["probe"])[:2], tmp_path, monkeypatch)
    np.testing.assert_allclose(logits, _stored(runs["probe"])[:2], atol=1e-4)


def test_a_card_may_be_edited_and_the_run_stays_whole(runs, capsys):
    card = _card(runs["lora"])
    content = card.read_bytes()
    card.write_text("mine")
    assert _evaluate(runs["lora"]) == 0
    card.unlink()
    assert _evaluate(runs["lora"]) == 0
    assert capsys.readouterr().out.count("identical, 0 of 20") == 2
    card.write_bytes(content)


@pytest.mark.parametrize("kind", ["lora", "probe", "mlp", "cnn_lora", "full"])
def test_an_onnx_file_takes_any_batch_and_gives_the_logits(runs, kind, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    assert _evaluate(runs[kind], "--export", path) == 0
    said = capsys.readouterr().out
    assert re.search(r"model.onnx \(\d+\.\d MB\)", said) and "onnxruntime.InferenceSession(" in said
    session, model = onnxruntime.InferenceSession(path), _restored(runs[kind])
    images = _prepared(model)
    for count in (1, 20):
        (logits,) = session.run(None, {"images": images[:count]})
        np.testing.assert_allclose(logits, _stored(runs[kind])[:count], atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list("0123456789") and metadata["opset"] == "18"


@pytest.mark.parametrize("kind", ["lora_more", "mlp"])
def test_an_onnx_file_with_preprocessing_takes_images_of_any_size(runs, kind, tmp_path, capsys):
    path, rng = tmp_path / "model.onnx", np.random.default_rng(0)
    assert _evaluate(runs[kind], "--export", path, "--with-preprocessing") == 0
    command = re.search("score an image with: (.*) IMAGE\n", capsys.readouterr().out)[1]
    session, model = onnxruntime.InferenceSession(path), _restored(runs[kind])
    for height, width in ((8, 8), (71, 40), (33, 65)):
        pixels = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        (shares,) = session.run(None, {"images": pixels})
        images = LabelledImages(np.full(2, -1), np.arange(2), pixels=pixels)
        np.testing.assert_allclose(shares, softmax(model.logits(images, "test")), atol=2e-3)
    Image.fromarray(pixels[0]).save(tmp_path / "image.png")
    argv = [sys.executable, *shlex.split(command)[1:], str(tmp_path / "image.png")]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert int(said[0]) == shares[0].argmax() and float(said[1]) == pytest.approx(float(shares[0].max()), abs=1e-6)


def test_without_the_packages_for_onnx_one_line_names_them(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert _evaluate(runs["mlp"], "--export", tmp_path / "model.onnx") == 2
    assert capsys.readouterr().err == "error: --export FILE.onnx needs onnxscript: pip install onnx onnxscript\n"
    assert not (tmp_path / "model.onnx").exists()


def _write_images(folder: Path, names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (9, 8), dtype=np.uint8)).save(folder / name)


def test_labels_are_written_of_files_and_patterns_with_the_likeliest_classes(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _write_images(Path("new"), ("a.png", "b.png", "c.jpg"))
    Path("new", "notes.txt").touch()
    assert _evaluate(runs["probe"], "--predict", "new", "--out", "all.json") == 0
    assert _evaluate(runs["probe"], "--predict", "new/*.png", "new/c.jpg", "--top", "3", "--out", "top.csv") == 0
    records = json.loads(Path("all.json").read_text())
    rows = list(csv.DictReader(Path("top.csv").read_text().splitlines()))
    assert [record["file"] for record in records] == ["a.png", "b.png", "c.jpg"]
    assert [row["file"] for row in rows] == ["new/a.png", "new/b.png", "new/c.jpg"]
    for record, row in zip(records, rows, strict=True):
        shares = sorted(record["probabilities"].items(), key=lambda item: -item[1])
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-4) and len(shares) == 10
        assert (record["class"], record["probability"]) == (row["class"], float(row["probability"])) == shares[0]
        assert [(row[f"class_{rank}"], float(row[f"probability_{rank}"])) for rank in (2, 3)] == shares[1:3]


def test_what_is_no_image_is_refused_by_name(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _write_images(Path("new"), ("a.png",))
    Path("notes.txt").touch()
    for wrong in ("notes.txt", "absent.png", "new/*.jpg"):
        assert _evaluate(runs["probe"], "--predict", "new", wrong, "--out", "x.csv") == 2
        assert f"error: {wrong!r} is no folder with images" in capsys.readouterr().err
    assert not Path("x.csv").exists()


@pytest.mark.parametrize("kind", ["probe", "lora"])
def test_embedded_features_are_what_the_classifier_reads(runs, kind, tmp_path):
    from safetensors.torch import load_file

    assert _evaluate(runs[kind], "--embed", tmp_path / "own.npz") == 0
    embedded = np.load(tmp_path / "own.npz")
    is_test = embedded["split"] == "test"
    assert embedded["files"][is_test].tolist() == [f"test/{index}" for index in embedded["indices"][is_test]]
    files = {"probe": ("head.safetensors", "output."), "lora": ("adapter/adapter_model.safetensors", "head.")}
    name, layer = files[kind]
    state = {key.rpartition(layer)[2]: value for key, value in load_file(runs[kind] / name).items() if layer in key}
    logits = embedded["features"][is_test] @ state["weight"].numpy().T + state["bias"].numpy()
    np.testing.assert_allclose(logits, _stored(runs[kind]), atol=1e-4)


def test_other_images_are_embedded_with_their_names(runs, tmp_path):
    _write_images(tmp_path / "new", ("a.png", "b.png"))
    assert _evaluate(runs["probe"], "--embed", tmp_path / "x.npz", "--images", tmp_path / "new") == 0
    embedded = np.load(tmp_path / "x.npz")
    assert embedded["files"].tolist() == ["a.png", "b.png"] and embedded["features"].shape[0] == 2


def test_a_model_of_all_images_is_shared_with_its_validation_scores(tmp_path, capsys):
    for name in "ab":
        _write_images(tmp_path / name, tuple(f"{number}.png" for number in range(8)))
    flags = ["--dataset", tmp_path, "--all-images", "--val-fraction=0.25", "--backbone=test_resnet", "--head=probe"]
    flags += ["--weights=random", "--image-size=32", "--no-feature-cache", "--results-dir", tmp_path / ".results"]
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, list(map(str, flags))) == 0
    (run,) = (tmp_path / ".results").glob("*/*/seed0")
    card, result = ModelCard.load(_card(run)), read_result(run / "result.json")
    found = {each.metric_type: each for each in card.data.eval_results}
    assert found["accuracy"].dataset_split == "validation"
    assert found["accuracy"].metric_value == result.val.scores["accuracy"]
    assert "4 validation images" in card.text and "other images will score lower" in card.text
    assert _evaluate(run, "--embed", tmp_path / "x.npz") == 0
    embedded = np.load(tmp_path / "x.npz")
    assert set(embedded["split"]) == {"train", "val"} and "a/0.png" in embedded["files"]
    capsys.readouterr()
    assert _evaluate(run, "--corrupt", "all") == 2
    assert "has no test images to corrupt" in capsys.readouterr().err
