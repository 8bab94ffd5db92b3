"""Splits: stratified samples that depend on a seed alone, and what identifies the data they were drawn from."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from common.images import Images


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

    Raises:
        ValueError: a class would be without an image in one of the two.
    """
    sample = stratified_sample(labels, round(fraction * len(labels)), rng)
    rest = np.setdiff1d(np.arange(len(labels)), sample)
    emptied = np.setdiff1d(labels, labels[rest])
    if len(emptied):
        raise ValueError(f"class {int(emptied[0])} would keep no image")
    return rest, sample


def fingerprint(classes: Sequence[str], parts: Mapping[str, Images]) -> str:
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


def digest(content: bytes | np.ndarray) -> bytes:
    """Return the BLAKE2b of ``content`` as 32 ASCII hexadecimal digits (numpy cuts raw digests at a trailing zero)."""
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()


def count_copies(images: Images, others: Sequence[Images]) -> int:
    """Count the images whose exact content also stands in one of ``others``."""
    return int(np.isin(images.digests, np.concatenate([other.digests for other in others])).sum())
