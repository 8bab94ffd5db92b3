"""What the predictions of a data set's runs say, with its uncertainty; computed once and kept beside the runs."""

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from common.evaluation import calibration, metrics, significance
from common.evaluation.bootstrap import draw_counts, resampled_metrics
from common.evaluation.significance import Estimate, Sample
from common.runs.predictions import PREDICTIONS_FILE, Predictions, read_predictions
from common.runs.result import Run, encode_record, is_intact
from common.runtime.errors import UserError
from common.runtime.files import sha256, write_atomically
from common.runtime.parallel import parallel_map

if TYPE_CHECKING:
    from common.evaluation.comparison import Series


ALGORITHM = 1  # raise it whenever a kept number would come out otherwise: what older code kept is then made again

RESAMPLES = 2_000  # of the test images; leaves a 95 % end uncertain by a twentieth of a standard deviation

INTERVALS, DIFFERENCES = "intervals.json", "differences.json"

COMPARED = ("accuracy", "f1_macro", "auc_macro")

BINS = (10, 15, 20)

LARGE = 200_000  # images times classes: about a second's work, for which other processes are worth starting


class Difference(NamedTuple):
    """How two models of one data set differ, ours - theirs, on the same test images."""

    ours: str  # the name of a run, as the next
    theirs: str
    estimates: Mapping[str, Estimate]  # by metric, over images and seeds
    mcnemar: tuple[float, ...]  # p of each pair of seeds, the first of either with the first of the other, and so on
    holm: float  # the largest of them, adjusted for the number of pairs of models


@dataclass(frozen=True)
class Uncertainty:
    """Of each model, by the name of its run: each seed's record, and the means over seeds; and the pairs of models."""

    seeds: Mapping[str, tuple[dict, ...]]  # "estimates" over images by metric, "calibration" (see ``_calibration``)
    means: Mapping[str, Mapping[str, Estimate]]  # by metric, over images and seeds
    differences: tuple[Difference, ...]


class _Sampled(NamedTuple):
    """What one run's predictions give; all runs of one number of test images are resampled alike."""

    values: dict[str, float]
    resampled: dict[str, np.ndarray]  # (B,) by metric
    correct: np.ndarray  # (N,) bool
    record: dict  # what is kept of it


def compute_uncertainty(series: Sequence["Series"]) -> Uncertainty:
    """Return what is known of the models of one data set, all tested on the same images.

    What is kept under the runs' folders is taken from there if it was made by this ``ALGORITHM`` from the same
    predictions (by SHA-256); the rest is computed and kept. Pairs are models trained on equally many images: among
    others a difference would be the images' as much as the models'.
    """
    folder = series[0].runs[0].folder.parent.parent
    seeds = {run.folder: _kept_of_run(run) for one in series for run in one.runs}
    stored = read_cache(folder / DIFFERENCES, algorithm=ALGORITHM)
    means, pairs = stored.get("means", {}), stored.get("differences", {})
    wanted = [(ours, theirs) for ours, theirs in combinations(series, 2) if ours.num_train == theirs.num_train]
    new_means = [one for one in series if _key(one) not in means]
    new_pairs = [pair for pair in wanted if _key(*pair) not in pairs]
    for_models = {run.folder for one in (*new_means, *(one for pair in new_pairs for one in pair)) for run in one.runs}
    runs = [run for one in series for run in one.runs if not seeds[run.folder] or run.folder in for_models]
    sampled = _sample_all(runs)
    for run in runs:
        if not seeds[run.folder]:
            seeds[run.folder] = sampled[run.folder].record
            write_cache(run.folder / INTERVALS, {"predictions": _sha256(run), **seeds[run.folder]}, algorithm=ALGORITHM)
    means |= {_key(one): _mean(one, sampled) for one in new_means}
    pairs |= {_key(*pair): _difference(*pair, sampled) for pair in new_pairs}
    if new_means or new_pairs:
        write_cache(folder / DIFFERENCES, {"means": means, "differences": pairs}, algorithm=ALGORITHM)
    return Uncertainty(
        {one.name: tuple(seeds[run.folder] for run in one.runs) for one in series},
        {one.name: _estimates(means[_key(one)]["estimates"]) for one in series},
        _with_holm([(ours.name, theirs.name, pairs[_key(ours, theirs)]) for ours, theirs in wanted]),
    )


def estimates(record: dict) -> dict[str, Estimate]:
    """Return the intervals over test images in the record of one seed, by metric."""
    return _estimates(record["estimates"])


def _kept_of_run(run: Run) -> dict:
    record = read_cache(run.folder / INTERVALS, algorithm=ALGORITHM)
    fits = record.get("predictions") == _sha256(run)
    return {name: record[name] for name in ("estimates", "calibration")} if fits else {}


def _sha256(run: Run) -> str:
    return run.result["files"][PREDICTIONS_FILE]["sha256"]


def _key(*series: "Series") -> str:
    """Return the key under which a model's means or a pair's differences are kept: a hash of all its predictions."""
    return sha256(" ".join(",".join(_sha256(run) for run in one.runs) for one in series).encode())


def _sample_all(runs: Sequence[Run]) -> dict:
    """Return the sample of each run by its folder; much work is shared out to other processes."""
    size = sum(run.result["data"]["num_test"] * len(run.result["data"]["classes"]) for run in runs)
    samples = parallel_map(_sample, runs) if len(runs) > 1 and size > LARGE else map(_sample, runs)
    return dict(zip((run.folder for run in runs), samples, strict=True))


def _sample(run: Run) -> _Sampled:
    """Resample one run's test images and calibrate it on its validation images."""
    predictions = read_predictions(run.folder, run.result)
    probabilities, labels = metrics.softmax(predictions.logits), predictions.labels
    whole = resampled_metrics(probabilities, labels, np.ones((len(labels), 1)))
    values = {name: float(value[0]) for name, value in whole.items()}
    resampled = resampled_metrics(probabilities, labels, _counts(len(labels), RESAMPLES))
    intervals = {name: significance.over_images(values[name], resampled[name]) for name in values}
    record = {"estimates": _plain(intervals), "calibration": _calibration(predictions, probabilities)}
    return _Sampled(values, resampled, probabilities.argmax(axis=1) == labels, record)


@functools.lru_cache(maxsize=1)
def _counts(num_images: int, resamples: int) -> np.ndarray:
    """Return the draws of all runs with so many test images, made once in a process."""
    return draw_counts(num_images, resamples, np.random.default_rng(num_images))


def _calibration(predictions: Predictions, probabilities: np.ndarray) -> dict:
    """Return ``ece`` by number of bins, ``brier`` and ``bins``, and ``after`` the ``temperature`` the same again.

    The temperature is fitted on validation images; without any it is None, and so is ``after``.
    """
    record = _calibration_of(probabilities, predictions.labels) | {"temperature": None, "after": None}
    if len(predictions.val_labels):
        temperature = calibration.fit_temperature(predictions.val_logits, predictions.val_labels)
        scaled = metrics.softmax(predictions.logits.astype(np.float64) / temperature)
        record |= {"temperature": temperature, "after": _calibration_of(scaled, predictions.labels)}
    return record


def _calibration_of(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    bins = calibration.reliability(probabilities, labels)
    sums = [np.nan_to_num(mean * bins.images).tolist() for mean in (bins.confidence, bins.accuracy)]
    return {
        "ece": {str(count): calibration.expected_calibration_error(probabilities, labels, count) for count in BINS},
        "brier": calibration.brier_score(probabilities, labels),
        "bins": dict(zip(("images", "confidence", "correct"), (bins.images.tolist(), *sums), strict=True)),  # sums
    }


def _mean(one: "Series", sampled: Mapping) -> dict:
    """Return a model's means over seeds as they are kept."""
    estimates = {
        name: significance.mean_over_seeds(_of_seeds(one, name, sampled), np.random.default_rng(0)) for name in COMPARED
    }
    return {"run": one.name, "estimates": _plain(estimates)}


def _difference(ours: "Series", theirs: "Series", sampled: Mapping) -> dict:
    """Return a pair's differences as they are kept; seeds are drawn alike for all metrics."""
    differences = {
        name: significance.paired_difference(
            _of_seeds(ours, name, sampled), _of_seeds(theirs, name, sampled), np.random.default_rng(0)
        )
        for name in COMPARED
    }
    p_values = [
        significance.mcnemar(sampled[mine.folder].correct, other.correct)
        for mine, other in zip(ours.runs, (sampled[run.folder] for run in theirs.runs), strict=False)
    ]
    return {"ours": ours.name, "theirs": theirs.name, "estimates": _plain(differences), "mcnemar": p_values}


def _of_seeds(one: "Series", metric: str, sampled: Mapping) -> Sample:
    each = [sampled[run.folder] for run in one.runs]
    return Sample(np.array([seed.values[metric] for seed in each]), np.stack([seed.resampled[metric] for seed in each]))


def _with_holm(pairs: Sequence[tuple[str, str, dict]]) -> tuple[Difference, ...]:
    """Return the pairs with Holm's correction; the largest p of a pair's seeds stands for it (Berger 1982)."""
    adjusted = significance.holm([max(record["mcnemar"]) for _, _, record in pairs])
    return tuple(
        Difference(ours, theirs, _estimates(record["estimates"]), tuple(record["mcnemar"]), holm)
        for (ours, theirs, record), holm in zip(pairs, adjusted, strict=True)
    )


def _plain(estimates: Mapping[str, Estimate]) -> dict:
    """Return ``estimates`` as JSON has them: lists, with None for NaN."""
    return {name: [None if np.isnan(x) else float(x) for x in estimate] for name, estimate in estimates.items()}


def _estimates(plain: Mapping[str, list]) -> dict[str, Estimate]:
    return {name: Estimate(*(np.nan if x is None else x for x in values)) for name, values in plain.items()}


def read_cache(path: Path, *, algorithm: int) -> dict:
    """Return the record in ``path``, or an empty one where it is missing, damaged, or of another ``algorithm``."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if is_intact(record) and record.get("algorithm") == algorithm else {}


def write_cache(path: Path, record: dict, *, algorithm: int) -> None:
    """Keep ``record``, strict JSON with its own hash; where the folder cannot be written, it is computed each time."""
    with contextlib.suppress(UserError):
        write_atomically(path, encode_record({"algorithm": algorithm, **record}))
