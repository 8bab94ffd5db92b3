"""Differences between models in accuracy on corrupted test images, by the same rules as those on clean ones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from common.data.corruptions import KINDS
from common.evaluation.comparison import Comparison, Series
from common.evaluation.corruption_scores import read_kinds, share_correct
from common.evaluation.folds import FoldSpread, fold_spread
from common.evaluation.frames import table
from common.evaluation.plan import comparable_pairs, declared_pairs, read_plan
from common.evaluation.spread import Spread, error_of_mean
from common.evaluation.uncertainty import PAIR_COLUMNS, count_unplanned
from common.evaluation.verdicts import verdict_rows


def corrupted(comparison: Comparison) -> tuple[Comparison | None, list[str]]:
    """Return ``comparison`` with the models alone of which every seed was scored, and the kinds that all of them have.

    None without such a model.
    """
    kinds = {series.name: [set(read_kinds(run)) for run in series.runs] for series in comparison.series}
    scored = tuple(series for series in comparison.series if all(kinds[series.name]))
    if not scored:
        return None, []
    shared = set.intersection(*(of_run for series in scored for of_run in kinds[series.name]))
    return replace(comparison, series=scored), [kind for kind in KINDS if kind in shared]


def corrupted_pairs(
    comparisons: Sequence[Comparison], *, contrasts: Sequence[tuple[str, str]] = (), margin: float | None = None
) -> pd.DataFrame:
    """Return what ``Uncertainty.pairs`` has, of the accuracy over all severities of the kinds that all models have.

    Each image counts once, by the share of its corruptions that are classified right, so that images are the sample.
    ``contrasts`` and ``margin`` as in ``compute_uncertainty``. May have no row.
    """
    rows = []
    for whole in comparisons:
        comparison, kinds = corrupted(whole)
        if comparison is None or not kinds:
            continue
        plan = read_plan(comparison.series[0].runs[0].folder.parent.parent)
        pairs = comparable_pairs(comparison)
        found = verdict_rows(
            {(a.name, b.name): _spread(a, b, kinds) for a, b in pairs},
            metric="accuracy",
            margin=plan.margin if margin is None else margin,
            declared=declared_pairs(comparison, contrasts or plan.contrasts),
            one_seed={(a.name, b.name) for a, b in pairs if a.is_one_seed or b.is_one_seed},
        )
        rows += [
            {"dataset": comparison.dataset, "a": a.name, "b": b.name, "metric": "accuracy", "mcnemar_p_by_seed": ""}
            | {"unplanned_a": count_unplanned(a, plan), "unplanned_b": count_unplanned(b, plan)}
            | found[a.name, b.name]
            for a, b in pairs
        ]
    return table(rows, PAIR_COLUMNS)


def _spread(a: Series, b: Series, kinds: Sequence[str]) -> Spread | FoldSpread:
    """Return a's minus b's mean, each image being scored by the share of its corruptions that are classified right."""
    shares = [[share_correct(run, kinds) for run in series.runs] for series in (a, b)]  # by run, (N,) each
    if a.folds > 1 and len(a.runs) > 1:
        values = [ours.mean() - theirs.mean() for ours, theirs in zip(*shares, strict=True)]
        return fold_spread(values, a.runs)
    difference = np.mean(shares[0], axis=0) - np.mean(shares[1], axis=0)  # (N,), of the same images
    seeds = [
        np.mean(of_series, axis=1)
        for series, of_series in zip((a, b), shares, strict=True)
        if not series.is_deterministic
    ]
    return Spread(float(difference.mean()), error_of_mean(difference), len(difference), seeds)
