"""What predictions are scored by. A metric is one entry of ``METRICS``: records, tables, figures, report follow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.evaluation.bootstrap import Resamples, resampled_auc_macro, resampled_f1_macro, resampled_mean
from common.evaluation.calibration import expected_calibration_error, log_softmax
from common.evaluation.scores import Scores, auc
from common.runtime.errors import UserError

BLOCK = 20_000_000  # counts at a time: 40 and 80 MB; fewer pay the set-up of each class's sums more often


@dataclass(frozen=True)
class Metric:
    """How a metric is computed and shown; NaN is a value that is not defined."""

    label: str  # in headings, on axes, in the terminal
    score: Callable[[Scores], float]
    resampled: Callable[[Scores, Resamples], np.ndarray] | None = None
    """Its values (B,) float64 on ``Resamples``, which may lack classes; None: it has no interval."""
    digits: int = 3  # behind the point
    higher_is_better: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)  # its lowest and highest value: no interval goes beyond
    chance: Callable[[np.ndarray], float] | None = None
    """What guessing gives, from the numbers of test images of each class (C,)."""
    headline: bool = False  # whether bars, differences and the short tables show it; it is then resampled
    counts_images: bool = False
    """Whether an image in N moves it by about 1/N: it then has a margin in points and a least error over images."""
    null_because: str = ""  # why it may be null in a record

    def __post_init__(self) -> None:
        if self.headline and not self.resampled:
            raise ValueError(f"{self.label} is a headline metric and needs ``resampled``: figures show its interval")

    @property
    def word(self) -> str:
        """Its name within a sentence: "accuracy", but "F1 (macro)"."""
        return self.label[0].lower() + self.label[1:] if self.label[1].islower() else self.label


def _image_mean(label: str, of_images: Callable[[Scores], np.ndarray], **options: Any) -> Metric:
    """Return the metric that is the mean of one value an image, (N,)."""
    return Metric(
        label,
        lambda scores: of_images(scores).mean(),
        lambda scores, resamples: resampled_mean(of_images(scores), resamples),
        **options,
    )


def _class_mean(label: str, column: str, resampled: Callable | None = None, **options: Any) -> Metric:
    """Return the metric that is the mean of a column of ``Scores.per_class`` over the classes that have images."""
    return Metric(
        label,
        lambda scores: np.mean([row[column] for row in scores.per_class if row["support"]]),
        resampled,
        **options,
    )


def _surprise(scores: Scores) -> np.ndarray:
    return -scores.log_probabilities[np.arange(len(scores.labels)), scores.labels]


def _squared_error(scores: Scores) -> np.ndarray:
    """Return the squared error summed over the C probabilities, 0..2, of each image (Brier 1950)."""
    return ((scores.probabilities - scores.one_hot) ** 2).sum(axis=1)


def _in_top_five(scores: Scores) -> np.ndarray:
    return scores.in_top(5) if len(scores.classes) > 5 else np.full(len(scores.labels), np.nan)


def _f1_weighted(scores: Scores) -> float:
    return sum(row["f1"] * row["support"] for row in scores.per_class if row["support"]) / len(scores.labels)


def _auc_macro(scores: Scores) -> float:
    return np.array([row["auc"] for row in scores.per_class], dtype=np.float64).mean()


def _largest_share(support: np.ndarray) -> float:
    return support.max() / support.sum()


_ERROR = {"higher_is_better": False}
_COUNT = {"counts_images": True}
_AREA = {"digits": 4, "chance": lambda support: 0.5}
METRICS: dict[str, Metric] = {
    "loss": _image_mean("Cross-entropy (nats)", _surprise, bounds=(0.0, np.inf), **_ERROR),
    "accuracy": _image_mean("Accuracy", lambda scores: scores.correct, chance=_largest_share, headline=True, **_COUNT),
    "balanced_accuracy": _class_mean("Balanced accuracy", "recall"),
    "f1_macro": _class_mean("F1 (macro)", "f1", resampled_f1_macro, headline=True, **_COUNT),
    "f1_weighted": Metric("F1 (weighted)", _f1_weighted),
    "precision_macro": _class_mean("Precision (macro)", "precision"),
    "recall_macro": _class_mean("Recall (macro)", "recall"),
    "auc_macro": Metric(
        "AUC (macro)",
        _auc_macro,
        resampled_auc_macro,
        headline=True,
        null_because="it needs the AUC of every class",
        **_AREA,
    ),
    "auc_micro": Metric(
        "AUC (micro)", lambda scores: auc(scores.one_hot.ravel(), scores.probabilities.ravel()), **_AREA
    ),
    "ece": Metric("ECE", lambda scores: expected_calibration_error(scores.probabilities, scores.labels), **_ERROR),
    "brier": _image_mean("Brier score", _squared_error, bounds=(0.0, 2.0), **_ERROR),
    "top5_accuracy": _image_mean(
        "Top-5 accuracy", _in_top_five, **_COUNT, null_because="it needs more than five classes"
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

    ``logits``, ``labels`` and ``classes`` are those of ``Scores``. The record has Python floats, ints, lists and None:
    each of ``METRICS``, ``per_class`` and ``confusion_matrix``.

    Raises:
        UserError: there is no image, or a logit is infinite or not a number.
    """
    scores = Scores(np.asarray(logits), np.asarray(labels), classes)
    _check(scores)
    values = {name: metric.score(scores) for name, metric in METRICS.items()}
    record = {name: None if np.isnan(value) else float(value) for name, value in values.items()}
    notes = _notes(scores.per_class)
    notes += [f"{name} is null: {METRICS[name].null_because}" for name, value in record.items() if value is None]
    return record | {"per_class": scores.per_class, "confusion_matrix": scores.confusion_matrix.tolist()}, notes


def resampled_metrics(scores: Scores, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return each metric that has ``resampled`` on each resample ``counts`` (N, B), whole numbers: (B,) float64.

    A column of ones gives the metrics of the test split itself.
    """
    width = max(1, BLOCK // len(scores.labels))
    blocks = (Resamples(counts[:, start : start + width]) for start in range(0, counts.shape[1], width))
    resampled = {name: metric.resampled for name, metric in METRICS.items() if metric.resampled}
    values = [{name: of(scores, block) for name, of in resampled.items()} for block in blocks]
    return {name: np.concatenate([block[name] for block in values]) for name in resampled}


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
