"""The stages of a run that every method goes through: build the model, train it, evaluate it."""

import time
from dataclasses import dataclass

import numpy as np
from torch import nn

from common.data.dataset import DatasetSplits
from common.models.backbones import Backbone
from common.runs.methods import method_spec
from common.training.feature_cache import prune
from common.training.inputs import Inputs, new_extractor
from common.training.loaders import Loader
from common.training.methods import new_method
from common.training.methods.base import Method
from common.training.predict import predict
from common.training.run import RunContext
from common.training.sweep import FitResult


@dataclass(frozen=True)
class Task:
    """A method's model, and the images it is trained and tested on."""

    run: RunContext
    dataset: DatasetSplits
    backbone: Backbone
    method: Method
    model: nn.Module
    inputs: Inputs


@dataclass(frozen=True)
class Trained:
    """What training left beside the model: its record, and the validation logits (V, C) float32 of the best weights."""

    fit: FitResult
    val_logits: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """Test logits (N, C) float32, and what was spent beside the optimiser's steps, in seconds.

    The rules of a frozen backbone's features: ``feature_seconds`` is what making those of the training and validation
    images cost when they were made, also where this run found them (None: the method reads images).
    ``feature_cache_hit`` says whether this run found all of them, those of the test images included. ``eval_seconds``
    is the test images' prediction, and what making their features cost when they were made.
    """

    test_logits: np.ndarray
    feature_seconds: float | None
    feature_cache_hit: bool
    eval_seconds: float


def build_task(run: RunContext, backbone: Backbone, dataset: DatasetSplits) -> Task:
    """Return the model of the run's method, untrained, with what it reads; ``backbone`` becomes a part of it.

    Raises:
        UserError: the method cannot be applied to this backbone.
    """
    config, spec = run.config, method_spec(run.config.method)
    extractor = new_extractor(
        backbone,
        run.settings,
        device=run.device,
        precision=run.precision,
        workers=config.workers,
        fingerprint=dataset.fingerprint,
    )
    inputs = Inputs(extractor, spec.reads_features, run.feature_folder, config.seed)
    method = new_method(config.method, run.settings)
    model = method.build(backbone, len(dataset.classes), seed=config.seed, precision=run.precision, device=run.device)
    return Task(run, dataset, backbone, method, model, inputs)


def train(task: Task) -> Trained:
    """Train the task's model; it ends with the weights of the epoch that is best on validation.

    Raises:
        UserError: an image cannot be read, the loss is not finite, or disk or memory are too small.
    """
    run, dataset = task.run, task.dataset
    train_images = task.inputs.loader(dataset.train, "train", augment=run.config.augment)
    val_images = task.inputs.loader(dataset.val, "val")
    checkpoint = run.checkpoint(dataset, task.backbone)
    fit = task.method.fit(task.model, train_images, val_images, run.optimizer_configs, checkpoint)
    return Trained(fit, _predict(task, val_images, "validation"))


def evaluate(task: Task) -> Evaluation:
    """Predict the test images, which no model has seen until now.

    Raises:
        UserError: an image cannot be read, or disk or memory are too small.
    """
    test_images = task.inputs.loader(task.dataset.test, "test")
    if task.run.config.feature_cache:
        prune(task.run.feature_folder)
    started = time.perf_counter()
    logits = _predict(task, test_images, "test")
    predict_seconds = time.perf_counter() - started
    seconds = {split: features.seconds for split, features in task.inputs.made.items()}
    return Evaluation(
        test_logits=logits,
        feature_seconds=sum(seconds[split] for split in seconds if split != "test") if seconds else None,
        feature_cache_hit=bool(seconds) and all(features.cache_hit for features in task.inputs.made.values()),
        eval_seconds=predict_seconds + seconds.get("test", 0.0),
    )


def _predict(task: Task, images: Loader, desc: str) -> np.ndarray:
    return predict(task.model, images, batch_size=task.run.config.batch_size, desc=desc)
