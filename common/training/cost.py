"""What a method takes of a backbone on this machine, measured in a few steps with random weights and blank images."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from common.config import TrainConfig, as_record
from common.models import backbones
from common.models.backbones import Backbone, pooled_features
from common.models.fuse_batchnorm import for_inference
from common.runs.methods import method_spec
from common.runtime.device import autocast, memory_errors, resolve_device, resolve_precision, synchronize
from common.training.features import batch_images
from common.training.methods import new_method

CLASSES = 10
STEPS = 3  # after one to warm up
LONG_SECONDS = 10  # of all steps together; beyond that those made so far say enough


@dataclass(frozen=True)
class Cost:
    """Seconds of an image in a training step and in a forward pass, and bytes of its features on disk.

    The steps of a method that reads features cost nothing beside the features: ``step_seconds`` is 0.
    """

    step_seconds: float
    forward_seconds: float
    feature_bytes: int


def measure(config: TrainConfig) -> Cost:
    """Return what the method of ``config`` takes of its backbone here, in batches as large as those of the run.

    Raises:
        UserError: the backbone does not exist or is none for this method, or the memory is too small for a batch.
    """
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    size = backbones.resolve_image_size(config.backbone, config.image_size)
    backbone = backbones.load(config.backbone, weights="random", image_size=size)
    reads_features = method_spec(config.method).reads_features
    count = batch_images(device, size) if reads_features else config.batch_size
    images = torch.zeros(count, 3, size, size, device=device)
    with memory_errors(count, fixed=reads_features):
        if reads_features:
            return _feature_cost(backbone, images, precision)
        return _training_cost(config, backbone, images, precision)


def _feature_cost(backbone: Backbone, images: torch.Tensor, precision: str) -> Cost:
    module = for_inference(backbone, images.device)
    images = images.contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode(), autocast(images.device, precision):
            pooled_features(module, images)

    return Cost(0.0, _seconds_per_image(forward, images), feature_bytes=4 * backbone.width)  # float32


def _training_cost(config: TrainConfig, backbone: Backbone, images: torch.Tensor, precision: str) -> Cost:
    method = new_method(config.method, as_record(config))
    model = method.build(backbone, CLASSES, seed=config.seed, precision=precision, device=images.device)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        model.train().zero_grad(set_to_none=True)
        functional.cross_entropy(model(images), labels).backward()

    def predict() -> None:
        with torch.inference_mode():
            model.eval()(images)

    return Cost(_seconds_per_image(step, images), _seconds_per_image(predict, images), feature_bytes=0)


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
