"""Batches of resized images, prepared in worker processes where that is faster."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from common.data import augmentation
from common.data.corruptions import corrupt
from common.data.images import LabelledImages, decode
from common.data.transforms import Transform, channels_first, normalise, resize
from common.runtime.environment import cores
from common.runtime.errors import UserError
from common.runtime.signals import END_SIGNALS


def image_batches(
    images: LabelledImages, batches: Sequence[np.ndarray], transform: Transform, **options: Any
) -> Iterator[torch.Tensor]:
    """Yield one normalised batch (B, 3, S, S) float32 on the device for each array of positions into ``images``.

    ``options`` are those of ``ResizedBatches``, and errors those of its ``of``; nothing is augmented.
    """
    for pixels in ResizedBatches(images, transform, persistent=False, **options).of(batches):
        yield normalise(pixels, transform)


class ResizedBatches:
    """Prepares batches of ``images``, in worker processes or in this one.

    Args:
        workers: how many processes (None: chosen by ``_count_workers``; 0: this one alone).
        persistent: whether they live as long as this object, or until the batches that were asked for are made.
    """

    def __init__(
        self,
        images: LabelledImages,
        transform: Transform,
        *,
        device: torch.device,
        workers: int | None = None,
        persistent: bool = True,
    ) -> None:
        self.device = device
        self.workers = _count_workers(images, device, workers)
        self.dataset = _Prepared(images, transform)
        self.plan: list[_Request] = []
        self.loader = DataLoader(
            self.dataset,
            sampler=self.plan,
            batch_size=None,
            num_workers=self.workers,
            persistent_workers=persistent and self.workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # else the loader draws its seed from the global generator
        )

    def of(
        self, batches: Sequence[np.ndarray], *, augment_key: tuple[int, int] | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield one batch (B, 1 or 3, S, S) uint8 on the device for each array of positions (B,), in their order.

        ``augment_key`` is (seed, epoch) of the augmentation, needed where ``transform.augment`` is not ``none``.
        Nothing else may be asked for until it ends.

        Raises:
            UserError: a file can no longer be read, or a worker process was killed.
        """
        self.plan[:] = [(batch, augment_key) for batch in batches]
        for item in _from_workers(self.loader) if self.workers else map(self.dataset.__getitem__, self.plan):
            if isinstance(item, str):
                raise UserError(item)
            yield item.to(self.device, non_blocking=True)


def _ignore_signals(worker: int) -> None:
    """Leave to the main process what a terminal or Slurm sends to every process; it ends the workers."""
    for number in (signal.SIGINT, *END_SIGNALS):
        signal.signal(number, signal.SIG_IGN)


def _from_workers(loader: DataLoader) -> Iterator[torch.Tensor | str]:
    """Yield what worker processes prepare; one that was killed (mostly for memory) is a UserError."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that prepares images was killed, mostly because memory or /dev/shm is full: "
            "free some, or give the training scripts or evaluate.py a smaller `workers`, such as 0"
        ) from error


def _count_workers(images: LabelledImages, device: torch.device, asked: int | None) -> int:
    """Return how many processes prepare images: none for arrays on the CPU, where they would only take its cores."""
    if asked is not None:
        return min(asked, cores())  # more makes torch warn
    return 0 if images.pixels is not None and device.type == "cpu" else min(cores(), 8)


_Request = tuple[np.ndarray, tuple[int, int] | None]
"""Positions (B,), and (seed, epoch) of the augmentation."""


@dataclass(frozen=True, eq=False)
class _Prepared(Dataset):
    """Request -> resized uint8 images (B, 1 or 3, S, S); a plain class, so that it can be sent to workers."""

    images: LabelledImages
    transform: Transform

    def __getitem__(self, request: _Request) -> torch.Tensor | str:
        positions, augment_key = request
        try:
            pixels = self._resized(positions)
        except UserError as error:
            return str(error)  # an exception from a worker process would arrive wrapped in its traceback
        if self.transform.augment == "none":
            return pixels
        if self.transform.augment == "light":
            return self._augmented(pixels, positions, *augment_key)
        return self._corrupted(pixels, positions)

    def _resized(self, positions: np.ndarray) -> torch.Tensor:
        if self.images.pixels is not None:
            return resize(channels_first(self.images.pixels[positions]), self.transform)
        decoded = (decode(self.images.files[position]) for position in positions)
        resized = [resize(channels_first(image[None]), self.transform) for image in decoded]  # (1, 1 or 3, S, S) each
        if len({image.shape[1] for image in resized}) > 1:  # grey and colour in one batch
            resized = [image.expand(-1, 3, -1, -1) for image in resized]
        return torch.cat(resized)

    def _corrupted(self, pixels: torch.Tensor, positions: np.ndarray) -> torch.Tensor:
        kind, severity = self.transform.augment.rsplit("-", 1)
        images = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()  # (B, S, S, 3)
        pairs = zip(images, self.images.indices[positions].tolist(), strict=True)
        return channels_first(np.stack([corrupt(image, kind, int(severity), index) for image, index in pairs]))

    def _augmented(self, pixels: torch.Tensor, positions: np.ndarray, seed: int, epoch: int) -> torch.Tensor:
        pairs = zip(pixels, self.images.indices[positions].tolist(), strict=True)
        return torch.stack([augmentation.light(image, seed=seed, epoch=epoch, index=index) for image, index in pairs])
