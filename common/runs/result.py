"""The record of one finished run, ``result.json``: written whole and read with suspicion."""

import fnmatch
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.runs.naming import model_name
from common.runs.record import SCHEMA_VERSION, RunResult, SplitMetrics, disagreement
from common.runs.schema import as_json, typed
from common.runtime.errors import UserError
from common.runtime.files import sha256, write_atomically

RESULT_FILE = "result.json"


@dataclass(frozen=True)
class Run:
    """One finished run: its folder ``<results-dir>/<dataset>/<run>/seed<k>`` and what its ``result.json`` says."""

    folder: Path
    result: RunResult

    @property
    def dataset(self) -> str:
        """The data set's folder name; the one in ``result.json`` may hold what a file name may not."""
        return self.folder.parent.parent.name

    @property
    def name(self) -> str:
        """The run's folder name: backbone, method and the settings that differ from the default."""
        return self.folder.parent.name

    @property
    def seed(self) -> int:
        """The seed of the order, the dropout and the trained weights' start."""
        return self.result.seed

    @property
    def test(self) -> SplitMetrics:
        """The metrics of the test split; a run without one is in no comparison."""
        return self.result.test

    @property
    def model_name(self) -> str:
        """The name of the run without its fold, shared by the seeds and folds of one model."""
        return model_name(self.name)

    @property
    def folds(self) -> int:
        """Of how many folds this is one; 1: a single split."""
        return self.result.config.get("folds", 1)

    @property
    def number(self) -> int:
        """What tells it from the other runs of its model: its fold where there are folds, else its seed."""
        return self.fold if self.folds > 1 else self.seed

    @property
    def fold(self) -> int:
        """Which of the folds it was tested on, from 0."""
        return self.result.config.get("fold", 0)


def encode_record(record: dict) -> bytes:
    """Return ``record`` as strict JSON (UTF-8, no NaN) with the field ``sha256`` that guards all others.

    Raises:
        ValueError: a number is infinite or not a number; the caller writes None and a note instead.
    """
    plain = json.loads(json.dumps(record, allow_nan=False))  # as a reader will see it: tuples are lists, keys strings
    return _encode(_layout({**plain, "sha256": _sha256(plain)}) + "\n")


def write_result(folder: Path, result: RunResult) -> None:
    """Write ``folder/result.json`` atomically, as the last file of a run: where it stands, the run is finished."""
    write_atomically(folder / RESULT_FILE, encode_record(as_json(result)))


def read_result(path: Path) -> RunResult:
    """Read one ``result.json`` and check it: strict JSON, known version, every field's type, its own hash.

    Raises:
        UserError: it cannot be read, was changed or cut since it was written, or is another program's file.
    """
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{str(path)!r} is not valid JSON ({error}); remove the folder and train the run again"
        ) from error
    if not isinstance(record, dict) or "schema_version" not in record:
        raise UserError(f"{str(path)!r} is not a result of this benchmark (no schema_version); move it elsewhere")
    if record["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"{str(path)!r} has schema_version {record['schema_version']!r}, this code reads {SCHEMA_VERSION}; "
            "train the run again, or read it with the code that wrote it"
        )
    try:
        result = typed(record, RunResult)
        problem = disagreement(result) if is_intact(record) else "its content was changed after it was written"
    except ValueError as error:
        problem = str(error)
    if problem:
        raise UserError(f"{str(path)!r}: {problem}; restore the file, or remove the folder and train the run again")
    return result


def is_intact(record: object) -> bool:
    """Say whether ``record`` is what ``encode_record`` wrote: its field ``sha256`` is the hash of all others."""
    if not isinstance(record, dict):
        return False
    try:
        return record.get("sha256") == _sha256(record)
    except ValueError:  # Python reads NaN, and 1e999 as infinity
        return False


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the record that ``encode_record`` wrote to ``path``; None where it is missing, damaged or was changed."""
    try:
        record = json.loads(path.read_bytes())
        return record if is_intact(record) else None
    except (OSError, ValueError, RecursionError):
        return None


def find_runs(results_dir: Path, pattern: str = "*") -> tuple[list[Run], list[str]]:
    """Return the finished runs under ``results_dir`` in natural order (seed2 before seed10), and the problems.

    A run lies at ``<results-dir>/<dataset>/<run>/seed*/result.json`` and nowhere else. ``pattern`` is a shell glob on
    ``<dataset>/<run>`` or on ``<run>`` alone. A damaged file costs one line among the problems, not the other runs.
    """
    runs, problems = [], []
    for path in sorted(results_dir.glob(f"*/*/seed*/{RESULT_FILE}"), key=lambda path: natural_order(str(path))):
        name = path.parent.parent
        if not any(fnmatch.fnmatchcase(text, pattern) for text in (name.name, f"{name.parent.name}/{name.name}")):
            continue
        try:
            run = Run(path.parent, read_result(path))
        except UserError as error:
            problems.append(str(error))
            continue
        if path.parent.name == f"seed{run.seed}":
            runs.append(run)
        else:  # a copy beside the original would count twice
            problems.append(f"{str(path)!r} is of seed {run.seed}, not what its folder's name says; rename the folder")
    return runs, problems


def natural_order(text: str) -> list:
    """Return a sort key by which numbers inside a name count as numbers: seed2 before seed10."""
    parts = re.split("([0-9]+)", text)  # text, number, text, number, ...
    return [(int(part), "") if index % 2 else (-1, part) for index, part in enumerate(parts)]


def _sha256(record: dict) -> str:
    """Return the hash of a record's canonical JSON, which does not depend on layout or on the order of fields."""
    guarded = {key: value for key, value in record.items() if key != "sha256"}
    text = json.dumps(guarded, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return sha256(_encode(text))


def _encode(text: str) -> bytes:
    """Encode JSON text; a file name's undecodable byte (a lone surrogate) becomes JSON's own escape of it."""
    return text.encode("utf-8", "backslashreplace")


def _layout(value: object, indent: int = 0) -> str:
    """Return JSON text with one line for what fits on it; a confusion matrix has a line a row, not one a number."""
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    row = isinstance(value, list) and not any(isinstance(item, (dict, list, str)) for item in value)
    if not isinstance(value, (dict, list)) or row or len(flat) + indent <= 200:
        return flat
    pad = "\n" + " " * (indent + 1)
    if isinstance(value, list):
        return "[" + ",".join(pad + _layout(item, indent + 1) for item in value) + pad[:-1] + "]"
    fields = (f"{json.dumps(str(key), ensure_ascii=False)}: {_layout(item, indent + 1)}" for key, item in value.items())
    return "{" + ",".join(pad + field for field in fields) + pad[:-1] + "}"


def unfinished_runs(results_dir: Path) -> list[Path]:
    """Return the run folders that hold a checkpoint and no result yet."""
    folders = sorted({path.parent for path in results_dir.glob("*/*/seed*/checkpoint*")})
    return [folder for folder in folders if not (folder / RESULT_FILE).exists()]
