"""Differences between models in accuracy on corrupted test images, by the same rules as those on clean ones."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from common.data.corruptions import KINDS
from common.evaluation.comparison import Comparison, Series
from common.evaluation.corruption_scores import read_kinds, share_correct
from common.evaluation.folds import FoldSpread, Term, spread_of_sum
from common.evaluation.frames import table
from common.evaluation.plan import plan_of
from common.evaluation.spread import Spread, error_of_mean
from common.evaluation.uncertainty import PAIR_COLUMNS, pair_rows


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
        plan = plan_of(comparison, contrasts, margin)
        rows += pair_rows(comparison, plan, {"accuracy": partial(_spread, kinds=kinds)})
    return table(rows, PAIR_COLUMNS)


def _spread(a: Series, b: Series, kinds: Sequence[str]) -> Spread | FoldSpread:
    """Return a's minus b's mean, each image being scored by the share of its corruptions that are classified right."""
    ours, theirs = ([share_correct(run, kinds) for run in series.runs] for series in (a, b))  # by run, (N,) each
    terms = [Term(1, a, np.array([its.mean() for its in ours])), Term(-1, b, np.array([its.mean() for its in theirs]))]
    error = 0.0 if a.spans_folds else error_of_mean(np.mean(ours, axis=0) - np.mean(theirs, axis=0))
    return spread_of_sum(terms, error, slope=1.0)
