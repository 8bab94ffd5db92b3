"""The new classifier on a frozen backbone's pooled features."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from common.models.weights import load_state, state_file
from common.runtime.seeding import torch_seed

# Gates of squeeze-and-excite blocks, and activations of the attention kind: never "the backbone's own activation".
_GATES = ("Sigmoid", "HardSigmoid", "Hardsigmoid", "Tanh", "Softmax", "Identity")


class Head(nn.Module):
    """Dropout, then one linear layer, or two with an activation between: features (B, width) -> logits (B, C)."""

    def __init__(self, width: int, classes: int, *, hidden: int | None, dropout: float, activation: nn.Module) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.activation = activation
        self.hidden = nn.Linear(width, hidden) if hidden else None
        self.output = nn.Linear(hidden or width, classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, C) of pooled features (B, width), float32."""
        features = self.dropout(features)
        if self.hidden is not None:
            features = self.activation(self.hidden(features))  # (B, hidden)
        return self.output(features)


def new_head(backbone: nn.Module, width: int, classes: int, *, kind: str, dropout: float, seed: int) -> Head:
    """Return a head with PyTorch's default initialisation, drawn from ``seed``.

    Args:
        backbone: gives its own activation to an ``mlp`` head.
        width: number of pooled features.
        kind: ``linear``, or ``mlp`` with one hidden layer of ``hidden_width(width)`` units.
        dropout: share of the features that is dropped in training, 0 <= dropout < 1.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "init"))
        hidden = hidden_width(width) if kind == "mlp" else None
        return Head(width, classes, hidden=hidden, dropout=dropout, activation=own_activation(backbone))


def hidden_width(width: int) -> int:
    """Return the largest power of two not above half of ``width``: 2048 -> 1024, 1280 -> 512."""
    return 1 << ((width // 2).bit_length() - 1)


def own_activation(backbone: nn.Module) -> nn.Module:
    """Return a new module like the last activation of ``backbone`` (ReLU for ResNet50, SiLU for EfficientNet-B0)."""
    found = [module for module in backbone.modules() if _is_activation(module)]
    kind = type(found[-1]) if found else nn.ReLU
    return {"Swish": nn.SiLU, "SiLU": nn.SiLU, "Mish": nn.Mish}.get(kind.__name__, kind)()


def _is_activation(module: nn.Module) -> bool:
    kind = type(module)
    elementwise = kind.__module__.endswith(
        ("torch.nn.modules.activation", "layers.activations", "layers.activations_me")
    )
    return elementwise and kind.__name__ not in (*_GATES, "MultiheadAttention")


def head_file(state: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """Return ``head.safetensors`` (``hidden.*`` and ``output.*``) as bytes."""
    return {"head.safetensors": state_file(state)}


def load_head(head: Head, path: Path) -> None:
    """Load ``head.safetensors`` strictly into a head of the same shape.

    Raises:
        UserError: the file is missing or damaged, or a tensor is missing, left over or misshapen.
    """
    load_state(head, path, what="head")
