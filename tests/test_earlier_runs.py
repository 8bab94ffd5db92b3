"""Runs that an earlier version of this code made are still read, reproduced, found by name, and trained alike.

``fixtures/earlier_runs`` holds one small run of each script on scikit-learn's digits (float32, one thread) and the
weights of their backbones.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from common.runs.predictions import read_predictions
from common.runs.result import read_result

EARLIER = Path(__file__).resolve().parent / "fixtures" / "earlier_runs"
VIT = "test_vit.test_vit-lora_r4-lr1e-2-ep2-n200-bs32-px32-test60-fp32"
RESNET = "test_resnet.test_resnet-head_mlp-lr3e-3+1e-2-ep4-n200-bs16-px32-test60-fp32"
RUNS = {
    "train_vit_lora": EARLIER / "digits" / VIT / "seed0",
    "train_cnn_head": EARLIER / "digits" / RESNET / "seed0",
}
RECIPES = {
    "train_vit_lora": ["--backbone=test_vit", "--epochs=2", "--batch-size=32", "--rank=4", "--lr=1e-2"],
    "train_cnn_head": [
        *("--backbone=test_resnet", "--epochs=4", "--batch-size=16", "--no-feature-cache"),
        *("--lr", "3e-3", "1e-2"),
    ],
}
SHARED = [
    *("--dataset=digits", "--image-size=32", "--precision=fp32", "--train-limit=200", "--test-limit=60"),
    "--workers=0",
]
MACHINE = ("cpu", "threads", "python", "torch", "torchvision", "timm", "peft", "numpy", "scikit-learn")


def _weights(script: str) -> str:
    return f"--weights={EARLIER / RUNS[script].parent.name.partition('.')[0]}.safetensors"


@pytest.mark.parametrize("script", RUNS)
def test_the_stored_predictions_are_reproduced(fork_server, script):
    ended = fork_server.run("evaluate", [RUNS[script], _weights(script)])
    assert ended.code == 0, ended.err
    assert "equals the stored predictions" in ended.out and "0 of 60 predictions changed" in ended.out


@pytest.mark.parametrize("script", RUNS)
def test_the_same_command_gives_the_same_name_history_and_predictions(fork_server, script, tmp_path):
    ended = fork_server.run(script, [*SHARED, *RECIPES[script], _weights(script), "--results-dir", tmp_path])
    assert ended.code == 0, ended.err
    (folder,) = tmp_path.glob("*/*/seed0")
    assert folder.relative_to(tmp_path) == RUNS[script].relative_to(EARLIER)
    before, now = (json.loads((run / "result.json").read_text()) for run in (RUNS[script], folder))
    exact = all(before["environment"][name] == now["environment"][name] for name in MACHINE)
    for then, row in zip(before["history"], now["history"], strict=True):
        for name in ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert row[name] == (then[name] if exact else pytest.approx(then[name], rel=1e-3))
    for name, value in before["model"].items():
        assert name == "weights" or now["model"][name] == value
    trials = [{name: trial[name] for name in trial if name != "seconds"} for trial in now["trials"]]  # came later
    assert trials == before["trials"] if exact else len(trials) == len(before["trials"])
    ours, theirs = (read_predictions(run, read_result(run / "result.json")) for run in (folder, RUNS[script]))
    for name in ("logits", "val_logits"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0 if exact else 1e-4)
    for name in ("labels", "indices", "val_labels", "val_indices"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))
