"""Models tested in folds: each image is tested once, by a network that was trained on the other folds."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from common.evaluation.comparison import Series
from common.evaluation.significance import NOT_DEFINED, Estimate
from common.runs.result import Run


class FoldSpread(NamedTuple):
    """One metric of one model in each fold, or the differences of two models in the same folds.

    It answers what ``spread.Spread`` answers. Its spread is that between folds, in which test images, training images
    and seeds differ all at once.
    """

    values: np.ndarray  # (K,), K >= 2
    test_share: float  # test images of a fold over those for training and validation
    num_images: int  # tested in all folds together
    seeds: Sequence[np.ndarray] = ()  # apart from the folds there is no spread of seeds

    @property
    def value(self) -> float:
        """The mean over the folds."""
        return float(self.values.mean())

    @property
    def estimate(self) -> Estimate:
        """The mean with its standard error, and K - 1 degrees of freedom; not defined where it is not in every fold.

        The folds' networks share most of their training images, so that their mean varies more than a K-th of the
        folds' variance says: the variance is (1/K + n_test/n_train) times it, the corrected resampled t-test of Nadeau
        and Bengio 2003, "Inference for the Generalization Error", equation 5 and section 5.2.
        """
        if math.isnan(self.value):
            return NOT_DEFINED
        count = len(self.values)
        variance = (1 / count + self.test_share) * self.values.var(ddof=1)
        return Estimate(self.value, math.sqrt(variance), count - 1)


def fold_spread(values: Sequence[float], runs: Sequence[Run]) -> FoldSpread:
    """Return the spread of ``values`` (K,), one for each of ``runs``, which are folds."""
    data = [run.result.data for run in runs]
    tested = sum(each.num_test for each in data)
    return FoldSpread(np.asarray(values), tested / sum(each.num_train + each.num_val for each in data), tested)


def matched(*models: Series) -> tuple[Series, ...]:
    """Return the ``models`` with only those of their runs whose fold, or draw of training images, all of them have.

    Their runs are then in the same order; () where they share none. Models of a single split are returned as they are.
    """
    if not all(model.folds > 1 or model.has_draws for model in models):
        return models
    of_model = [{_images_of(run): run for run in model.runs} for model in models]
    shared = sorted(set.intersection(*map(set, of_model)))
    if not shared:
        return ()
    return tuple(
        replace(model, runs=tuple(map(runs.get, shared))) for model, runs in zip(models, of_model, strict=True)
    )


def _images_of(run: Run) -> tuple[int, ...]:
    """Return what tells which images a run was trained on, and with which seed: of folds the number alone."""
    return (run.fold,) if run.folds > 1 else (run.result.config.get("split_seed", 0), run.seed)
