"""What a reader of the report can look into: each run's test predictions, its curves, and suspected label errors."""

import base64
import functools
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pandas as pd

from common.evaluation import metrics
from common.evaluation.comparison import Comparison, Series
from common.figures.palette import run_styles
from common.report.thumbnails import ThumbnailSheet
from common.runs.predictions import read_predictions
from common.runs.result import Run

FULL_CONFIDENCE = 65_535  # a confidence of 1, in two bytes
SUSPECT_CONFIDENCE = 0.9  # mean over the runs, from which an agreed contradiction of the label is shown
MOST_SUSPECTS = 24
SHOWN_AT_ONCE = 12  # images of one cell or list, before "show more"
CURVES = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")


@dataclass(frozen=True, eq=False)
class TestPredictions:
    """The N test images of one data set, and what each of the R runs said to each of them.

    The folds of a model count as one run: each image was tested by one of them.
    """

    labels: np.ndarray  # (N,) int64
    indices: np.ndarray  # (N,) int64, positions in the test split's natural order
    predicted: np.ndarray  # (R, N) int64
    confidence: np.ndarray  # (R, N) uint16, the largest probability in steps of 1 / FULL_CONFIDENCE

    @property
    def right(self) -> np.ndarray:
        """Where a run is right, (R, N) bool."""
        return self.predicted == self.labels


def read_test_predictions(comparison: Comparison) -> TestPredictions:
    """Read the predictions of every run of ``comparison``, in the order of ``_tested``: all are of the same images."""
    by_run = [_logits_of(*runs) for series in comparison.series for _, runs in _tested(series)]
    if comparison.folds > 1:  # of a model that is not finished some folds are missing
        shared = functools.reduce(np.intersect1d, [indices for _, _, indices in by_run])
        by_run = [_at(shared, *arrays) for arrays in by_run]
    largest = np.stack([metrics.softmax(logits).max(axis=1) for logits, _, _ in by_run])
    _, labels, indices = by_run[0]
    return TestPredictions(
        labels=labels,
        indices=indices,
        predicted=np.stack([logits.argmax(axis=1) for logits, _, _ in by_run]),
        confidence=np.rint(largest * FULL_CONFIDENCE).astype(np.uint16),
    )


def _tested(series: Series) -> list[tuple[str, tuple[Run, ...]]]:
    """Return the name and the runs of each row of ``TestPredictions``: a seed, or all folds."""
    if series.folds > 1:
        return [("all folds", series.runs)]
    return [(f"seed {run.seed}", (run,)) for run in series.runs]


def _logits_of(*runs: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logits (N, C), labels and indices (N,) of the test images of ``runs`` together."""
    parts = [read_predictions(run.folder, run.result) for run in runs]
    return tuple(np.concatenate([getattr(part, name) for part in parts]) for name in ("logits", "labels", "indices"))


def _at(shared: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return of ``arrays``, whose last are indices, what belongs to the ascending ``shared`` ones, in their order."""
    order = np.argsort(arrays[-1])
    places = order[np.searchsorted(arrays[-1], shared, sorter=order)]
    return tuple(array[places] for array in arrays)


def suspects(predictions: TestPredictions) -> list[dict]:
    """Return the images whose label every run contradicts with the same class, at a mean confidence of 0.9 or more.

    The most confident first: {position, predicted, mean, lowest}, confidences in 0..1.
    A suspicion, no proof: networks are confident in their mistakes, too.
    """
    agreed = (predictions.predicted == predictions.predicted[0]).all(axis=0) & ~predictions.right[0]
    mean = predictions.confidence.mean(axis=0) / FULL_CONFIDENCE
    found = np.flatnonzero(agreed & (mean >= SUSPECT_CONFIDENCE))
    return [
        {
            "position": int(position),
            "predicted": int(predictions.predicted[0, position]),
            "mean": float(mean[position]),
            "lowest": float(predictions.confidence[:, position].min() / FULL_CONFIDENCE),
        }
        for position in found[np.argsort(-mean[found], kind="stable")]
    ]


def choose_thumbnails(predictions: TestPredictions, most: int) -> np.ndarray:
    """Return which test images get a thumbnail: ascending positions, at most ``most``.

    All of a small test split; else the suspects, then what stands first among a cell's mistakes or where two runs
    disagree, then what stands first among a cell's correct images.
    """
    count = len(predictions.labels)
    if count <= most:
        return np.arange(count)
    place = np.full(count, count)  # the earliest at which an image is shown
    for right, predicted, confidence in zip(
        predictions.right, predictions.predicted, predictions.confidence, strict=True
    ):
        ranks = _ranks(predictions.labels * (predicted.max() + 1) + predicted, confidence)
        ranks[ranks >= SHOWN_AT_ONCE] = count
        place = np.minimum(place, ranks + SHOWN_AT_ONCE * right)
    for one, other in permutations(range(len(predictions.predicted)), 2):
        only = np.flatnonzero(predictions.right[one] & ~predictions.right[other])
        first = only[np.argsort(-predictions.confidence[other, only].astype(int), kind="stable")][:SHOWN_AT_ONCE]
        place[first] = np.minimum(place[first], np.arange(len(first)))
    place[[suspect["position"] for suspect in suspects(predictions)[:MOST_SUSPECTS]]] = -1
    chosen = np.argsort(place, kind="stable")[:most]
    return np.sort(chosen[place[chosen] < count])


def curves_record(comparison: Comparison, remark: str) -> dict:
    """Return what the page's script needs of a data set whose test images are not shown; ``remark`` says why."""
    styles = run_styles(comparison)
    models = [
        {
            "label": series.label,
            "color": styles[series.name].color,
            "runs": [_run_record(run) for run in series.runs],
            "tested": [],
        }
        for series in comparison.series
    ]
    return {"title": comparison.title, "models": models, "labels": None, "remark": remark}


def explorer_record(
    comparison: Comparison, predictions: TestPredictions, sheet: ThumbnailSheet | None, remark: str
) -> dict:
    """Return what the page's script needs of one data set; ``remark`` says why there is no ``sheet``, or is empty."""
    record, found = curves_record(comparison, remark), suspects(predictions)
    for model, series in zip(record["models"], comparison.series, strict=True):
        model["tested"] = [{"name": name} for name, _ in _tested(series)]
    rows = [row for model in record["models"] for row in model["tested"]]
    for row, predicted, confidence in zip(rows, predictions.predicted, predictions.confidence, strict=True):
        row |= {"predicted": _packed(predicted, "<u2"), "confidence": _packed(confidence, "<u2")}
    return record | {
        "classes": comparison.data.classes,
        "labels": _packed(predictions.labels, "<u2"),
        "indices": _packed(predictions.indices, "<u4"),
        "suspects": found[:MOST_SUSPECTS],
        "suspected": len(found),
        "sheet": sheet and {**sheet.layout, "pictured": _packed(sheet.positions, "<u4")},
    }


def _run_record(run: Run) -> dict:
    """Return a run's seed and learning curves."""
    history = run.result.history
    curves = {name: [getattr(row, name) for row in history] for name in CURVES}
    return {"seed": run.number, "epochs": [row.epoch for row in history], "kept": run.result.best_epoch, **curves}


def _ranks(groups: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Return each image's place within its group, the most confident first and of equals the earlier: (N,) int64."""
    ranks = pd.Series(confidence).groupby(groups).rank("first", ascending=False)
    return ranks.to_numpy(dtype=np.int64) - 1


def _packed(values: np.ndarray, dtype: str) -> str:
    """Return integers as base64 of little-endian bytes: 10,000 confidences are 27 kB, as JSON they would be 80."""
    return base64.b64encode(values.astype(dtype).tobytes()).decode()
