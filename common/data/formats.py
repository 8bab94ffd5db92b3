"""Readers of the published data sets' files, by numpy alone: the report shows their images without loading torch."""

import hashlib
import importlib.util
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from common.data.images import LabelledImages
from common.data.splits import digests_of, stratified_split
from common.runtime.errors import UserError

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_UBYTE = 8  # the idx format's code for bytes
DIGITS_SPLIT_SEED = 0  # fixed for ever: digits come without a test split


def missing_files(folder: Path, files: Mapping[str, str | None]) -> list[Path]:
    """Return those of ``files`` (name -> published MD5 sum, or None) that ``folder`` lacks or has with another sum."""
    return [folder / name for name, md5 in files.items() if not _is_there(folder / name, md5)]


def _is_there(path: Path, md5: str | None) -> bool:
    if md5 is None:
        return path.is_file()
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest() == md5
    except OSError:
        return False


def read_idx_files(folder: Path, files: Iterable[str]) -> dict[str, LabelledImages]:
    """Read MNIST's kind of data set: ``files`` are the images and labels of train, then those of test.

    A damaged file is a UserError that names it.
    """
    paths = [folder / name for name in files]
    return {"train": _read_idx_pair(*paths[:2]), "test": _read_idx_pair(*paths[2:])}


def _read_idx_pair(images_file: Path, labels_file: Path) -> LabelledImages:
    pixels, labels = _read_idx(images_file, dimensions=3), _read_idx(labels_file, dimensions=1)
    if len(pixels) != len(labels) or not len(labels):
        raise UserError(f"{str(images_file)!r} has {len(pixels):,} images, {str(labels_file)!r} {len(labels):,} labels")
    if 0 in pixels.shape:
        raise UserError(f"{str(images_file)!r} has images without pixels: remove that file")
    return in_memory(pixels, labels)


def _read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    """Return an idx file's uint8 array: two zero bytes, type, number of axes, their lengths (big-endian), bytes."""
    try:
        content = path.read_bytes()
        if content[:4] != bytes([0, 0, _UBYTE, dimensions]):
            raise ValueError(f"no idx file of bytes with {dimensions} axes")
        shape = np.frombuffer(content, ">u4", count=dimensions, offset=4).tolist()
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} is damaged or no idx file of MNIST's kind: remove it, and the next run downloads it again"
        ) from error


def read_cifar_files(folder: Path, files: Iterable[str]) -> dict[str, LabelledImages]:
    """Read CIFAR's pickles: (N, 32, 32, 3) uint8, of CIFAR-100 with the fine labels.

    Only for files that ``missing_files`` has found to be the published ones: a pickle can run code.
    """
    test = [name for name in files if name.startswith("test")]
    train = [name for name in files if name not in test]
    return {"train": _read_cifar(folder, train), "test": _read_cifar(folder, test)}


def _read_cifar(folder: Path, names: Iterable[str]) -> LabelledImages:
    batches = [pickle.loads((folder / name).read_bytes(), encoding="latin1") for name in names]  # by Python 2
    key = "fine_labels" if "fine_labels" in batches[0] else "labels"
    pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([batch[key] for batch in batches])
    return in_memory(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels)


def read_digits(*_: object) -> dict[str, LabelledImages]:
    """Return scikit-learn's 1,797 digits: (N, 8, 8) uint8, the values 0..16 scaled to 0..255; 20 % of them test."""
    package = Path(importlib.util.find_spec("sklearn").origin).parent  # importing it takes more than a second
    table = np.loadtxt(package / "datasets" / "data" / "digits.csv.gz", delimiter=",")  # (N, 8 * 8 + the label)
    images = in_memory(np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), table[:, -1])
    train, test = stratified_split(images.labels, 0.2, np.random.default_rng(DIGITS_SPLIT_SEED))
    return {"train": images.subset(train), "test": images.subset(test)}


def in_memory(pixels: np.ndarray, labels: np.ndarray) -> LabelledImages:
    """Wrap (N, H, W[, 3]) uint8 ``pixels`` and N integer ``labels``, in natural order."""
    return LabelledImages(labels.astype(np.int64), np.arange(len(labels)), pixels, digests=digests_of(pixels))
