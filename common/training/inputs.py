"""What a method reads of a data set: the images themselves, or features that a frozen backbone makes of each once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from common.data.images import LabelledImages
from common.models.backbones import Backbone
from common.models.fuse_batchnorm import for_inference
from common.training.features import Extractor, Features, extract
from common.training.loaders import AugmentedFeatureLoader, FeatureLoader, ImageLoader, Loader, resident


@dataclass(frozen=True)
class Inputs:
    """Makes the loader of each split; what the features of a split cost stands in ``made`` afterwards."""

    extractor: Extractor
    reads_features: bool
    folder: Path
    """Where features are kept."""
    seed: int = 0
    """Of the augmentation."""
    made: dict[str, Features] = field(default_factory=dict)

    def loader(self, images: LabelledImages, split: str, *, augment: str = "none") -> Loader:
        """Return the loader of a split's ``images``; of features that do not change, once they have all been made.

        Raises:
            UserError: an image cannot be read, or disk or memory are too small.
        """
        extractor = self.extractor
        transform = replace(extractor.transform, augment=augment)
        loader = ImageLoader(images, transform, extractor.device, extractor.workers, seed=self.seed)
        if not self.reads_features:
            return resident(loader) if split in ("train", "val") else loader  # others are read once
        if augment != "none":
            # Another layout would change the last bits of every result made with augmentation so far.
            layout = torch.contiguous_format
            module = for_inference(extractor.backbone, extractor.device, memory_format=layout)
            return AugmentedFeatureLoader(loader, module, extractor.precision)
        self.made[split] = extract(extractor, images, split, folder=self.folder)
        return FeatureLoader(self.made[split].values.to(extractor.device), images.labels)


def new_extractor(
    backbone: Backbone,
    settings: Mapping[str, Any],
    *,
    device: torch.device,
    precision: str,
    workers: int | None,
    fingerprint: str,
) -> Extractor:
    """Return a backbone with the ``resize`` and ``compile`` of a run's ``settings``, on ``device``."""
    return Extractor(
        backbone=backbone,
        transform=backbone.transform(settings["resize"]),
        device=device,
        precision=precision,
        compile=settings["compile"],
        workers=workers,
        fingerprint=fingerprint,
    )
