"""Whatever stands in a file, the outcome is a success or a UserError, never another exception."""

import contextlib
import copy
import io
import json
import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fake_results import fake_run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.data import images, registry
from common.data.dataset import load_dataset
from common.data.images import FORMATS, decode_bytes
from common.evaluation.comparison import compare
from common.evaluation.frames import frames_of
from common.evaluation.uncertainty import compute_uncertainty
from common.report import tables
from common.runs import record
from common.runs.result import Run, encode_record, find_runs, read_result
from common.runs.schema import as_json
from common.runtime.errors import UserError

TIMES = float(os.environ.get("FUZZ_TIMES", "1"))  # a soak: FUZZ_TIMES=20 pytest tests/test_fuzz.py


def fuzz(count: int):
    """Return hypothesis's settings: ``count`` cases, the same each time, nothing kept between runs."""
    return settings(max_examples=max(1, int(count * TIMES)), deadline=None, derandomize=True, database=None)


@pytest.fixture(autouse=True)
def quiet_pillow():
    """pytest restores the warning filters after each test, so that the once-a-process call has to be repeated."""
    images._quiet_pillow.cache_clear()


def _allowed(function, *arguments, **options):
    """Return what ``function`` gives, None where it raises UserError with a message of one line."""
    try:
        return function(*arguments, **options)
    except UserError as error:
        assert "\n" not in str(error)
        return None


# Results

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, 1, -1, 1e300, 2**63, "", "/etc/passwd", "..", "a\nb", "\ud800", "犬", "x" * 300])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Run:
    """A run that the cases change."""
    return fake_run(tmp_path_factory.mktemp("good"), classes=("a", "b"), num_test=20, epochs=2)


def _places(value: object, path: tuple = ()):
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from _places(item, (*path, key))


def _changed(record: dict, path: tuple, value: object, remove: bool) -> dict:
    record = copy.deepcopy(record)
    parent = record
    for key in path[:-1]:
        parent = parent[key]
    if remove:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return record


def _read_and_compare(content: bytes, run: Run) -> None:
    run.folder.joinpath("result.json").write_bytes(content)
    found, problems = find_runs(run.folder.parent.parent.parent)
    assert len(found) + len(problems) == 1
    _allowed(record.problem_with_restoring, found[0].result) if found else None
    compared, _ = compare(found, {})
    if compared:
        frames = frames_of(compared)
        tables.terminal(compared, frames)
        tables.write_summary(frames, compute_uncertainty(compared), run.folder.parent)


@pytest.mark.filterwarnings("ignore:overflow|invalid value:RuntimeWarning")
def test_any_change_of_a_result_that_was_hashed_again(good):
    written = as_json(good.result)
    places = [path for path in _places(written) if path]

    @fuzz(500)
    @given(st.sampled_from(places), JSON, st.booleans())
    def check(path, value, remove):
        with contextlib.suppress(ValueError):  # no program could have written it
            content = encode_record(_changed(written, path, value, remove))
            _read_and_compare(content, good)

    check()


def test_any_change_of_a_results_bytes(good):
    content = encode_record(as_json(good.result))

    @fuzz(500)
    @given(st.integers(0, len(content)), st.integers(0, 40), st.binary(max_size=20))
    def check(start, length, inserted):
        _read_and_compare(content[:start] + inserted + content[start + length :], good)

    check()


@fuzz(300)
@given(st.recursive(st.just({}), lambda inner: st.lists(inner, max_size=3) | st.builds(dict, x=inner)) | JSON)
def test_any_json(value):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        path.write_bytes(json.dumps(value).encode())
        assert _allowed(read_result, path) is None


# idx files


def _idx(magic: int, sizes: list[int], content: bytes) -> bytes:
    return struct.pack(f">I{len(sizes)}I", magic, *sizes) + content


SIZES = st.integers(0, 40) | st.sampled_from([2**31, 2**32 - 1, 2**16])
PIXELS = st.builds(
    _idx,
    st.sampled_from([0x803, 0x803, 0x803, 0x801, 0x802, 0xD03, 0xC03, 0x804, 0, 0x1F8B0803]),
    st.tuples(SIZES, st.integers(0, 5), st.integers(0, 5)).map(list) | st.lists(SIZES, max_size=4),
    st.binary(max_size=200),
)
LABELS = st.builds(
    _idx,
    st.sampled_from([0x801, 0x801, 0x803, 0xD01, 0]),
    st.tuples(SIZES).map(list) | st.lists(SIZES, max_size=3),
    st.binary(max_size=60) | st.integers(0, 40).map(lambda n: bytes(i % 10 for i in range(n))),
)


def _exact(count: int, side: int, labels: list[int]) -> tuple[bytes, bytes]:
    return (
        _idx(0x803, [count, side, side], bytes(count * side * side)),
        _idx(0x801, [len(labels)], bytes(labels)),
    )


EXACT = st.builds(_exact, st.integers(0, 30), st.integers(0, 3), st.lists(st.integers(0, 12), max_size=30))


@fuzz(800)
@given(st.tuples(PIXELS | st.binary(max_size=60), LABELS | st.binary(max_size=60)) | EXACT)
def test_any_idx_files(pair):
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for part in ("train", "t10k"):
            (raw / f"{part}-images-idx3-ubyte").write_bytes(pair[0])
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(pair[1])
        source = _allowed(registry.read, "mnist", Path(folder))
        if source is not None:
            for part in source.parts.values():
                assert part.pixels.dtype == np.uint8 and len(part.pixels) == len(part.labels) > 0
                assert part.pixels.ndim == 3 and 0 not in part.pixels.shape
                assert set(part.labels.tolist()) <= set(range(10))
            _allowed(load_dataset, "mnist", data_dir=Path(folder))


# Images


def _encoded(kind: str, mode: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (12, 9, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    with contextlib.suppress(OSError, ValueError):  # not every format has every mode
        Image.fromarray(noise).convert(mode).save(buffer, kind)
    return buffer.getvalue()


SAMPLES = [
    content
    for kind in (*FORMATS, "ICO", "TGA")
    for mode in ("L", "RGB", "RGBA", "P", "1", "I", "F", "CMYK")
    if (content := _encoded(kind, mode))
]


@st.composite
def broken_images(draw) -> bytes:
    """A real image file with some bytes replaced, inserted or missing."""
    content = draw(st.sampled_from(SAMPLES))
    for _ in range(draw(st.integers(1, 4))):
        start, length = draw(st.integers(0, len(content))), draw(st.integers(0, 6))
        content = content[:start] + draw(st.binary(max_size=6)) + content[start + length :]
    return content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content


@fuzz(2_000)
@given(broken_images())
def test_any_image_file(content):
    try:
        pixels = decode_bytes(content)
    except ValueError as error:
        assert str(error)
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim in (2, 3) and pixels.size


NAMES = st.sampled_from(
    ["train", "test", "val", "valid", "Train", "a", "b", "犬", "-x", "two\nlines", ".hidden", "__x"]
)
FILES = st.dictionaries(
    st.sampled_from(["1.png", "2.png", "3.PNG", "4.jpg", "5.txt", ".6.png", "7.png.part", "é.gif", "-8.bmp"]),
    st.sampled_from([*SAMPLES[:3], b"", b"text", SAMPLES[0][:30]]),
    max_size=4,
)
TREES = st.dictionaries(NAMES, FILES | st.dictionaries(NAMES, FILES, max_size=3), max_size=4)


def _write(folder: Path, tree: dict) -> None:
    folder.mkdir(exist_ok=True)
    for name, inner in tree.items():
        if isinstance(inner, dict):
            _write(folder / name, inner)
        elif not (folder / name).is_dir():
            (folder / name).write_bytes(inner)


@fuzz(500)
@given(TREES, st.booleans(), st.sampled_from([0.1, 0.4]), st.none() | st.integers(1, 5))
def test_any_image_folder(tree, skip, fraction, limit):
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder) / "pets", tree)
        options = {"val_fraction": fraction, "train_limit": limit, "skip_damaged": skip, "workers": 1}
        loaded = _allowed(load_dataset, str(Path(folder) / "pets"), data_dir=Path(folder), **options)
        if loaded is not None:
            for part in (loaded.train, loaded.val, loaded.test):
                assert len(part) and set(part.labels.tolist()) <= set(range(len(loaded.classes)))
