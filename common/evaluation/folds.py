"""Runs that belong together, of one fold or one draw of training images, and how far sums of models' means may be off.

Of models tested in folds each image is tested once, by a network that was trained on the other folds.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from common.evaluation.comparison import Series
from common.evaluation.significance import NOT_DEFINED, Estimate
from common.evaluation.spread import Spread, least_image_error
from common.runs.result import Run


class FoldSpread(NamedTuple):
    """One metric of one model in each fold, or the differences of two models in the same folds.

    It answers what ``spread.Spread`` answers. Its spread is that between folds, in which test images, training images
    and seeds differ all at once.
    """

    values: np.ndarray  # (K,), K >= 2
    test_share: float  # test images of a fold over those for training and validation
    num_images: int  # tested in all folds together
    least: float = 0.0  # the least standard error over so many images; 0 of what does not count images
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
        and Bengio 2003, "Inference for the Generalization Error", equation 5 and section 5.2. Few folds often happen to
        agree, which says nothing of the next: the error is at least ``least``, as of a single split, inflated alike.
        """
        if math.isnan(self.value):
            return NOT_DEFINED
        count = len(self.values)
        variance = max(self.values.var(ddof=1), count * self.least**2)
        return Estimate(self.value, math.sqrt((1 / count + self.test_share) * variance), count - 1)


class Term(NamedTuple):
    """What a model adds to a sum of models' means."""

    sign: int
    model: Series
    values: np.ndarray  # (K,), one for each of its runs


def spread_of_sum(terms: Sequence[Term], image_error: float, *, slope: float) -> Spread | FoldSpread:
    """Return the sum of the means of ``matched`` models, each with its sign, with its spread.

    That is the one over folds; else over test images, and over the seeds of each model that depends on them. Where the
    seeds drew their training images it is over the sums draw by draw: an easy draw is so to all models.

    Args:
        image_error: the standard error over the test images; not read where the models span folds.
        slope: how steeply the sum rises with the share of images that are right, 1 for an accuracy; of what does not
            count images 0. The error over images is at least so many times ``least_image_error``.
    """
    first = terms[0].model
    data = [run.result.data for run in first.runs]
    if first.spans_folds:
        tested = sum(each.num_test for each in data)
        share = tested / sum(each.num_train + each.num_val for each in data)
        return FoldSpread(_run_by_run(terms), share, tested, slope * least_image_error(tested))
    seeds = [term.values for term in terms if not term.model.is_deterministic]
    seeds = [_run_by_run(terms)] if first.has_draws else seeds
    error = np.maximum(image_error, slope * least_image_error(data[0].num_test))  # of NaN, NaN
    value = sum(term.sign * term.values.mean() for term in terms)
    return Spread(float(value), float(error), data[0].num_test, seeds)


def _run_by_run(terms: Sequence[Term]) -> np.ndarray:
    return sum(term.sign * term.values for term in terms)  # (K,)


def matched(*models: Series) -> tuple[Series, ...]:
    """Return the ``models`` with only those of their runs whose fold, or draw of training images, all of them have.

    Their runs are then in the same order; () where they share none. Where one has several draws all count as drawn,
    also a model with the first alone. Models of a single split and draw are returned as they are.
    """
    has_draws = any(model.has_draws for model in models)
    if models[0].folds == 1 and not has_draws:
        return models
    of_model = [{_images_of(run): run for run in model.runs} for model in models]
    shared = sorted(set.intersection(*map(set, of_model)))
    if not shared:
        return ()
    return tuple(
        replace(model, runs=tuple(map(runs.get, shared)), has_draws=has_draws)
        for model, runs in zip(models, of_model, strict=True)
    )


def _images_of(run: Run) -> tuple[int, ...]:
    """Return what tells which images a run was trained on, and with which seed: of folds the number alone."""
    return (run.fold,) if run.folds > 1 else (run.result.config.get("split_seed", 0), run.seed)
