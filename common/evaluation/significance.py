"""From a value, its standard error and degrees of freedom: interval, p, equivalence, and the verdict in a family.

Where the two come from does not matter here (``spread.Spread``: from test images and seeds). The whole procedure, with
its error rates, is in ``docs/statistics.md``.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ALPHA = 0.05
LEVEL = 1 - ALPHA
BETTER, WITHIN_MARGIN, EQUIVALENT = "better", "better_within_margin", "equivalent"
UNDECIDED, ONE_SEED = "undecided", "one_seed"


class Interval(NamedTuple):
    """The ends of an interval; both NaN where the value is not defined."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Say whether zero lies outside."""
        return self.low > 0 or self.high < 0


class Estimate(NamedTuple):
    """A mean or a difference of means with what is known of its spread; all three are NaN where it is not defined."""

    value: float
    standard_error: float
    freedom: float  # degrees of freedom of the standard error, above 0; infinite where it is known well

    @property
    def p(self) -> float:
        """The two-sided p, by Student's t, of the hypothesis that the true value is 0."""
        from scipy.special import stdtr

        if self.standard_error == 0:
            return 1.0 if abs(self.value) < 1e-12 else 0.0  # equal models differ by 0, up to rounding
        return float(2 * stdtr(self.freedom, -abs(self.value) / self.standard_error))

    def interval(self, level: float = LEVEL, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Interval:
        """Return value ± t * standard error, cut at the metric's ``bounds``; without 0 exactly if p < 1 - level."""
        reach = quantile((1 + level) / 2, self.freedom) * self.standard_error
        ends = np.round([self.value - reach, self.value + reach], 12)
        return Interval(*np.clip(ends, *bounds).tolist())

    def is_within(self, margin: float) -> bool:
        """Say whether the true value lies between -margin and margin, by two one-sided tests at 5 % each.

        That is where the 90 % interval lies inside (Schuirmann 1987, "A comparison of the two one-sided tests
        procedure").
        """
        low, high = self.interval(1 - 2 * ALPHA)
        return -margin < low and high < margin


NOT_DEFINED = Estimate(math.nan, math.nan, math.nan)


def quantile(share: float, freedom: float) -> float:
    """Return the quantile of Student's t at ``share``, 0..1; of the normal distribution where ``freedom`` is inf."""
    from scipy.special import stdtrit  # scipy.stats takes a second to import, this a tenth

    return float(stdtrit(freedom, share))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return ``p_values`` adjusted for their number, in their order: below 0.05 means significant among all of them.

    Holm 1979: the smallest is multiplied by m, the next by m - 1, and so on, none below the one before, none above 1.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, dtype=np.float64)[order] * factors))
    return adjusted.tolist()


def simultaneous_levels(p_values: Sequence[float]) -> list[float]:
    """Return for each of m differences the level of the interval that excludes 0 exactly where Holm's p is below 0.05.

    It is Bonferroni's, 1 - 0.05 / m, at which all m intervals together hold the truth 95 times in 100. Where only a
    later step of Holm's decides, the interval is at the level of that step: intervals of full coverage that agree with
    every step of Holm's would say no more than the sign (Strassburger and Bretz 2008, "Compatible simultaneous lower
    confidence bounds for the Holm procedure"; Guilbaud 2008).
    """
    count = len(p_values)
    return [
        1 - (ALPHA * p / adjusted if adjusted < ALPHA <= p * count else ALPHA / count)
        for p, adjusted in zip(p_values, holm(p_values), strict=True)
    ]


def verdict(estimate: Estimate, p_adjusted: float, *, margin: float | None = None, one_seed: bool = False) -> str:
    """Return what may be said of a declared difference, one of the five words above.

    ``p_adjusted`` is Holm's p, ``margin`` what still counts as equal (None: nothing does). With ``one_seed``, where
    the spread of a model's seeds is unknown, nothing is claimed.
    """
    if one_seed:
        return ONE_SEED
    is_better, is_within = p_adjusted < ALPHA, margin is not None and estimate.is_within(margin)
    if is_better:
        return WITHIN_MARGIN if is_within else BETTER
    return EQUIVALENT if is_within else UNDECIDED


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the two-sided p of McNemar's exact test that two networks err equally often.

    It is about these two networks, not about the methods that made them. ``ours`` and ``theirs`` say of each image (N,)
    whether the prediction is right. Only images on which the two disagree count: under the hypothesis each is won by
    either with probability 1/2 (McNemar 1947; for classifiers Dietterich 1998). Without a disagreement p is 1.
    """
    from scipy.stats import binomtest  # scipy.stats takes a second to import

    wins, losses = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
