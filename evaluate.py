"""Score finished runs again, apply them to other images, or export their models.

    python evaluate.py results/cifar10/RUN/seed0                      # is the stored result reproduced?
    python evaluate.py results/cifar10/RUN --dataset path/to/labelled/images --out scores.json
    python evaluate.py results/cifar10/RUN/seed0 --predict path/to/images --out labels.csv
    python evaluate.py results/cifar10/RUN/seed0 --export model.safetensors     # or model.pt2

RUN is a run's folder (all its seeds) or the folder of one seed. Everything is rebuilt from that folder and the
backbone's weights; without other flags the test split is scored again and compared with the stored predictions.
"""

import csv
import io
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from common import cli
from common.config import check_device, check_weights, require
from common.evaluation.metrics import scores_in_words
from common.runtime import errors
from common.runtime.errors import UserError

if TYPE_CHECKING:
    from common.runs.result import Run
    from common.training.restore import RestoredModel

# Largest logit difference that another machine's or library's order of summation explains.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.25}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to do with which finished runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs: results/DATASET/RUN, or results/DATASET/RUN/seedN."""
    dataset: str | None = None
    """Score these labelled images instead: a data set's name or an image folder, with the classes of the run."""
    predict: Path | None = None
    """Label all images below this folder; needs --out FILE.csv."""
    export: Path | None = None
    """Write the model: FILE.safetensors (a plain timm checkpoint) or FILE.pt2 (a torch.export program)."""
    out: Path | None = None
    """File for the labels of --predict (.csv) or the scores of --dataset (.json)."""
    weights: str | None = None
    """The backbone's weights, if they are not where they were in training: a .safetensors file."""
    data_dir: Path | None = None
    """Where the named data sets lie (default: where they were in training)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    workers: int | None = None
    """Processes that decode images (default: chosen from the data and the machine)."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("name at least one run's folder: results/DATASET/RUN, or results/DATASET/RUN/seedN")
        asked = [name for name in ("dataset", "predict", "export") if getattr(self, name)]
        if len(asked) > 1:
            raise UserError(f"`{asked[0]}` and `{asked[1]}` do not go together: one at a time")
        suffixes = {"predict": (".csv",), "dataset": (".json",)}.get(asked[0] if asked else "", ())
        if self.out:
            require(self.out.suffix in suffixes, "out", str(self.out), _out_rule(suffixes))
        elif self.predict:
            raise UserError("`predict` needs `out` FILE.csv")
        if self.export:
            require(
                self.export.suffix in (".safetensors", ".pt2"),
                "export",
                str(self.export),
                "FILE.safetensors or FILE.pt2",
            )
        target = self.out or self.export
        if target and target.exists():
            raise UserError(f"{str(target)!r} exists already; name another file or remove it")
        if self.weights not in (None, "pretrained", "random"):
            check_weights(self.weights)
        check_device(self.device)
        require(self.workers is None or self.workers >= 0, "workers", self.workers, "0 or more")


def _out_rule(suffixes: tuple[str, ...]) -> str:
    return f"a {suffixes[0]} file" if suffixes else "left out without `predict` or `dataset`"


def main(config: Config) -> None:
    """Rebuild each run and do what was asked with it."""
    from common.runtime.device import resolve_device
    from common.training.restore import restore_run

    runs = [run for folder in config.runs for run in _find(folder)]
    if len(runs) > 1 and (config.out or config.export):
        raise UserError(f"{len(runs)} runs, but one output file: name one run's seed folder")
    device = resolve_device(config.device)
    for run in runs:
        model = restore_run(run, weights=config.weights, device=device, workers=config.workers)
        if config.predict:
            label(model, config.predict, config.out)
        elif config.export:
            export(model, config.export)
        elif config.dataset:
            score_other(model, config)
        else:
            score_again(model, config)


def _find(folder: Path) -> list["Run"]:
    """Return the run in a seed's folder, or those of all seeds in a run's folder."""
    from common.runs.result import RESULT_FILE, Run, read_result

    seeds = [folder] if (folder / RESULT_FILE).exists() else sorted(folder.glob("seed*"))
    finished = [seed for seed in seeds if (seed / RESULT_FILE).exists()]
    if not finished:
        raise UserError(f"{str(folder)!r} holds no finished run (no {RESULT_FILE}, no seed*/{RESULT_FILE})")
    return [Run(seed, read_result(seed / RESULT_FILE)) for seed in finished]


def score_again(model: "RestoredModel", config: Config) -> None:
    """Score the run's own test split and compare with the stored predictions."""
    import numpy as np

    from common.data.dataset import load_dataset_of_run
    from common.evaluation import metrics
    from common.runs.predictions import read_predictions

    stored, settings = model.run.result, model.run.result.config
    dataset = load_dataset_of_run(settings, data_dir=config.data_dir, workers=config.workers)
    if dataset.fingerprint != stored.data.fingerprint:
        raise UserError(
            f"{settings['dataset']!r} does not hold the images that {str(model.run.folder)!r} was made from"
        )
    before = read_predictions(model.run.folder, stored)
    logits = model.logits(dataset.test, "test")
    test, _ = metrics.score(logits, dataset.test.labels, dataset.classes)
    difference = float(np.abs(logits - before.logits).max())
    changed = int((logits.argmax(1) != before.logits.argmax(1)).sum())
    print(f"{model.run.folder}: {scores_in_words(test)}")
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


def label(model: "RestoredModel", folder: Path, out: Path) -> None:
    """Write one row an image: file, class, probability, and the probability of each class."""
    from common.data.dataset import load_unlabelled
    from common.evaluation import metrics
    from common.runtime.files import write_atomically

    images = load_unlabelled(folder)
    probabilities = metrics.softmax(model.logits(images, "predicting"))  # (N, C)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", "class", "probability", *(f"p_{name}" for name in model.classes)])
    for file, row in zip(images.files, probabilities, strict=True):
        best = int(row.argmax())
        relative = file.relative_to(folder).as_posix()
        rows.writerow([relative, model.classes[best], f"{row[best]:.6f}", *(f"{value:.6f}" for value in row)])
    write_atomically(out, text.getvalue().encode("utf-8", "surrogateescape"))
    print(f"wrote {out} ({len(images):,} images)")


def export(model: "RestoredModel", path: Path) -> None:
    """Write the model as a plain timm checkpoint or as a torch.export program, and say how to load it."""
    from common.runtime.files import write_atomically

    size, classes = model.backbone.image_size, len(model.classes)
    if path.suffix == ".pt2":
        content = _export_program(model)
        usage = f"torch.export.load({str(path)!r}).module()(images)  # (B, 3, {size}, {size}) -> (B, {classes})"
    else:
        from common.models.weights import state_file

        content = state_file(model.method.timm_state(model.backbone, model.model))
        arguments = f"num_classes={classes}, checkpoint_path={str(path)!r}{_size(model)}"
        usage = f"timm.create_model({model.backbone.tag!r}, {arguments})"
    write_atomically(path, content)
    print(f"wrote {path}\nload it with {usage}")
    print(
        f"input: RGB / 255, resized to {size}x{size}, minus mean {model.backbone.mean}, over std {model.backbone.std}"
    )
    print(f"classes: {', '.join(map(errors.shown, model.classes))}")


def _size(model: "RestoredModel") -> str:
    """Return the argument that a ViT at another than its own image size needs."""
    import timm

    own = timm.get_pretrained_cfg(model.backbone.tag).input_size[-1]
    needed = hasattr(model.backbone.module, "set_input_size") and own != model.backbone.image_size
    return f", img_size={model.backbone.image_size}" if needed else ""


def _export_program(model: "RestoredModel") -> bytes:
    import torch

    size = model.backbone.image_size
    images = torch.zeros(2, 3, size, size)
    batch = torch.export.Dim("batch", min=1)
    plain = model.method.plain(model.backbone, model.model)
    program = torch.export.export(plain.cpu(), (images,), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
