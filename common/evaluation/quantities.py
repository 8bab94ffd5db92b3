"""The one name of every cost and count of a run, by its name in ``result.json``; metrics have theirs in ``METRICS``."""

from dataclasses import dataclass


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
}
