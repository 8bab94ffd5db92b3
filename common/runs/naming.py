"""What a run is called, and which settings make it another run."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.runs.methods import method_spec
from common.runtime.errors import UserError
from common.runtime.files import sha256

# Where a run's files lie and how fast it is computed. Every other setting makes another result.
NOT_IDENTITY = {
    *("data_dir", "source", "dataset_name", "results_dir", "run_name", "overwrite"),
    *("device", "threads", "workers", "feature_cache", "cache_dir", "data_index"),
}
# The order in a run's name of the settings that were there first; later ones follow in the order of their fields.
FIRST_NAMED = (
    *("lr", "epochs", "train_limit", "batch_size", "weight_decay", "augment", "alpha", "dropout", "head_dropout"),
    *("image_size", "resize", "val_fraction", "test_limit", "split_seed", "skip_damaged"),
    *("precision", "compile", "deterministic"),
)
LONGEST_NAME = 149  # letters; file systems allow 255 bytes, and temporary names are longer


def run_identity(config: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return the settings of ``config`` that decide a run's result, with the method."""
    unused = NOT_IDENTITY.union(method_spec(method).unused_settings)
    return {"method": method} | {name: _plain(value) for name, value in config.items() if name not in unused}


def require_used_settings(config: Any) -> None:
    """Refuse a setting that changes nothing for a method without optimiser steps, or float16 gradients (UserError)."""
    spec = method_spec(config.method)
    given = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != f.default]
    useless = [name for name in given if name in spec.unused_settings and not spec.has_steps]
    if useless:
        raise UserError(f"`{useless[0]}` has no effect on {config.method}: leave it out")
    if config.precision == "fp16" and not spec.reads_features:
        raise UserError(
            f"`precision` fp16 makes features of frozen backbones, and {config.method} trains through its backbone, "
            "whose gradients are too small for it: take bf16 or fp32"
        )


def run_folder(config: Any, *, dataset: str, backbone: str, image_size: int | None) -> Path:
    """Return where a run's files lie: ``<results-dir>/<dataset>/<run>/seed<k>``; ``dataset`` is a folder's name."""
    name = config.run_name or run_name(config, backbone=backbone, image_size=image_size)
    return config.results_dir / dataset / name / f"seed{config.seed}"


def run_name(config: Any, *, backbone: str, image_size: int | None) -> str:
    """Return backbone, method, and each setting that differs from the published recipe, joined by ``-``.

    A name that would be longer than ``LONGEST_NAME`` is cut, and ends in a hash of all of it. Of several folds the
    name ends in which it is: ``-fold2of5`` (see ``model_name``).

    Args:
        config: a training script's configuration.
        backbone: its full timm tag; for random weights or a file their name takes the place of the weight tag.
        image_size: in pixels, None where it is the backbone's default.
    """
    spec, weights = method_spec(config.method), config.weights
    if weights != "pretrained":
        backbone = f"{backbone.split('.')[0]}.{'random' if weights == 'random' else Path(weights).stem}"
    identity = run_identity(vars(config) | {"image_size": image_size}, config.method)
    published = published_settings(config)
    short_names = {f.name: f.metadata["short"] for f in dataclasses.fields(config) if "short" in f.metadata}
    shown = [name for name in short_names if identity.get(name) not in (None, _plain(published[name]))]
    shown.sort(key=lambda name: FIRST_NAMED.index(name) if name in FIRST_NAMED else len(FIRST_NAMED))
    parts = [short_names[name] + _text(identity[name]) for name in shown]
    fold = f"-fold{config.fold}of{config.folds}" if config.folds > 1 else ""
    return _cut("-".join([backbone, spec.suffix.format(**vars(config)), *parts]), LONGEST_NAME - len(fold)) + fold


def model_name(run_name: str) -> str:
    """Return a run's name without its fold: what the folds of one model share."""
    return re.sub(r"-fold\d+of\d+$", "", run_name)


def choosing_run(config: Any) -> Any:
    """Return the configuration of the run whose learning rate one with ``tuned_on`` takes: of folds the first."""
    return dataclasses.replace(config, seed=config.tuned_on, tuned_on=None, fold=0)


def published_settings(config: Any) -> dict[str, Any]:
    """Return the settings' values in the published recipe: also what a record means that lacks one of them."""
    settings = {f.name: f.metadata["published"] for f in dataclasses.fields(config) if "published" in f.metadata}
    return settings | method_spec(config.method).published


def _cut(name: str, longest: int) -> str:
    if len(name) <= longest:
        return name
    digest = sha256(name.encode())[:12]
    return f"{name[: longest - len(digest) - 1]}-{digest}"


def _plain(value: object) -> object:
    """Return a tuple as the list that JSON makes of it, all else as it is."""
    return list(value) if isinstance(value, tuple) else value


def _text(value: object) -> str:
    if value is True or value == "":
        return ""
    if isinstance(value, list):
        return "+".join(map(_text, value))
    if isinstance(value, float):  # the shorter of 0.001 and 1e-3
        scientific = np.format_float_scientific(value, trim="-", exp_digits=1).replace("e+", "e")
        return min(scientific, f"{value:g}", key=len)
    return str(value)
