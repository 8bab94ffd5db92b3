"""The CNN head as a whole job, from the start of the process to the written result, against the textbook's recipe."""

import functools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.measuring import alternate, paired, run_script, timed
from common.data.dataset import load_dataset
from common.models import backbones
from common.runtime.device import resolve_device, resolve_precision
from common.training.features import Extractor, extract
from common.training.run import FEATURE_CACHE

IMAGE_SIZE = 224
LEARNING_RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
RANDOM = "backbones have random weights on both sides: nothing is downloaded, and their values do not change the speed"


def whole(
    sample: Path, few: Path, scratch: Path, *, tags: Sequence[str], epochs: int, long_epochs: int, repeats: int
) -> dict[str, Any]:
    """Time ``train_cnn_head.py`` without its feature cache against ``bench/textbook.py``, for each backbone.

    Args:
        sample: image folder with train, val and test that both read.
        few: the same with a few images, to warm up on.
        scratch: where results go; it is the caller's to remove.
        long_epochs: here measured as well; of the textbook, whose epochs all cost the same, scaled by their median.
    """
    records, textbook = [], {}
    for tag in tags:
        ours = functools.partial(_ours, scratch=scratch, tag=tag)
        theirs = functools.partial(_textbook, scratch=scratch, tag=tag)
        ours(few, epochs=1), theirs(few, epochs=1)
        sides = {
            "here": lambda ours=ours: ours(sample, epochs=epochs),
            "textbook": lambda theirs=theirs: theirs(sample, epochs=epochs),
            "here, long": lambda ours=ours: ours(sample, epochs=long_epochs),
        }
        found = alternate(sides, repeats, desc=f"head {tag}")
        textbook[tag] = found["textbook"]
        records += whole_records(tag, found, epochs=epochs, long_epochs=long_epochs)
    return {
        "weights": "random",
        "records": records,
        "textbook_reports": textbook,
        "notes": [
            RANDOM,
            f"both read the same PNG files, make {IMAGE_SIZE}x{IMAGE_SIZE} of them, and train the same two-layer head; "
            "here each image goes through the backbone once, in the precision of `environment`, in the textbook in "
            "every epoch, in float32",
            f"{long_epochs} epochs: here measured; the textbook's seconds for {epochs} epochs plus "
            f"{long_epochs - epochs} times the median of that run's own epochs",
        ],
    }


def whole_records(
    tag: str, found: Mapping[str, Sequence[Any]], *, epochs: int, long_epochs: int
) -> list[dict[str, Any]]:
    """Return the records of one backbone: of ``epochs``, and of ``long_epochs``, where the textbook is scaled."""
    theirs = found["textbook"]
    short = {"here": found["here"], "textbook": [report["seconds"] for report in theirs]}
    scaled = [scaled_seconds(report, long_epochs=long_epochs) for report in theirs]
    long = {"here": found["here, long"], "textbook, scaled": scaled}
    return [paired(f"{tag}, {epochs} epochs", short), paired(f"{tag}, {long_epochs} epochs", long)]


def scaled_seconds(report: Mapping[str, Any], *, long_epochs: int) -> float:
    """Return what ``long_epochs`` would have taken: the whole job, and the epochs it lacks at its median epoch's."""
    epochs = report["epoch_seconds"]
    return report["seconds"] + (long_epochs - len(epochs)) * statistics.median(epochs)


def cached(
    sample: Path,
    few: Path,
    scratch: Path,
    *,
    tags: Sequence[str],
    epochs: int,
    repeats: int,
    textbook: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """Time ``train_cnn_head.py`` with its features in the cache, another seed each time, against the textbook.

    ``textbook``: what ``whole`` measured in this call, or nothing, and then it is measured here.
    """
    records = []
    for tag in tags:
        # Fill the cache
        _ours(sample, scratch=scratch, tag=tag, epochs=epochs, cache=True, seed=0)
        seeds = iter(range(1, repeats + 1))
        sides: dict[str, Callable[[], Any]] = {
            "here, features kept": lambda tag=tag, seeds=seeds: _ours(
                sample, scratch=scratch, tag=tag, epochs=epochs, cache=True, seed=next(seeds)
            )
        }
        if tag not in textbook:
            _textbook(few, scratch=scratch, tag=tag, epochs=1)
            sides["textbook"] = lambda tag=tag: _textbook(sample, scratch=scratch, tag=tag, epochs=epochs)
        found = alternate(sides, repeats, desc=f"cache {tag}")
        theirs = [report["seconds"] for report in found.get("textbook", textbook.get(tag))]
        records.append(
            paired(f"{tag}, {epochs} epochs", {"here, features kept": found["here, features kept"], "textbook": theirs})
        )
        records.append(_hit(sample, tag=tag, repeats=repeats))
    reused = "the textbook's seconds are those of `head` in this call" if textbook else "both sides alternate"
    return {
        "weights": "random",
        "records": records,
        "notes": [RANDOM, reused, "the features stay in .cache/features, where later runs remove the oldest"],
    }


def _hit(sample: Path, *, tag: str, repeats: int) -> dict[str, Any]:
    """Time the reading of the training images' features against what their extraction cost when it was made."""
    device = resolve_device("auto")
    backbone = backbones.load(tag, weights="random", image_size=IMAGE_SIZE)
    dataset = load_dataset(str(sample), data_dir=sample)
    precision = resolve_precision("auto", device)
    extractor = Extractor(backbone, "squash", device, precision, "auto", None, dataset.fingerprint)
    made = []
    read = [timed(lambda: made.append(extract(extractor, dataset.train, "train", folder=FEATURE_CACHE)))]
    read += [timed(lambda: extract(extractor, dataset.train, "train", folder=FEATURE_CACHE)) for _ in range(repeats)]
    if not made[0].cache_hit:
        raise RuntimeError(f"the features of {tag!r} were not found in {str(FEATURE_CACHE)!r}")
    sides = {"read": read[1:], "made once": [made[0].seconds] * repeats}  # the first reading warmed up
    return paired(f"{tag}, features of {len(dataset.train):,} training images", sides)


def sweep(sample: Path, few: Path, scratch: Path, *, tag: str, epochs: int, repeats: int) -> dict[str, Any]:
    """Time ``train_cnn_head.py`` with one learning rate and with eight, without the feature cache."""
    _ours(few, scratch=scratch, tag=tag, epochs=1)
    sides = {
        "1 learning rate": lambda: _ours(sample, scratch=scratch, tag=tag, epochs=epochs),
        "8 learning rates": lambda: _ours(sample, scratch=scratch, tag=tag, epochs=epochs, lrs=LEARNING_RATES),
    }
    found = alternate(sides, repeats, desc=f"sweep {tag}")
    return {"weights": "random", "records": [paired(f"{tag}, {epochs} epochs", found)], "notes": [RANDOM]}


def _ours(
    folder: Path,
    *,
    scratch: Path,
    tag: str,
    epochs: int,
    cache: bool = False,
    seed: int = 0,
    lrs: Sequence[float] = LEARNING_RATES[:1],
) -> float:
    """Return the seconds of one whole ``train_cnn_head.py``, with a results folder of its own."""
    results_dir = _new_folder(scratch)
    return run_script(
        "train_cnn_head.py",
        *("--dataset", folder, "--dataset-name", "sample", "--backbone", tag, "--weights", "random"),
        *("--image-size", IMAGE_SIZE, "--epochs", epochs, "--seed", seed, "--lr", *lrs),
        *("--feature-cache" if cache else "--no-feature-cache", "--results-dir", results_dir),
    )


def _textbook(folder: Path, *, scratch: Path, tag: str, epochs: int) -> dict[str, Any]:
    """Return the report of one whole ``bench/textbook.py``, with its ``seconds`` and those of start-up and exit."""
    out = _new_folder(scratch) / "report.json"
    seconds = run_script(
        "bench/textbook.py", folder, "--backbone", tag, "--epochs", epochs, "--image-size", IMAGE_SIZE, "--out", out
    )
    report = json.loads(out.read_text())
    working = sum(report["epoch_seconds"]) + report["test_seconds"]
    return report | {"seconds": seconds, "start_and_exit_seconds": seconds - working}


def _new_folder(scratch: Path) -> Path:
    folder = scratch / f"job{sum(1 for _ in scratch.iterdir())}"
    folder.mkdir()
    return folder
