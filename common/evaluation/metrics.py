"""Metrics of a classifier's logits: the numbers of ``result.json``, and the ROC curves of the figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.evaluation.calibration import expected_calibration_error, log_softmax
from common.runtime.errors import UserError


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities (N, C) float64 of ``logits`` (N, C).

    In float64 because float32 rounds confident predictions to exactly 1: ties, which change an AUC.
    """
    return np.exp(log_softmax(logits))


def score(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> tuple[dict, list[str]]:
    """Score one set of predictions; return the ``metrics`` record of ``result.json`` and the notes that explain it.

    A prediction is the class of the largest logit, the earlier class on a tie. Macro precision, recall and F1, and
    balanced accuracy, are means over the classes that have images. What cannot be computed is None, never NaN, with
    one note for each reason: the values of a class without images, its AUC, and with it the macro AUC.

    Args:
        logits: (N, C) float32, N at least 1.
        labels: (N,) int, each in 0..C-1.
        classes: the C names.

    Returns:
        A dict of Python floats, ints, lists and None (``loss`` in nats, all others in 0..1), and a list of lines.

    Raises:
        UserError: there is no image, or a logit is infinite or not a number.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    _check(logits, labels, classes)
    log_probabilities = log_softmax(logits)
    probabilities = np.exp(log_probabilities)
    predicted = logits.argmax(axis=1)
    matrix = _confusion_matrix(labels, predicted, len(classes))
    per_class, macro = _per_class(labels, predicted, probabilities, classes)
    present = [row for row in per_class if row["support"]]
    aucs = [row["auc"] for row in per_class]
    metrics = {
        "loss": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        "accuracy": float(np.trace(matrix) / len(labels)),
        "balanced_accuracy": macro["recall"],
        "f1_macro": macro["f1"],
        "f1_weighted": float(sum(row["f1"] * row["support"] for row in present) / len(labels)),
        "precision_macro": macro["precision"],
        "recall_macro": macro["recall"],
        "auc_macro": None if None in aucs else float(np.mean(aucs)),
        "auc_micro": _auc(np.eye(len(classes), dtype=bool)[labels].ravel(), probabilities.ravel()),
        "ece": expected_calibration_error(probabilities, labels),
        "per_class": per_class,
        "confusion_matrix": matrix.tolist(),
    }
    return metrics, _notes(per_class)


def roc_curves(logits: np.ndarray, labels: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return true-positive rates (C + 2, G) float64 at the false-positive rates ``grid`` (G,).

    Rows 0..C-1 are the classes one against the rest, NaN where a class has no images or no others; row C is their
    macro average (mean of the curves at each rate, as in scikit-learn's ROC example), row C+1 the micro average.
    """
    probabilities = softmax(logits)
    one_hot = np.eye(logits.shape[1], dtype=bool)[labels]
    curves = [_roc(one_hot[:, c], probabilities[:, c], grid) for c in range(logits.shape[1])]
    macro = np.mean([curve for curve in curves if not np.isnan(curve[0])] or curves[:1], axis=0)
    return np.stack([*curves, macro, _roc(one_hot.ravel(), probabilities.ravel(), grid)])


def _check(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
    """Refuse what has no score: a caller's mistake is a ValueError, the user's data or training a UserError."""
    if len(labels) == 0:
        raise UserError("there is no image to score; give the split at least one")
    if logits.shape != (len(labels), len(classes)):
        raise ValueError(f"logits are {logits.shape}, expected {(len(labels), len(classes))}")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels lie in {labels.min()}..{labels.max()}, expected 0..{len(classes) - 1}")
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad:
        raise UserError(
            f"the model's logits are infinite or not a number for {bad} of {len(labels)} images: the training "
            "diverged; lower `lr`, or use `precision` fp32"
        )


def _confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return counts (C, C) int, true by predicted; C is given because a matrix inferred from the labels shrinks."""
    from sklearn.metrics import confusion_matrix  # two seconds to import

    return confusion_matrix(labels, predicted, labels=range(num_classes))


def _per_class(
    labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> tuple[list[dict], dict]:
    """Return one record a class, and the means of precision, recall and F1 over the classes that have images."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(labels, predicted, labels=range(len(classes)), zero_division=0)
    records = []
    for index, (name, *values, support) in enumerate(zip(classes, *columns, strict=True)):
        values = [float(value) if support else None for value in values]
        record = {"class": name, **dict(zip(("precision", "recall", "f1"), values, strict=True))}
        auc = _auc(labels == index, probabilities[:, index])
        records.append({**record, "auc": auc, "support": int(support)})
    present = [record for record in records if record["support"]]
    macro = {key: float(np.mean([record[key] for record in present])) for key in ("precision", "recall", "f1")}
    return records, macro


def _auc(positive: np.ndarray, scores: np.ndarray) -> float | None:
    """Return the area under the ROC curve, or None where there are no positives or no negatives."""
    from sklearn.metrics import roc_auc_score

    if positive.all() or not positive.any():
        return None
    return min(1.0, float(roc_auc_score(positive, scores)))  # its sum of trapezoids can round to just above 1


def _roc(positive: np.ndarray, scores: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return the ROC curve's true-positive rates at the false-positive rates ``grid``, or NaNs without a curve.

    As scikit-learn's ``roc_curve``, without the two seconds that importing it takes in each process of the figures.
    """
    if positive.all() or not positive.any():
        return np.full(len(grid), np.nan)
    order = np.argsort(-scores)
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # the last of each group of ties
    hits = np.cumsum(positive[order])[ends]
    false_alarms = 1 + ends - hits
    return np.interp(grid, np.append(0, false_alarms / false_alarms[-1]), np.append(0, hits / hits[-1]))


def _notes(per_class: list[dict]) -> list[str]:
    """Return a line for each reason why a value is None."""
    absent = [row["class"] for row in per_class if not row["support"]]
    alone = [row["class"] for row in per_class if row["support"] and row["auc"] is None]
    notes = [f"class {name!r} has no image here: its values are null, and macro means leave it out" for name in absent]
    notes += [f"class {name!r} is the only one with images here: its AUC is null" for name in alone]
    if any(row["auc"] is None for row in per_class):
        notes.append("auc_macro is null: it needs the AUC of every class")
    return notes


def scores_in_words(metrics: dict[str, Any]) -> str:
    """Return accuracy, macro F1 and macro AUC of a ``metrics`` block in words."""
    auc = "not defined" if metrics["auc_macro"] is None else f"{metrics['auc_macro']:.4f}"
    return f"accuracy {metrics['accuracy']:.4f}  F1 (macro) {metrics['f1_macro']:.4f}  AUC (macro) {auc}"
