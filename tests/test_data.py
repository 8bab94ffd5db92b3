"""The data are what their name says, the splits are fair, and what is wrong is said in one line."""

import gzip
import shutil
import struct
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from PIL import Image
from tiny_cifar import publish_cifar, write_cifar

from common.data import image_folder, registry, splits
from common.data.dataset import DatasetSplits, load_dataset, load_unlabelled, result_name
from common.data.images import LabelledImages
from common.data.registry import DATASETS
from common.runtime.errors import UserError


def _write(folder: Path, count: int, *, size: int = 8, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng([seed, i, *folder.as_posix().encode()]).integers(0, 256, (size, size, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03}.png")


def _tree(root: Path, **counts: dict[str, int]) -> Path:
    """Image folders below ``root``: part -> class -> number of images; the part ``flat`` is ``root`` itself."""
    for part, classes in counts.items():
        for name, count in classes.items():
            _write((root if part == "flat" else root / part) / name, count)
    return root


def _load(dataset: Path | str, **options) -> DatasetSplits:
    return load_dataset(str(dataset), **{"data_dir": Path("absent"), **options})


def _refusal(dataset: Path | str, **options) -> str:
    with pytest.raises(UserError) as caught:
        _load(dataset, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _sizes(dataset: DatasetSplits) -> tuple[int, int, int]:
    return len(dataset.train), len(dataset.val), len(dataset.test)


# Named data sets


def test_mnist_is_mnist(real_data):
    mnist = load_dataset("mnist", data_dir=real_data)
    assert mnist.fingerprint == DATASETS["mnist"].fingerprint and mnist.notes == ()
    assert _sizes(mnist) == (54_000, 6_000, 10_000)
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert mnist.train.pixels.shape == (54_000, 28, 28)
    limited = load_dataset("mnist", data_dir=real_data, train_limit=100, test_limit=50, split_seed=3)
    assert limited.fingerprint == mnist.fingerprint and _sizes(limited) == (100, 11, 50)


def test_fashion_mnist_is_fashion_mnist(real_data):
    fashion = load_dataset("fashion_mnist", data_dir=real_data)
    assert fashion.fingerprint == DATASETS["fashion_mnist"].fingerprint
    assert fashion.notes == ()  # no test image is a copy of a training image, to the last pixel
    assert [fashion.classes[label] for label in fashion.test.labels[:3]] == ["Ankle boot", "Pullover", "Trouser"]


def test_other_bytes_under_a_known_name_are_noted(tmp_path):
    _tree(tmp_path / "mnist", train=dict.fromkeys("0123456789", 4), test=dict.fromkeys("0123456789", 1))
    notes = " ".join(_load("mnist", data_dir=tmp_path, val_fraction=0.25).notes)
    assert "not torchvision's bytes of mnist" in notes and "image folder" in notes


def test_digits_come_with_a_fixed_test_split():
    one, other = _load("digits"), _load("digits", split_seed=1)
    assert sum(_sizes(one)) == 1_797 and len(one.test) == 359
    assert one.train.pixels.min() == 0 and one.train.pixels.max() == 255
    np.testing.assert_array_equal(one.test.pixels, other.test.pixels)
    assert not np.array_equal(one.val.indices, other.val.indices)


def test_cifar10_as_an_image_folder(real_data, tmp_path):
    counts: dict[str, int] = {}
    with tarfile.open(real_data / "cifar10-jpeg.tar.gz") as archive:
        for member in archive:
            folder = str(Path(member.name).parent)
            if member.isfile() and counts.get(folder, 0) < 4:
                counts[folder] = counts.get(folder, 0) + 1
                archive.extract(member, tmp_path, filter="data")
    cifar10 = _load("cifar10", data_dir=tmp_path, val_fraction=0.25)
    assert _sizes(cifar10) == (30, 10, 40) and cifar10.train.pixels.shape == (30, 32, 32, 3)
    assert cifar10.classes == DATASETS["cifar10"].classes
    for position, file in enumerate(cifar10.train.files):
        assert cifar10.classes[cifar10.train.labels[position]] == file.parent.name


def test_folders_named_like_the_classes_get_their_numbers(tmp_path):
    names = [name.replace("/", "_") for name in DATASETS["fashion_mnist"].classes]
    _tree(tmp_path / "fashion_mnist", train=dict.fromkeys(names, 3), test=dict.fromkeys(names, 1))
    fashion = _load("fashion_mnist", data_dir=tmp_path, val_fraction=0.34)
    assert fashion.classes == DATASETS["fashion_mnist"].classes
    named = {
        file.parent.name: fashion.classes[y] for file, y in zip(fashion.test.files, fashion.test.labels, strict=True)
    }
    assert named == {name.replace("/", "_"): name for name in fashion.classes}
    shutil.rmtree(tmp_path / "fashion_mnist" / "train" / "Bag")
    shutil.rmtree(tmp_path / "fashion_mnist" / "test" / "Bag")
    assert "which are not fashion_mnist's" in _refusal("fashion_mnist", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_no_data_and_no_network_says_how_to_provide_them(name, tmp_path, monkeypatch):
    def offline(*args, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    message = _refusal(name, data_dir=tmp_path / "data")
    for part in ("is missing", str(tmp_path / "data"), "train/<class>/", "http", "no network", "`data_dir`"):
        assert part in message


# idx files


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def _mnist_files(folder: Path) -> dict[str, Path]:
    """A small data set in MNIST's four files."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    labels = np.arange(40) % 10
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28))
    files = {}
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            files[f"{part}-{kind}"] = raw / f"{part}-{kind}-ubyte"
            files[f"{part}-{kind}"].write_bytes(_idx(array))
    return files


@pytest.mark.parametrize("name", ["train-images-idx3", "t10k-labels-idx1"])
@pytest.mark.parametrize("damage", ["magic", "count", "short", "empty", "text"])
def test_damaged_idx_files_are_named(tmp_path, name, damage):
    file = _mnist_files(tmp_path)[name]
    content = bytearray(file.read_bytes())
    content[2] = 13 if damage == "magic" else 8
    content[7] = 39 if damage == "count" else 40
    file.write_bytes({"short": content[:-1], "empty": b"", "text": b"<html>not found</html>"}.get(damage, content))
    assert repr(str(file)) in _refusal("mnist", data_dir=tmp_path)


def test_idx_labels_and_counts_are_checked(tmp_path):
    files = _mnist_files(tmp_path)
    assert _sizes(_load("mnist", data_dir=tmp_path, val_fraction=0.25)) == (30, 10, 40)
    files["train-labels-idx1"].write_bytes(_idx(np.arange(40) % 11))
    assert "label 10" in _refusal("mnist", data_dir=tmp_path)
    files["train-labels-idx1"].write_bytes(_idx(np.arange(39) % 10))
    assert "40 images" in _refusal("mnist", data_dir=tmp_path)


def test_a_truncated_archive_is_a_user_error(tmp_path, monkeypatch):
    file = _mnist_files(tmp_path)["train-images-idx3"]
    file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes())[:-20])
    file.unlink()

    def offline(*args, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    assert repr(str(file)) in _refusal("mnist", data_dir=tmp_path)


def test_mnists_files_are_read_as_torchvision_reads_them(tmp_path):
    from torchvision import datasets

    _mnist_files(tmp_path)
    for part, images in registry.read("mnist", tmp_path, source="local").parts.items():
        kind = datasets.MNIST(str(tmp_path), train=part == "train")
        np.testing.assert_array_equal(images.pixels, kind.data.numpy())
        np.testing.assert_array_equal(images.labels, kind.targets.numpy())


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifars_files_are_read_as_torchvision_reads_them(tmp_path, name, monkeypatch):
    kind = write_cifar(tmp_path, name)
    with pytest.raises(UserError, match=f"{name} is not under"):  # pickles of other sums are not opened
        registry.read(name, tmp_path, source="local")
    publish_cifar(tmp_path, name, monkeypatch)
    for part, images in registry.read(name, tmp_path, source="local").parts.items():
        theirs = kind(str(tmp_path), train=part == "train")
        np.testing.assert_array_equal(images.pixels, theirs.data)
        assert images.labels.tolist() == theirs.targets


def test_named_data_are_read_without_torch(real_data):
    code = "import sys; from common.data.dataset import load_dataset\n"
    code += f"load_dataset('mnist', data_dir={str(real_data)!r})\n"
    code += "print({'torch', 'torchvision'} & set(sys.modules))"
    folder = Path(__file__).parents[1]
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    assert printed.stdout == "set()\n"


# Layouts of image folders


def test_layouts(tmp_path):
    two = {"a": 10, "b": 10}
    assert _sizes(_load(_tree(tmp_path / "1", train=two, test=two))) == (18, 2, 20)
    own = _load(_tree(tmp_path / "2", train=two, validation={"a": 3, "b": 2}, Test=two))
    assert _sizes(own) == (20, 5, 20)
    instead = _load(_tree(tmp_path / "3", train=two, val={"a": 3, "b": 2}))
    assert _sizes(instead) == (18, 2, 5) and "'val' serves as the test split" in " ".join(instead.notes)
    flat = _load(_tree(tmp_path / "4", flat=two), val_fraction=0.25)
    assert _sizes(flat) == (12, 4, 4) and "20 % of each class" in " ".join(flat.notes)
    assert flat.test.labels.tolist() == [0, 0, 1, 1]


def test_class_names_of_any_script(tmp_path):
    names = ["a cat", "Ärger", "犬", "it's"]
    loaded = _load(
        _tree(tmp_path / "pets", train=dict.fromkeys(names, 4), test=dict.fromkeys(names, 1)), val_fraction=0.3
    )
    assert loaded.classes == tuple(sorted(names)) and loaded.name == "pets"


def test_a_class_missing_in_test_is_noted_and_an_unknown_one_refused(tmp_path):
    root = _tree(tmp_path, train={"a": 10, "b": 10}, test={"a": 2})
    assert "test has no image of 'b'" in " ".join(_load(root).notes)
    _write(root / "test" / "zebra", 1)
    assert "test has classes that train lacks: 'zebra'" in _refusal(root)


def test_unusable_folders_are_refused(tmp_path):
    assert "no data set" in _refusal(tmp_path / "absent")
    assert "no class folders" in _refusal(tmp_path)
    (tmp_path / "a").mkdir()
    assert "only the class 'a'" in _refusal(tmp_path)
    _write(tmp_path / "b", 10)
    assert "no usable image" in _refusal(tmp_path) and "of 'a'" in _refusal(tmp_path)
    _write(tmp_path / "a" / "deeper", 1)
    assert "holds the folder 'deeper'" in _refusal(tmp_path)
    assert "needs train with test" in _refusal(_tree(tmp_path / "t", train={"a": 2, "b": 2}))


def test_links_to_themselves_and_to_parents_end(tmp_path):
    root = _tree(tmp_path, flat={"a": 10, "b": 10})
    (root / "a" / "self.png").symlink_to("self.png")
    (root / "loop").symlink_to("loop")
    assert sum(_sizes(_load(root, val_fraction=0.2))) == 20
    (root / "b" / "up").symlink_to("..", target_is_directory=True)
    assert "holds the folder 'up'" in _refusal(root)
    assert len(load_unlabelled(root)) == 20


def test_damaged_files_are_listed_in_one_line_or_skipped(tmp_path):
    root = _tree(tmp_path, train={"a": 10, "b": 10}, test={"a": 2, "b": 2})
    (root / "train" / "a" / "cut.png").write_bytes((root / "train" / "a" / "000.png").read_bytes()[:60])
    (root / "test" / "b" / "empty.jpg").touch()
    message = _refusal(root)
    assert "2 of 26 images" in message and "`skip_damaged`" in message
    assert "'train/a/cut.png'" in message and "'test/b/empty.jpg' (it has 0 bytes)" in message
    skipped = _load(root, skip_damaged=True)
    assert skipped.skipped == ("train/a/cut.png", "test/b/empty.jpg") and _sizes(skipped) == (18, 2, 4)


def test_images_of_one_small_size_are_held_and_others_stay_files(tmp_path):
    root = _tree(tmp_path, train={"a": 5, "b": 5}, test={"a": 1, "b": 1})
    Image.new("L", (8, 8)).save(root / "train" / "a" / "grey.png")
    assert _load(root, val_fraction=0.2).train.pixels.shape[1:] == (8, 8, 3)
    Image.new("L", (9, 8)).save(root / "train" / "a" / "wide.png")
    assert _load(root, val_fraction=0.2).train.pixels is None


def test_copies_between_splits_are_counted(tmp_path):
    root = _tree(tmp_path, train={"a": 10, "b": 10}, test={"a": 2, "b": 2})
    shutil.copy(root / "train" / "a" / "003.png", root / "test" / "a" / "copy.png")
    assert "1 of the 5 test images are exact copies of training or validation images" in _load(root).notes


# Splits and limits


def _keys(images: LabelledImages) -> set[int]:
    return set(images.indices.tolist())


def test_splits_are_disjoint_stratified_and_fixed_by_the_split_seed():
    one, again, other = _load("digits"), _load("digits"), _load("digits", split_seed=1)
    assert not _keys(one.train) & _keys(one.val)
    assert not (_keys(one.train) | _keys(one.val)) & _keys(one.test)  # digits are numbered as a whole
    assert _keys(one.train) | _keys(one.val) | _keys(one.test) == set(range(1_797))
    np.testing.assert_array_equal(one.val.indices, again.val.indices)
    assert _keys(one.val) != _keys(other.val)
    shares = np.bincount(one.val.labels) / (np.bincount(one.val.labels) + np.bincount(one.train.labels))
    assert np.abs(shares - 0.1).max() < 0.01
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("limit", [10, 99, 1_294])
def test_limits_are_exact_and_the_same_for_all(limit):
    one, again = (_load("digits", train_limit=limit, test_limit=123) for _ in range(2))
    assert len(one.train) == limit and len(one.test) == 123 and len(np.unique(one.train.labels)) == 10
    np.testing.assert_array_equal(one.train.indices, again.train.indices)
    assert _keys(one.train) <= _keys(_load("digits").train) and _keys(one.val) <= _keys(_load("digits").val)


@pytest.mark.parametrize(
    ("option", "value"),
    [("train_limit", 9), ("train_limit", 1_295), ("test_limit", 0), ("test_limit", 360), ("train_limit", -1)],
)
def test_limits_out_of_range_are_refused(option, value):
    assert f"`{option}`: {value:,} is outside" in _refusal("digits", **{option: value})


def test_a_validation_share_that_empties_a_class_is_refused(tmp_path):
    root = _tree(tmp_path, train={"a": 30, "b": 1}, test={"a": 1, "b": 1})
    assert "of 31 images leaves a class with none to train on (the smallest is 'b' with 1): add images" in _refusal(
        root
    )
    for fraction in (0, 1, -0.1, float("nan")):
        assert "must lie between 0 and 1" in _refusal("digits", val_fraction=fraction)
    message = _refusal("digits", val_fraction=0.999)
    assert "a validation split of 0.999" in message and "`val_fraction`" in message


@pytest.mark.parametrize(("classes", "count"), [(10, 4), (20, 9), (4, 3)])
def test_of_few_images_each_class_has_one_for_validation_and_one_for_training(tmp_path, classes, count):
    root = _tree(tmp_path, flat={f"c{number:02}": count for number in range(classes)})
    for folds in (None, 1):
        few = _load(root, folds=folds)
        for images in (few.train, few.val, few.test):
            assert len(np.unique(images.labels)) == classes
        assert len(few.val) == classes


def test_two_images_of_a_class_are_too_few_for_training_validation_and_test(tmp_path):
    root = _tree(tmp_path, flat={"a": 5, "b": 2})
    for folds in (None, 1):
        assert "the smallest is 'b' with 1): add images" in _refusal(root, folds=folds)
    assert len(_load(root, all_images=True).val) == 2


def test_stratified_samples_follow_the_proportions():
    labels = np.repeat(np.arange(4), [1, 10, 100, 889])
    for n in (4, 5, 37, 500, 1000):
        chosen = splits.stratified_sample(labels, n, np.random.default_rng(0))
        counts = np.bincount(labels[chosen], minlength=4)
        assert len(np.unique(chosen)) == n and counts.min() >= 1
        if n >= 500:
            assert np.abs(counts - n * np.array([1, 10, 100, 889]) / 1000).max() <= 1


def test_the_fingerprint_sees_every_change(tmp_path):
    root = _tree(tmp_path, train={"a": 3, "b": 3}, test={"a": 1, "b": 1})
    before = image_folder.read(root)
    prints = {splits.fingerprint(before.classes, before.parts)}
    (root / "test" / "a" / "000.png").rename(root / "test" / "b" / "001.png")
    moved = image_folder.read(root)
    prints.add(splits.fingerprint(moved.classes, moved.parts))
    prints.add(splits.fingerprint(("a", "c"), before.parts))
    assert len(prints) == 3


# Names


def test_an_unknown_name_brings_a_suggestion():
    assert "did you mean 'fashion_mnist'?" in _refusal("Fashion-MNST")
    assert "use one of mnist, fashion_mnist, cifar10, cifar100, digits" in _refusal("qqq")


def test_result_names_are_safe_path_components():
    assert result_name("mnist") == "mnist" and result_name("/x/my pets!") == "my_pets_"
    assert result_name("/x/.hidden") == "hidden" and result_name("mnist", "mine") == "mine"
    for name in ("", "a/b", "..", "-x"):
        with pytest.raises(UserError, match="`dataset_name`"):
            result_name("mnist", name)


def test_images_without_labels_are_found_at_any_depth(tmp_path):
    _write(tmp_path / "x" / "y", 2)
    (tmp_path / "x" / "._junk.png").touch()
    found = load_unlabelled(tmp_path)
    assert [file.name for file in found.files] == ["000.png", "001.png"] and found.labels.tolist() == [-1, -1]
    with pytest.raises(UserError, match="no folder with images"):
        load_unlabelled(tmp_path / "absent")
