"""How long a grid of runs will take on this machine, from a few steps of each backbone with random weights."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from common.models import backbones, lora
from common.models.backbones import pooled_features
from common.models.fuse_batchnorm import for_inference
from common.runtime.device import autocast, resolve_device, resolve_precision, synchronize

BATCH_IMAGES = {"cpu": 4, "cuda": 64, "mps": 16}

STEPS = 3


def grid(configs: Sequence[Any], images: Mapping[str, tuple[int, int]]) -> tuple[float, int]:
    """Return (seconds, bytes of features on disk) for training ``configs`` one after the other.

    ``images`` has the number of training (with validation) and test images of each data set.
    Decoding images and the steps of a head, which take a small part of the time, are left out. Runs that share the
    features of a frozen backbone (all seeds of a data set) are counted as making them once.
    """
    seconds, feature_bytes = 0.0, 0
    costs: dict[tuple[str, str], tuple[float, float, int]] = {}
    featured = set()
    for config in configs:
        arm = config.backbone, config.method  # a ViT may stand there with LoRA and with its head alone
        if arm not in costs:
            costs[arm] = _measure(config)
        train_seconds, forward_seconds, width = costs[arm]
        train, test = images[config.dataset]
        val = round(train * config.val_fraction)
        if config.method == "lora":
            epochs = config.epochs * len(config.lr)
            forward = epochs * val + val + test
            seconds += epochs * (train - val) * train_seconds + forward * forward_seconds
        elif (config.backbone, config.dataset) not in featured:
            featured.add((config.backbone, config.dataset))
            seconds += (train + test) * forward_seconds
            feature_bytes += 4 * width * (train + test)
    return seconds, feature_bytes


def _measure(config: Any) -> tuple[float, float, int]:
    """Return seconds an image in a LoRA step (0 for a head), seconds an image in a forward pass, number of features."""
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    size = backbones.resolve_image_size(config.backbone, config.image_size)
    backbone = backbones.load(config.backbone, weights="random", image_size=size)
    images = torch.zeros(BATCH_IMAGES[device.type], 3, size, size, device=device)
    labels = torch.zeros(len(images), dtype=torch.long, device=device)
    if config.method != "lora":
        module = for_inference(backbone).to(device, memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)

        def forward() -> None:
            with torch.inference_mode(), autocast(device, precision):
                pooled_features(module, images)

        return 0.0, _seconds(forward, device) / len(images), backbone.width
    recipe = {"rank": config.rank, "alpha": config.alpha, "dropout": config.dropout}
    model = lora.attach(backbone, classes=10, seed=0, precision=precision, device=device, **recipe).train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        functional.cross_entropy(model(images), labels).backward()

    def predict() -> None:
        with torch.inference_mode():
            model(images)

    return _seconds(step, device) / len(images), _seconds(predict, device) / len(images), backbone.width


def _seconds(function: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of one call, the fastest of ``STEPS`` after a warm-up."""
    function()
    times = []
    for _ in range(STEPS):
        synchronize(device)
        started = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)
