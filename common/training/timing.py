"""How fast finished models answer: all of them in one process, in turn, as they would be deployed."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import use_fused_attn
from torch import nn

from common.evaluation.timings import BatchTiming, Timing, write_timing
from common.models.fuse_batchnorm import quicker
from common.runs.result import Run
from common.runtime.device import autocast, memory_errors, synchronize
from common.runtime.environment import describe_environment
from common.training.methods.head import PlainClassifier
from common.training.restore import RestoredModel, restore_run

LATENCY_IMAGES, THROUGHPUT_IMAGES = 1, 32
WARM_UP = 3
LEAST_ROUNDS, MOST_ROUNDS = 7, 200
SECONDS = 60  # of all models at one batch size; after it no round begins that is not among the least


def deployed(model: RestoredModel) -> nn.Module:
    """Return the trained model as it is fastest: adapters merged, BatchNorm folded, a ViT's last block shortened.

    Normalised images (B, 3, S, S) -> logits (B, C), in eval mode, on the device of the model.
    """
    plain, size = model.method.plain(model.backbone, model.model), model.backbone.image_size
    if isinstance(plain, PlainClassifier):
        plain = PlainClassifier(quicker(plain.backbone, size), plain.head)
    else:
        plain = quicker(plain, size)
    for layer in plain.modules():
        if hasattr(layer, "fused_attn"):  # training on the CPU has reasons to do without
            layer.fused_attn = use_fused_attn()
    device = model.inputs.extractor.device
    return plain.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def time_runs(runs: Sequence[Run], **options: Any) -> list[tuple[Path, Timing]]:
    """Time the models of ``runs`` and write the ``timing.json`` of each; return the files and what is in them.

    Seeds of one model differ in no operation: the first is timed for all. ``options`` and errors are those of
    ``restore_run``, and UserError where the memory is too small or a file cannot be written.
    """
    seeds: dict[tuple[Path, str], dict[Path, Run]] = defaultdict(dict)  # of one model, in one precision
    for run in runs:
        folder = run.folder.resolve()
        seeds[folder.parent, run.result.config["precision"]][folder] = run
    models = [restore_run(next(iter(of_model.values())), **options) for of_model in seeds.values()]
    print(f"timing {len(models)} models in turn: two minutes, longer where one pass takes seconds", flush=True)
    names = [f"{model.run.dataset}/{model.run.name}" for model in models]
    environment = describe_environment(options["device"], "")
    written = []
    for of_model, model, (latency, throughput) in zip(seeds.values(), models, time_models(models), strict=True):
        facts = {
            "latency": latency,
            "throughput": throughput,
            "image_size": model.backbone.image_size,
            "timed_with": names,
            "environment": environment | {"precision": model.inputs.extractor.precision},
        }
        for run in of_model.values():
            timing = Timing(result_sha256=run.result.sha256, **facts)
            written.append((write_timing(run, timing), timing))
    return written


def time_models(models: Sequence[RestoredModel]) -> list[tuple[BatchTiming, BatchTiming]]:
    """Return each model's time for one image and for 32, in the precision that its run was scored in.

    Blank images, normalised and on the device; the clock stops when the logits are there.
    """
    modules = [deployed(model) for model in models]
    by_size = [_timed(models, modules, images) for images in (LATENCY_IMAGES, THROUGHPUT_IMAGES)]
    return list(zip(*by_size, strict=True))


def _timed(models: Sequence[RestoredModel], modules: Sequence[nn.Module], images: int) -> list[BatchTiming]:
    calls = [_call(model, module, images) for model, module in zip(models, modules, strict=True)]
    with torch.inference_mode(), memory_errors(images, fixed=True):
        seconds = _seconds_in_turn(calls)  # (models, rounds)
    quarters = np.quantile(seconds, [0.25, 0.5, 0.75], axis=1).T.tolist()
    return [
        BatchTiming(images=images, seconds=median, quartiles=[low, high], repeats=seconds.shape[1])
        for low, median, high in quarters
    ]


def _call(model: RestoredModel, module: nn.Module, images: int) -> Callable[[], None]:
    """Return a function that classifies so many ``images`` and waits for the logits."""
    device, precision, size = model.inputs.extractor.device, model.inputs.extractor.precision, model.backbone.image_size
    batch = torch.zeros(images, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)

    def call() -> None:
        with autocast(device, precision):
            module(batch)
        synchronize(device)

    return call


def _seconds_in_turn(calls: Sequence[Callable[[], None]]) -> np.ndarray:
    """Return the seconds of each of ``calls`` in each round, (calls, rounds): what disturbs one disturbs all."""
    for call in calls:
        for _ in range(WARM_UP):
            call()
    rounds: list[list[float]] = []
    begun = time.perf_counter()
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < MOST_ROUNDS and time.perf_counter() - begun < SECONDS):
        rounds.append([_seconds(call) for call in calls])
    return np.array(rounds).T


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
