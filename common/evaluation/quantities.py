"""The one name of every cost and count, by its name in ``result.json`` and in the columns of CSV files.

Metrics have theirs in ``METRICS``; ``display`` finds either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.evaluation.formatting import mean_sd
from common.evaluation.metrics import METRICS


@dataclass(frozen=True)
class Quantity:
    """How a number is shown: in headings, on axes, in the terminal and in the report."""

    label: str  # with its unit, that of the JSON's number times ``scale``
    digits: int = 0  # behind the point
    scale: float = 1.0
    varies: bool = False  # whether seeds differ in it, so that their spread says something


QUANTITIES = {
    "num_train": Quantity("Training images"),
    "num_test": Quantity("Test images"),
    "total_params": Quantity("Parameters"),
    "trainable_params": Quantity("Trained parameters"),
    "trainable_percent": Quantity("Trained (%)", 3),
    "forward_flops": Quantity("Forward (GFLOPs)", 2, 1e-9),
    "train_seconds": Quantity("Training (s)", 1, varies=True),
    "feature_seconds": Quantity("Features (s)", 1, varies=True),
    "total_train_seconds": Quantity("Training with features (s)", 1, varies=True),
    "saved_bytes": Quantity("Saved (bytes)"),
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
    return mean_sd(values, quantity.digits, scale=quantity.scale, with_sd=quantity.varies)
