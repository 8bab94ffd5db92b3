"""Named data sets are also read from the Hub's parquet files: the same images, or refused."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from tiny_cifar import publish_cifar, write_cifar

import reproduce
import train_cnn_head
from common import cli
from common.data import registry, splits
from common.data.dataset import load_dataset
from common.data.formats import in_memory
from common.data.images import LabelledImages
from common.data.registry import DATASETS
from common.grid import prefetch
from common.runtime.errors import UserError

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # part -> pixels and labels
SIZES = {"train": 300, "test": 100}


def _png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _table(
    pixels: np.ndarray, labels: np.ndarray, *, columns: tuple[str, str] = ("image", "label"), names: tuple = ()
) -> pyarrow.Table:
    """The columns, types and schema metadata that the datasets library writes."""
    images = [{"bytes": _png(image), "path": None} for image in pixels]
    table = pyarrow.table(
        {columns[0]: pyarrow.array(images), columns[1]: pyarrow.array(labels.tolist(), pyarrow.int64())}
    )
    features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": list(names), "_type": "ClassLabel"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _write(data_dir: Path, name: str, arrays: Arrays, *, shards: int = 1, **options) -> Path:
    """Write parquet files as ``hf download --local-dir data_dir/name`` leaves them, and return their folder."""
    folder = data_dir / name / "plain_text"
    folder.mkdir(parents=True, exist_ok=True)
    for part, (pixels, labels) in arrays.items():
        pieces = zip(np.array_split(pixels, shards), np.array_split(labels, shards), strict=True)
        for number, piece in enumerate(pieces):
            file = folder / f"{part}-{number:05}-of-{shards:05}.parquet"
            parquet.write_table(_table(*piece, names=DATASETS[name].classes, **options), file)
    return folder


@pytest.fixture
def mnist(real_data, monkeypatch) -> Arrays:
    """The first images of the real MNIST, which for this test is all of it: sizes and fingerprint say so."""
    whole = registry.read("mnist", real_data, source="local")
    arrays = {
        part: (images.pixels[: SIZES[part]], images.labels[: SIZES[part]]) for part, images in whole.parts.items()
    }
    parts = {part: in_memory(*pair) for part, pair in arrays.items()}
    published = splits.fingerprint(whole.classes, parts)
    entry = replace(
        DATASETS["mnist"], num_train=SIZES["train"], num_test=SIZES["test"], fingerprint=published, download=None
    )
    monkeypatch.setitem(DATASETS, "mnist", entry)
    return arrays


def _refusal(name: str, data_dir: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        registry.read(name, data_dir, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# MNIST: the fingerprint decides


@pytest.mark.parametrize("shards", [1, 3])
def test_mnist_from_parquet_is_mnist_in_torchvisions_order(mnist, tmp_path, shards):
    _write(tmp_path, "mnist", mnist, shards=shards)
    found = load_dataset("mnist", data_dir=tmp_path)
    assert found.fingerprint == DATASETS["mnist"].fingerprint and found.notes == ()
    assert found.read_from == "parquet files"
    np.testing.assert_array_equal(found.test.pixels, mnist["test"][0])
    np.testing.assert_array_equal(found.test.labels, mnist["test"][1])
    assert found.train.indices.max() < SIZES["train"] and found.train.pixels.dtype == np.uint8


def _flip(pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pixels = pixels.copy()
    pixels[7, 14, 14] ^= 1
    return pixels, labels


def _swap(pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.arange(len(labels))
    order[[3, 4]] = order[[4, 3]]
    return pixels[order], labels[order]


def _relabel(pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pixels, np.where(np.arange(len(labels)) == 5, (labels + 1) % 10, labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_flip, "are not mnist as it was published"),
        (_swap, "are not mnist as it was published"),
        (_relabel, "are not mnist as it was published"),
        (lambda pixels, labels: (pixels[1:], labels[1:]), "images, but mnist has"),
        (lambda pixels, labels: (pixels[[0, *range(len(pixels))]], labels[[0, *range(len(labels))]]), "but mnist has"),
        (lambda pixels, labels: (pixels, np.where(labels == 9, -1, labels)), "has the label -1"),
        (lambda pixels, labels: (pixels, np.where(labels == 9, 10, labels)), "has the label 10"),
    ],
    ids=["flipped pixel", "swapped rows", "other label", "missing row", "repeated row", "no label", "unknown label"],
)
@pytest.mark.parametrize("part", SIZES)
def test_one_difference_is_refused(mnist, tmp_path, part, change, said):
    _write(tmp_path, "mnist", {**mnist, part: change(*mnist[part])})
    message = _refusal("mnist", tmp_path)
    assert said in message
    if "label" not in said:
        assert (
            "hf download ylecun/mnist --repo-type dataset --revision 77f3279092a1c1579b2250db8eafed0ad422088c"
            in message
        )


def test_classes_in_another_order_are_refused(mnist, tmp_path, monkeypatch):
    names = DATASETS["mnist"].classes
    monkeypatch.setitem(DATASETS, "mnist", replace(DATASETS["mnist"], classes=names[::-1]))
    _write(tmp_path, "mnist", mnist)
    monkeypatch.setitem(DATASETS, "mnist", replace(DATASETS["mnist"], classes=names))
    assert "have the classes '9', '8'" in _refusal("mnist", tmp_path)


# Files


def _one_row(value: object, label: object = 0) -> pyarrow.Table:
    return pyarrow.table({"image": pyarrow.array([value]), "label": pyarrow.array([label])})


GREY = np.zeros((28, 28), np.uint8)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PAR1 but no more", "is damaged or no parquet file"),
        (b"", "is damaged or no parquet file"),
        (pyarrow.table({"picture": [1], "label": [0]}), "has the columns 'picture', 'label'"),
        (pyarrow.table({"image": [1], "label": [0]}), "has the columns 'image', 'label'"),
        (_one_row({"bytes": _png(GREY)}, "0"), "a whole number in every row"),
        (
            pyarrow.table({"image": [{"bytes": _png(GREY)}] * 2, "label": [0, None]}),
            "a whole number in every row",
        ),
        (_one_row({"bytes": _png(GREY)[:50]}), "row 0 of"),
        (_one_row({"bytes": _png(GREY, "JPEG")}), "no whole PNG image"),
        (_one_row({"bytes": _png(np.zeros((28, 28, 4), np.uint8))}), "its mode is RGBA"),
        (_one_row({"bytes": None, "path": "/etc/passwd"}), "row 0 of"),
        (_one_row({"bytes": _png(np.zeros((9, 9), np.uint8))}), "images of 2 sizes, not of one"),
    ],
    ids=["cut", "empty", "no image", "no struct", "text", "null", "cut PNG", "JPEG", "RGBA", "path only", "other size"],
)
def test_damaged_and_foreign_files_are_named(mnist, tmp_path, content, said):
    file = _write(tmp_path, "mnist", mnist, shards=2) / "test-00001-of-00002.parquet"
    file.write_bytes(content) if isinstance(content, bytes) else parquet.write_table(content, file)
    message = _refusal("mnist", tmp_path)
    assert said in message and str(file) in message


def test_without_pyarrow_one_line_says_how_to_install_it(mnist, tmp_path, monkeypatch):
    _write(tmp_path, "mnist", mnist)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install pyarrow" in _refusal("mnist", tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _never)
    assert "`source` torchvision" in _refusal("cifar10", tmp_path)  # before 140 MB are downloaded for nothing


def _never(*_: object, **__: object) -> None:
    raise AssertionError("nothing may be downloaded")


# Where from


def test_the_source_decides_between_the_files_that_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _never)
    write_cifar(tmp_path, "cifar100", images_a_class=1)
    publish_cifar(tmp_path, "cifar100", monkeypatch)
    entry = replace(DATASETS["cifar100"], num_train=100, num_test=100)
    monkeypatch.setitem(DATASETS, "cifar100", entry)
    torchvisions = registry.read("cifar100", tmp_path, source="local")
    assert torchvisions.read_from == "torchvision's files" and torchvisions.notes == ()
    arrays = {part: (images.pixels, images.labels) for part, images in torchvisions.parts.items()}
    _write(tmp_path, "cifar100", arrays, columns=("img", "fine_label"))
    for source, said in (
        ("auto", "torchvision's files"),
        ("torchvision", "torchvision's files"),
        ("hub", "parquet files"),
    ):
        found = registry.read("cifar100", tmp_path, source=source)
        assert found.read_from == said
        for part, images in found.parts.items():
            np.testing.assert_array_equal(images.pixels, arrays[part][0])
            np.testing.assert_array_equal(images.labels, arrays[part][1])
    (note,) = found.notes
    assert note.endswith(splits.fingerprint(found.classes, torchvisions.parts))

    (tmp_path / entry.folder / "train").unlink()
    assert registry.read("cifar100", tmp_path).read_from == "parquet files"
    (tmp_path / "cifar100" / "plain_text" / "train-00000-of-00001.parquet").unlink()
    assert "cifar100 is not under" in _refusal("cifar100", tmp_path, source="local")


@pytest.mark.parametrize("source", ["hub", "torchvision"])
def test_a_source_that_does_not_have_the_data_is_refused(tmp_path, source):
    for dataset in ("digits", str(tmp_path)):
        with pytest.raises(UserError, match=f"`source` {source} is for mnist, fashion_mnist, cifar10, cifar100, not"):
            load_dataset(dataset, data_dir=tmp_path, source=source)


def _hub(arrays: Arrays, name: str, calls: list) -> Callable[..., str]:
    """A stand-in for ``snapshot_download``, which leaves files and their metadata as it does."""

    def snapshot_download(repository: str, *, local_dir: Path, **options: str) -> str:
        calls.append((repository, options))
        folder = _write(Path(local_dir).parent, name, arrays, columns=("img", "label"))
        metadata = Path(local_dir) / ".cache" / "huggingface" / "download" / "plain_text"
        metadata.mkdir(parents=True)
        for file in folder.iterdir():
            (metadata / f"{file.name}.metadata").write_text(f"{options['revision']}\netag\n1.0\n")
        return str(local_dir)

    return snapshot_download


@pytest.fixture
def cifar(monkeypatch) -> tuple[Arrays, LabelledImages]:
    """CIFAR-10 of 50 random images with the batches as in the Hub's copy (4, 3, 2, 5, 1), and the same in order."""
    entry = replace(DATASETS["cifar10"], num_train=50, num_test=10)
    monkeypatch.setitem(DATASETS, "cifar10", entry)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    labels = np.array([list(map(int, batch)) for batch in entry.batch_labels])
    hubs = [3, 2, 1, 4, 0]
    train = pixels.reshape(5, 10, 32, 32, 3)[hubs].reshape(pixels.shape), labels[hubs].ravel()
    return {"train": train, "test": (pixels[:10], np.arange(10))}, in_memory(pixels, labels.ravel())


def test_cifar10_is_fetched_once_from_the_hub_at_its_revision_and_put_into_torchvisions_order(
    cifar, tmp_path, monkeypatch
):
    arrays, train = cifar
    calls: list = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _hub(arrays, "cifar10", calls))
    revision = DATASETS["cifar10"].hub.revision
    for _ in range(2):
        found = registry.read("cifar10", tmp_path)
        np.testing.assert_array_equal(found.parts["train"].pixels, train.pixels)
        np.testing.assert_array_equal(found.parts["train"].labels, train.labels)
        np.testing.assert_array_equal(found.parts["train"].indices, np.arange(50))
        assert found.read_from == f"parquet files, commit {revision}"
    assert calls == [("uoft-cs/cifar10", {"repo_type": "dataset", "revision": revision, "allow_patterns": "*.parquet"})]


def test_batches_that_are_not_the_published_ones_keep_their_order(cifar, tmp_path):
    arrays, _ = cifar
    pixels, labels = arrays["train"]
    labels = np.where(np.arange(50) == 12, (labels + 1) % 10, labels)
    _write(tmp_path, "cifar10", {**arrays, "train": (pixels, labels)}, columns=("img", "label"))
    np.testing.assert_array_equal(registry.read("cifar10", tmp_path).parts["train"].pixels, pixels)


def test_what_a_broken_download_leaves_is_no_data_set(cifar, tmp_path, monkeypatch):
    arrays, _ = cifar

    def broken(repository: str, *, local_dir: Path, **options: str) -> str:
        (Path(local_dir) / "plain_text").mkdir(parents=True)
        (Path(local_dir) / ".cache" / "huggingface").mkdir(parents=True)
        raise OSError("the connection was closed")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    message = _refusal("cifar10", tmp_path)
    assert "the connection was closed" in message and "https://huggingface.co/datasets/uoft-cs/cifar10" in message
    assert "hf download uoft-cs/cifar10 --repo-type dataset --revision 0b2714987" in message
    calls: list = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: calls.append(1))
    assert "it left files out" in _refusal("cifar10", tmp_path)  # without a network it may return all the same
    _write(tmp_path, "cifar10", {"test": arrays["test"]}, columns=("img", "label"))
    assert "it left files out" in _refusal("cifar10", tmp_path) and len(calls) == 2


def test_an_image_folder_behind_links_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _never)
    for part in ("train", "test"):
        for name in DATASETS["cifar10"].classes:
            (tmp_path / "elsewhere" / part / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / "elsewhere" / part / name / "0.png")
        (tmp_path / "cifar10").mkdir(exist_ok=True)
        (tmp_path / "cifar10" / part).symlink_to(tmp_path / "elsewhere" / part, target_is_directory=True)
    assert registry.read("cifar10", tmp_path).read_from == "class folders"


def test_an_archive_that_was_brought_is_left_to_torchvision(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _never)
    monkeypatch.setattr(registry.downloads, "by_torchvision", lambda kind, data_dir: asked.append(kind))
    (tmp_path / "cifar-10-python.tar.gz").touch()
    _refusal("cifar10", tmp_path)
    assert asked == ["CIFAR10"]


# In a run


def test_a_run_has_the_same_name_whatever_the_source_and_records_it(cifar, tmp_path, monkeypatch, capsys):
    arrays, _ = cifar
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _hub(arrays, "cifar10", []))
    argv = ["--backbone=test_resnet", "--weights=random", "--image-size=32", "--epochs=1", "--val-fraction=0.4"]
    argv += [f"--data-dir={tmp_path / 'data'}", f"--results-dir={tmp_path / 'results'}", "--no-feature-cache"]
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, [*argv, "--source=hub"]) == 0, capsys.readouterr().err
    (file,) = tmp_path.rglob("result.json")
    record, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert "hub" not in file.parent.parent.name and record["config"]["source"] == "hub"
    assert record["data"]["read_from"] == f"parquet files, commit {DATASETS['cifar10'].hub.revision}"
    assert f"from {record['data']['read_from']}" in printed and record["data"]["fingerprint"] in printed
    assert any(record["data"]["fingerprint"] in note for note in record["notes"])
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, argv) == 0
    assert "already finished" in capsys.readouterr().out


def test_a_grid_hands_its_source_to_the_fetching_and_to_the_runs(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(registry, "read", lambda name, data_dir, *, source: asked.append((name, source)))
    config = reproduce.Config(profile="mini", source="hub", data_dir=tmp_path, results_dir=tmp_path)
    jobs = reproduce._jobs(config, reproduce._grids(config))
    assert {(job.config.dataset, job.config.source) for job in jobs} == {
        *(("mnist", "hub"), ("fashion_mnist", "hub"), ("digits", "auto"))
    }
    assert prefetch.fetch(["mnist"], tmp_path, source="hub") == {} and asked == [("mnist", "hub")]
