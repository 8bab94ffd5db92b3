"""A data set ready for training: train, validation and test images, fixed by the split seed."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import folders, named_sets, splits
from common.cli import suggestion
from common.errors import UserError
from common.folders import Source
from common.images import Images

NAMES = tuple(named_sets.CLASSES)
_VAL, _TEST, _TRAIN_LIMIT, _VAL_LIMIT, _TEST_LIMIT = range(5)  # one generator for each draw, keyed with the split seed


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint sets of images over the same classes, and what a result has to say about them.

    ``fingerprint`` is the SHA-256 (64 hexadecimal digits) of all the data, whatever the limits and the split seed;
    ``skipped`` names the damaged files that were left out, relative to the image folder.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    val: Images
    test: Images
    fingerprint: str
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def check_request(dataset: str) -> None:
    """Refuse, without reading any data, what is neither a named data set nor an existing folder (UserError)."""
    if dataset in NAMES or Path(dataset).is_dir():
        return
    guess = suggestion(dataset.lower().replace("-", "_"), NAMES)
    raise UserError(f"no data set {dataset!r}{guess}: use one of {', '.join(NAMES)}, or the path of an image folder")


def result_name(dataset: str, name: str | None = None) -> str:
    """Return the name under which results are kept, one safe path component: ``name``, or the data set's own.

    For an image folder that is its base name, with everything but letters, digits, ``_ - .`` replaced by ``_``.

    Raises:
        UserError: ``name`` is no such component, or nothing is left of the folder's name.
    """
    if name is not None:
        if not re.fullmatch(r"[\w][\w.-]*", name):
            raise UserError(f"--dataset-name {name!r} must be letters, digits, '_', '-', '.', the first no '-' or '.'")
        return name
    base = dataset if dataset in NAMES else Path(dataset).resolve().name
    safe = re.sub(r"[^\w.-]", "_", base).lstrip(".-")
    if not safe.strip("_"):
        raise UserError(f"the folder name {base!r} cannot name results: give --dataset-name")
    return safe


def load(
    dataset: str,
    *,
    name: str | None = None,
    data_dir: Path,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    train_limit: int | None = None,
    test_limit: int | None = None,
    skip_damaged: bool = False,
    workers: int | None = None,
    download: bool = True,
) -> Dataset:
    """Load a named data set or an image folder and split it by ``split_seed`` alone.

    Validation is a stratified ``val_fraction`` of the training split, unless the folder brings its own. Then
    ``train_limit`` keeps exactly so many training images, with the same share of the validation images, and
    ``test_limit`` so many test images, all stratified. ``workers`` threads check an image folder (default: all cores).
    Without ``download``, a named data set that is not on disk is missing.

    Raises:
        UserError: the data are missing, damaged or too few for what was asked, or ``val_fraction`` is not within 0..1.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"--val-fraction {val_fraction} must lie between 0 and 1, both excluded")
    source = _read(dataset, data_dir, skip_damaged=skip_damaged, workers=workers, download=download)
    train, val, test = _limit(*_split(source, val_fraction, split_seed), train_limit, test_limit, split_seed)
    fingerprint = splits.fingerprint(source.classes, source.parts)
    notes = (*source.notes, *_identity(dataset, fingerprint), *_copies(train, val, test))
    return Dataset(result_name(dataset, name), source.classes, train, val, test, fingerprint, notes, source.skipped)


def load_for(
    settings: Mapping[str, Any], *, data_dir: Path | None = None, workers: int | None = None, download: bool = True
) -> Dataset:
    """Load and split the data of a run, from its settings: those of a script, or those in a ``result.json``.

    Args:
        data_dir: where the named data sets lie now, if not where the settings say.
        workers: threads that check an image folder (default: as the settings say).
    """
    choices = ("val_fraction", "split_seed", "train_limit", "test_limit", "skip_damaged")
    return load(
        settings["dataset"],
        name=settings["dataset_name"],
        data_dir=data_dir or Path(settings["data_dir"]),
        workers=settings["workers"] if workers is None else workers,
        download=download,
        **{choice: settings[choice] for choice in choices},
    )


def load_labelled(dataset: str, data_dir: Path, *, workers: int | None = None) -> tuple[Images, tuple[str, ...]]:
    """Return labelled images to score a trained model on, and their classes.

    They are the test split of a named data set or of an image folder that has one, and else all of its images.

    Raises:
        UserError: the data are missing or damaged.
    """
    source = _read(dataset, data_dir, workers=workers)
    return source.parts["all"] if "all" in source.parts else source.parts["test"], source.classes


def load_unlabelled(folder: Path) -> Images:
    """Return all images below ``folder`` (any depth), sorted by path, with labels -1; nothing is decoded yet.

    Raises:
        UserError: there is no such folder, no image in it, or a folder below it that may not be read.
    """

    def unreadable(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename!r}: {error.strerror or error}") from error

    folder = Path(folder)
    walk = os.walk(folder, onerror=unreadable) if folder.is_dir() else ()
    found = (Path(parent, name) for parent, _, names in walk for name in names if not name.startswith("."))
    files = tuple(sorted(filter(folders.is_image, found)))
    if not files:
        raise UserError(f"{str(folder)!r} is no folder with images")
    return Images(np.full(len(files), -1), np.arange(len(files)), files=files)


def _read(
    dataset: str, data_dir: Path, *, skip_damaged: bool = False, workers: int | None = None, download: bool = True
) -> Source:
    check_request(dataset)
    if dataset in NAMES:
        return named_sets.read(dataset, Path(data_dir), skip_damaged=skip_damaged, workers=workers, download=download)
    return folders.read(Path(dataset), skip_damaged=skip_damaged, workers=workers)


def _generator(split_seed: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([split_seed, purpose]))


def _split(source: Source, val_fraction: float, split_seed: int) -> tuple[Images, Images, Images]:
    """Return train, validation and test images: the parts the data came with, or drawn where they did not."""
    parts = dict(source.parts)
    if "all" in parts:
        parts["train"], parts["test"] = _draw(parts.pop("all"), 0.2, source.classes, split_seed, _TEST)
    if "val" not in parts:
        parts["train"], parts["val"] = _draw(parts["train"], val_fraction, source.classes, split_seed, _VAL)
    return parts["train"], parts["val"], parts["test"]


def _draw(images: Images, fraction: float, classes: tuple, split_seed: int, purpose: int) -> tuple[Images, Images]:
    """Set aside a stratified ``fraction``: returns (rest, drawn)."""
    what, advice = ("test", " or a test folder") if purpose == _TEST else ("validation", ", or change --val-fraction")
    try:
        rest, drawn = splits.stratified_split(images.labels, fraction, _generator(split_seed, purpose))
    except ValueError as error:
        fewest = classes[np.argmin(np.bincount(images.labels, minlength=len(classes)))]
        raise UserError(
            f"a {what} split of {fraction:g} of {len(images):,} images leaves a class with none on one side ({error}; "
            f"the smallest class is {fewest!r}): add images{advice}"
        ) from error
    return images.subset(rest), images.subset(drawn)


def _limit(
    train: Images, val: Images, test: Images, train_limit: int | None, test_limit: int | None, split_seed: int
) -> tuple[Images, Images, Images]:
    """Reduce the three sets to their limits; validation keeps its ratio to train, at least one image a class."""
    if train_limit is not None:
        share = round(len(val) * train_limit / len(train))
        train = _sample(train, train_limit, "--train-limit", split_seed, _TRAIN_LIMIT)
        val_limit = max(share, len(np.unique(val.labels)))
        val = _sample(val, val_limit, "validation", split_seed, _VAL_LIMIT)
    if test_limit is not None:
        test = _sample(test, test_limit, "--test-limit", split_seed, _TEST_LIMIT)
    return train, val, test


def _sample(images: Images, n: int, what: str, split_seed: int, purpose: int) -> Images:
    try:
        return images.subset(splits.stratified_sample(images.labels, n, _generator(split_seed, purpose)))
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error


def _identity(dataset: str, fingerprint: str) -> list[str]:
    """Note where a data set that goes by a well-known name is not the published one."""
    if named_sets.FINGERPRINTS.get(dataset, fingerprint) == fingerprint:
        return []
    return [f"these are not torchvision's bytes of {dataset}: say so beside any figure measured on them"]


def _copies(train: Images, val: Images, test: Images) -> list[str]:
    """Note how many images stand in two splits, byte for byte."""
    counts = {
        f"{len(test):,} test images are exact copies of training or validation images": splits.count_copies(
            test, [train, val]
        ),
        f"{len(val):,} validation images are exact copies of training images": splits.count_copies(val, [train]),
    }
    return [f"{count:,} of the {text}" for text, count in counts.items() if count]
