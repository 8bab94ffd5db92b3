"""What both training scripts do alike before and after the method itself: open the run's folder, record the result."""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.config import TrainConfig, as_record
from common.data.dataset import DatasetSplits, check_dataset, result_name
from common.data.registry import DATASETS
from common.evaluation import metrics
from common.evaluation.metrics import scores_in_words
from common.models import backbones, complexity, demo_backbones
from common.models.backbones import Backbone
from common.runs.folder import RunFolder, finish_run_folder, open_run_folder
from common.runs.naming import published_settings, run_folder, run_identity
from common.runs.predictions import PREDICTIONS_FILE, npz_bytes
from common.runs.record import SCHEMA_VERSION, RunResult
from common.runs.result import RESULT_FILE
from common.runs.schema import typed
from common.runtime.device import memory_errors, peak_memory, prepare_device, resolve_device, resolve_precision
from common.runtime.environment import describe_environment
from common.training.checkpoint import Checkpoint
from common.training.loop import FitResult, OptimizerConfig, few_steps

FEATURE_CACHE = Path(__file__).resolve().parents[2] / ".cache" / "features"


@dataclass(frozen=True)
class RunContext:
    """One run: its settings with every default resolved, the machine it runs on, the folder it fills."""

    config: TrainConfig
    settings: dict[str, Any]
    device: torch.device
    precision: str
    run: RunFolder

    @property
    def loop(self) -> OptimizerConfig:
        """The hyper-parameters of the training loop."""
        config = self.config
        return OptimizerConfig(config.lr, config.epochs, config.batch_size, config.weight_decay, config.seed)

    @property
    def feature_folder(self) -> Path:
        """Where the features of a frozen backbone are kept: the shared cache, or the run's own folder."""
        return FEATURE_CACHE if self.config.feature_cache else self.run.path / "features"

    def checkpoint(self, dataset: DatasetSplits, backbone: Backbone) -> Checkpoint:
        """The file of this run's state, good only for the same settings, data, weights and precision."""
        owner = run_identity(self.settings, self.config.method) | {
            "data": dataset.fingerprint,
            "weights_sha256": backbone.sha256,
            "precision": self.precision,
            "device": self.device.type,
        }
        return Checkpoint(self.run.checkpoint, owner)


@dataclass(frozen=True)
class MethodResult:
    """What a method leaves to be recorded: logits (N, C) float32 of validation and test, seconds, files to save."""

    fit: FitResult
    val_logits: np.ndarray
    test_logits: np.ndarray
    eval_seconds: float
    feature_seconds: float | None
    feature_cache_hit: bool
    model_record: dict[str, Any]
    files: dict[str, bytes]


@contextlib.contextmanager
def open_run(config: TrainConfig) -> Iterator[RunContext | None]:
    """Resolve every setting, and hold the run's folder; yields None, and says where it is, for a finished run.

    Raises:
        UserError: a name or a device that does not exist, or a folder that belongs to another run.
    """
    check_dataset(config.dataset)
    tag = backbones.resolve_tag(config.backbone)
    if config.weights == "pretrained":
        demo_backbones.require_other_data(tag, config.dataset)
    image_size = backbones.resolve_image_size(tag, config.image_size)
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    settings = as_record(config) | {"backbone": tag, "image_size": image_size}
    if config.dataset not in DATASETS:
        settings["dataset"] = str(Path(config.dataset).resolve())
    if config.weights not in ("pretrained", "random"):
        settings["weights"] = str(Path(config.weights).resolve())
    own_size = backbones.resolve_image_size(tag, None)
    path = run_folder(
        config,
        dataset=result_name(config.dataset, config.dataset_name),
        backbone=tag,
        image_size=None if image_size == own_size else image_size,
    )
    identity = run_identity(settings, config.method)
    prepare_device(device, deterministic=config.deterministic)
    with open_run_folder(path, identity, absent=published_settings(config), overwrite=config.overwrite) as run:
        if run.finished:
            accuracy = run.finished.test.scores["accuracy"]
            print(f"already finished: {path} (test accuracy {accuracy:.4f}); --overwrite trains it again")
            yield None
            return
        print(f"run: {path}\n{tag} on {device}, {precision}, images {image_size}x{image_size}", flush=True)
        with memory_errors(config.batch_size):
            yield RunContext(config, settings, device, precision, run)


def announce_data(dataset: DatasetSplits, experiment: RunContext) -> list[str]:
    """Print what is trained on, and return (and print) the notes that belong into the result.

    Raises:
        UserError: the backbone was pretrained on these data.
    """
    if experiment.config.weights == "pretrained":
        demo_backbones.require_other_data(experiment.settings["backbone"], dataset.name, dataset.classes)
    sizes = ", ".join(f"{len(getattr(dataset, split)):,} {split}" for split in ("train", "val", "test"))
    print(f"data: {dataset.name}, {len(dataset.classes)} classes, {sizes} images", flush=True)
    loop = experiment.loop
    few = few_steps(len(dataset.train), batch_size=loop.batch_size, epochs=loop.epochs)
    notes = [*dataset.notes, *([few] if few else [])]
    if experiment.config.weights == "random":
        notes.append("the backbone has random weights: this run only shows that the code works")
    if dataset.skipped:
        notes.append(f"{len(dataset.skipped):,} damaged images were left out (skipped_images)")
    for note in notes:
        print(f"note: {note}", flush=True)
    return notes


def describe_model(
    backbone: Backbone, *, frozen: nn.Module, head: nn.Module, counted: tuple[nn.Module, ...], lora: dict | None
) -> dict[str, Any]:
    """Return the ``model`` block of a result.

    Args:
        frozen: what computes the features, adapters merged; with ``head`` it gives the FLOPs.
        counted: the modules whose parameters make up the model as it is trained.
        lora: rank, alpha, dropout and target_modules, or None.
    """
    return {
        **complexity.count_parameters(*counted),
        "forward_flops": complexity.forward_flops(frozen, head, backbone.image_size),
        "weights": {"source": backbone.source, "sha256": backbone.sha256},
        "lora": lora,
    }


def save_run(
    experiment: RunContext, dataset: DatasetSplits, backbone: Backbone, outcome: MethodResult, notes: list[str]
) -> None:
    """Score validation and test, write the run's folder at once, and print what a person wants to know.

    Raises:
        UserError: the disk is full, or the logits are not finite; an earlier result is as it was.
    """
    val, val_notes = metrics.score(outcome.val_logits, dataset.val.labels, dataset.classes)
    test, test_notes = metrics.score(outcome.test_logits, dataset.test.labels, dataset.classes)
    predictions = npz_bytes(
        logits=outcome.test_logits,
        labels=dataset.test.labels,
        indices=dataset.test.indices,
        val_logits=outcome.val_logits,
        val_labels=dataset.val.labels,
        val_indices=dataset.val.indices,
    )
    notes = [*notes, *(f"validation: {n}" for n in val_notes), *(f"test: {n}" for n in test_notes)]
    notes += [
        f"learning rate {t['lr']:g} gave no result: {t['diverged']}" for t in outcome.fit.trials if "diverged" in t
    ]
    if experiment.device.type != "cuda":
        notes.append(f"peak_device_bytes is null: not measured on {experiment.device.type}")
    fit = outcome.fit
    result = {
        "schema_version": SCHEMA_VERSION,
        "method": experiment.config.method,
        "dataset": dataset.name,
        "backbone": backbone.tag,
        "seed": experiment.config.seed,
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "config": experiment.settings | {"device": str(experiment.device), "precision": experiment.precision},
        "data": _describe_data(dataset, backbone),
        "model": outcome.model_record,
        "history": fit.history,
        "trials": fit.trials,
        "best_epoch": fit.best_epoch,
        "val": val,
        "test": test,
        "efficiency": {
            "train_seconds": fit.train_seconds,
            "feature_seconds": outcome.feature_seconds,
            "feature_cache_hit": outcome.feature_cache_hit,
            "eval_seconds": outcome.eval_seconds,
            "train_images_per_second": fit.images_per_second,
            **peak_memory(experiment.device),
            "saved_bytes": sum(map(len, outcome.files.values())),
        },
        "environment": describe_environment(experiment.device, experiment.precision),
        "skipped_images": list(dataset.skipped),
        "notes": notes,
    }
    files = outcome.files | {PREDICTIONS_FILE: predictions}
    result = typed(result, RunResult)
    finish_run_folder(experiment.run, files, result)
    _print_summary(experiment, result, [*files, RESULT_FILE])


def _describe_data(dataset: DatasetSplits, backbone: Backbone) -> dict[str, Any]:
    return {
        "classes": list(dataset.classes),
        "num_train": len(dataset.train),
        "num_val": len(dataset.val),
        "num_test": len(dataset.test),
        "image_size": backbone.image_size,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "interpolation": backbone.interpolation,
        "fingerprint": dataset.fingerprint,
    }


def _print_summary(experiment: RunContext, result: RunResult, files: list[str]) -> None:
    cost, model = result.efficiency, result.model
    print(f"test {scores_in_words(result.test.scores)}")
    features = cost.feature_seconds
    spent = f"training {cost.train_seconds:.1f} s"
    if features is not None:
        spent += f", features {features:.1f} s{' (found in the cache)' if cost.feature_cache_hit else ''}"
    print(f"{spent}, test {cost.eval_seconds:.1f} s; best epoch {result.best_epoch}", end=", ")
    print(f"{model.trainable_params:,} of {model.total_params:,} parameters trained")
    for name in files:
        print(f"wrote {experiment.run.path / name}")
