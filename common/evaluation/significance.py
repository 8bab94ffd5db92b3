"""What a test split and a few seeds can tell: intervals by bootstrap, McNemar's exact test, Holm's correction."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


class Estimate(NamedTuple):
    """A value with the ends of its 95 % interval; all three are NaN where the value is not defined."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Say whether zero lies outside the interval: the one ground on which a difference is called one."""
        return self.low > 0 or self.high < 0


class Sample(NamedTuple):
    """One metric of one model: its value for each of K seeds, and on B resamples of the test images."""

    values: np.ndarray  # (K,) float64
    resampled: np.ndarray  # (K, B) float64, column b of every model and seed on the same resample b


def over_images(value: float, resampled: np.ndarray, *, bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """Return the percentile interval (Efron 1979) of one run's metric from its values (B,) on resamples of its images.

    It says what other test images could have given, this trained model being as it is. A metric at its bound, such as
    an accuracy of 1, has an interval of no width: n images without an error leave an error rate of up to 3/n.
    Resamples on which the metric is not defined (NaN) are left out. The ends lie in the metric's ``bounds``.
    """
    return _estimate(value, resampled, stretch=1.0, bounds=bounds)


def mean_over_seeds(sample: Sample, rng: np.random.Generator, *, bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """Return the mean over one model's seeds with its interval over test images and seeds.

    Resampled as in ``paired_difference``; of one seed it is the interval over images alone. The ends lie in the
    metric's ``bounds``.
    """
    draws = _draws(sample, rng)
    return _estimate(sample.values.mean(), draws, stretch=_stretch([sample], draws), bounds=bounds)


def paired_difference(
    ours: Sample, theirs: Sample, rng: np.random.Generator, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> Estimate:
    """Return the difference of two models' means over their seeds, ours - theirs, with its interval.

    Each of the B replicates draws N test images with replacement, the same for both models and all their seeds
    (pairing), and takes the difference of the means over all seeds on them; to this it adds what drawing seeds does:
    K - 1 of each model's K seeds, independently and with replacement, their mean on the whole test split against that
    of all K. Images and seeds are crossed and both are drawn, as in Owen 2007, "The pigeonhole bootstrap"; drawn one
    beside the other, the chance by which single seeds err on single images counts twice instead of three times as in
    his joint draw, so this too errs on the wide side. K - 1 of K, because the variance of a mean of K draws of K is
    too small by (K - 1) / K (Rao and Wu 1988, "Resampling inference with complex survey data"). The ends of the
    percentile interval are then moved away from the difference by the ratio of Student's t to the normal quantile, as
    few seeds know their own spread badly (Hesterberg 2015, "What teachers should know about the bootstrap", section
    5.3, there for one sample; here with the degrees of freedom of Satterthwaite 1946). A model of one seed adds no
    spread of seeds: the interval is then over images (and the other's seeds) alone, and must be labelled so.
    """
    draws = _draws(ours, rng) - _draws(theirs, rng)
    value = ours.values.mean() - theirs.values.mean()
    width = bounds[1] - bounds[0]
    return _estimate(value, draws, stretch=_stretch([ours, theirs], draws), bounds=(-width, width))


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the two-sided p of McNemar's exact test that two models of one seed each err equally often.

    ``ours`` and ``theirs`` say of each image (N,) whether the prediction is right. Only images on which the two
    disagree count: under the hypothesis each is won by either with probability 1/2 (McNemar 1947; for classifiers
    Dietterich 1998). Without a disagreement p is 1.
    """
    from scipy.stats import binomtest  # scipy.stats takes a second to import

    wins, losses = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return ``p_values`` adjusted for their number, in their order: below 0.05 means significant among all of them.

    Holm 1979: the smallest is multiplied by m, the next by m - 1, and so on, none below the one before, none above 1.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, dtype=np.float64)[order] * factors))
    return adjusted.tolist()


def _draws(sample: Sample, rng: np.random.Generator) -> np.ndarray:
    """Return the mean over seeds (B,) on each resample of images, moved by what K - 1 (at least 1) drawn seeds do."""
    seeds, resamples = sample.resampled.shape
    drawn = rng.integers(seeds, size=(max(1, seeds - 1), resamples))
    return sample.resampled.mean(axis=0) + sample.values[drawn].mean(axis=0) - sample.values.mean()


def _stretch(samples: Sequence[Sample], draws: np.ndarray) -> float:
    """Return Student's t over the normal quantile, at least 1: close to 1 where images, not seeds, make the spread."""
    from scipy.stats import norm, t

    several = [sample.values for sample in samples if len(sample.values) > 1]
    total = np.nanvar(draws) if not np.isnan(draws).all() else 0.0
    share = sum((values.var(ddof=1) / len(values)) ** 2 / (len(values) - 1) for values in several)
    if not share > 0 or not total > 0:  # no seeds that differ, or NaN
        return 1.0
    fewest = min(len(values) - 1 for values in several)
    freedom = max(fewest, total**2 / share)  # Satterthwaite's is never below that of the smallest sample
    return float(t.ppf((1 + LEVEL) / 2, freedom) / norm.ppf((1 + LEVEL) / 2))


def _estimate(value: float, draws: np.ndarray, *, stretch: float, bounds: tuple[float, float]) -> Estimate:
    """Return ``value`` with the percentiles of ``draws``, moved away from it by ``stretch`` and cut at ``bounds``."""
    draws = draws[~np.isnan(draws)]
    if np.isnan(value) or not len(draws):
        return Estimate(np.nan, np.nan, np.nan)
    ends = value + stretch * (np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - value)
    low, high = np.clip(np.round(ends, 12), *bounds).tolist()  # rounded: equal models differ by 0, not by 1e-17
    return Estimate(float(value), low, high)


NO_DIFFERENCE, NOT_DEFINED = "no difference seen", "not defined"


def verdict(estimate: Estimate, *, higher_is_better: bool = True) -> str:
    """Return "better" or "worse" where the interval of a difference excludes zero, else "no difference seen".

    "not defined" is the difference of a metric that is null, such as the AUC where a class has no test image.
    """
    if math.isnan(estimate.value):
        return NOT_DEFINED
    if not estimate.excludes_zero:
        return NO_DIFFERENCE
    return "better" if (estimate.low > 0) == higher_is_better else "worse"
