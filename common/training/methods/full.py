"""Full fine-tuning: the backbone itself is trained, all of it or its norms and biases, with a new classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.config import require
from common.models import finetuning
from common.models.backbones import Backbone
from common.models.weights import load_state, state_file
from common.training.checkpoint import Checkpoint
from common.training.loaders import Loader
from common.training.loop import OptimizerConfig
from common.training.methods.base import Method
from common.training.sweep import FitResult


@dataclass(frozen=True)
class Full(Method):
    """Trains ``parts`` of the backbone and a classifier of one layer; BatchNorm's statistics move with ``batchnorm``.

    What is saved is the whole model in timm's own naming.
    """

    parts: str
    batchnorm: str

    weight_files = ("model.safetensors",)
    saves_backbone = True

    def __post_init__(self) -> None:
        choices = finetuning.BATCHNORM
        require(self.batchnorm in choices, "batchnorm", self.batchnorm, f"one of {', '.join(choices)}")

    @classmethod
    def from_settings(cls, name: str, settings: Mapping[str, Any]) -> "Full":
        return cls(parts="all" if name == "full" else "norms-and-biases", batchnorm=settings["batchnorm"])

    def build(
        self, backbone: Backbone, classes: int, *, seed: int, precision: str, device: torch.device
    ) -> finetuning.FineTuned:
        return finetuning.unfreeze(
            backbone, classes=classes, seed=seed, precision=precision, device=device, **asdict(self)
        )

    def fit(
        self,
        model: finetuning.FineTuned,
        train: Loader,
        val: Loader,
        configs: Sequence[OptimizerConfig],
        checkpoint: Checkpoint,
        *,
        extend: int = 0,
    ) -> FitResult:
        """Train ``model`` as every method does, where a last batch of one image has statistics for BatchNorm."""
        if len(train.labels) % configs[0].batch_size == 1:
            (image,) = train.batches([np.array([0])], epoch=0)
            finetuning.require_statistics_of_one(model, image)
        return super().fit(model, train, val, configs, checkpoint, extend=extend)

    def files(self, model: nn.Module) -> dict[str, bytes]:
        return {"model.safetensors": state_file(model.module.state_dict())}

    def load(self, model: nn.Module, folder: Path) -> None:
        load_state(model.module, folder / "model.safetensors", what="model")

    def loading(self, model: finetuning.FineTuned) -> str:
        return f"""
from safetensors.torch import load_file

model.reset_classifier({model.module.num_classes})
model.load_state_dict(load_file("model.safetensors"))
model.eval()"""

    def plain(self, backbone: Backbone, model: nn.Module) -> nn.Module:
        return model.module.eval()

    def timm_state(self, backbone: Backbone, model: nn.Module) -> dict[str, torch.Tensor]:
        return model.module.state_dict()
