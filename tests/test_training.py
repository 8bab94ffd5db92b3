"""One loop for both arms: reproducible, resumable to the bit, selected on validation."""

import dataclasses
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

import train_cnn_head
import train_vit_lora
from common import cli
from common.models.heads import Head
from common.runs.predictions import read_predictions
from common.runs.result import read_result
from common.runtime import signals
from common.runtime.errors import UserError
from common.training import loop
from common.training.checkpoint import Checkpoint
from common.training.loaders import FeatureLoader
from common.training.loop import OptimizerConfig
from common.training.predict import loss_and_accuracy
from common.training.sweep import FitResult, sweep

LRS = (1e-2, 3e-3)
TINY = [
    *("--dataset=digits", "--weights=random", "--image-size=32", "--precision=fp32", "--lr", "1e-2", "3e-2"),
    *("--train-limit=100", "--test-limit=40", "--batch-size=32", "--epochs=2"),
]
ARMS = {
    "head": (train_cnn_head, ["--backbone=test_resnet", "--no-feature-cache"]),
    "lora": (train_vit_lora, ["--backbone=test_vit", "--rank=2"]),
}
AUGMENTED = ["--backbone=test_resnet", "--no-feature-cache", "--augment=light"]


def _examples(count: int, seed: int) -> FeatureLoader:
    labels = np.arange(count) % 4
    noise = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return FeatureLoader(noise + 1.5 * nn.functional.one_hot(torch.from_numpy(labels), 8), labels)


def _head() -> Head:
    torch.manual_seed(0)
    return Head(8, 4, hidden=6, dropout=0.3, activation=nn.ReLU())


def _configs(
    *lrs: float, epochs: int = 3, weight_decay: float = 0.01, seed: int = 0, **schedule
) -> list[OptimizerConfig]:
    return [OptimizerConfig(lr, epochs, 16, weight_decay, seed, **schedule) for lr in lrs]


def _fit(folder, configs=None, identity=None) -> tuple[FitResult, Head]:
    head = _head()
    checkpoint = Checkpoint(folder / "checkpoint", identity or {"run": 1})
    return sweep(head, _examples(100, 0), _examples(40, 1), configs or _configs(*LRS), checkpoint), head


def _timeless(fit: FitResult) -> tuple:
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in fit.history]
    trials = [{key: value for key, value in trial.items() if key != "seconds"} for trial in fit.trials]
    return rows, trials, fit.best_epoch


def _interrupt_at(stop: int, patch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C arrive while step number ``stop`` of all that follow is under way."""
    steps, step = iter(range(10_000)), loop._Loop._step

    def interrupted(self, inputs, labels):
        if next(steps) == stop:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, inputs, labels)

    patch.setattr(loop._Loop, "_step", interrupted)


class _Killed(Exception):
    """Stands for a kill: nothing in the code under test catches it."""


COSINE = {"schedule": "cosine", "warmup": 0.2}


def test_the_rate_is_that_of_pytorchs_own_schedules():
    steps = 40
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 8, total_iters=7)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - 8)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [rising, falling], milestones=[7])
    (config,) = _configs(0.5, **COSINE)
    for step in range(steps):
        assert config.rate(step, steps) == pytest.approx(both.get_last_lr()[0], abs=1e-9), step
        optimizer.step()
        both.step()
    assert config.rate(steps - 1, steps) == pytest.approx(0, abs=1e-12)  # the last step
    (constant,) = _configs(0.5)
    assert {constant.rate(step, steps) for step in range(steps)} == {0.5}
    (late,) = _configs(0.5, warmup=0.5)
    assert [late.rate(step, 4) for step in range(4)] == [0.25, 0.5, 0.5, 0.5]


def test_the_loop_steps_at_the_rates_of_its_schedule(tmp_path, monkeypatch):
    seen, step = [], loop.AdamW.step

    def spied(self, *given):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *given)

    monkeypatch.setattr(loop.AdamW, "step", spied)
    (config,) = _configs(1e-2, **COSINE)
    _fit(tmp_path, [config])
    assert seen == [config.rate(number, 21) for number in range(21)] and len(set(seen)) > 15


@pytest.mark.parametrize("schedule", [{}, COSINE], ids=["constant", "cosine"])
@pytest.mark.parametrize("stop", [0, 1, 3, 6, 7, 8, 20, 21, 25, 41])
def test_a_run_that_was_stopped_at_any_step_resumes_bitwise(tmp_path, stop, schedule, monkeypatch):
    configs = _configs(*LRS, **schedule)
    whole, expected = _fit(tmp_path / "whole", configs)
    step = loop._Loop._step
    _interrupt_at(stop, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path / "stopped", configs)
    again = []
    monkeypatch.setattr(loop._Loop, "_step", lambda *given: again.append(1) or step(*given))
    resumed, head = _fit(tmp_path / "stopped", configs)
    assert len(again) == 2 * 3 * 7 - (stop + 1)  # the step under way was finished and saved
    assert _timeless(resumed) == _timeless(whole)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(head.state_dict()[name], tensor), name


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_a_run_that_was_killed_goes_on_from_the_last_epoch(tmp_path, epochs, monkeypatch):
    whole, expected = _fit(tmp_path / "whole")
    saves = iter(range(100))
    save = Checkpoint.save

    def killed(self, state, tensors):
        save(self, state, tensors)
        if next(saves) == epochs:
            raise _Killed

    monkeypatch.setattr(Checkpoint, "save", killed)
    with pytest.raises(_Killed):
        _fit(tmp_path / "killed")
    monkeypatch.setattr(Checkpoint, "save", save)
    resumed, head = _fit(tmp_path / "killed")
    assert _timeless(resumed) == _timeless(whole)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(head.state_dict()[name], tensor), name


@pytest.mark.parametrize("stop", [5, 12, 30])
def test_a_run_that_was_killed_within_an_epoch_goes_on_from_the_last_regular_checkpoint(tmp_path, stop, monkeypatch):
    whole, expected = _fit(tmp_path / "whole")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    steps, done = iter(range(10_000)), []
    step = loop._Loop._step

    def killed(self, inputs, labels):
        if next(steps) == stop:
            raise _Killed
        step(self, inputs, labels)

    def counted(self, inputs, labels):
        done.append(1)
        step(self, inputs, labels)

    monkeypatch.setattr(loop._Loop, "_step", killed)
    with pytest.raises(_Killed):
        _fit(tmp_path / "killed")
    monkeypatch.setattr(loop._Loop, "_step", counted)
    resumed, head = _fit(tmp_path / "killed")
    assert len(done) == 2 * 3 * 7 - stop  # no step is made twice
    assert _timeless(resumed) == _timeless(whole)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(head.state_dict()[name], tensor), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_an_epoch_is_saved_loses_no_step(tmp_path, number, monkeypatch):
    save, saves = Checkpoint.save, iter(range(100))

    def interrupted(self, state, tensors):
        if next(saves) == 1:
            os.kill(os.getpid(), number)
        save(self, state, tensors)

    before = {each: signal.getsignal(each) for each in signals.END_SIGNALS}
    monkeypatch.setattr(Checkpoint, "save", interrupted)
    signals.raise_on_sigterm()
    try:
        with pytest.raises((KeyboardInterrupt, signals.Terminated)):
            _fit(tmp_path)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    state, _ = Checkpoint(tmp_path / "checkpoint", {"run": 1}).load()
    assert len(state["under_way"]["history"]) == 2


@pytest.mark.parametrize("part", ["weights/", "optimizer/exp_avg/", "optimizer/step/", "step", "loss_sum", "correct"])
def test_no_part_of_the_state_is_there_in_vain(tmp_path, part, monkeypatch):
    """Leave one part out of the checkpoint: the resumed run must come out different, or fail."""
    whole, expected = _fit(tmp_path / "whole")
    step, steps = loop._Loop._step, iter(range(10_000))

    def interrupted(self, inputs, labels):
        if next(steps) == 10:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, inputs, labels)

    monkeypatch.setattr(loop._Loop, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path / "stopped")
    monkeypatch.setattr(loop._Loop, "_step", step)
    load = Checkpoint.load

    def partial(self):
        state, tensors = load(self)
        blank = dataclasses.asdict(loop._State())
        if part in blank:
            state["under_way"][part] = blank[part]
        prefix = f"under_way/{part}"
        lost = {name: torch.zeros_like(tensor) for name, tensor in tensors.items() if name.startswith(prefix)}
        return state, tensors | lost

    monkeypatch.setattr(Checkpoint, "load", partial)
    resumed, head = _fit(tmp_path / "stopped")
    same_weights = all(torch.equal(head.state_dict()[n], t) for n, t in expected.state_dict().items())
    assert not (same_weights and _timeless(resumed) == _timeless(whole))


def test_a_damaged_checkpoint_is_not_used_and_anothers_is_refused(tmp_path, capsys):
    whole, _ = _fit(tmp_path)
    path = tmp_path / "checkpoint"
    content = path.read_bytes()
    for damaged in (content[:-1], content[:100], b"", content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]):
        path.write_bytes(damaged)
        again, _ = _fit(tmp_path)
        assert "damaged and not used" in capsys.readouterr().out
        assert _timeless(again) == _timeless(whole)
    with pytest.raises(UserError, match="run 1 there, 2 now") as refused:
        _fit(tmp_path, identity={"run": 2})
    # The file is named and not its folder, where a finished run may lie.
    assert str(refused.value).startswith(f"{str(path)!r} is of an unfinished run")
    assert "remove that file" in str(refused.value)


def test_of_several_learning_rates_each_is_trained_as_if_alone_and_the_best_is_kept(tmp_path):
    both, head = _fit(tmp_path / "both")
    alone = [_fit(tmp_path / str(lr), _configs(lr)) for lr in LRS]
    assert _timeless(both)[1] == [_timeless(fit)[1][0] for fit, _ in alone]
    best = max(range(2), key=lambda trial: both.trials[trial]["val_accuracy"])
    assert _timeless(both)[0] == _timeless(alone[best][0])[0]
    assert all(torch.equal(head.state_dict()[n], t) for n, t in alone[best][1].state_dict().items())


def test_one_learning_rate_alone_needs_no_sweep(tmp_path):
    (config,) = _configs(LRS[0])
    swept, expected = _fit(tmp_path, [config])
    head = _head()
    history = loop.fit(head, _examples(100, 0), _examples(40, 1), config, Checkpoint(tmp_path / "alone", {}))
    assert [row["val_loss"] for row in history] == [row["val_loss"] for row in swept.history]
    assert all(torch.equal(head.state_dict()[n], t) for n, t in expected.state_dict().items())


def test_the_weights_kept_are_those_of_the_best_epoch_and_of_the_earlier_on_a_tie(tmp_path, monkeypatch):
    accuracies = iter([0.5, 0.7, 0.7])
    monkeypatch.setattr(loop, "loss_and_accuracy", lambda logits, labels: (1.0, next(accuracies)))
    fit, head = _fit(tmp_path / "a", _configs(1e-2))
    assert (fit.best_epoch, len(fit.history)) == (2, 3)
    seconds = sum(row["seconds"] for row in fit.history)
    assert fit.trials == [{"lr": 1e-2, "best_epoch": 2, "val_loss": 1.0, "val_accuracy": 0.7, "seconds": seconds}]
    accuracies = iter([0.5, 0.7])
    _, two_epochs = _fit(tmp_path / "b", _configs(1e-2, epochs=2))
    assert all(torch.equal(head.state_dict()[n], t) for n, t in two_epochs.state_dict().items())


def test_each_epoch_visits_every_image_once_in_an_order_of_its_own(tmp_path, monkeypatch):
    orders, batches = [], FeatureLoader.batches

    def recorded(self, positions, *, epoch):
        if len(self.labels) == 100:
            orders.append(tuple(np.concatenate(positions).tolist()))
        return batches(self, positions, epoch=epoch)

    monkeypatch.setattr(FeatureLoader, "batches", recorded)
    _fit(tmp_path / "0")
    _fit(tmp_path / "1", _configs(*LRS, seed=1))
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert orders[0:3] == orders[3:6]  # both learning rates see the same orders
    assert len(set(orders[0:3] + orders[6:9])) == 6


def test_the_recorded_loss_and_accuracy_are_those_of_all_training_images(tmp_path):
    train, val = _examples(100, 0), _examples(40, 1)
    head = Head(8, 4, hidden=6, dropout=0.0, activation=nn.ReLU())
    with torch.no_grad():
        before = {split: loss_and_accuracy(head(x.features).numpy(), x.labels)
                  for split, x in (("train", train), ("val", val))}  # fmt: skip
    configs = _configs(1e-30, weight_decay=0.0)  # so small a rate that nothing moves
    fit = sweep(head, train, val, configs, Checkpoint(tmp_path / "checkpoint", {}))
    assert [row["epoch"] for row in fit.history] == [1, 2, 3]
    for row in fit.history:
        for split, (loss, accuracy) in before.items():
            assert row[f"{split}_loss"] == pytest.approx(loss, rel=1e-6)
            assert row[f"{split}_accuracy"] == accuracy
        assert row["lr"] == 1e-30
    assert fit.train_seconds == sum(row["seconds"] for row in fit.history) > 0
    assert fit.images_per_second == pytest.approx(300 / fit.train_seconds)


def test_dropout_is_on_in_every_step_and_off_whenever_the_model_is_judged(tmp_path):
    modes = []
    head = _head()
    head.register_forward_pre_hook(lambda module, _: modes.append((torch.is_grad_enabled(), module.dropout.training)))
    sweep(head, _examples(100, 0), _examples(40, 1), _configs(*LRS), Checkpoint(tmp_path / "checkpoint", {}))
    assert set(modes) == {(True, True), (False, False)}
    assert not head.training


def test_a_loss_that_is_not_a_number_stops_the_run_and_says_where(tmp_path):
    train = _examples(100, 0)
    train.features[50] = math.inf
    checkpoint = Checkpoint(tmp_path / "checkpoint", {})
    with pytest.raises(UserError, match=r"the loss became (nan|inf) in epoch 1, step \d+, at learning rate 0.01"):
        sweep(_head(), train, _examples(40, 1), _configs(0.01), checkpoint)


@pytest.mark.parametrize("diverges", [False, True])
def test_losses_that_are_read_every_few_steps_are_those_of_each_step(diverges, tmp_path, monkeypatch):
    train, ended = _examples(100, 0), []
    if diverges:
        train.features[50] = math.inf
    for unread in (1, 3):
        monkeypatch.setattr(loop, "steps_unread", lambda device, unread=unread: unread)
        checkpoint = Checkpoint(tmp_path / f"checkpoint{unread}", {})
        try:
            history = sweep(_head(), train, _examples(40, 1), _configs(0.01), checkpoint).history
            ended.append([{**row, "seconds": 0} for row in history])
        except UserError as error:
            ended.append(str(error))
    assert ended[0] == ended[1] and isinstance(ended[0], str) is diverges


def test_a_validation_loss_that_is_not_a_number_is_no_epoch(tmp_path):
    val = _examples(40, 1)
    val.features[3] = math.nan
    with pytest.raises(UserError, match=r"the validation loss became nan in epoch 1, step 7, at learning rate 0.01"):
        sweep(_head(), _examples(100, 0), val, _configs(0.01), Checkpoint(tmp_path / "checkpoint", {}))
    assert not (tmp_path / "checkpoint").exists()


def _run(arm: str, folder, *flags: str):
    script, own = ARMS[arm]
    assert cli.run(script.main, script.Config, [*TINY, *own, "--results-dir", str(folder), *flags]) == 0
    (seed,) = folder.glob("digits/*/seed*")
    return seed


@pytest.mark.parametrize("arm", ARMS)
def test_the_same_seed_gives_the_same_bits_and_another_seed_another_result(arm, tmp_path):
    first, again, other = (_run(arm, tmp_path / str(n), f"--seed={seed}") for n, seed in enumerate((1, 1, 2)))
    one, two = (read_result(run / "result.json") for run in (first, again))
    assert one.seed == one.config["seed"] == 1
    hashes = [{n: f.sha256 for n, f in each.files.items() if not n.endswith("config.json")} for each in (one, two)]
    assert hashes[0] == hashes[1]
    assert one.test == two.test
    third = read_result(other / "result.json")
    assert third.files["predictions.npz"] != one.files["predictions.npz"]
    logits = [read_predictions(run, read_result(run / "result.json")) for run in (first, other)]
    assert (logits[0].indices == logits[1].indices).all()  # other seeds see the same images
    assert (logits[0].val_indices == logits[1].val_indices).all()


@pytest.mark.parametrize(
    ("arm", "number", "code", "at"),  # 5: the second step of the second epoch; 7: its last
    [
        ("head", signal.SIGTERM, 143, 5),
        ("lora", signal.SIGINT, 130, 5),
        ("augmented", signal.SIGINT, 130, 5),
        ("augmented", signal.SIGINT, 130, 7),
    ],
)
def test_an_interrupted_script_resumes_to_the_same_predictions(arm, number, code, at, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ARMS, "augmented", (train_cnn_head, AUGMENTED))
    whole = _run(arm, tmp_path / "whole")
    script, own = ARMS[arm]
    argv = [*TINY, *own, "--results-dir", str(tmp_path / "stopped")]
    step, steps = loop._Loop._step, iter(range(10_000))

    def interrupted(self, inputs, labels):
        if next(steps) == at:
            os.kill(os.getpid(), number)
        step(self, inputs, labels)

    monkeypatch.setattr(loop._Loop, "_step", interrupted)
    assert cli.run(script.main, script.Config, argv) == code
    assert [path.name for path in (tmp_path / "stopped").rglob("checkpoint")] == ["checkpoint"]
    monkeypatch.setattr(loop._Loop, "_step", step)
    (stopped,) = (tmp_path / "stopped").glob("digits/*")
    assert cli.run(script.main, script.Config, [*argv, f"--run-name={stopped.name}", "--weight-decay=0.5"]) == 2
    said = capsys.readouterr().err
    assert "unfinished run with other settings (weight_decay 0.01 there, 0.5 now); remove that file" in said
    resumed = _run(arm, tmp_path / "stopped")
    assert "resuming after" in capsys.readouterr().out
    assert (resumed / "predictions.npz").read_bytes() == (whole / "predictions.npz").read_bytes()
    assert not (resumed / "checkpoint").exists()
    json.loads((resumed / "result.json").read_text())


def test_a_checkpoint_goes_on_with_its_own_number_of_threads(tmp_path, capsys):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        Checkpoint(tmp_path / "checkpoint", {"run": 1}).save({"at": 3}, {})
        torch.set_num_threads(2)
        assert Checkpoint(tmp_path / "checkpoint", {"run": 1}).load() == ({"at": 3}, {})
        assert torch.get_num_threads() == 1
        assert "going on with 1 CPU threads, as the run began" in capsys.readouterr().out
    finally:
        torch.set_num_threads(before)


def test_a_checkpoint_from_before_a_setting_was_there_had_its_published_value(tmp_path):
    Checkpoint(tmp_path / "checkpoint", {"run": 1}).save({"at": 3}, {})
    absent = {"schedule": "constant"}
    assert Checkpoint(tmp_path / "checkpoint", {"run": 1, "schedule": "constant"}, absent).load() == ({"at": 3}, {})
    with pytest.raises(UserError, match="schedule 'constant' there, 'cosine' now"):
        Checkpoint(tmp_path / "checkpoint", {"run": 1, "schedule": "cosine"}, absent).load()


def test_threads_are_set_and_recorded_and_make_no_other_run(tmp_path, capsys):
    before = torch.get_num_threads()
    argv = [*TINY, "--backbone=test_resnet", "--no-feature-cache", f"--results-dir={tmp_path}"]
    try:
        assert cli.run(train_cnn_head.main, train_cnn_head.Config, [*argv, "--threads=1"]) == 0
    finally:
        torch.set_num_threads(before)
    (path,) = tmp_path.rglob("result.json")
    assert read_result(path).environment["threads"] == 1
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, [*argv, "--threads=2"]) == 0
    assert "already finished" in capsys.readouterr().out


@pytest.mark.parametrize("arm", ARMS)
def test_one_of_several_processes_that_torchrun_started_refuses_in_a_line(arm, tmp_path, monkeypatch, capsys):
    script, own = ARMS[arm]
    argv = [*TINY, *own, "--results-dir", str(tmp_path)]
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert cli.run(script.main, script.Config, argv) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "8 processes were started for one run (torchrun, WORLD_SIZE 8)" in said
    assert "--jobs" in said and "--executor slurm" in said
    assert not list(tmp_path.iterdir())


def test_features_are_kept_where_the_user_wants_them(tmp_path, capsys):
    argv = [*TINY, "--backbone=test_resnet", f"--cache-dir={tmp_path / 'cache'}", f"--results-dir={tmp_path}"]
    names = []
    for seed in range(2):
        assert cli.run(train_cnn_head.main, train_cnn_head.Config, [*argv, f"--seed={seed}"]) == 0
        (path,) = tmp_path.rglob(f"seed{seed}/result.json")
        assert read_result(path).efficiency.feature_cache_hit == bool(seed)
        names.append(path.parent.parent.name)
    assert len(set(names)) == 1 and len(list((tmp_path / "cache" / "features").glob("*/*.safetensors"))) == 3
