"""Scores under corruptions, ``corruption.json`` in a run's folder: written kind by kind, read as a table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.data.corruptions import KINDS, SEVERITIES
from common.evaluation.calibration import expected_calibration_error
from common.evaluation.metrics import softmax
from common.runs.predictions import predictions_sha256
from common.runs.result import Run, encode_record, read_record
from common.runtime.files import write_atomically

CORRUPTION_FILE = "corruption.json"


def score_kind(logits: Sequence[np.ndarray], labels: np.ndarray) -> dict[str, list]:
    """Return what is kept of a kind: accuracy, ECE and the right images at each severity, from ``logits`` (N, C) each.

    ``correct`` has a bit an image, in the order of ``predictions.npz``, in hexadecimal digits.
    """
    correct = [each.argmax(axis=1) == labels for each in logits]
    return {
        "accuracy": [float(right.mean()) for right in correct],
        "ece": [expected_calibration_error(softmax(each), labels) for each in logits],
        "correct": [np.packbits(right).tobytes().hex() for right in correct],
    }


def read_kinds(run: Run, made_by: str | None = None) -> dict[str, dict[str, list]]:
    """Return what ``corruption.json`` holds by kind, {} where it is missing, damaged, or of other predictions.

    ``made_by``: also {} if another version of the package made it.
    """
    record = read_record(run.folder / CORRUPTION_FILE)
    is_of_run = record is not None and record.get("predictions") == predictions_sha256(run.result)
    return record["kinds"] if is_of_run and made_by in (None, record["made_by"]) else {}


def write_kinds(run: Run, kinds: Mapping[str, dict[str, list]], made_by: str) -> Path:
    """Write ``corruption.json`` atomically, with the scores of the clean test images beside; return its path."""
    record: dict[str, Any] = {
        "name": corruption_name(kinds),
        "made_by": made_by,
        "predictions": predictions_sha256(run.result),
        "image_size": run.result.data.image_size,
        "num_test": run.result.data.num_test,
        "severities": list(SEVERITIES),
        "clean": {name: run.test.scores[name] for name in ("accuracy", "ece")},
        "mean": {name: float(np.mean([kind[name] for kind in kinds.values()])) for name in ("accuracy", "ece")},
        "kinds": {kind: kinds[kind] for kind in KINDS if kind in kinds},
    }
    path = run.folder / CORRUPTION_FILE
    write_atomically(path, encode_record(record))
    return path


def corruption_name(kinds: Mapping[str, Any]) -> str:
    """Return how such scores are called: never CIFAR-10-C or ImageNet-C, whose files are other images."""
    return f"C-like, {len(kinds)} of {len(KINDS)} kinds"


def corruption_summary(run: Run) -> str:
    """Return a line on a run whose ``corruption.json`` there is."""
    record = json.loads((run.folder / CORRUPTION_FILE).read_bytes())
    mean, clean = (f"accuracy {record[of]['accuracy']:.4f}, ECE {record[of]['ece']:.4f}" for of in ("mean", "clean"))
    return f"{run.folder / CORRUPTION_FILE}: {record['name']}: {mean} on average; clean: {clean}"


def corruption_rows(run: Run) -> list[dict[str, Any]]:
    """Return a row {kind, severity, accuracy, ece} for each that was scored."""
    return [
        {"kind": kind, "severity": severity, "accuracy": accuracy, "ece": ece}
        for kind, scores in read_kinds(run).items()
        for severity, accuracy, ece in zip(SEVERITIES, scores["accuracy"], scores["ece"], strict=True)
    ]


def share_correct(run: Run, kinds: Sequence[str]) -> np.ndarray:
    """Return at how many of all severities of ``kinds`` each test image is classified right, as a share (N,)."""
    images = run.result.data.num_test
    rows = [row for kind in kinds for row in read_kinds(run)[kind]["correct"]]
    return np.mean([np.unpackbits(np.frombuffer(bytes.fromhex(row), np.uint8), count=images) for row in rows], axis=0)
