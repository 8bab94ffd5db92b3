"""From uint8 images to the normalised squares that a backbone was trained on, as pure functions."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional


@dataclass(frozen=True)
class Transform:
    """How one backbone wants its images: side in pixels, channel means and deviations (of 0..1), interpolation.

    ``resize``: ``squash`` maps the whole image to the square; ``crop`` maps its shorter side to size / crop_pct and
    cuts out the centre. ``augment``: ``none``, ``light``, or a corruption and its severity such as ``fog-3``.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize: str = "squash"
    crop_pct: float = 1.0
    augment: str = "none"


def normalise(pixels: torch.Tensor, transform: Transform) -> torch.Tensor:
    """Return (pixels / 255 - mean) / std of uint8 (B, 1 or 3, S, S), as float32 (B, 3, S, S)."""
    mean = torch.tensor(transform.mean, device=pixels.device).view(3, 1, 1) * 255
    std = torch.tensor(transform.std, device=pixels.device).view(3, 1, 1) * 255
    if pixels.device.type != "cpu":
        return (pixels - mean).div_(std)  # one channel broadcasts against three
    normalised = torch.empty(len(pixels), 3, *pixels.shape[-2:])
    for image, out in zip(pixels, normalised, strict=True):  # one at a time stays in the cache: twice as fast
        out.copy_(image.expand(3, -1, -1)).sub_(mean).div_(std)
    return normalised


def resize(pixels: torch.Tensor, transform: Transform) -> torch.Tensor:
    """Resize uint8 (B, C, H, W) to (B, C, S, S) uint8, by squashing or by cropping the centre."""
    size = transform.size
    if transform.resize == "squash":
        return _interpolate(pixels, (size, size), transform.interpolation)
    pixels = _trim_panorama(pixels)
    height, width = pixels.shape[-2:]
    shorter, target = min(height, width), math.floor(size / transform.crop_pct)
    enlarged = _interpolate(pixels, (height * target // shorter, width * target // shorter), transform.interpolation)
    top, left = (round((side - size) / 2) for side in enlarged.shape[-2:])  # as torchvision's CenterCrop rounds
    return enlarged[..., top : top + size, left : left + size]


def _trim_panorama(pixels: torch.Tensor) -> torch.Tensor:
    """Cut the longer side to about 16 times the shorter, around the centre; the crop that follows needs less.

    Without it a 20,000 x 1 image would be enlarged to gigabytes before its centre is cut out.
    """
    height, width = pixels.shape[-2:]
    margin = max(height, width) - 16 * min(height, width)
    cut = max(0, margin // 2)  # the same on both ends, so that the centre stays the centre
    return pixels[..., cut : height - cut, :] if height > width else pixels[..., cut : width - cut]


def _interpolate(pixels: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    return functional.interpolate(pixels, size, mode=mode, antialias=True)


def channels_first(images: np.ndarray) -> torch.Tensor:
    """(B, H, W) or (B, H, W, 3) uint8 -> (B, 1 or 3, H, W)."""
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)
