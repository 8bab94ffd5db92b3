"""The metrics of one run on many resamples of its test images, all at once (Efron 1979's bootstrap by counts).

A resample is written as how often it holds each image, so that a metric on it is a sum weighted by these counts.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse


METRICS = ("accuracy", "f1_macro", "auc_macro", "brier")

BLOCK = 8_000_000  # counts in float32 at a time: 32 MB; fewer pay the set-up of each class's matrices more often


def draw_counts(num_images: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each of ``resamples`` (B) draws of N images with replacement holds each image.

    Uint8 (N, B), columns sum to N. A count above 255 has no chance: an image's count is about Poisson with mean 1.
    """
    drawn = np.empty((resamples, num_images), dtype=np.uint8)
    for row in drawn:
        row[:] = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
    return np.ascontiguousarray(drawn.T)


def resampled_metrics(probabilities: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return each of ``METRICS`` on each resample as float64 (B,), by the definitions of ``common.evaluation.metrics``.

    Macro F1 and AUC are means over the classes that the resample holds. The AUC is NaN everywhere where one of all C
    classes has no image at all, as it is then null in ``result.json``, and on a resample of a single class.

    Args:
        probabilities: (N, C) float64.
        labels: (N,) int in 0..C-1.
        counts: (N, B) whole numbers; a column of ones gives the metrics of the test split itself.
    """
    width = max(1, BLOCK // len(labels))
    blocks = [
        _of_block(probabilities, labels, counts[:, start : start + width].astype(np.float32))
        for start in range(0, counts.shape[1], width)
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in METRICS}


def _of_block(probabilities: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    num_classes, total = probabilities.shape[1], len(labels)
    predicted = probabilities.argmax(axis=1)
    support = _per_class(labels, num_classes) @ counts  # (C, B), as the next two
    predictions = _per_class(predicted, num_classes) @ counts
    hits = _per_class(labels, num_classes, weights=predicted == labels) @ counts
    f1 = 2 * hits / np.maximum(support + predictions, 1)
    squares = ((probabilities - np.eye(num_classes)[labels]) ** 2).sum(axis=1)  # (N,)
    return {
        "accuracy": hits.sum(axis=0, dtype=np.float64) / total,
        "f1_macro": _mean(np.where(support > 0, f1, np.nan)),
        "auc_macro": _auc_macro(probabilities, labels, counts),
        "brier": squares.astype(np.float32) @ counts / np.float64(total),
    }


def _per_class(classes: np.ndarray, num_classes: int, weights: np.ndarray | None = None) -> "sparse.csr_array":
    """Return a matrix (C, N) that sums the images of each class; 50 times faster than dense for a thousand classes."""
    from scipy import sparse  # a quarter of a second to import

    images = np.arange(len(classes))
    values = np.ones(len(classes), np.float32) if weights is None else weights.astype(np.float32)
    return sparse.csr_array((values, (classes, images)), shape=(num_classes, len(classes)))


def _auc_macro(probabilities: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean (B,) over classes of the AUC of each against the rest."""
    num_classes = probabilities.shape[1]
    if len(np.unique(labels)) < num_classes:
        return np.full(counts.shape[1], np.nan)
    return _mean(np.stack([_auc(labels == c, probabilities[:, c], counts) for c in range(num_classes)]))


def _auc(positive: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the share (B,) of pairs of a positive and a negative that ``scores`` put in order, a tie counting half.

    NaN on a resample without such a pair (Mann and Whitney's statistic, which is the area under the ROC curve). The
    negatives are summed between neighbouring scores of positives by a sparse matrix: eight times as fast as a running
    sum over all images. Float32 holds these halves of whole numbers exactly to 2**23.
    """
    from scipy import sparse

    steps, of_positive = np.unique(scores[positive], return_inverse=True)  # S scores, ascending
    negatives = np.flatnonzero(~positive)
    places = [np.searchsorted(steps, scores[negatives], side) for side in ("left", "right")]  # differ by 1 on a tie
    half = np.full(2 * len(negatives), 0.5, np.float32)
    between = sparse.csr_array(
        (half, (np.concatenate(places), np.tile(negatives, 2))), shape=(len(steps) + 1, len(scores))
    )
    below = np.cumsum(between @ counts, axis=0)  # (S + 1, B), the last row counts all negatives
    wins = (counts[positive] * below[of_positive]).sum(axis=0, dtype=np.float64)
    pairs = counts[positive].sum(axis=0, dtype=np.float64) * below[-1]
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan)


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean (B,) of each column of ``values`` (C, B) without its NaNs; NaN where there is nothing else."""
    known = ~np.isnan(values)
    number = known.sum(axis=0)
    total = np.where(known, values, 0).sum(axis=0, dtype=np.float64)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)
