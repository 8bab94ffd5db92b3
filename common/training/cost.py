"""What a method takes of a backbone on this machine, measured in a few steps with random weights and blank images."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from common.config import TrainConfig, as_record
from common.models import backbones
from common.models.backbones import Backbone, pooled_features
from common.models.fuse_batchnorm import for_inference
from common.models.logistic_regression import solve
from common.runs.methods import method_spec
from common.runtime.device import (
    autocast,
    memory_errors,
    prepare_device,
    resolve_device,
    resolve_precision,
    synchronize,
)
from common.training.features import batch_images
from common.training.loop import trained_parameters
from common.training.methods import new_method
from common.training.methods.probe import PENALTIES

CLASSES = 10
STEPS = 3  # after one to warm up
SOLVED_IMAGES = 500
LONG_SECONDS = 10  # of all steps together; beyond that those made so far say enough


@dataclass(frozen=True)
class Cost:
    """Seconds of an image in training and in a forward pass of the backbone, and bytes of its features on disk."""

    train_seconds: float
    """In one step, forward and backward; of a method without steps in its whole fit."""
    forward_seconds: float
    feature_bytes: int


def measure(config: TrainConfig) -> Cost:
    """Return what the method of ``config`` takes of its backbone here, in batches as large as those of the run.

    Raises:
        UserError: the backbone does not exist or is none for this method, or the memory is too small for a batch.
    """
    device = resolve_device(config.device)
    prepare_device(device, deterministic=config.deterministic, threads=config.threads)
    precision = resolve_precision(config.precision, device)
    size = backbones.resolve_image_size(config.backbone, config.image_size)
    backbone = backbones.load(config.backbone, weights="random", image_size=size)
    reads_features = method_spec(config.method).reads_features
    count = batch_images(device, size) if reads_features else config.batch_size
    images = torch.zeros(count, 3, size, size, device=device)
    with memory_errors(count, fixed=reads_features):
        if reads_features:
            return _feature_cost(config, backbone, images, precision)
        return _training_cost(config, backbone, images, precision)


def _feature_cost(config: TrainConfig, backbone: Backbone, images: torch.Tensor, precision: str) -> Cost:
    fit = _step_seconds if method_spec(config.method).has_steps else _solve_seconds
    train_seconds = fit(config, backbone, images.device)
    module = for_inference(backbone, images.device)
    images = images.contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode(), autocast(images.device, precision):
            pooled_features(module, images)

    return Cost(train_seconds, _seconds_per_image(forward, images), feature_bytes=4 * backbone.width)  # float32


def _step_seconds(config: TrainConfig, backbone: Backbone, device: torch.device) -> float:
    """Return the seconds of an image in a step of a head."""
    head = new_method(config.method, as_record(config)).build(
        backbone, CLASSES, seed=config.seed, precision="fp32", device=device
    )
    features = torch.zeros(config.batch_size, backbone.width, device=device)
    return _seconds_per_image(_training_step(head, features), features)


def _solve_seconds(config: TrainConfig, backbone: Backbone, device: torch.device) -> float:
    """Return the seconds of an image in the fit of a probe, by one to random features that tell the classes apart."""
    drawn, labels = np.random.default_rng(0), np.arange(SOLVED_IMAGES) % CLASSES
    features = drawn.standard_normal((SOLVED_IMAGES, backbone.width)) + np.eye(CLASSES, backbone.width)[labels]
    started = time.perf_counter()
    for _ in solve(features.astype(np.float32), labels, PENALTIES):
        pass
    return (time.perf_counter() - started) / SOLVED_IMAGES


def _training_step(model: nn.Module, inputs: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(trained_parameters(model).values())
    labels = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)

    def step() -> None:
        loss = functional.cross_entropy(model.train()(inputs), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _training_cost(config: TrainConfig, backbone: Backbone, images: torch.Tensor, precision: str) -> Cost:
    method = new_method(config.method, as_record(config))
    model = method.build(backbone, CLASSES, seed=config.seed, precision=precision, device=images.device)

    def predict() -> None:
        with torch.inference_mode():
            model.eval()(images)

    train_seconds = _seconds_per_image(_training_step(model, images), images)
    return Cost(train_seconds, _seconds_per_image(predict, images), feature_bytes=0)


def _seconds_per_image(function: Callable[[], None], images: torch.Tensor) -> float:
    """Return the seconds of one call for each image: the fastest call after a warm-up, of fewer where they are long."""
    times: list[float] = []
    while len(times) <= STEPS and sum(times) < LONG_SECONDS:
        synchronize(images.device)
        started = time.perf_counter()
        function()
        synchronize(images.device)
        times.append(time.perf_counter() - started)
    return min(times[1:] or times) / len(images)
