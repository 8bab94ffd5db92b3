"""What the training loop steps over: labelled images, or the features that a frozen backbone made of them.

Each kind has ``labels`` (N,) int64 and ``batches``, which yields one float32 tensor on the device for each array of
positions; the loop does not know which kind it has.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.data.images import LabelledImages
from common.data.loader import ResizedBatches
from common.data.transforms import Transform, normalise
from common.training.features import FrozenForward

# Of a GPU's free memory, for images that stay there; the model's activations need the rest.
MOST_RESIDENT_MEMORY = 0.25


class _LabelledByImages:
    """A loader whose labels are those of its ``images``."""

    @property
    def labels(self) -> np.ndarray:
        """Class numbers, (N,) int64."""
        return self.images.labels


@dataclass(frozen=True)
class ImageLoader(_LabelledByImages):
    """Images as normalised batches (B, 3, S, S); augmented ones are drawn anew in each epoch from ``seed``."""

    images: LabelledImages
    transform: Transform
    device: torch.device
    workers: int | None
    seed: int = 0

    @functools.cached_property
    def resized(self) -> ResizedBatches:
        """Makes the batches before they are normalised; its processes live through all epochs."""
        return ResizedBatches(self.images, self.transform, device=self.device, workers=self.workers)

    def end_workers(self) -> None:
        """End the processes of ``resized``; the next batches would start others."""
        vars(self).pop("resized", None)

    def batches(self, positions: Sequence[np.ndarray], *, epoch: int) -> Iterator[torch.Tensor]:
        """Yield the images at each array of positions, (B, 3, S, S) float32 on the device."""
        for pixels in self.resized.of(positions, augment_key=(self.seed, epoch)):
            yield normalise(pixels, self.transform)


class ResidentImageLoader(_LabelledByImages):
    """The batches of an ``ImageLoader`` without augmentation, bit for bit, from uint8 images kept on their device.

    Each image is kept when it is first needed: the first epoch costs what it always does.
    """

    def __init__(self, images: ImageLoader) -> None:
        self.images = images
        self.pixels = torch.empty(_shape(images), dtype=torch.uint8, device=images.device)  # (N, 1 or 3, S, S)
        self.kept = np.zeros(len(images.labels), dtype=bool)

    def batches(self, positions: Sequence[np.ndarray], *, epoch: int) -> Iterator[torch.Tensor]:
        """Yield the images at each array of positions, (B, 3, S, S) float32 on the device."""
        all_kept = all(self.kept[batch].all() for batch in positions)
        if all_kept:
            self.images.end_workers()
        for pixels in map(self._at, positions) if all_kept else self._keep(positions):
            yield normalise(pixels, self.images.transform)

    def _at(self, batch: np.ndarray) -> torch.Tensor:
        return self.pixels[torch.from_numpy(batch).to(self.pixels.device)]

    def _keep(self, positions: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        for batch, pixels in zip(positions, self.images.resized.of(positions), strict=True):
            self.pixels[torch.from_numpy(batch).to(self.pixels.device)] = pixels  # grey is spread over three channels
            self.kept[batch] = True
            yield pixels


def resident(loader: ImageLoader) -> ImageLoader | ResidentImageLoader:
    """Return the images kept on their GPU where a quarter of its free memory holds them, else ``loader`` as it is.

    Augmented images, which are others in each epoch, and images on the CPU are loaded as before.
    """
    if loader.device.type != "cuda" or loader.transform.augment != "none":
        return loader
    free, _ = torch.cuda.mem_get_info(loader.device)
    return ResidentImageLoader(loader) if np.prod(_shape(loader)) <= MOST_RESIDENT_MEMORY * free else loader


def _shape(loader: ImageLoader) -> tuple[int, int, int, int]:
    """Return (N, channels, S, S); files may be grey or colour, which is known only when they are decoded."""
    pixels, size = loader.images.pixels, loader.transform.size
    grey = pixels is not None and pixels.ndim == 3
    return len(loader.labels), 1 if grey else 3, size, size


@dataclass(frozen=True)
class FeatureLoader:
    """Features that each image produced once, kept on the device: (N, width) float32."""

    features: torch.Tensor
    labels: np.ndarray

    def batches(self, positions: Sequence[np.ndarray], *, epoch: int) -> Iterator[torch.Tensor]:
        """Yield the features at each array of positions, (B, width); they are the same in every epoch."""
        for batch in positions:
            yield self.features[torch.from_numpy(batch).to(self.features.device)]


@dataclass(frozen=True)
class AugmentedFeatureLoader(_LabelledByImages):
    """Features of augmented images, which the frozen backbone has to make anew in every epoch."""

    images: ImageLoader
    forward: FrozenForward

    def batches(self, positions: Sequence[np.ndarray], *, epoch: int) -> Iterator[torch.Tensor]:
        """Yield the backbone's features of each augmented batch, (B, width) float32.

        A batch goes through the backbone in parts of the size that suits it, which are the same after a resume.
        """
        size = self.forward.size
        parts = [[batch[start : start + size] for start in range(0, len(batch), size)] for batch in positions]
        images = self.images.batches([part for of_batch in parts for part in of_batch], epoch=epoch)
        for of_batch in parts:
            yield torch.cat([self.forward(next(images)) for _ in of_batch])


Loader = ImageLoader | ResidentImageLoader | FeatureLoader | AugmentedFeatureLoader
