"""The code still trains what was recorded: reference runs to the bit on their machine, ten steps nearly so on any."""

import json

import numpy as np
import pytest
from ten_steps import FILE, RECIPES, train_ten_steps
from test_reference import RESULTS
from training_again import cheapest_runs, differences, train_again

import profiles
from common.runs.methods import METHODS
from common.runs.predictions import read_predictions
from common.runtime.device import resolve_device, resolve_precision
from common.runtime.environment import describe_environment

PROFILES = ("demo", "mini")  # a run of the others takes minutes
REFERENCE_RUNS = cheapest_runs(RESULTS / profile for profile in PROFILES)


@pytest.fixture(scope="module")
def this_machine() -> dict:
    """The ``environment`` that a run of the fork server records here, unless its command says otherwise."""
    device = resolve_device("auto")
    return describe_environment(device, resolve_precision("auto", device)) | {"threads": 1}


@pytest.mark.parametrize("method", sorted(REFERENCE_RUNS))
def test_a_reference_run_of_each_method_is_trained_again_to_the_bit(method, fork_server, this_machine, tmp_path):
    run = REFERENCE_RUNS[method]
    if other := differences(run.result.environment, this_machine):
        pytest.skip(f"{run.name} was trained on another machine; here are {'; '.join(other)}")
    again = train_again(fork_server, run, tmp_path)
    stored, now = (read_predictions(each.folder, each.result).logits for each in (run, again))
    np.testing.assert_array_equal(now, stored, f"{run.folder} is stale: today's code gives other predictions")


@pytest.mark.parametrize("name", RECIPES)
def test_ten_steps_of_each_method_give_the_stored_loss(name, fork_server, tmp_path):
    stored, result = json.loads(FILE.read_text(encoding="utf-8")), train_ten_steps(fork_server, name, tmp_path)
    assert result.method == name.split()[0]
    assert result.data.num_train == 10 * result.config["batch_size"]
    if result.model.weights.sha256 != stored["weights_sha256"][result.backbone]:
        pytest.fail(f"the weights of {result.backbone} changed: run python tests/ten_steps.py")
    assert result.history[0].train_loss == pytest.approx(stored["train_loss"][name], rel=0, abs=1e-4)


def test_every_method_of_the_reference_profiles_has_a_run():
    arms = [arm for profile in PROFILES for grid in profiles.PROFILES[profile] for arm in grid.arms]
    assert REFERENCE_RUNS.keys() == {arm.method for arm in arms if not arm.crossed}


def test_every_method_that_trains_by_steps_is_among_them():
    assert {name.split()[0] for name in RECIPES} == {name for name, method in METHODS.items() if method.has_steps}
