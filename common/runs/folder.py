"""A run's folder: who may write to it, and how it is filled at once when the run is finished."""

import contextlib
import errno
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.runs.naming import run_identity
from common.runs.record import FileRecord, RunResult
from common.runs.result import RESULT_FILE, read_result, write_result
from common.runtime.errors import UserError
from common.runtime.files import flush_folder, remove_leftovers, sha256, temporary_path, write_atomically
from common.runtime.locks import locked

CHECKPOINT_FILE = "checkpoint"
EXCHANGES = 20  # attempts, where another host puts the same run in its place


@dataclass(frozen=True)
class RunFolder:
    """Where a run's files go; ``finished`` is its result where there is one that is not to be replaced."""

    path: Path
    finished: RunResult | None

    @property
    def checkpoint(self) -> Path:
        """The file of an unfinished run's state."""
        return self.path / CHECKPOINT_FILE


def lock_file(path: Path) -> Path:
    """Return the file that a process locks while it works on the run's folder ``path``."""
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def open_run_folder(
    path: Path, identity: Mapping[str, Any], *, absent: Mapping[str, Any] | None = None, overwrite: bool
) -> Iterator[RunFolder]:
    """Hold a run's folder ``<results-dir>/<dataset>/<run>/seed<k>`` for this process alone.

    Args:
        identity: the settings that decide the result, of ``run_identity``.
        absent: what a record means that was made before one of these settings was there.

    Raises:
        UserError: another process works on it, its result is damaged, or was made with other settings.
    """
    with locked(lock_file(path), what=repr(str(path)), wait=False):
        _settle(path)
        remove_leftovers(path)
        finished = None
        if (path / RESULT_FILE).exists() and not overwrite:
            finished = read_result(path / RESULT_FILE)
            stored = run_identity({**(absent or {}), **finished.config}, finished.method)
            if different := different_settings(stored, identity):
                raise UserError(
                    f"{str(path)!r} holds a finished run with other settings ({different}); "
                    "give another `run_name` (or `dataset_name`), or replace it with `overwrite`"
                )
        yield RunFolder(path, finished)


def different_settings(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Return in words which of the settings ``asked`` a finished run does not have, "" where it has them all."""
    return "; ".join(
        f"{name} {stored.get(name)!r} there, {value!r} asked"
        for name, value in asked.items()
        if stored.get(name) != value and (name, value) != ("precision", "auto")  # auto accepts what was resolved there
    )


def finish_run_folder(
    run: RunFolder, files: Mapping[str, bytes], result: RunResult, *, to_edit: Mapping[str, bytes] | None = None
) -> None:
    """Put a finished run in place of whatever the folder held: all its files, or none of them.

    The files are written to a folder beside it, which then takes its name; ``_settle`` completes an exchange that a
    crash cut in two. ``result`` gains ``files`` and is written last. What is there ``to_edit``, such as a model card,
    is not among them, so that a user may change it and the run stays whole. Where two hosts finish the same run,
    because their file system let both hold its lock, the last one's folder stays.

    Raises:
        UserError: the disk is full or not writable; what was there is as it was.
    """
    new = temporary_path(run.path, "new")
    try:
        for name, content in {**files, **(to_edit or {})}.items():
            write_atomically(new / name, content)
        record = {name: FileRecord(sha256=sha256(content), bytes=len(content)) for name, content in files.items()}
        write_result(new, replace(result, files=record))
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if not any(_exchange(run.path, new) for _ in range(EXCHANGES)):
        shutil.rmtree(new, ignore_errors=True)
        raise UserError(f"{str(run.path)!r} is written by other processes all the time; end those, and try again")


def _exchange(path: Path, new: Path) -> bool:
    """Move ``new`` to the place of what stands at ``path``, or leave all as it was (UserError).

    Returns False where another host's folder took the place in between.
    """
    old = temporary_path(path, "old")
    try:
        with contextlib.suppress(FileNotFoundError):  # nothing stood there
            path.rename(old)
        new.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            shutil.rmtree(old, ignore_errors=True)
            return False
        if not new.exists() and (path / RESULT_FILE).exists():  # another host took this for a crash, and completed it
            shutil.rmtree(old, ignore_errors=True)
            return True
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(new, ignore_errors=True)
        raise UserError(
            f"cannot put the finished run into {str(path)!r}: {error.strerror or error}; what was there is as it was, "
            "and the same command tries again"
        ) from error
    shutil.rmtree(old, ignore_errors=True)
    flush_folder(path.parent)
    return True


def _settle(path: Path) -> None:
    """Complete or undo an exchange of folders that a crash interrupted, maybe on another host."""
    old = next(path.parent.glob(f".{path.name}.*.old"), None)
    if old and not path.exists():  # between the two renames: the new folder is complete
        new = (folder for folder in path.parent.glob(f".{path.name}.*.new") if (folder / RESULT_FILE).exists())
        next(new, old).rename(path)
    for kind in ("new", "old"):
        remove_leftovers(path.parent, kind, of=f"{path.name}.*")
