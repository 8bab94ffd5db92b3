"""Splits that depend on a seed alone: train, validation and test images, stratified, within their limits."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.data.images import LabelledImages
from common.runtime.errors import UserError
from common.runtime.files import digest

Splits = tuple[LabelledImages, LabelledImages, LabelledImages]  # train, validation and test
# One generator for each draw, keyed with the split seed.
_VAL, _TEST, _TRAIN_LIMIT, _VAL_LIMIT, _TEST_LIMIT, _FOLDS = range(6)

SMALL, FOLDS = 1_000, 5  # images, below which data without a test split are best cut into so many folds


@dataclass(frozen=True)
class RawSplits:
    """Data as they came, before any draw: parts ``train`` and ``test``, maybe ``val``; or ``all`` alone.

    ``read_from`` says in a few words what they were read from.
    """

    classes: tuple[str, ...]
    parts: dict[str, LabelledImages]
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    read_from: str = ""


# What a folder or a label file may call the parts.
SPLIT_NAMES = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}


def stratified_sample(labels: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``n`` of the (N,) int ``labels``: sorted int64 positions, each class in its proportion, none left out.

    The places of a class are its proportion of ``n`` by largest remainder, at least one. Within a class the first
    places of one permutation are taken, so that a smaller sample drawn with the same generator state lies inside a
    larger one up to the rounding of a class.

    Raises:
        ValueError: ``n`` is below the number of classes or above N.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if not len(classes) <= n <= len(labels):
        raise ValueError(f"{n:,} is outside {len(classes):,} (one image a class) to {len(labels):,} (all images)")
    places = _places(counts, n)
    members = [rng.permutation(np.flatnonzero(labels == label))[:k] for label, k in zip(classes, places, strict=True)]
    return np.sort(np.concatenate(members))


def _places(counts: np.ndarray, n: int) -> np.ndarray:
    """Share ``n`` places among classes of ``counts`` images by largest remainder, at least one each."""
    quotas = n * counts / counts.sum()
    places = np.maximum(np.floor(quotas).astype(np.int64), 1)
    while places.sum() < n:
        places[np.argmax(np.where(places < counts, quotas - places, -np.inf))] += 1
    while places.sum() > n:  # classes that were raised to one image took more than there is
        places[np.argmax(np.where(places > 1, places - quotas, -np.inf))] -= 1
    return places


def stratified_split(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Split (N,) int ``labels`` into (rest, sample) positions, sorted int64; ``sample`` is ``fraction`` of N, rounded.

    Of few images it is one of each class. A class without an image in one of the two is a ValueError.
    """
    sample = stratified_sample(labels, max(round(fraction * len(labels)), len(np.unique(labels))), rng)
    rest = np.setdiff1d(np.arange(len(labels)), sample)
    emptied = np.setdiff1d(labels, labels[rest])
    if len(emptied):
        raise ValueError(f"class {int(emptied[0])} would keep no image")
    return rest, sample


def stratified_folds(labels: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Return which of ``folds`` stratified parts each of the (N,) int ``labels`` is in: (N,) int64, from 0.

    The images are dealt out class by class, each class in random order: the parts of the whole, and those of every
    class, differ by one image at most. A class of at least ``folds`` images is in every part.
    """
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    parts = np.empty(len(labels), dtype=np.int64)
    parts[order] = np.arange(len(labels)) % folds
    return parts


def fingerprint(classes: Sequence[str], parts: Mapping[str, LabelledImages]) -> str:
    """Return the SHA-256, 64 hexadecimal digits, of the class names and each part's labels, sizes and contents.

    It knows neither limits nor the split seed: ``parts`` are the data as they came, before any draw.
    """
    shapes = {name: None if part.files else part.pixels.shape for name, part in parts.items()}
    state = hashlib.sha256(json.dumps([list(classes), shapes]).encode())
    for part in parts.values():
        state.update(part.labels.astype("<i8").tobytes())
        state.update(part.digests.tobytes())
    return state.hexdigest()


def digests_of(pixels: np.ndarray) -> np.ndarray:
    """Return the BLAKE2b of each image of (N, H, W[, 3]) uint8 ``pixels`` as an (N,) array of 32 hexadecimal digits."""
    return np.array([digest(row) for row in np.ascontiguousarray(pixels)])


def count_copies(images: LabelledImages, others: Sequence[LabelledImages]) -> int:
    """Count the images whose exact content also stands in one of ``others``."""
    return int(np.isin(images.digests, np.concatenate([other.digests for other in others])).sum())


def usual_folds(source: RawSplits) -> int:
    """Return into how many folds small data without a test split are best cut: 1, a single split, for all others."""
    images = source.parts.get("all")
    if images is None or len(images) >= SMALL:
        return 1
    return min(FOLDS, int(np.bincount(images.labels).min()))


def split(
    source: RawSplits, val_fraction: float, split_seed: int, *, folds: int = 1, fold: int = 0, all_images: bool = False
) -> Splits:
    """Return train, validation and test images: the parts the data came with, or drawn where they did not.

    Of data without a test split a fifth is for the test, or with several ``folds`` the one numbered ``fold``, or
    nothing where ``all_images`` are wanted. Validation is then drawn from the rest.

    Raises:
        UserError: the data have a test split of their own, or too few images of a class for what is asked.
    """
    parts = dict(source.parts)
    if "all" in parts:
        whole = parts.pop("all")
        if all_images:
            parts["train"], parts["test"] = whole, whole.subset(np.arange(0))
        elif folds > 1:
            parts["train"], parts["test"] = _take_fold(whole, folds, fold, source.classes, split_seed)
        else:
            parts["train"], parts["test"] = _draw(whole, 0.2, source.classes, split_seed, _TEST)
    elif all_images or folds > 1:
        asked = "`all_images`" if all_images else f"`folds` {folds}"
        raise UserError(f"{asked} is for an image folder without a test split; these data have one of their own")
    if "val" not in parts:
        parts["train"], parts["val"] = _draw(parts["train"], val_fraction, source.classes, split_seed, _VAL)
    return parts["train"], parts["val"], parts["test"]


def _take_fold(
    images: LabelledImages, folds: int, fold: int, classes: tuple[str, ...], split_seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """Set aside the fold numbered ``fold``: returns (rest, fold)."""
    counts = np.bincount(images.labels, minlength=len(classes))
    if counts.min() < folds:
        smallest = f"the smallest class, {classes[counts.argmin()]!r}, has {counts.min()}"
        raise UserError(f"`folds` {folds} needs at least {folds} images of each class, and {smallest}")
    parts = stratified_folds(images.labels, folds, np.random.default_rng([split_seed, _FOLDS]))
    return images.subset(np.flatnonzero(parts != fold)), images.subset(np.flatnonzero(parts == fold))


def _draw(
    images: LabelledImages, fraction: float, classes: tuple, split_seed: int, purpose: int
) -> tuple[LabelledImages, LabelledImages]:
    """Set aside a stratified ``fraction``: returns (rest, drawn)."""
    what, folder = ("test", " or a test folder") if purpose == _TEST else ("validation", "")
    try:
        rest, drawn = stratified_split(images.labels, fraction, np.random.default_rng([split_seed, purpose]))
    except ValueError as error:
        labels, counts = np.unique(images.labels, return_counts=True)
        smallest = f"{classes[labels[counts.argmin()]]!r} with {counts.min()}"
        advice = f"add images of it{folder}" if counts.min() == 1 else "take a smaller `val_fraction`"
        raise UserError(
            f"a {what} split of {fraction:g} of {len(images):,} images leaves a class with none to train on (the "
            f"smallest is {smallest}): {advice}"
        ) from error
    return images.subset(rest), images.subset(drawn)


def limit(splits: Splits, train_limit: int | None, test_limit: int | None, split_seed: int) -> Splits:
    """Reduce the three sets to their limits; validation keeps its ratio to train, at least one image a class."""
    train, val, test = splits
    if train_limit is not None:
        share = round(len(val) * train_limit / len(train))
        train = _sample(train, train_limit, "`train_limit`", split_seed, _TRAIN_LIMIT)
        val_limit = max(share, len(np.unique(val.labels)))
        val = _sample(val, val_limit, "validation", split_seed, _VAL_LIMIT)
    if test_limit is not None:
        test = _sample(test, test_limit, "`test_limit`", split_seed, _TEST_LIMIT)
    return train, val, test


def _sample(images: LabelledImages, n: int, what: str, split_seed: int, purpose: int) -> LabelledImages:
    try:
        return images.subset(stratified_sample(images.labels, n, np.random.default_rng([split_seed, purpose])))
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error
