"""The images that both sides of a whole job read: a stratified sample, written once as lossless PNG files."""

from pathlib import Path

import numpy as np
from PIL import Image

from common.data.dataset import load_dataset
from common.data.images import LabelledImages, decode
from common.runtime.errors import UserError

VAL_FRACTION = 0.1


def write(folder: Path, *, dataset: str, data_dir: Path, train_images: int, test_images: int) -> dict[str, int]:
    """Write {train,val,test}/<class>/*.png below ``folder``; return the number of images of each split.

    Training and validation images together are ``train_images``, a tenth of them for validation. A class's folder is
    its number: a class may be called "T-shirt/top".

    Raises:
        UserError: the data are missing, fewer than asked for, or too few to have each class in each split.
    """
    limits = {"train_limit": train_images - round(VAL_FRACTION * train_images), "test_limit": test_images}
    try:
        loaded = load_dataset(dataset, data_dir=data_dir, val_fraction=VAL_FRACTION, **limits)
    except UserError as error:
        raise UserError(
            str(error).replace("`train_limit`", "`train_images`").replace("`test_limit`", "`test_images`")
        ) from error
    if len(loaded.train) + len(loaded.val) != train_images:
        fewest = round(len(loaded.classes) / VAL_FRACTION)
        raise UserError(f"`train_images` {train_images}: give {fewest} or more, a validation image for each class")
    splits = {"train": loaded.train, "val": loaded.val, "test": loaded.test}
    for split, images in splits.items():
        for position, label in enumerate(images.labels):
            path = folder / split / f"{label:03d}" / f"{position:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_pixels(images, position)).save(path)
    return {split: len(images) for split, images in splits.items()}


def write_few(folder: Path, source: Path) -> None:
    """Copy the first two images of each class and split of ``source`` to ``folder``: a job of seconds, to warm up."""
    for kind in source.glob("*/*"):
        target = folder / kind.relative_to(source)
        target.mkdir(parents=True)
        for path in sorted(kind.iterdir())[:2]:
            (target / path.name).write_bytes(path.read_bytes())


def _pixels(images: LabelledImages, position: int) -> np.ndarray:
    return images.pixels[position] if images.pixels is not None else decode(images.files[position])
