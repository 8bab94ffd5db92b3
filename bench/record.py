"""The JSON file of all measurements: what each gave, with the command and the machine behind it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.runtime.errors import UserError
from common.runtime.files import write_atomically

# Measurements stand in one file only where these agree; the rest of the environment is recorded with each of them.
SAME = ("cpu", "cores", "threads", "device", "precision", "torch")


def read(path: Path, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measurements in ``path`` by name, {} where there is no such file.

    Raises:
        UserError: it is no such record, or one of another machine or PyTorch.
    """
    try:
        measured = json.loads(path.read_bytes())["measurements"]
        others = {name: one["environment"] for name, one in measured.items()}
        foreign = [(name, key) for name, its in others.items() for key in SAME if its[key] != environment[key]]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"`out` {str(path)!r} holds no measurements of this script ({error!r})") from error
    if foreign:
        name, key = foreign[0]
        raise UserError(
            f"`out` {str(path)!r} holds {name!r} measured with {key} {others[name][key]!r}, "
            f"here it is {environment[key]!r}: give another file"
        )
    return measured


def write(path: Path, measured: Mapping[str, Any]) -> None:
    """Write all measurements, strict JSON, so that the file is the old one or the new one (UserError: disk full)."""
    content = json.dumps({"schema_version": 1, "measurements": measured}, indent=1, allow_nan=False)
    write_atomically(path, content.encode() + b"\n")
