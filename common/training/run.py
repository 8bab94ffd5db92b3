"""Before the method itself: resolve the settings, hold the run's folder, show the data."""

import contextlib
import functools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from common.config import TrainConfig, as_record
from common.data.dataset import DatasetSplits, check_dataset, result_name
from common.data.registry import DATASETS
from common.models import backbones, demo_backbones
from common.models.backbones import Backbone
from common.runs.folder import RunFolder, different_settings, open_run_folder
from common.runs.methods import method_spec
from common.runs.naming import choosing_run, published_settings, require_used_settings, run_folder, run_identity
from common.runs.result import RESULT_FILE, read_result
from common.runtime.device import memory_errors, prepare_device, resolve_device, resolve_precision
from common.runtime.environment import CACHE, code_facts
from common.runtime.errors import AlreadyFinished, UserError
from common.training.checkpoint import Checkpoint
from common.training.loop import OptimizerConfig

FEATURE_CACHE = CACHE / "features"
PUBLISHED_STEPS = 4_000  # five epochs of 50,000 images in batches of 64
FEW_STEPS = 1_000


@dataclass(frozen=True)
class RunContext:
    """One run: its configuration with every name and size resolved, the machine it runs on, the folder it fills.

    In ``config`` the backbone has its weight tag, ``image_size`` is a number, and paths of images and weights are
    absolute; ``device`` and ``precision`` are what its settings of these names stand for on this machine.
    """

    config: TrainConfig
    device: torch.device
    precision: str
    folder: RunFolder
    rates: tuple[float, ...]
    """The learning rates to train: those of the configuration, or the one of them that another seed chose."""

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration as JSON-able values."""
        return as_record(self.config)

    @property
    def optimizer_configs(self) -> list[OptimizerConfig]:
        """The hyper-parameters of each training, one for each learning rate."""
        config, decays_vectors = self.config, method_spec(self.config.method).decays_vectors
        names = {each.name for each in fields(OptimizerConfig)} - {"lr", "decays_vectors"}
        shared = {name: getattr(config, name) for name in names}
        return [OptimizerConfig(lr=lr, decays_vectors=decays_vectors, **shared) for lr in self.rates]

    @property
    def feature_folder(self) -> Path:
        """Where the features of a frozen backbone are kept: the shared cache, or the run's own folder."""
        if not self.config.feature_cache:
            return self.folder.path / "features"
        return FEATURE_CACHE if self.config.cache_dir is None else self.config.cache_dir / "features"

    def checkpoint(self, dataset: DatasetSplits, backbone: Backbone, *, features_compiled: bool) -> Checkpoint:
        """The file of this run's state, good only for the same settings, data, weights, precision and compilation."""
        owner = run_identity(self.settings, self.config.method) | {
            "data": dataset.fingerprint,
            "weights_sha256": backbone.sha256,
            "precision": self.precision,
            "device": self.device.type,
            "features_compiled": features_compiled,
            **({"chosen_lr": self.rates} if self.config.tuned_on is not None else {}),
        }
        return Checkpoint(self.folder.checkpoint, owner, published_settings(self.config) | {"features_compiled": False})


@contextlib.contextmanager
def open_run(config: TrainConfig) -> Iterator[RunContext]:
    """Resolve every setting, and hold the run's folder.

    Raises:
        AlreadyFinished: the folder holds the result of these settings; the message says where.
        UserError: a name or a device that does not exist, a folder that belongs to another run, or several processes
            that were started for one run.
    """
    code_facts()  # for the result: the files may be others when the run ends
    _require_one_process()
    require_used_settings(config)
    resolved = _resolve(config)
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    size, own_size = resolved.image_size, backbones.resolve_image_size(resolved.backbone, None)
    place = {
        "dataset": result_name(config.dataset, config.dataset_name),
        "backbone": resolved.backbone,
        "image_size": None if size == own_size else size,
    }
    path = run_folder(resolved, **place)
    identity, published = run_identity(as_record(resolved), config.method), published_settings(config)
    prepare_device(device, deterministic=config.deterministic, threads=config.threads)
    with open_run_folder(path, identity, absent=published, overwrite=config.overwrite) as folder:
        if folder.finished:
            test = folder.finished.test
            accuracy = f"test accuracy {test.scores['accuracy']:.4f}" if test else "trained on all images"
            raise AlreadyFinished(f"already finished: {path} ({accuracy}); `overwrite` trains it again")
        print(f"run: {path}\n{resolved.backbone} on {device}, {precision}, images {size}x{size}", flush=True)
        with memory_errors(config.batch_size, fixed=not method_spec(config.method).has_steps):
            rates = config.lr
            if config.tuned_on is not None:
                rates = (_chosen_rate(run_folder(choosing_run(resolved), **place), identity, published),)
            yield RunContext(resolved, device, precision, folder, rates)


def _require_one_process() -> None:
    """Refuse to be one of torchrun's processes: all would train the same run (UserError)."""
    if (processes := os.environ.get("WORLD_SIZE", "")).isdigit() and int(processes) > 1:
        raise UserError(
            f"{processes} processes were started for one run (torchrun, WORLD_SIZE {processes}), but a run is trained "
            "by one process on one device; many runs, each on its own GPU, are made by reproduce.py with `jobs` on one "
            "machine and with `executor` slurm on a cluster"
        )


def _resolve(config: TrainConfig) -> TrainConfig:
    """Return ``config`` with names completed, sizes filled in and paths made absolute."""
    check_dataset(config.dataset, config.source)
    tag = backbones.resolve_tag(config.backbone)
    if config.weights == "pretrained":
        demo_backbones.require_other_data(tag, config.dataset)
    is_named, is_file = config.dataset in DATASETS, config.weights not in ("pretrained", "random")
    return replace(
        config,
        backbone=tag,
        image_size=backbones.resolve_image_size(tag, config.image_size),
        dataset=config.dataset if is_named else str(Path(config.dataset).resolve()),
        weights=str(Path(config.weights).resolve()) if is_file else config.weights,
    )


def _chosen_rate(folder: Path, identity: Mapping[str, Any], absent: Mapping[str, Any]) -> float:
    """Return the learning rate that the seed ``tuned_on`` chose, by its run in ``folder`` with the same settings.

    Raises:
        UserError: that run is not finished, damaged, or has other settings.
    """
    seed = identity["tuned_on"]
    if not (folder / RESULT_FILE).exists():
        raise UserError(
            f"`tuned_on` {seed}: there is no finished run in {str(folder)!r} yet; make it first, by the same command "
            f"with `seed` {seed} and without `tuned_on`" + (" in fold 0" if identity["folds"] > 1 else "")
        )
    result = read_result(folder / RESULT_FILE)
    own = ("seed", "tuned_on", "fold", "split_seed")  # what runs of one model may each have for themselves
    asked = {name: value for name, value in identity.items() if name not in own}
    if different := different_settings(run_identity({**absent, **result.config}, result.method), asked):
        raise UserError(f"`tuned_on` {seed}: the run in {str(folder)!r} has other settings ({different})")
    rate = result.history[0].lr
    print(f"learning rate {rate:g}, chosen by seed {seed}", flush=True)
    return rate


def announce_data(run: RunContext, dataset: DatasetSplits) -> list[str]:
    """Print what is trained on, and return (and print) the notes that belong into the result.

    Raises:
        UserError: the backbone was pretrained on these data.
    """
    config = run.config
    if config.weights == "pretrained":
        demo_backbones.require_other_data(config.backbone, dataset.name, dataset.classes)
    sizes = ", ".join(f"{len(getattr(dataset, split)):,} {split}" for split in ("train", "val", "test"))
    print(f"data: {dataset.name}, {len(dataset.classes)} classes, {sizes} images, from {dataset.read_from}", flush=True)
    notes = list(dataset.notes)
    few = few_steps(len(dataset.train), batch_size=config.batch_size, epochs=config.epochs)
    if few and method_spec(config.method).has_steps:
        notes.append(few)
    if config.weights == "random":
        notes.append("the backbone has random weights: this run only shows that the code works")
    if dataset.skipped:
        notes.append(f"{len(dataset.skipped):,} damaged images were left out (skipped_images)")
    for note in notes:
        print(f"note: {note}", flush=True)
    return notes


def few_steps(images: int, *, batch_size: int, epochs: int) -> str | None:
    """Return a sentence for a run of so few optimiser steps that the published rates hardly move, else None."""
    steps = math.ceil(images / batch_size) * epochs
    if steps >= FEW_STEPS:
        return None
    return (
        f"{steps:,} optimiser steps; the published recipe makes about {PUBLISHED_STEPS:,}. "
        "On few images try more epochs, a smaller batch size or a higher learning rate"
    )
