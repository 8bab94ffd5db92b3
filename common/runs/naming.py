"""What a run is called, and which settings make it another run."""

from decimal import Decimal
from pathlib import Path
from typing import Any

# Settings that make another result, their short name in a run's name, and the value of the published recipe (which
# the scripts start with). A setting that has its published value, or that a method does not have, is not named.
_NAMED = {
    "lr": ("lr", None),  # by method, see PUBLISHED_LR
    "epochs": ("ep", 5),
    "train_limit": ("n", None),
    "batch_size": ("bs", 64),
    "weight_decay": ("wd", 0.01),
    "augment": ("aug", "none"),
    "alpha": ("alpha", 32.0),
    "dropout": ("drop", 0.1),
    "head_dropout": ("drop", 0.5),
    "image_size": ("px", None),
    "resize": ("", "squash"),
    "val_fraction": ("val", 0.1),
    "test_limit": ("test", None),
    "split_seed": ("split", 0),
    "skip_damaged": ("skip", False),
    "precision": ("", "auto"),
    "compile": ("compile", "auto"),
    "deterministic": ("deterministic", False),
}

PUBLISHED_LR = {"lora": (3e-5,), "head_mlp": (1e-4,), "head_linear": (1e-4,)}


def run_name(config: dict[str, Any], *, method: str, backbone: str) -> str:
    """Return backbone, method, and each setting that differs from the published recipe, joined by ``-``.

    Args:
        config: the resolved settings; ``image_size`` is None where it is the backbone's default.
        method: ``lora``, ``head_mlp`` or ``head_linear``.
        backbone: the full timm tag; for random weights or a file their name takes the place of the weight tag.
    """
    weights = config["weights"]
    if weights != "pretrained":
        backbone = f"{backbone.split('.')[0]}.{'random' if weights == 'random' else Path(weights).stem}"
    parts = [backbone, f"lora_r{config['rank']}" if method == "lora" else method]
    for field, (short, published) in _NAMED.items():
        if field == "lr":
            published = list(PUBLISHED_LR[method])
        if field in config and config[field] not in (published, None) and not _unused(field, config):
            parts.append(short + _text(config[field]))
    return "-".join(parts)


def _unused(field: str, config: dict[str, Any]) -> bool:
    return config.get("rank") == 0 and field in ("alpha", "dropout")


def _text(value: object) -> str:
    if value is True or value == "":
        return ""
    if isinstance(value, list):
        return "+".join(map(_text, value))
    if isinstance(value, float):  # the shorter of 0.001 and 1e-3
        _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
        first, *rest = map(str, digits)
        scientific = f"{first}{'.' * bool(rest)}{''.join(rest)}e{exponent + len(rest)}"
        return min(scientific, f"{value:g}", key=len)
    return str(value)


def run_identity(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide a run's result; where and how fast it is computed does not."""
    fields = (*_NAMED, "dataset", "backbone", "weights", "seed", "rank", "head")
    return {field: config[field] for field in fields if field in config and not _unused(field, config)}
