"""What the training loop steps over: labelled images, or the features that a frozen backbone made of them.

Each kind has ``labels`` (N,) int64 and ``batches``, which yields one float32 tensor on the device for each array of
positions; the loop does not know which kind it has.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from common.data.images import LabelledImages
from common.data.loader import image_batches, resized_batches
from common.data.transforms import Transform, normalise
from common.models.backbones import pooled_features
from common.runtime.device import autocast

# Of a GPU's free memory, for images that stay there; the model's activations need the rest.
MOST_RESIDENT_MEMORY = 0.25


@dataclass(frozen=True)
class ImageLoader:
    """Images as normalised batches (B, 3, S, S); augmented ones are drawn anew in each epoch from ``seed``."""

    images: LabelledImages
    transform: Transform
    device: torch.device
    workers: int | None
    seed: int = 0

    @property
    def labels(self) -> np.ndarray:
        """Class numbers, (N,) int64."""
        return self.images.labels

    def batches(self, positions: Sequence[np.ndarray], *, epoch: int) -> Iterator[torch.Tensor]:
        """Yield the images at each array of positions, (B, 3, S, S) float32 on the device."""
        key = (self.seed, epoch) if self.transform.augment != "none" else None
        return image_batches(
            self.images, positions, self.transform, device=self.device, workers=self.workers, augment_key=key
        )


class ResidentImageLoader:
    """The batches of ``ImageExamples`` without augmentation, bit for bit, from uint8 images kept on their device.

    Each image is kept when it is first needed: the first epoch costs what it always does.
    """

    def __init__(self, examples: ImageLoader) -> None:
        self.examples = examples
        self.pixels = torch.empty(_shape(examples), dtype=torch.uint8, device=examples.device)  # (N, 1 or 3, S, S)
        self.kept = np.zeros(len(examples.labels), dtype=bool)

    @property
    def labels(self) -> np.ndarray:
        """Class numbers, (N,) int64."""
        return self.examples.labels

    def batches(self, positions: Sequence[np.ndarray], *, epoch: int) -> Iterator[torch.Tensor]:
        """Yield the images at each array of positions, (B, 3, S, S) float32 on the device."""
        all_kept = all(self.kept[batch].all() for batch in positions)
        for pixels in map(self._at, positions) if all_kept else self._keep(positions):
            yield normalise(pixels, self.examples.transform)

    def _at(self, batch: np.ndarray) -> torch.Tensor:
        return self.pixels[torch.from_numpy(batch).to(self.pixels.device)]

    def _keep(self, positions: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        its = self.examples
        made = resized_batches(its.images, positions, its.transform, device=its.device, workers=its.workers)
        for batch, pixels in zip(positions, made, strict=True):
            self.pixels[torch.from_numpy(batch).to(self.pixels.device)] = pixels  # grey is spread over three channels
            self.kept[batch] = True
            yield pixels


def resident(examples: ImageLoader) -> ImageLoader | ResidentImageLoader:
    """Return the examples kept on their GPU where a quarter of its free memory holds them, else as they are.

    Augmented images, which are others in each epoch, and images on the CPU are returned as they are.
    """
    if examples.device.type != "cuda" or examples.transform.augment != "none":
        return examples
    free, _ = torch.cuda.mem_get_info(examples.device)
    return ResidentImageLoader(examples) if np.prod(_shape(examples)) <= MOST_RESIDENT_MEMORY * free else examples


def _shape(examples: ImageLoader) -> tuple[int, int, int, int]:
    """Return (N, channels, S, S); files may be grey or colour, which is known only when they are decoded."""
    pixels, size = examples.images.pixels, examples.transform.size
    grey = pixels is not None and pixels.ndim == 3
    return len(examples.labels), 1 if grey else 3, size, size


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
class AugmentedFeatureLoader:
    """Features of augmented images, which the frozen backbone has to make anew in every epoch."""

    images: ImageLoader
    backbone: nn.Module
    precision: str

    @property
    def labels(self) -> np.ndarray:
        """Class numbers, (N,) int64."""
        return self.images.labels

    def batches(self, positions: Sequence[np.ndarray], *, epoch: int) -> Iterator[torch.Tensor]:
        """Yield the backbone's features of each augmented batch, (B, width) float32."""
        for images in self.images.batches(positions, epoch=epoch):
            with torch.no_grad(), autocast(images.device, self.precision):
                features = pooled_features(self.backbone, images)  # (B, width)
            yield features.float()


Loader = ImageLoader | ResidentImageLoader | FeatureLoader | AugmentedFeatureLoader
