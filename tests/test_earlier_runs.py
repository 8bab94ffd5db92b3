"""Runs that an earlier version of this code made are still read, reproduced, found by name, and trained alike.

``fixtures/earlier_runs`` holds one small run of each script on scikit-learn's digits (float32, one thread) and the
weights of their backbones.
"""

from pathlib import Path

import numpy as np
import pytest
from training_again import differences, train_again

from common.runs.predictions import read_predictions
from common.runs.result import RESULT_FILE, Run, read_result

EARLIER = Path(__file__).resolve().parent / "fixtures" / "earlier_runs"
VIT = "test_vit.test_vit-lora_r4-lr1e-2-ep2-n200-bs32-px32-test60-fp32"
RESNET = "test_resnet.test_resnet-head_mlp-lr3e-3+1e-2-ep4-n200-bs16-px32-test60-fp32"
RUNS = {
    "train_vit_lora": EARLIER / "digits" / VIT / "seed0",
    "train_cnn_head": EARLIER / "digits" / RESNET / "seed0",
}


def _weights(script: str) -> str:
    return f"--weights={EARLIER / RUNS[script].parent.name.partition('.')[0]}.safetensors"


@pytest.mark.parametrize("script", RUNS)
def test_the_stored_predictions_are_reproduced(fork_server, script):
    ended = fork_server.run("evaluate", [RUNS[script], _weights(script)])
    assert ended.code == 0, ended.err
    assert "equals the stored predictions" in ended.out and "0 of 60 predictions changed" in ended.out


@pytest.mark.parametrize("script", RUNS)
def test_the_same_command_gives_the_same_name_history_and_predictions(fork_server, script, tmp_path):
    run = Run(RUNS[script], read_result(RUNS[script] / RESULT_FILE))
    again = train_again(fork_server, run, tmp_path)
    before, now = run.result, again.result
    exact = not differences(before.environment, now.environment)
    for then, row in zip(before.history, now.history, strict=True):
        for name in ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            value = getattr(then, name)
            assert getattr(row, name) == (value if exact else pytest.approx(value, rel=1e-3))
    for name in ("total_params", "trainable_params", "trainable_percent", "forward_flops", "lora"):  # others came later
        assert getattr(now.model, name) == getattr(before.model, name)
    trials = [{name: trial[name] for name in trial if name != "seconds"} for trial in now.trials]  # came later
    assert trials == before.trials if exact else len(trials) == len(before.trials)
    ours, theirs = (read_predictions(each.folder, each.result) for each in (again, run))
    for name in ("logits", "val_logits"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0 if exact else 1e-4)
    for name in ("labels", "indices", "val_labels", "val_indices"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))
