"""Named data sets as the Hugging Face Hub keeps them: parquet files, in each row a PNG image and its label."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.data.formats import in_memory
from common.data.images import LabelledImages
from common.runtime.errors import UserError
from common.runtime.progress import progress

if TYPE_CHECKING:
    import pyarrow

PARTS = ("train", "test")
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "fine_label")  # a file has one of each


def find_files(folder: Path) -> dict[str, list[Path]]:
    """Return the parquet files below ``folder`` of each of ``PARTS`` that has some, in this order, sorted by path.

    The name of a file, or that of its folder, begins with its part's. Hidden folders are passed over.
    """
    found: dict[str, list[Path]] = {part: [] for part in PARTS}
    for path in sorted(folder.rglob("*.parquet")):
        inside = path.relative_to(folder).parts
        part = next((part for name in inside[:-3:-1] for part in PARTS if name.startswith(part)), None)
        if part and not any(name.startswith(".") for name in inside):
            found[part].append(path)
    return {part: paths for part, paths in found.items() if paths}


def find_commit(folder: Path, files: Mapping[str, Sequence[Path]]) -> str | None:
    """Return the commit that ``files`` below ``folder`` were downloaded from, or None where it was not written down.

    ``hf download`` keeps it in the first line of a file's ``.cache/huggingface/download/<path>.metadata``.
    """
    commits = set()
    for path in (path for paths in files.values() for path in paths):
        metadata = folder / ".cache/huggingface/download" / f"{path.relative_to(folder)}.metadata"
        commits.add(metadata.read_text(errors="replace").partition("\n")[0] if metadata.is_file() else "")
    commit = commits.pop() if len(commits) == 1 else ""
    return commit if re.fullmatch("[0-9a-f]{40}", commit) else None


def require_pyarrow() -> None:
    """Refuse to go on, with the command that installs it, where pyarrow is missing (UserError)."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(
            "parquet files are read by pyarrow, which is not installed: pip install pyarrow "
            "(without it, `source` torchvision downloads torchvision's files)"
        ) from error


def read(files: Mapping[str, Sequence[Path]]) -> tuple[dict[str, LabelledImages], list[str] | None]:
    """Read the ``files`` of each part, in their order, and the names of the classes where the files have them.

    Raises:
        UserError: pyarrow is not installed; a file is damaged or has other columns; an image is no PNG of the size and
            kind (grey or RGB) of the others; the message names the file and the row, from 0.
    """
    require_pyarrow()
    tables = {part: [_read_table(path) for path in paths] for part, paths in files.items()}
    with progress(desc="decoding images", total=sum(len(table) for part in tables.values() for table in part)) as bar:
        parts = {part: _labelled_images(paths, tables[part], bar) for part, paths in files.items()}
    return parts, _class_names(tables[PARTS[0]][0].schema)


def _read_table(path: Path) -> "pyarrow.Table":
    """Return a file's image and label columns, in this order; damage and other columns are a UserError."""
    import pyarrow
    from pyarrow import parquet, types

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [name for known in (IMAGE_COLUMNS, LABEL_COLUMNS) for name in known if name in names][:2]
            table = file.read(columns).select(columns)
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{str(path)!r} is damaged or no parquet file ({reason}): remove it, and get it again"
        ) from error
    kinds = table.schema.types
    is_struct = len(kinds) == 2 and types.is_struct(kinds[0]) and kinds[0].get_field_index("bytes") >= 0
    if not (is_struct and types.is_integer(kinds[1]) and table.column(1).null_count == 0):
        raise UserError(
            f"{str(path)!r} has the columns {', '.join(map(repr, names[:12]))}, but needs {' or '.join(IMAGE_COLUMNS)} "
            f"(a struct with the field bytes) and {' or '.join(LABEL_COLUMNS)} (a whole number in every row)"
        )
    return table


def _class_names(schema: "pyarrow.Schema") -> list[str] | None:
    """Return the names of the label column's classes as the datasets library writes them, in the order of labels."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[schema.names[1]]["names"]
    except (TypeError, KeyError, ValueError):
        return None
    return names if isinstance(names, list) else None


def _labelled_images(paths: Sequence[Path], tables: Sequence["pyarrow.Table"], bar: tqdm) -> LabelledImages:
    """Decode all rows of one part."""
    pixels = []
    for path, table in zip(paths, tables, strict=True):
        for row, image in enumerate(table.column(0).to_pylist()):
            try:
                pixels.append(_decode_png(image["bytes"]))
            except Exception as error:  # what Pillow raises on damage, and TypeError where a row has no image
                raise UserError(
                    f"row {row:,} of {str(path)!r} is no whole PNG image, grey or RGB ({error}): get the file again"
                ) from error
            bar.update(1)
    if (shapes := len({image.shape for image in pixels})) != 1:
        raise UserError(f"{', '.join(repr(str(path)) for path in paths[:3])}: images of {shapes} sizes, not of one")
    return in_memory(np.stack(pixels), np.concatenate([table.column(1).to_numpy() for table in tables]))


def _decode_png(content: bytes) -> np.ndarray:
    """Decode a PNG to uint8, (H, W) grey or (H, W, 3) RGB; the published data have no other modes."""
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"its mode is {image.mode}")
        return np.array(image)


def in_batch_order(images: LabelledImages, batch_labels: tuple[str, ...]) -> LabelledImages:
    """Put the batches of a training split, told by their first ten labels, in order, or leave all as they are."""
    if not batch_labels:
        return images
    batches = np.arange(len(images)).reshape(len(batch_labels), -1)
    found = {"".join(map(str, images.labels[batch[:10]])): batch for batch in batches}
    if found.keys() != set(batch_labels):
        return images
    ordered = images.subset(np.concatenate([found[labels] for labels in batch_labels]))
    return replace(ordered, indices=images.indices)
