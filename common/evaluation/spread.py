"""How far a score or a difference of scores may be off: what other test images and other seeds would change."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from common.evaluation.significance import NOT_DEFINED, Estimate


class Spread(NamedTuple):
    """One metric of one model, its mean over the seeds, or the difference of two models' means."""

    value: float
    image_error: float  # the standard error over test images, see ``image_error``
    num_images: int
    seeds: Sequence[np.ndarray] = ()  # the values (K,) of each model whose result depends on the seed

    @property
    def estimate(self) -> Estimate:
        """The value with its standard error and degrees of freedom; not defined where the value or the error is NaN.

        The variance is that of the test images, and of each model in ``seeds`` that of its mean over them. A single
        seed adds nothing, as its spread is unknown: the error is then of the images (and the other's seeds) alone.
        """
        if math.isnan(self.value) or math.isnan(self.image_error):
            return NOT_DEFINED
        several = [values for values in self.seeds if len(values) > 1]
        counts = [len(values) for values in several]
        variances = [values.var(ddof=1) / len(values) for values in several]
        error = math.sqrt(self.image_error**2 + sum(variances))
        return Estimate(float(self.value), error, float(freedom(self.image_error**2, variances, counts)))


def freedom(image_variance: float, variances: Sequence[ArrayLike], counts: Sequence[int]) -> np.ndarray:
    """Return the degrees of freedom of ``image_variance``, taken as known, and means of ``counts`` (K >= 2) seeds.

    Satterthwaite's (1946, "An approximate distribution of estimates of variance components") are themselves estimated
    from few numbers, and too many where seeds happen to agree. So each of the seeds' ``variances`` counts three times
    against the images', of two seeds eight times: then false claims stay near 5 %, by simulation
    (``bench/error_rates.py``). Never fewer than those of the model with the fewest seeds; of arrays one by one.
    """
    counted = [variance * (8 if count == 2 else 3) for variance, count in zip(variances, counts, strict=True)]
    uncertainty = sum(variance**2 / (count - 1) for variance, count in zip(counted, counts, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):  # where no seeds differ
        estimated = np.float64(image_variance + sum(counted)) ** 2 / uncertainty
    return np.where(uncertainty > 0, np.maximum(min(counts, default=2) - 1, estimated), np.inf)[()]


def image_error(draws: np.ndarray, num_images: int, *, is_count: bool) -> float:
    """Return the standard error over N test images of a value, from its values (B,) on resamples of them.

    Resamples on which it is not defined (NaN) are left out; NaN if it is on none. Of a rate that ``is_count``, such as
    an accuracy or a difference of two, it is at least ``least_image_error``.
    """
    draws = draws[~np.isnan(draws)]
    return max(float(draws.std()), is_count * least_image_error(num_images)) if len(draws) else math.nan


def error_of_mean(of_images: np.ndarray) -> float:
    """Return the standard error over test images of a rate, the mean of what each image adds to it, (N,)."""
    return max(float(of_images.std()) / math.sqrt(len(of_images)), least_image_error(len(of_images)))


def least_image_error(num_images: int) -> float:
    """Return the least standard error of a rate over N test images, sqrt(3) / N.

    N images without an error, or without one on which two models differ, leave a rate of up to 3 / N (Hanley and
    Lippman-Hand 1983, "If nothing goes wrong, is everything all right?"), of which resamples of them show nothing.
    """
    return math.sqrt(3) / num_images
