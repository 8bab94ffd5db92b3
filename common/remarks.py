"""What the scripts tell the person who waits for them."""

import math
from typing import Any

PUBLISHED_STEPS = 4_000  # five epochs of 50,000 images in batches of 64
FEW_STEPS = 1_000
LONG_SECONDS = 1_800


def few_steps(images: int, *, batch_size: int, epochs: int) -> str | None:
    """Return a sentence for a run of so few optimiser steps that the published rates hardly move, else None."""
    steps = math.ceil(images / batch_size) * epochs
    if steps >= FEW_STEPS:
        return None
    return (
        f"{steps:,} optimiser steps; the published recipe makes about {PUBLISHED_STEPS:,}. "
        "On few images try more --epochs, a smaller --batch-size or a higher --lr"
    )


def long_training(seconds_per_step: float, steps: int) -> str | None:
    """Return the estimate for ``steps`` still to make, and what to try instead, where it is over half an hour."""
    seconds = seconds_per_step * steps
    if seconds <= LONG_SECONDS:
        return None
    return (
        f"about {duration(seconds)} of training to go at {seconds_per_step:.2g} s a step; shorter: --train-limit, "
        "fewer --epochs, a smaller --backbone, or a GPU. It may be stopped and resumed at any time"
    )


def duration(seconds: float) -> str:
    """Return a rough duration in words: "40 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3600:.1f} h"


def epoch_line(row: dict[str, Any], *, epochs: int, several_lrs: bool) -> str:
    """Return one line for a row of the history."""
    lr = f"lr {row['lr']:g}  " if several_lrs else ""
    return (
        f"{lr}epoch {row['epoch']}/{epochs}  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.4f}  "
        f"val loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.4f}  {row['seconds']:.1f} s"
    )


def scores(metrics: dict[str, Any]) -> str:
    """Return accuracy, macro F1 and macro AUC of a ``metrics`` block in words."""
    auc = "not defined" if metrics["auc_macro"] is None else f"{metrics['auc_macro']:.4f}"
    return f"accuracy {metrics['accuracy']:.4f}  F1 (macro) {metrics['f1_macro']:.4f}  AUC (macro) {auc}"
