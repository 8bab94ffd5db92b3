"""What bfloat16 does to accuracy: the same runs in float32 and in bfloat16. No measurement of speed."""

from pathlib import Path
from typing import Any

import numpy as np

from bench.measuring import run_script, single
from common.runs.predictions import read_predictions
from common.runs.result import read_result
from common.runtime.progress import progress

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
    """Train each arm in both precisions, same seed and images; return accuracies, and predictions that differ."""
    flags = ("--dataset", dataset, "--data-dir", data_dir, "--train-limit", train_images, "--test-limit", test_images)
    records = []
    for arm, (script, *own) in progress(ARMS.items(), desc="precision", unit="arm"):
        predicted = {}
        for precision in PRECISIONS:
            folder = scratch / f"{arm} {precision}"
            run_script(script, *own, *flags, "--precision", precision, "--no-feature-cache", "--results-dir", folder)
            predicted[precision], accuracy = _outcome(folder)
            records.append(single(f"{arm}, {precision}", [accuracy], unit="test accuracy"))
        differing = int((predicted["fp32"] != predicted["bf16"]).sum())
        records.append(single(f"{arm}, predictions that differ", [differing], unit=f"of {test_images:,}"))
    return {
        "weights": "demo/weights",
        "records": records,
        "notes": [
            f"{dataset}, {train_images:,} training and {test_images:,} test images, one seed; in bf16 the frozen "
            "backbone alone is rounded; real weights (demo/weights)"
        ],
    }


def _outcome(results_dir: Path) -> tuple[np.ndarray, float]:
    """Return the predicted classes (N,) int64 and the test accuracy of the one run below ``results_dir``."""
    (file,) = results_dir.glob("*/*/seed0/result.json")
    result = read_result(file)
    return read_predictions(file.parent, result).logits.argmax(1), result.test.scores["accuracy"]
