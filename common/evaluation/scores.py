"""The predictions of one model on N images of C classes, as the metrics read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from common.evaluation.calibration import log_softmax


@dataclass(frozen=True, eq=False)
class Scores:
    """Logits beside the labels; what several metrics need of them is computed once."""

    logits: np.ndarray  # (N, C) float32, N at least 1
    labels: np.ndarray  # (N,) int, each in 0..C-1
    classes: Sequence[str]  # the C names

    @cached_property
    def log_probabilities(self) -> np.ndarray:
        """The softmax's logarithm (N, C) float64."""
        return log_softmax(self.logits)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """The softmax (N, C) float64."""
        return np.exp(self.log_probabilities)

    @cached_property
    def predicted(self) -> np.ndarray:
        """The class of the largest logit (N,) int64, the earlier class on a tie."""
        return self.logits.argmax(axis=1)

    @property
    def correct(self) -> np.ndarray:
        """Where the prediction is the label (N,) bool."""
        return self.predicted == self.labels

    @property
    def one_hot(self) -> np.ndarray:
        """The labels as rows of one True (N, C) bool."""
        return np.eye(len(self.classes), dtype=bool)[self.labels]

    @cached_property
    def per_class(self) -> list[dict]:
        """A record a class: {class, precision, recall, f1, auc, support}; without images all are None but support."""
        hits, support, predictions = (
            self.confusion_matrix.diagonal(),
            self.confusion_matrix.sum(axis=1),
            self.confusion_matrix.sum(axis=0),
        )
        columns = {
            "precision": hits / np.maximum(predictions, 1),
            "recall": hits / np.maximum(support, 1),
            "f1": 2 * hits / np.maximum(support + predictions, 1),
        }
        records = []
        for index, name in enumerate(self.classes):
            values = {what: float(column[index]) if support[index] else None for what, column in columns.items()}
            area = auc(self.labels == index, self.probabilities[:, index])
            records.append({"class": name, **values, "auc": area, "support": int(support[index])})
        return records

    @cached_property
    def confusion_matrix(self) -> np.ndarray:
        """Counts (C, C) int64, true by predicted."""
        count = len(self.classes)
        return np.bincount(self.labels * count + self.predicted, minlength=count**2).reshape(count, count)

    def in_top(self, number: int) -> np.ndarray:
        """Return where the label is among the ``number`` largest logits (N,) bool, the earlier class on a tie."""
        own = self.logits[np.arange(len(self.labels)), self.labels][:, None]
        earlier = np.arange(self.logits.shape[1]) < self.labels[:, None]
        return ((self.logits > own) | (self.logits == own) & earlier).sum(axis=1) < number


def auc(positive: np.ndarray, scores: np.ndarray) -> float | None:
    """Return the area under the ROC curve, or None where there are no positives or no negatives.

    It is the share of pairs of a positive and a negative that ``scores`` put in order, a tie counting half.
    scikit-learn has all of this, and takes more than a second to import.
    """
    if positive.all() or not positive.any():
        return None
    positives, negatives = np.sort(scores[positive]), scores[~positive]
    lost = sum(np.searchsorted(positives, negatives, side).sum() for side in ("left", "right")) / 2
    pairs = len(positives) * len(negatives)
    return float((pairs - lost) / pairs)
