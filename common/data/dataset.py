"""A data set ready for training: train, validation and test images, fixed by the split seed."""

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data import folder_index, image_folder, registry, splits
from common.data.images import EXTENSIONS, LabelledImages
from common.data.registry import DATASETS
from common.data.scan import require_whole, scan_files
from common.data.splits import RawSplits, limit, split
from common.runtime.environment import CACHE
from common.runtime.errors import UserError, suggestion


@dataclass(frozen=True, eq=False)
class DatasetSplits:
    """Three disjoint sets of images over the same classes, and what a result has to say about them.

    ``fingerprint`` is the SHA-256 (64 hexadecimal digits) of all the data, whatever the limits and the split seed;
    ``skipped`` names the damaged files that were left out, relative to the image folder. ``read_from``: what the data
    were read from, in a few words. ``test`` is one of ``folds`` parts of all images where these are more than one, and
    empty where all images were asked for.
    """

    name: str
    classes: tuple[str, ...]
    train: LabelledImages
    val: LabelledImages
    test: LabelledImages
    fingerprint: str
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    read_from: str = ""
    folds: int = 1


def check_dataset(dataset: str, source: str = "auto") -> None:
    """Refuse, without reading any data, what is neither a named data set nor an existing folder (UserError).

    Also refused is a ``source`` (``registry.read``) that does not have it.
    """
    if dataset in DATASETS or Path(dataset).is_dir():
        registry.require_source(dataset, source)
        return
    guess = suggestion(dataset.lower().replace("-", "_"), DATASETS)
    raise UserError(f"no data set {dataset!r}{guess}: use one of {registry.DATASET_CHOICES}")


def result_name(dataset: str, name: str | None = None) -> str:
    """Return the name under which results are kept, one safe path component: ``name``, or the data set's own.

    For an image folder that is its base name, with everything but letters, digits, ``_ - .`` replaced by ``_``.

    Raises:
        UserError: ``name`` is no such component, or nothing is left of the folder's name.
    """
    if name is not None:
        if not re.fullmatch(r"[\w][\w.-]*", name):
            raise UserError(f"`dataset_name` {name!r} must be letters, digits, '_', '-', '.', the first no '-' or '.'")
        return name
    base = dataset if dataset in DATASETS else Path(dataset).resolve().name
    safe = re.sub(r"[^\w.-]", "_", base).lstrip(".-")
    if not safe.strip("_"):
        raise UserError(f"the folder name {base!r} cannot name results: rename it, or train with a `dataset_name`")
    return safe


def load_dataset(
    dataset: str,
    *,
    name: str | None = None,
    data_dir: Path,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    train_limit: int | None = None,
    test_limit: int | None = None,
    folds: int | None = 1,
    fold: int = 0,
    all_images: bool = False,
    skip_damaged: bool = False,
    workers: int | None = None,
    source: str = "auto",
    index: Path | None = None,
    cache: Path | None = None,
) -> DatasetSplits:
    """Load a named data set or an image folder and split it by ``split_seed`` alone.

    Validation is a stratified ``val_fraction`` of the training split, unless the folder brings its own. Then
    ``train_limit`` keeps exactly so many training images, with the same share of the validation images, and
    ``test_limit`` so many test images, all stratified. ``folds`` (None: as many as suit the data), ``fold`` and
    ``all_images`` say what is the test part of a folder that brings none (``splits.split``). ``workers``
    processes read an image folder (default: all cores), and what many files hold is kept in the folder ``cache``.
    ``source`` says what a named data set is read from (``registry.read``). An ``index`` (``folder_index``) stands for
    reading an image folder.

    Raises:
        UserError: the data are missing, damaged or too few for what was asked, or ``val_fraction`` is not within 0..1.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"`val_fraction` {val_fraction} must lie between 0 and 1, both excluded")
    if index is None:
        raw = _read(dataset, data_dir, skip_damaged=skip_damaged, workers=workers, source=source, cache=cache)
    else:
        raw = folder_index.load_index(index, _folder(dataset, data_dir))
    folds = splits.usual_folds(raw) if folds is None else folds
    parts = split(raw, val_fraction, split_seed, folds=folds, fold=fold, all_images=all_images)
    train, val, test = limit(parts, train_limit, test_limit, split_seed)
    fingerprint = splits.fingerprint(raw.classes, raw.parts)
    drawn = _note_test_part(folds, fold, all_images) if "all" in raw.parts else []
    notes = (*raw.notes, *drawn, *_note_other_bytes(dataset, fingerprint), *_note_copies(train, val, test))
    return DatasetSplits(
        result_name(dataset, name), raw.classes, train, val, test, fingerprint, notes, raw.skipped, raw.read_from, folds
    )


def load_dataset_of_run(
    settings: Mapping[str, Any],
    *,
    data_dir: Path | None = None,
    workers: int | None = None,
    source: str | None = None,
) -> DatasetSplits:
    """Load and split the data of a run, from its settings: those of a script, or those in a ``result.json``.

    Args:
        data_dir: where the named data sets lie now, if not where the settings say.
        workers: processes that read an image folder (default: as the settings say).
        source: what a named data set is read from (default: as the settings say; older records do not).
    """
    index = settings.get("data_index")
    choices = ("val_fraction", "split_seed", "train_limit", "test_limit", "skip_damaged")
    later = {name: settings[name] for name in ("folds", "fold", "all_images") if name in settings}
    return load_dataset(
        settings["dataset"],
        name=settings["dataset_name"],
        data_dir=data_dir or Path(settings["data_dir"]),
        workers=settings["workers"] if workers is None else workers,
        source=source or settings.get("source", "auto"),
        index=None if index is None else Path(index),
        cache=cache_folder(settings.get("cache_dir")),
        **{choice: settings[choice] for choice in choices},
        **later,  # older records mean by their absence what is the default
    )


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Return where is kept what image folders hold, by the setting ``cache_dir``."""
    return (CACHE if cache_dir is None else Path(cache_dir)) / "folders"


def index_dataset(dataset: str, data_dir: Path, path: Path, *, source: str = "auto", cache: Path | None = None) -> bool:
    """Read an image folder and write its index (``folder_index``) to ``path``; False where the data are no such folder.

    ``source`` says what a named data set is read from, and what many files hold is kept in the folder ``cache``.

    Raises:
        UserError: the folder is missing or its images are damaged, or the index cannot be written.
    """
    if dataset in DATASETS and registry.kind_on_disk(dataset, data_dir, source) != "folder":
        return False
    raw = _read(dataset, data_dir, source=source, cache=cache)
    folder_index.write_index(path, _folder(dataset, data_dir), raw)
    return True


def _folder(dataset: str, data_dir: Path) -> Path:
    """Return the image folder that ``dataset`` is, or has below ``data_dir``."""
    return Path(data_dir) / dataset if dataset in DATASETS else Path(dataset)


def load_labelled(
    dataset: str, data_dir: Path, *, workers: int | None = None
) -> tuple[LabelledImages, tuple[str, ...]]:
    """Return labelled images to score a trained model on, and their classes.

    They are the test split of a named data set or of an image folder that has one, and else all of its images. Data
    that are missing or damaged are a UserError.
    """
    raw = _read(dataset, data_dir, workers=workers, cache=cache_folder(None))
    return raw.parts["all"] if "all" in raw.parts else raw.parts["test"], raw.classes


def load_unlabelled(*paths: Path | str, workers: int | None = None) -> LabelledImages:
    """Return the images that ``paths`` name, each once and with label -1; ``workers`` processes look at all of them.

    A path is an image file, a folder (all images below it, at any depth, sorted by path), or a pattern of ``glob``.

    Raises:
        UserError: a path names no image, or a folder that may not be read; or images are damaged, all of them counted.
    """
    files = tuple(dict.fromkeys(file for path in paths for file in _images_at(str(path))))
    if not files:
        raise UserError("no image is named: give a folder, files, or a pattern")
    scan = scan_files(files, Path(), workers=workers, cache=None)
    problems = {str(files[number]): problem for number, problem in scan.problems.items()}
    require_whole(problems, len(files), what="images", remedy="Replace or remove them")
    return LabelledImages(np.full(len(files), -1), np.arange(len(files)), pixels=scan.pixels, files=files)


def _images_at(path: str) -> list[Path]:
    matches = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    files = [file for match in matches for file in (_files_below(match) if os.path.isdir(match) else [Path(match)])]
    images = [file for file in files if image_folder.is_image(file)]
    if not images:
        kinds = ", ".join(EXTENSIONS)
        raise UserError(f"{path!r} is no folder with images, no image file ({kinds}) and no pattern of any")
    return images


def _files_below(folder: str) -> list[Path]:
    """Return the files below ``folder``, without hidden ones, sorted by path."""

    def unreadable(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename!r}: {error.strerror or error}") from error

    walk = os.walk(folder, onerror=unreadable)
    return sorted(Path(parent, name) for parent, _, names in walk for name in names if not name.startswith("."))


def _read(dataset: str, data_dir: Path, *, source: str = "auto", **how: Any) -> RawSplits:
    """Read a named data set or an image folder; ``how`` is for ``image_folder.read``."""
    check_dataset(dataset, source)
    if dataset in DATASETS:
        return registry.read(dataset, Path(data_dir), source=source, **how)
    return image_folder.read(Path(dataset), **how)


def _note_test_part(folds: int, fold: int, all_images: bool) -> list[str]:
    """Note what the test part of data without a test split is."""
    if all_images:
        return ["all images are for training and validation: this model has no test score"]
    if folds > 1:
        return [f"the folder has no test split: fold {fold} (from 0) of {folds} stratified ones is the test part"]
    return ["the folder has no test split: 20 % of each class were set aside by the split seed"]


def _note_other_bytes(dataset: str, fingerprint: str) -> list[str]:
    """Note where a data set that goes by a well-known name is not the published one."""
    published = DATASETS[dataset].fingerprint if dataset in DATASETS else None
    if published in (None, fingerprint):
        return []
    return [f"these are not torchvision's bytes of {dataset}: say so beside any figure measured on them"]


def _note_copies(train: LabelledImages, val: LabelledImages, test: LabelledImages) -> list[str]:
    """Note how many images stand in two splits, byte for byte."""
    counts = {
        f"{len(test):,} test images are exact copies of training or validation images": splits.count_copies(
            test, [train, val]
        ),
        f"{len(val):,} validation images are exact copies of training images": splits.count_copies(val, [train]),
    }
    return [f"{count:,} of the {text}" for text, count in counts.items() if count]
