"""Frozen backbones run faster without a gradient, and compute the same features."""

import math

import numpy as np
import pytest
import timm
import torch
from test_vit_blocks import SIZE, VARIANTS, small_vit
from torch import nn

from common.data.images import LabelledImages
from common.models import backbones, complexity, fuse_batchnorm, weights
from common.models.backbones import pooled_features
from common.models.compile import COMPILING_PAYS_AFTER, compiling_pays
from common.training import features as features_module
from common.training.features import Extractor, batch_images, extract

CPU = torch.device("cpu")


def _with_statistics(module: nn.Module) -> nn.Module:
    """Give BatchNorm statistics and scales that a fault in folding would show in; timm's start is the identity."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.3), nn.init.uniform_(layer.running_var, 0.3, 2.0)
            nn.init.normal_(layer.weight, 1.0, 0.3), nn.init.normal_(layer.bias, std=0.3)
    return module.eval().requires_grad_(False)


def _norms(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


# ResNet: BatchNorm2d beside the activation; EfficientNet: timm's BatchNormAct2d, which holds it; RegNet: both in one.
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "regnety_002", "mobilenetv3_small_050", "demo_resnet"])
def test_batch_normalisation_is_folded_and_the_features_stay(name):
    module = _with_statistics(timm.create_model(name, num_classes=0))
    before = weights.hash_weights(module)
    quick = fuse_batchnorm.folded(module, 64)
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        expected, features = pooled_features(module, images), pooled_features(quick, images)
    assert _norms(module) > 10 and _norms(quick) == 0
    assert (features - expected).norm() <= 1e-5 * expected.norm()
    assert weights.hash_weights(module) == before


class _ReadTwice(nn.Module):
    """A convolution whose output goes to BatchNorm and, past it, to the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.convolution(images)
        return self.norm(maps) + maps

    def forward_head(self, maps: torch.Tensor, *, pre_logits: bool) -> torch.Tensor:
        return maps.mean((2, 3))


class _ActivatedInPlace(_ReadTwice):
    """An activation in place between the two: the tensor that BatchNorm reads is the convolution's, its values not."""

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.convolution(images).relu_())


@pytest.mark.parametrize("kind", [_ReadTwice, _ActivatedInPlace])
def test_what_cannot_be_folded_is_left_as_it_is(kind):
    module = _with_statistics(kind())
    assert fuse_batchnorm.folded(module, 16) is module


def test_weight_standardised_convolutions_are_left_as_they_are():
    module = _with_statistics(timm.create_model("resnetv2_50x1_bit", num_classes=0))  # GroupNorm: nothing to fold
    assert fuse_batchnorm.folded(module, 32) is module


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_of_a_frozen_vit_are_made_without_touching_it(variant):
    vit = small_vit(**VARIANTS[variant])
    before = weights.hash_weights(vit)
    base = backbones.Backbone(vit, "vit", "random", before, SIZE, (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "head")
    images = torch.randn(2, 3, SIZE, SIZE)
    short = fuse_batchnorm.for_inference(base, CPU)
    torch.testing.assert_close(pooled_features(short, images), pooled_features(vit, images), rtol=1e-4, atol=1e-5)
    assert weights.hash_weights(vit) == before and type(vit.blocks[-1].attn).__name__ == "Attention"
    assert short.patch_embed.proj.weight is vit.patch_embed.proj.weight  # not a second copy in memory


def _extractor(images_size: int = 32, compile: str = "auto") -> Extractor:
    backbone = backbones.load("test_resnet.r160_in1k", weights="random", image_size=images_size)
    return Extractor(backbone, "squash", CPU, "fp32", compile, 0, "f")


def _grey(count: int) -> LabelledImages:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    return LabelledImages(np.zeros(count, np.int64), np.arange(count), pixels)


def test_the_compiler_is_called_where_the_operations_repay_it():
    extractor = _extractor()
    enough = math.ceil(COMPILING_PAYS_AFTER["cpu"] / extractor.image_flops)
    labels = np.zeros(enough, np.int64)
    assert extractor.compiles(LabelledImages(labels, labels))
    assert not extractor.compiles(LabelledImages(labels[1:], labels[1:]))
    assert not _extractor(compile="off").compiles(LabelledImages(labels, labels))


@pytest.mark.parametrize(("name", "images", "pays"), [("resnet50", 3_000, True), ("efficientnet_b0", 3_000, False)])
def test_of_the_study_s_cnns_the_larger_repays_it_sooner(name, images, pays):
    with torch.device("meta"):
        module = timm.create_model(name, num_classes=0)
    operations = images * complexity.forward_flops(module, 224)
    assert compiling_pays(operations, CPU) == pays


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)  # PyTorch's own
def test_compiled_features_are_those_of_the_plain_backbone(tmp_path, monkeypatch):
    plain = extract(_extractor(), _grey(300), "train", folder=tmp_path)
    monkeypatch.setitem(COMPILING_PAYS_AFTER, "cpu", 0)
    calls, compiled = [], features_module.compiled
    monkeypatch.setattr(features_module, "compiled", lambda forward: calls.append(1) or compiled(forward))
    quick = extract(_extractor(), _grey(300), "train", folder=tmp_path)
    assert calls and not quick.cache_hit  # compiled features are an entry of their own
    torch.testing.assert_close(quick.values, plain.values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "images"), [(32, 256), (224, 8), (384, 2), (1024, 1)])
def test_on_the_cpu_larger_images_come_in_smaller_batches(size, images):
    assert batch_images(CPU, size) == images
