"""Logits of a trained model, and the two numbers that training watches."""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from common.runtime.device import memory_errors
from common.runtime.progress import progress
from common.training.loaders import Loader


def predict(model: Callable[[torch.Tensor], torch.Tensor], images: Loader, *, batch_size: int, desc: str) -> np.ndarray:
    """Return the logits of all images in their order, (N, C) float32; the model must be in eval mode."""
    positions = split_batches(np.arange(len(images.labels)), batch_size)
    batches = images.batches(positions, epoch=0)
    with torch.inference_mode(), memory_errors(batch_size):
        bar = progress(batches, desc=desc, total=len(positions), unit="batch")
        return torch.cat([model(batch).float().cpu() for batch in bar]).numpy()


def loss_and_accuracy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the mean cross-entropy (in float64) and the share of correct images, of logits (N, C)."""
    loss = functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
    return loss.item(), float((logits.argmax(1) == labels).mean())


def split_batches(positions: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut positions (N,) into arrays of ``batch_size``; the last one may be smaller, none is dropped."""
    return [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
