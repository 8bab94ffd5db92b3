"""The published files of MNIST, Fashion-MNIST and CIFAR-10, read by numpy alone: the report loads no torch."""

import hashlib
import pickle
from pathlib import Path

import numpy as np

IDX_FOLDERS = {"mnist": "MNIST/raw", "fashion_mnist": "FashionMNIST/raw"}  # where torchvision unpacks them

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

CIFAR10_FOLDER = "cifar-10-batches-py"

CIFAR10_MD5 = {  # the published sums; the files are pickles, which nobody should open unchecked
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}

_UBYTE = 8  # the idx format's code for bytes


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the uint8 array of an idx file: two zero bytes, type, number of axes, their lengths (big-endian), bytes.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no idx file of bytes with so many ``dimensions``, or not whole.
    """
    content = path.read_bytes()
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, _UBYTE, dimensions]):
        raise ValueError(f"no idx file of bytes with {dimensions} axes")
    shape = np.frombuffer(content, ">u4", count=dimensions, offset=4).tolist()
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def missing_of_cifar10(data_dir: Path) -> list[Path]:
    """Return those of CIFAR-10's files below ``data_dir`` that are not there, or not the published ones."""
    folder = data_dir / CIFAR10_FOLDER
    return [folder / name for name, md5 in CIFAR10_MD5.items() if _md5(folder / name) != md5]


def read_cifar10(data_dir: Path, *, train: bool) -> tuple[np.ndarray, list[int]]:
    """Return CIFAR-10's pixels (N, 32, 32, 3) uint8 and N labels; only for files that ``missing_of_cifar10`` passed."""
    names = [name for name in CIFAR10_MD5 if name.startswith("data") == train]
    batches = [_unpickle(data_dir / CIFAR10_FOLDER / name) for name in names]
    pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), [label for batch in batches for label in batch["labels"]]


def _md5(path: Path) -> str | None:
    """Return a file's MD5 sum, None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    except OSError:
        return None


def _unpickle(path: Path) -> dict:
    with open(path, "rb") as file:
        return pickle.load(file, encoding="latin1")  # written by Python 2
