"""The deliberate defects do what the published code did, and no reader takes a run with one for a sound one."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import train_cnn_head
import train_vit_lora
from bench import published_defects
from bench.published_defects import (
    ALL,
    DEFECTS,
    EitherWay,
    PublishedLora,
    ThroughBackbone,
    defective,
    live_layers,
    mirror,
)
from common.data.images import LabelledImages
from common.models import backbones
from common.runs.result import RESULT_FILE, find_runs, read_result
from common.runtime.errors import AlreadyFinished, UserError
from common.training.loaders import FeatureLoader, ImageLoader

CPU = torch.device("cpu")
TINY = {"weights": "random", "image_size": 32, "precision": "fp32", "epochs": 2, "batch_size": 32, "lr": (1e-2,)}
TINY |= {"dataset": "digits", "train_limit": 60, "test_limit": 30, "feature_cache": False}
HEAD = train_cnn_head.Config(backbone="test_efficientnet.r160_in1k", **TINY)
RESNET = replace(HEAD, backbone="test_resnet.r160_in1k")
LORA = train_vit_lora.Config(backbone="test_vit.r160_in1k", rank=2, **TINY)
SIXTEEN = PublishedLora(rank=16, alpha=32.0, dropout=0.1, targets="qv", also_train="nothing")


def _images(count=40, side=32):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
    return LabelledImages(rng.integers(0, 10, count), np.arange(count), pixels=pixels)


def test_the_predictions_stand_in_the_docstring_as_the_table_has_them():
    for name, defect in {**DEFECTS, "all": ALL}.items():
        (line,) = re.findall(rf"^    {name} .*$", published_defects.__doc__, flags=re.M)
        assert dict(re.findall(r"(lora|resnet|efficientnet) ([-+0])(?=\s)", line)) == defect.predicted


def test_lora_on_out_proj_is_dead_at_the_size_of_the_study():
    """294,912 of 1,769,472 LoRA parameters never receive a gradient, as in the published code."""
    backbone = backbones.load("vit_base_patch16_224.augreg_in1k", weights="random", image_size=32)
    model = SIXTEEN.build(backbone, 10, seed=0, precision="fp32", device=CPU).train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    matrices = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    dead = {name for name, parameter in matrices.items() if parameter.grad is None}
    assert dead == {name for name in matrices if ".attn.proj." in name}
    assert sum(matrices[name].numel() for name in dead) == 294_912
    assert sum(parameter.numel() for parameter in matrices.values()) == 1_769_472


def test_dead_lora_changes_no_prediction_and_the_rest_starts_as_the_base():
    images = torch.randn(3, 3, 32, 32)
    backbone = backbones.load(LORA.backbone, weights="random", image_size=32)
    with torch.no_grad():
        before = backbones.pooled_features(backbone.module, images)
        model = SIXTEEN.build(backbone, 10, seed=0, precision="fp32", device=CPU)
        assert torch.equal(backbones.pooled_features(model.vit, images), before)
        logits = model(images)
        for name, parameter in model.named_parameters():
            if ".attn.proj.lora_B" in name:
                parameter.fill_(1.0)
        assert torch.equal(model(images), logits)
        for name, parameter in model.named_parameters():
            if ".mlp.fc1.lora_B" in name:
                parameter.fill_(1.0)
        assert not torch.equal(model(images), logits)


def _live(defects, training=True, tag=HEAD.backbone):
    backbone = backbones.load(tag, weights="random", image_size=32)
    layers = live_layers(backbone.module, defects)
    images = ImageLoader(_images(), backbone.transform("squash"), CPU, workers=0)
    return backbone.module, ThroughBackbone(images, backbone.module, "fp32", tuple(layers), training)


def _features(loader):
    return torch.cat(list(loader.batches(np.arange(40).reshape(2, 20), epoch=0)))


def test_statistics_drift_in_training_and_are_brought_back_with_the_epoch_that_is_kept():
    module, loader = _live(["batchnorm-drift"])
    weights = {name: value.clone() for name, value in module.named_parameters()}
    start = {name: value.clone() for name, value in module.named_buffers()}
    _features(loader)
    moved = [name for name, value in module.named_buffers() if not torch.equal(value, start[name])]
    assert sorted(moved) == sorted(start)  # mean, variance and count of every BatchNorm
    assert all(torch.equal(value, weights[name]) for name, value in module.named_parameters())
    assert not any(layer.training for layer in module.modules())
    loader.restore(1)
    assert all(torch.equal(value, start[name]) for name, value in module.named_buffers())
    _features(replace(loader, training=False))
    assert all(torch.equal(value, start[name]) for name, value in module.named_buffers())


def test_stochastic_depth_drops_blocks_in_training_alone():
    module, loader = _live(["stochastic-depth"], tag="demo_efficientnet.cifar10")
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    rates = [layer.drop_prob for layer in loader.live]
    assert rates[0] == 0 and rates == sorted(rates) and rates[-1] < published_defects.STOCHASTIC_DEPTH
    still, sound = replace(loader, training=False), _live([], tag="demo_efficientnet.cifar10")[1]
    assert torch.equal(_features(still), _features(sound))
    assert not torch.equal(_features(loader), _features(loader))
    assert torch.equal(_features(still), _features(sound))
    assert all(torch.equal(value, buffers[name]) for name, value in module.named_buffers())


def test_about_half_of_the_images_are_mirrored_anew_in_each_epoch():
    images = _images(200)
    backbone = backbones.load(RESNET.backbone, weights="random", image_size=32)
    plain, mirrored = (
        ImageLoader(each, backbone.transform("squash"), CPU, workers=0) for each in (images, mirror(images))
    )
    whole = [np.arange(200)]
    (one,), (two,) = (list(loader.batches(whole, epoch=0)) for loader in (plain, mirrored))
    assert torch.equal(two, one.flip(-1))
    drawn = [next(iter(EitherWay(plain, mirrored, 0).batches(whole, epoch=epoch))) for epoch in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    turned = (drawn[0] == two).flatten(1).all(1)
    assert ((drawn[0] == one).flatten(1).all(1) ^ turned).all() and 70 < turned.sum() < 130
    features = [FeatureLoader(torch.full((200, 3), value), images.labels) for value in (0.0, 1.0)]
    drawn = next(iter(EitherWay(*features, 0).batches(whole, epoch=0)))
    assert torch.equal(drawn[:, 0] == 1, turned)  # the same coins


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (LORA, ["lora-on-mlp", "validation-on-test", "flips", "imagenet-norm", "all"]),
        (RESNET, ["batchnorm-drift", "validation-on-test", "flips", "imagenet-norm", "all"]),
        (HEAD, ["batchnorm-drift", "stochastic-depth", "validation-on-test", "flips", "imagenet-norm", "all"]),
        (replace(RESNET, dataset="fashion_mnist"), ["batchnorm-drift", "validation-on-test", "imagenet-norm", "all"]),
        (replace(HEAD, head="linear"), []),
    ],
)
def test_a_defect_is_refused_where_it_is_none(config, names):
    assert published_defects.concerning(config) == names
    for name in {*DEFECTS, "all", "unheard-of"} - set(names):
        with pytest.raises(UserError, match="is none of this run's"):
            defective(config, name)


@pytest.fixture(scope="module")
def all_defects(tmp_path_factory):
    """Runs of each arm with all of its defects, by arm."""
    folder = tmp_path_factory.mktemp("defective")
    for config in (LORA, RESNET, HEAD):
        published_defects.main(defective(replace(config, results_dir=folder), "all"))
    return folder


def test_every_other_reader_refuses_a_defective_run(all_defects, tmp_path):
    paths = sorted(all_defects.glob(f"digits/*/seed0/{RESULT_FILE}"))
    assert len(paths) == 3
    for path in paths:
        assert path.parent.parent.name.endswith("-DEFECT-all")
        with pytest.raises(UserError, match="with the deliberate defect all"):
            read_result(path)
        names = {file.name for file in path.parent.iterdir()}
        assert names == {RESULT_FILE, "predictions.npz", "epochs.npz"}  # no weights to predict with
        assert any("deliberate defects:" in note for note in json.loads(path.read_text())["notes"])
    runs, problems = find_runs(all_defects)
    assert not runs and len(problems) == 3
    # A sound run that is aimed at its folder does not take it for its own.
    aimed = replace(RESNET, results_dir=all_defects, run_name="test_resnet.random-head_mlp-lr1e-2-ep2-n60-bs32")
    name = next(path.parent.parent.name for path in paths if "resnet" in str(path))
    with pytest.raises(UserError, match="with the deliberate defect all"):
        train_cnn_head.main(replace(aimed, run_name=name))
    with pytest.raises(AlreadyFinished):
        published_defects.main(defective(replace(RESNET, results_dir=all_defects), "all"))


def test_usage_is_printed_for_what_is_no_defect(capsys):
    assert published_defects.run(["--help"]) == 0
    assert published_defects.run(["batchnorm", "train_cnn_head"]) == 2
    assert "validation-on-test" in capsys.readouterr().out
    assert published_defects.run(["flips", "train_cnn_head", "--dataset", "fashion_mnist"]) == 2
    assert "is none of this run's" in capsys.readouterr().err
    assert isinstance(live_layers(nn.Sequential(nn.BatchNorm2d(3)), ["batchnorm-drift"])[0], nn.BatchNorm2d)
