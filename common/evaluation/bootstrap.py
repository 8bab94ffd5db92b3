"""The metrics of one run on many resamples of its test images, all at once (Efron 1979's bootstrap by counts).

A resample is written as how often it holds each image, so that a metric on it is a sum weighted by these ``counts``
(N, B).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from common.evaluation.scores import Scores


def draw_counts(num_images: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each of ``resamples`` (B) draws of N images with replacement holds each image.

    Uint8 (N, B), columns sum to N. A count above 255 has no chance: an image's count is about Poisson with mean 1.
    """
    drawn = np.empty((resamples, num_images), dtype=np.uint8)
    for row in drawn:
        row[:] = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
    return np.ascontiguousarray(drawn.T)


@dataclass(frozen=True, eq=False)
class Resamples:
    """Some resamples of N images, as ``draw_counts`` gives them, in the two types that the metrics compute with."""

    drawn: np.ndarray  # (N, B) whole numbers, columns sum to N

    @cached_property
    def counts(self) -> np.ndarray:
        """Unsigned (N, B), just wide enough for 2N: half as wide, a sum over images takes half as long."""
        return self.drawn.astype(np.min_scalar_type(2 * len(self.drawn)))

    @cached_property
    def floats(self) -> np.ndarray:
        """Float32 (N, B)."""
        return self.drawn.astype(np.float32)


def resampled_mean(values: np.ndarray, resamples: Resamples) -> np.ndarray:
    """Return the mean (B,) float64 of one value an image, (N,), on each resample."""
    return values.astype(np.float32) @ resamples.floats / np.float64(len(values))


def resampled_f1_macro(scores: Scores, resamples: Resamples) -> np.ndarray:
    """Return the mean (B,) over the classes that a resample holds of their F1."""
    labels, predicted, num_classes = scores.labels, scores.predicted, len(scores.classes)
    images, hits = np.arange(len(labels)), np.flatnonzero(labels == predicted)
    support = _sums(labels, images, num_classes, resamples.counts)  # (C, B), as the next two
    predictions = _sums(predicted, images, num_classes, resamples.counts)
    hits = _sums(labels[hits], hits, num_classes, resamples.counts)
    f1 = 2 * hits.astype(np.float64) / np.maximum(support + predictions, 1)
    return _mean(np.where(support > 0, f1, np.nan))


def resampled_auc_macro(scores: Scores, resamples: Resamples) -> np.ndarray:
    """Return the mean (B,) over classes of the AUC of each against the rest.

    NaN everywhere where one of all C classes has no image at all, as it is then null in ``result.json``, and on a
    resample of a single class.
    """
    probabilities, labels, num_classes = scores.probabilities, scores.labels, len(scores.classes)
    if len(np.unique(labels)) < num_classes:
        return np.full(resamples.drawn.shape[1], np.nan)
    return _mean(np.stack([_auc(labels == c, probabilities[:, c], resamples.counts) for c in range(num_classes)]))


def _sums(groups: np.ndarray, images: np.ndarray, num_groups: int, counts: np.ndarray) -> np.ndarray:
    """Return the sums (G, B), of their type, of the ``counts`` (N, B) of the ``images`` (M,) of each of the groups.

    By a sparse matrix, in whose order the groups (M,) int are sorted here: its own constructor takes longer.
    """
    from scipy import sparse  # a quarter of a second to import

    order = np.argsort(groups.astype(np.min_scalar_type(num_groups)), kind="stable")
    starts = np.append(0, np.cumsum(np.bincount(groups, minlength=num_groups)))
    ones = np.ones(len(groups), counts.dtype)
    return sparse.csr_array((ones, images[order], starts), shape=(num_groups, len(counts))) @ counts


def _auc(positive: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the share (B,) of pairs of a positive and a negative that ``scores`` put in order, a tie counting half.

    NaN on a resample without such a pair (Mann and Whitney's statistic, which is the area under the ROC curve). The
    negatives are summed between neighbouring scores of the P positives: eight times as fast as a running sum over all
    images. All sums are whole numbers.
    """
    positives = np.flatnonzero(positive)
    positives = positives[np.argsort(scores[positives])]
    negatives = np.flatnonzero(~positive)
    places = [np.searchsorted(scores[positives], scores[negatives], side) for side in ("right", "left")]
    if np.array_equal(*places):  # no negative ties with a positive: there are no halves to count
        places.pop()
    images = np.tile(negatives, len(places))
    below = _sums(np.concatenate(places), images, len(positives) + 1, counts)  # (P + 1, B)
    for row, previous in zip(below[1:], below, strict=False):  # np.cumsum along this axis takes three times as long
        row += previous
    own, halves = counts[positives], len(places)
    wins = np.einsum("pb,pb->b", own, below[:-1], dtype=np.int64) / halves
    pairs = own.sum(axis=0, dtype=np.float64) * below[-1] / halves  # the last row counts all negatives
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan)


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean (B,) of each column of ``values`` (C, B) without its NaNs; NaN where there is nothing else."""
    return np.ma.masked_invalid(values).mean(axis=0, dtype=np.float64).filled(np.nan)
