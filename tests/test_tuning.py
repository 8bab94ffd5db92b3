"""The choice among learning rates: further ones beyond an end, and seeds that take another seed's choice."""

import json
from types import SimpleNamespace

import pytest
import torch
from test_training import LRS, _configs, _examples, _head, _interrupt_at, _timeless

import train_cnn_head
from common.runs.result import RESULT_FILE, read_result
from common.runtime.errors import UserError
from common.training import loop
from common.training import sweep as sweeping
from common.training.checkpoint import Checkpoint
from common.training.loop import DivergedError, OptimizerConfig

TINY = {
    **{"dataset": "digits", "backbone": "test_resnet", "weights": "random", "image_size": 32, "precision": "fp32"},
    **{"train_limit": 60, "test_limit": 20, "workers": 0, "epochs": 1, "batch_size": 32, "feature_cache": False},
}
RATES = (1e-3, 3e-3, 1e-2)


@pytest.fixture
def sweep(monkeypatch):
    """Return a function that sweeps over rates whose accuracies are given, None for one that diverges."""

    def run(accuracies: dict[float, float | None], rates=RATES, extend=2):
        def fit(model, train, val, config, state, **_):
            if (accuracy := accuracies[config.lr]) is None:
                raise DivergedError("the loss became nan", [], 1.0)
            row = {"epoch": 1, "lr": config.lr, "val_loss": 1.0, "val_accuracy": accuracy, "seconds": 2.0}
            model.weights = {"lr": config.lr}
            return [row]

        monkeypatch.setattr(sweeping, "fit", fit)
        monkeypatch.setattr(sweeping, "copy_weights", lambda model: dict(model.weights))
        monkeypatch.setattr(sweeping, "set_weights", lambda model, weights: model.weights.update(weights))
        model = SimpleNamespace(weights={"lr": 0}, eval=lambda: None)
        checkpoint = SimpleNamespace(load=lambda: None, save=lambda *_: None)
        configs = [OptimizerConfig(lr=lr, epochs=1, batch_size=32, weight_decay=0.0, seed=0) for lr in rates]
        found = sweeping.sweep(model, SimpleNamespace(labels=[0] * 60), None, configs, checkpoint, extend=extend)
        return found, model.weights["lr"]

    return run


@pytest.mark.parametrize(
    ("accuracies", "further", "best", "words"),
    [
        ((0.5, 0.7, 0.6), {}, 3e-3, None),
        ((0.5, 0.6, 0.7), {3e-2: 0.6}, 1e-2, None),
        ((0.5, 0.6, 0.7), {3e-2: 0.8, 9e-2: 0.7}, 3e-2, None),
        ((0.5, 0.6, 0.7), {3e-2: None}, 1e-2, "learning rate 0.03 gave no result"),
        ((0.5, 0.6, 0.7), {3e-2: 0.8, 9e-2: 0.9}, 9e-2, "0.09, is the highest tried: a higher one may be better"),
        ((0.7, 0.6, 0.5), {3.33e-4: 0.8, 1.11e-4: 0.9}, 1.11e-4, "is the lowest tried: a lower one may be better"),
        ((0.7, 0.7, 0.5), {}, 1e-3, None),  # as good between the ends: nothing to be sought beyond them
        ((None, None, 0.5), {3e-2: 0.4}, 1e-2, "learning rate 0.001 gave no result"),
    ],
)
def test_a_best_rate_at_an_end_is_followed_outward_twice_at_most(sweep, accuracies, further, best, words):
    found, kept = sweep(dict(zip(RATES, accuracies, strict=True)) | further)
    assert [trial["lr"] for trial in found.trials] == [*RATES, *further]
    assert kept == found.history[0]["lr"] == best
    assert (words or "") in "; ".join(found.notes)
    assert bool(found.notes) == bool(words)
    assert found.train_seconds == sum(trial["seconds"] for trial in found.trials)


def test_without_extension_the_end_is_noted_and_of_one_rate_there_is_none(sweep):
    found, _ = sweep({1e-3: 0.5, 3e-3: 0.7}, rates=(1e-3, 3e-3), extend=0)
    assert len(found.trials) == 2 and "highest tried" in found.notes[0]
    found, _ = sweep({1e-3: 0.5}, rates=(1e-3,), extend=0)
    assert len(found.trials) == 1 and not found.notes


@pytest.mark.parametrize("stop", [1, 22, 41, 43, 60, 64, 80])  # 21 steps a rate, two rates and then two further ones
def test_a_sweep_with_further_rates_resumes_bitwise(stop, tmp_path, monkeypatch):
    def extended(folder):
        head, checkpoint = _head(), Checkpoint(folder / "checkpoint", {})
        return sweeping.sweep(head, _examples(100, 0), _examples(40, 1), _configs(*LRS), checkpoint, extend=2), head

    whole, expected = extended(tmp_path / "whole")
    assert len(whole.trials) == 4
    step = loop._Loop._step
    _interrupt_at(stop, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        extended(tmp_path / "stopped")
    monkeypatch.setattr(loop._Loop, "_step", step)
    resumed, head = extended(tmp_path / "stopped")
    assert _timeless(resumed) == _timeless(whole)
    assert all(torch.equal(head.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())


def _train(folder, **changed):
    config = train_cnn_head.Config(**TINY | {"lr": RATES, "extend": 1, "results_dir": folder} | changed)
    train_cnn_head.main(config)
    (run,) = (folder / "digits").iterdir()
    return run / f"seed{config.seed}"


def test_a_seed_takes_the_choice_of_another_under_the_same_name(tmp_path, capsys):
    first = read_result(_train(tmp_path, epochs=3) / RESULT_FILE)
    assert len(first.trials) >= 3
    second = read_result(_train(tmp_path, epochs=3, seed=1, tuned_on=0) / RESULT_FILE)
    chosen = first.history[0].lr
    assert [trial["lr"] for trial in second.trials] == [row.lr for row in second.history[:1]] == [chosen]
    assert f"learning rate {chosen:g}, chosen by seed 0" in capsys.readouterr().out
    assert second.config["tuned_on"] == 0 and second.config["lr"] == list(RATES)
    assert second.efficiency.train_seconds == pytest.approx(second.trials[0]["seconds"])


def test_what_no_seed_chose_cannot_be_taken(tmp_path):
    with pytest.raises(UserError, match=r"no finished run in .*seed0' yet; make it first, by the same command"):
        _train(tmp_path, seed=1, tuned_on=0)
    folder = _train(tmp_path)
    with pytest.raises(UserError, match=r"`tuned_on` 0: the run in .* has other settings \(extend 1 there, 0 asked"):
        _train(tmp_path, seed=1, tuned_on=0, extend=0)
    record = json.loads((folder / RESULT_FILE).read_text())
    (folder / RESULT_FILE).write_text(json.dumps(record | {"seed": 7}))
    with pytest.raises(UserError, match="was changed after it was written"):
        _train(tmp_path, seed=1, tuned_on=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tuned_on": 0}, "another seed than the run's own"),
        ({"tuned_on": -1}, "0 or more"),
        ({"extend": 11}, "0 to 10"),
        ({"extend": 1, "lr": (1e-3,)}, "0 where `lr` is a single rate"),
    ],
)
def test_wrong_values_are_refused_by_name(settings, words):
    with pytest.raises(UserError, match=words):
        train_cnn_head.Config(**TINY | {"lr": RATES} | settings)


def test_the_probe_takes_no_setting_of_the_choice_among_rates():
    with pytest.raises(UserError, match="`tuned_on` has no effect on head_probe"):
        train_cnn_head.main(train_cnn_head.Config(dataset="digits", head="probe", seed=1, tuned_on=0))
