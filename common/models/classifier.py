"""A timm model with its own classifier as it is trained here; ``finetuning`` and ``lora`` say what of it is trained."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from common.models.backbones import Backbone, own_classifier, pooled_features
from common.runtime.device import autocast
from common.runtime.errors import UserError


class TimmClassifier(nn.Module, ABC):
    """A timm model with a classifier of one layer: normalised images (B, 3, S, S) -> logits (B, C) float32.

    The backbone computes in ``precision``, the classifier always in float32. ``train()`` switches on what ``learns_by``
    names and nothing else: dropout and stochastic depth that a backbone was built with stay off, and a frozen norm
    keeps its statistics, whoever calls ``train()``.
    """

    def __init__(self, classifier: str, precision: str, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.classifier, self.precision, self.memory_format = classifier, precision, memory_format

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The timm model inside."""

    @abstractmethod
    def learns_by(self, name: str, layer: nn.Module) -> bool:
        """Whether ``layer`` does something else in training than in evaluation that training needs."""

    def train(self, mode: bool = True) -> "TimmClassifier":
        """Switch what ``learns_by`` names to training or back; all else stays in eval mode."""
        for name, layer in self.named_modules():
            layer.training = mode and self.learns_by(name, layer)
        self.training = mode
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, C) float32 of normalised images (B, 3, S, S)."""
        with autocast(images.device, self.precision):
            features = pooled_features(self.module, images.contiguous(memory_format=self.memory_format))  # (B, width)
        layer = self.module.get_submodule(self.classifier)
        if layer.weight.ndim == 4:  # a convolution of kernel 1 x 1, in some of timm's CNNs; PEFT wraps its layer
            return layer(features.float()[..., None, None]).flatten(1)
        return layer(features.float())


def require_one_classifier(backbone: Backbone) -> None:
    """Refuse a backbone whose own classifier is anything but one layer on its pooled features.

    Raises:
        UserError: naming the model.
    """
    if isinstance(backbone.classifier, str):
        layer = own_classifier(backbone)
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.shape[1] == backbone.width:
            return
    raise UserError(
        f"`backbone` {backbone.tag!r} has another classifier than one layer on its pooled features; take another one"
    )
