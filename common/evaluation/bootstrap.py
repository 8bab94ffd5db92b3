"""The metrics of one run on many resamples of its test images, all at once (Efron 1979's bootstrap by counts).

A resample is written as how often it holds each image, so that a metric on it is a sum weighted by these ``counts``
(N, B) float32.
"""

from typing import TYPE_CHECKING

import numpy as np

from common.evaluation.scores import Scores

if TYPE_CHECKING:
    from scipy import sparse


def draw_counts(num_images: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each of ``resamples`` (B) draws of N images with replacement holds each image.

    Uint8 (N, B), columns sum to N. A count above 255 has no chance: an image's count is about Poisson with mean 1.
    """
    drawn = np.empty((resamples, num_images), dtype=np.uint8)
    for row in drawn:
        row[:] = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
    return np.ascontiguousarray(drawn.T)


def resampled_mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean (B,) float64 of one value an image, (N,), on each resample ``counts`` (N, B) float32."""
    return values.astype(np.float32) @ counts / np.float64(len(values))


def resampled_f1_macro(scores: Scores, counts: np.ndarray) -> np.ndarray:
    """Return the mean (B,) over the classes that a resample holds of their F1."""
    labels, predicted, num_classes = scores.labels, scores.predicted, len(scores.classes)
    support = _per_class(labels, num_classes) @ counts  # (C, B), as the next two
    predictions = _per_class(predicted, num_classes) @ counts
    hits = _per_class(labels, num_classes, weights=predicted == labels) @ counts
    f1 = 2 * hits / np.maximum(support + predictions, 1)
    return _mean(np.where(support > 0, f1, np.nan))


def resampled_auc_macro(scores: Scores, counts: np.ndarray) -> np.ndarray:
    """Return the mean (B,) over classes of the AUC of each against the rest.

    NaN everywhere where one of all C classes has no image at all, as it is then null in ``result.json``, and on a
    resample of a single class.
    """
    probabilities, labels, num_classes = scores.probabilities, scores.labels, len(scores.classes)
    if len(np.unique(labels)) < num_classes:
        return np.full(counts.shape[1], np.nan)
    return _mean(np.stack([_auc(labels == c, probabilities[:, c], counts) for c in range(num_classes)]))


def _per_class(classes: np.ndarray, num_classes: int, weights: np.ndarray | None = None) -> "sparse.csr_array":
    """Return a matrix (C, N) that sums the images of each class; 50 times faster than dense for a thousand classes."""
    from scipy import sparse  # a quarter of a second to import

    images = np.arange(len(classes))
    values = np.ones(len(classes), np.float32) if weights is None else weights.astype(np.float32)
    return sparse.csr_array((values, (classes, images)), shape=(num_classes, len(classes)))


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
