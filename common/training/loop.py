"""The training loop of both methods: AdamW at a constant rate; the epoch with the best validation accuracy is kept."""

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from common.runtime import signals
from common.runtime.device import memory_errors, synchronize
from common.runtime.errors import UserError
from common.runtime.progress import duration, progress
from common.runtime.seeding import numpy_generator, torch_seed
from common.training.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer, strip_prefix
from common.training.loaders import Loader
from common.training.predict import loss_and_accuracy, predict, split_batches

CHECKPOINT_SECONDS = 600


@dataclass(frozen=True)
class OptimizerConfig:
    """The hyper-parameters of the loop. Several learning rates are tried one after the other from the same start."""

    lrs: tuple[float, ...]
    epochs: int
    batch_size: int
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class FitResult:
    """What training found: the winning learning rate's history, one record for each rate, and the cost of them all."""

    history: list[dict[str, Any]]
    trials: list[dict[str, Any]]
    best_epoch: int
    train_seconds: float
    images_per_second: float


def fit(model: nn.Module, train: Loader, val: Loader, settings: OptimizerConfig, checkpoint: Checkpoint) -> FitResult:
    """Train the parameters of ``model`` that require gradients; it ends in eval mode with the best of them.

    Resumes from ``checkpoint``, which is written at each epoch's end, every ten minutes, and on Ctrl-C or SIGTERM.
    On the CPU (and on CUDA with deterministic algorithms) a resumed run is bitwise an uninterrupted one.
    Losses are mean cross-entropies, accuracies shares of images; ``seconds`` counts the steps and the waiting for
    their data, not validation and checkpoints. Of several learning rates one that diverges is recorded as a trial
    without a result, and none of its epochs can be chosen.

    Raises:
        UserError: the loss became NaN or infinite at every learning rate, the memory is too small, or the checkpoint
            is another run's.
    """
    loop = _Loop(model, train, val, settings, checkpoint)
    with memory_errors(settings.batch_size):
        for trial, _ in enumerate(settings.lrs):
            loop.start_trial(trial)
            while not loop.trial_is_over():
                loop.train_epoch()
                loop.end_epoch()
    return loop.finish()


class _Diverged(Exception):
    """The loss became NaN or infinite; the message says where."""


@dataclass
class _State:
    """All that the rest of a run depends on, beside the trainable weights, the best weights and the optimiser."""

    histories: list[list[dict[str, Any]]] = field(default_factory=list)  # one for each learning rate begun
    diverged: list[str | None] = field(default_factory=list)  # where each of them did, None where it did not
    seconds_lost: float = 0.0  # in the epochs within which a learning rate diverged
    step: int = 0  # steps made in the epoch under way, and their sums:
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0

    def best(self) -> tuple[int, int]:
        """(trial, epoch) with the best validation accuracy, the earlier one on a tie; a diverged trial has none."""
        sound = [t for t, where in enumerate(self.diverged) if where is None]
        rows = [(t, e, row) for t in sound for e, row in enumerate(self.histories[t])]
        return max(rows, key=lambda found: found[2]["val_accuracy"])[:2]


class _Loop:
    """The state of a training run and the steps that change it."""

    def __init__(
        self, model: nn.Module, train: Loader, val: Loader, settings: OptimizerConfig, checkpoint: Checkpoint
    ) -> None:
        self.model, self.train, self.val, self.settings, self.checkpoint = model, train, val, settings, checkpoint
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.initial = self._copy_weights()
        self.best_weights: dict[str, torch.Tensor] = {}  # of the learning rates that are done with
        self.trial_weights: dict[str, torch.Tensor] = {}  # the best of the one under way, which may yet diverge
        self.state = _State()
        self._resume()

    def start_trial(self, trial: int) -> None:
        """Begin with learning rate number ``trial``, unless the checkpoint is already at it or beyond."""
        if trial < len(self.state.histories):
            return
        self._set_weights(self.initial)
        self.trial_weights = {}
        self.state.histories.append([])
        self.state.diverged.append(None)
        self._new_optimizer()

    def trial_is_over(self) -> bool:
        """Whether the learning rate under way has had all its epochs, or diverged before a restart."""
        return self.state.diverged[-1] is not None or len(self.state.histories[-1]) == self.settings.epochs

    def train_epoch(self) -> None:
        """Step once over all training images, or over those that the checkpoint left, in the epoch's own order."""
        state, seed, epoch = self.state, self.settings.seed, len(self.state.histories[-1])
        order = numpy_generator(seed, "order", epoch=epoch).permutation(len(self.train.labels))
        positions = split_batches(order, self.settings.batch_size)
        self.model.train()
        saved_at = time.monotonic()
        bar = progress(desc=f"epoch {epoch + 1}/{self.settings.epochs}", total=len(positions), unit="step")
        bar.update(state.step)
        with bar, signals.hold_back() as interruption:
            started, first = time.perf_counter(), state.step
            for inputs in self.train.batches(positions[first:], epoch=epoch):
                torch.manual_seed(torch_seed(seed, "dropout", epoch=epoch, step=state.step))
                try:
                    self._step(inputs, self.train.labels[positions[state.step]])
                except _Diverged as error:
                    self._give_trial_up(str(error))
                    break
                now = time.perf_counter()
                state.seconds, started = state.seconds + now - started, now
                bar.update()
                if state.step - first == 10:
                    self._announce(len(positions))
                if interruption():
                    break
                if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    self._save()
                    saved_at = time.monotonic()
                    started = time.perf_counter()
            if error := interruption():
                self._save()
                raise error

    def _step(self, inputs: torch.Tensor, labels: np.ndarray) -> None:
        targets = torch.from_numpy(labels).to(inputs.device)
        logits = self.model(inputs)  # (B, C)
        loss = functional.cross_entropy(logits, targets)
        value = loss.item()
        if not math.isfinite(value):
            raise _Diverged(self._not_finite("loss", value))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        synchronize(inputs.device)
        self.state.step += 1
        self.state.loss_sum += value * len(labels)
        self.state.correct += int((logits.argmax(1) == targets).sum())

    def end_epoch(self) -> None:
        """Validate, write the epoch's row, keep the weights where they are the best so far, save all that."""
        if self.trial_is_over():  # it diverged
            return
        state, images = self.state, len(self.train.labels)
        val_loss, val_accuracy = self._validate()
        if not math.isfinite(val_loss):
            self._give_trial_up(self._not_finite("validation loss", val_loss))
            return
        trial, history = len(state.histories) - 1, state.histories[-1]
        row = {
            "epoch": len(history) + 1,
            "lr": self._lr,
            "train_loss": state.loss_sum / images,
            "train_accuracy": state.correct / images,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "seconds": state.seconds,
        }
        history.append(row)
        if _best_row(history) is row:
            self.trial_weights = self._copy_weights()
        if self.trial_is_over() and state.best()[0] == trial:
            self.best_weights, self.trial_weights = self.trial_weights, {}
        state.step, state.loss_sum, state.correct, state.seconds = 0, 0.0, 0, 0.0
        self._save()
        print(epoch_line(row, epochs=self.settings.epochs, several_lrs=len(self.settings.lrs) > 1), flush=True)

    def finish(self) -> FitResult:
        """Put the best weights into the model and return the record of the whole training."""
        self._set_weights(self.best_weights)
        self.model.eval()
        state = self.state
        trial, epoch = state.best()
        rows = [row for history in state.histories for row in history]
        seconds = sum(row["seconds"] for row in rows)
        trials = zip(self.settings.lrs, state.histories, state.diverged, strict=True)
        return FitResult(
            history=state.histories[trial],
            trials=[_trial_record(lr, history, diverged) for lr, history, diverged in trials],
            best_epoch=epoch + 1,
            train_seconds=seconds + state.seconds_lost,
            images_per_second=len(rows) * len(self.train.labels) / seconds,
        )

    def _give_trial_up(self, where: str) -> None:
        """Record that the learning rate under way diverged; raises UserError where none is left to try."""
        state = self.state
        if len(state.histories) == len(self.settings.lrs) and None not in state.diverged[:-1]:
            raise UserError(f"{where}; try a lower `lr`, or `precision` fp32; nothing was kept of this step")
        state.diverged[-1] = where
        state.seconds_lost += state.seconds
        state.step, state.loss_sum, state.correct, state.seconds = 0, 0.0, 0, 0.0
        self._save()
        print(f"{where}: this rate is given up", flush=True)

    def _validate(self) -> tuple[float, float]:
        """Return (loss, accuracy) on the validation images; who does not wait for that loses no step of the epoch."""
        self.model.eval()
        try:
            logits = predict(self.model, self.val, batch_size=self.settings.batch_size, desc="validation")
        except (KeyboardInterrupt, signals.Terminated):
            self._save()
            raise
        return loss_and_accuracy(logits, self.val.labels)

    @property
    def _lr(self) -> float:
        return self.settings.lrs[len(self.state.histories) - 1]

    def _new_optimizer(self) -> None:
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=self._lr, weight_decay=self.settings.weight_decay)

    def _copy_weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().cpu().clone() for name, p in self.weights.items()}

    def _set_weights(self, values: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.weights.items():
                parameter.copy_(values[name])

    def _save(self) -> None:
        tensors = {f"weights/{name}": value for name, value in self._copy_weights().items()}
        tensors |= {f"best/{name}": value for name, value in self.best_weights.items()}
        tensors |= {f"trial/{name}": value for name, value in self.trial_weights.items()}
        optimizer = optimizer_tensors(self.optimizer, self.weights)
        tensors |= {f"optimizer/{name}": value for name, value in optimizer.items()}
        self.checkpoint.save(asdict(self.state), tensors)

    def _resume(self) -> None:
        found = self.checkpoint.load()
        if found is None:
            return
        record, tensors = found
        if record.keys() != asdict(self.state).keys():
            print("the checkpoint is of another version of this code and not used; the run starts from the beginning")
            return
        self.state = _State(**record)
        self._set_weights(strip_prefix("weights/", tensors))
        self.best_weights, self.trial_weights = strip_prefix("best/", tensors), strip_prefix("trial/", tensors)
        self._new_optimizer()
        restore_optimizer(self.optimizer, self.weights, strip_prefix("optimizer/", tensors))
        rows = sum(map(len, self.state.histories))
        print(f"resuming after {rows} finished epochs and {self.state.step} steps", flush=True)

    def _announce(self, steps_per_epoch: int) -> None:
        epochs = self.settings.epochs * len(self.settings.lrs) - sum(map(len, self.state.histories))
        pace = self.state.seconds / self.state.step
        if estimate := long_training(pace, epochs * steps_per_epoch - self.state.step):
            print(estimate, flush=True)

    def _not_finite(self, what: str, value: float) -> str:
        epoch = len(self.state.histories[-1]) + 1
        return f"the {what} became {value} in epoch {epoch}, step {self.state.step}, at learning rate {self._lr:g}"


def _best_row(history: list[dict[str, Any]]) -> dict[str, Any]:
    return max(history, key=lambda row: row["val_accuracy"])  # the first on a tie


def _trial_record(lr: float, history: list[dict[str, Any]], diverged: str | None) -> dict[str, Any]:
    """Return what a learning rate gave: its best epoch, or None and where it diverged."""
    if diverged:
        return {"lr": lr, "best_epoch": None, "val_loss": None, "val_accuracy": None, "diverged": diverged}
    best = _best_row(history)
    return {"lr": lr, "best_epoch": best["epoch"], "val_loss": best["val_loss"], "val_accuracy": best["val_accuracy"]}


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
        "On few images try more epochs, a smaller batch size or a higher learning rate"
    )


def long_training(seconds_per_step: float, steps: int) -> str | None:
    """Return the estimate for ``steps`` still to make, and what to try instead, where it is over half an hour."""
    seconds = seconds_per_step * steps
    if seconds <= LONG_SECONDS:
        return None
    return (
        f"about {duration(seconds)} of training to go at {seconds_per_step:.2g} s a step; shorter: a train limit, "
        "fewer epochs, a smaller backbone, or a GPU. It may be stopped and resumed at any time"
    )


def epoch_line(row: dict[str, Any], *, epochs: int, several_lrs: bool) -> str:
    """Return one line for a row of the history."""
    lr = f"lr {row['lr']:g}  " if several_lrs else ""
    return (
        f"{lr}epoch {row['epoch']}/{epochs}  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.4f}  "
        f"val loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.4f}  {row['seconds']:.1f} s"
    )
