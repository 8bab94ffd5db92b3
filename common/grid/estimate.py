"""How long the runs of a grid will take on this machine, from a few steps of each method on each backbone."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from common.grid.scheduler import Job
from common.runs.methods import method_spec
from common.runtime.environment import REPOSITORY
from common.training.cost import Cost, measure

START = "import peft, sklearn.linear_model, common.training.save"


def job_seconds(
    jobs: Sequence[Job], images: Mapping[str, tuple[int, int]], *, at_once: int = 1, start_seconds: float = 0.0
) -> tuple[dict[Job, float], int]:
    """Return the seconds that each job adds to the whole, and the bytes of features that all leave on disk.

    ``images`` has the number of training (with validation) and test images of each data set, ``start_seconds`` is what
    a run takes before it computes anything. Decoding images is left out. Runs that share the features of a frozen
    backbone are counted as making them once, the first of them. Of up to two further learning rates one is counted.
    """
    costs: dict[tuple, Cost] = {}
    featured, seconds, feature_bytes = set(), {}, 0
    for job in jobs:
        config = job.config
        measured = config.backbone, config.method, config.batch_size, config.threads, _own_settings(config)
        if measured not in costs:
            costs[measured] = measure(config)
        cost, (train, val, test) = costs[measured], _sizes(config, *images[config.dataset])
        spec, epochs = method_spec(config.method), config.epochs * _trainings(config)
        spent = start_seconds + (epochs if spec.has_steps else 1) * train * cost.train_seconds
        if not spec.reads_features:
            spent += (epochs * val + val + test) * cost.forward_seconds
        else:
            own = config.backbone, config.dataset, config.fold
            parts = {(*own, config.split_seed, config.train_limit): train + val, (*own, config.test_limit): test}
            count = sum(size for part, size in parts.items() if part not in featured)
            featured |= parts.keys()
            spent += count * cost.forward_seconds
            feature_bytes += count * cost.feature_bytes
        seconds[job] = spent / at_once
    return seconds, feature_bytes


def arm_seconds(jobs: Sequence[Job], seconds: Mapping[Job, float]) -> dict[tuple[str, str], float]:
    """Return the sum of the ``seconds`` of ``jobs`` for each backbone and method, in their order."""
    of_arm: dict[tuple[str, str], float] = {}
    for job in jobs:
        arm = job.config.backbone, job.config.method
        of_arm[arm] = of_arm.get(arm, 0.0) + seconds[job]
    return of_arm


def _sizes(config: Any, train: int, test: int) -> tuple[int, int, int]:
    """Return how many images a run trains on, is validated on and tested on, of so many (validation among the first).

    A data set that brings validation images of its own has as many as ``val_fraction`` would give, for an estimate.
    """
    val = round(train * config.val_fraction)
    limited = min(config.train_limit or train - val, train - val)
    return limited, round(val * limited / (train - val)), min(config.test_limit or test, test)


def _trainings(config: Any) -> int:
    """Return how many learning rates a run trains."""
    return 1 if config.tuned_on is not None else len(config.lr) + bool(config.extend)


def _own_settings(config: Any) -> tuple:
    """Return the settings that only the run's method has, by which its cost may differ."""
    return tuple(getattr(config, name, None) for name in method_spec(config.method).own_settings)


def measure_start() -> float:
    """Return the seconds that a training script takes to start: most of a run's time on few and small images."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", START], cwd=REPOSITORY, check=False, capture_output=True)
    return time.perf_counter() - started
