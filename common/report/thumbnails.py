"""Small pictures of test images, side by side in one file, and the images themselves where they can be found."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from common.data.dataset import load_dataset_of_run
from common.data.images import LabelledImages, decode, joined
from common.runs.result import Run
from common.runtime.errors import UserError

MOST_SIDE = 64  # pixels
COLUMNS = 64
BLOCK = 16  # pixels of a WebP macroblock; tiles that are whole blocks do not bleed into one another
QUALITY = 80
SHEET_PIXELS = 5_120_000  # of all tiles: 5,000 of 32 x 32, 2 MB in colour, which a phone can decode, too


@dataclass(frozen=True, eq=False)
class ThumbnailSheet:
    """Square tiles in rows of ``COLUMNS``; tile i shows the test image at ``positions[i]``."""

    positions: np.ndarray  # (T,) ascending
    side: int  # pixels of a tile
    content: bytes  # WebP

    @property
    def layout(self) -> dict:
        """What the page's script needs to cut a tile out."""
        uri = "data:image/webp;base64," + base64.b64encode(self.content).decode()
        return {"uri": uri, "side": self.side, "columns": COLUMNS}


def test_images(
    run: Run, labels: np.ndarray, indices: np.ndarray, data_dir: Path | None
) -> tuple[LabelledImages | None, str]:
    """Return the test images of ``labels`` and ``indices`` (N,) in their order, or None and the reason in words.

    They are those of ``run``, or of all folds where it is one of several. They are read as the run read them, from
    ``data_dir`` instead of the run's own where it is given; nothing is downloaded, no torch is loaded. Data of another
    fingerprint are refused: other images would be shown.
    """
    settings = run.result.config
    if run.folds > 1:
        settings = settings | {"folds": 1, "fold": 0, "all_images": True, "train_limit": None, "test_limit": None}
    try:
        dataset = load_dataset_of_run(settings, data_dir=data_dir, source="local")
    except UserError as error:
        return None, str(error)
    except KeyError as error:
        return None, f"the run's record does not say how its data were read ({error.args[0]!r} is missing)"
    if dataset.fingerprint != run.result.data.fingerprint:
        return None, f"the data found for {run.dataset!r} are not those of the runs (another fingerprint)"
    images = dataset.test
    if run.folds > 1:
        images = joined(dataset.train, dataset.val)
        images = images.subset(indices[indices < len(images)])
    if not (np.array_equal(images.indices, indices) and np.array_equal(images.labels, labels)):
        return None, f"the test images found for {run.dataset!r} are not those of the runs (another order or choice)"
    return images, ""


def sheet_capacity(images: LabelledImages) -> int:
    """Return how many of ``images`` a sheet has room for."""
    side = MOST_SIDE if images.pixels is None else min(MOST_SIDE, max(images.pixels.shape[1:3]))
    return SHEET_PIXELS // side**2


def draw_sheet(images: LabelledImages, positions: np.ndarray) -> ThumbnailSheet:
    """Draw the ``images`` at ``positions`` (T,), at least one, into one WebP: lossless where all are grey.

    A file that cannot be read any more is a UserError.
    """
    in_memory = images.pixels is not None
    tiles = [_small(images.pixels[i] if in_memory else decode(images.files[i])) for i in positions]
    grey = all(tile.mode == "L" for tile in tiles)
    side = max(max(tile.size) for tile in tiles)
    side = side if grey else -(-side // BLOCK) * BLOCK
    rows = -(-len(tiles) // COLUMNS)
    canvas = Image.new("L" if grey else "RGB", (side * min(COLUMNS, len(tiles)), side * rows))
    for index, tile in enumerate(tiles):
        row, column = divmod(index, COLUMNS)
        left, top = (side - tile.width) // 2, (side - tile.height) // 2
        canvas.paste(tile, (column * side + left, row * side + top))
    buffer = io.BytesIO()
    canvas.save(buffer, "WEBP", lossless=grey, quality=100 if grey else QUALITY, method=4)
    return ThumbnailSheet(positions, side, buffer.getvalue())


def _small(pixels: np.ndarray) -> Image.Image:
    """Return uint8 (H, W) or (H, W, 3) as an image of at most ``MOST_SIDE`` pixels a side, in its own proportions."""
    image = Image.fromarray(pixels)
    image.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS)
    return image
