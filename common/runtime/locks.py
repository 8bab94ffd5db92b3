"""Locks between processes, released by the system when their holder dies."""

import contextlib
import datetime
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from common.runtime.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# How often a lock is asked for before its holder is believed: who looks whether it is held has it for an instant.
ATTEMPTS, ATTEMPT_SECONDS = 4, 0.05


@contextlib.contextmanager
def locked(path: Path, *, what: str, wait: bool) -> Iterator[None]:
    """Hold the lock file ``path`` within the block; another process either waits or is refused.

    ``fcntl.lockf`` belongs to this process alone: a ``flock`` would be inherited by worker processes and outlive a
    killed parent. The file is gone when the block ends. Windows has no fcntl; there the lock is not taken.

    Raises:
        UserError: ``wait`` is false and another process holds it; the message names ``what``, and the holder.
            Or the lock file cannot be written.
    """
    if fcntl is None:
        yield
        return
    with _open_and_lock(path, what, wait) as file:
        try:
            _sign(file, path)
            yield
        finally:
            path.unlink(missing_ok=True)  # still locked: who waits for it notices that it holds no name any more
            with contextlib.suppress(OSError):
                path.parent.rmdir()  # where nothing came of it, nothing is left behind


def lock_holder(path: Path) -> str | None:
    """Return who holds the lock file ``path`` (process, host, since when), or None; on Windows always None."""
    if fcntl is None:
        return None
    with contextlib.suppress(OSError), open(path, "r+", encoding="utf-8") as file:  # no such file: nobody
        return None if _lock(file) else _holder(file)
    return None


def _sign(file: TextIO, path: Path) -> None:
    """Write into a lock file who holds it; past the file's buffer, which would try again what failed as it closes."""
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    try:
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}; make room and try again") from error


def _open_and_lock(path: Path, what: str, wait: bool) -> TextIO:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115, the caller closes it
        except FileNotFoundError:
            continue  # another process's lock ended meanwhile, and it removed the empty folder
        try:
            locked = _try_for_a_moment(file)
        except OSError as error:  # some network file systems
            print(
                f"note: {str(path.parent)!r} has no locks ({error.strerror or error}): start no run twice", flush=True
            )
            return file
        if not locked:
            holder = _holder(file)
            if not wait:
                file.close()
                raise UserError(f"{what} is in use by {holder}; wait for it, or train under another `run_name`")
            print(f"waiting for {holder}, which works on {what}", flush=True)
            fcntl.lockf(file, fcntl.LOCK_EX)
        if _is_still(file, path):
            return file
        file.close()  # its holder removed it meanwhile; whoever comes next makes a new one


def _try_for_a_moment(file: TextIO) -> bool:
    for _ in range(ATTEMPTS - 1):
        if _lock(file):
            return True
        time.sleep(ATTEMPT_SECONDS)
    return _lock(file)


def _lock(file: TextIO) -> bool:
    """Lock ``file`` unless another process has it; raises OSError where the file system has no locks at all."""
    with contextlib.suppress(BlockingIOError, PermissionError):  # POSIX leaves the choice between the two
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "another process"


def _is_still(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
