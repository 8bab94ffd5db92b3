"""What every method answers; the facts that need no PyTorch are in ``runs.methods``."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from common.models.backbones import Backbone
from common.training.checkpoint import Checkpoint
from common.training.loaders import Loader
from common.training.loop import OptimizerConfig
from common.training.sweep import FitResult, sweep


class Method(ABC):
    """How one of ``runs.methods.METHODS`` trains, and how its model is saved, restored and exported.

    Its model maps to logits (B, C) float32: pooled features (B, width) where its facts say ``reads_features``, else
    normalised images (B, 3, S, S). What requires a gradient is trained and kept, as are running statistics.
    """

    weight_files: ClassVar[tuple[str, ...]]
    """Names of the files that ``files`` gives, relative to the run's folder."""
    saves_backbone: ClassVar[bool] = False
    """Whether the one of them is a timm checkpoint, so that the backbone's own weights are needed no more."""

    @classmethod
    @abstractmethod
    def from_settings(cls, name: str, settings: Mapping[str, Any]) -> "Method":
        """Return the method called ``name`` with those of a run's ``settings`` that concern it.

        Raises:
            UserError: a setting is out of range.
            KeyError, TypeError: one is missing, or of another kind, as an edited record may have it.
        """

    @abstractmethod
    def build(self, backbone: Backbone, classes: int, *, seed: int, precision: str, device: torch.device) -> nn.Module:
        """Return a new model on ``device``, in eval mode; what is new in it is drawn from ``seed``.

        ``backbone.module`` may be changed in place and belongs to the model from here on.

        Raises:
            UserError: the method cannot be applied to this backbone; the message says what it is instead.
        """

    def fit(
        self,
        model: nn.Module,
        train: Loader,
        val: Loader,
        configs: Sequence[OptimizerConfig],
        checkpoint: Checkpoint,
        *,
        extend: int = 0,
    ) -> FitResult:
        """Train ``model``, which ends in eval mode with its best weights on validation; see ``sweep``."""
        return sweep(model, train, val, configs, checkpoint, extend=extend)

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Return further fields of the result's ``model`` record of ``model``, beside ``method_settings``."""
        return {}

    @abstractmethod
    def files(self, model: nn.Module) -> dict[str, bytes]:
        """Return the trained weights as the contents of ``weight_files``."""

    @abstractmethod
    def load(self, model: nn.Module, folder: Path) -> None:
        """Load the ``weight_files`` of a run's folder into a model of ``build`` with the same settings.

        Raises:
            UserError: a file is missing, damaged, or does not fit.
        """

    @abstractmethod
    def loading(self, model: nn.Module) -> str:
        """Return lines of Python for the model card, which need PyTorch, timm and PEFT alone.

        They make of ``model``, timm's model with any classifier (and the base's weights, where they are needed), the
        trained model in eval mode, images (B, 3, S, S) -> logits (B, C), from the ``weight_files`` of the folder they
        run in.
        """

    @abstractmethod
    def plain(self, backbone: Backbone, model: nn.Module) -> nn.Module:
        """Return the trained model in eval mode as plain layers: images (B, 3, S, S) -> logits (B, C), in float32."""

    @abstractmethod
    def timm_state(self, backbone: Backbone, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return the state of timm's own model with as many classes that computes the same.

        Raises:
            UserError: timm's model has no place for what was trained.
        """
