"""What ten optimiser steps of each method give in float32 and one thread, on the digits and the demo backbones.

    python tests/ten_steps.py        # after a change that is meant to alter these numbers: writes them

It differs between machines by rounding alone: by less than 1e-5 where this one was made to use AVX2 or SSE4.1 alone.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from process_fork import REPOSITORY, ForkServer
from training_again import MACHINE

from common.runs.record import RunResult
from common.runs.result import RESULT_FILE, read_result

FILE = REPOSITORY / "tests" / "fixtures" / "ten_steps.json"
SHARED = [
    *("--dataset=digits", "--train-limit=160", "--batch-size=16", "--epochs=1", "--test-limit=20", "--lr=3e-3"),
    *("--device=cpu", "--precision=fp32", "--threads=1", "--workers=0"),
]
# At 3e-3 rounding alone moves the whole CNN's loss by 2e-3: Adam gives the least gradient a full step.
FULL = ("train_full", "--lr=1e-4")
# By name, whose first word is the method.
RECIPES = {
    "head_mlp": ("train_cnn_head", "--backbone=demo_resnet", "--no-feature-cache"),
    "head_linear": ("train_cnn_head", "--backbone=demo_efficientnet", "--head=linear", "--no-feature-cache"),
    "lora qv": ("train_vit_lora", "--backbone=demo_vit"),
    "lora all-linear": ("train_vit_lora", "--backbone=demo_vit", "--targets=all-linear"),
    "cnn_lora pointwise": ("train_cnn_lora", "--backbone=demo_efficientnet"),
    "cnn_lora all-convs": ("train_cnn_lora", "--backbone=demo_resnet", "--targets=all-convs"),
    "full ViT": (*FULL, "--backbone=demo_vit"),
    "full CNN": (*FULL, "--backbone=demo_resnet"),
    "norms_and_biases": ("train_full", "--backbone=demo_efficientnet", "--parts=norms-and-biases"),
}


def train_ten_steps(fork_server: ForkServer, name: str, results_dir: Path) -> RunResult:
    """Return the result of the recipe ``name``, trained below ``results_dir``."""
    script, *flags = RECIPES[name]
    ended = fork_server.run(script, [*SHARED, *flags, "--results-dir", results_dir])
    assert ended.code == 0, ended.err
    (folder,) = results_dir.glob("digits/*/seed0")
    return read_result(folder / RESULT_FILE)


def _record(folder: Path) -> dict[str, Any]:
    fork_server = ForkServer(folder)
    results = {name: train_ten_steps(fork_server, name, folder / name) for name in RECIPES}
    fork_server.close()
    environment = results["head_mlp"].environment
    return {
        "environment": {name: environment[name] for name in MACHINE},
        "weights_sha256": {result.backbone: result.model.weights.sha256 for result in results.values()},
        "train_loss": {name: result.history[0].train_loss for name, result in results.items()},
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        record = _record(Path(folder))
    FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {FILE.relative_to(REPOSITORY)}")
