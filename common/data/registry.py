"""The data sets that have a name: each is one entry of ``DATASETS``, and everything else follows from it."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from common.data import downloads, formats, image_folder, parquet, splits
from common.data.downloads import HubCopy
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
    downloads them, from ``archive``, if that lies in the data folder already. ``hub``: its copy on the Hugging Face
    Hub. ``download``: which of these two is asked first, None where nothing is downloaded. ``fingerprint``: of the
    published data, where it is known. ``batch_labels``: the first ten labels of each training batch, in torchvision's
    order, where the Hub's copy has the batches in another order.
    """

    title: str
    classes: tuple[str, ...]
    num_train: int
    num_test: int
    read: Reader
    folder: str = ""
    files: Mapping[str, str | None] = field(default_factory=dict)
    torchvision: str | None = None
    archive: str = ""
    hub: HubCopy | None = None
    download: Literal["torchvision", "hub"] | None = None
    download_bytes: int = 0
    fingerprint: str | None = None
    batch_labels: tuple[str, ...] = ()


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
        hub=HubCopy("ylecun/mnist", "77f3279092a1c1579b2250db8eafed0ad422088c"),
        download="torchvision",
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
        hub=HubCopy("zalando-datasets/fashion_mnist", "531be5e2ccc9dba0c201ad3ae567a4f3d16ecdd2"),
        download="torchvision",
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
        torchvision="CIFAR10",  # since June 2026 at about 70 kB/s (pytorch/vision#9536)
        archive="cifar-10-python.tar.gz",
        hub=HubCopy("uoft-cs/cifar10", "0b2714987fa478483af9968de7c934580d0bb9a2"),
        download="hub",
        download_bytes=143_600_000,
        # Made by the datasets library in the order of the archive's files: batches 4, 3, 2, 5, 1.
        batch_labels=("6994112783", "1668834606", "8506928362", "0602721241", "1851574382"),
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
        archive="cifar-100-python.tar.gz",
        hub=HubCopy("uoft-cs/cifar100", "aadb3af77e9048adbea6b47c21a81e47dd092ae5"),
        download="hub",
        download_bytes=142_300_000,
    ),
    "digits": DatasetSpec(title="Digits", classes=DIGITS, num_train=1_438, num_test=359, read=formats.read_digits),
}
DATASET_CHOICES = f"{', '.join(DATASETS)}, or the path of an image folder"  # what a script's ``dataset`` may be


def require_source(dataset: str, source: str) -> None:
    """Refuse to read ``dataset``, a name or a folder, from the Hub or from torchvision where these do not have it."""
    if source not in ("auto", "local") and getattr(DATASETS.get(dataset), source, None) is None:
        having = [name for name, spec in DATASETS.items() if getattr(spec, source)]
        raise UserError(f"`source` {source} is for {', '.join(having)}, not for {dataset!r}: leave it out")


def read(
    name: str,
    data_dir: Path,
    *,
    source: str = "auto",
    skip_damaged: bool = False,
    workers: int | None = None,
    cache: Path | None = None,
) -> RawSplits:
    """Read a named data set; ``digits`` comes with scikit-learn, the others lie below ``data_dir``.

    Args:
        source: ``auto``: torchvision's files, else the Hub's parquet files below ``<data_dir>/<name>/``, else that
            folder as an image folder, else the download that the data set's entry names. ``local``: the same without
            a download. ``hub``, ``torchvision``: that kind of files alone, downloaded where they are not there.

    Raises:
        UserError: it can neither be found nor downloaded, or its files are damaged or not the published ones.
    """
    require_source(name, source)
    spec, folder = DATASETS[name], data_dir / name
    kind = kind_on_disk(name, data_dir, source) or _download(name, data_dir, source)
    if kind == "folder":
        raw = image_folder.read(folder, skip_damaged=skip_damaged, workers=workers, cache=cache)
        return _renamed(raw, name, folder)
    if kind == "hub":
        return _read_parquet(name, folder)
    parts = spec.read(data_dir / spec.folder, spec.files)
    _require_known_labels(name, parts, data_dir / spec.folder)
    return RawSplits(spec.classes, parts, read_from="torchvision's files" if spec.files else "scikit-learn")


def kind_on_disk(name: str, data_dir: Path, source: str) -> str | None:
    """Return which files to read: those of ``torchvision``, those of the ``hub``, an image ``folder``, or None."""
    folder = data_dir / name
    if source != "hub" and not _missing_files(name, data_dir):
        return "torchvision"
    if source == "torchvision":
        return None
    parts = parquet.find_files(folder)
    if len(parts) == len(parquet.PARTS):
        return "hub"
    if parts or source == "hub":
        return None
    near = (path for pattern in ("*", "*/*", "*/*/*") for path in folder.glob(pattern))  # follows links, unlike rglob
    return "folder" if any(map(image_folder.is_image, near)) else None  # else what a broken download has left


def _missing_files(name: str, data_dir: Path) -> list[Path]:
    return formats.missing_files(data_dir / DATASETS[name].folder, DATASETS[name].files)


def _read_parquet(name: str, folder: Path) -> RawSplits:
    """Read the parquet files below ``folder``, with a note where there is no published fingerprint to hold them to."""
    spec, files = DATASETS[name], parquet.find_files(folder)
    parts, classes = parquet.read(files)
    _require_shape(name, parts, classes, folder)
    parts["train"] = parquet.in_batch_order(parts["train"], spec.batch_labels)
    fingerprint = splits.fingerprint(spec.classes, parts)
    if spec.fingerprint not in (None, fingerprint):
        raise UserError(
            f"the parquet files in {str(folder)!r} are not {name} as it was published: images, labels or their order "
            f"differ (fingerprint {fingerprint[:12]}, not {spec.fingerprint[:12]}): {_get_again(name, folder)}"
        )
    note = f"{name} has no published fingerprint to compare parquet files with; that of these is {fingerprint}"
    commit = parquet.find_commit(folder, files)
    read_from = "parquet files" + (f", commit {commit}" if commit else "")
    return RawSplits(spec.classes, parts, () if spec.fingerprint else (note,), read_from=read_from)


def _require_shape(name: str, parts: Mapping[str, LabelledImages], classes: list[str] | None, folder: Path) -> None:
    """Refuse parquet files whose sizes, labels or classes (in the order of labels) are not those of ``name``."""
    spec = DATASETS[name]
    for part, size in (("train", spec.num_train), ("test", spec.num_test)):
        if len(parts[part]) != size:
            raise UserError(
                f"the parquet files of {part} in {str(folder)!r} have {len(parts[part]):,} images, but {name} has "
                f"{size:,}: {_get_again(name, folder)}"
            )
    if classes is not None and list(map(_plain, classes)) != list(map(_plain, spec.classes)):
        raise UserError(
            f"the parquet files in {str(folder)!r} have the classes {_named(classes)}, which are not {name}'s in its "
            f"order: {_named(spec.classes)}"
        )
    _require_known_labels(name, parts, folder)


def _get_again(name: str, folder: Path) -> str:
    return "remove them" + (f" and get them again: {_hf_download(name, folder)}" if DATASETS[name].hub else "")


def _hf_download(name: str, folder: Path) -> str:
    return f"{DATASETS[name].hub.command} {shlex.quote(str(folder))}"


def _require_known_labels(name: str, parts: Mapping[str, LabelledImages], folder: Path) -> None:
    count = len(DATASETS[name].classes)
    for part, images in parts.items():
        outside = images.labels[(images.labels < 0) | (images.labels >= count)]
        if len(outside):
            raise UserError(
                f"{part} of {name} has the label {outside.max()}, but the labels of {count} classes "
                f"start at 0: remove the files in {str(folder)!r}"
            )


def _download(name: str, data_dir: Path, source: str) -> str:
    """Download a data set from the ``hub`` or by ``torchvision``, and return which; or say how to provide it."""
    spec, folder = DATASETS[name], data_dir / name
    has_archive = bool(spec.archive) and (data_dir / spec.archive).is_file()  # which torchvision unpacks
    kind = {"auto": "torchvision" if has_archive else spec.download, "local": None}.get(source, source)
    if kind is None:
        raise UserError(f"{name} is not under {str(data_dir)!r}")
    url = spec.hub.url if kind == "hub" else downloads.torchvision_url(spec.torchvision)
    absent = "".join(f"{str(file)!r} is missing or damaged, " for file in _missing_files(name, data_dir)[:1])
    try:
        if kind == "hub":
            downloads.from_hub(spec.hub, folder)
        else:
            downloads.by_torchvision(spec.torchvision, data_dir)
        if kind_on_disk(name, data_dir, kind):
            return kind
        raise FileNotFoundError("it left files out")
    except UserError:  # pyarrow is missing: nothing was asked of the Hub
        raise
    except Exception as error:  # of urllib, tarfile, gzip, torchvision (RuntimeError), huggingface_hub, httpx, the disk
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name} is not there: {absent}{str(folder)!r} is no image folder (train/<class>/, test/<class>/) and has "
            f"no parquet files of train and test, and the download from {url} failed ({reason}). Put one of these in "
            "place, or set `data_dir`" + (f"; with a network: {_hf_download(name, folder)}" if spec.hub else "")
        ) from error


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
    return RawSplits(classes, parts, (*source.notes, note), source.skipped, source.read_from)


def _named(classes: tuple[str, ...]) -> str:
    return ", ".join(map(repr, classes[:12])) + " and others" * (len(classes) > 12)


def _plain(name: str) -> str:
    """Reduce a class name to what survives in a folder's name: 'T-shirt/top' and 'tshirt_top' are the same."""
    return "".join(filter(str.isalnum, name.lower()))
