"""What was computed once and is kept beside the runs: JSON that is checked, and made again where it does not fit."""

import contextlib
import json
from pathlib import Path

from common import results, storage
from common.errors import UserError


def read(path: Path, *, algorithm: int) -> dict:
    """Return the record in ``path``, or an empty one where it is missing, damaged, or of another ``algorithm``."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if results.intact(record) and record.get("algorithm") == algorithm else {}


def write(path: Path, record: dict, *, algorithm: int) -> None:
    """Keep ``record``, strict JSON with its own hash; where the folder cannot be written, it is computed each time."""
    with contextlib.suppress(UserError):
        storage.write_atomically(path, results.dumps({"algorithm": algorithm, **record}))
