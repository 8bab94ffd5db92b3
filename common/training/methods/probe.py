"""A logistic regression on a frozen backbone's features: the strongest head of one layer, with nothing at random."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from common.models.heads import Head
from common.models.logistic_regression import Solution, Standardisation, solve
from common.training.checkpoint import Checkpoint
from common.training.loaders import FeatureLoader
from common.training.loop import OptimizerConfig
from common.training.methods.head import FrozenHead
from common.training.predict import loss_and_accuracy
from common.training.sweep import FitResult

# A decade apart, as wide as the searches of dinov2 (eval/log_regression.py) and ssl-transfer (linear.py).
PENALTIES = tuple(10.0**-k for k in range(-1, 8))
MOST_EXTENSIONS = 3  # further decades, while the best penalty is at an end


class Probe(FrozenHead):
    """Chooses the L2 penalty by validation loss; ``trials`` has all that were tried, from the strongest on."""

    @classmethod
    def from_settings(cls, name: str, settings: Mapping[str, Any]) -> "Probe":
        return cls(kind="linear", dropout=0.0)

    def fit(
        self,
        model: Head,
        train: FeatureLoader,
        val: FeatureLoader,
        configs: Sequence[OptimizerConfig],
        checkpoint: Checkpoint,
        *,
        extend: int = 0,
    ) -> FitResult:
        """Fit ``model`` to the training features alone; what follows ``val`` is for methods with steps."""
        started = time.perf_counter()
        features = train.features.cpu().numpy()  # (N, D)
        standard = Standardisation.of(features)
        inputs, val_inputs = standard.apply(features), standard.apply(val.features.cpu().numpy())

        def tried(penalties: Sequence[float]) -> list[tuple[Solution, float, float]]:
            found = solve(inputs, train.labels, penalties)
            return [(one, *loss_and_accuracy(one.logits(val_inputs), val.labels)) for one in found]

        with threadpool_limits(torch.get_num_threads()):  # for NumPy, which does not ask PyTorch
            path = tried(PENALTIES)
            for _ in range(MOST_EXTENSIONS):
                best = min(path, key=lambda trial: trial[1])  # the stronger penalty on a tie
                if best is path[0]:
                    path = tried([10 * best[0].l2]) + path
                elif best is path[-1]:
                    path += tried([best[0].l2 / 10])
        best, *_ = min(path, key=lambda trial: trial[1])
        weight, bias = best.unstandardised(standard)
        with torch.no_grad():
            model.output.weight.copy_(torch.from_numpy(weight))
            model.output.bias.copy_(torch.from_numpy(bias))
        seconds = time.perf_counter() - started
        trials = [_record(solution, loss, accuracy, len(features)) for solution, loss, accuracy in path]
        return FitResult(
            history=[],
            trials=trials,
            best_epoch=None,
            train_seconds=seconds,
            images_stepped=len(features) * sum(trial["iterations"] for trial in trials),  # one evaluation each, mostly
            images_per_second=None,
        )


def _record(solution: Solution, val_loss: float, val_accuracy: float, images: int) -> dict[str, Any]:
    return {
        "l2": solution.l2,
        "C": 1 / (images * solution.l2),
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "iterations": solution.iterations,
        "gradient_norm": solution.gradient_norm,
    }
