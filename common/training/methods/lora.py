"""LoRA on a ViT's query and value: the images go through the whole model in every epoch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.config import require
from common.models import lora
from common.models.backbones import Backbone
from common.training.methods.base import Method


@dataclass(frozen=True)
class Lora(Method):
    """Trains matrices of ``rank`` beside query and value, scaled by alpha / rank, and a new classifier."""

    rank: int
    alpha: float
    dropout: float

    weight_files = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")

    def __post_init__(self) -> None:
        require(isinstance(self.rank, int) and 1 <= self.rank <= 4096, "rank", self.rank, "1 to 4096")
        require(0 < self.alpha < float("inf"), "alpha", self.alpha, "positive and finite")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 or more and below 1")

    @classmethod
    def from_settings(cls, name: str, settings: Mapping[str, Any]) -> "Lora":
        return cls(rank=settings["rank"], alpha=settings["alpha"], dropout=settings["dropout"])

    def build(
        self, backbone: Backbone, classes: int, *, seed: int, precision: str, device: torch.device
    ) -> lora.LoraViT:
        return lora.attach(backbone, classes=classes, seed=seed, precision=precision, device=device, **asdict(self))

    def describe(self) -> dict[str, Any]:
        return {"lora": asdict(self) | {"target_modules": list(lora.ADAPTED)}}

    def files(self, model: nn.Module) -> dict[str, bytes]:
        return lora.adapter_files(model)

    def load(self, model: nn.Module, folder: Path) -> None:
        lora.load_adapter(model, folder / "adapter")

    def plain(self, backbone: Backbone, model: nn.Module) -> nn.Module:
        return lora.merged(model)

    def timm_state(self, backbone: Backbone, model: nn.Module) -> dict[str, torch.Tensor]:
        return lora.merged(model).state_dict()
