"""Full fine-tuning of a timm model, or of its norms and biases alone, with a new classifier of one layer.

Norms and biases: Ben Zaken et al. 2022 (BitFit), arXiv:2106.10199; Frankle et al. 2021 (BatchNorm), arXiv:2003.00152.
"""

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.models.backbones import Backbone, is_cnn, unfuse_attention
from common.models.classifier import TimmClassifier, require_one_classifier
from common.runtime.errors import UserError
from common.runtime.seeding import torch_seed

PARTS = ("all", "norms-and-biases")
"""Trained beside the classifier: every parameter; or weight and bias of every norm, and the bias of every layer."""

BATCHNORM = ("train", "frozen")
"""The statistics of BatchNorm: those of each batch in training, with their running mean for evaluation, as PyTorch has
it; or those of the pretraining, unchanged. Weight and bias are trained in either case."""


class FineTuned(TimmClassifier):
    """A timm model whose parameters are trained in place: normalised images (B, 3, S, S) -> logits (B, C) float32."""

    def __init__(self, module: nn.Module, *, batchnorm: str, **options) -> None:
        super().__init__(**options)
        self.timm_model, self.batchnorm = module, batchnorm

    @property
    def module(self) -> nn.Module:
        """The timm model inside."""
        return self.timm_model

    def learns_by(self, name: str, layer: nn.Module) -> bool:
        """Whether ``layer`` is a BatchNorm that computes with its batch's statistics in training."""
        return self.batchnorm == "train" and isinstance(layer, _BatchNorm)


def unfreeze(
    backbone: Backbone,
    *,
    classes: int,
    parts: str,
    batchnorm: str,
    seed: int,
    precision: str,
    device: torch.device | str = "cpu",
) -> FineTuned:
    """Return the backbone with a new classifier drawn from ``seed``, of which ``PARTS[...]`` require a gradient.

    The backbone's module is changed in place, becomes the model, and goes to ``device``; a CNN computes with the
    channels last, which is the fastest order for convolutions.

    Raises:
        UserError: it has another classifier than one layer, or no BatchNorm that could be frozen.
    """
    require_trainable(backbone, batchnorm)
    module = backbone.module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "init"))
        module.reset_classifier(classes)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parts == "all" or name.startswith(f"{backbone.classifier}."))
    if parts == "norms-and-biases":
        for layer in module.modules():
            for name, parameter in layer.named_parameters(recurse=False):
                if _is_norm(layer) or (name.endswith("bias") and parameter.ndim == 1):
                    parameter.requires_grad_(True)
    if torch.device(device).type == "cpu" and precision == "bf16":
        unfuse_attention(module)
    memory_format = torch.channels_last if is_cnn(module) else torch.contiguous_format
    options = {"classifier": backbone.classifier, "precision": precision, "memory_format": memory_format}
    model = FineTuned(module, batchnorm=batchnorm, **options)
    return model.to(device, memory_format=memory_format).train(False)


def _is_norm(layer: nn.Module) -> bool:
    """Whether this is a norm: the many of timm (RmsNorm, LayerNorm2d, BatchNormAct2d ...) have no class in common."""
    return "norm" in type(layer).__name__.lower()


def require_trainable(backbone: Backbone, batchnorm: str) -> None:
    """Refuse a backbone without a classifier of one layer, and ``batchnorm`` frozen where there is no BatchNorm.

    Raises:
        UserError: naming the model.
    """
    require_one_classifier(backbone)
    has_batchnorm = any(isinstance(layer, _BatchNorm) for layer in backbone.module.modules())
    if batchnorm == "frozen" and not has_batchnorm:
        raise UserError(f"`batchnorm` frozen: {backbone.tag!r} has no BatchNorm; leave the setting out")


def require_statistics_of_one(model: FineTuned, image: torch.Tensor) -> None:
    """Refuse to train on a batch of one image (1, 3, S, S) where a feature map has a single pixel.

    Raises:
        UserError: with what to set instead.
    """
    try:
        copy.deepcopy(model).train()(image)
    except ValueError as error:  # torch.nn.functional.batch_norm's
        raise UserError(
            "the last batch has one image, of which BatchNorm cannot take statistics: "
            "take another `batch_size`, or `batchnorm` frozen"
        ) from error
