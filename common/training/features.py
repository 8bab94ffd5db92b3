"""Each image once through a frozen backbone: features made in parts, each kept as soon as it is there."""

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.data.images import LabelledImages
from common.data.loader import image_batches
from common.data.transforms import Transform
from common.models.backbones import Backbone, pooled_features
from common.models.compile import compiled, compiling_pays
from common.models.complexity import forward_flops
from common.models.fuse_batchnorm import for_inference, shortened
from common.runtime.device import autocast, memory_errors
from common.runtime.errors import UserError
from common.runtime.files import remove_leftovers, sha256
from common.runtime.locks import locked
from common.runtime.progress import progress
from common.training.feature_cache import part_file, read_part, write_part

ALGORITHM = 2  # raise it whenever features would come out otherwise: what older code kept is then made again
PART_IMAGES = 2_048
# Of a batch: 8, 256 and 64 images of 224x224, of smaller ones more. On the CPU so few that feature maps stay in its
# cache: EfficientNet-B0 is 1.2 to 1.6 times as fast as in batches of 32. Fixed, so that ``batch_size``, which is the
# optimiser's, changes neither the features nor their key in the cache.
BATCH_PIXELS = {"cpu": 8 * 224**2, "cuda": 256 * 224**2, "mps": 64 * 224**2}
MOST_BATCH_IMAGES = 256
Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Extractor:
    """A backbone, how images are prepared for it, and the machine it runs on."""

    backbone: Backbone
    resize: str
    device: torch.device
    precision: str
    compile: str
    workers: int | None
    fingerprint: str = ""
    """Of the data set, as ``DatasetSplits`` has it; of no use where no features are kept."""

    @property
    def transform(self) -> Transform:
        """How images are prepared, without augmentation."""
        return self.backbone.transform(self.resize)

    def compiles(self, images: LabelledImages) -> bool:
        """Whether so many images repay the compiler."""
        return self.compile == "auto" and compiling_pays(len(images) * self.image_flops, self.device)

    @functools.cached_property
    def image_flops(self) -> int:
        """Operations of one image through the whole backbone; a UserError where the memory is too small for it."""
        with memory_errors(1):
            return forward_flops(self.backbone.module, self.transform.size)

    @property
    def feature_flops(self) -> int:
        """Operations of one image's features as they are made; folding BatchNorm changes no product."""
        module = shortened(self.backbone.module)
        return self.image_flops if module is self.backbone.module else forward_flops(module, self.transform.size)

    def key(self, images: LabelledImages, split: str) -> dict[str, Any]:
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


def extract(extractor: Extractor, images: LabelledImages, split: str, *, folder: Path | None) -> Features:
    """Return the features of all ``images`` of a split in their order, from ``folder`` as far as they lie there whole.

    Without a ``folder`` all are made, and none is kept.

    ``seconds`` is what the extraction cost when it was made, also where this call only read it. Parts that are
    damaged, or of other images or weights, are made again.

    Raises:
        UserError: an image cannot be read, the disk is full, or the memory too small.
    """
    starts, desc = range(0, len(images), PART_IMAGES), f"{split} features"
    if folder is None:
        made = list(_make_parts(extractor, images, starts, desc))
        values, seconds = torch.cat([part for part, _ in made]), sum(seconds for _, seconds in made)
        return Features(values, seconds, cache_hit=False)
    key = extractor.key(images, split)
    digest = sha256(json.dumps(key, sort_keys=True).encode())
    entry = folder / digest[:32]
    with locked(entry.with_suffix(".lock"), what=f"the features in {str(entry)!r}", wait=True):
        remove_leftovers(entry)
        parts = {start: read_part(part_file(entry, start), digest) for start in starts}
        missing = [start for start in starts if parts[start] is None]
        for start, part in zip(missing, _make_parts(extractor, images, missing, desc), strict=True):
            parts[start] = part
            write_part(part_file(entry, start), digest, key, *part)
        with contextlib.suppress(OSError):  # there is none, or it is another user's
            os.utime(entry)  # the time of last use, by which the oldest are removed
    values = torch.cat([parts[start][0] for start in starts])
    seconds = sum(parts[start][1] for start in starts)
    return Features(values, seconds, cache_hit=not missing)


class FrozenForward:
    """A frozen backbone as it makes features fastest: ``size`` images at a time, compiled where ``images`` repay it.

    ``most``: more images are never there at a time.
    """

    def __init__(self, extractor: Extractor, images: LabelledImages, *, most: int = MOST_BATCH_IMAGES) -> None:
        self.size = min(batch_images(extractor.device, extractor.transform.size), most)
        self.autocast = functools.partial(autocast, extractor.device, extractor.precision)
        module = for_inference(extractor.backbone, extractor.device)
        self.plain: Forward = functools.partial(pooled_features, module)
        self.fast = compiled(self.plain) if extractor.compiles(images) else self.plain

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features (B, width) float32 of normalised images (B, 3, S, S)."""
        # The last batch may be smaller; the compiler would start anew for its shape.
        forward = self.fast if len(pixels) == self.size else self.plain
        with torch.no_grad(), self.autocast():
            return forward(pixels.contiguous(memory_format=torch.channels_last)).float()


def batch_images(device: torch.device, image_size: int) -> int:
    """Return how many images go through a frozen backbone at a time."""
    return min(MOST_BATCH_IMAGES, max(1, BATCH_PIXELS[device.type] // image_size**2))


def _make_parts(
    extractor: Extractor, images: LabelledImages, starts: Sequence[int], desc: str
) -> Iterator[tuple[torch.Tensor, float]]:
    """Yield (features (n, width) float32 on the CPU, seconds) of each part."""
    if not starts:
        return
    forward = FrozenForward(extractor, images)
    size = forward.size
    plan = [_batches_of_part(start, len(images), size) for start in starts]
    batches = [batch for part in plan for batch in part]
    stream = image_batches(images, batches, extractor.transform, device=extractor.device, workers=extractor.workers)
    with progress(desc=desc, total=sum(map(len, batches)), unit="image") as bar, memory_errors(size, fixed=True):
        for part in plan:
            started, features = time.perf_counter(), []
            for batch in part:
                features.append(forward(next(stream)).cpu())  # (B, width)
                bar.update(len(batch))
            yield _require_finite(torch.cat(features), extractor.precision), time.perf_counter() - started


def _require_finite(features: torch.Tensor, precision: str) -> torch.Tensor:
    if precision == "fp16" and not features.isfinite().all():
        raise UserError("the features leave the range of float16: take `precision` fp32 or bf16")
    return features


def _batches_of_part(start: int, total: int, size: int) -> list[np.ndarray]:
    stop = min(start + PART_IMAGES, total)
    return [np.arange(first, min(first + size, stop)) for first in range(start, stop, size)]
