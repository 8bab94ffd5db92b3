"""Batch normalisation folded into the convolution before it: one pass over the feature maps less for each pair."""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.backbones import pooled_features

# Of the pooled features' norm, in float32: folding changes the order of rounding, and nothing else.
TOLERANCE = 1e-4


def folded(module: nn.Module, image_size: int) -> nn.Module:
    """Return a copy of a frozen CNN that computes the same features with its BatchNorm2d layers folded, or ``module``.

    The layer that directly reads a convolution's output is folded into that convolution, by its running statistics
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.fusion.fuse_conv_bn_eval.html). The original is not
    touched. Where no layer can be folded, or the features differ by more than rounding (a convolution that is read
    twice, say), it is returned as it is.

    Args:
        module: in eval mode, on any device; images (B, 3, S, S) -> pooled features by ``pooled_features``.
        image_size: S of a trial image.
    """
    device = next(module.parameters()).device
    image = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(device)
    copied = copy.deepcopy(module)
    pairs = _pairs(copied, image)
    if not pairs:
        return module
    for convolution, norm in pairs:
        copied.set_submodule(convolution, fuse_conv_bn_eval(*map(copied.get_submodule, (convolution, norm))))
        copied.set_submodule(norm, _rest(copied.get_submodule(norm)))
    with torch.inference_mode():
        expected, features = pooled_features(module, image), pooled_features(copied, image)  # (2, width)
    same = (features - expected).norm() <= TOLERANCE * expected.norm()
    return copied if same else module


def _pairs(module: nn.Module, image: torch.Tensor) -> list[tuple[str, str]]:
    """Return the names of each convolution and the BatchNorm that reads its output, seen in a pass of ``image``."""
    pairs, produced = [], {}  # the outputs are kept alive, so that an id stands for one tensor

    def note_output(name: str, output: torch.Tensor) -> None:
        produced[id(output)] = name, output

    def note_input(name: str, value: torch.Tensor) -> None:
        if id(value) in produced:
            pairs.append((produced[id(value)][0], name))

    hooks = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            hooks.append(layer.register_forward_hook(lambda _, __, out, name=name: note_output(name, out)))
        elif isinstance(layer, nn.BatchNorm2d):
            hooks.append(layer.register_forward_pre_hook(lambda _, inputs, name=name: note_input(name, inputs[0])))
    with torch.inference_mode():
        pooled_features(module, image)
    for hook in hooks:
        hook.remove()
    return pairs


def _rest(norm: nn.BatchNorm2d) -> nn.Module:
    """Return what is left of a folded layer: the activation, where timm has put one into it (BatchNormAct2d)."""
    return nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()
