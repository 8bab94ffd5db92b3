"""What so many seeds and test images could have shown, and how many would be needed to show less."""

import math
from collections.abc import Sequence

import numpy as np

from common.evaluation.significance import Estimate, quantile
from common.evaluation.spread import Spread

POWER = 0.8
MOST_SEEDS = 100  # more are not proposed


def detectable(estimate: Estimate, alpha: float) -> float:
    """Return about which true difference a two-sided test at ``alpha`` finds 80 times in 100 (Cohen 1988)."""
    return estimate.standard_error * sum(quantile(share, estimate.freedom) for share in (1 - alpha / 2, POWER))


def detectable_by_images(spread: Spread, alpha: float) -> float:
    """Return what is ``detectable`` where seeds without number leave the error of the test images alone."""
    return detectable(spread._replace(seeds=()).estimate, alpha)


def images_needed(spread: Spread, target: float, alpha: float) -> int:
    """Return how many test images would make ``target`` detectable where there are seeds without number."""
    return math.ceil(spread.num_images * (detectable_by_images(spread, alpha) / target) ** 2)


def seeds_needed(spread: Spread, target: float, alpha: float) -> float:
    """Return how many seeds of each model would make ``target`` detectable; infinite if above ``MOST_SEEDS``.

    They are taken to vary as those there are, of which each model has two or more.
    """
    for count in range(2, MOST_SEEDS + 1):
        more = spread._replace(seeds=[_alike(values, count) for values in spread.seeds])
        if detectable(more.estimate, alpha) <= target:
            return count
    return math.inf


def _alike(values: Sequence[float], count: int) -> np.ndarray:
    """Return ``count`` values with the standard deviation of ``values``."""
    pattern = np.resize([-1.0, 1.0], count)
    return pattern / pattern.std(ddof=1) * np.std(values, ddof=1)
