"""What an image folder holds, in one file: read once for a whole grid instead of once by each of its runs.

The file keeps, of every image, its path, size, time of modification and inode beside the label, the digest of its
bytes and, where images are so small that they stay in memory, its pixels.
"""

import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from common.data.images import LabelledImages
from common.data.splits import RawSplits
from common.runtime.errors import UserError
from common.runtime.files import digest, write_atomically

VERSION = 1
SAMPLE = 32  # images that are looked at again before an index is trusted
OUTCOME = [each.name for each in fields(RawSplits) if each.name != "parts"]
ARRAYS = ("labels", "digests", "pixels")
DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def write_index(path: Path, folder: Path, source: RawSplits) -> None:
    """Write what was read from ``folder``; every part of ``source`` has files.

    Raises:
        UserError: the index cannot be written, or a file has gone since it was read.
    """
    header = {name: getattr(source, name) for name in OUTCOME}
    header |= {"version": VERSION, "folder": str(folder.resolve()), "parts": {}}
    arrays: dict[str, np.ndarray] = {}
    for name, part in source.parts.items():
        header["parts"][name] = [file.relative_to(folder).as_posix() for file in part.files]
        arrays[f"{name}/stats"] = np.array([_stat(file) for file in part.files], dtype=np.int64)
        arrays |= {f"{name}/{what}": getattr(part, what) for what in ARRAYS if getattr(part, what) is not None}
    write_arrays(path, header, arrays)


def load_index(path: Path, folder: Path) -> RawSplits:
    """Return what ``folder`` held when its index was written, after a look at ``SAMPLE`` of its images.

    Raises:
        UserError: the index is damaged, of another folder, or a sampled image has changed since.
    """
    try:
        header, arrays = read_arrays(path)
        if header["version"] != VERSION:
            raise ValueError(f"it has version {header['version']}, this code reads {VERSION}")
    except DAMAGE as error:
        raise UserError(f"`data_index` {str(path)!r} cannot be read ({error}); make it again") from error
    if header["folder"] != str(folder.resolve()):
        raise UserError(f"`data_index` {str(path)!r} is of {header['folder']!r}, not of {str(folder.resolve())!r}")
    parts = {name: _part(folder, names, arrays, name) for name, names in header["parts"].items()}
    for name, part in parts.items():
        _check_sample(path, part, arrays[f"{name}/stats"])
    outcome = {name: tuple(value) if isinstance(value := header[name], list) else value for name in OUTCOME}
    return RawSplits(parts=parts, **outcome)


def _part(folder: Path, names: list[str], arrays: dict[str, np.ndarray], part: str) -> LabelledImages:
    return LabelledImages(
        indices=np.arange(len(names), dtype=np.int64),
        files=tuple(folder / name for name in names),
        **{what: arrays.get(f"{part}/{what}") for what in ARRAYS},
    )


def _check_sample(path: Path, part: LabelledImages, stats: np.ndarray) -> None:
    """Refuse the index where one of ``SAMPLE`` images, evenly spread over the part, is another one now (UserError)."""
    for number in sample(len(part)):
        if not _is_same(part.files[number], stats[number], part.digests[number]):
            raise UserError(
                f"{str(part.files[number])!r} has changed since `data_index` {str(path)!r} was made: make it again"
            )


def _is_same(file: Path, stat: np.ndarray, content: bytes) -> bool:
    """Whether a file is the one that was read: by its ``stat``, or, of a copy on another disk, by its bytes."""
    try:
        return tuple(stat) == _stat(file) or digest(file.read_bytes()) == content
    except (OSError, UserError):
        return False


def _stat(file: Path) -> tuple[int, int, int]:
    try:
        return file_stat(file)
    except OSError as error:
        raise UserError(f"cannot read {str(file)!r}: {error.strerror or error}") from error


def file_stat(file: Path) -> tuple[int, int, int]:
    """Return a file's size in bytes, its time of modification in nanoseconds, and its inode; else OSError.

    Inodes have 64 bits and no sign: without the highest, which network drives may set, they are int64 like the others.
    """
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns, found.st_ino & (2**63 - 1)


def sample(count: int) -> np.ndarray:
    """Return ``SAMPLE`` positions below ``count``, or all where these are fewer: evenly spread, int64."""
    return np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(np.int64))


def write_arrays(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write ``header``, as JSON, and ``arrays`` into one file (UserError where it cannot be written)."""
    content = io.BytesIO()
    text = json.dumps({**header, "arrays": list(arrays)})
    np.savez(content, header=np.frombuffer(text.encode(), dtype=np.uint8), **arrays)
    write_atomically(path, content.getbuffer())


def read_arrays(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the header and the arrays of ``write_arrays``; damage, which the CRCs show, raises one of ``DAMAGE``."""
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
        if damaged := stored.zip.testzip():  # first: NumPy believes what a member says of its own shape
            raise zipfile.BadZipFile(f"{damaged!r} is damaged")
        arrays = dict(stored)
    header = json.loads(arrays.pop("header").tobytes())
    if header.pop("arrays") != list(arrays):  # a damaged list of members may end early
        raise ValueError("arrays are missing")
    return header, arrays
