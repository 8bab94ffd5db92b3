"""Frozen means frozen, the test images are seen last, and features made once train the same head."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import evaluate
import train_cnn_head
import train_vit_lora
from common import cli
from common.data.dataset import DatasetSplits, load_dataset
from common.models import backbones, weights
from common.models.heads import hidden_width, new_head, own_activation
from common.runs.result import read_result
from common.runtime.errors import UserError
from common.runtime.files import prune
from common.training import features, inputs, loop, run
from common.training.checkpoint import Checkpoint
from common.training.loaders import AugmentedFeatureLoader, FeatureLoader, ImageLoader
from common.training.loop import OptimizerConfig
from common.training.predict import predict

CPU = torch.device("cpu")
NOWHERE = Path("data")  # the digits need no folder
TINY = [
    "--dataset=digits",
    "--weights=random",
    "--image-size=32",
    "--precision=fp32",
    "--train-limit=100",
    "--test-limit=40",
    "--epochs=1",
]


def _backbone(name: str = "test_resnet") -> backbones.Backbone:
    return backbones.load(backbones.resolve_tag(name), weights="random", image_size=32)


def _digits() -> DatasetSplits:
    return load_dataset("digits", data_dir=NOWHERE, train_limit=100, test_limit=40)


def _extractor(backbone: backbones.Backbone, fingerprint: str = "f") -> features.Extractor:
    return features.Extractor(backbone, "squash", CPU, "fp32", "auto", 0, fingerprint)


@pytest.mark.parametrize("augment", ["none", "light"])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_weights_and_batchnorm_statistics_are_bitwise_unchanged_by_a_run(name, augment, tmp_path, monkeypatch):
    seen = []
    load = backbones.load
    monkeypatch.setattr(backbones, "load", lambda *a, **k: seen.append(load(*a, **k)) or seen[-1])
    argv = [*TINY, f"--backbone={name}", f"--augment={augment}", "--results-dir", str(tmp_path), "--no-feature-cache"]
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, argv) == 0
    (backbone,) = seen
    assert any("running_mean" in key for key in backbone.module.state_dict())
    assert weights.hash_weights(backbone.module) == backbone.sha256  # over parameters and buffers
    assert not any(module.training for module in backbone.module.modules())
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (train_cnn_head, ["--backbone=test_resnet", "--no-feature-cache"]),
        (train_cnn_head, ["--backbone=test_resnet", "--no-feature-cache", "--augment=light"]),
        (train_vit_lora, ["--backbone=test_vit", "--rank=2"]),
        (train_vit_lora, ["--backbone=test_vit", "--rank=0", "--no-feature-cache"]),
    ],
)
def test_no_model_sees_a_test_image_before_the_selection_has_ended(script, flags, tmp_path, monkeypatch):
    from common.data import loader as data_loader
    from common.data import transforms
    from common.training.methods import base

    digits = _digits()
    forbidden = {image.tobytes() for image in digits.test.pixels}
    allowed_copies = {image.tobytes() for image in digits.train.pixels}
    log = []
    channels_first, sweep = transforms.channels_first, base.sweep

    def spy(images):
        log.extend("test" for image in images if image.tobytes() in forbidden - allowed_copies)
        return channels_first(images)

    def logged_sweep(*arguments, **options):
        found = sweep(*arguments, **options)
        log.append("selected")
        return found

    monkeypatch.setattr(data_loader, "channels_first", spy)
    monkeypatch.setattr(base, "sweep", logged_sweep)
    assert cli.run(script.main, script.Config, [*TINY, *flags, "--results-dir", str(tmp_path)]) == 0
    assert log[0] == "selected"
    assert log.count("test") >= len(forbidden - allowed_copies)


def test_features_made_once_train_the_same_head_as_the_backbone_run_every_epoch(tmp_path):
    backbone, digits = _backbone(), _digits()
    extractor = _extractor(backbone)
    config = OptimizerConfig(1e-3, 3, 16, 0.01, 0)
    once = features.extract(extractor, digits.train, "train", folder=tmp_path / "f")
    val = FeatureLoader(features.extract(extractor, digits.val, "val", folder=tmp_path / "f").values, digits.val.labels)
    images = ImageLoader(digits.train, extractor.transform, CPU, 0)
    sources = {
        "once": FeatureLoader(once.values, digits.train.labels),
        "each": AugmentedFeatureLoader(images, features.FrozenForward(extractor, digits.train)),
    }
    logits, histories = {}, {}
    for name, train in sources.items():
        head = new_head(backbone.module, backbone.width, 10, kind="mlp", dropout=0.5, seed=0)
        history = loop.fit(head, train, val, config, Checkpoint(tmp_path / name, {}))
        logits[name] = predict(head, val, batch_size=16, desc="val")
        histories[name] = [row["train_loss"] for row in history]
    # Batches of another size sum in another order: float32 rounding, grown over 21 steps.
    np.testing.assert_allclose(logits["once"], logits["each"], atol=1e-3)
    np.testing.assert_allclose(histories["once"], histories["each"], rtol=1e-4)


def test_features_are_found_again_with_their_cost_and_damage_is_mended(tmp_path):
    extractor, images = _extractor(_backbone()), _digits().train
    first = features.extract(extractor, images, "train", folder=tmp_path)
    again = features.extract(extractor, images, "train", folder=tmp_path)
    assert (first.cache_hit, again.cache_hit) == (False, True)
    assert torch.equal(first.values, again.values)
    assert first.seconds == again.seconds
    (part,) = tmp_path.glob("*/features-*.safetensors")
    content = part.read_bytes()
    features.extract(_extractor(_backbone(), "other data"), images, "train", folder=tmp_path / "foreign")
    (foreign,) = (tmp_path / "foreign").glob("*/features-*.safetensors")
    longer = content.replace(b'"seconds":"', b'"seconds":"9', 1)  # a cost that was edited, at an equal length
    longer = longer[:8] + longer[8:].replace(b" ", b"", 1)
    for damaged in (
        content[:-1],
        b"",
        foreign.read_bytes(),
        longer,
        content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    ):
        part.write_bytes(damaged)
        mended = features.extract(extractor, images, "train", folder=tmp_path)
        assert not mended.cache_hit
        assert torch.equal(mended.values, first.values)


def test_augmentation_is_drawn_from_the_seed_of_the_run(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(inputs, "ImageLoader", lambda *a, **k: made.append(ImageLoader(*a, **k)) or made[-1])
    argv = [*TINY, "--backbone=test_resnet", "--no-feature-cache", "--augment=light", "--seed=3"]
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, [*argv, "--results-dir", str(tmp_path)]) == 0
    (examples,) = (loader for loader in made if loader.transform.augment == "light")
    first = [next(dataclasses.replace(examples, seed=seed).batches([np.arange(8)], epoch=0)) for seed in (3, 3, 4)]
    assert examples.seed == 3
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    assert not torch.equal(first[0], next(examples.batches([np.arange(8)], epoch=1)))


def test_the_second_run_finds_the_features_of_the_first_and_records_their_cost(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "FEATURE_CACHE", tmp_path / "cache")
    records = []
    for flags in (["--seed=0"], ["--seed=1", "--head=linear", "--lr=1e-2", "--batch-size=16"], ["--train-limit=90"]):
        argv = [*TINY, "--backbone=test_resnet", "--results-dir", str(tmp_path / "r"), f"--run-name={len(records)}"]
        assert cli.run(train_cnn_head.main, train_cnn_head.Config, [*argv, *flags]) == 0
        (path,) = tmp_path.glob(f"r/digits/{len(records)}/seed*/result.json")
        records.append(read_result(path).efficiency)
    assert [record.feature_cache_hit for record in records] == [False, True, False]
    assert records[0].feature_seconds == records[1].feature_seconds > 0


def test_features_of_other_data_weights_or_splits_are_other_entries(tmp_path):
    images = _digits().train
    for extractor, split in [
        (_extractor(_backbone()), "train"),
        (_extractor(_backbone()), "val"),
        (_extractor(_backbone(), "other data"), "train"),
        (_extractor(dataclasses.replace(_backbone(), sha256="other weights")), "train"),
        (_extractor(_backbone("test_efficientnet")), "train"),
    ]:
        assert not features.extract(extractor, images, split, folder=tmp_path).cache_hit
    for half in (np.arange(50), np.arange(50, 100)):
        assert not features.extract(extractor, images.subset(half), "train", folder=tmp_path).cache_hit


def test_the_cache_drops_what_was_not_used_for_longest(tmp_path):
    import os

    for number in range(4):
        entry = tmp_path / str(number)
        entry.mkdir()
        (entry / "part").write_bytes(b"x" * 100)
        os.utime(entry, (number, number))
    prune(tmp_path, limit_bytes=250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    prune(tmp_path, limit_bytes=0)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]  # the newest is in use


def test_the_heads_of_the_study():
    assert (hidden_width(2048), hidden_width(1280)) == (1024, 512)
    with torch.device("meta"):
        import timm

        resnet, efficientnet = timm.create_model("resnet50"), timm.create_model("efficientnet_b0")
    assert isinstance(own_activation(resnet), nn.ReLU)
    assert isinstance(own_activation(efficientnet), nn.SiLU)


def test_the_saved_head_is_hidden_and_output_alone_and_counts_match(tmp_path):
    from safetensors.torch import load_file

    argv = [*TINY, "--backbone=test_resnet", "--results-dir", str(tmp_path), "--no-feature-cache"]
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, argv) == 0
    (seed,) = tmp_path.glob("digits/*/seed0")
    saved = load_file(seed / "head.safetensors")
    assert set(saved) == {"hidden.weight", "hidden.bias", "output.weight", "output.bias"}
    result = read_result(seed / "result.json")
    assert result.model.trainable_params == sum(tensor.numel() for tensor in saved.values())
    assert result.data.num_train == 100
    assert sorted(path.name for path in seed.iterdir()) == [
        *("README.md", "head.safetensors", "predictions.npz", "result.json")
    ]


def test_a_transformer_is_no_cnn():
    with pytest.raises(UserError, match=r"use train_vit_lora\.py"):
        backbones.require_cnn(_backbone("test_vit"))


def test_the_random_backbone_is_the_same_for_every_run():
    torch.manual_seed(1)
    first = _backbone().sha256
    torch.manual_seed(2)
    assert _backbone().sha256 == first


@pytest.mark.parametrize("what", ["pickle", "truncated", "nan", "other"])
def test_a_wrong_weights_file_is_named_and_refused(what, tmp_path):
    import timm
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    state = timm.create_model("test_resnet" if what != "other" else "test_efficientnet", num_classes=7).state_dict()
    if what == "pickle":
        torch.save(state, path)
    else:
        if what == "nan":
            next(iter(state.values())).view(-1)[0] = float("nan")
        save_file(state, path)
    if what == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        backbones.load("test_resnet.r160_in1k", weights=str(path), image_size=32)


def test_a_weights_file_is_loaded_whatever_its_own_class_count(tmp_path):
    import timm
    from safetensors.torch import save_file

    hashes = set()
    for classes in (0, 7, 10):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=0)
        if classes:
            model.reset_classifier(classes)
        save_file(model.state_dict(), tmp_path / "w.safetensors")
        loaded = backbones.load("test_resnet.r160_in1k", weights=str(tmp_path / "w.safetensors"), image_size=32)
        hashes.add(loaded.sha256)
    model.reset_classifier(0)
    assert hashes == {weights.hash_weights(model)}


def test_without_network_and_weights_one_line_says_what_to_do(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UserError, match=r"download https://huggingface\.co/timm/resnet50\.tv2_in1k/.* `weights` FILE"):
        backbones.load("resnet50.tv2_in1k", weights="pretrained", image_size=224)


def test_augmented_features_come_in_the_batches_that_were_asked_for():
    backbone, images = _backbone(), _digits().train
    extractor = _extractor(backbone)
    transform = dataclasses.replace(extractor.transform, augment="light")
    order = [np.arange(start, min(start + 48, 100)) for start in range(0, 100, 48)]
    forward, whole = features.FrozenForward(extractor, images), ImageLoader(images, transform, CPU, 0, seed=1)
    plain = torch.cat([forward(pixels) for pixels in whole.batches([np.arange(100)], epoch=2)])
    for size in (16, 64, 256):
        forward = features.FrozenForward(extractor, images, most=size)
        made = list(AugmentedFeatureLoader(whole, forward).batches(order, epoch=2))
        assert [len(batch) for batch in made] == [48, 48, 4]
        torch.testing.assert_close(torch.cat(made), plain, rtol=1e-4, atol=1e-5)
        resumed = list(AugmentedFeatureLoader(whole, forward).batches(order[1:], epoch=2))
        assert all(map(torch.equal, resumed, made[1:]))
        assert not list(AugmentedFeatureLoader(whole, forward).batches([], epoch=2))


def test_float16_is_for_features_and_refused_where_they_overflow_or_gradients_are_needed(tmp_path, capsys):
    argv = [*TINY, "--backbone=test_resnet", "--precision=fp16", "--no-feature-cache", "--results-dir", str(tmp_path)]
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, argv) == 0
    (run,) = tmp_path.glob("digits/*fp16/seed0")
    assert read_result(run / "result.json").environment["precision"] == "fp16"
    assert cli.run(evaluate.main, evaluate.Config, [str(run)]) == 0
    lora = [flag for flag in TINY if "precision" not in flag]
    argv = [*lora, "--backbone=test_vit", "--precision=fp16", "--results-dir", str(tmp_path)]
    assert cli.run(train_vit_lora.main, train_vit_lora.Config, argv) == 2
    assert "too small for it: take bf16 or fp32" in capsys.readouterr().err
    backbone = _backbone()
    with torch.no_grad():
        last = [each for each in backbone.module.modules() if isinstance(each, torch.nn.BatchNorm2d)][-1]
        last.bias.fill_(1e6)
    extractor = dataclasses.replace(_extractor(backbone), precision="fp16")
    with pytest.raises(UserError, match="leave the range of float16"):
        features.extract(extractor, _digits().train, "train", folder=None)
