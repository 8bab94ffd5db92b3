"""Locks between processes, released by the system when their holder dies."""

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from common.errors import UserError


@contextlib.contextmanager
def locked(path: Path, *, what: str, wait: bool) -> Iterator[None]:
    """Hold the lock file ``path`` within the block; another process either waits or is refused.

    ``fcntl.lockf`` belongs to this process alone: a ``flock`` would be inherited by worker processes and outlive a
    killed parent. The file is gone when the block ends. Windows has no fcntl; there the lock is not taken.

    Raises:
        UserError: ``wait`` is false and another process holds it; the message names ``what``, and the holder.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    file = _open_and_lock(path, what, wait, fcntl)
    with file:
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # still locked: who waits for it notices that it holds no name any more
            with contextlib.suppress(OSError):
                path.parent.rmdir()  # where nothing came of it, nothing is left behind


def holder(path: Path) -> str | None:
    """Return who holds the lock file ``path`` (process, host, since when), or None; on Windows always None."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        with open(path, "r+", encoding="utf-8") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return file.read().strip() or "another process"
    except OSError:
        return None  # no such file: nobody
    return None


def _open_and_lock(path: Path, what: str, wait: bool, fcntl: object) -> TextIO:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115, the caller closes it
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            if not wait:
                file.close()
                raise UserError(f"{what} is in use by {holder}; wait for it, or use another --run-name") from None
            print(f"waiting for {holder}, which works on {what}", flush=True)
            fcntl.lockf(file, fcntl.LOCK_EX)
        if _is_still(file, path):
            return file
        file.close()  # its holder removed it meanwhile; whoever comes next makes a new one


def _is_still(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
