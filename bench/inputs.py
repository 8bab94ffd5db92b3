"""From uint8 images to normalised batches on one core: this repository's resize against Pillow and torchvision's."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from bench.measuring import alternate, paired, timed
from common.data.images import LabelledImages
from common.data.loader import image_batches
from common.data.transforms import Transform

TRANSFORM = Transform(
    size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic", resize="squash"
)
BATCH_IMAGES = 32
SHAPES = {"28x28 grey": (28, 28), "32x32 RGB": (32, 32, 3)}


def compare(*, images: int, repeats: int) -> dict[str, Any]:
    """Time ``images`` random images of each kind as batches of 32, (B, 3, 224, 224) float32, with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        records = [_of_one_kind(kind, images=images, repeats=repeats) for kind in SHAPES]
    finally:
        torch.set_num_threads(threads)
    return {
        "records": records,
        "notes": [f"{images} random images in batches of {BATCH_IMAGES}, bicubic, one thread, no worker processes"],
    }


def _of_one_kind(kind: str, *, images: int, repeats: int) -> dict[str, Any]:
    pixels = random_pixels(images, SHAPES[kind])
    sides = {
        "here": lambda: timed(lambda: _consume(ours(pixels))),
        "Pillow + torchvision": lambda: timed(lambda: _consume(with_pillow(pixels))),
    }
    for side in sides.values():
        side()
    return paired(f"{kind} to 224x224, {images} images", alternate(sides, repeats, desc=f"input {kind}"))


def random_pixels(images: int, shape: Sequence[int]) -> np.ndarray:
    """Return uint8 noise, (images, H, W) or (images, H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, (images, *shape), dtype=np.uint8)


def ours(pixels: np.ndarray) -> Iterator[torch.Tensor]:
    """Yield the batches as the training scripts see them, (B, 3, 224, 224)."""
    count = len(pixels)
    images = LabelledImages(np.zeros(count, np.int64), np.arange(count), pixels)
    return image_batches(images, _positions(count), TRANSFORM, device=torch.device("cpu"), workers=0)


def with_pillow(pixels: np.ndarray) -> Iterator[torch.Tensor]:
    """Yield the same batches by torchvision's transforms of Pillow images, one image at a time."""
    from PIL import Image
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.Resize((TRANSFORM.size, TRANSFORM.size), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(TRANSFORM.mean, TRANSFORM.std),
        ]
    )
    for batch in _positions(len(pixels)):
        yield torch.stack([transform(Image.fromarray(image).convert("RGB")) for image in pixels[batch]])


def _positions(count: int) -> list[np.ndarray]:
    return [np.arange(first, min(first + BATCH_IMAGES, count)) for first in range(0, count, BATCH_IMAGES)]


def _consume(batches: Iterator[torch.Tensor]) -> None:
    for _ in batches:
        pass
