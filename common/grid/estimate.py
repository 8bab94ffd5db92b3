"""How long a grid of runs will take on this machine, from a few steps of each method on each backbone."""

from collections.abc import Mapping, Sequence
from typing import Any

from common.runs.methods import method_spec
from common.training.cost import measure


def grid(configs: Sequence[Any], images: Mapping[str, tuple[int, int]]) -> tuple[float, int]:
    """Return (seconds, bytes of features on disk) for training ``configs`` one after the other.

    ``images`` has the number of training (with validation) and test images of each data set.
    Decoding images and the steps of a head, which take a small part of the time, are left out. Runs that share the
    features of a frozen backbone (all seeds of a data set) are counted as making them once.
    """
    costs, featured = {}, set()
    seconds, feature_bytes = 0.0, 0
    for config in configs:
        measured = config.backbone, config.method, config.batch_size
        if measured not in costs:
            costs[measured] = measure(config)
        cost = costs[measured]
        train, test = images[config.dataset]
        val = round(train * config.val_fraction)
        if not method_spec(config.method).reads_features:
            epochs = config.epochs * len(config.lr)
            forward = epochs * val + val + test
            seconds += epochs * (train - val) * cost.step_seconds + forward * cost.forward_seconds
        elif (config.backbone, config.dataset) not in featured:
            featured.add((config.backbone, config.dataset))
            seconds += (train + test) * cost.forward_seconds
            feature_bytes += (train + test) * cost.feature_bytes
    return seconds, feature_bytes
