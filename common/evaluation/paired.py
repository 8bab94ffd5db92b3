"""Differences of accuracy between two models whose runs share their seeds, or their draws of training images.

What a seed brings to both models alike, such as an easy training set, is no part of the difference's spread.
"""

from collections.abc import Mapping

import numpy as np

from common.evaluation.comparison import Series
from common.evaluation.kept_statistics import correct_images
from common.evaluation.significance import Estimate
from common.evaluation.spread import Spread, error_of_mean


def correct_by_seed(series: Series) -> dict[int, np.ndarray]:
    """Return by seed where the prediction of each test image is right, (N,) bool.

    Raises:
        UserError: a run's predictions are damaged, or missing and nothing of use is kept of them.
    """
    return {run.seed: correct_images(run) for run in series.runs}


def paired_difference(ours: Mapping[int, np.ndarray], theirs: Mapping[int, np.ndarray]) -> Estimate:
    """Return the difference of mean accuracy, ours - theirs, over the seeds that both have, at least one.

    Both are those of ``correct_by_seed``, on the same images. The variance is that of the images, of each the mean
    difference over seeds, and that of the seeds, of each the mean difference over images: of a single seed the former
    alone.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    differences = np.stack([ours[seed].astype(np.float64) - theirs[seed] for seed in seeds])  # (K, N)
    of_images, of_seeds = differences.mean(axis=0), differences.mean(axis=1)
    return Spread(of_seeds.mean(), error_of_mean(of_images), len(of_images), [of_seeds]).estimate
