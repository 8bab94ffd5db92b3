"""The demo backbones: what lies in the repository is what its record says, and works like any other backbone."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from common.data.registry import DATASETS
from common.models import backbones, demo_backbones, weights
from common.runtime.errors import UserError
from common.runtime.files import sha256_of_file
from demo import pretrain, pretraining

REPOSITORY = Path(__file__).resolve().parent.parent
RECORDS = {
    name: json.loads((demo_backbones.WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    for name in demo_backbones.NAMES
}


def _tiny_cifar10(folder: Path) -> Path:
    """Write two training images and one test image a class, as an image folder ``cifar10``; return the data folder."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 2), ("test", 1)):
        for name in DATASETS["cifar10"].classes:
            (folder / "cifar10" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "cifar10" / part / name / f"{number}.png")
    return folder


def test_the_three_were_trained_alike_and_are_small_enough_to_ship():
    assert {json.dumps(record["recipe"], sort_keys=True) for record in RECORDS.values()}.__len__() == 1
    assert len({record["data"]["fingerprint"] for record in RECORDS.values()}) == 1
    assert all(len(record["history"]) == record["recipe"]["epochs"] >= 40 for record in RECORDS.values())
    vit, resnet, efficientnet = (record["parameters"] for record in RECORDS.values())
    assert 3 < vit / resnet < 4  # ViT-B/16 and ResNet50: 3.4
    assert 8 < vit / efficientnet < 9  # ViT-B/16 and EfficientNet-B0: 17, which would leave a CNN of 70,000 parameters
    assert sum(path.stat().st_size for path in demo_backbones.WEIGHTS.iterdir()) < 10e6


@pytest.mark.parametrize("name", demo_backbones.NAMES)
def test_the_file_is_the_one_that_was_tested_and_the_readme_says_what_it_scored(name):
    record, path = RECORDS[name], demo_backbones.WEIGHTS / f"{name}.safetensors"
    assert record["file"]["sha256"] == sha256_of_file(path)
    (row,) = re.findall(rf"^\| `{name}` \|.*$", (REPOSITORY / "demo" / "README.md").read_text(), re.MULTILINE)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert f"{100 * record['test']['accuracy']:.1f} %" in cells
    assert f"{record['parameters']:,}" in cells
    assert f"`{record['file']['sha256'][:16]}`" in cells


@pytest.mark.parametrize("name", demo_backbones.NAMES)
@pytest.mark.parametrize("classes", [0, 3, 10])
def test_timm_loads_them_offline_for_any_number_of_classes(name, classes):
    module = timm.create_model(name, pretrained=True, num_classes=classes)
    shipped = backbones.load(f"{name}.cifar10", weights="pretrained", image_size=32)
    module.reset_classifier(0)
    assert weights.hash_weights(module) == shipped.sha256
    assert shipped.image_size == 32
    assert shipped.mean == (0.4914, 0.4822, 0.4465)


@pytest.mark.parametrize("name", demo_backbones.NAMES)
def test_a_bare_name_is_completed_and_features_are_finite_at_two_sizes(name):
    tag = backbones.resolve_tag(name)
    assert tag == f"{name}.cifar10"
    for size in (32, 64):
        backbone = backbones.load(tag, weights="pretrained", image_size=size)
        features = backbones.pooled_features(backbone.module, torch.zeros(2, 3, size, size))
        assert features.shape == (2, backbone.width)
        assert torch.isfinite(features).all()


def test_their_own_pretraining_data_are_refused_by_name_and_by_their_classes():
    for dataset, classes in (("cifar10", ()), ("pictures", sorted(DATASETS["cifar10"].classes))):
        with pytest.raises(UserError, match="was pretrained on the training images of cifar10"):
            demo_backbones.require_other_data("demo_vit.cifar10", dataset, classes)
    demo_backbones.require_other_data("demo_vit.cifar10", "digits", DATASETS["digits"].classes)
    demo_backbones.require_other_data("resnet50.tv2_in1k", "cifar10", DATASETS["cifar10"].classes)


def test_a_crop_shifts_an_image_by_at_most_four_pixels_and_mirrors_half_of_them():
    images = np.zeros((400, 32, 32, 3), np.uint8)
    images[:, 10, 12] = (1, 2, 3)
    drawn = pretraining.crop_and_flip(images, np.random.default_rng(0))
    assert np.array_equal(drawn, pretraining.crop_and_flip(images, np.random.default_rng(0)))
    places = np.argwhere(drawn[..., 0] == 1)  # (400, 3): image, row, column
    assert len(places) == 400
    assert {tuple(drawn[image, row, column]) for image, row, column in places} == {(1, 2, 3)}
    assert set(places[:, 1]) == set(range(6, 15))
    assert set(places[:, 2]) == set(range(8, 17)) | set(range(15, 24))  # 12, or 31 - 12 where it was mirrored
    assert 150 < (places[:, 2] >= 17).sum() < 250


def test_the_rate_rises_for_an_epoch_and_falls_to_zero():
    rates = [pretraining.schedule(epoch, 15) for epoch in np.linspace(0, 15, 301)]
    assert max(rates) == rates[20] == 1
    assert sorted(rates[:21]) == rates[:21]
    assert sorted(rates[20:], reverse=True) == rates[20:]
    assert rates[-1] < 1e-9


@pytest.mark.parametrize("name", ["demo_vit", "demo_efficientnet"])
def test_a_pretraining_that_was_stopped_ends_with_the_same_weights(name, tmp_path, monkeypatch, capsys):
    data_dir = _tiny_cifar10(tmp_path)
    recipe = {"backbones": (name,), "data_dir": data_dir, "epochs": 3, "batch_size": 8}
    pretrain.main(pretrain.Config(**recipe, weights_dir=tmp_path / "whole"))

    plain = pretraining._train_epoch
    monkeypatch.setattr(pretraining, "_train_epoch", lambda *a: plain(*a) if a[-1] < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pretrain.main(pretrain.Config(**recipe, weights_dir=tmp_path / "stopped"))
    monkeypatch.setattr(pretraining, "_train_epoch", plain)
    pretrain.main(pretrain.Config(**recipe, weights_dir=tmp_path / "stopped"))

    assert "resuming after epoch 2" in capsys.readouterr().out
    whole, stopped = (tmp_path / folder / f"{name}.safetensors" for folder in ("whole", "stopped"))
    assert whole.read_bytes() == stopped.read_bytes()
    assert not list(tmp_path.rglob("*.checkpoint"))
    pretrain.main(pretrain.Config(**recipe, weights_dir=tmp_path / "stopped"))
    assert "already pretrained by this recipe" in capsys.readouterr().out
