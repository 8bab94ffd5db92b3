"""A run's folder: what it is called, who may write to it, and how it is filled at once when the run is finished."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from common import results
from common.errors import UserError
from common.locks import locked
from common.storage import flush_folder, reason, remove_leftovers, sha256, write_atomically

CHECKPOINT = "checkpoint"

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


@dataclass(frozen=True)
class RunFolder:
    """Where a run's files go; ``finished`` is its result where there is one that is not to be replaced."""

    path: Path
    finished: dict[str, Any] | None

    @property
    def checkpoint(self) -> Path:
        """The file of an unfinished run's state."""
        return self.path / CHECKPOINT


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


def lock_file(path: Path) -> Path:
    """Return the file that a process locks while it works on the run's folder ``path``."""
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def opened(path: Path, config: dict[str, Any], *, overwrite: bool) -> Iterator[RunFolder]:
    """Hold a run's folder ``<results-dir>/<dataset>/<run>/seed<k>`` for this process alone.

    Raises:
        UserError: another process works on it, its result is damaged, or was made with other settings.
    """
    with locked(lock_file(path), what=repr(str(path)), wait=False):
        _settle(path)
        remove_leftovers(path)
        finished = None
        if (path / results.RESULT).exists() and not overwrite:
            finished = results.read(path / results.RESULT)
            _require_same_settings(path, finished["config"], config)
        yield RunFolder(path, finished)


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide a run's result; where and how fast it is computed does not."""
    fields = (*_NAMED, "dataset", "backbone", "weights", "seed", "rank", "head")
    return {field: config[field] for field in fields if field in config and not _unused(field, config)}


def _require_same_settings(path: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    there = identity(stored)
    different = [
        f"{name} {there.get(name)!r} there, {value!r} asked"
        for name, value in identity(asked).items()
        if there.get(name) != value and (name, value) != ("precision", "auto")  # auto accepts what was resolved there
    ]
    if different:
        raise UserError(
            f"{str(path)!r} holds a finished run with other settings ({'; '.join(different)}); "
            "give another --run-name (or --dataset-name), or replace it with --overwrite"
        )


def finish(run: RunFolder, files: dict[str, bytes], result: dict[str, Any]) -> None:
    """Put a finished run in place of whatever the folder held: all its files, or none of them.

    The files are written to a folder beside it, which then takes its name; ``_settle`` completes an exchange that a
    crash cut in two. ``result`` gains ``files`` and is written last.

    Raises:
        UserError: the disk is full or not writable; what was there is as it was.
    """
    new, old = _beside(run.path)
    shutil.rmtree(new, ignore_errors=True)
    try:
        for name, content in files.items():
            write_atomically(new / name, content)
        record = {name: {"sha256": sha256(content), "bytes": len(content)} for name, content in files.items()}
        results.write(new, result | {"files": record})
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _exchange(run.path, new, old)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(path: Path, new: Path, old: Path) -> None:
    """Move what stands at ``path`` to ``old`` and ``new`` in its place, or leave all as it was (UserError)."""
    try:
        if path.exists():
            path.rename(old)
        new.rename(path)
    except OSError as error:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(new, ignore_errors=True)
        raise UserError(
            f"cannot put the finished run into {str(path)!r}: {reason(error)}; what was there is as it was, "
            "and the same command tries again"
        ) from error
    flush_folder(path.parent)


def _settle(path: Path) -> None:
    """Complete or undo an exchange of folders that a crash interrupted."""
    new, old = _beside(path)
    if old.exists() and not path.exists():  # between the two renames: the new folder is complete
        new.rename(path) if (new / results.RESULT).exists() else old.rename(path)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
