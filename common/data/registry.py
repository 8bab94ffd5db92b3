"""The data sets that have a name: MNIST, Fashion-MNIST, CIFAR-10 as torchvision keeps them, scikit-learn's digits."""

import socket
from pathlib import Path

import numpy as np

from common.data import formats, image_folder
from common.data.images import LabelledImages, RawSplits
from common.data.splits import digests_of, stratified_split
from common.runtime.errors import UserError

DIGITS = tuple("0123456789")

CLASSES = {
    "mnist": DIGITS,
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "digits": DIGITS,
}

# Of the original files, whose MD5 sums are the published ones; CIFAR-10's are checked before they are read.
FINGERPRINTS = {
    "mnist": "659d9b9e9134421f22d827550e635aee765a08105e77c71b39aa052eb84b6a98",
    "fashion_mnist": "35f131f80eaa0b6016fe3479467d15df23cad96332e7cb7f272e35465fc8af77",
}

DIGITS_SPLIT_SEED = 0  # fixed for ever: digits come without a test split


def read(
    name: str, data_dir: Path, *, skip_damaged: bool = False, workers: int | None = None, download: bool = True
) -> RawSplits:
    """Read a named data set: torchvision's files below ``data_dir``, else ``<data_dir>/<name>/`` as an image folder,
    else (unless ``download`` is off) torchvision's download into ``data_dir``. ``digits`` comes with scikit-learn.

    torch is loaded for the download only.

    Raises:
        UserError: it can neither be found nor downloaded, or its files are damaged.
    """
    if name == "digits":
        return _digits()
    reader = _cifar10 if name == "cifar10" else _idx_files
    if source := reader(name, data_dir, download=False):
        return source
    if (data_dir / name).is_dir():
        source = image_folder.read(data_dir / name, skip_damaged=skip_damaged, workers=workers)
        return _renamed(source, name, data_dir / name)
    if not download:
        raise UserError(f"{name} is not under {str(data_dir)!r}")
    return reader(name, data_dir, download=True)


def _digits() -> RawSplits:
    """Return scikit-learn's 1,797 digits: (N, 8, 8) uint8, the values 0..16 scaled to 0..255; 20 % of them test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = _in_memory(np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target)
    train, test = stratified_split(images.labels, 0.2, np.random.default_rng(DIGITS_SPLIT_SEED))
    return RawSplits(CLASSES["digits"], {"train": images.subset(train), "test": images.subset(test)})


def _in_memory(pixels: np.ndarray, labels: np.ndarray) -> LabelledImages:
    """Wrap (N, H, W[, 3]) uint8 ``pixels`` and N integer ``labels``, in natural order."""
    labels = np.asarray(labels, dtype=np.int64)
    return LabelledImages(labels, np.arange(len(labels)), pixels, digests=digests_of(pixels))


def _idx_files(name: str, data_dir: Path, *, download: bool) -> RawSplits | None:
    """Read MNIST's or Fashion-MNIST's four idx files; None where one is missing and ``download`` is off."""
    raw = data_dir / formats.IDX_FOLDERS[name]
    files = [raw / file for file in formats.IDX_FILES]
    missing = [file for file in files if not file.is_file()]
    if missing and not download:
        return None
    if missing:
        _download(name, data_dir, missing)
    parts = {"train": _idx_part(*files[:2]), "test": _idx_part(*files[2:])}
    return RawSplits(CLASSES[name], parts)


def _idx_part(images_file: Path, labels_file: Path) -> LabelledImages:
    """Read one split's pair of idx files into memory; raises UserError naming the file that is damaged."""
    pixels, labels = _read_idx(images_file, dimensions=3), _read_idx(labels_file, dimensions=1)
    if len(pixels) != len(labels) or not len(labels):
        raise UserError(f"{str(images_file)!r} has {len(pixels):,} images, {str(labels_file)!r} {len(labels):,} labels")
    if labels.max() > 9:
        raise UserError(
            f"{str(labels_file)!r} has the label {labels.max()}: it must have 0 to 9 only; remove that file"
        )
    if 0 in pixels.shape:
        raise UserError(f"{str(images_file)!r} has images without pixels: remove that file")
    return _in_memory(pixels, labels)


def _read_idx(file: Path, *, dimensions: int) -> np.ndarray:
    """Read an idx file of bytes; raises UserError naming it where it is damaged."""
    try:
        return formats.read_idx(file, dimensions)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(file)!r} is damaged or no idx file of MNIST's kind: remove it, and the next run downloads it again"
        ) from error


def _cifar10(name: str, data_dir: Path, *, download: bool) -> RawSplits | None:
    """Read CIFAR-10's pickles, whose MD5 sums are checked before; None where one does not match."""
    bad = formats.missing_of_cifar10(data_dir)
    if bad and not download:
        return None
    if bad:
        _download(name, data_dir, bad)
    sets = {part: formats.read_cifar10(data_dir, train=part == "train") for part in ("train", "test")}
    return RawSplits(CLASSES[name], {part: _in_memory(*arrays) for part, arrays in sets.items()})


def _download(name: str, data_dir: Path, missing: list[Path]) -> None:
    """Let torchvision download (or unpack an archive that lies in its place), or say how to provide the data."""
    from torchvision import datasets

    kind = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}[name]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds without a byte; torchvision sets none and would hang for ever
    try:
        kind(str(data_dir), download=True)
    except Exception as error:  # urllib, tarfile, gzip, OSError, torchvision's RuntimeError
        url = kind.url if name == "cifar10" else kind.mirrors[0]
        raise UserError(
            f"{name} is not there: {str(missing[0])!r} is missing or damaged, there is no image folder "
            f"{str(data_dir / name)!r} (train/<class>/, test/<class>/), and the download from {url} failed "
            f"({' '.join(str(error).split())[:200]}). Put one of the two in place, or set `data_dir`"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _renamed(source: RawSplits, name: str, folder: Path) -> RawSplits:
    """Give an image folder's classes the numbers and names of data set ``name``; its order of images stays."""
    wanted = {_plain(label): i for i, label in enumerate(CLASSES[name])} | {str(i): i for i in range(10)}
    numbers = np.array([wanted.get(_plain(found), -1) for found in source.classes])
    if sorted(numbers) != list(range(len(CLASSES[name]))):
        raise UserError(
            f"{str(folder)!r} has the classes {', '.join(map(repr, source.classes[:12]))}, which are not {name}'s: "
            f"{', '.join(map(repr, CLASSES[name]))}"
        )
    from dataclasses import replace

    parts = {part: replace(images, labels=numbers[images.labels]) for part, images in source.parts.items()}
    note = f"{name} was read from an image folder, not from torchvision's files; if it holds JPEG, pixels differ"
    return RawSplits(CLASSES[name], parts, (*source.notes, note), source.skipped)


def _plain(name: str) -> str:
    """Reduce a class name to what survives in a folder's name: 'T-shirt/top' and 'tshirt_top' are the same."""
    return "".join(filter(str.isalnum, name.lower()))


DATASET_NAMES = tuple(CLASSES)
