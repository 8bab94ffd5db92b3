"""Each image once through a frozen backbone: features made in parts, each saved as soon as it is there.

The parts lie in a cache that later runs share (another seed, learning rate or head needs the same features), or, with
the cache off, in the run's own folder. Either way a killed extraction goes on with the part it was at.
"""

import contextlib
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from common.backbones import Backbone, pooled_features
from common.costs import forward_flops
from common.data import Images
from common.inference import for_inference
from common.locks import locked
from common.preprocessing import Transform, image_batches
from common.progress import progress
from common.runtime import autocast, compiled, compiling_pays, memory_errors
from common.storage import remove_leftovers, sha256, write_atomically

ALGORITHM = 2  # raise it whenever features would come out otherwise: what older code kept is then made again
PART_IMAGES = 2_048
CACHE_BYTES = 20 * 2**30
# Of a batch: 8, 256 and 64 images of 224x224, of smaller ones more. On the CPU so few that feature maps stay in its
# cache: EfficientNet-B0 is 1.2 to 1.6 times as fast as in batches of 32. Fixed, so that --batch-size, which is the
# optimiser's, changes neither the features nor their key in the cache.
BATCH_PIXELS = {"cpu": 8 * 224**2, "cuda": 256 * 224**2, "mps": 64 * 224**2}
MOST_BATCH_IMAGES = 256
Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Extractor:
    """A backbone, how images are prepared for it, and the machine it runs on."""

    backbone: Backbone
    transform: Transform
    device: torch.device
    precision: str
    compile: str
    workers: int | None
    fingerprint: str
    """Of the data set, from ``common.data``."""

    def compiles(self, images: Images) -> bool:
        """Whether so many images repay the compiler."""
        return self.compile == "auto" and compiling_pays(len(images) * self.image_flops, self.device)

    @functools.cached_property
    def image_flops(self) -> int:
        """Operations of one image's features; a UserError where the memory is too small for it."""
        with memory_errors(1):
            return forward_flops(self.backbone.module, nn.Identity(), self.transform.size)

    def key(self, images: Images, split: str) -> dict[str, Any]:
        """Return everything that the features of these ``images`` of a split depend on, JSON-able."""
        import timm

        return {
            "backbone": self.backbone.tag,
            "weights": self.backbone.sha256,
            "data": self.fingerprint,
            "split": split,
            "images": sha256(images.indices.tobytes() + images.labels.tobytes()),
            "count": len(images),
            "algorithm": ALGORITHM,
            "part_images": PART_IMAGES,
            "transform": asdict(self.transform),
            "precision": self.precision,
            "device": self.device.type,
            "compiled": self.compiles(images),
            "torch": torch.__version__,
            "timm": timm.__version__,
        }


@dataclass(frozen=True)
class Features:
    """Pooled features (N, width) float32 on the CPU, what their extraction cost, and whether it was done before."""

    values: torch.Tensor
    seconds: float
    cache_hit: bool


def extract(extractor: Extractor, images: Images, split: str, *, folder: Path) -> Features:
    """Return the features of all ``images`` of a split in their order, from ``folder`` as far as they lie there whole.

    ``seconds`` is what the extraction cost when it was made, also where this call only read it. Parts that are
    damaged, or of other images or weights, are made again.

    Raises:
        UserError: an image cannot be read, the disk is full, or the memory too small.
    """
    key = extractor.key(images, split)
    digest = sha256(json.dumps(key, sort_keys=True).encode())
    entry = folder / digest[:32]
    with locked(entry.with_suffix(".lock"), what=f"the features in {str(entry)!r}", wait=True):
        remove_leftovers(entry)
        starts = range(0, len(images), PART_IMAGES)
        parts = {start: _read_part(_part_file(entry, start), digest) for start in starts}
        missing = [start for start in starts if parts[start] is None]
        for start, part in zip(missing, _make_parts(extractor, images, missing, f"{split} features"), strict=True):
            parts[start] = part
            _write_part(_part_file(entry, start), digest, key, *part)
        with contextlib.suppress(OSError):  # there is none, or it is another user's
            os.utime(entry)  # the time of last use, by which the oldest are removed
    values = torch.cat([parts[start][0] for start in starts])
    return Features(values, sum(parts[start][1] for start in starts), cache_hit=not missing)


def batch_images(device: torch.device, image_size: int) -> int:
    """Return how many images go through a frozen backbone at a time."""
    return min(MOST_BATCH_IMAGES, max(1, BATCH_PIXELS[device.type] // image_size**2))


def prune(folder: Path, limit_bytes: int = CACHE_BYTES) -> None:
    """Remove the features that were not used for longest, until those in ``folder`` take at most ``limit_bytes``."""
    entries = []
    for entry in folder.glob("*"):
        with contextlib.suppress(OSError):  # another process removed it, or renamed a file, in this moment
            if entry.is_dir():
                entries.append((entry.stat().st_mtime, sum(part.stat().st_size for part in entry.iterdir()), entry))
    excess = sum(size for _, size, _ in entries) - limit_bytes
    for _, size, entry in sorted(entries)[:-1]:  # the newest is in use
        if excess <= 0:
            return
        shutil.rmtree(entry, ignore_errors=True)
        excess -= size


def _make_parts(
    extractor: Extractor, images: Images, starts: list[int], desc: str
) -> Iterator[tuple[torch.Tensor, float]]:
    """Yield (features (n, width) float32 on the CPU, seconds) of each part."""
    if not starts:
        return
    device = extractor.device
    size = batch_images(device, extractor.transform.size)
    plan = [_batches_of_part(start, len(images), size) for start in starts]
    batches = [batch for part in plan for batch in part]
    stream = image_batches(images, batches, extractor.transform, device=device, workers=extractor.workers)
    plain, fast = _forward_functions(extractor, images)
    with progress(desc=desc, total=sum(map(len, batches)), unit="image") as bar, memory_errors(size, fixed=True):
        for part in plan:
            started, features = time.perf_counter(), []
            for batch in part:
                # The last batch may be smaller; the compiler would start anew for its shape.
                forward = fast if len(batch) == size else plain
                with torch.inference_mode(), autocast(device, extractor.precision):
                    pixels = next(stream).contiguous(memory_format=torch.channels_last)  # (B, 3, S, S)
                    features.append(forward(pixels).float().cpu())  # (B, width)
                bar.update(len(batch))
            yield torch.cat(features), time.perf_counter() - started


def _forward_functions(extractor: Extractor, images: Images) -> tuple[Forward, Forward]:
    """Return the backbone as (plain, compiled if that pays), both (B, 3, S, S) -> (B, width)."""
    module = for_inference(extractor.backbone).to(extractor.device, memory_format=torch.channels_last)

    def plain(pixels: torch.Tensor) -> torch.Tensor:
        return pooled_features(module, pixels)

    return plain, compiled(plain) if extractor.compiles(images) else plain


def _batches_of_part(start: int, total: int, size: int) -> list[np.ndarray]:
    stop = min(start + PART_IMAGES, total)
    return [np.arange(first, min(first + size, stop)) for first in range(start, stop, size)]


def _part_file(entry: Path, start: int) -> Path:
    return entry / f"features-{start:08d}.safetensors"


def _write_part(path: Path, digest: str, key: dict[str, Any], values: torch.Tensor, seconds: float) -> None:
    metadata = {"key": json.dumps(key, sort_keys=True), "seconds": repr(seconds)}
    metadata["sha256"] = _part_digest(path, digest, metadata["seconds"], values)
    write_atomically(path, save({"features": values.contiguous()}, metadata=metadata))


def _read_part(path: Path, digest: str) -> tuple[torch.Tensor, float] | None:
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
