"""Result folders with predictions of the real digits, by quick regressions: for what shows the test images."""

from pathlib import Path

import numpy as np
from fake_results import MODELS, fake_run

from common.data.dataset import DatasetSplits, load_dataset_of_run
from common.evaluation import metrics
from common.runs.predictions import PREDICTIONS_FILE, npz_bytes
from common.runs.record import RunResult
from common.runs.result import Run, write_result
from common.runs.schema import as_json, typed
from common.runtime.files import sha256, write_atomically

SETTINGS = {
    "dataset": "digits",
    "dataset_name": None,
    "data_dir": "data",
    "workers": None,
    "val_fraction": 0.1,
    "split_seed": 0,
    "train_limit": None,
    "test_limit": None,
    "skip_damaged": False,
}


def digit_runs(results_dir: Path, *, models: int = 3, seeds: int = 2, test_limit: int | None = None) -> DatasetSplits:
    """Write runs of the first ``models`` of ``MODELS``; return the data that they were tested on."""
    settings = SETTINGS | {"test_limit": test_limit}
    dataset = load_dataset_of_run(settings)
    for number, name in enumerate(list(MODELS)[:models]):
        for seed in range(seeds):
            rng = np.random.default_rng([number, seed])
            drawn = rng.choice(len(dataset.train), 150 + 150 * number, replace=False)
            regress = _regression(dataset.train.pixels[drawn], dataset.train.labels[drawn])
            run = fake_run(results_dir, name, dataset="digits", seed=seed, num_test=10, classes=dataset.classes)
            with_predictions(run, dataset, regress, settings)
    return dataset


def with_predictions(run: Run, dataset: DatasetSplits, predict, settings: dict) -> None:
    """Write ``run`` again with what ``predict`` (pixels -> logits) says of ``dataset``'s images."""
    arrays = {}
    for prefix, images in (("", dataset.test), ("val_", dataset.val)):
        arrays[f"{prefix}logits"] = predict(images.pixels)
        arrays |= {f"{prefix}labels": images.labels, f"{prefix}indices": images.indices}
    predictions = npz_bytes(**arrays)
    write_atomically(run.folder / PREDICTIONS_FILE, predictions)
    sizes = {f"num_{name}": len(getattr(dataset, name)) for name in ("train", "val", "test")}
    result = as_json(run.result) | {
        "config": settings,
        "data": {
            **as_json(run.result.data),
            **sizes,
            "classes": list(dataset.classes),
            "fingerprint": dataset.fingerprint,
        },
        "val": metrics.score(arrays["val_logits"], dataset.val.labels, dataset.classes)[0],
        "test": metrics.score(arrays["logits"], dataset.test.labels, dataset.classes)[0],
        "files": {PREDICTIONS_FILE: {"sha256": sha256(predictions), "bytes": len(predictions)}},
    }
    write_result(run.folder, typed(result, RunResult))


def _regression(pixels: np.ndarray, labels: np.ndarray):
    """Return a function from pixels (N, 8, 8) to logits (N, 10) float32: ridge regression on one-hot labels."""
    inputs = pixels.reshape(len(pixels), -1) / 255
    ridge = inputs.T @ inputs + np.eye(inputs.shape[1])
    weights = np.linalg.solve(ridge, inputs.T @ (np.eye(10)[labels] - 0.1))
    return lambda images: (10 * (images.reshape(len(images), -1) / 255) @ weights).astype(np.float32)
