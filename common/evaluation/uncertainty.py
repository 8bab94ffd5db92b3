"""What predictions say with their uncertainty: computed once, kept beside the runs, passed on as tables."""

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from common.evaluation import calibration, metrics, significance
from common.evaluation.bootstrap import draw_counts
from common.evaluation.comparison import Comparison, Series
from common.evaluation.frames import table
from common.evaluation.metrics import HEADLINE, METRICS, resampled_metrics
from common.evaluation.scores import Scores
from common.evaluation.significance import Estimate, Sample
from common.runs.predictions import PREDICTIONS_FILE, Predictions, read_predictions
from common.runs.result import Run, encode_record, is_intact
from common.runtime.errors import UserError
from common.runtime.files import sha256, write_atomically
from common.runtime.parallel import parallel_map

ALGORITHM = 1  # raise it whenever a kept number would come out otherwise: what older code kept is then made again
RESAMPLES = 2_000  # of the test images; leaves a 95 % end uncertain by a twentieth of a standard deviation
INTERVALS, DIFFERENCES = "intervals.json", "differences.json"
LARGE = 200_000  # images times classes: about a second's work, for which other processes are worth starting


@dataclass(frozen=True)
class Uncertainty:
    """Four tables, in the order of the comparisons; ``dataset`` and ``run`` are those of ``Frames``.

    ``value``, ``low`` and ``high`` are a number and the ends of its 95 % interval, NaN where it is not defined.
    """

    runs: pd.DataFrame
    """dataset, run, seed, metric, value, low, high: over the test images, each metric that is resampled."""
    means: pd.DataFrame
    """dataset, run, metric, value, low, high: the mean over the seeds, over images and seeds, each headline metric."""
    pairs: pd.DataFrame
    """dataset, a, b, metric, difference, low, high, verdict, mcnemar_p_min, mcnemar_p_max, holm_p: a - b of two runs'
    means, each headline metric, with the verdict on a. McNemar's test is on right and wrong: its p stand by accuracy
    only, over the pairs of seeds, the largest adjusted for the data set's number of pairs. May have no row."""
    calibration: pd.DataFrame
    """dataset, run, seed, brier, ece, temperature, ece_scaled, bins, bins_scaled: ``scaled`` is after the temperature,
    which is NaN (``bins_scaled`` None) without validation images. Bins are a dict of lists, an entry a bin of equal
    width: ``images``, and the sums of ``confidence`` and of ``correct`` over them."""


class _Sampled(NamedTuple):
    """What one run's predictions give; all runs of one number of test images are resampled alike."""

    values: dict[str, float]
    resampled: dict[str, np.ndarray]  # (B,) by metric
    correct: np.ndarray  # (N,) bool
    record: dict  # what is kept of it


def compute_uncertainty(comparisons: Sequence[Comparison]) -> Uncertainty:
    """Return intervals, calibration and pairwise differences of the models of each comparison.

    What is kept under the runs' folders is taken from there if it was made by this ``ALGORITHM`` for today's
    ``METRICS`` from the same predictions (by SHA-256); the rest is computed, about a second a run of 10,000 images,
    and kept. Pairs are models trained on equally many images: among others a difference would be the images' as much
    as the models'.
    """
    runs, means, pairs, calibrations = [], [], [], []
    for comparison in comparisons:
        records, joint = _records(comparison)
        for series in comparison.series:
            model = {"dataset": comparison.dataset, "run": series.name}
            means += [model | row for row in _rows(joint[_key(series)]["estimates"])]
            for run in series.runs:
                seed = model | {"seed": run.seed}
                runs += [seed | row for row in _rows(records[run.folder]["estimates"])]
                calibrations.append(seed | records[run.folder]["calibration"])
        pairs += _pair_rows(comparison, joint)
    calibrations = table(calibrations).astype({"temperature": float, "ece_scaled": float})
    return Uncertainty(table(runs), table(means), table(pairs, _PAIR_COLUMNS), calibrations)


_PAIR_COLUMNS = (
    *("dataset", "a", "b", "metric", "difference", "low", "high"),
    *("verdict", "mcnemar_p_min", "mcnemar_p_max", "holm_p"),
)


def _records(comparison: Comparison) -> tuple[dict[Path, dict], dict[str, dict]]:
    """Return what is kept of each run, by its folder, and of each model and pair of models, by ``_key``."""
    runs = [run for series in comparison.series for run in series.runs]
    groups = {_key(*group): group for group in [*((series,) for series in comparison.series), *_pairs(comparison)]}
    store = runs[0].folder.parent.parent / DIFFERENCES
    joint = _read(store)
    records = {run.folder: _read(run.folder / INTERVALS, predictions=_sha256(run)) for run in runs}
    new_groups = {key: group for key, group in groups.items() if key not in joint}
    needed = {run.folder for group in new_groups.values() for series in group for run in series.runs}
    sampled = _sample_all([run for run in runs if run.folder in needed or not records[run.folder]])
    for run in runs:
        if not records[run.folder]:
            records[run.folder] = sampled[run.folder].record
            _write(run.folder / INTERVALS, {"predictions": _sha256(run), **records[run.folder]})
    joint |= {key: _joint(group, sampled) for key, group in new_groups.items()}
    if new_groups:
        _write(store, joint)
    return records, joint


def _pairs(comparison: Comparison) -> list[tuple[Series, Series]]:
    return [pair for pair in combinations(comparison.series, 2) if pair[0].num_train == pair[1].num_train]


def _sha256(run: Run) -> str:
    return run.result.files[PREDICTIONS_FILE].sha256


def _key(*group: Series) -> str:
    """Return the key under which a model's means or a pair's differences are kept: a hash of all its predictions."""
    return sha256(" ".join(",".join(_sha256(run) for run in series.runs) for series in group).encode())


def _sample_all(runs: Sequence[Run]) -> dict[Path, _Sampled]:
    """Return the sample of each run by its folder; much work is shared out to other processes."""
    size = sum(run.result.data.num_test * len(run.result.data.classes) for run in runs)
    samples = parallel_map(_sample, runs) if len(runs) > 1 and size > LARGE else map(_sample, runs)
    return dict(zip((run.folder for run in runs), samples, strict=True))


def _sample(run: Run) -> _Sampled:
    """Resample one run's test images and calibrate it on its validation images."""
    predictions = read_predictions(run.folder, run.result)
    scores = Scores(predictions.logits, predictions.labels, run.result.data.classes)
    whole = resampled_metrics(scores, np.ones((len(scores.labels), 1)))
    values = {name: float(value[0]) for name, value in whole.items()}
    resampled = resampled_metrics(scores, _counts(len(scores.labels), RESAMPLES))
    intervals = {
        name: significance.over_images(value, resampled[name], bounds=METRICS[name].bounds)
        for name, value in values.items()
    }
    record = {"estimates": _plain(intervals), "calibration": _calibration(predictions, scores)}
    return _Sampled(values, resampled, scores.correct, record)


@functools.lru_cache(maxsize=1)
def _counts(num_images: int, resamples: int) -> np.ndarray:
    """Return the draws of all runs with so many test images, made once in a process."""
    return draw_counts(num_images, resamples, np.random.default_rng(num_images))


def _calibration(predictions: Predictions, scores: Scores) -> dict:
    """Return a row of ``Uncertainty.calibration``; the temperature is fitted on validation images."""
    row = {"brier": float(METRICS["brier"].score(scores)), **_reliability(scores.probabilities, scores.labels)}
    if not len(predictions.val_labels):
        return row | {"temperature": None, "ece_scaled": None, "bins_scaled": None}
    temperature = calibration.fit_temperature(predictions.val_logits, predictions.val_labels)
    scaled = metrics.softmax(predictions.logits.astype(np.float64) / temperature)
    scaled = {f"{name}_scaled": value for name, value in _reliability(scaled, predictions.labels).items()}
    return row | {"temperature": temperature} | scaled


def _reliability(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    bins = calibration.reliability(probabilities, labels)
    sums = (np.nan_to_num(mean * bins.images).tolist() for mean in (bins.confidence, bins.accuracy))
    return {
        "ece": calibration.expected_calibration_error(probabilities, labels),
        "bins": dict(zip(("images", "confidence", "correct"), (bins.images.tolist(), *sums), strict=True)),
    }


def _joint(group: Sequence[Series], sampled: Mapping[Path, _Sampled]) -> dict:
    """Return what is kept of a model, its means over seeds, or of a pair: seeds are drawn alike for all metrics."""
    estimate = significance.mean_over_seeds if len(group) == 1 else significance.paired_difference
    estimates = {}
    for name in HEADLINE:
        samples = (_of_seeds(series, name, sampled) for series in group)
        estimates[name] = estimate(*samples, np.random.default_rng(0), bounds=METRICS[name].bounds)
    if len(group) == 1:
        return {"run": group[0].name, "estimates": _plain(estimates)}
    a, b = group
    p_values = [
        significance.mcnemar(sampled[mine.folder].correct, sampled[other.folder].correct)
        for mine, other in zip(a.runs, b.runs, strict=False)
    ]
    return {"a": a.name, "b": b.name, "estimates": _plain(estimates), "mcnemar": p_values}


def _of_seeds(series: Series, metric: str, sampled: Mapping[Path, _Sampled]) -> Sample:
    seeds = [sampled[run.folder] for run in series.runs]
    return Sample(
        np.array([seed.values[metric] for seed in seeds]), np.stack([seed.resampled[metric] for seed in seeds])
    )


def _pair_rows(comparison: Comparison, joint: Mapping[str, dict]) -> list[dict]:
    """Return the rows of ``Uncertainty.pairs``; the largest p of a pair's seeds stands for it (Berger 1982)."""
    pairs = [(a, b, joint[_key(a, b)]) for a, b in _pairs(comparison)]
    adjusted = significance.holm([max(record["mcnemar"]) for _, _, record in pairs])
    rows = []
    for (a, b, record), holm_p in zip(pairs, adjusted, strict=True):
        p_values = record["mcnemar"]
        tests = {"mcnemar_p_min": min(p_values), "mcnemar_p_max": max(p_values), "holm_p": holm_p}
        for row in _rows(record["estimates"]):
            name, estimate = row["metric"], Estimate(row.pop("value"), row["low"], row["high"])
            word = significance.verdict(estimate, higher_is_better=METRICS[name].higher_is_better)
            row |= {"difference": estimate.value, "verdict": word} | (tests if name == "accuracy" else {})
            rows.append({"dataset": comparison.dataset, "a": a.name, "b": b.name} | row)
    return rows


def _plain(estimates: Mapping[str, Estimate]) -> dict:
    """Return ``estimates`` as JSON has them: lists, with None for NaN."""
    return {name: [None if np.isnan(x) else float(x) for x in estimate] for name, estimate in estimates.items()}


def _rows(plain: Mapping[str, list]) -> list[dict]:
    """Return a row {metric, value, low, high} for each of the ``estimates`` as JSON has them."""
    numbers = {name: [np.nan if x is None else x for x in values] for name, values in plain.items()}
    return [{"metric": name, "value": v, "low": low, "high": high} for name, (v, low, high) in numbers.items()]


def _made_by() -> dict:
    """Return what a file must say to be of use: how, and of which metrics, its numbers were computed."""
    resampled = [name for name, metric in METRICS.items() if metric.resampled]
    return {"algorithm": ALGORITHM, "metrics": list(METRICS), "resampled": resampled, "headline": list(HEADLINE)}


def _read(path: Path, **expected: str) -> dict:
    """Return what was kept in ``path``, or an empty dict where it is missing, damaged, or not made as expected."""
    expected |= _made_by()
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not is_intact(record) or any(record.get(name) != value for name, value in expected.items()):
        return {}
    return {name: value for name, value in record.items() if name not in (*expected, "sha256")}


def _write(path: Path, record: dict) -> None:
    """Keep ``record``, strict JSON with its own hash; where the folder cannot be written, it is computed each time."""
    with contextlib.suppress(UserError):
        write_atomically(path, encode_record(_made_by() | record))
