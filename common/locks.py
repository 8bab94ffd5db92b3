"""Locks between processes, released by the system when their holder dies."""

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError


@contextlib.contextmanager
def locked(path: Path, *, what: str, wait: bool) -> Iterator[None]:
    """Hold the lock file ``path`` within the block; another process either waits or is refused.

    ``fcntl.lockf`` belongs to this process alone: a ``flock`` would be inherited by worker processes and outlive a
    killed parent. Windows has no fcntl; there the lock is not taken.

    Raises:
        UserError: ``wait`` is false and another process holds it; the message names ``what``, and the holder.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            if not wait:
                raise UserError(f"{what} is in use by {holder}; wait for it, or use another --run-name") from None
            print(f"waiting for {holder}, which works on {what}", flush=True)
            fcntl.lockf(file, fcntl.LOCK_EX)
        file.truncate(0)
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
            fcntl.lockf(file, fcntl.LOCK_UN)
