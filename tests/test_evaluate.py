"""Finished runs brought back: reproduced, applied to other images, exported."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import evaluate
import train_cnn_head
import train_vit_lora
from common import cli
from common.data.transforms import normalise, resize
from common.runs.predictions import read_predictions
from common.runs.result import Run, read_result
from common.training import restore
from common.training.restore import restore_run

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = ["--dataset=digits", "--weights=random", "--image-size=32", "--precision=fp32", "--epochs=2", "--lr=1e-2"]
MORE = ("--targets=all-linear", "--also-train=norms-and-embeddings")


def _train(script, folder: Path, *flags: str) -> Path:
    code = cli.run(script.main, script.Config, [*SMALL, "--results-dir", str(folder), "--run-name", "run", *flags])
    assert code == 0
    return folder / "digits" / "run" / "seed0"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """One finished run of each kind, trained on scikit-learn's digits with random weights."""
    folder = tmp_path_factory.mktemp("runs")
    off = ("--no-feature-cache",)
    return {
        "lora": _train(train_vit_lora, folder / "a", "--backbone", "test_vit", "--rank", "2"),
        "lora_more": _train(train_vit_lora, folder / "e", "--backbone=test_vit", "--train-limit=200", *MORE),
        "linear": _train(train_cnn_head, folder / "b", "--backbone", "test_resnet", "--head", "linear", *off),
        "mlp": _train(train_cnn_head, folder / "c", "--backbone", "test_efficientnet", *off),
        "frozen_vit": _train(train_vit_lora, folder / "d", "--backbone", "test_vit", "--rank", "0", *off),
    }


def _evaluate(*argv: object) -> int:
    return cli.run(evaluate.main, evaluate.Config, [str(word) for word in argv])


def _test_images(run: Path) -> tuple[torch.Tensor, np.ndarray]:
    """The normalised test images of a run, and its stored logits."""
    from common.data.dataset import load_dataset

    result = read_result(run / "result.json")
    images = load_dataset("digits", data_dir=Path("data")).test
    model = restore_run(Run(run, result), weights=None, device=torch.device("cpu"), workers=0)
    pixels = resize(torch.from_numpy(images.pixels)[:, None], model.inputs.extractor.transform)
    return normalise(pixels, model.inputs.extractor.transform), read_predictions(run, result).logits


@pytest.mark.parametrize("kind", ["lora", "lora_more", "linear", "mlp", "frozen_vit"])
def test_a_run_is_reproduced_bitwise_from_its_folder(runs, kind, capsys):
    assert _evaluate(runs[kind]) == 0
    assert "identical, 0 of 359 predictions changed" in capsys.readouterr().out


def test_the_switches_of_the_device_are_those_of_the_training(runs, monkeypatch):
    asked = []
    monkeypatch.setattr(restore, "prepare_device", lambda device, **switches: asked.append((device.type, switches)))
    assert _evaluate(runs["linear"]) == 0
    assert asked == [("cpu", {"deterministic": False})]


def test_a_fresh_process_reproduces_all_seeds_of_a_run(runs):
    done = subprocess.run(
        [sys.executable, "evaluate.py", runs["lora"].parent], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "equals the stored predictions" in done.stdout


@pytest.mark.parametrize("kind", ["lora", "lora_more", "linear", "frozen_vit"])
def test_the_exported_checkpoint_is_a_plain_timm_model_with_the_same_logits(runs, kind, tmp_path):
    assert _evaluate(runs[kind], "--export", tmp_path / "model.safetensors") == 0
    backbone = read_result(runs[kind] / "result.json").backbone
    size = {} if kind == "linear" else {"img_size": 32}
    path = str(tmp_path / "model.safetensors")
    model = timm.create_model(backbone, num_classes=10, checkpoint_path=path, **size).eval()
    images, stored = _test_images(runs[kind])
    with torch.no_grad():
        np.testing.assert_allclose(model(images).numpy(), stored, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "mlp"])
def test_the_exported_program_takes_any_batch_and_gives_the_same_logits(runs, kind, tmp_path):
    assert _evaluate(runs[kind], "--export", tmp_path / "model.pt2") == 0
    program = torch.export.load(tmp_path / "model.pt2").module()
    images, stored = _test_images(runs[kind])
    for count in (1, 7):
        np.testing.assert_allclose(program(images[:count]).detach().numpy(), stored[:count], atol=1e-4)


def test_a_head_of_two_layers_is_no_timm_checkpoint(runs, tmp_path, capsys):
    assert _evaluate(runs["mlp"], "--export", tmp_path / "model.safetensors") == 2
    assert "take --export FILE.pt2 or FILE.onnx" in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()


def _write_digits(folder: Path, classes: str) -> None:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(rng.integers(0, 256, (8 + number, 9), dtype=np.uint8)).save(folder / name / f"{number}.png")


def test_unlabelled_images_get_a_class_and_probabilities_that_sum_to_one(runs, tmp_path):
    _write_digits(tmp_path / "images", "ab")
    assert _evaluate(runs["linear"], "--predict", tmp_path / "images", "--out", tmp_path / "labels.csv") == 0
    rows = list(csv.DictReader((tmp_path / "labels.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == [f"{name}/{number}.png" for name in "ab" for number in range(3)]
    for row in rows:
        shares = {name.removeprefix("p_"): float(value) for name, value in row.items() if name.startswith("p_")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert max(shares, key=shares.__getitem__) == row["class"]
        assert float(row["probability"]) == max(shares.values())


@pytest.mark.parametrize("flags", [("--out=x.csv", "--predict"), ("--embed=x.npz", "--images")])
def test_damaged_images_are_all_named_before_anything_is_computed(runs, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _write_digits(tmp_path / "images", "ab")
    (tmp_path / "images" / "a" / "0.png").write_bytes(b"")
    (tmp_path / "images" / "b" / "2.png").write_bytes(b"no image")
    monkeypatch.setattr(restore, "predict", None)
    assert _evaluate(runs["linear"], *flags, "images") == 2
    error = capsys.readouterr().err
    assert "2 of 6 images are damaged: 'images/a/0.png' (it has 0 bytes); 'images/b/2.png' (its content is" in error
    assert error.count("\n") == 1 and not Path("x.csv").exists() and not Path("x.npz").exists()


def test_other_labelled_images_are_matched_by_class_name(runs, tmp_path):
    _write_digits(tmp_path / "other", "379")
    assert _evaluate(runs["linear"], "--dataset", tmp_path / "other", "--out", tmp_path / "scores.json") == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    supports = {row["class"]: row["support"] for row in scores["per_class"]}
    assert supports == {str(digit): 3 if digit in (3, 7, 9) else 0 for digit in range(10)}


def test_an_unknown_class_is_named(runs, tmp_path, capsys):
    _write_digits(tmp_path / "other", "3x")
    assert _evaluate(runs["linear"], "--dataset", tmp_path / "other") == 2
    assert "has the class 'x'" in capsys.readouterr().err


def test_other_base_weights_are_refused(runs, tmp_path, capsys):
    from safetensors.torch import save_file

    other = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    assert _evaluate(runs["linear"], "--weights", tmp_path / "other.safetensors") == 2
    assert "was trained on other weights" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["result.json", "predictions.npz", "adapter/adapter_model.safetensors"])
def test_a_damaged_file_of_a_run_is_named_and_not_scored(runs, name, tmp_path, capsys):
    import shutil

    copy = shutil.copytree(runs["lora"], tmp_path / "seed0")
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert _evaluate(copy) == 2
    captured = capsys.readouterr()
    assert Path(name).name in captured.err
    assert "accuracy" not in captured.out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--predict", "somewhere"], "needs --out"),
        (["--predict", "somewhere", "--out", "x.txt"], "FILE.csv or FILE.json"),
        (["--predict", "--out", "x.csv"], "no image"),
        (["--export", "model.bin"], "FILE.safetensors or FILE.pt2 or FILE.onnx"),
        (["--export", "x.safetensors", "--with-preprocessing"], "needs --export FILE.onnx"),
        (["--embed", "x.npy"], "FILE.npz"),
        (["--embed", "x.npz", "--predict", "somewhere"], "do not go together"),
        (["--corrupt", "all", "--dataset", "digits"], "do not go together"),
        (["--top", "5"], "--top goes with --predict alone"),
        (["--images", "somewhere"], "--images goes with --embed alone"),
        (["--dataset", "digits", "--export", "model.pt2"], "do not go together"),
        (["--device", "tpu"], "auto, cpu, cuda"),
        (["--predict", "nowhere", "--out", "x.csv"], "no folder with images"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(runs, flags, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert _evaluate(runs["linear"], *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert _evaluate(tmp_path) == 2
    assert "holds no finished run" in capsys.readouterr().err
