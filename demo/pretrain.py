"""Pretrain the demo backbones on CIFAR-10's 50,000 training images, each with the same recipe and number of images.

    python demo/pretrain.py                                  # all three: about 80 minutes on two CPU cores
    python demo/pretrain.py --backbones demo_vit --epochs 30

Writes demo/weights/NAME.safetensors (float16, without the classifier) and NAME.json (recipe, test accuracy, versions).
The test images are read once, after the last epoch, by the weights as they were stored. The same command resumes at
the last finished epoch. Expected result: the table in demo/README.md.
"""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import cli  # noqa: E402, found once its folder is on the path

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from common.data import Images
    from common.preprocessing import Transform

NAMES = ("demo_vit", "demo_resnet", "demo_efficientnet")
CLASSES = 10
PADDING = 4  # pixels of the random crop


@dataclass(frozen=True)
class Config:
    """The recipe, the same for all backbones: AdamW, one epoch of warm-up, then half a cosine down to zero."""

    backbones: tuple[str, ...] = NAMES
    """Which to pretrain."""
    data_dir: Path = Path("data")
    """Where CIFAR-10 lies: torchvision's files, or cifar10/{train,test}/<class>/."""
    epochs: int = 15
    """Passes over the training images."""
    batch_size: int = 128
    """Images in one optimiser step."""
    lr: float = 2e-3
    """AdamW's highest learning rate."""
    weight_decay: float = 0.05
    """AdamW's weight decay."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and the augmentation."""
    weights_dir: Path = ROOT / "demo" / "weights"
    """Where the weights go."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.backbones if name not in NAMES]
        cli.require(bool(self.backbones) and not unknown, "backbones", self.backbones, f"among {', '.join(NAMES)}")
        cli.require(1 <= self.epochs <= 10_000, "epochs", self.epochs, "at least 1")
        cli.require(1 <= self.batch_size <= 50_000, "batch-size", self.batch_size, "1 to 50,000")
        cli.require(0 < self.lr < 1, "lr", self.lr, "between 0 and 1")
        cli.require(0 <= self.weight_decay < float("inf"), "weight-decay", self.weight_decay, "0 or more, and finite")
        cli.require(0 <= self.seed < 2**63, "seed", self.seed, "0 or more")


def main(config: Config) -> None:
    from common import named_sets, splits

    # Data: the whole training split; nothing is selected, so nothing is set aside for validation
    source = named_sets.read("cifar10", config.data_dir)
    parts, fingerprint = source.parts, splits.fingerprint(source.classes, source.parts)

    for name in config.backbones:
        # Model and training
        model, history = _train(config, name, parts["train"], fingerprint)

        # Save, and test what was saved
        _save(config, name, model, history, parts["test"], fingerprint)


def _train(config: Config, name: str, images: "Images", fingerprint: str) -> "tuple[nn.Module, list[dict[str, Any]]]":
    """Train one backbone with a classifier; return it in eval mode, and a row an epoch."""
    import timm
    import torch

    import common.demo_backbones  # noqa: F401, registers them
    from common import runtime
    from common.checkpoint import Checkpoint, below, optimizer_tensors, restore_optimizer
    from common.randomness import numpy_generator, torch_seed

    device = runtime.resolve_device("auto")
    torch.manual_seed(torch_seed(config.seed, "pretraining"))
    model = timm.create_model(name, num_classes=CLASSES).to(device, memory_format=torch.channels_last)
    _unfuse_attention(model)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.lr, weight_decay=config.weight_decay)
    owner = _recipe(config) | {"backbone": name, "data": fingerprint, "device": device.type}
    checkpoint = Checkpoint(ROOT / ".cache" / "pretrain" / f"{name}.checkpoint", owner)
    history: list[dict[str, Any]] = []
    if found := checkpoint.load():
        record, tensors = found
        history = record["history"]
        model.load_state_dict(below("model/", tensors))
        restore_optimizer(optimizer, parameters, below("optimizer/", tensors))
        print(f"{name}: resuming after epoch {len(history)}", flush=True)
    transform = _transform(name)
    for epoch in range(len(history), config.epochs):
        order = numpy_generator(config.seed, "order", epoch=epoch).permutation(len(images))
        row = _train_epoch(config, model, optimizer, images.subset(order), transform, epoch, device)
        history.append(row)
        state = {f"model/{key}": value.cpu() for key, value in model.state_dict().items()}
        moments = {f"optimizer/{key}": value for key, value in optimizer_tensors(optimizer, parameters).items()}
        checkpoint.save({"history": history}, state | moments)
        print(
            f"{name}: epoch {epoch + 1}/{config.epochs}  train loss {row['train_loss']:.4f} "
            f"accuracy {row['train_accuracy']:.4f}  {row['seconds']:.0f} s",
            flush=True,
        )
    return model.eval(), history


def _train_epoch(
    config: Config,
    model: "nn.Module",
    optimizer: "torch.optim.Optimizer",
    images: "Images",
    transform: "Transform",
    epoch: int,
    device: "torch.device",
) -> dict[str, Any]:
    import numpy as np
    import torch
    from torch.nn import functional

    from common.prediction import split_batches
    from common.preprocessing import normalise
    from common.progress import progress
    from common.randomness import numpy_generator

    precision = _precision(model, device)
    model.train()
    started, loss_sum, correct = time.perf_counter(), 0.0, 0
    batches = split_batches(np.arange(len(images)), config.batch_size)
    for step, batch in enumerate(progress(batches, desc=f"epoch {epoch + 1}/{config.epochs}", unit="step")):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _schedule((epoch + step / len(batches)), config.epochs)
        rng = numpy_generator(config.seed, "pretraining", epoch=epoch, step=step)
        pixels = torch.from_numpy(crop_and_flip(images.pixels[batch], rng)).permute(0, 3, 1, 2)  # (B, 3, 32, 32)
        inputs = normalise(pixels.to(device), transform).contiguous(memory_format=torch.channels_last)
        targets = torch.from_numpy(images.labels[batch]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(inputs)
        loss = functional.cross_entropy(logits.float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(batch)
        correct += int((logits.argmax(1) == targets).sum())
    return {
        "epoch": epoch + 1,
        "train_loss": loss_sum / len(images),
        "train_accuracy": correct / len(images),
        "seconds": time.perf_counter() - started,
    }


def _recipe(config: Config) -> dict[str, Any]:
    """Return the settings that the weights depend on."""
    return {key: value for key, value in asdict(config).items() if key not in ("backbones", "data_dir", "weights_dir")}


def _transform(name: str) -> "Transform":
    """Return the normalisation that the backbone's timm configuration names."""
    import timm

    from common import backbones
    from common.preprocessing import Transform

    cfg = timm.get_pretrained_cfg(name)
    size = backbones.resolve_image_size(name, None)
    return Transform(size, cfg.mean, cfg.std, cfg.interpolation)


def crop_and_flip(pixels: "np.ndarray", rng: "np.random.Generator") -> "np.ndarray":
    """Return each of the images (B, S, S, 3) shifted by up to four pixels (zeros come in), half of them mirrored."""
    import numpy as np

    count, side = pixels.shape[:2]
    padded = np.pad(pixels, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    rows, columns = rng.integers(0, 2 * PADDING + 1, (2, count, 1)) + np.arange(side)  # (B, S) each
    mirrored = rng.random(count) < 0.5
    columns[mirrored] = columns[mirrored, ::-1]
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _schedule(epoch: float, epochs: int) -> float:
    """Return the share of the highest rate after ``epoch`` epochs: linear to 1 in the first, then half a cosine."""
    import math

    if epoch < 1:
        return max(epoch, 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (epoch - 1) / max(epochs - 1, 1)))


def _precision(model: "nn.Module", device: "torch.device") -> str:
    """Return the faster precision: on the CPU depthwise convolutions are slower in bfloat16 (404 to 551 images/s)."""
    from torch import nn

    from common.runtime import resolve_precision

    depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in model.modules())
    return "fp32" if depthwise and device.type == "cpu" else resolve_precision("auto", device)


def _unfuse_attention(model: "nn.Module") -> None:
    """Use plain matrix products: on the CPU they train twice as fast in bfloat16 as the fused kernel (403 to 169)."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def _save(config: Config, name: str, model: "nn.Module", history: list, test: "Images", fingerprint: str) -> None:
    """Write the weights in float16, read them back, and record what they score on the test images."""
    import json

    from safetensors.torch import save

    from common import runtime, storage
    from common.examples import ImageExamples
    from common.prediction import loss_and_accuracy, predict

    device = next(model.parameters()).device
    # BatchNorm's running statistics stay float32: a small variance would lose most of its digits.
    rounded = {
        key: value.half() if value.is_floating_point() and "running" not in key else value.clone()
        for key, value in model.cpu().state_dict().items()
    }
    model.load_state_dict(rounded)
    examples = ImageExamples(test, _transform(name), device, workers=None)
    logits = predict(model.to(device), examples, batch_size=256, desc="test")
    loss, accuracy = loss_and_accuracy(logits, test.labels)
    model.reset_classifier(0)
    content = save({key: rounded[key].contiguous() for key in model.state_dict()}, metadata={"format": "pt"})
    record = {
        "backbone": name,
        "command": f"python demo/pretrain.py --backbones {name} --epochs {config.epochs}",
        "recipe": {
            key: value for key, value in asdict(config).items() if key not in ("backbones", "data_dir", "weights_dir")
        },
        "data": {"dataset": "cifar10", "fingerprint": fingerprint},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "test": {"images": len(test), "loss": loss, "accuracy": accuracy},
        "history": history,
        "seconds": sum(row["seconds"] for row in history),
        "environment": runtime.environment(device, _precision(model, device)),
        "file": {"name": f"{name}.safetensors", "bytes": len(content), "sha256": storage.sha256(content)},
    }
    storage.write_atomically(config.weights_dir / f"{name}.safetensors", content)
    text = json.dumps(record, indent=1) + "\n"
    storage.write_atomically(config.weights_dir / f"{name}.json", text.encode())
    print(f"{name}: test accuracy {accuracy:.4f}; wrote {config.weights_dir / name}.safetensors and .json", flush=True)


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
