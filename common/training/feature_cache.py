"""The parts of features on disk: each whole or made again, the longest unused removed first."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from common.runtime.files import sha256, write_atomically

CACHE_BYTES = 20 * 2**30


def part_file(entry: Path, start: int) -> Path:
    """Return where an entry keeps the features of the images from number ``start`` on."""
    return entry / f"features-{start:08d}.safetensors"


def write_part(path: Path, digest: str, key: dict[str, Any], values: torch.Tensor, seconds: float) -> None:
    """Write features (N, D) and the seconds they took, with hashes by which ``read_part`` knows a damaged part."""
    metadata = {"key": json.dumps(key, sort_keys=True), "seconds": repr(seconds)}
    metadata["sha256"] = _part_digest(path, digest, metadata["seconds"], values)
    write_atomically(path, save({"features": values.contiguous()}, metadata=metadata))


def read_part(path: Path, digest: str) -> tuple[torch.Tensor, float] | None:
    """Return (features, seconds), or None where the part is missing, damaged, or of another key."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata, values = file.metadata() or {}, file.get_tensor("features")
        whole = metadata["sha256"] == _part_digest(path, digest, metadata["seconds"], values)
        return (values, float(metadata["seconds"])) if whole else None
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RuntimeError, TypeError):
        return None  # whatever is wrong with a damaged header


def _part_digest(path: Path, key_digest: str, seconds: str, values: torch.Tensor) -> str:
    """Return a hash of all that a part says, and of its place: of two parts with exchanged names none is whole."""
    about = f"{path.name} {key_digest} {seconds} {tuple(values.shape)} {values.dtype} "
    return sha256(about.encode() + values.numpy().tobytes())
