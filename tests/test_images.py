"""Every kind of image file becomes the right uint8 array, or a UserError that names it."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from common.data import images
from common.data.images import LabelledImages, decode, decode_bytes
from common.runtime.errors import UserError

RAMP = np.linspace(0, 255, 64).reshape(8, 8).astype(np.uint8)
COLOUR = np.stack([RAMP, 255 - RAMP, RAMP // 2], axis=-1)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def quiet_pillow():
    """pytest restores the warning filters after each test, so that the once-a-process call has to be repeated."""
    images._quiet_pillow.cache_clear()


def _encode(image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_grey_stays_grey_and_colour_colour(kind):
    np.testing.assert_array_equal(decode_bytes(_encode(RAMP, kind)), RAMP)
    np.testing.assert_array_equal(decode_bytes(_encode(COLOUR, kind)), COLOUR)


def test_transparency_is_laid_on_white():
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:4] = 255
    for pixels in (RAMP, COLOUR):
        decoded = decode_bytes(_encode(np.dstack([pixels, alpha]), "PNG"))
        assert decoded.shape == pixels.shape
        np.testing.assert_array_equal(decoded[:4], pixels[:4])
        assert (decoded[4:] == 255).all()


def test_palettes_with_and_without_transparency():
    palette = Image.fromarray(COLOUR).convert("P", palette=Image.Palette.ADAPTIVE)
    colours = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(decode_bytes(_encode(palette, "PNG")), colours)
    first = np.asarray(palette) == np.asarray(palette)[0, 0]
    decoded = decode_bytes(_encode(palette, "PNG", transparency=int(np.asarray(palette)[0, 0])))
    assert (decoded[first] == 255).all()
    np.testing.assert_array_equal(decoded[~first], colours[~first])


def test_one_bit_becomes_black_and_white():
    bits = Image.fromarray(RAMP > 127)
    np.testing.assert_array_equal(decode_bytes(_encode(bits, "PNG")), (RAMP > 127) * 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind):
    deep = np.linspace(0, 65_535, 64).reshape(8, 8).astype(np.uint16)
    np.testing.assert_array_equal(decode_bytes(_encode(deep, kind)), np.rint(deep / 257))


def test_float_grey_is_scaled_and_unknown_ranges_are_refused():
    unit = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    np.testing.assert_array_equal(decode_bytes(_encode(unit, "TIFF")), np.rint(unit * 255))
    for values in (unit * 300, unit - 0.5, np.full((8, 8), np.nan, np.float32)):
        with pytest.raises(ValueError, match="range is unknown"):
            decode_bytes(_encode(values, "TIFF"))


def test_cmyk_jpeg_has_the_right_colours():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(decode_bytes(_encode(red, "JPEG")).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_exif_orientation_turns_the_image_upright(orientation, turns):
    exif = Image.Exif()
    exif[0x112] = orientation
    expected = np.rot90(COLOUR[:4], turns)  # anticlockwise
    np.testing.assert_array_equal(decode_bytes(_encode(COLOUR[:4], "PNG", exif=exif)), expected)


def test_damaged_metadata_does_not_cost_a_whole_image():
    damaged = b"Exif\0\0II*\0\x08\0\0\0\xff\xffgarbage"
    assert decode_bytes(_encode(COLOUR, "JPEG", exif=damaged)).shape == (8, 8, 3)


def test_first_frame_of_an_animation():
    red, green = (Image.new("RGB", (8, 8), name) for name in ("red", "lime"))
    decoded = decode_bytes(_encode(red, "GIF", save_all=True, append_images=[green]))
    assert (decoded == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
def test_extreme_shapes(size):
    assert decode_bytes(_encode(Image.new("L", size), "PNG")).shape == size[::-1]


def _huge_png() -> bytes:
    header = bytearray(_encode(RAMP, "PNG"))
    header[16:24] = struct.pack(">II", 10_000, 9_000)
    from zlib import crc32

    header[29:33] = struct.pack(">I", crc32(bytes(header[12:29])))
    return bytes(header)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"hello there\n" * 9, "none of PNG, JPEG"),
        (_encode(NOISE, "JPEG")[:2000], "truncated"),
        (_encode(NOISE, "JPEG")[:-2], "truncated"),
        (_encode(NOISE, "PNG")[:5000], "truncated"),
        (_encode(NOISE, "TIFF")[:5000], "truncated"),
        (_encode(NOISE, "TIFF", compression="tiff_lzw")[:5000], "is not a usable image"),
        (_encode(COLOUR, "ICO"), "none of PNG, JPEG"),
        (_huge_png(), "more than 89,478,485 pixels"),
    ],
)
def test_unusable_files_are_named_with_the_reason(tmp_path, content, reason):
    file = tmp_path / "it's.png"
    file.write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        decode(file)
    assert repr(str(file)) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_or_a_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        decode(tmp_path / "gone.png")
    with pytest.raises(UserError, match="cannot read"):
        decode(tmp_path)


def test_subset_keeps_everything_aligned():
    whole = LabelledImages(np.arange(4), np.arange(4) + 10, np.arange(16, dtype=np.uint8).reshape(4, 2, 2))
    part = whole.subset(np.array([3, 1]))
    assert part.labels.tolist() == [3, 1] and part.indices.tolist() == [13, 11] and part.pixels[1, 0, 0] == 4
    assert part.files is None and part.digests is None and len(part) == 2
