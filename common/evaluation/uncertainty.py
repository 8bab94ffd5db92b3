"""What predictions say with their uncertainty: computed once, kept beside the runs, passed on as tables."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from common.evaluation import calibration, metrics
from common.evaluation.bootstrap import draw_counts
from common.evaluation.comparison import Comparison, Series
from common.evaluation.factorial import EFFECT_COLUMNS, effect_rows
from common.evaluation.folds import FoldSpread, Term, spread_of_sum
from common.evaluation.frames import table
from common.evaluation.kept_statistics import (
    image_record,
    keep,
    keep_run_statistics,
    read_kept,
    read_run_statistics,
)
from common.evaluation.metrics import HEADLINE, METRICS, resampled_metrics
from common.evaluation.plan import Plan, comparable_pairs, declared_pairs, plan_of
from common.evaluation.scores import Scores
from common.evaluation.significance import mcnemar
from common.evaluation.spread import Spread, image_error
from common.evaluation.verdicts import verdict_rows
from common.runs.predictions import (
    PREDICTIONS_FILE,
    Predictions,
    has_predictions,
    predictions_sha256,
    read_predictions,
)
from common.runs.result import Run
from common.runtime.errors import UserError
from common.runtime.files import sha256
from common.runtime.parallel import parallel_map

RESAMPLES = 2_000  # of the test images; leaves a 95 % end uncertain by a twentieth of a standard deviation
DIFFERENCES = "differences.json"
LARGE = 200_000  # images times classes: about a second's work, for which other processes are worth starting


@dataclass(frozen=True)
class Uncertainty:
    """Five tables, in the order of the comparisons; ``dataset`` and ``run`` are those of ``Frames``.

    ``value``, ``low`` and ``high`` are a number and the ends of its 95 % interval, NaN where it is not defined.
    """

    runs: pd.DataFrame
    """dataset, run, seed, metric, value, low, high: over the test images, each metric that is resampled."""
    means: pd.DataFrame
    """dataset, run, metric, value, low, high: the mean over the seeds, over images and seeds, each headline metric."""
    pairs: pd.DataFrame
    """The difference of two runs' means, a row a pair and headline metric; may have no row. Its columns are
    dataset, a, b, metric; repeat: "seed", "fold" or "draw", seeds_a, seeds_b: how many of them it rests on;
    deterministic_a, deterministic_b: whether one is all there is; num_test: images, of all folds together;
    declared: whether it is spoken of; family: how many of the data set are tested;
    margin: points that count as none, NaN for a metric without;
    difference: a - b; level, low, high: its interval, simultaneous among those tested, 95 % for itself of others;
    low_90, high_90: what decides on equivalence;
    p, p_adjusted: uncorrected, and Holm's, which is NaN where nothing is tested;
    verdict: one of ``significance``'s five words; winner: "a" or "b" where one is better, else "";
    detectable, detectable_by_images, seeds_needed, images_needed: see ``power``; of what was tested, the latter two
    where it is undecided and the margin is not detectable;
    mcnemar_p_by_seed: whether the two networks of a seed err equally often, "seed: p; ...", by accuracy only;
    unplanned_a, unplanned_b: how many seeds the plan does not name."""
    effects: pd.DataFrame
    """The effects of method and backbone where these are crossed (``factorial``); may have no row. Its columns are
    dataset; effect: "method", "backbone" or "interaction"; within: the backbone or method that stays the same, of an
    interaction the method whose gain over the probe is compared; first, other: what the difference is between;
    accuracy, log_odds: the value on either scale, with _low, _high, the ends of its interval, simultaneous in the
    family of effects, and _p_adjusted, Holm's;
    verdict: "positive", "negative", "depends_on_scale", "undecided" or "one_seed"."""
    calibration: pd.DataFrame
    """dataset, run, seed, brier, ece, temperature, ece_scaled, bins, bins_scaled: ``scaled`` is after the temperature,
    which is NaN (``bins_scaled`` None) without validation images. Bins are a dict of lists, an entry a bin of equal
    width: ``images``, and the sums of ``confidence`` and of ``correct`` over them."""


class _Sampled(NamedTuple):
    """What one run's predictions give; all runs of one number of test images are resampled alike."""

    resampled: dict[str, np.ndarray]  # (B,) by metric
    correct: np.ndarray  # (N,) bool
    record: dict  # what is kept of it


def compute_uncertainty(
    comparisons: Sequence[Comparison], *, contrasts: Sequence[tuple[str, str]] = (), margin: float | None = None
) -> Uncertainty:
    """Return intervals, calibration and pairwise differences of the models of each comparison.

    ``contrasts``, pairs of run names, and ``margin``, in points, take the place of those of a data set's plan
    (``plan.read_plan``). What is kept under the runs' folders (``kept_statistics``) is taken from there; the rest is
    computed, some tenths of a second a run of 10,000 images, and kept.

    Raises:
        UserError: a plan is damaged, or predictions are missing from which something is to be computed.
    """
    runs, means, pairs, effects, calibrations = [], [], [], [], []
    for comparison, kept in zip(comparisons, _kept(comparisons), strict=True):
        for series in comparison.series:
            model = {"dataset": comparison.dataset, "run": series.name}
            means += [model | _row(name, kept.of_models(name, series)) for name in HEADLINE]
            for run in series.runs:
                seed = model | {"seed": run.number}
                runs += [seed | _row(name, kept.of_run(name, run)) for name in METRICS if METRICS[name].resampled]
                calibrations.append(seed | kept.runs[run.folder]["calibration"])
        spreads = {name: functools.partial(kept.of_models, name) for name in HEADLINE}
        pairs += pair_rows(comparison, plan_of(comparison, contrasts, margin), spreads, kept.mcnemar)
        effects += effect_rows(comparison)
    calibrations = table(calibrations).astype({"temperature": float, "ece_scaled": float})
    pairs, effects = table(pairs, PAIR_COLUMNS), table(effects, EFFECT_COLUMNS)
    return Uncertainty(table(runs), table(means), pairs, effects, calibrations)


PAIR_COLUMNS = (
    *("dataset", "a", "b", "metric", "repeat", "seeds_a", "seeds_b", "deterministic_a", "deterministic_b", "num_test"),
    *("unplanned_a", "unplanned_b", "declared", "family", "margin", "difference", "level", "low", "high"),
    *("low_90", "high_90", "p", "p_adjusted", "verdict", "winner"),
    *("detectable", "detectable_by_images", "seeds_needed", "images_needed", "mcnemar_p_by_seed"),
)


@dataclass(frozen=True)
class _Kept:
    """What is kept of each run, by its folder, and of each model and pair of models, by ``_key``."""

    runs: Mapping[Path, dict]
    groups: Mapping[str, dict]

    def of_run(self, metric: str, run: Run) -> Spread:
        """Return what is kept of one run."""
        record = self.runs[run.folder]
        images = run.result.data.num_test
        return Spread(_number(record["values"][metric]), _number(record["image_errors"][metric]), images)

    def of_models(self, metric: str, *group: Series) -> Spread | FoldSpread:
        """Return ``metric`` of a model, its mean over the seeds, or the first model's minus the second's."""
        terms = [
            Term(sign, series, np.array([self.of_run(metric, run).value for run in series.runs]))
            for sign, series in zip((1, -1), group, strict=False)
        ]
        error = _number(self.groups[_key(*group)]["image_errors"][metric])
        return spread_of_sum(terms, error, slope=float(METRICS[metric].counts_images))

    def mcnemar(self, a: Series, b: Series) -> str:
        """Return the p of the networks of each seed, as a text."""
        return "; ".join(f"{seed}: {p:.3g}" for seed, p in self.groups[_key(a, b)]["mcnemar"].items())


def _kept(comparisons: Sequence[Comparison]) -> list[_Kept]:
    """Return what is kept of each comparison, after computing and keeping what is not, of all of them at once."""
    found = [_found(comparison) for comparison in comparisons]
    sampled = _sample_all([run for one in found for run in one.missing])
    return [_completed(comparison, one, sampled) for comparison, one in zip(comparisons, found, strict=True)]


class _Found(NamedTuple):
    """What is on disk of a comparison, the models and pairs of which nothing is, and the runs that these need."""

    kept: _Kept
    new_groups: dict[str, tuple[Series, ...]]
    missing: list[Run]


def _found(comparison: Comparison) -> _Found:
    runs = [run for series in comparison.series for run in series.runs]
    groups = [*((series,) for series in comparison.series), *comparable_pairs(comparison)]
    groups = {_key(*group): group for group in groups}
    joint = read_kept(comparison.folder / DIFFERENCES)
    records = {run.folder: read_run_statistics(run) for run in runs}
    new_groups = {key: group for key, group in groups.items() if key not in joint}
    _require_predictions(*new_groups.values())
    needed = {run.folder for group in new_groups.values() for series in group for run in series.runs}
    missing = [run for run in runs if run.folder in needed or not records[run.folder]]
    return _Found(_Kept(records, joint), new_groups, missing)


def _require_predictions(*groups: Sequence[Series]) -> None:
    """Refuse models and pairs that are to be resampled, and have a run without predictions (UserError)."""
    for group in groups:
        for run in (run for series in group for run in series.runs if not has_predictions(run.folder)):
            models = " and ".join(series.label for series in group)
            raise UserError(
                f"{str(run.folder / PREDICTIONS_FILE)!r} is needed: the {DIFFERENCES} of {run.dataset!r} holds nothing "
                f"of {models} with these seeds; restore either file, or let plot_results.py draw other `runs`"
            )


def _completed(comparison: Comparison, found: _Found, sampled: Mapping[Path, _Sampled]) -> _Kept:
    """Return what was found with what was missing, and keep it for the next time."""
    records, joint, new = found.kept.runs, found.kept.groups, {}
    for run in found.missing:
        if not records[run.folder]:
            new[run.folder] = sampled[run.folder].record
            keep_run_statistics(run, new[run.folder])
    joint = {**joint, **{key: _joint(group, sampled) for key, group in found.new_groups.items()}}
    if found.new_groups:
        keep(comparison.folder / DIFFERENCES, joint)
    return _Kept({**records, **new}, joint)


def _key(*group: Series) -> str:
    """Return the key under which a model's means or a pair's differences are kept: a hash of all its predictions."""
    hashes = [",".join(predictions_sha256(run.result) for run in series.runs) for series in group]
    return sha256(" ".join(hashes).encode())


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
    resampled = resampled_metrics(scores, _counts(len(scores.labels), RESAMPLES))
    record = {
        **image_record(predictions),
        "values": {name: _plain(value[0]) for name, value in whole.items()},
        "image_errors": {name: _image_error(name, draws, len(scores.labels)) for name, draws in resampled.items()},
        "calibration": _calibration(predictions, scores),
    }
    return _Sampled(resampled, scores.correct, record)


def _image_error(metric: str, draws: np.ndarray, num_images: int) -> float | None:
    return _plain(image_error(draws, num_images, is_count=METRICS[metric].counts_images))


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
    """Return what is kept of a model or a pair: its errors over images, the same for all seeds of both (pairing)."""
    errors = {}
    for name in HEADLINE:
        means = [np.mean([sampled[run.folder].resampled[name] for run in series.runs], axis=0) for series in group]
        draws = means[0] - means[1] if len(group) == 2 else means[0]
        errors[name] = _image_error(name, draws, group[0].runs[0].result.data.num_test)
    if len(group) == 1:
        return {"run": group[0].name, "image_errors": errors}
    a, b = group
    p_values = {
        seed: mcnemar(sampled[mine.folder].correct, sampled[other.folder].correct)
        for seed, mine, other in _networks(a, b)
    }
    return {"a": a.name, "b": b.name, "image_errors": errors, "mcnemar": p_values}


def _networks(a: Series, b: Series) -> list[tuple[str, Run, Run]]:
    """Return each seed (or fold) with its networks of a and b; a deterministic model's is that of every seed."""
    if a.is_deterministic:
        return [(str(run.number), a.runs[0], run) for run in (b.runs[:1] if b.is_deterministic else b.runs)]
    theirs = {run.number: run for run in b.runs}
    return [
        (str(run.number), run, b.runs[0] if b.is_deterministic else theirs[run.number])
        for run in a.runs
        if b.is_deterministic or run.number in theirs
    ]


def pair_rows(
    comparison: Comparison,
    plan: Plan,
    spreads: Mapping[str, Callable[[Series, Series], Spread | FoldSpread]],
    networks: Callable[[Series, Series], str] | None = None,
) -> list[dict]:
    """Return rows of ``Uncertainty.pairs``, for each of the ``comparable_pairs`` a row a metric.

    Args:
        spreads: by metric what returns the first model's mean minus the second's.
        networks: what returns ``mcnemar_p_by_seed``, which is empty without.
    """
    pairs = comparable_pairs(comparison)
    family = {
        "margin": plan.margin,
        "declared": declared_pairs(pairs, plan.contrasts),
        "one_seed": {(a.name, b.name) for a, b in pairs if a.is_one_seed or b.is_one_seed},
    }
    rows = {
        metric: verdict_rows({(a.name, b.name): spread(a, b) for a, b in pairs}, metric=metric, **family)
        for metric, spread in spreads.items()
    }
    return [
        {"dataset": comparison.dataset, "a": a.name, "b": b.name, "metric": metric}
        | {"repeat": a.repeat, "num_test": a.num_test}
        | _of_model(a, plan, "a")
        | _of_model(b, plan, "b")
        | rows[metric][a.name, b.name]
        | {"mcnemar_p_by_seed": networks(a, b) if networks and metric == "accuracy" else ""}
        for a, b in pairs
        for metric in spreads
    ]


def _of_model(series: Series, plan: Plan, letter: str) -> dict:
    """Return on what a model's mean rests, with the model's ``letter``."""
    unplanned = sum(run.seed not in plan.seeds for run in series.runs) if plan.seeds else 0
    about = {"seeds": len(series.runs), "deterministic": series.is_deterministic, "unplanned": unplanned}
    return {f"{name}_{letter}": value for name, value in about.items()}


def _plain(number: float) -> float | None:
    """Return ``number`` as JSON has it: None for NaN."""
    return None if np.isnan(number) else float(number)


def _number(plain: float | None) -> float:
    return np.nan if plain is None else plain


def _row(metric: str, spread: Spread) -> dict:
    """Return a row {metric, value, low, high}."""
    low, high = spread.estimate.interval(bounds=METRICS[metric].bounds)
    return {"metric": metric, "value": spread.estimate.value, "low": low, "high": high}
