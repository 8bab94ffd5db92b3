"""Images: one file decoded to uint8, and labelled images in a fixed order."""

import functools
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.runtime.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # Pillow's names; all others are refused unopened
EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".tif", ".tiff"),
    *(".webp", ".ppm", ".pgm", ".pbm", ".pnm"),
)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Labelled images in a fixed order: uint8 arrays in memory, or files that are decoded when they are needed.

    ``labels`` (N,) int64, -1 where unknown. ``indices`` (N,) int64: positions in the natural order of the split (or,
    for data that come without splits, of the whole) they were taken from. ``pixels`` (N, H, W) grey or (N, H, W, 3)
    RGB uint8, None where the images stay on disk. ``files``: N paths, None where there are none. ``digests`` (N,)
    32 hexadecimal digits each, the BLAKE2b of the file's bytes (of the pixels where there is no file), or None.
    """

    labels: np.ndarray
    indices: np.ndarray
    pixels: np.ndarray | None = None
    files: tuple[Path, ...] | None = None
    digests: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, positions: np.ndarray) -> "LabelledImages":
        """Return the images at ``positions`` (M,) int64, from 0 to N - 1, in that order; pixels are copied."""
        return LabelledImages(
            labels=self.labels[positions],
            indices=self.indices[positions],
            pixels=None if self.pixels is None else self.pixels[positions],
            files=None if self.files is None else tuple(self.files[i] for i in positions),
            digests=None if self.digests is None else self.digests[positions],
        )


def joined(*parts: LabelledImages) -> LabelledImages:
    """Return the images of several parts of one data set in the order of their ``indices``."""
    order = np.argsort(np.concatenate([part.indices for part in parts]), kind="stable")
    first = parts[0]
    return LabelledImages(
        labels=np.concatenate([part.labels for part in parts]),
        indices=np.concatenate([part.indices for part in parts]),
        pixels=None if first.pixels is None else np.concatenate([part.pixels for part in parts]),
        files=None if first.files is None else sum((part.files for part in parts), ()),
        digests=None if first.digests is None else np.concatenate([part.digests for part in parts]),
    ).subset(order)


def decode(path: Path) -> np.ndarray:
    """Decode an image file to uint8, (H, W) where it is grey and (H, W, 3) RGB otherwise; see ``decode_bytes``.

    Raises:
        UserError: the file cannot be read or is no whole image; the message names it and says why.
    """
    try:
        return decode_bytes(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not a usable image: {error}") from error


def decode_bytes(content: bytes) -> np.ndarray:
    """Decode the bytes of an image file to uint8, (H, W) where it is grey and (H, W, 3) RGB otherwise.

    The first frame, turned upright by its EXIF orientation, transparency laid on white. 16-bit grey is scaled
    (x / 257, rounded), floating-point grey within 0..1 is multiplied by 255; neither is clipped as Pillow's own
    conversion would do. Colour profiles are not applied.

    Raises:
        ValueError: the bytes are no whole image of an allowed format, or have more pixels than Pillow thinks safe.
    """
    if not content:
        raise ValueError("it has 0 bytes")
    _quiet_pillow()
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            return _to_uint8(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise ValueError(f"its content is none of {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # damaged files make Pillow raise SyntaxError, struct.error, IndexError and others
        raise ValueError(str(error) or type(error).__name__) from error


@functools.cache
def _quiet_pillow() -> None:
    """Silence Pillow's warnings in this process: on damaged metadata, and on the large images refused above.

    Once for the process: ``warnings.catch_warnings`` would not be safe in threads.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def _to_uint8(image: Image.Image) -> np.ndarray:
    """Return (H, W) or (H, W, 3) uint8 for an image of any mode."""
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_deep_grey(np.asarray(image))
    if image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA", "La")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("L" if grey else "RGB")
    elif image.mode in ("1", "L"):
        image = image.convert("L")
    else:
        image = image.convert("RGB")
    return np.array(image)


def _scale_deep_grey(values: np.ndarray) -> np.ndarray:
    """Scale grey (H, W) of 16 bits (0..65535, also as 32-bit integers) or of floats (0..1) to uint8 0..255."""
    real = np.issubdtype(values.dtype, np.floating)
    high = 1 if real else 65_535
    if not (values.min() >= 0 and values.max() <= high):  # "not" so that NaN is refused, too
        raise ValueError(f"its {values.dtype} values lie outside 0..{high}, so that their range is unknown")
    return np.rint(values * (255 / high)).astype(np.uint8)
