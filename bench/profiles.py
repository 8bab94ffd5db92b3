"""Where the time goes: the operations of one LoRA step and of one batch through each frozen CNN, by their own time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench import vit_step
from common.models import backbones
from common.models.backbones import pooled_features
from common.models.fuse_batchnorm import for_inference
from common.runtime.device import autocast, resolve_device, resolve_precision, synchronize
from common.training.features import batch_images

IMAGE_SIZE = 224
SHOWN = 8


def compare(*, vit: str, cnns: Sequence[str], batch_size: int) -> dict[str, Any]:
    """Profile a training step of ``vit`` on ``batch_size`` images, and one batch of features of each of ``cnns``.

    Shares are of the sum of all operations' own time, on a GPU of its kernels', after two calls to warm up.
    """
    device = resolve_device("auto")
    precision = resolve_precision("auto", device)
    base = backbones.load(vit, weights="random", image_size=IMAGE_SIZE)
    model = vit_step.adapted(base, precision, device)
    images, labels = vit_step.examples(batch_size, device)
    calls = {f"{vit}, a LoRA step on {batch_size} images": vit_step.new_step(model, model, images, labels)}
    for tag in cnns:
        batch = batch_images(device, IMAGE_SIZE)
        calls[f"{tag}, the features of {batch} images"] = _extraction(tag, batch, device, precision)
    return {
        "weights": "random",
        "records": [_shares(f"{what}, {precision}", call, device) for what, call in calls.items()],
        "notes": [f"the {SHOWN} operations with the most time of their own, each with its calls; the rest is the rest"],
    }


def _extraction(tag: str, batch: int, device: torch.device, precision: str) -> Callable[[], None]:
    backbone = backbones.load(tag, weights="random", image_size=IMAGE_SIZE)
    module = for_inference(backbone, device)
    images = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, device=device).contiguous(memory_format=torch.channels_last)

    def features() -> None:
        with torch.inference_mode(), autocast(device, precision):
            pooled_features(module, images)
        synchronize(device)

    return features


def _shares(what: str, call: Callable[[], None], device: torch.device) -> dict[str, Any]:
    """Return the record of one profiled call: each operation's share of the time, in per cent."""
    call(), call()
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        call()
    spent = {
        f"{operation.key} x {operation.count}": operation.self_device_time_total
        if on_gpu
        else operation.self_cpu_time_total
        for operation in profiled.key_averages()
    }
    total = sum(spent.values())
    most = sorted(spent, key=spent.get, reverse=True)[:SHOWN]
    return {"what": what, "unit": "%", "operations": {name: 100 * spent[name] / total for name in most}}
