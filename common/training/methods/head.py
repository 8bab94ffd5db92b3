"""A new head on a frozen backbone: each image goes through the backbone once, unless it is augmented."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.config import require
from common.models.backbones import Backbone, own_classifier, pooled_features
from common.models.heads import Head, head_file, load_head, new_head
from common.runtime.errors import UserError
from common.training.methods.base import Method


class PlainClassifier(nn.Module):
    """Backbone and head as one float32 module: normalised images (B, 3, S, S) -> logits (B, C)."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, C) of normalised images (B, 3, S, S)."""
        return self.head(pooled_features(self.backbone, images))


@dataclass(frozen=True)
class FrozenHead(Method):
    """Trains a head of one layer (``linear``) or two (``mlp``) on features whose share ``dropout`` is dropped.

    The backbone stays in eval mode and takes no gradient: its weights and BatchNorm statistics do not change.
    """

    kind: str
    dropout: float

    weight_files = ("head.safetensors",)

    def __post_init__(self) -> None:
        require(0 <= self.dropout < 1, "head_dropout", self.dropout, "0 or more and below 1")

    @classmethod
    def from_settings(cls, name: str, settings: Mapping[str, Any]) -> "FrozenHead":
        # The ViT's script has no dropout for its head.
        return cls(kind=name.removeprefix("head_"), dropout=settings.get("head_dropout", 0.0))

    def build(self, backbone: Backbone, classes: int, *, seed: int, precision: str, device: torch.device) -> Head:
        head = new_head(backbone.module, backbone.width, classes, kind=self.kind, dropout=self.dropout, seed=seed)
        backbone.module.to(device)
        return head.to(device).eval()

    def files(self, model: nn.Module) -> dict[str, bytes]:
        return head_file(model.state_dict())

    def load(self, model: nn.Module, folder: Path) -> None:
        load_head(model, folder / "head.safetensors")

    def loading(self, model: Head) -> str:
        layers = {"output": _linear_code(model.output)}
        if model.hidden is not None:
            kind = type(model.activation).__name__
            activation = f"{'torch.nn' if hasattr(nn, kind) else 'timm.layers'}.{kind}()"
            layers = {"hidden": _linear_code(model.hidden), "activation": activation} | layers
        added = "\n".join(f'head.add_module("{name}", {layer})' for name, layer in layers.items())
        return f"""
from safetensors.torch import load_file

model.reset_classifier(0)  # what is left gives pooled features
head = torch.nn.Sequential()
{added}
head.load_state_dict(load_file("head.safetensors"))
model = torch.nn.Sequential(model, head).eval()"""

    def plain(self, backbone: Backbone, model: nn.Module) -> PlainClassifier:
        return PlainClassifier(backbone.module, model).eval()

    def timm_state(self, backbone: Backbone, model: nn.Module) -> dict[str, torch.Tensor]:
        if model.hidden is not None:
            raise UserError(
                "a plain timm model has no place for a head of two layers; take `export` FILE.pt2 or FILE.onnx"
            )
        weight, bias = model.output.weight.detach(), model.output.bias.detach()
        if isinstance(own_classifier(backbone), nn.Conv2d):
            weight = weight[:, :, None, None]  # (C, width) -> (C, width, 1, 1)
        name = backbone.classifier
        return backbone.module.state_dict() | {f"{name}.weight": weight, f"{name}.bias": bias}


def _linear_code(layer: nn.Linear) -> str:
    return f"torch.nn.Linear({layer.in_features}, {layer.out_features})"
