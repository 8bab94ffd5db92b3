"""LoRA on the convolutions of a timm CNN, through PEFT.

A convolution W of (out, in, k, k) gains B A, with A (r, in, k, k) random and B (out, r, 1, 1) zero at the start.
Grouped convolutions stay as they are: PEFT adapts some of them, and cannot merge any.
"""

import re

import torch
from timm.layers import Conv2dSame
from torch import nn

from common.models.backbones import Backbone, require_cnn
from common.models.classifier import require_one_classifier
from common.models.lora import LoraModel, adapt, suit_cpu
from common.runtime.errors import UserError

TARGETS = ("pointwise", "all-convs")
"""Convolutions with LoRA: those of kernel 1 x 1 outside squeeze-and-excite; or all, whatever their kernel and place.
Neither takes grouped ones, nor the classifier where that is a convolution."""

GATES = ("SqueezeExcite", "SEModule", "EffectiveSEModule", "BlockESE")  # timm's names of one idea


def attach(
    backbone: Backbone,
    *,
    classes: int,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str,
    seed: int,
    precision: str,
    device: torch.device | str = "cpu",
) -> LoraModel:
    """Adapt the convolutions that ``targets`` names with LoRA of the given rank, and add a new classifier.

    Matrix A and the classifier are drawn from ``seed``; B is zero, so the adapted backbone starts as the base. The
    backbone's module is changed in place, becomes a part of the model, and goes to ``device``; it computes with the
    channels last, which is the fastest order for convolutions. BatchNorm stays as pretrained, weight, bias and
    statistics, and is not folded into a convolution that is still to be merged with its adapter.

    Raises:
        UserError: the backbone is no CNN, or has no such convolution.
    """
    from peft import LoraConfig

    names = require_targets(backbone, targets)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="|".join(map(re.escape, names)),  # a pattern of full names: a list would match their ends
        modules_to_save=[backbone.classifier],
    )
    peft_model = adapt(backbone, config, classes=classes, seed=seed)
    if torch.device(device).type == "cpu":
        suit_cpu(peft_model, precision)
    options = {"classifier": backbone.classifier, "precision": precision, "memory_format": torch.channels_last}
    return LoraModel(peft_model, **options).to(device, memory_format=torch.channels_last).train(False)


def require_targets(backbone: Backbone, targets: str) -> list[str]:
    """Return the full names of the convolutions that ``targets``, one of ``TARGETS``, adapts: at least one.

    Raises:
        UserError: the backbone is no CNN, has no such convolution, or cannot be merged by PEFT.
    """
    require_cnn(backbone)
    require_one_classifier(backbone)
    layers = dict(backbone.module.named_modules())
    if any(hasattr(layer, "base_layer") for layer in layers.values()):
        raise UserError(f"`backbone` {backbone.tag!r} has a part named base_layer, which PEFT takes for one of its own")
    gates = tuple(f"{name}." for name, layer in layers.items() if type(layer).__name__ in GATES)
    names = [name for name, layer in layers.items() if _is_plain(layer)]
    if targets == "pointwise":
        names = [name for name in names if layers[name].kernel_size == (1, 1) and not name.startswith(gates)]
    if not names:
        raise UserError(f"`targets` {targets}: {backbone.tag!r} has no such convolution")
    return names


def _is_plain(layer: nn.Module) -> bool:
    """Whether merging an adapter into this layer is exact.

    It is not where the convolution is a subclass that standardises its weight, say, or where PEFT, which knows no
    dilation, would read other pixels.
    """
    is_known = type(layer) in (nn.Conv2d, Conv2dSame)
    return is_known and layer.groups == 1 and (layer.dilation == (1, 1) or layer.kernel_size == (1, 1))
