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
        from sklearn.metrics import precision_recall_fscore_support  # two seconds to import

        indices = range(len(self.classes))
        columns = precision_recall_fscore_support(self.labels, self.predicted, labels=indices, zero_division=0)
        records = []
        for index, (name, *values, support) in enumerate(zip(self.classes, *columns, strict=True)):
            values = [float(value) if support else None for value in values]
            record = {"class": name, **dict(zip(("precision", "recall", "f1"), values, strict=True))}
            area = auc(self.labels == index, self.probabilities[:, index])
            records.append({**record, "auc": area, "support": int(support)})
        return records

    @property
    def confusion_matrix(self) -> np.ndarray:
        """Counts (C, C) int, true by predicted; C is given because a matrix inferred from the labels shrinks."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(self.labels, self.predicted, labels=range(len(self.classes)))

    def in_top(self, number: int) -> np.ndarray:
        """Return where the label is among the ``number`` largest logits (N,) bool, the earlier class on a tie."""
        own = self.logits[np.arange(len(self.labels)), self.labels][:, None]
        earlier = np.arange(self.logits.shape[1]) < self.labels[:, None]
        return ((self.logits > own) | (self.logits == own) & earlier).sum(axis=1) < number


def auc(positive: np.ndarray, scores: np.ndarray) -> float | None:
    """Return the area under the ROC curve, or None where there are no positives or no negatives."""
    from sklearn.metrics import roc_auc_score

    if positive.all() or not positive.any():
        return None
    return min(1.0, float(roc_auc_score(positive, scores)))  # its sum of trapezoids can round to just above 1
