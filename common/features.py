"""Each image once through a frozen backbone: features made in parts, each saved as soon as it is there.

The parts lie in a cache that later runs share (another seed, learning rate or head needs the same features), or, with
the cache off, in the run's own folder. Either way a killed extraction goes on with the part it was at.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from common.backbones import Backbone, pooled_features
from common.data import Images
from common.locks import locked
from common.preprocessing import Transform, image_batches
from common.progress import progress
from common.runtime import autocast, compile_if_repaid, memory_errors, synchronize
from common.storage import sha256, write_atomically

PART_IMAGES = 2_048
# Fixed, so that --batch-size, which is the optimiser's, changes neither the features nor their key in the cache.
BATCH_IMAGES = {"cpu": 32, "cuda": 256, "mps": 64}


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

    def key(self, images: Images, *, compiled_for: int) -> dict[str, Any]:
        """Return everything that the features of ``images`` depend on, JSON-able."""
        import timm

        return {
            "backbone": self.backbone.tag,
            "weights": self.backbone.sha256,
            "data": self.fingerprint,
            "images": sha256(images.indices.tobytes() + images.labels.tobytes()),
            "count": len(images),
            "transform": asdict(self.transform),
            "precision": self.precision,
            "device": self.device.type,
            "compile": compiled_for if self.compile == "auto" else 0,
            "torch": torch.__version__,
            "timm": timm.__version__,
        }


@dataclass(frozen=True)
class Features:
    """Pooled features (N, width) float32 on the CPU, what their extraction cost, and whether it was done before."""

    values: torch.Tensor
    seconds: float
    cache_hit: bool


def extract(extractor: Extractor, images: Images, *, folder: Path, desc: str) -> Features:
    """Return the features of all ``images`` in their order, from ``folder`` as far as they lie there whole.

    ``seconds`` is what the extraction cost when it was made, also where this call only read it. Parts that are
    damaged, or of other images or weights, are made again.

    Raises:
        UserError: an image cannot be read, the disk is full, or the memory too small.
    """
    key = extractor.key(images, compiled_for=len(images))
    digest = sha256(json.dumps(key, sort_keys=True).encode())
    entry = folder / digest[:32]
    with locked(entry.with_suffix(".lock"), what=f"the features in {str(entry)!r}", wait=True):
        starts = range(0, len(images), PART_IMAGES)
        parts = {start: _read_part(_part_file(entry, start), digest) for start in starts}
        missing = [start for start in starts if parts[start] is None]
        for start, part in zip(missing, _make_parts(extractor, images, missing, desc), strict=True):
            parts[start] = part
            _write_part(_part_file(entry, start), digest, key, *part)
        entry.touch()  # for the cache, the time of last use
    values = torch.cat([parts[start][0] for start in starts])
    return Features(values, sum(parts[start][1] for start in starts), cache_hit=not missing)


def _make_parts(
    extractor: Extractor, images: Images, starts: list[int], desc: str
) -> Iterator[tuple[torch.Tensor, float]]:
    """Yield (features (n, width) float32 on the CPU, seconds) of each part."""
    if not starts:
        return
    size = BATCH_IMAGES[extractor.device.type]
    device, transform = extractor.device, extractor.transform
    plan = [_batches_of_part(start, len(images), size) for start in starts]
    to_do = sum(len(batch) for batches in plan for batch in batches)
    module = extractor.backbone.module.to(device).to(memory_format=torch.channels_last)
    module = _compiled(extractor, len(images))
    stream = image_batches(
        images, [batch for batches in plan for batch in batches], transform, device=device, workers=extractor.workers
    )
    with progress(desc=desc, total=to_do, unit="image") as bar, torch.inference_mode(), memory_errors(size):
        for batches in plan:
            started, features = time.perf_counter(), []
            for batch in batches:
                pixels = next(stream).contiguous(memory_format=torch.channels_last)
                with autocast(device, extractor.precision):
                    features.append(pooled_features(module, pixels).float().cpu())  # (B, width)
                bar.update(len(batch))
            synchronize(device)
            yield torch.cat(features), time.perf_counter() - started


def _batches_of_part(start: int, total: int, size: int) -> list[np.ndarray]:
    stop = min(start + PART_IMAGES, total)
    return [np.arange(first, min(first + size, stop)) for first in range(start, stop, size)]


def _part_file(entry: Path, start: int) -> Path:
    return entry / f"features-{start:08d}.safetensors"


def _write_part(path: Path, digest: str, key: dict[str, Any], values: torch.Tensor, seconds: float) -> None:
    metadata = {"key": json.dumps(key, sort_keys=True), "digest": digest, "seconds": repr(seconds)}
    content = sha256(values.numpy().tobytes())
    write_atomically(path, save({"features": values.contiguous()}, metadata=metadata | {"sha256": content}))


def _read_part(path: Path, digest: str) -> tuple[torch.Tensor, float] | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata, values = file.metadata() or {}, file.get_tensor("features")
        whole = metadata.get("sha256") == sha256(values.numpy().tobytes()) and metadata.get("digest") == digest
        return (values, float(metadata["seconds"])) if whole else None
    except (SafetensorError, OSError, ValueError, KeyError):
        return None
