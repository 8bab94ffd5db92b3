"""The data sets that have a name: each is one entry of ``DATASETS``, and everything else follows from it."""

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from common.data import formats, image_folder
from common.data.images import LabelledImages
from common.data.splits import RawSplits
from common.runtime.errors import UserError

# From the folder of the files and their names to ``train`` and ``test``; a damaged file is a UserError.
Reader = Callable[[Path, Mapping[str, str | None]], dict[str, LabelledImages]]


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What is known of a data set before it is read.

    ``title``: its name in figures. ``classes``: their names, in the order of the labels. ``num_train``: images of the
    training split, validation among them. ``folder``: below the data folder, where torchvision unpacks the files.
    ``files``: name -> published MD5 sum, or None where it is not checked. ``torchvision``: the class there that
    downloads them, None where nothing is downloaded. ``fingerprint``: of the published data, where it is known.
    """

    title: str
    classes: tuple[str, ...]
    num_train: int
    num_test: int
    read: Reader
    folder: str = ""
    files: Mapping[str, str | None] = field(default_factory=dict)
    torchvision: str | None = None
    download_bytes: int = 0
    fingerprint: str | None = None


DIGITS = tuple("0123456789")
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
DATASETS = {
    "mnist": DatasetSpec(
        title="MNIST",
        classes=DIGITS,
        num_train=60_000,
        num_test=10_000,
        read=formats.read_idx_files,
        folder="MNIST/raw",
        files=dict.fromkeys(formats.IDX_FILES),
        torchvision="MNIST",
        download_bytes=11_600_000,
        fingerprint="659d9b9e9134421f22d827550e635aee765a08105e77c71b39aa052eb84b6a98",
    ),
    "fashion_mnist": DatasetSpec(
        title="Fashion-MNIST",
        classes=FASHION,
        num_train=60_000,
        num_test=10_000,
        read=formats.read_idx_files,
        folder="FashionMNIST/raw",
        files=dict.fromkeys(formats.IDX_FILES),
        torchvision="FashionMNIST",
        download_bytes=30_900_000,
        fingerprint="35f131f80eaa0b6016fe3479467d15df23cad96332e7cb7f272e35465fc8af77",
    ),
    "cifar10": DatasetSpec(
        title="CIFAR-10",
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        num_train=50_000,
        num_test=10_000,
        read=formats.read_cifar_files,
        folder="cifar-10-batches-py",
        files={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        torchvision="CIFAR10",
        download_bytes=170_500_000,
    ),
    "cifar100": DatasetSpec(
        title="CIFAR-100",
        classes=tuple(CIFAR100.split()),
        num_train=50_000,
        num_test=10_000,
        read=formats.read_cifar_files,
        folder="cifar-100-python",
        files={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        torchvision="CIFAR100",
        download_bytes=169_000_000,
    ),
    "digits": DatasetSpec(title="Digits", classes=DIGITS, num_train=1_438, num_test=359, read=formats.read_digits),
}
DATASET_CHOICES = f"{', '.join(DATASETS)}, or the path of an image folder"  # what a script's ``dataset`` may be


def read(
    name: str, data_dir: Path, *, skip_damaged: bool = False, workers: int | None = None, download: bool = True
) -> RawSplits:
    """Read a named data set: torchvision's files below ``data_dir``, else ``<data_dir>/<name>/`` as an image folder,
    else (unless ``download`` is off) torchvision's download into ``data_dir``. ``digits`` comes with scikit-learn.

    torch is loaded for the download only.

    Raises:
        UserError: it can neither be found nor downloaded, or its files are damaged.
    """
    spec = DATASETS[name]
    files, folder = data_dir / spec.folder, data_dir / name
    missing = formats.missing_files(files, spec.files)
    if missing and folder.is_dir():
        return _renamed(image_folder.read(folder, skip_damaged=skip_damaged, workers=workers), name, folder)
    if missing and not (download and spec.torchvision):
        raise UserError(f"{name} is not under {str(data_dir)!r}")
    if missing:
        _download(name, data_dir, missing)
    parts = spec.read(files, spec.files)
    for part, images in parts.items():
        if (highest := images.labels.max()) >= len(spec.classes):
            raise UserError(
                f"{part} of {name} has the label {highest}, but the labels of {len(spec.classes)} classes "
                f"start at 0: remove the files in {str(files)!r}"
            )
    return RawSplits(spec.classes, parts)


def _download(name: str, data_dir: Path, missing: list[Path]) -> None:
    """Let torchvision download (or unpack an archive that lies in its place), or say how to provide the data."""
    from torchvision import datasets

    kind = getattr(datasets, DATASETS[name].torchvision)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds without a byte; torchvision sets none and would hang for ever
    try:
        kind(str(data_dir), download=True)
    except Exception as error:  # urllib, tarfile, gzip, OSError, torchvision's RuntimeError
        url = kind.mirrors[0] if hasattr(kind, "mirrors") else kind.url
        raise UserError(
            f"{name} is not there: {str(missing[0])!r} is missing or damaged, there is no image folder "
            f"{str(data_dir / name)!r} (train/<class>/, test/<class>/), and the download from {url} failed "
            f"({' '.join(str(error).split())[:200]}). Put one of the two in place, or set `data_dir`"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _renamed(source: RawSplits, name: str, folder: Path) -> RawSplits:
    """Give an image folder's classes the numbers and names of data set ``name``; its order of images stays."""
    classes = DATASETS[name].classes
    wanted = {_plain(label): i for i, label in enumerate(classes)} | {str(i): i for i in range(len(classes))}
    numbers = np.array([wanted.get(_plain(found), -1) for found in source.classes])
    if sorted(numbers) != list(range(len(classes))):
        raise UserError(
            f"{str(folder)!r} has the classes {_named(source.classes)}, which are not {name}'s: {_named(classes)}"
        )
    parts = {part: replace(images, labels=numbers[images.labels]) for part, images in source.parts.items()}
    note = f"{name} was read from an image folder, not from torchvision's files; if it holds JPEG, pixels differ"
    return RawSplits(classes, parts, (*source.notes, note), source.skipped)


def _named(classes: tuple[str, ...]) -> str:
    return ", ".join(map(repr, classes[:12])) + " and others" * (len(classes) > 12)


def _plain(name: str) -> str:
    """Reduce a class name to what survives in a folder's name: 'T-shirt/top' and 'tshirt_top' are the same."""
    return "".join(filter(str.isalnum, name.lower()))
