"""LoRA, here on a ViT: the images go through the whole model in every epoch."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from common.config import require
from common.models import lora
from common.models.backbones import Backbone
from common.runs.methods import method_spec
from common.training.methods.base import Method

SPLIT = """
class SplitQKV(torch.nn.Module):  # timm has one layer for what the adapter gives three names
    def __init__(self, fused):
        super().__init__()
        for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
            layer = torch.nn.Linear(fused.in_features, fused.out_features // 3, bias=fused.bias is not None)
            layer.load_state_dict({key: tensor.chunk(3)[part] for key, tensor in fused.state_dict().items()})
            self.add_module(name, layer)

    def forward(self, tokens):
        return torch.cat([layer(tokens) for layer in self.children()], dim=-1)


for block in model.blocks:
    block.attn.qkv = SplitQKV(block.attn.qkv)
"""


@dataclass(frozen=True)
class LoraMethod(Method):
    """What LoRA is on any kind of backbone; ``choices`` has the values of the settings that are words.

    Trains matrices of ``rank`` beside the layers of ``targets``, scaled by alpha / rank, and a new classifier.
    """

    rank: int
    alpha: float
    dropout: float
    targets: str

    choices: ClassVar[Mapping[str, Iterable[str]]]
    preparation: ClassVar[str] = ""  # lines of ``loading`` that give timm's model the layers that the adapter names
    weight_files = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")

    def __post_init__(self) -> None:
        require(isinstance(self.rank, int) and 1 <= self.rank <= 4096, "rank", self.rank, "1 to 4096")
        require(0 < self.alpha < float("inf"), "alpha", self.alpha, "positive and finite")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 or more and below 1")
        for name, choices in self.choices.items():
            value = getattr(self, name)
            require(value in choices, name, value, f"one of {', '.join(choices)}")

    @classmethod
    def from_settings(cls, name: str, settings: Mapping[str, Any]) -> "LoraMethod":
        settings = method_spec(name).usual | settings
        return cls(**{each.name: settings[each.name] for each in fields(cls)})

    def matrices(self) -> dict[str, Any]:
        """Return what the matrices are, for ``describe``."""
        return {"rank": self.rank, "alpha": self.alpha, "dropout": self.dropout}

    def files(self, model: nn.Module) -> dict[str, bytes]:
        return lora.adapter_files(model)

    def load(self, model: nn.Module, folder: Path) -> None:
        lora.load_adapter(model, folder / "adapter")

    def loading(self, model: lora.LoraModel) -> str:
        return f"""
from peft import PeftModel

model.reset_classifier({model.module.num_classes})
{self.preparation}model = PeftModel.from_pretrained(model, ".").eval()  # "." or YOUR-NAME/YOUR-MODEL on the hub"""

    def plain(self, backbone: Backbone, model: nn.Module) -> nn.Module:
        return lora.merged(model)

    def timm_state(self, backbone: Backbone, model: nn.Module) -> dict[str, torch.Tensor]:
        return lora.merged(model).state_dict()


@dataclass(frozen=True)
class Lora(LoraMethod):
    """LoRA on a ViT; ``also_train`` is fully trained with it and like it (AdamW's weight decay included)."""

    also_train: str

    choices: ClassVar = {"targets": lora.TARGETS, "also_train": lora.ALSO_TRAIN}
    preparation = SPLIT

    def build(
        self, backbone: Backbone, classes: int, *, seed: int, precision: str, device: torch.device
    ) -> lora.LoraViT:
        return lora.attach(backbone, classes=classes, seed=seed, precision=precision, device=device, **asdict(self))

    def describe(self, model: nn.Module) -> dict[str, Any]:
        return {"lora": self.matrices() | {"target_modules": list(lora.TARGETS[self.targets])}}
