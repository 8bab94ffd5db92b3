"""The logits of one finished run, ``predictions.npz``."""

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.runs.record import DataRecord, RunResult
from common.runs.result import RESULT_FILE
from common.runtime.errors import UserError
from common.runtime.files import sha256

PREDICTIONS_FILE = "predictions.npz"


@dataclass(frozen=True)
class Predictions:
    """The arrays of ``predictions.npz``; indices are positions in the split's natural order."""

    logits: np.ndarray  # (N, C) float32, the test split
    labels: np.ndarray  # (N,) int64
    indices: np.ndarray  # (N,) int64
    val_logits: np.ndarray  # (V, C) float32
    val_labels: np.ndarray  # (V,) int64
    val_indices: np.ndarray  # (V,) int64


def npz_bytes(**arrays: np.ndarray) -> bytes:
    """Return an ``.npz`` file of ``arrays``, deflated: 620 kB of logits are 440.

    The same arrays give the same bytes with the same zlib: the zip entries carry no date.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980-01-01
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
    return buffer.getvalue()


def has_predictions(folder: Path) -> bool:
    """Return whether a run's ``predictions.npz`` is there, whole or not; it may be left out to save space."""
    return (folder / PREDICTIONS_FILE).exists()


def predictions_sha256(result: RunResult) -> str:
    """Return the hash of the predictions that ``result`` describes, "" where it describes none."""
    described = result.files.get(PREDICTIONS_FILE)
    return described.sha256 if described else ""


def read_predictions(folder: Path, result: RunResult) -> Predictions:
    """Read ``folder/predictions.npz`` and check it against ``result``: hash, shapes, dtypes, labels, indices.

    Raises:
        UserError: it is missing, changed since it was written, or does not fit ``result``.
    """
    path = folder / PREDICTIONS_FILE
    advice = "restore the file, or remove the folder and train the run again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}; {advice}") from error
    if sha256(content) != predictions_sha256(result):
        raise UserError(f"{str(path)!r} is not the file that its {RESULT_FILE} describes (SHA-256 differs); {advice}")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            predictions = Predictions(**{name: arrays[name] for name in Predictions.__dataclass_fields__})
    except (OSError, ValueError, KeyError, EOFError, TypeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{str(path)!r} is not a file of predictions ({error}); {advice}") from error
    problem = _problem_with_arrays(predictions, result.data)
    if problem:
        raise UserError(f"{str(path)!r}: {problem}; {advice}")
    return predictions


def _problem_with_arrays(predictions: Predictions, data: DataRecord) -> str | None:
    """Say which array does not fit the run's ``data`` record, or return None."""
    classes = len(data.classes)
    for prefix, size in (("", data.num_test), ("val_", data.num_val)):
        expected = {
            "logits": ((size, classes), np.float32),
            "labels": ((size,), np.int64),
            "indices": ((size,), np.int64),
        }
        for name, (shape, dtype) in expected.items():
            array = getattr(predictions, prefix + name)
            if array.shape != shape or array.dtype != dtype:
                return f"{prefix}{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}"
        labels, indices = getattr(predictions, prefix + "labels"), getattr(predictions, prefix + "indices")
        if not np.isfinite(getattr(predictions, prefix + "logits")).all():
            return f"{prefix}logits holds a value that is infinite or not a number"
        if size and (labels.min() < 0 or labels.max() >= classes):
            return f"{prefix}labels lie in {labels.min()}..{labels.max()}, expected 0..{classes - 1}"
        if size and (indices.min() < 0 or len(np.unique(indices)) != size):
            return f"{prefix}indices are negative or repeated"
    return None
