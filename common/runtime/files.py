"""Files that are either whole or absent: atomic writes and content hashes."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

ATTEMPTS = 3  # to write a file into a folder that others may exchange
FORGOTTEN_SECONDS = 24 * 3600  # after so long what another host began to write is taken for abandoned


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write ``content`` to ``path`` so that a reader finds the old file or the new one, never a part of either.

    A temporary file in the same folder is written, flushed to the disk and renamed over ``path``; then the folder
    entry itself is flushed (the recipe of SQLite and of "Files are hard", danluu.com). Missing folders are made.
    Of two writers, also on two hosts, the last one's file stays.

    Raises:
        UserError: the disk is full, the folder is not writable, or the device failed; ``path`` is as it was.
    """
    try:
        for attempt in range(ATTEMPTS):
            try:
                _write_and_rename(path, content)
                break
            except FileNotFoundError:  # another host put a finished run in the place of the folder meanwhile
                if attempt == ATTEMPTS - 1:
                    raise
    except OSError as error:
        raise UserError(
            f"cannot write {str(path)!r}: {error.strerror or error}; nothing was overwritten, make room and try again"
        ) from error
    flush_folder(path.parent)


def _write_and_rename(path: Path, content: bytes | memoryview) -> None:
    temporary = temporary_path(path, "tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename inside it survives a power cut (POSIX only).

    Not every file system can, and not every folder one may write to can be opened: there the rename has to do.

    Raises:
        UserError: the device failed; the files are in place, but a power cut might still lose them.
    """
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP):
            raise UserError(
                f"{str(folder)!r} was written, but the disk did not confirm it: {error.strerror or error}; "
                "check the disk, then try again"
            ) from error


def temporary_path(path: Path, kind: str) -> Path:
    """Return a hidden name beside ``path`` that nobody else has: process ids repeat across the hosts of a cluster."""
    return path.with_name(f".{path.name}.{_host()}.{secrets.token_hex(4)}.{kind}")


def remove_leftovers(folder: Path, kind: str = "tmp", *, of: str = "*") -> None:
    """Remove what killed processes left of ``temporary_path``; only under a lock that other processes here respect.

    Other hosts may not see that lock, so that what they began within a day stays. ``of``: the name it was written for,
    a shell pattern.
    """
    for leftover in folder.glob(f".{of}.{kind}"):
        if _is_abandoned(leftover):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _is_abandoned(temporary: Path) -> bool:
    host = re.fullmatch(r".*\.([^.]*)\.[0-9a-f]{8}\.[a-z]+", temporary.name)
    if host and host[1] == _host():
        return True
    with contextlib.suppress(OSError):  # it was renamed meanwhile
        return time.time() - temporary.stat().st_mtime > FORGOTTEN_SECONDS
    return False


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname().split(".")[0])[:40] or "host"


def prune(folder: Path, limit_bytes: int) -> None:
    """Remove what was not used for longest of the files and folders in ``folder``, until they take ``limit_bytes``.

    Locks and hidden files stay.
    """
    found = []
    for entry in folder.glob("[!.]*"):
        if entry.suffix == ".lock":
            continue
        with contextlib.suppress(OSError):  # another process removed it, or renamed a file, in this moment
            files = list(entry.iterdir()) if entry.is_dir() else [entry]
            found.append((entry.stat().st_mtime, sum(file.stat().st_size for file in files), entry))
    excess = sum(size for _, size, _ in found) - limit_bytes
    for _, size, entry in sorted(found)[:-1]:  # the newest is in use
        if excess <= 0:
            return
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
        excess -= size


def sha256(content: bytes) -> str:
    """Return the SHA-256 of ``content`` as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits; raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_tensors(tensors: "Mapping[str, torch.Tensor]", *, text: str = "") -> str:
    """Return the SHA-256 over ``text`` and the names, types, shapes and bytes of ``tensors``, in the names' order."""
    import torch

    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def digest(content: bytes | np.ndarray) -> bytes:
    """Return the BLAKE2b of ``content`` as 32 ASCII hexadecimal digits (numpy cuts raw digests at a trailing zero)."""
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()
