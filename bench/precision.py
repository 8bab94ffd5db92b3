"""What bfloat16 does to accuracy: the same runs in float32 and in bfloat16, and one model in both. No speed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.measuring import run_script, single
from common.data.dataset import load_dataset_of_run
from common.runs.predictions import read_predictions
from common.runs.result import RESULT_FILE, Run, read_result
from common.runtime.progress import progress
from common.training.restore import restore_run

HEAD = ("--epochs", 10, "--lr", 1e-3)
# Name -> script and flags; the backbones and their weights are this repository's own, see demo/README.md.
ARMS = {
    "demo_resnet, head": ("train_cnn_head.py", "--backbone", "demo_resnet", *HEAD),
    "demo_efficientnet, head": ("train_cnn_head.py", "--backbone", "demo_efficientnet", *HEAD),
    "demo_vit, head": ("train_vit_lora.py", "--backbone", "demo_vit", "--rank", 0, *HEAD),
    "demo_vit, LoRA": ("train_vit_lora.py", "--backbone", "demo_vit", "--epochs", 3, "--lr", 1e-3),
}
PRECISIONS = ("fp32", "bf16")


def compare(
    scratch: Path,
    *,
    data_dir: Path,
    dataset: str = "fashion_mnist",
    train_images: int = 2_000,
    test_images: int = 2_000,
) -> dict[str, Any]:
    """Train each arm in both precisions, same seed and images; return accuracies, and predictions that differ.

    They differ between the two runs, whose validation may choose different epochs, and between the float32 run's one
    model computed in float32 and in bfloat16: what rounding alone does.
    """
    flags = ("--dataset", dataset, "--data-dir", data_dir, "--train-limit", train_images, "--test-limit", test_images)
    records = []
    for arm, (script, *own) in progress(ARMS.items(), desc="precision", unit="arm"):
        predicted = {}
        for precision in PRECISIONS:
            folder = scratch / f"{arm} {precision}"
            run_script(script, *own, *flags, "--precision", precision, "--no-feature-cache", "--results-dir", folder)
            (path,) = folder.glob("*/*/seed0")
            run = Run(path, read_result(path / RESULT_FILE))
            accuracy = run.test.scores["accuracy"]
            predicted[precision] = read_predictions(run.folder, run.result).logits.argmax(1)
            if precision == "fp32":
                predicted["one model"] = _predicted_in_bf16(run)
            records.append(single(f"{arm}, {precision}", [accuracy], unit="test accuracy"))
        for what, other in (("two runs", "bf16"), ("one model", "one model")):
            differing = int((predicted["fp32"] != predicted[other]).sum())
            records.append(single(f"{arm}, predictions that differ, {what}", [differing], unit=f"of {test_images:,}"))
    return {
        "weights": "demo/weights",
        "records": records,
        "notes": [
            f"{dataset}, {train_images:,} training and {test_images:,} test images, one seed; in bf16 the frozen "
            "backbone alone is rounded; real weights (demo/weights)"
        ],
    }


def _predicted_in_bf16(run: Run) -> np.ndarray:
    """Return the classes (N,) int64 that the model of ``run`` predicts with its backbone in bfloat16."""
    rounded = replace(run.result, config=run.result.config | {"precision": "bf16"})
    model = restore_run(Run(run.folder, rounded), weights=None, device=torch.device("cpu"), workers=None)
    return model.logits(load_dataset_of_run(run.result.config).test, "bfloat16").argmax(1)
