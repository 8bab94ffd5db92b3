"""Numbers as a person reads them: the label of each, means with their spread, signed differences, numbers of seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from common.evaluation.comparison import Comparison
from common.evaluation.metrics import METRICS

MISSING = "—"


@dataclass(frozen=True)
class Quantity:
    """How a number is shown: in headings, on axes, in the terminal and in the report."""

    label: str  # with its unit, that of the JSON's number times ``scale``
    digits: int = 0  # behind the point
    scale: float = 1.0
    varies: bool = False  # whether seeds differ in it, so that their spread says something
    may_be_shared: bool = False  # whether seeds may all have one measurement, which has no spread
    timed_on: str = ""  # of times: the column of ``Frames.runs`` that says on what they were measured


# By its name in ``result.json`` and in the columns of CSV files; metrics have theirs in ``METRICS``.
QUANTITIES = {
    "num_train": Quantity("Training images"),
    "num_test": Quantity("Test images"),
    "total_params": Quantity("Parameters"),
    "trainable_params": Quantity("Trained parameters"),
    "trainable_percent": Quantity("Trained (%)", 3),
    "forward_flops": Quantity("Forward (GFLOPs)", 2, 1e-9),
    "train_flops": Quantity("Training with features (TFLOPs)", 3, 1e-12, varies=True, may_be_shared=True),
    "train_seconds": Quantity("Training (s)", 1, varies=True, timed_on="machine"),
    "feature_seconds": Quantity("Features (s)", 1, varies=True, may_be_shared=True, timed_on="machine"),
    "total_train_seconds": Quantity("Training with features (s)", 1, varies=True, timed_on="machine"),
    "kept_train_seconds": Quantity("Of it the kept training (s)", 1, varies=True, timed_on="machine"),
    "train_images_per_second": Quantity("Training (images/s)", varies=True, timed_on="machine"),
    "train_features_per_second": Quantity("Training (features/s)", varies=True, timed_on="machine"),
    "saved_bytes": Quantity("Saved (bytes)"),
    "backbone_bytes": Quantity("Backbone beside it (bytes)"),
    "deployed_bytes": Quantity("Deployed (bytes)"),
    "latency_seconds": Quantity("Latency (ms)", 2, 1e3, timed_on="timing_machine"),
    "images_per_second": Quantity("Throughput (images/s)", timed_on="timing_machine"),
    "test_ece_scaled": Quantity("ECE (scaled)", 3, varies=True),
}


def display(column: str) -> Quantity:
    """Return how a column of ``Frames.runs`` is shown: one of ``QUANTITIES``, or ``test_<metric>`` of ``METRICS``."""
    if column in QUANTITIES:
        return QUANTITIES[column]
    metric = METRICS[column.removeprefix("test_")]
    return Quantity(metric.label, metric.digits, varies=True)


def mean_text(column: str, values: Sequence[float]) -> str:
    """Return the seeds' ``values`` of ``column`` as text: "mean ± sd", the mean alone of what no seed changes."""
    quantity = display(column)
    is_one = quantity.may_be_shared and len(set(values)) == 1
    return mean_sd(values, quantity.digits, scale=quantity.scale, with_sd=quantity.varies and not is_one)


class Repeats(NamedTuple):
    """The fewest and the most runs that a model of some comparisons has, and what one of them is called."""

    fewest: int
    most: int
    word: str  # "seed", "fold", "draw", or several as in "seed or fold"

    @property
    def text(self) -> str:
        """The numbers in words: "1 seed", "5 folds" or "2 to 5 seeds"."""
        return count_seeds(self.fewest, self.most, self.word)

    @property
    def basis(self) -> str:
        """What the intervals of means and differences are over."""
        images = "test images"
        of_word = {"fold": "folds", "draw": f"{images} and draws", "seed": f"{images}{' and seeds' * (self.most > 1)}"}
        return ", or ".join(of_word[word] for word in self.word.split(" or "))


def repeats(comparisons: Sequence[Comparison]) -> Repeats:
    """Return how many seeds, folds or draws the models of ``comparisons`` have."""
    series = [series for comparison in comparisons for series in comparison.series]
    counts, words = [len(each.runs) for each in series], {each.repeat for each in series}
    return Repeats(min(counts), max(counts), " or ".join(sorted(words, reverse=True)))


def count_seeds(fewest: int, most: int | None = None, word: str = "seed") -> str:
    """Return the numbers of seeds (or what ``word`` says) in words: "1 seed", "3 seeds" or "2 to 5 seeds"."""
    words = f"{word}s".replace(" or ", "s or ")
    if most is not None and most != fewest:
        return f"{fewest} to {most} {words}"
    return f"1 {word}" if fewest == 1 else f"{fewest} {words}"


def joined_notes(comparisons: Sequence[Comparison]) -> str:
    """Return what a reader of a figure of ``comparisons`` must know, as sentences."""
    lines = [(comparison.title, note) for comparison in comparisons for note in comparison.notes]
    return " ".join(f"{title}: {note}." if len(comparisons) > 1 else f"{note.capitalize()}." for title, note in lines)


def not_measured(runs: pd.DataFrame, known: pd.DataFrame) -> str:
    """Return a sentence on the models that a figure's legend has of ``runs``, and of which nothing is ``known``."""
    unknown = [label for label in runs["label"].unique() if label not in set(known["label"])]
    return f"Not measured: {', '.join(unknown)}." if unknown else ""


def mean_sd(values: Sequence[float], digits: int = 3, *, scale: float = 1.0, with_sd: bool = True) -> str:
    """Return "mean ± sd" (ddof 1) of the seeds' ``values`` times ``scale``; of one the mean, "—" if one is NaN."""
    values = np.asarray(values, dtype=np.float64) * scale
    if np.isnan(values).any():
        return MISSING
    mean = f"{values.mean():,.{digits}f}"
    return f"{mean} ± {values.std(ddof=1):,.{digits}f}" if with_sd and len(values) > 1 else mean


def interval(low: float, high: float) -> str:
    """Return the ends of an interval in points: "+0.3 to +2.1"."""
    return f"{signed(low)} to {signed(high)}"


def points(number: float) -> str:
    """Return a number of points with its unit: "1 point" or "0.5 points"."""
    return f"{number:g} point{'' if number == 1 else 's'}"


def p_text(p: float) -> str:
    """Return a p with two digits that count, "<0.001", or "—" where there is none."""
    if np.isnan(p):
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def signed(value: float, *, digits: int = 1) -> str:
    """Return a difference (1 is 100 points) in points with its sign; one that is not 0 is never written as 0."""
    points = round(value * 100, 9)  # equal means differ by rounding
    while points and digits < 6 and abs(points) < 0.5 * 10**-digits:
        digits += 1
    text = f"{points:+.{digits}f}"
    return text if float(text) else f"{0:.{digits}f}"
