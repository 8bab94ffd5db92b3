"""L2-regularised multinomial logistic regression by scikit-learn, on features standardised by the training images.

The objective is the mean cross-entropy + l2 / 2 |W|^2, with a free bias; scikit-learn's C is 1 / (n l2).
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

TOLERANCE = 1e-4  # of the gradient's largest entry, where scikit-learn stops
MOST_ITERATIONS = 1_000


@dataclass(frozen=True)
class Standardisation:
    """Mean and scale of each feature of the training images; a feature that is the same in all of them becomes 0."""

    mean: np.ndarray  # (D,) float64
    scale: np.ndarray  # (D,) float64: 1 / standard deviation

    @classmethod
    def of(cls, features: np.ndarray) -> "Standardisation":
        """Return that of ``features`` (N, D), N at least 1."""
        values = features.astype(np.float64)
        deviation = values.std(axis=0)
        varies = deviation > 1e-7 * np.abs(values).max(axis=0)  # less is rounding
        return cls(values.mean(axis=0), np.where(varies, 1 / np.where(varies, deviation, 1), 0))

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Return the standardised ``features`` (N, D) as float32."""
        return ((features - self.mean) * self.scale).astype(np.float32)


@dataclass(frozen=True)
class Solution:
    """The best weights at one penalty: the logits of standardised features z (N, D) are z W^T + b."""

    l2: float
    weight: np.ndarray  # (C, D) float32
    bias: np.ndarray  # (C,) float32
    iterations: int
    gradient_norm: float
    """The largest entry of the objective's gradient."""

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return the logits (N, C) float32 of standardised ``features`` (N, D)."""
        return features @ self.weight.T + self.bias

    def unstandardised(self, by: Standardisation) -> tuple[np.ndarray, np.ndarray]:
        """Return weight (C, D) and bias (C,) float32 that give the same logits of the features as they were."""
        weight = self.weight.astype(np.float64) * by.scale
        return weight.astype(np.float32), (self.bias - weight @ by.mean).astype(np.float32)


def solve(features: np.ndarray, labels: np.ndarray, penalties: Iterable[float]) -> Iterator[Solution]:
    """Yield the solution at each of ``penalties``, begun at that of the one before it: from strong to weak is fast.

    Args:
        features: standardised, (N, D) float32.
        labels: (N,) int; all of 0..C-1 occur, C is at least 2.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(tol=TOLERANCE, max_iter=MOST_ITERATIONS, warm_start=True)
    one_hot = np.eye(labels.max() + 1, dtype=np.float32)[labels]  # (N, C)
    two = one_hot.shape[1] == 2
    for l2 in penalties:
        # Of two classes scikit-learn fits w = w1 - w0 alone; l2 / 2 (|w0|^2 + |w1|^2) is l2 / 4 |w|^2.
        model.set_params(C=(2 if two else 1) / (len(labels) * l2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the gradient, which is kept, says it better
            model.fit(features, labels)
        weight, bias = (np.concatenate([-w / 2, w / 2]) if two else w for w in (model.coef_, model.intercept_))
        solution = Solution(l2, weight, bias, int(model.n_iter_.max()), 0.0)
        yield replace(solution, gradient_norm=_gradient_norm(solution, features, one_hot))


def _gradient_norm(solution: Solution, features: np.ndarray, one_hot: np.ndarray) -> float:
    logits = solution.logits(features)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = (shifted / shifted.sum(axis=1, keepdims=True) - one_hot) / len(features)  # (N, C)
    of_weight = error.T @ features + solution.l2 * solution.weight
    return float(max(np.abs(of_weight).max(), np.abs(error.sum(axis=0)).max()))
