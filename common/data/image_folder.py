"""Image folders: ``train/<class>/*`` with ``test/<class>/*`` (and ``val/``), ``<class>/*`` alone, or a label file."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from common.data import label_file
from common.data.images import EXTENSIONS, LabelledImages
from common.data.scan import require_whole, scan_files
from common.data.splits import SPLIT_NAMES, RawSplits
from common.runtime.errors import UserError

NO_CLASSES = ("__MACOSX", "@eaDir", "@Recycle", "#recycle")  # what archives and network drives bring along


def read(
    folder: Path, *, skip_damaged: bool = False, workers: int | None = None, cache: Path | None = None
) -> RawSplits:
    """Read an image folder: each file once, in up to ``workers`` processes (default: all cores), hashed and decoded.

    Images lie directly in their class's folder. Hidden files, other extensions and unrelated folders are ignored and
    counted in a note; a folder inside a class is refused, because it is more often a wrong path than a class. Symbolic
    links are followed. Where all images have one size of at most 64 x 64 they are kept in memory (grey as RGB if
    there are both); otherwise they stay files. Where a label file lies in ``folder``, it says what its images are.
    What many files hold is kept in the folder ``cache`` (``scan.scan_files``).

    Raises:
        UserError: no such layout, a label file that does not fit (``label_file.read``), a class without images, less
            than two classes, a test class that ``train`` lacks, or damaged files, all of them counted, unless
            ``skip_damaged`` leaves them out. Or a process that read them was killed.
    """
    table, notes = label_file.find(folder, is_needed=not _has_class_folders(folder))
    if table:
        listed = label_file.read(table, _below(folder), notes)
    else:
        roots = _layout(folder, notes)
        listed = {part: _list_classes(root, notes) for part, root in roots.items()}
    classes = _common_classes(listed, folder)
    pairs = {
        part: [(label, file) for label, name in enumerate(classes) for file in found.get(name, [])]
        for part, found in listed.items()
    }
    files = [file for part in pairs.values() for _, file in part]
    scan = scan_files(files, folder, workers=workers, cache=cache)
    skipped = _damaged(files, scan.problems, folder, skip_damaged)
    parts, first, held = {}, 0, 0
    for part, of_part in pairs.items():
        usable = [number for number in range(len(of_part)) if first + number not in scan.problems]
        parts[part] = LabelledImages(
            labels=np.array([of_part[number][0] for number in usable], dtype=np.int64),
            indices=np.arange(len(usable), dtype=np.int64),
            pixels=None if scan.pixels is None or not usable else scan.pixels[held : held + len(usable)],
            files=tuple(of_part[number][1] for number in usable),
            digests=np.array([scan.digests[first + number] for number in usable], dtype="S32"),
        )
        first, held = first + len(of_part), held + len(usable)
        notes += _missing_classes(part, parts[part], classes, folder)
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
        own = root / entry.name
        images = {e: own / e.name for e in inside if is_image(e)}
        classes[entry.name] = list(images.values())
        others += [e for e in inside if e not in images]
    if others:
        notes.append(f"ignored {len(others):,} files that are no images, for example {others[0].name!r}")
    return classes


def is_image(entry: os.DirEntry | Path) -> bool:
    """Tell whether a folder's entry is a regular file (opening a pipe would hang) with an image's extension."""
    with suppress(OSError):  # a link to itself
        return entry.name.lower().endswith(EXTENSIONS) and entry.is_file()
    return False


def _is_folder(entry: os.DirEntry) -> bool:
    with suppress(OSError):  # a link to itself
        return entry.is_dir()
    return False


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


def _damaged(files: Sequence[Path], problems: dict[int, str], folder: Path, skip: bool) -> tuple[str, ...]:
    """Return the damaged files, relative to ``folder``; raises UserError with all of them counted unless ``skip``."""
    problems = {_relative(files[number], folder): problem for number, problem in problems.items()}
    if not skip:
        remedy = "Replace or remove them (the training scripts can leave them out: `skip_damaged`)"
        require_whole(problems, len(files), what=f"images in {str(folder)!r}", remedy=remedy)
    return tuple(problems)


def _relative(path: Path, folder: Path) -> str:
    """Return ``path`` below ``folder`` with forward slashes; bytes that are no UTF-8 are escaped."""
    return path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode()


def _missing_classes(part: str, images: LabelledImages, classes: tuple[str, ...], folder: Path) -> list[str]:
    """Return a note on the classes of which a part has no image; in the part that trains that is a UserError."""
    missing = [name for label, name in enumerate(classes) if label not in images.labels]
    named = ", ".join(map(repr, missing[:10])) + (" and others" if len(missing) > 10 else "")
    if missing and (part in ("train", "all") or len(missing) == len(classes)):
        raise UserError(f"{str(folder)!r}: {part} has no usable image ({', '.join(EXTENSIONS)}) of {named}")
    return [f"{part} has no image of {named}"] if missing else []
