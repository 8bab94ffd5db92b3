"""The results as tidy tables, which figures, tables and the report read: a row a run, an epoch, or a class."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from common.evaluation.comparison import Comparison
from common.evaluation.corruption_scores import corruption_rows
from common.evaluation.machines import machine_text
from common.evaluation.metrics import METRICS
from common.evaluation.timings import read_timing
from common.runs.methods import METHODS
from common.runs.record import RunResult
from common.runs.result import Run
from common.runs.schema import as_json

RUN = ["dataset", "run", "seed", "label"]
SCORES = [f"{split}_{metric}" for split in ("test", "val") for metric in METRICS]
SIZES = ["total_params", "trainable_params", "trainable_percent", "forward_flops"]
COSTS = [
    *("train_flops", "train_seconds", "feature_seconds", "total_train_seconds", "eval_seconds"),
    *("saved_bytes", "backbone_bytes", "deployed_bytes"),
]
MAY_BE_UNKNOWN = ["forward_flops", "train_flops", "feature_seconds", "eval_seconds", "backbone_bytes", "deployed_bytes"]
RATES = ["train_images_per_second", "train_features_per_second"]
TIMES = ["latency_seconds", "images_per_second"]
CLASS_SCORES = ["precision", "recall", "f1", "auc"]


@dataclass(frozen=True)
class Frames:
    """Four tables of the runs compared, in their order; each row says which ``dataset``, ``run``, ``seed``, ``label``.

    ``run`` is the folder's name (without a fold), shared by the seeds of one model; ``seed`` is the fold's number where
    there are ``folds``. What is not known is NaN.
    """

    runs: pd.DataFrame
    """A row a run and seed: method, family, counts, costs, and ``test_<metric>`` and ``val_<metric>`` of METRICS."""
    history: pd.DataFrame
    """A row an epoch and ``split`` ("train" or "val"): loss, accuracy, and whether the epoch was ``kept``."""
    per_class: pd.DataFrame
    """A row a ``class`` of the test split, in the data set's order: precision, recall, f1, auc, support."""
    corruptions: pd.DataFrame
    """A row a ``kind`` and ``severity`` of corrupted test images, where a run was scored on them: accuracy, ece."""


def frames_of(comparisons: Sequence[Comparison], gains: Mapping[tuple[str, str], float] | None = None) -> Frames:
    """Return the tables of all runs of ``comparisons``; ``gains`` by (data set, run) are of ``runs.convergence``."""
    gains = gains or {}
    members = [
        (dict(zip(RUN, (run.dataset, series.name, run.number, series.label), strict=True)), series, run)
        for comparison in comparisons
        for series in comparison.series
        for run in series.runs
    ]
    runs = [
        key | {"method": series.method, "family": series.family} | _run_row(run, gains) for key, series, run in members
    ]
    history = [key | row for key, _, run in members for row in _history_rows(run)]
    per_class = [key | as_json(row) for key, _, run in members for row in run.test.per_class]
    corruptions = [key | row for key, _, run in members for row in corruption_rows(run)]
    may_be_unknown = [*SCORES, *MAY_BE_UNKNOWN, *RATES, *TIMES, "best_epoch"]
    runs = table(runs).astype(dict.fromkeys(may_be_unknown, float))
    runs[TIMES] = runs.groupby(["dataset", "run"])[TIMES].transform("mean")  # of a model: its seeds compute alike
    return Frames(
        runs=runs,
        history=table(history, [*RUN, "epoch", "split", "loss", "accuracy", "kept"]),
        per_class=table(per_class).astype(dict.fromkeys(CLASS_SCORES, float)),
        corruptions=table(corruptions, [*RUN, "kind", "severity", "accuracy", "ece"]),
    )


def table(rows: Sequence[Mapping], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a table of ``rows``, whose texts are kept whole."""
    keep_texts_whole()
    return pd.DataFrame(rows, columns=columns)


def keep_texts_whole() -> None:
    """Let pandas keep texts as Python does, in all tables of this process.

    A folder's name may hold half a letter, which pyarrow's strings, pandas' own where it is installed, cannot store.
    pandas asks again with each table that follows from another: processes that only draw need this as well.
    """
    pd.set_option("mode.string_storage", "python")


def _run_row(run: Run, gains: Mapping[tuple[str, str], float]) -> dict:
    result, timing = run.result, read_timing(run)
    splits = (("test", result.test), ("val", result.val))
    return {
        "folds": run.folds,
        "backbone": result.backbone,
        "weights_source": result.model.weights.source,
        **{name: getattr(result.data, name) for name in ("num_train", "num_val", "num_test")},
        **{f"{split}_{metric}": block.scores.get(metric) for split, block in splits for metric in METRICS},
        **{name: getattr(result.model, name) for name in SIZES},
        **{name: getattr(result.efficiency, name) for name in COSTS},
        **_rates(result),
        **{name: getattr(timing, name, None) for name in TIMES},
        "timing_machine": machine_text(timing.environment) if timing else None,
        "timed_at": str(timing.environment.get("created")) if timing else None,
        "best_epoch": result.best_epoch,
        "kept_train_seconds": result.kept_train_seconds,
        "is_tuned": len(result.trials) > 1 or result.config.get("tuned_on") is not None,
        "rate_is_at_end": _rate_is_at_end(result),
        "ends_at_best": _ends_at_best(result),
        "gain": gains.get((run.dataset, run.model_name), np.nan),
        "machine": machine_text(result.environment),
    }


def _rates(result: RunResult) -> dict[str, float | None]:
    """Return the rate of the training loop as one of RATES: what a head on kept features steps over is no image."""
    is_of_features = METHODS[result.method].reads_features and result.config.get("augment", "none") == "none"
    rate = result.efficiency.train_images_per_second
    return dict.fromkeys(RATES) | {RATES[is_of_features]: rate}


def _rate_is_at_end(result: RunResult) -> bool:
    """Whether the best of several learning rates was the highest or the lowest: one beyond it may be better."""
    rates = [trial["lr"] for trial in result.trials if "lr" in trial]
    return len(rates) > 1 and bool(result.history) and result.history[0].lr in (min(rates), max(rates))


def _ends_at_best(result: RunResult) -> bool:
    """Whether training at a constant rate was best in its last epoch; where the rate falls to 0 that says nothing."""
    is_constant = result.config.get("schedule", "constant") == "constant"
    return is_constant and bool(result.history) and result.best_epoch == result.history[-1].epoch


def _history_rows(run: Run) -> Iterator[dict]:
    for row in run.result.history:
        for split in ("train", "val"):
            values = {name: getattr(row, f"{split}_{name}") for name in ("loss", "accuracy")}
            yield {"epoch": row.epoch, "split": split, **values, "kept": row.epoch == run.result.best_epoch}
