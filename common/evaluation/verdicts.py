"""What is said of the differences between the models of one data set by one metric, which are one family of tests."""

from collections.abc import Collection, Mapping

import numpy as np

from common.evaluation import power
from common.evaluation.folds import FoldSpread
from common.evaluation.metrics import METRICS
from common.evaluation.significance import (
    ALPHA,
    BETTER,
    LEVEL,
    ONE_SEED,
    UNDECIDED,
    WITHIN_MARGIN,
    holm,
    simultaneous_levels,
    verdict,
)
from common.evaluation.spread import Spread

Pair = tuple[str, str]  # of run names


def verdict_rows(
    spreads: Mapping[Pair, Spread | FoldSpread],
    *,
    metric: str,
    margin: float,
    declared: Collection[Pair],
    one_seed: Collection[Pair],
) -> dict[Pair, dict]:
    """Return by pair of models what ``Uncertainty.pairs`` says of its difference.

    The ``declared`` pairs are tested, Holm's correction being over as many as are there and defined. Of others nothing
    is claimed, nor of pairs where a model that depends on the seed has ``one_seed``.

    Args:
        spreads: the first model's mean minus the second's.
        metric: one of ``METRICS``.
        margin: below how many points a difference counts as none, where the metric counts images.
        declared: pairs of ``spreads``.
        one_seed: pairs of ``spreads``.
    """
    margin = margin / 100 if METRICS[metric].counts_images else np.nan
    tested = [
        pair
        for pair, spread in spreads.items()
        if pair in declared and pair not in one_seed and not np.isnan(spread.estimate.value)
    ]
    p_values = [spreads[pair].estimate.p for pair in tested]
    levels, adjusted = (dict(zip(tested, its, strict=True)) for its in (simultaneous_levels(p_values), holm(p_values)))
    rows = {}
    for pair, spread in spreads.items():
        rows[pair] = {"declared": pair in declared, "family": len(tested), "margin": 100 * margin}
        rows[pair] |= _interval_row(spread, metric, levels.get(pair, LEVEL))
        rows[pair] |= {"p": np.nan if pair in one_seed else spread.estimate.p}  # one seed's is of the images alone
        if pair in adjusted:
            rows[pair] |= _tested_row(spread, metric, margin, adjusted[pair], ALPHA / len(tested))
        else:
            rows[pair] |= {"verdict": ONE_SEED if pair in one_seed else UNDECIDED, "winner": ""}
    return rows


def _interval_row(spread: Spread | FoldSpread, metric: str, level: float) -> dict:
    estimate, bounds = spread.estimate, METRICS[metric].bounds
    widest = (bounds[0] - bounds[1], bounds[1] - bounds[0])
    (low, high), (low_90, high_90) = (estimate.interval(each, widest) for each in (level, 1 - 2 * ALPHA))
    ends = {"low": low, "high": high, "low_90": low_90, "high_90": high_90}
    return {"difference": estimate.value, "level": level} | ends


def _tested_row(spread: Spread | FoldSpread, metric: str, margin: float, p_adjusted: float, alpha: float) -> dict:
    """Return what the test says; of an undecided difference also what would make ``margin`` ``detectable``."""
    estimate = spread.estimate
    word = verdict(estimate, p_adjusted, margin=None if np.isnan(margin) else margin)
    first_wins = (estimate.value > 0) == METRICS[metric].higher_is_better
    winner = ("a" if first_wins else "b") if word in (BETTER, WITHIN_MARGIN) else ""
    found = {"p_adjusted": p_adjusted, "verdict": word, "winner": winner}
    found["detectable"] = power.detectable(estimate, alpha)
    found["detectable_by_images"] = power.detectable_by_images(spread, alpha)
    if word == UNDECIDED and found["detectable"] > margin:
        if not spread.seeds or found["detectable_by_images"] > margin:
            found["images_needed"] = power.images_needed(spread, margin, alpha)
        else:
            found["seeds_needed"] = power.seeds_needed(spread, margin, alpha)
    return found
