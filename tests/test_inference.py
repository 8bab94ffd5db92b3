"""Frozen backbones run faster without a gradient, and compute the same features."""

import pytest
import timm
import torch
from test_vit_blocks import SIZE, VARIANTS, small_vit
from torch import nn

from common import backbones, inference
from common.backbones import pooled_features


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
    before = backbones.hash_weights(module)
    quick = inference.folded(module, 64)
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        expected, features = pooled_features(module, images), pooled_features(quick, images)
    assert _norms(module) > 10 and _norms(quick) == 0
    assert (features - expected).norm() <= 1e-5 * expected.norm()
    assert backbones.hash_weights(module) == before


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
    assert inference.folded(module, 16) is module


def test_weight_standardised_convolutions_are_left_as_they_are():
    module = _with_statistics(timm.create_model("resnetv2_50x1_bit", num_classes=0))  # GroupNorm: nothing to fold
    assert inference.folded(module, 32) is module


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_of_a_frozen_vit_are_made_without_touching_it(variant):
    vit = small_vit(**VARIANTS[variant])
    before = backbones.hash_weights(vit)
    base = backbones.Backbone(vit, "vit", "random", before, SIZE, (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "head")
    images = torch.randn(2, 3, SIZE, SIZE)
    short = inference.for_inference(base)
    torch.testing.assert_close(pooled_features(short, images), pooled_features(vit, images), rtol=1e-4, atol=1e-5)
    assert backbones.hash_weights(vit) == before and type(vit.blocks[-1].attn).__name__ == "Attention"
    assert short.patch_embed.proj.weight is vit.patch_embed.proj.weight  # not a second copy in memory
