"""Score finished runs again, apply them to other images, or export their models.

    python evaluate.py results/cifar10/RUN/seed0                      # is the stored result reproduced?
    python evaluate.py results/cifar10/RUN --dataset path/to/labelled/images --out scores.json
    python evaluate.py results/cifar10/RUN/seed0 --predict path/to/images --out labels.csv --top 5
    python evaluate.py results/cifar10/RUN/seed0 --export model.onnx            # or .safetensors, .pt2
    python evaluate.py results/cifar10/RUN/seed0 --embed features.npz
    python evaluate.py results/cifar10/RUN results/cifar10/OTHER --corrupt all  # how much do they lose on bad images?
    python evaluate.py results/cifar10/RUN results/cifar10/OTHER --time         # how fast do they answer?

RUN is a run's folder (all its seeds) or the folder of one seed. Everything is rebuilt from that folder and the
backbone's weights; without other flags the test split is scored again and compared with the stored predictions.
Expected: "equals the stored predictions: identical", on another kind of CPU with the largest difference of a logit.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from common import cli
from common.config import check_device, check_weights, require
from common.data.corruptions import KINDS
from common.evaluation.metrics import scores_in_words
from common.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

    from common.data.dataset import DatasetSplits
    from common.data.images import LabelledImages
    from common.runs.result import Run
    from common.training.restore import RestoredModel

# Largest logit difference that another machine's or library's order of summation explains.
TOLERANCE = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.25}


# What is done instead of scoring the test split again, one at a time: the setting that names its file, and the endings.
ACTIONS = {
    "dataset": ("out", (".json",)),
    "predict": ("out", (".csv", ".json")),
    "export": ("export", (".safetensors", ".pt2", ".onnx")),
    "embed": ("embed", (".npz",)),
    "corrupt": (None, ()),
    "time": (None, ()),
}
# Further settings, and the actions that they belong to.
SETTINGS = {
    "out": ("dataset", "predict"),
    "top": ("predict",),
    "with_preprocessing": ("export",),
    "images": ("embed",),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to do with which finished runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs: results/DATASET/RUN, or results/DATASET/RUN/seedN."""
    dataset: str | None = None
    """Score these labelled images instead: a data set's name or an image folder, with the classes of the run."""
    predict: tuple[str, ...] | None = None
    """Label images: a folder (all below it), files, or a pattern such as 'new/*.jpg'; needs --out FILE.csv or .json."""
    top: int | None = None
    """With --predict: write the likeliest classes alone, at most this many (default: the probability of each class)."""
    export: Path | None = None
    """Write the model: FILE.safetensors (a plain timm checkpoint), FILE.pt2 (a torch.export program) or FILE.onnx."""
    with_preprocessing: bool = False
    """With --export FILE.onnx or FILE.pt2: uint8 RGB images of any size go in, and probabilities come out."""
    embed: Path | None = None
    """Write to FILE.npz the pooled features that the classifier reads, of the run's own images or of --images."""
    images: tuple[str, ...] | None = None
    """With --embed: other images than the run's own; a folder, files, or a pattern."""
    corrupt: tuple[str, ...] | None = None
    """Score the test split under corruptions (Hendrycks and Dietterich 2019) at five severities: all, or kinds."""
    time: bool = False
    """Time the merged or folded models in turn, at batches of 1 and 32; writes timing.json beside each run's result."""
    out: Path | None = None
    """File for the labels of --predict (.csv, .json) or the scores of --dataset (.json)."""
    weights: str | None = None
    """The backbone's weights, if they are not where they were in training: a .safetensors file."""
    data_dir: Path | None = None
    """Where the named data sets lie (default: the folder given to training; a relative one is looked for from here)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    workers: int | None = None
    """Processes that decode images (default: chosen from the data and the machine)."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("name at least one run's folder: results/DATASET/RUN, or results/DATASET/RUN/seedN")
        asked = [name for name in ACTIONS if getattr(self, name) or getattr(self, name) == ()]
        if len(asked) > 1:
            raise UserError(f"`{asked[0]}` and `{asked[1]}` do not go together: one at a time")
        for name, owners in SETTINGS.items():
            if getattr(self, name) and not set(asked) & set(owners):
                raise UserError(f"`{name}` goes with {' or '.join(f'`{owner}`' for owner in owners)} alone")
        self._check_file(*ACTIONS[asked[0]] if asked else (None, ()))
        if self.predict is not None and not self.out:
            raise UserError("`predict` needs `out` FILE.csv or FILE.json")
        require(self.top is None or self.top >= 1, "top", self.top, "at least 1")
        if self.corrupt is not None:
            known = bool(self.corrupt) and set(self.corrupt) <= {"all", *KINDS}
            require(known, "corrupt", " ".join(self.corrupt), f"all, or some of {', '.join(KINDS)}")
        if self.weights not in (None, "pretrained", "random"):
            check_weights(self.weights)
        check_device(self.device)
        require(self.workers is None or self.workers >= 0, "workers", self.workers, "0 or more")

    def _check_file(self, name: str | None, endings: tuple[str, ...]) -> None:
        """Refuse a file to write, the setting ``name``, that is of another kind or exists."""
        file = getattr(self, name) if name else None
        if file is None:
            return
        require(file.suffix in endings, name, str(file), " or ".join(f"FILE{ending}" for ending in endings))
        if file.exists():
            raise UserError(f"{str(file)!r} exists already; name another file or remove it")
        if self.with_preprocessing and file.suffix == ".safetensors":
            raise UserError("`with_preprocessing` needs `export` FILE.onnx or FILE.pt2: the other holds weights alone")


def main(config: Config) -> None:
    """Rebuild each run and do what was asked with it."""
    from common.runtime.device import resolve_device
    from common.training.restore import restore_run

    runs = [run for folder in config.runs for run in _find(folder)]
    if len(runs) > 1 and (config.out or config.export or config.embed):
        raise UserError(f"{len(runs)} runs, but one output file: name one run's seed folder")
    device = resolve_device(config.device)
    if config.corrupt is not None:
        return score_corrupted(runs, config, device)
    if config.time:
        return time_in_turn(runs, config, device)
    actions = {"dataset": score_other, "predict": label, "export": export, "embed": embed}
    action = next((actions[name] for name in actions if getattr(config, name) is not None), score_again)
    for run in runs:
        action(restore_run(run, weights=config.weights, device=device, workers=config.workers), config)


def _find(folder: Path) -> list["Run"]:
    """Return the run in a seed's folder, or those of all seeds in a run's folder."""
    from common.runs.result import RESULT_FILE, Run, read_result

    seeds = [folder] if (folder / RESULT_FILE).exists() else sorted(folder.glob("seed*"))
    finished = [seed for seed in seeds if (seed / RESULT_FILE).exists()]
    if not finished:
        raise UserError(f"{str(folder)!r} holds no finished run (no {RESULT_FILE}, no seed*/{RESULT_FILE})")
    return [Run(seed, read_result(seed / RESULT_FILE)) for seed in finished]


def _load_own_data(run: "Run", config: Config) -> "DatasetSplits":
    """Return the images that the run was made from, with its own splits (else UserError)."""
    from common.data.dataset import load_dataset_of_run

    settings = run.result.config
    dataset = load_dataset_of_run(settings, data_dir=config.data_dir, workers=config.workers)
    if dataset.fingerprint != run.result.data.fingerprint:
        raise UserError(f"{settings['dataset']!r} does not hold the images that {str(run.folder)!r} was made from")
    return dataset


def score_again(model: "RestoredModel", config: Config) -> None:
    """Score the run's own test split (validation, where it has none) and compare with the stored predictions."""
    import numpy as np

    from common.evaluation import metrics
    from common.runs.predictions import read_predictions

    stored, settings = model.run.result, model.run.result.config
    dataset = _load_own_data(model.run, config)
    before = read_predictions(model.run.folder, stored)
    split, images, expected = "test", dataset.test, before.logits
    if stored.test is None:
        split, images, expected = "validation", dataset.val, before.val_logits
    logits = model.logits(images, split)
    scores, _ = metrics.score(logits, images.labels, dataset.classes)
    difference = float(np.abs(logits - expected).max())
    changed = int((logits.argmax(1) != expected.argmax(1)).sum())
    print(f"{model.run.folder}: " + "no test images, validation: " * (stored.test is None) + scores_in_words(scores))
    verdict = "identical" if difference == 0 else f"largest logit difference {difference:.2g}"
    verdict += f", {changed} of {len(logits):,} predictions changed"
    if difference > TOLERANCE[settings["precision"]]:
        raise UserError(f"{str(model.run.folder)!r} is not reproduced: {verdict}")
    print(f"equals the stored predictions: {verdict}")


def score_other(model: "RestoredModel", config: Config) -> None:
    """Score other labelled images; their classes are matched by name."""
    import numpy as np

    from common.data.dataset import load_labelled
    from common.evaluation import metrics
    from common.runtime.files import write_atomically

    data_dir = config.data_dir or Path(model.run.result.config["data_dir"])
    images, classes = load_labelled(config.dataset, data_dir, workers=config.workers)
    unknown = [name for name in classes if name not in model.classes]
    if unknown:
        raise UserError(f"{config.dataset!r} has the class {unknown[0]!r}, the run knows {model.classes!r}")
    number = np.array([model.classes.index(name) for name in classes])
    images = replace(images, labels=number[images.labels])
    test, notes = metrics.score(model.logits(images, "scoring"), images.labels, model.classes)
    print(f"{model.run.folder} on {len(images):,} images of {config.dataset}: {scores_in_words(test)}")
    for note in notes:
        print(f"note: {note}")
    if config.out:
        record = {
            "run": str(model.run.folder),
            "dataset": config.dataset,
            "images": len(images),
            "scores": test,
            "notes": notes,
        }
        write_atomically(
            config.out, (json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
        )
        print(f"wrote {config.out}")


def score_corrupted(runs: Sequence["Run"], config: Config, device: "torch.device") -> None:
    """Score the runs' own test splits under corruptions, and write ``corruption.json`` beside each run's result."""
    from common.evaluation.corruption_scores import corruption_summary
    from common.training.robustness import check_images, groups, restore_group, score_group

    kinds = KINDS if "all" in config.corrupt else config.corrupt
    for run in runs:
        check_images(run)
    print("the corruptions' constants are ImageNet-C's, made for images of 224 pixels: most are harder on smaller ones")
    for group in groups(runs):
        models = restore_group(group, weights=config.weights, device=device, workers=config.workers)
        score_group(models, _load_own_data(group[0], config).test, kinds)
    print(*map(corruption_summary, runs), sep="\n")


def time_in_turn(runs: Sequence["Run"], config: Config, device: "torch.device") -> None:
    """Time the models of all runs in turn, and write ``timing.json`` beside each run's result."""
    from common.evaluation.machines import machine_text
    from common.training.timing import time_runs

    options = {"weights": config.weights, "device": device, "workers": config.workers}
    for path, timing in time_runs(runs, **options):
        print(
            f"wrote {path}: one image {1e3 * timing.latency_seconds:.2f} ms, in batches of {timing.throughput.images} "
            f"{timing.images_per_second:,.0f} images a second; {machine_text(timing.environment)}"
        )


def label(model: "RestoredModel", config: Config) -> None:
    """Write of each image the file, the likeliest class, and the probabilities of all classes or of the ``top``."""
    from common.data.dataset import load_unlabelled
    from common.evaluation import metrics
    from common.evaluation.labelling import LABEL_FILES
    from common.runtime.files import write_atomically

    images = load_unlabelled(*config.predict, workers=config.workers)
    probabilities = metrics.softmax(model.logits(images, "predicting"))  # (N, C)
    text = LABEL_FILES[config.out.suffix](_names(images, config.predict), probabilities, model.classes, config.top)
    write_atomically(config.out, text.encode("utf-8", "surrogateescape"))
    print(f"wrote {config.out} ({len(images):,} images)")


def _names(images: "LabelledImages", paths: Sequence[str]) -> list[str]:
    """Return each image's file as it is written: relative to the one folder of ``paths``, else as it was named."""
    root = paths[0] if len(paths) == 1 and Path(paths[0]).is_dir() else None
    return [(file.relative_to(root) if root else file).as_posix() for file in images.files]


def export(model: "RestoredModel", config: Config) -> None:
    """Write the model for other programs, and say how to use it."""
    from common.training import export

    print(*export.export(model, config.export, with_preprocessing=config.with_preprocessing), sep="\n")


def embed(model: "RestoredModel", config: Config) -> None:
    """Write pooled features with the names of their images; of the run's own images the split and label as well."""
    import numpy as np

    from common.data.dataset import load_unlabelled
    from common.runs.predictions import npz_bytes
    from common.runtime.files import write_atomically

    if config.images is not None:
        images = load_unlabelled(*config.images, workers=config.workers)
        columns = {"files": np.array(_names(images, config.images))}
        features = model.features(images, "embedding")
    else:
        dataset = _load_own_data(model.run, config)
        folder = Path(model.run.result.config["dataset"])
        splits = {name: getattr(dataset, name) for name in ("train", "val", "test") if len(getattr(dataset, name))}
        features = np.concatenate([model.features(images, name) for name, images in splits.items()])
        columns = {
            "files": np.array([name for split, images in splits.items() for name in _own_names(images, split, folder)]),
            "split": np.repeat(list(splits), [len(images) for images in splits.values()]),
            "labels": np.concatenate([images.labels for images in splits.values()]),
            "indices": np.concatenate([images.indices for images in splits.values()]),
            "classes": np.array(dataset.classes),
        }
    write_atomically(config.embed, npz_bytes(features=features, **columns))
    print(f"wrote {config.embed}: features {features.shape} float32, {', '.join(columns)}")


def _own_names(images: "LabelledImages", split: str, folder: Path) -> list[str]:
    """Return each image's file within the data set's ``folder``, or the split and place of what has none."""
    if images.files is None:
        return [f"{split}/{index}" for index in images.indices]
    return [(file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix() for file in images.files]


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
