"""What a classifier's predictions are scored by. A metric is one entry of ``METRICS``: all else follows from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from common.evaluation import bootstrap, calibration
from common.evaluation.calibration import log_softmax
from common.runtime.errors import UserError

BLOCK = 8_000_000  # counts in float32 at a time: 32 MB; fewer pay the set-up of each class's matrices more often


@dataclass(frozen=True, eq=False)
class Scores:
    """N predictions of C classes, as the metrics read them; what several metrics need is computed once."""

    logits: np.ndarray  # (N, C) float32
    labels: np.ndarray  # (N,) int, each in 0..C-1
    classes: Sequence[str]  # the C names

    @cached_property
    def log_probabilities(self) -> np.ndarray:
        """Their softmax's logarithm (N, C) float64."""
        return log_softmax(self.logits)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Their softmax (N, C) float64."""
        return np.exp(self.log_probabilities)

    @cached_property
    def predicted(self) -> np.ndarray:
        """The class of the largest logit (N,) int64, the earlier class on a tie."""
        return self.logits.argmax(axis=1)

    @cached_property
    def correct(self) -> np.ndarray:
        """Where the prediction is the label (N,) bool."""
        return self.predicted == self.labels

    @cached_property
    def per_class(self) -> list[dict]:
        """One record a class: {class, precision, recall, f1, auc, support}, None where it is not defined."""
        return _per_class(self)

    def macro(self, name: str) -> float:
        """Return the mean of ``name`` of ``per_class`` over the classes that have images."""
        return float(np.mean([row[name] for row in self.per_class if row["support"]]))

    def in_top(self, number: int) -> np.ndarray:
        """Return where the label is among the ``number`` largest logits (N,) bool, the earlier class on a tie."""
        own = self.logits[np.arange(len(self.labels)), self.labels][:, None]
        earlier = np.arange(self.logits.shape[1]) < self.labels[:, None]
        return ((self.logits > own) | (self.logits == own) & earlier).sum(axis=1) < number


@dataclass(frozen=True)
class Metric:
    """How a metric is computed and shown."""

    label: str
    """Its name in headings, axes and the terminal."""
    digits: int
    """Behind the point."""
    score: Callable[[Scores], float | None]
    """Its value; None where it is not defined."""
    resampled: Callable[[Scores, np.ndarray], np.ndarray] | None = None
    """Its values (B,) float64 on the resamples ``counts`` (N, B) float32, NaN where not defined; None: no interval."""
    higher_is_better: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    """Its lowest and highest value: no interval goes beyond."""
    chance: Callable[[np.ndarray], float] | None = None
    """What guessing gives, from the numbers of test images of each class (C,)."""
    headline: bool = False
    """Whether bars, differences, pairs of models and the short tables show it; it is then resampled."""
    null_because: str = ""
    """Why it is None, where it may be."""

    @property
    def word(self) -> str:
        """Its name within a sentence: "accuracy", but "F1 (macro)"."""
        return self.label[0].lower() + self.label[1:] if self.label[1].islower() else self.label


METRICS: Mapping[str, Metric] = {
    "loss": Metric(
        "Cross-entropy (nats)",
        3,
        lambda scores: float(-scores.log_probabilities[np.arange(len(scores.labels)), scores.labels].mean()),
        higher_is_better=False,
        bounds=(0.0, np.inf),
    ),
    "accuracy": Metric(
        "Accuracy",
        3,
        lambda scores: float(scores.correct.mean()),
        lambda scores, counts: bootstrap.resampled_mean(scores.correct, counts),
        chance=lambda support: support.max() / support.sum(),
        headline=True,
    ),
    "balanced_accuracy": Metric("Balanced accuracy", 3, lambda scores: scores.macro("recall")),
    "f1_macro": Metric(
        "F1 (macro)",
        3,
        lambda scores: scores.macro("f1"),
        lambda scores, counts: bootstrap.resampled_f1_macro(
            scores.predicted, scores.labels, len(scores.classes), counts
        ),
        headline=True,
    ),
    "f1_weighted": Metric(
        "F1 (weighted)",
        3,
        lambda scores: float(
            sum(row["f1"] * row["support"] for row in scores.per_class if row["support"]) / len(scores.labels)
        ),
    ),
    "precision_macro": Metric("Precision (macro)", 3, lambda scores: scores.macro("precision")),
    "recall_macro": Metric("Recall (macro)", 3, lambda scores: scores.macro("recall")),
    "auc_macro": Metric(
        "AUC (macro)",
        4,
        lambda scores: _mean_or_none([row["auc"] for row in scores.per_class]),
        lambda scores, counts: bootstrap.resampled_auc_macro(scores.probabilities, scores.labels, counts),
        chance=lambda support: 0.5,
        headline=True,
        null_because="it needs the AUC of every class",
    ),
    "auc_micro": Metric(
        "AUC (micro)",
        4,
        lambda scores: _auc(_one_hot(scores).ravel(), scores.probabilities.ravel()),
        chance=lambda support: 0.5,
    ),
    "ece": Metric(
        "ECE",
        3,
        lambda scores: calibration.expected_calibration_error(scores.probabilities, scores.labels),
        higher_is_better=False,
    ),
    "brier": Metric(
        "Brier score",
        3,
        lambda scores: calibration.brier_score(scores.probabilities, scores.labels),
        lambda scores, counts: bootstrap.resampled_mean(
            ((scores.probabilities - _one_hot(scores)) ** 2).sum(axis=1), counts
        ),
        higher_is_better=False,
        bounds=(0.0, 2.0),
    ),
    "top5_accuracy": Metric(
        "Top-5 accuracy",
        3,
        lambda scores: float(scores.in_top(5).mean()) if len(scores.classes) > 5 else None,
        lambda scores, counts: (
            bootstrap.resampled_mean(scores.in_top(5), counts)
            if len(scores.classes) > 5
            else np.full(counts.shape[1], np.nan)
        ),
        null_because="it needs more than five classes",
    ),
}

HEADLINE = tuple(name for name, metric in METRICS.items() if metric.headline)


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
        A dict of Python floats, ints, lists and None (each of ``METRICS``, ``per_class``, ``confusion_matrix``), and
        a list of lines.

    Raises:
        UserError: there is no image, or a logit is infinite or not a number.
    """
    scores = Scores(np.asarray(logits), np.asarray(labels), classes)
    _check(scores)
    record = {name: metric.score(scores) for name, metric in METRICS.items()}
    notes = _notes(scores.per_class)
    notes += [f"{name} is null: {METRICS[name].null_because}" for name, value in record.items() if value is None]
    return record | {"per_class": scores.per_class, "confusion_matrix": _confusion_matrix(scores).tolist()}, notes


def resampled_metrics(scores: Scores, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return each metric that has ``resampled`` on each resample ``counts`` (N, B), whole numbers: (B,) float64.

    A column of ones gives the metrics of the test split itself.
    """
    metrics = {name: metric.resampled for name, metric in METRICS.items() if metric.resampled}
    width = max(1, BLOCK // len(scores.labels))
    blocks = [
        {name: resampled(scores, block) for name, resampled in metrics.items()}
        for block in (counts[:, start : start + width].astype(np.float32) for start in range(0, counts.shape[1], width))
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in metrics}


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


def scores_in_words(record: Mapping[str, Any]) -> str:
    """Return the headline metrics of a ``metrics`` record in words, with a digit more than tables have."""
    return "  ".join(f"{METRICS[name].word} {_text(record[name], METRICS[name].digits + 1)}" for name in HEADLINE)


def _text(value: float | None, digits: int) -> str:
    return "not defined" if value is None else f"{value:.{digits}f}"


def _check(scores: Scores) -> None:
    """Refuse what has no score: a caller's mistake is a ValueError, the user's data or training a UserError."""
    logits, labels, expected = scores.logits, scores.labels, (len(scores.labels), len(scores.classes))
    if len(labels) == 0:
        raise UserError("there is no image to score; give the split at least one")
    if logits.shape != expected:
        raise ValueError(f"logits are {logits.shape}, expected {expected}")
    if labels.min() < 0 or labels.max() >= len(scores.classes):
        raise ValueError(f"labels lie in {labels.min()}..{labels.max()}, expected 0..{len(scores.classes) - 1}")
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad:
        raise UserError(
            f"the model's logits are infinite or not a number for {bad} of {len(labels)} images: the training "
            "diverged; lower `lr`, or use `precision` fp32"
        )


def _confusion_matrix(scores: Scores) -> np.ndarray:
    """Return counts (C, C) int, true by predicted; C is given because a matrix inferred from the labels shrinks."""
    from sklearn.metrics import confusion_matrix  # two seconds to import

    return confusion_matrix(scores.labels, scores.predicted, labels=range(len(scores.classes)))


def _per_class(scores: Scores) -> list[dict]:
    from sklearn.metrics import precision_recall_fscore_support

    indices = range(len(scores.classes))
    columns = precision_recall_fscore_support(scores.labels, scores.predicted, labels=indices, zero_division=0)
    records = []
    for index, (name, *values, support) in enumerate(zip(scores.classes, *columns, strict=True)):
        values = [float(value) if support else None for value in values]
        record = {"class": name, **dict(zip(("precision", "recall", "f1"), values, strict=True))}
        auc = _auc(scores.labels == index, scores.probabilities[:, index])
        records.append({**record, "auc": auc, "support": int(support)})
    return records


def _one_hot(scores: Scores) -> np.ndarray:
    return np.eye(len(scores.classes), dtype=bool)[scores.labels]


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    return None if None in values else float(np.mean(values))


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
    """Return a line for each class of which a value is None."""
    absent = [row["class"] for row in per_class if not row["support"]]
    alone = [row["class"] for row in per_class if row["support"] and row["auc"] is None]
    notes = [f"class {name!r} has no image here: its values are null, and macro means leave it out" for name in absent]
    return notes + [f"class {name!r} is the only one with images here: its AUC is null" for name in alone]
