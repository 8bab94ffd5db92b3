"""A loss that is no number never becomes a result, memory that is short names the flag, and no part of a run's state
is saved in vain."""

import itertools
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from finished import ARMS, left
from test_training import LRS, _configs, _examples, _fit, _head, _interrupt_at, _timeless

from common.runtime.errors import UserError
from common.training import loop
from common.training.checkpoint import Checkpoint
from common.training.sweep import sweep

DIVERGES = 1e30  # of this AdamW makes infinite weights within two steps


def _same(one, two) -> bool:
    return all(torch.equal(one.state_dict()[name], tensor) for name, tensor in two.state_dict().items())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_rate_that_diverges_does_not_lose_the_others_work(place, tmp_path, capsys):
    sound = list(LRS)
    lrs = [*sound[:place], DIVERGES, *sound[place:]]
    expected, head = _fit(tmp_path / "sound")
    fit, found = _fit(tmp_path / "all", _configs(*lrs))
    assert [trial["lr"] for trial in fit.trials] == lrs
    lost = fit.trials.pop(place)
    assert (lost["best_epoch"], lost["val_loss"], lost["val_accuracy"]) == (None, None, None)
    assert lost["diverged"].startswith("the ") and f"at learning rate {DIVERGES:g}" in lost["diverged"]
    assert _timeless(fit) == _timeless(expected) and _same(found, head)
    assert f"{lost['diverged']}: this learning rate is abandoned" in capsys.readouterr().out


def test_a_diverged_rates_earlier_epochs_cannot_be_chosen(tmp_path, monkeypatch):
    accuracies = iter([0.5, 0.6, 0.4, 0.9, 0.9])
    monkeypatch.setattr(
        loop, "loss_and_accuracy", lambda *_: (1.0, value) if (value := next(accuracies, None)) else (math.nan, 0.0)
    )
    fit, head = _fit(tmp_path / "both")  # the second rate: 0.9, 0.9, then no number
    accuracies = iter([0.5, 0.6, 0.4])
    alone, expected = _fit(tmp_path / "alone", _configs(1e-2))
    assert _timeless(fit)[0] == _timeless(alone)[0] and fit.best_epoch == 2
    assert _same(head, expected)
    assert fit.train_seconds > sum(row["seconds"] for row in fit.history)  # what the lost rate cost is counted


@pytest.mark.parametrize("stop", [10, 21, 22, 24, 30, 43])
def test_a_run_with_a_diverged_rate_resumes_bitwise(stop, tmp_path, monkeypatch):
    settings = _configs(1e-2, DIVERGES, 3e-3)
    whole, expected = _fit(tmp_path / "whole", settings)
    step = loop._Loop._step
    _interrupt_at(stop, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path / "stopped", settings)
    monkeypatch.setattr(loop._Loop, "_step", step)
    resumed, head = _fit(tmp_path / "stopped", settings)
    assert _timeless(resumed) == _timeless(whole) and _same(head, expected)


@pytest.mark.parametrize("lrs", [(DIVERGES,), (DIVERGES, 1e31)])
def test_where_every_rate_diverges_there_is_no_result(lrs, tmp_path):
    for _ in range(2):  # the same command again
        with pytest.raises(
            UserError, match=r"became (nan|inf) in epoch 1, step \d+, at learning rate 1e\+3\d; try a lower"
        ):
            _fit(tmp_path, _configs(*lrs))


@pytest.mark.parametrize("arm", ARMS)
def test_a_script_that_diverges_stops_with_2_and_writes_no_result(fork_server, arm, tmp_path):
    script, argv = ARMS[arm]
    argv = [word for word in argv if word not in ("1e-2", "3e-2", "--lr") and not word.startswith(("--lr=", "--ext"))]
    argv += ["--results-dir", tmp_path, "--run-name=run"]
    ended = fork_server.run(script, [*argv, f"--lr={DIVERGES}"])
    assert ended.code == 2 and ended.err.count("\n") == 1
    for word in ("became", "epoch 1, step", "learning rate 1e+30", "try a lower --lr"):
        assert word in ended.err
    assert not list(tmp_path.rglob("result.json"))
    ended = fork_server.run(script, [*argv, "--overwrite", "--lr", DIVERGES, "1e-2"])
    assert ended.code == 0, ended.err
    record = json.loads(next(tmp_path.rglob("result.json")).read_text())
    assert record["trials"][0]["best_epoch"] is None and record["trials"][1]["best_epoch"]
    assert any(note.startswith("learning rate 1e+30 gave no result: the ") for note in record["notes"])
    assert fork_server.run("evaluate", [next(tmp_path.rglob("result.json")).parent]).code == 0


@pytest.mark.parametrize(
    ("arm", "flags", "advice"),
    [
        ("lora", ["--image-size=320", "--batch-size=60"], "batches of 60: free some, or train with --batch-size 30"),
        ("head", ["--image-size=2048"], "batches of 1: free some, or train with a smaller --image-size"),
    ],
)
def test_memory_that_is_short_is_a_line_that_says_what_to_make_smaller(fork_server, arm, flags, advice, tmp_path):
    script, argv = ARMS[arm]
    argv = [*argv, *flags, "--results-dir", tmp_path]
    ended = fork_server.run(script, argv, memory_bytes=150 * 2**20)
    assert ended.code == 2, ended.err
    assert ended.err.startswith(f"error: out of memory with {advice}") and ended.err.count("\n") == 1


@pytest.mark.parametrize("part", ["predict", "loss_and_accuracy"])
def test_an_interrupt_during_validation_loses_no_step(tmp_path, part, monkeypatch):
    whole, expected = _fit(tmp_path / "whole")
    compute, calls = getattr(loop, part), iter(range(100))

    def interrupted(*arguments, **options):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return compute(*arguments, **options)

    monkeypatch.setattr(loop, part, interrupted)
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path / "stopped")
    done, step = [], loop._Loop._step
    monkeypatch.setattr(loop._Loop, "_step", lambda *given: done.append(1) or step(*given))
    resumed, head = _fit(tmp_path / "stopped")
    assert len(done) == 4 * 7  # two of the six epochs of seven steps were made
    assert _timeless(resumed) == _timeless(whole) and _same(head, expected)


# Negative controls: what the tests of resuming would not notice, they would not guard


def _stopped_and_resumed(folder, stop, monkeypatch, change=lambda state, tensors: (state, tensors)):
    load = Checkpoint.load
    with monkeypatch.context() as patch:
        _interrupt_at(stop, patch)
        with pytest.raises(KeyboardInterrupt):
            _fit(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "load", lambda self: change(*load(self)))
        return _fit(folder)


@pytest.mark.parametrize("part", ["under_way/optimizer/", "best/", "under_way/best/", "trials", "history"])
def test_without_one_part_of_the_state_the_resumed_run_is_another(part, tmp_path, monkeypatch):
    accuracies = [0.9, 0.2, 0.3, 0.4, 0.5, 0.6] if part == "under_way/best/" else [0.6, 0.9, 0.5, 0.4, 0.3, 0.2]

    def scored(logits, labels):  # the best epoch is an early one, which later ones do not hide
        return 1.0, next(scores)

    monkeypatch.setattr(loop, "loss_and_accuracy", scored)
    scores = iter(accuracies)
    whole, expected = _fit(tmp_path / "whole")
    for lost in (False, True):
        stop = 24 if part in ("best/", "trials") else 10

        def change(state, tensors, lost=lost):
            if lost and part == "trials":
                state["trials"] = []
            if lost and part == "history":
                state["under_way"]["history"] = []
            return state, {name: torch.zeros_like(tensor) if lost and name.startswith(part) else tensor
                           for name, tensor in tensors.items()}  # fmt: skip

        scores = itertools.chain(accuracies, itertools.repeat(0.1))
        try:
            resumed, head = _stopped_and_resumed(tmp_path / f"{lost}", stop, monkeypatch, change)
            same = _timeless(resumed) == _timeless(whole) and _same(head, expected)
        except (IndexError, ValueError):
            same = False
        assert same is not lost


@pytest.mark.parametrize("name", ["torch_seed", "numpy_generator"])
def test_draws_from_a_stream_in_place_of_keys_make_the_resumed_run_another(name, tmp_path, monkeypatch):
    def stream():
        numbers = itertools.count()
        if name == "torch_seed":
            return lambda *_, **__: next(numbers)
        return lambda *_, **__: np.random.default_rng(next(numbers))

    monkeypatch.setattr(loop, name, stream())
    whole, expected = _fit(tmp_path / "whole")
    monkeypatch.setattr(loop, name, stream())
    step, steps = loop._Loop._step, iter(range(10_000))

    def interrupted(self, inputs, labels):
        if next(steps) == 10:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, inputs, labels)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop._Loop, "_step", interrupted)
        _fit(tmp_path / "stopped")
    monkeypatch.setattr(loop, name, stream())  # a new process starts its stream anew
    resumed, head = _fit(tmp_path / "stopped")
    assert not (_timeless(resumed) == _timeless(whole) and _same(head, expected))


def test_nothing_of_a_run_that_diverged_at_once_is_left_behind(tmp_path):
    with pytest.raises(UserError):
        sweep(_head(), _examples(100, 0), _examples(40, 1), _configs(DIVERGES), Checkpoint(tmp_path / "c", {}))
    assert left(tmp_path) == {}
