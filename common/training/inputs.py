"""What a method reads of a data set: the images themselves, or features that a frozen backbone makes of each once."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from common.data.images import LabelledImages
from common.training.features import Extractor, Features, FrozenForward, extract
from common.training.loaders import AugmentedFeatureLoader, FeatureLoader, ImageLoader, Loader, resident


@dataclass(frozen=True)
class Inputs:
    """Makes the loader of each split; what the features of a split cost stands in ``made`` afterwards.

    ``batch_size`` is the optimiser's; ``folder`` keeps features (None: nothing does); ``seed`` is that of the
    augmentation. ``featured`` are the images of which the backbone makes features, once or anew in every epoch.
    """

    extractor: Extractor
    reads_features: bool
    batch_size: int
    folder: Path | None = None
    seed: int = 0
    made: dict[str, Features] = field(default_factory=dict)
    featured: list[LabelledImages] = field(default_factory=list)

    @property
    def compiled(self) -> bool:
        """Whether a compiled backbone, whose sums are rounded otherwise, makes any of the features."""
        return any(map(self.extractor.compiles, self.featured))

    def loader(self, images: LabelledImages, split: str, *, augment: str = "none") -> Loader:
        """Return the loader of a split's ``images``; of features that do not change, once they have all been made.

        Raises:
            UserError: an image cannot be read, or disk or memory are too small.
        """
        extractor, device = self.extractor, self.extractor.device
        transform = replace(extractor.transform, augment=augment)
        loader = ImageLoader(images, transform, device, extractor.workers, seed=self.seed)
        if not self.reads_features:
            return resident(loader) if split in ("train", "val") else loader  # others are read once
        self.featured.append(images)
        if augment != "none":
            return AugmentedFeatureLoader(loader, FrozenForward(extractor, images, most=self.batch_size))
        self.made[split] = extract(extractor, images, split, folder=self.folder)
        return FeatureLoader(self.made[split].values.to(device), images.labels)
