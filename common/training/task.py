"""The stages of a run that every method goes through: build the model, train it, evaluate it."""

import time
from dataclasses import dataclass

import numpy as np
from torch import nn

from common.data.dataset import DatasetSplits
from common.models.backbones import Backbone
from common.models.complexity import weight_bytes
from common.runs.methods import method_spec
from common.runtime.files import prune
from common.training.feature_cache import CACHE_BYTES
from common.training.features import Extractor
from common.training.inputs import Inputs
from common.training.loaders import Loader
from common.training.methods import new_method
from common.training.methods.base import Method
from common.training.predict import predict
from common.training.run import RunContext
from common.training.sweep import FitResult


@dataclass(frozen=True)
class Task:
    """A method's model, and the loaders of the images it is trained and chosen on.

    ``backbone_bytes`` are those of the backbone's weights as they were loaded.
    """

    run: RunContext
    dataset: DatasetSplits
    backbone: Backbone
    method: Method
    model: nn.Module
    inputs: Inputs
    train: Loader
    val: Loader
    backbone_bytes: int


@dataclass(frozen=True)
class Evaluation:
    """Logits of validation (V, C) and test (N, C), float32, and the seconds spent beside the optimiser's steps.

    The rules of a frozen backbone's features: ``feature_seconds`` is what making those of the training and validation
    images cost when they were made, also where this run found them (None: the method reads images).
    ``feature_cache_hit`` says whether this run found all of them, those of the test images included. ``eval_seconds``
    is the test images' prediction, and what making their features cost when they were made. Without test images N is 0
    and ``eval_seconds`` None.
    """

    val_logits: np.ndarray
    test_logits: np.ndarray
    feature_seconds: float | None
    feature_cache_hit: bool
    eval_seconds: float | None


def build_task(run: RunContext, backbone: Backbone, dataset: DatasetSplits) -> Task:
    """Return the model of the run's method, untrained, with what it reads; ``backbone`` becomes a part of it.

    Raises:
        UserError: the method cannot be applied to this backbone, an image cannot be read, or disk or memory are small.
    """
    config, device = run.config, run.device
    extractor = Extractor(
        backbone, config.resize, device, run.precision, config.compile, config.workers, dataset.fingerprint
    )
    spec = method_spec(config.method)
    inputs = Inputs(extractor, spec.reads_features, config.batch_size, run.feature_folder, config.seed)
    method = new_method(config.method, run.settings)
    backbone_bytes = weight_bytes(backbone.module)
    model = method.build(backbone, len(dataset.classes), seed=config.seed, precision=run.precision, device=device)
    train = inputs.loader(dataset.train, "train", augment=config.augment if spec.has_steps else "none")
    val = inputs.loader(dataset.val, "val")
    return Task(run, dataset, backbone, method, model, inputs, train, val, backbone_bytes)


def fit(task: Task) -> FitResult:
    """Train the task's model; it ends with the weights of the epoch that is best on validation.

    Raises:
        UserError: an image cannot be read, the loss is not finite, or disk or memory are too small.
    """
    run = task.run
    checkpoint = run.checkpoint(task.dataset, task.backbone, features_compiled=task.inputs.compiled)
    configs, extend = run.optimizer_configs, run.config.extend
    return task.method.fit(task.model, task.train, task.val, configs, checkpoint, extend=extend)


def evaluate(task: Task) -> Evaluation:
    """Predict validation, and the test images, which no model has seen until now.

    Raises:
        UserError: an image cannot be read, or disk or memory are too small.
    """
    config, made = task.run.config, task.inputs.made
    val_logits = predict(task.model, task.val, batch_size=config.batch_size, desc="validation")
    test_logits, eval_seconds = _predict_test(task)
    if config.feature_cache:
        prune(task.run.feature_folder, CACHE_BYTES)
    return Evaluation(
        val_logits,
        test_logits,
        feature_seconds=sum(made[split].seconds for split in made if split != "test") if made else None,
        feature_cache_hit=bool(made) and all(features.cache_hit for features in made.values()),
        eval_seconds=eval_seconds,
    )


def _predict_test(task: Task) -> tuple[np.ndarray, float | None]:
    """Return the test images' logits, and the seconds of these and of making their features."""
    images = task.dataset.test
    if not len(images):
        return np.empty((0, len(task.dataset.classes)), dtype=np.float32), None
    loader, made = task.inputs.loader(images, "test"), task.inputs.made
    started = time.perf_counter()
    logits = predict(task.model, loader, batch_size=task.run.config.batch_size, desc="test")
    return logits, time.perf_counter() - started + (made["test"].seconds if made else 0.0)
