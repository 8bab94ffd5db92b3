"""A label file beside images: ``metadata.csv`` or ``labels.csv``, one row an image (file_name, label, maybe split)."""

import csv
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from common.data.images import EXTENSIONS
from common.data.splits import SPLIT_NAMES
from common.runtime.errors import UserError

NAMES = ("metadata.csv", "labels.csv")
HEADER = "file_name,label or file_name,label,split"


def find(folder: Path, *, is_needed: bool) -> tuple[Path | None, list[str]]:
    """Return the label file that lies directly in ``folder``, or None, and notes on files that only seem to be one.

    Raises:
        UserError: there are two; or there is one without the columns file_name and label and ``is_needed``, because
            the folder is not laid out by class folders.
    """
    tables = [folder / name for name in NAMES if (folder / name).is_file()]
    headers = {table: _header(table) for table in tables}
    usable = [table for table in tables if {"file_name", "label"} <= set(headers[table])]
    if len(usable) > 1:
        raise UserError(f"{str(folder)!r} has two label files, {' and '.join(NAMES)}: remove one of them")
    if tables and not usable and is_needed:
        first = ",".join(headers[tables[0]])[:80]
        raise UserError(f"the first line of {str(tables[0])!r} is {first!r}, but must be {HEADER}, in UTF-8")
    others = [] if usable else [table.name for table in tables]
    return (usable or [None])[0], [f"ignored {name!r}: its first line is not {HEADER}" for name in others]


def _header(table: Path) -> list[str]:
    """Return the names of a CSV file's columns; none where it is no text."""
    try:
        with open(table, "rb") as file:
            first = file.readline().decode("utf-8-sig")
        return [name.strip() for name in next(csv.reader([first]), [])]
    except (OSError, ValueError, csv.Error):
        return []


def read(table: Path, images: Sequence[Path], notes: list[str]) -> dict[str, dict[str, list[Path]]]:
    """Return the files of each class of each part, all sorted: of ``all``, or of ``train``, ``test`` and maybe ``val``.

    A part is the row's ``split``; without that column, the folder of this name that all images lie in, if they do.
    Other columns are ignored.

    Args:
        images: all images below the label file's folder, none of which may be missing in it.
        notes: gains how the splits were understood.

    Raises:
        UserError: the table cannot be read, or it and ``images`` do not fit; one message counts everything.
    """
    rows = _rows(table)
    files = [PurePosixPath(row["file_name"].replace("\\", "/")) for row in rows]
    labels, parts = [row["label"] for row in rows], _parts(rows, files)
    _require_fit(table, rows, files, parts, images)
    found: dict[str, dict[str, list[Path]]] = {}
    for label, file, part in sorted(zip(labels, files, parts, strict=True)):
        found.setdefault(part, {}).setdefault(label, []).append(table.parent / file)
    if len(set(labels)) < 2:
        raise UserError(f"{str(table)!r} has {len(set(labels))} labels: at least two are needed")
    if "all" in found:
        return found
    if "train" not in found or len(found) == 1:
        raise UserError(
            f"{str(table)!r} has the split {', '.join(sorted(found))} but needs train with test (or val); without the "
            "column split, and without folders of these names, it is split 80/20"
        )
    if "test" not in found:
        notes.append("there is no test split: 'val' serves as the test split")
        found["test"] = found.pop("val")
    return {part: found[part] for part in ("train", "val", "test") if part in found}


def _rows(table: Path) -> list[dict[str, str]]:
    """Return the rows of ``table`` by column, without the spaces around a value; what is missing is empty."""
    rows = []
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            for row in reader:
                if None in row:
                    raise UserError(
                        f"line {reader.line_num} of {str(table)!r} has too many values: quote one with a comma"
                    )
                rows.append({name: value.strip() for name, value in row.items()})
            return rows
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{str(table)!r} is no CSV file in UTF-8: {error}") from error


def _parts(rows: Sequence[Mapping[str, str]], files: Sequence[PurePosixPath]) -> list[str | None]:
    """Return the part of each row, ``all`` where there are no splits, None where it names none."""
    if rows and "split" in rows[0]:
        return [SPLIT_NAMES.get(row["split"].lower()) for row in rows]
    of_folder = list(map(_part_of_folder, files))
    return of_folder if any(of_folder) else ["all"] * len(rows)


def _part_of_folder(file: PurePosixPath) -> str | None:
    return SPLIT_NAMES.get(file.parts[0].lower()) if len(file.parts) > 1 else None


def _require_fit(
    table: Path,
    rows: Sequence[Mapping[str, str]],
    files: Sequence[PurePosixPath],
    parts: Sequence[str | None],
    images: Sequence[Path],
) -> None:
    """Refuse a table that does not say one thing about each image, or another thing than the images' folders."""
    labels, counts = {row["label"] for row in rows}, Counter(files)
    listed = list(zip(rows, files, parts, strict=True))
    on_disk = {PurePosixPath(path.relative_to(table.parent).as_posix()) for path in images}
    problems = {
        "rows without a label": [row["file_name"] for row, _, _ in listed if not row["label"]],
        "repeated rows": [str(file) for file, count in counts.items() for _ in range(count - 1)],
        "files that are not there": [str(file) for file in counts if not _is_image(table.parent, file, on_disk)],
        "images that it does not list": sorted(map(str, on_disk - set(files))),
        f"splits other than {', '.join(SPLIT_NAMES)}": [
            f"{row['file_name']}: {row.get('split', '')}" for row, _, part in listed if part is None
        ],
        "images in the folder of another class": [
            f"{file}: {row['label']}" for row, file, _ in listed if file.parent.name in labels - {row["label"]}
        ],
        "images in the folder of another split": [
            f"{file}: {row['split']}" for row, file, part in listed if _part_of_folder(file) not in (None, part)
        ],
    }
    told = [f"{len(names):,} {what} ({_few(names)})" for what, names in problems.items() if names]
    if told:
        raise UserError(f"{str(table)!r} does not fit its images: {'; '.join(told)}")


def _is_image(folder: Path, file: PurePosixPath, known: Collection[PurePosixPath]) -> bool:
    """Tell whether ``file`` is an image inside ``folder``; it may lie behind a link, where nobody has looked for it."""
    is_inside = not file.is_absolute() and ".." not in file.parts
    return file in known or (is_inside and file.name.lower().endswith(EXTENSIONS) and (folder / file).is_file())


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + ", ..." * (len(names) > 5)
