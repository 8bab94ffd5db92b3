"""The index of an image folder: it gives what reading the folder gave, or is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train_cnn_head
from common.data import folder_index, image_folder
from common.data.dataset import index_dataset, load_dataset
from common.runtime.errors import UserError

NOWHERE = Path("absent")


@pytest.fixture(params=[8, 80], ids=["kept in memory", "left on disk"])
def pets(request, tmp_path):
    """Write a folder of two classes, with a file that is no image, in images of one size."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (request.param, request.param), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pets" / part / name / f"{number}.png")
    (tmp_path / "pets" / "train" / "cat" / "notes.txt").touch()
    return tmp_path / "pets"


def test_an_index_stands_for_reading_the_folder(pets, tmp_path, monkeypatch):
    read = load_dataset(str(pets), data_dir=NOWHERE, val_fraction=0.25)
    assert index_dataset(str(pets), NOWHERE, tmp_path / "pets.npz")
    monkeypatch.setattr(image_folder, "read", None)  # not called again
    found = load_dataset(str(pets), data_dir=NOWHERE, val_fraction=0.25, index=tmp_path / "pets.npz")
    assert (found.classes, found.notes, found.fingerprint) == (read.classes, read.notes, read.fingerprint)
    for split in ("train", "val", "test"):
        ours, theirs = getattr(found, split), getattr(read, split)
        assert ours.files == theirs.files and (ours.pixels is None) == (theirs.pixels is None)
        for name in ("labels", "indices", "digests", "pixels"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name))


def test_an_index_is_trusted_by_times_or_by_bytes_and_refused_where_images_changed(pets, tmp_path, monkeypatch):
    index = tmp_path / "pets.npz"
    index_dataset(str(pets), NOWHERE, index)
    first, *others = sorted((pets / "test" / "cat").iterdir())
    first.touch()  # as on another disk: other times, the same bytes
    load_dataset(str(pets), data_dir=NOWHERE, index=index)
    first.write_bytes(others[0].read_bytes())
    with pytest.raises(UserError, match="has changed since `data_index`"):
        load_dataset(str(pets), data_dir=NOWHERE, index=index)
    monkeypatch.setattr(folder_index, "SAMPLE", 0)
    load_dataset(str(pets), data_dir=NOWHERE, index=index)


def test_an_index_that_is_damaged_or_of_another_folder_is_refused(pets, tmp_path):
    index = tmp_path / "pets.npz"
    index_dataset(str(pets), NOWHERE, index)
    pets.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"is of '.*pets', not of '.*moved'"):
        load_dataset(str(tmp_path / "moved"), data_dir=NOWHERE, index=index)
    (tmp_path / "moved").rename(pets)
    content = index.read_bytes()
    for damaged in (b"", content[:-40], content[:100] + b"xxxx" + content[104:]):
        index.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cannot be read .*make it again"):
            load_dataset(str(pets), data_dir=NOWHERE, index=index)
    with pytest.raises(UserError, match="a file that exists"):
        train_cnn_head.Config(data_index=tmp_path / "absent.npz")


def test_data_that_are_no_image_folder_have_no_index(tmp_path):
    assert not index_dataset("digits", NOWHERE, tmp_path / "digits.npz")
    assert not list(tmp_path.iterdir())
