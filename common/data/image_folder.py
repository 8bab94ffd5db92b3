"""Image folders: ``train/<class>/*`` with ``test/<class>/*`` (and ``val/``), ``<class>/*`` alone, or a label file."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data import label_file
from common.data.images import EXTENSIONS, LabelledImages, decode_bytes
from common.data.splits import SPLIT_NAMES, RawSplits
from common.runtime.errors import UserError
from common.runtime.files import digest
from common.runtime.progress import progress

NO_CLASSES = ("__MACOSX", "@eaDir", "@Recycle", "#recycle")  # what archives and network drives bring along
SMALL_SIDE = 64  # images of one size up to 64 x 64 are kept decoded (CIFAR-10: 184 MB) ...
MAX_BYTES = 2**30  # ... as long as all together fit into 1 GiB
SMALL_FILE = 10_000  # bytes; below, decoding is mostly Python, and threads that wait for its lock halve the speed


@dataclass(frozen=True)
class _Scan:
    """What one file holds: its digest, its pixels if they are few, and why it is unusable, if it is."""

    digest: bytes = b""
    pixels: np.ndarray | None = None
    problem: str | None = None


def read(folder: Path, *, skip_damaged: bool = False, workers: int | None = None) -> RawSplits:
    """Read an image folder: every file once, in ``workers`` threads, hashed and fully decoded.

    Images lie directly in their class's folder. Hidden files, other extensions and unrelated folders are ignored and
    counted in a note; a folder inside a class is refused, because it is more often a wrong path than a class. Symbolic
    links are followed. Where all images have one size of at most 64 x 64 they are kept in memory (grey as RGB if
    there are both); otherwise they stay files. Where a label file lies in ``folder``, it says what its images are.

    Raises:
        UserError: no such layout, a label file that does not fit (``label_file.read``), a class without images, less
            than two classes, a test class that ``train`` lacks, or damaged files, all of them counted, unless
            ``skip_damaged`` leaves them out.
    """
    table, notes = label_file.find(folder, is_needed=not _has_class_folders(folder))
    if table:
        listed = label_file.read(table, _below(folder), notes)
    else:
        roots = _layout(folder, notes)
        listed = {part: _list_classes(root, notes) for part, root in roots.items()}
    classes = _common_classes(listed, folder)
    files = {part: [found.get(name, []) for name in classes] for part, found in listed.items()}
    scans = _scan([file for part in files.values() for of_class in part for file in of_class], workers)
    skipped = _damaged(scans, folder, skip_damaged)
    pixels = _hold(scans)
    parts = {part: _images(by_class, scans, pixels) for part, by_class in files.items()}
    for part, images in parts.items():
        notes += _missing_classes(part, images, classes, folder)
    read_from = f"label file {table.name}" if table else "class folders"
    return RawSplits(classes, parts, tuple(notes), skipped, read_from)


def _visible(folder: Path) -> list[os.DirEntry]:
    """List a folder by name, without hidden entries and ``NO_CLASSES``."""
    try:
        with os.scandir(folder) as entries:
            shown = (e for e in entries if not e.name.startswith(".") and e.name not in NO_CLASSES)
            return sorted(shown, key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {str(folder)!r}: {error.strerror or error}") from error


def _has_class_folders(folder: Path) -> bool:
    """Tell whether ``folder`` may be laid out by folders: by splits, or by two classes and more."""
    names = [entry.name.lower() for entry in _visible(folder) if _is_folder(entry)]
    return len(names) > 1 or any(name in SPLIT_NAMES for name in names)


def _below(folder: Path) -> list[Path]:
    """Return all images below ``folder``, at any depth, sorted by path; those in hidden folders are passed over."""
    found = []
    for parent, folders, _ in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in NO_CLASSES]
        found += [Path(entry) for entry in _visible(Path(parent)) if is_image(entry)]
    return sorted(found)


def _layout(folder: Path, notes: list[str]) -> dict[str, Path]:
    """Return the root folder of each part; ``notes`` say how the layout was understood."""
    names = [entry.name for entry in _visible(folder) if _is_folder(entry)]
    found: dict[str, Path] = {}
    for name in names:
        part = SPLIT_NAMES.get(name.lower())
        if part in found:
            raise UserError(f"{str(folder)!r} has two folders for the {part} split: {found[part].name!r} and {name!r}")
        if part:
            found[part] = folder / name
    if not found:
        return {"all": folder}
    if "train" not in found or len(found) == 1:
        raise UserError(
            f"{str(folder)!r} has {', '.join(sorted(found))} but needs train with test (or val); "
            "a folder of class folders alone is split 80/20"
        )
    ignored = [name for name in names if folder / name not in found.values()]
    if ignored:
        notes.append(f"ignored beside train: {', '.join(map(repr, ignored))}")
    if "test" not in found:
        notes.append(f"there is no test folder: {found['val'].name!r} serves as the test split")
        found["test"] = found.pop("val")
    return {part: found[part] for part in ("train", "val", "test") if part in found}


def _list_classes(root: Path, notes: list[str]) -> dict[str, list[Path]]:
    """Return the image files of each class folder, both sorted by name; a note counts the files passed over."""
    classes: dict[str, list[Path]] = {}
    others = []
    for entry in _visible(root):
        if not _is_folder(entry):
            others.append(entry)
            continue
        inside = _visible(root / entry.name)
        if folders := [e.name for e in inside if _is_folder(e)]:
            raise UserError(
                f"{str(root / entry.name)!r} holds the folder {folders[0]!r}: images must lie directly in their "
                "class's folder, as <class>/* or train/<class>/* with test/<class>/*"
            )
        classes[entry.name] = [root / entry.name / e.name for e in inside if is_image(e)]
        others += [e for e in inside if not is_image(e)]
    if others:
        notes.append(f"ignored {len(others):,} files that are no images, for example {others[0].name!r}")
    return classes


def is_image(entry: os.DirEntry | Path) -> bool:
    """Tell whether a folder's entry is a regular file (opening a pipe would hang) with an image's extension."""
    return entry.name.lower().endswith(EXTENSIONS) and Path(entry).is_file()


def _is_folder(entry: os.DirEntry) -> bool:
    """Tell whether an entry is a folder; ``os.DirEntry.is_dir`` itself raises OSError on a link to itself."""
    return Path(entry).is_dir()


def _common_classes(listed: dict[str, dict[str, list[Path]]], folder: Path) -> tuple[str, ...]:
    """Return the classes of the part that trains, after checking them against the other parts."""
    first, *rest = listed
    classes = tuple(listed[first])
    if len(classes) < 2:
        what = f"only the class {classes[0]!r}" if classes else "no class folders"
        raise UserError(f"{str(folder)!r} has {what}: at least two folders of images, one for each class, are needed")
    for part in rest:
        if unknown := sorted(set(listed[part]) - set(classes)):
            raise UserError(
                f"{str(folder)!r}: {part} has classes that train lacks: {', '.join(map(repr, unknown[:10]))}"
            )
    for name in classes:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UserError(f"{str(folder)!r}: the class name {name!r} is no UTF-8 text; rename that folder")
    return classes


def _scan(files: Iterable[Path], workers: int | None) -> dict[Path, _Scan]:
    """Read, hash and decode every file in threads; Pillow and BLAKE2b release the interpreter lock."""
    files = list(files)
    sizes = [file.stat().st_size for file in files[:: len(files) // 100 + 1] if file.is_file()]
    threads = 1 if sum(sizes) < SMALL_FILE * len(sizes) else workers or os.cpu_count() or 1
    pool = ThreadPoolExecutor(min(32, threads))
    # Many files in one task: a task for each costs as much again as its small image.
    groups = [files[start : start + 64] for start in range(0, len(files), 64)]
    scans: dict[Path, _Scan] = {}
    try:
        results = pool.map(lambda group: [_scan_file(path) for path in group], groups)
        with progress(desc="checking images", total=len(files)) as bar:
            for group, scanned in zip(groups, results, strict=True):
                scans.update(zip(group, scanned, strict=True))
                bar.update(len(group))
        return scans
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for thousands of files


def _scan_file(path: Path) -> _Scan:
    try:
        content = path.read_bytes()
        pixels = decode_bytes(content)
    except (OSError, ValueError) as error:
        return _Scan(problem=getattr(error, "strerror", None) or str(error))
    return _Scan(digest(content), pixels if max(pixels.shape[:2]) <= SMALL_SIDE else None)


def _damaged(scans: dict[Path, _Scan], folder: Path, skip: bool) -> tuple[str, ...]:
    """Return the damaged files, relative to ``folder``; raises UserError with all of them counted unless ``skip``."""
    problems = {_relative(path, folder): scan.problem for path, scan in scans.items() if scan.problem}
    if problems and not skip:
        if len(problems) > 10:
            print(*(f"damaged: {name!r} ({problem})" for name, problem in problems.items()), sep="\n", flush=True)
        named = "; ".join(f"{name!r} ({problem})" for name, problem in list(problems.items())[:10])
        more = f"; and {len(problems) - 10:,} more, listed above" if len(problems) > 10 else ""
        raise UserError(
            f"{len(problems):,} of {len(scans):,} images in {str(folder)!r} are damaged: {named}{more}. "
            "Replace or remove them (training can leave them out: `skip_damaged`)"
        )
    return tuple(problems)


def _relative(path: Path, folder: Path) -> str:
    """Return ``path`` below ``folder`` with forward slashes; bytes that are no UTF-8 are escaped."""
    return path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode()


def _hold(scans: dict[Path, _Scan]) -> dict[Path, np.ndarray] | None:
    """Return every usable file's pixels, all of one shape, or None where they differ in size or are too large."""
    pixels = {path: scan.pixels for path, scan in scans.items() if not scan.problem}
    sizes = {None if image is None else image.shape[:2] for image in pixels.values()}
    if len(sizes) != 1 or None in sizes:
        return None
    depth = max(image.ndim for image in pixels.values())
    if sum(image.size for image in pixels.values()) > MAX_BYTES:
        return None
    return {path: np.repeat(a[..., None], 3, axis=2) if a.ndim < depth else a for path, a in pixels.items()}


def _images(
    by_class: list[list[Path]], scans: dict[Path, _Scan], pixels: dict[Path, np.ndarray] | None
) -> LabelledImages:
    """Gather one part: its undamaged files in natural order, that is, by class, then by file name."""
    pairs = [(label, path) for label, files in enumerate(by_class) for path in files if not scans[path].problem]
    files = tuple(path for _, path in pairs)
    return LabelledImages(
        labels=np.array([label for label, _ in pairs], dtype=np.int64),
        indices=np.arange(len(pairs), dtype=np.int64),
        pixels=None if pixels is None or not files else np.stack([pixels[path] for path in files]),
        files=files,
        digests=np.array([scans[path].digest for path in files], dtype="S32"),
    )


def _missing_classes(part: str, images: LabelledImages, classes: tuple[str, ...], folder: Path) -> list[str]:
    """Return a note on the classes of which a part has no image; in the part that trains that is a UserError."""
    missing = [name for label, name in enumerate(classes) if label not in images.labels]
    named = ", ".join(map(repr, missing[:10])) + (" and others" if len(missing) > 10 else "")
    if missing and (part in ("train", "all") or len(missing) == len(classes)):
        raise UserError(f"{str(folder)!r}: {part} has no usable image ({', '.join(EXTENSIONS)}) of {named}")
    return [f"{part} has no image of {named}"] if missing else []
