"""LoRA on a CNN: the images go through the whole model in every epoch."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from common.models import cnn_lora
from common.models.backbones import Backbone
from common.models.lora import LoraModel
from common.training.methods.lora import LoraMethod


@dataclass(frozen=True)
class CnnLora(LoraMethod):
    """LoRA on the convolutions of a CNN, whose BatchNorm stays as it was pretrained."""

    choices: ClassVar = {"targets": cnn_lora.TARGETS}

    def build(self, backbone: Backbone, classes: int, *, seed: int, precision: str, device: torch.device) -> LoraModel:
        return cnn_lora.attach(backbone, classes=classes, seed=seed, precision=precision, device=device, **asdict(self))

    def describe(self, model: LoraModel) -> dict[str, Any]:
        return {"lora": self.matrices() | {"target_modules": model.peft_model.targeted_module_names}}
