"""What is kept of a run's predictions beside them, ``intervals.json``; where they were left out it takes their place.

It is of use if it is intact, made by this ``ALGORITHM`` for today's ``METRICS``, and from the predictions whose SHA-256
the run's ``result.json`` names.
"""

import base64
import contextlib
from pathlib import Path

import numpy as np

from common.evaluation.metrics import HEADLINE, METRICS
from common.runs.predictions import Predictions, has_predictions, predictions_sha256, read_predictions
from common.runs.result import Run, encode_record, read_record
from common.runtime.errors import UserError
from common.runtime.files import sha256, write_atomically

ALGORITHM = 4  # raise it whenever a kept number would come out otherwise: what older code kept is then made again
INTERVALS = "intervals.json"


def hash_of_test_images(run: Run) -> str:
    """Return a hash of which images a run was tested on, with which labels, in what order.

    Raises:
        UserError: its predictions are damaged, or missing and nothing of use is kept of them.
    """
    return _of_images(run)["test_images"]


def correct_images(run: Run) -> np.ndarray:
    """Return where the prediction of each test image is right, (N,) bool; raises as ``hash_of_test_images`` does."""
    bits = np.frombuffer(base64.b64decode(_of_images(run)["correct"]), np.uint8)
    return np.unpackbits(bits, count=run.result.data.num_test).astype(bool)


def _of_images(run: Run) -> dict:
    """Return what ``image_record`` does: from the predictions, or where these were left out from what is kept."""
    kept = {} if has_predictions(run.folder) else read_run_statistics(run)
    return kept or image_record(read_predictions(run.folder, run.result))


def image_record(predictions: Predictions) -> dict[str, str]:
    """Return what is kept of single test images: a hash of which they are, and a bit for each that is right."""
    correct = np.packbits(predictions.logits.argmax(axis=1) == predictions.labels)
    return {
        "test_images": sha256(predictions.labels.tobytes() + predictions.indices.tobytes()),
        "correct": base64.b64encode(correct.tobytes()).decode(),
    }


def read_run_statistics(run: Run) -> dict:
    """Return what is kept of a run, {} where nothing is or nothing of use."""
    return read_kept(run.folder / INTERVALS, predictions=predictions_sha256(run.result))


def keep_run_statistics(run: Run, record: dict) -> None:
    """Keep ``record`` of the predictions of ``run``."""
    keep(run.folder / INTERVALS, {"predictions": predictions_sha256(run.result), **record})


def read_kept(path: Path, **expected: str) -> dict:
    """Return what was kept in ``path``, or an empty dict where it is missing, damaged, or not made as expected."""
    expected |= _made_by()
    record = read_record(path)
    if record is None or any(record.get(name) != value for name, value in expected.items()):
        return {}
    return {name: value for name, value in record.items() if name not in (*expected, "sha256")}


def keep(path: Path, record: dict) -> None:
    """Keep ``record``, strict JSON with its own hash; where the folder cannot be written, it is computed each time."""
    with contextlib.suppress(UserError):
        write_atomically(path, encode_record(_made_by() | record))


def _made_by() -> dict:
    """Return what a file must say to be of use: how, and of which metrics, its numbers were computed."""
    resampled = [name for name, metric in METRICS.items() if metric.resampled]
    return {"algorithm": ALGORITHM, "metrics": list(METRICS), "resampled": resampled, "headline": list(HEADLINE)}
