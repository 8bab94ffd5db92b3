"""Whether a confidence of 90 % is right nine times in ten: calibration error, Brier score, temperature."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

ECE_BINS = 15  # of equal width, as in Guo et al. 2017, "On Calibration of Modern Neural Networks"
TEMPERATURES = (0.05, 20.0)  # the range searched; a model without an error on validation images has no best one


class Bins(NamedTuple):
    """The images by confidence, in bins (lower, upper] of equal width."""

    images: np.ndarray  # (bins,) int
    confidence: np.ndarray  # (bins,) float64, the mean; NaN in an empty bin
    accuracy: np.ndarray  # (bins,) float64, the share of right predictions; NaN in an empty bin


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities (N, C) float64; the maximum is subtracted so that nothing overflows."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = ECE_BINS) -> Bins:
    """Return what a reliability diagram shows of ``probabilities`` (N, C) and ``labels`` (N,) int.

    The confidence is the largest probability, the prediction its class (Guo et al. 2017).
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(places, minlength=bins)
    return _bins(images, *(np.bincount(places, weights=weights, minlength=bins) for weights in (confidence, correct)))


def pooled(seeds: Iterable[Mapping[str, Sequence[float]]]) -> Bins:
    """Return the bins of the images of several seeds together, from each seed's ``images`` and sums over them a bin."""
    return _bins(*(np.sum([sums[name] for sums in seeds], axis=0) for name in ("images", "confidence", "correct")))


def _bins(images: np.ndarray, *sums: np.ndarray) -> Bins:
    return Bins(images, *(np.where(images > 0, sum_ / np.maximum(images, 1), np.nan) for sum_ in sums))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = ECE_BINS) -> float:
    """Return the mean gap (0..1) between confidence and accuracy over the bins, weighted by their images."""
    binned = reliability(probabilities, labels, bins)
    gaps = np.abs(np.nan_to_num(binned.accuracy - binned.confidence))
    return float((binned.images * gaps).sum() / len(labels))


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean over images of the summed squared error of the C probabilities, 0..2 (Brier 1950)."""
    return float(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1).mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the T that minimises the cross-entropy of ``logits / T`` (N, C), for logits of *validation* images.

    Searched within ``TEMPERATURES``; above 1 the model was too sure (Guo et al. 2017). N is at least 1.
    """
    from scipy import optimize

    rows, logits = np.arange(len(labels)), logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature))[rows, labels].mean()

    found = optimize.minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
