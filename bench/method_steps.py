"""A training step of each method that trains through its backbone: this repository against plain timm and PEFT."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.measuring import alternate, paired, timed
from bench.vit_step import ALPHA, CLASSES, DROPOUT, IMAGE_SIZE, RANK, WARM_UP_STEPS, examples, new_step
from common.models import backbones, cnn_lora, finetuning, lora
from common.runtime.device import autocast, resolve_device, resolve_precision

LINEAR = r"blocks\..*\.(qkv|proj|fc1|fc2)"  # of a block of timm's ViT, whose query, key and value are one layer


@dataclass(frozen=True)
class Case:
    """A backbone, how it is trained, and the pattern of the layers that plain PEFT adapts (None: fully fine-tuned)."""

    what: str
    tag: str
    ours: Callable[..., nn.Module]
    adapted: str | None


def cases(*, vit: str, cnns: tuple[str, ...]) -> list[Case]:
    """Return LoRA on all linear layers of the ViT and on 1x1 convolutions of the CNNs, and full fine-tuning of each."""
    found = [Case("LoRA, all linear layers", vit, _all_linear, LINEAR), Case("full", vit, _full, None)]
    for tag in cnns:
        names = "|".join(map(re.escape, cnn_lora.require_targets(_random(tag), "pointwise")))
        found += [Case("LoRA, 1x1 convolutions", tag, _pointwise, names), Case("full", tag, _full, None)]
    return found


def compare(*, vit: str, cnns: tuple[str, ...], batch_size: int, repeats: int) -> dict[str, Any]:
    """Time 2 * repeats steps a side of each case, in turn, in the machine's precision, on the same random images."""
    device = resolve_device("auto")
    precision = resolve_precision("auto", device)
    images, labels = examples(batch_size, device)
    records = []
    for case in cases(vit=vit, cnns=cnns):
        model, plain = case.ours(_random(case.tag), precision=precision, device=device).train(), new_plain(case, device)

        def plain_logits(batch: torch.Tensor, plain: nn.Module = plain) -> torch.Tensor:
            with autocast(device, precision):
                return plain(batch)

        steps = {
            "here": new_step(model, model, images, labels),
            "timm + PEFT": new_step(plain, plain_logits, images, labels),
        }
        for step in steps.values():
            for _ in range(WARM_UP_STEPS):
                step()
        what = f"{case.tag}, {case.what}, batch {batch_size}, {precision}"
        sides = {side: lambda step=step: timed(step) for side, step in steps.items()}
        records.append(paired(f"{what}, seconds a step", alternate(sides, 2 * repeats, desc=what)))
    return {
        "weights": "random",
        "records": records,
        "notes": ["the plain side is timm's model as it comes, in train()"],
    }


def new_plain(case: Case, device: torch.device) -> nn.Module:
    """Return timm's model with random weights, in training mode, where ``case`` says so adapted by PEFT."""
    from peft import LoraConfig, get_peft_model

    base = _random(case.tag)
    model = base.module.requires_grad_(True)
    model.reset_classifier(CLASSES)
    if case.adapted is not None:
        options = {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": DROPOUT, "target_modules": case.adapted}
        model = get_peft_model(model, LoraConfig(**options, modules_to_save=[base.classifier]))
    return model.to(device).train()


def _random(tag: str) -> backbones.Backbone:
    return backbones.load(tag, weights="random", image_size=IMAGE_SIZE)


def _lora_options(**options: Any) -> dict[str, Any]:
    return {"classes": CLASSES, "rank": RANK, "alpha": ALPHA, "dropout": DROPOUT, "seed": 0, **options}


def _all_linear(base: backbones.Backbone, **options: Any) -> nn.Module:
    return lora.attach(base, **_lora_options(targets="all-linear", **options))


def _pointwise(base: backbones.Backbone, **options: Any) -> nn.Module:
    return cnn_lora.attach(base, **_lora_options(targets="pointwise", **options))


def _full(base: backbones.Backbone, **options: Any) -> nn.Module:
    return finetuning.unfreeze(base, classes=CLASSES, parts="all", batchnorm="train", seed=0, **options)
