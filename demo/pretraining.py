"""The pretraining of one demo backbone: augmentation, schedule, loop, and the record of what came out."""

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from timm.optim.muon import Muon
from torch import nn
from torch.nn import functional
from torchvision.transforms import v2

from common.data.images import LabelledImages
from common.data.transforms import Transform, normalise
from common.models import backbones
from common.runtime.device import autocast, resolve_device, resolve_precision
from common.runtime.environment import code_facts, describe_environment
from common.runtime.files import sha256, sha256_of_file, write_atomically
from common.runtime.progress import progress
from common.runtime.seeding import numpy_generator, torch_seed
from common.training.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer, strip_prefix
from common.training.loaders import ImageLoader
from common.training.predict import loss_and_accuracy, predict, split_batches

CLASSES = 10
PADDING = 4  # pixels of the random crop


@dataclass(frozen=True)
class Recipe:
    """What the weights depend on, beside the backbone and the data."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    seed: int
    optimizer: str = field(default="muon", init=False)
    mixup: float = 0.8
    """Of each batch's two mixtures, drawn with equal odds, the parameter of its Beta distribution."""
    cutmix: float = 1.0
    patches_dropped: float = 0.25
    """Of a ViT's patches in the first two thirds of the epochs (Liu et al. 2023, "PatchDropout")."""


def is_finished(path: Path, recipe: Recipe, fingerprint: str) -> bool:
    """Whether ``path`` holds the weights that ``recipe`` gave on the data, by the record beside it."""
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        is_same = record["recipe"] == asdict(recipe) and record["data"]["fingerprint"] == fingerprint
        return is_same and record["file"]["sha256"] == sha256_of_file(path)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def train(
    name: str, images: LabelledImages, recipe: Recipe, fingerprint: str, path: Path
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train backbone ``name`` and a classifier on all ``images``; return it in eval mode, and a row an epoch.

    Raises:
        UserError: a checkpoint beside ``path`` belongs to another recipe, or cannot be written.
    """
    code_facts()  # for the record: the files may be others when it ends
    device = resolve_device("auto")
    torch.manual_seed(torch_seed(recipe.seed, "pretraining"))
    model = timm.create_model(name, num_classes=CLASSES).to(device, memory_format=torch.channels_last)
    if isinstance(model, timm.models.VisionTransformer):
        model.patch_drop = timm.layers.PatchDropout(recipe.patches_dropped, num_prefix_tokens=model.num_prefix_tokens)
    if device.type == "cpu":
        backbones.unfuse_attention(model)
    parameters = dict(model.named_parameters())
    optimizer = make_optimizer(model, recipe)
    sizes = [list(parameter.shape) for parameter in parameters.values()]
    owner = asdict(recipe) | {"backbone": name, "sizes": sizes, "data": fingerprint, "device": device.type}
    checkpoint = Checkpoint(path.with_suffix(".checkpoint"), owner)
    history: list[dict[str, Any]] = []
    if found := checkpoint.load():
        record, tensors = found
        history = record["history"]
        model.load_state_dict(strip_prefix("model/", tensors))
        restore_optimizer(optimizer, parameters, strip_prefix("optimizer/", tensors))
        print(f"{name}: resuming after epoch {len(history)}", flush=True)
    for epoch in range(len(history), recipe.epochs):
        if hasattr(model, "patch_drop") and epoch >= recipe.epochs * 2 / 3:
            model.patch_drop.prob = 0.0
        row = _train_epoch(model, optimizer, images, recipe, _transform(name), epoch)
        history.append(row)
        state = {f"model/{key}": value.cpu() for key, value in model.state_dict().items()}
        moments = {f"optimizer/{key}": value for key, value in optimizer_tensors(optimizer, parameters).items()}
        checkpoint.save({"history": history}, state | moments)
        print(
            f"{name}: epoch {epoch + 1}/{recipe.epochs}  train loss {row['train_loss']:.4f} "
            f"accuracy {row['train_accuracy']:.4f}  {row['seconds']:.0f} s",
            flush=True,
        )
    return model.eval(), history


def make_optimizer(model: nn.Module, recipe: Recipe) -> Muon:
    """Return Muon (Jordan 2024) for the kernels and matrices of the body, AdamW for the rest; norms do not decay.

    timm's Muon flattens a kernel to (out, in * height * width), and leaves embeddings and depthwise kernels to AdamW.
    """
    classifier = set(model.get_classifier().parameters())
    body = [each for each in model.parameters() if each not in classifier]
    groups = [
        {"params": [each for each in body if each.ndim > 1]},
        {"params": [each for each in body if each.ndim <= 1], "weight_decay": 0.0, "use_fallback": True},
        {"params": list(classifier), "use_fallback": True},
    ]
    return Muon(groups, lr=recipe.lr, weight_decay=recipe.weight_decay)


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: LabelledImages,
    recipe: Recipe,
    transform: Transform,
    epoch: int,
) -> dict[str, Any]:
    """Step once over all images in the epoch's own order and return the epoch's row."""
    device = next(model.parameters()).device
    precision = _precision(model, device)
    order = numpy_generator(recipe.seed, "order", epoch=epoch).permutation(len(images))
    batches = split_batches(order, recipe.batch_size)
    mix = _mixture(recipe)
    model.train()
    started, loss_sum, correct = time.perf_counter(), 0.0, 0
    for step, batch in enumerate(progress(batches, desc=f"epoch {epoch + 1}/{recipe.epochs}", unit="step")):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * schedule(epoch + step / len(batches), recipe.epochs)
        rng = numpy_generator(recipe.seed, "pretraining", epoch=epoch, step=step)
        pixels = torch.from_numpy(crop_and_flip(images.pixels[batch], rng)).permute(0, 3, 1, 2)  # (B, 3, 32, 32)
        inputs = normalise(pixels.to(device), transform).contiguous(memory_format=torch.channels_last)
        targets = torch.from_numpy(images.labels[batch]).to(device)
        torch.manual_seed(torch_seed(recipe.seed, "mixing", epoch=epoch, step=step))
        inputs, mixed = mix(inputs, targets)  # (B, 3, 32, 32), (B, 10)
        with autocast(device, precision):
            logits = model(inputs)  # (B, 10)
        loss = functional.cross_entropy(logits.float(), mixed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(batch)
        correct += int((logits.argmax(1) == targets).sum())
    return {
        "epoch": epoch + 1,
        "train_loss": loss_sum / len(images),
        "train_accuracy": correct / len(images),  # of mixed images, against the label of one of the two
        "seconds": time.perf_counter() - started,
    }


def _mixture(recipe: Recipe) -> v2.Transform:
    """Return mixup or cutmix, drawn anew for each batch, of (B, 3, S, S) and labels (B,): mixed images and (B, 10)."""
    kinds = [v2.MixUp(alpha=recipe.mixup, num_classes=CLASSES), v2.CutMix(alpha=recipe.cutmix, num_classes=CLASSES)]
    return v2.RandomChoice(kinds)


def crop_and_flip(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return each of the images (B, S, S, 3) shifted by up to four pixels (zeros come in), half of them mirrored."""
    count, side = pixels.shape[:2]
    padded = np.pad(pixels, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    rows, columns = rng.integers(0, 2 * PADDING + 1, (2, count, 1)) + np.arange(side)  # (B, S) each
    mirrored = rng.random(count) < 0.5
    columns[mirrored] = columns[mirrored, ::-1]
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def schedule(epoch: float, epochs: int) -> float:
    """Return the share of the highest rate after ``epoch`` epochs: linear to 1 in the first, then half a cosine."""
    if epoch < 1:
        return max(epoch, 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (epoch - 1) / max(epochs - 1, 1)))


def _transform(name: str) -> Transform:
    """Return the normalisation that the backbone's timm configuration names."""
    cfg = timm.get_pretrained_cfg(name)
    return Transform(backbones.resolve_image_size(name, None), cfg.mean, cfg.std, cfg.interpolation)


def _precision(model: nn.Module, device: torch.device) -> str:
    """Return the faster precision: on the CPU depthwise convolutions are slower in bfloat16."""
    depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in model.modules())
    return "fp32" if depthwise and device.type == "cpu" else resolve_precision("auto", device)


def save(
    name: str, model: nn.Module, history: list, test: LabelledImages, recipe: Recipe, fingerprint: str, path: Path
) -> float:
    """Write the weights in float16, and the record of what exactly these score on the test images; return accuracy.

    Raises:
        UserError: a file cannot be written.
    """
    device = next(model.parameters()).device
    # BatchNorm's running statistics stay float32: a small variance would lose most of its digits.
    rounded = {
        key: value.half() if value.is_floating_point() and "running" not in key else value.clone()
        for key, value in model.cpu().state_dict().items()
    }
    model.load_state_dict(rounded)
    examples = ImageLoader(test, _transform(name), device, workers=None)
    logits = predict(model.to(device), examples, batch_size=256, desc="test")
    loss, accuracy = loss_and_accuracy(logits, test.labels)
    model.reset_classifier(0)
    tensors = {key: rounded[key].contiguous() for key in model.state_dict()}
    content = safetensors.torch.save(tensors, metadata={"format": "pt"})
    record = {
        "backbone": name,
        "command": f"python demo/pretrain.py --backbones {name} --epochs {recipe.epochs}",
        "recipe": asdict(recipe),
        "data": {"dataset": "cifar10", "fingerprint": fingerprint},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "test": {"images": len(test), "loss": loss, "accuracy": accuracy},
        "history": history,
        "seconds": sum(row["seconds"] for row in history),
        "environment": describe_environment(device, _precision(model, device)),
        "file": {"name": path.name, "bytes": len(content), "sha256": sha256(content)},
    }
    write_atomically(path, content)
    write_atomically(path.with_suffix(".json"), (json.dumps(record, indent=1) + "\n").encode())
    path.with_suffix(".checkpoint").unlink(missing_ok=True)
    return accuracy
