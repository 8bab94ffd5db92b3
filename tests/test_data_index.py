"""What is known of an image folder from before: it gives what reading the folder gave, or is not used."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import train_cnn_head
from common.data import folder_index, image_folder, registry, scan
from common.data.dataset import index_dataset, load_dataset
from common.runtime.errors import UserError
from common.runtime.files import temporary_path

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
    _require_same(load_dataset(str(pets), data_dir=NOWHERE, val_fraction=0.25, index=tmp_path / "pets.npz"), read)


def _require_same(found, read):
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


def test_data_that_are_no_image_folder_have_no_index_and_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "read", None)
    assert not index_dataset("digits", NOWHERE, tmp_path / "digits.npz")
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "mnist" / "train" / "0").mkdir(parents=True)
    (tmp_path / "0.png").rename(tmp_path / "mnist" / "train" / "0" / "0.png")
    assert not index_dataset("mnist", tmp_path, tmp_path / "mnist.npz", source="torchvision")
    assert [path.name for path in tmp_path.iterdir()] == ["mnist"]


# What is kept of a folder between runs


@pytest.fixture
def load(pets, tmp_path, monkeypatch):
    """Load ``pets``, and return the data with how many files were read whole to know what they hold."""
    monkeypatch.setattr(scan, "MANY_FILES", 0)
    read = []
    scan_group = scan._scan_group
    monkeypatch.setattr(scan, "_scan_group", lambda files: (read.append(len(files)), scan_group(files))[1])

    def load(**settings):
        read.clear()
        usual = {"data_dir": NOWHERE, "val_fraction": 0.25, "workers": 1, "cache": tmp_path / "cache"}
        return load_dataset(str(pets), **{**usual, **settings}), sum(read)

    monkeypatch.setattr(folder_index, "SAMPLE", 3)
    return load


def test_a_folder_is_read_once(pets, load, tmp_path):
    plain, _ = load(cache=None)
    first, count = load()
    second, sampled = load()
    assert (count, sampled) == (32, 3)
    for found in (first, second):
        _require_same(found, plain)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]  # and no lock


def _replace(file, _):
    file.write_bytes(file.with_name("1.png").read_bytes())


def _touch(file, _):
    os.utime(file, ns=(0, 0))


def _copy(file, _):
    stat = file.stat()
    content = file.read_bytes()
    file.rename(file.with_name(".other"))
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _remove(file, _):
    file.unlink()


def _move(file, _):
    file.rename(file.parent.with_name("dog") / "a.png")


def _add(file, _):
    file.with_name("a.png").write_bytes(file.read_bytes())


def _change_unnoticed(file, _):
    stat = file.stat()
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _empty(_, kept):
    kept.write_bytes(b"")


def _cut(_, kept):
    kept.write_bytes(kept.read_bytes()[:-40])


def _flip(_, kept):
    content = bytearray(kept.read_bytes())
    content[content.find(b"digests.npy") + 200] ^= 1
    kept.write_bytes(content)


@pytest.mark.parametrize(
    "change", [_replace, _touch, _copy, _remove, _move, _add, _change_unnoticed, _empty, _cut, _flip]
)
def test_a_folder_is_read_again_where_anything_changed(change, pets, load, tmp_path):
    load()
    change(pets / "train" / "cat" / "0.png", next((tmp_path / "cache").iterdir()))
    found, count = load()
    assert count in (31, 32, 33, 3 + 32)
    _require_same(found, load(cache=None)[0])
    again, count = load()
    assert count == 3
    _require_same(again, found)


def test_inodes_may_have_64_bits(pets, load, tmp_path, monkeypatch):
    def stat(file):
        found = os.stat(file)
        return SimpleNamespace(st_size=found.st_size, st_mtime_ns=found.st_mtime_ns, st_ino=2**63 + found.st_ino)

    monkeypatch.setattr(folder_index, "os", SimpleNamespace(stat=stat))
    assert [load()[1] for _ in range(2)] == [32, 3]
    folder_index.write_index(tmp_path / "pets.npz", pets, image_folder.read(pets, workers=1))
    load(index=tmp_path / "pets.npz")


def _damaged(content):
    """Yield ``content`` with a wrong shape, and with one flipped bit, more often in the list of members at its end."""
    yield from (content.replace(b"(8, 32, 32)", shape) for shape in (b"(8, 32, 10)", b"(8, 32, 32,"))
    end = 8 * content.index(b"PK\1\2")
    for bit in (*range(0, end, 251), *range(end, 8 * len(content), 2)):
        yield content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


def test_damage_of_what_was_kept_is_noticed(tmp_path):
    kept, key, digests = tmp_path / "kept.npz", "0" * 64, [b"%032d" % number for number in range(8)]
    pixels = np.arange(8 * 32 * 32).astype(np.uint8).reshape(8, 32, 32)
    scan._write(kept, key, scan.Scan(digests, {}, pixels))
    for content in _damaged(kept.read_bytes()):
        kept.write_bytes(content)
        if found := scan._read(kept, key, 8):  # the bit means nothing, as in a member's time
            assert (found.digests, found.problems) == (digests, {}) and np.array_equal(found.pixels, pixels)


def test_what_was_kept_of_fewer_images_is_not_used(pets, load, tmp_path):
    load()
    kept = next((tmp_path / "cache").iterdir())
    header, arrays = folder_index.read_arrays(kept)
    for what in arrays:
        folder_index.write_arrays(kept, header, {**arrays, what: arrays[what][:-1]})
        assert load()[1] == 32


def test_a_damaged_file_that_was_left_out_is_looked_at_again(pets, load):
    file = pets / "train" / "cat" / "3.png"
    content = file.read_bytes()
    stat = file.stat()
    file.write_bytes(bytes(len(content)))
    os.utime(file, ns=(0, stat.st_mtime_ns))
    with pytest.raises(UserError, match="1 of 32 images"):
        load()
    with pytest.raises(UserError, match="1 of 32 images"):
        load()
    assert [len(load(skip_damaged=True)[0].skipped) for _ in range(2)] == [1, 1]
    file.write_bytes(content)
    os.utime(file, ns=(0, stat.st_mtime_ns))
    assert load(skip_damaged=True)[0].skipped == ()


def test_what_a_killed_write_left_is_removed(load, tmp_path):
    load()
    kept = next((tmp_path / "cache").iterdir())
    own, others = (temporary_path(kept.with_name(name), "tmp") for name in (kept.name, "other.npz"))
    for leftover in (own, others):
        leftover.write_bytes(b"half")
    load()
    assert not own.exists() and others.exists()  # the lock is on this folder's file alone


def test_a_cache_that_cannot_be_written_is_done_without(pets, load, monkeypatch):
    monkeypatch.setattr(scan, "_is_writable", lambda cache: False)
    assert [load()[1] for _ in range(2)] == [32, 32]


def test_processes_read_what_one_reads(pets, monkeypatch):
    alone = image_folder.read(pets, workers=1)
    monkeypatch.setattr(scan, "MANY_FILES", 0)
    monkeypatch.setattr(scan, "GROUP", 5)
    shared = image_folder.read(pets, workers=2)
    assert shared.classes == alone.classes
    for name, part in alone.parts.items():
        assert np.array_equal(shared.parts[name].digests, part.digests)
        assert np.array_equal(shared.parts[name].pixels, part.pixels)


def test_the_first_of_the_files_that_are_no_images_is_the_example(pets):
    for number in range(30):
        (pets / "train" / "cat" / f"{number:02}.txt").touch()
    assert image_folder.read(pets).notes == ("ignored 31 files that are no images, for example '00.txt'",)


def _die(files):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_said_in_one_line(pets, monkeypatch):
    monkeypatch.setattr(scan, "MANY_FILES", 0)
    monkeypatch.setattr(scan, "_scan_group", _die)
    monkeypatch.setattr(scan, "cores", lambda: 2)
    with pytest.raises(UserError, match="a process that reads images was killed"):
        image_folder.read(pets, workers=2)


def test_no_more_processes_than_cores_read(pets, monkeypatch):
    monkeypatch.setattr(scan, "MANY_FILES", 0)
    monkeypatch.setattr(scan, "cores", lambda: 3)
    asked, share = [], scan.parallel_map
    monkeypatch.setattr(scan, "parallel_map", lambda *args: asked.append(args[2]) or share(*args))
    for workers in (64, 2, None):
        image_folder.read(pets, workers=workers)
    assert asked == [3, 2, 3]


def test_grey_and_colour_images_of_one_size_are_kept_as_colour(pets):
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(pets / "test" / "dog" / "0.png")
    grey, colour = (image_folder.read(pets).parts[name].pixels for name in ("train", "test"))
    if grey is not None:  # images of 80 x 80 stay on disk
        assert grey.shape == (24, 8, 8, 3) and (grey[..., 0] == grey[..., 2]).all()
        assert (colour[4] != colour[4][..., :1]).any()
