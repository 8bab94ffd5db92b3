"""What image files hold: each read once, hashed and decoded, on all cores; what was found is kept for the next run."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import __version__ as pillow_version

from common.data import folder_index
from common.data.images import decode_bytes
from common.runtime.environment import cores
from common.runtime.errors import UserError
from common.runtime.files import digest, prune, remove_leftovers, sha256
from common.runtime.locks import locked
from common.runtime.parallel import parallel_map
from common.runtime.progress import progress

VERSION = 1  # raise it whenever a file would be read otherwise: what older code kept is then made again
SMALL_SIDE = 64  # images of one size up to 64 x 64 are kept decoded (CIFAR-10: 184 MB) ...
MAX_BYTES = 2**28  # ... as long as all together, before grey ones become RGB, fit into 256 MiB: the splits copy them
GROUP = 256  # files that a process reads at a time
MANY_BYTES, MANY_FILES = 20_000_000, 4_000  # about a second's work: more is shared out to processes, and kept
CACHE_BYTES = 2 * 2**30


@dataclass(frozen=True, eq=False)
class Scan:
    """What N files hold, in their order.

    ``digests``: N times 32 hexadecimal digits, b"" of an unusable file; ``problems``: why files are unusable, by their
    position; ``pixels``: of the M usable ones (M, H, W) grey or (M, H, W, 3) RGB uint8, None where they are not kept.
    """

    digests: list[bytes]
    problems: dict[int, str]
    pixels: np.ndarray | None


def scan_files(files: Sequence[Path], folder: Path, *, workers: int | None, cache: Path | None) -> Scan:
    """Return what ``files``, all below ``folder``, hold, as far as it is not known from before.

    Much work is shared out to up to ``workers`` processes (None: all cores), and kept in the folder ``cache`` (None:
    nothing is): found again while every file has the path, size, time of modification and inode that it had, and a
    sample of them the same bytes.
    """
    processes = cores() if workers is None else min(workers, cores())
    stats = [_stat(file) for file in files]
    is_much = len(files) > MANY_FILES or sum(size for size, _, _ in stats) > MANY_BYTES
    if not is_much or cache is None or not _is_writable(cache):
        return _scan(files, processes if is_much else 1)
    prefix = f"{folder}{os.sep}"
    names = "\0".join(str(file).removeprefix(prefix) for file in files).encode("utf-8", "surrogateescape")
    key = sha256(names + np.array(stats, dtype=np.int64).tobytes())
    path = cache / f"{sha256(os.fsencode(folder.resolve()))[:32]}.npz"
    with locked(path.with_suffix(".lock"), what=f"the images in {str(folder)!r}", wait=True):
        remove_leftovers(cache, of=f"{path.name}.*")
        kept = _read(path, key, len(files))
        if kept and _is_still(kept, files):
            with suppress(OSError):  # another user's
                os.utime(path)  # the time of last use, by which the oldest are removed
            return kept
        scan = _scan(files, processes)
        with suppress(UserError):  # a full disk: it is read again the next time
            _write(path, key, scan)
        prune(cache, CACHE_BYTES)
    return scan


def require_whole(problems: Mapping[str, str], count: int, *, what: str, remedy: str) -> None:
    """Refuse damaged files, given by their names, among ``count`` of ``what``; those beyond ten are all printed first.

    Raises:
        UserError: there is one; the message says what is wrong with each, and the ``remedy``.
    """
    if not problems:
        return
    if len(problems) > 10:
        print(*(f"damaged: {name!r} ({problem})" for name, problem in problems.items()), sep="\n", flush=True)
    named = "; ".join(f"{name!r} ({problem})" for name, problem in list(problems.items())[:10])
    more = f"; and {len(problems) - 10:,} more, listed above" if len(problems) > 10 else ""
    raise UserError(f"{len(problems):,} of {count:,} {what} are damaged: {named}{more}. {remedy}")


def _stat(file: Path) -> tuple[int, int, int]:
    try:
        return folder_index.file_stat(file)
    except OSError:  # gone, or not readable: reading it will say so
        return 0, 0, 0


def _is_writable(cache: Path) -> bool:
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    return os.access(cache, os.W_OK)


def _write(path: Path, key: str, scan: Scan) -> None:
    header = {"version": VERSION, "pillow": pillow_version, "files": key, "problems": list(scan.problems.items())}
    pixels = {} if scan.pixels is None else {"pixels": scan.pixels}
    folder_index.write_arrays(path, header, {"digests": np.array(scan.digests, dtype="S32"), **pixels})


def _read(path: Path, key: str, count: int) -> Scan | None:
    """Return what was kept in ``path`` of ``count`` files, or None where it is missing, damaged, or of other files."""
    try:
        header, arrays = folder_index.read_arrays(path)
        if (header["version"], header["pillow"], header["files"]) == (VERSION, pillow_version, key):
            kept = Scan(arrays["digests"].tolist(), dict(header["problems"]), arrays.get("pixels"))
            usable = count - len(kept.problems)
            if len(kept.digests) == count and (kept.pixels is None or len(kept.pixels) == usable):
                return kept
    except folder_index.DAMAGE:  # or there is no such file
        pass
    return None


def _is_still(kept: Scan, files: Sequence[Path]) -> bool:
    """Whether a sample of the files has the bytes that were read, and no unusable one can be read now."""
    usable = [number for number in range(len(files)) if number not in kept.problems]
    sample = [usable[place] for place in folder_index.sample(len(usable))]
    now = _scan_group([files[number] for number in (*sample, *kept.problems)])
    expected = [*(kept.digests[number] for number in sample), *(b"" for _ in kept.problems)]
    return now.digests == expected


def _scan(files: Sequence[Path], processes: int) -> Scan:
    groups = [files[start : start + GROUP] for start in range(0, len(files), GROUP)]
    scans = _from_processes(groups, processes) if processes > 1 else (_scan_group(group) for group in groups)
    digests, problems, pixels = [], {}, []
    # Closed also by Ctrl-C, which must not wait for thousands of files.
    with closing(scans), progress(desc="checking images", total=len(files)) as bar:
        for scan in scans:
            problems |= {len(digests) + number: problem for number, problem in scan.problems.items()}
            digests += scan.digests
            if len(scan.problems) < len(scan.digests):
                pixels = _and_more(pixels, scan.pixels)
            bar.update(len(scan.digests))
    return Scan(digests, problems, _together(pixels))


def _from_processes(groups: Sequence[Sequence[Path]], processes: int) -> Iterator[Scan]:
    """Yield what processes read; one that was killed (mostly for memory) is a UserError."""
    try:
        yield from parallel_map(_scan_group, groups, processes)
    except BrokenProcessPool as error:
        raise UserError(
            "a process that reads images was killed, mostly because memory is full: "
            "free some, or give the training scripts or evaluate.py a smaller `workers`, such as 0"
        ) from error


def _scan_group(files: Sequence[Path]) -> Scan:
    digests, problems, pixels = [], {}, []
    for number, file in enumerate(files):
        try:
            content = file.read_bytes()
            image = decode_bytes(content)
        except (OSError, ValueError) as error:
            problems[number] = getattr(error, "strerror", None) or str(error)
            digests.append(b"")
            continue
        digests.append(digest(content))
        pixels = _and_more(pixels, image[None] if max(image.shape[:2]) <= SMALL_SIDE else None)
    return Scan(digests, problems, _together(pixels))


def _and_more(kept: list[np.ndarray] | None, pixels: np.ndarray | None) -> list[np.ndarray] | None:
    """Return ``kept`` with further ``pixels`` (N, H, W[, 3]), or None where these differ in size or are too many."""
    if kept is None or pixels is None or any(part.shape[1:3] != pixels.shape[1:3] for part in kept[:1]):
        return None
    return [*kept, pixels] if sum(part.nbytes for part in kept) + pixels.nbytes <= MAX_BYTES else None


def _together(parts: list[np.ndarray] | None) -> np.ndarray | None:
    """Return the images of several parts as one array, grey ones as RGB if there are both."""
    if not parts:
        return None
    depth = max(part.ndim for part in parts)
    return np.concatenate([np.repeat(part[..., None], 3, axis=3) if part.ndim < depth else part for part in parts])
