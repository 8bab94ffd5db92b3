"""What the training loop steps over: labelled images, or the features that a frozen backbone made of them.

Each kind has ``labels`` (N,) int64 and ``batches``, which yields one float32 tensor on the device for each array of
positions; the loop does not know which kind it has.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from common.backbones import pooled_features
from common.data import Images
from common.preprocessing import Transform, image_batches
from common.runtime import autocast


@dataclass(frozen=True)
class ImageExamples:
    """Images as normalised batches (B, 3, S, S); augmented ones are drawn anew in each epoch from ``seed``."""

    images: Images
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


@dataclass(frozen=True)
class FeatureExamples:
    """Features that each image produced once, kept on the device: (N, width) float32."""

    features: torch.Tensor
    labels: np.ndarray

    def batches(self, positions: Sequence[np.ndarray], *, epoch: int) -> Iterator[torch.Tensor]:
        """Yield the features at each array of positions, (B, width); they are the same in every epoch."""
        for batch in positions:
            yield self.features[torch.from_numpy(batch).to(self.features.device)]


@dataclass(frozen=True)
class AugmentedFeatureExamples:
    """Features of augmented images, which the frozen backbone has to make anew in every epoch."""

    images: ImageExamples
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


Examples = ImageExamples | FeatureExamples | AugmentedFeatureExamples
