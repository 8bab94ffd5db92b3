"""Frozen backbones as they are run where no gradient is needed: the same features, at fewer operations."""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.models import split_attention
from common.models.backbones import Backbone, pooled_features

# Of the pooled features' norm, in float32: folding changes the order of rounding, and nothing else.
TOLERANCE = 1e-4
TRIAL_SIZE = 128


def for_inference(backbone: Backbone, device: torch.device) -> nn.Module:
    """Return a module with the backbone's pooled features on ``device``: folded, or in its last block shortened.

    The backbone's own module stays as it is; of a ViT the weights are shared, not copied. Convolutions are fastest on
    images with the channels last, as their weights are by default.
    """
    return quicker(backbone.module, backbone.image_size).to(device, memory_format=torch.channels_last)


def quicker(module: nn.Module, image_size: int) -> nn.Module:
    """Return a timm model in eval mode, with or without its classifier, as it is fastest: ``shortened``, or ``folded``.

    It is a copy, or ``module`` itself where there is nothing to fold.
    """
    if split_attention.is_plain_vit(module):
        return shortened(module)
    return folded(module, min(image_size, TRIAL_SIZE))


def shortened(module: nn.Module) -> nn.Module:
    """Return a plain ViT with the same weights, not copied, whose last block is shortened; anything else as it is."""
    if not split_attention.is_plain_vit(module):
        return module
    quick = copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})
    split_attention.shorten(quick)
    return quick


def folded(module: nn.Module, image_size: int) -> nn.Module:
    """Return a copy of a frozen CNN that computes the same features with its BatchNorm2d layers folded, or ``module``.

    A layer that directly reads a convolution's output goes into that convolution, by its running statistics
    (torch.nn.utils.fusion.fuse_conv_bn_eval): one pass over the feature maps less. Where there is none, or the
    features of a trial image differ by more than rounding (a convolution whose output is read twice, say), ``module``
    is returned as it is.

    Args:
        module: in eval mode; images (B, 3, S, S) -> pooled features by ``pooled_features``.
        image_size: S of the trial image.
    """
    plain = copy.deepcopy(module).cpu()  # on a GPU, TF32 would blur the comparison
    image = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    pairs = _pairs(plain, image)
    if not pairs:
        return module
    quick = copy.deepcopy(plain)
    for convolution, norm in pairs:
        quick.set_submodule(convolution, fuse_conv_bn_eval(*map(quick.get_submodule, (convolution, norm))))
        quick.set_submodule(norm, _rest(quick.get_submodule(norm)))
    with torch.inference_mode():
        expected, features = pooled_features(plain, image), pooled_features(quick, image)  # (1, width)
    same = (features - expected).norm() <= TOLERANCE * expected.norm()
    return quick if same else module


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
        elif isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            hooks.append(layer.register_forward_pre_hook(lambda _, inputs, name=name: note_input(name, inputs[0])))
    with torch.inference_mode():
        pooled_features(module, image)
    for hook in hooks:
        hook.remove()
    return pairs


def _rest(norm: nn.BatchNorm2d) -> nn.Module:
    """Return what is left of a folded layer: the activation, where timm has put one into it (BatchNormAct2d)."""
    return nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()
