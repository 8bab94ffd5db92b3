"""The methods: what run names, records, labels and estimates say of each. ``training/methods`` has their behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """The facts of a method; ``label`` and ``suffix`` are formatted with the settings of a run."""

    kind: str
    """Which of ``KINDS`` it is, whatever the backbone."""
    label: str
    """How figures and tables call it, after the backbone; ``{variant}`` stands for what is not ``usual``."""
    suffix: str
    """How a run's name calls it, after the backbone."""
    family: str | None = None
    """Which of ``evaluation.labels.FAMILIES`` gives its colour and place in figures; None: its backbone's."""
    own_settings: tuple[str, ...]
    """The settings that only this method has; recorded as ``model.method_settings``."""
    usual: Mapping[str, str] = field(default_factory=dict)
    """Values of own settings that a label leaves out, and that older records mean by their absence."""
    words: Mapping[str, str] = field(default_factory=dict)
    """How a label calls the unusual values that do not speak for themselves."""
    unused_settings: tuple[str, ...] = ()
    """Settings of its script that change nothing here: neither part of a run's name nor of its identity."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """The published recipe's values where methods differ; a run's name leaves them out."""
    reads_features: bool = False
    """Whether the backbone is frozen, so that each image passes through it once."""
    has_steps: bool = True
    """Whether an optimiser steps over batches; a method without steps refuses the settings of steps."""
    decays_vectors: bool = True
    """Whether weight decay also shrinks tensors of one dimension: norms and biases."""
    is_deterministic: bool = False
    """Whether nothing is drawn at random: every seed gives the same result."""


# What is done to a backbone, by the names of reproduce.py's --methods; each but the first is compared with the first.
KINDS = {
    "probe": "probe",
    "head": "new head",
    "norms-and-biases": "norms and biases",
    "lora": "LoRA",
    "full": "full fine-tuning",
}
_OF_LORA = ("alpha", "dropout", "targets", "also_train")  # settings that the ViT's script has for LoRA alone
_OF_STEPS = ("epochs", "batch_size", "lr", "extend", "tuned_on", "schedule", "warmup", "weight_decay", "augment")
_HEAD = {
    "kind": "head",
    "own_settings": ("head_dropout",),
    "unused_settings": _OF_LORA,
    "published": {"lr": (1e-4,)},
    "reads_features": True,
}
_FINE_TUNED = {
    "own_settings": ("batchnorm",),
    "usual": {"batchnorm": "train"},
    "words": {"frozen": "BatchNorm frozen"},
    "published": {"lr": (1e-4,)},
    "decays_vectors": False,
}

METHODS = {
    "lora": MethodSpec(
        kind="lora",
        label="+ LoRA (r={rank}{variant})",
        suffix="lora_r{rank}",
        family="lora",
        own_settings=("rank", "alpha", "dropout", "targets", "also_train"),
        usual={"targets": "qv", "also_train": "nothing"},
        published={"lr": (3e-5,)},
    ),
    "head_mlp": MethodSpec(label="(published head)", suffix="head_mlp", **_HEAD),
    "head_linear": MethodSpec(label="(linear head)", suffix="head_linear", **_HEAD),
    "head_probe": MethodSpec(
        kind="probe",
        label="(probe)",
        suffix="head_probe",
        own_settings=(),
        unused_settings=(*_OF_STEPS, "head_dropout", *_OF_LORA),
        reads_features=True,
        has_steps=False,
        is_deterministic=True,
    ),
    "full": MethodSpec(kind="full", label="(full fine-tuning{variant})", suffix="full", **_FINE_TUNED),
    "norms_and_biases": MethodSpec(
        kind="norms-and-biases", label="(norms and biases{variant})", suffix="norms_and_biases", **_FINE_TUNED
    ),
    "cnn_lora": MethodSpec(
        kind="lora",
        label="+ LoRA (r={rank}{variant})",
        suffix="lora_r{rank}",
        own_settings=("rank", "alpha", "dropout", "targets"),
        usual={"targets": "pointwise"},
        published={"lr": (3e-5,)},
    ),
}


def method_spec(name: str) -> MethodSpec:
    """Return the facts of a method; an unknown name is a UserError that lists the known ones."""
    if name not in METHODS:
        raise UserError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]
