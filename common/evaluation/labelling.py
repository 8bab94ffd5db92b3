"""The classes of images without labels as files for other programs: CSV and JSON."""

import csv
import io
import json
from collections.abc import Callable, Sequence

import numpy as np


def as_csv(files: Sequence[str], probabilities: np.ndarray, classes: Sequence[str], top: int | None) -> str:
    """Return a row an image: its file, the likeliest class with its probability, and the probability of each class.

    With ``top`` the ``top`` likeliest classes take the place of all; ``probabilities`` (N, C) are those of the files.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    count = min(top or 1, len(classes))
    ranks = ["", *(f"_{rank}" for rank in range(2, count + 1))]
    of_all = [] if top else [f"p_{name}" for name in classes]
    rows.writerow(["file", *(f"{column}{rank}" for rank in ranks for column in ("class", "probability")), *of_all])
    for file, row in zip(files, probabilities, strict=True):
        cells = [cell for name, share in _likeliest(row, classes, count) for cell in (name, f"{share:.6f}")]
        rows.writerow([file, *cells, *(f"{share:.6f}" for share in row[: len(of_all)])])
    return text.getvalue()


def as_json(files: Sequence[str], probabilities: np.ndarray, classes: Sequence[str], top: int | None) -> str:
    """Return a list of {file, class, probability, probabilities}, the last by class, the likeliest first; see CSV."""
    records = []
    for file, row in zip(files, probabilities, strict=True):
        shares = {name: round(share, 6) for name, share in _likeliest(row, classes, top or len(classes))}
        best = next(iter(shares))
        records.append({"file": file, "class": best, "probability": shares[best], "probabilities": shares})
    return json.dumps(records, indent=1, ensure_ascii=False) + "\n"


LABEL_FILES: dict[str, Callable[[Sequence[str], np.ndarray, Sequence[str], int | None], str]] = {
    ".csv": as_csv,
    ".json": as_json,
}
"""By the file's ending."""


def _likeliest(row: np.ndarray, classes: Sequence[str], count: int) -> list[tuple[str, float]]:
    """Return the ``count`` likeliest classes with their probabilities; of equals the earlier class first."""
    order = (-row).argsort(kind="stable")[:count]
    return [(classes[place], float(row[place])) for place in order]
