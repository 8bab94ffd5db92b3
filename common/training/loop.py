"""The training loop of all methods: AdamW at one learning rate; the best epoch on validation is kept."""

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from common.models.compiler_later import without_compiler
from common.runtime import signals
from common.runtime.device import memory_errors
from common.runtime.progress import duration, progress
from common.runtime.seeding import numpy_generator, torch_seed
from common.training.checkpoint import optimizer_tensors, restore_optimizer, strip_prefix
from common.training.loaders import Loader
from common.training.predict import loss_and_accuracy, predict, split_batches

CHECKPOINT_SECONDS = 600
LONG_SECONDS = 1_800
TIMED_STEPS = 10  # after so many the rest of the training is estimated
Tensors = dict[str, torch.Tensor]
Row = dict[str, Any]
"""One epoch as a JSON-able record: the fields of ``runs.record.EpochRow``."""


class AdamW(torch.optim.AdamW):
    """PyTorch's, which starts a second earlier."""


without_compiler(AdamW, "add_param_group", "zero_grad", "step")
AdamW.step = torch.no_grad()(AdamW.step)  # of what the wrapper did, this is wanted


@dataclass(frozen=True)
class OptimizerConfig:
    """The hyper-parameters of one training; ``lr`` is the highest rate of its schedule."""

    lr: float
    epochs: int
    batch_size: int
    weight_decay: float
    seed: int
    schedule: str = "constant"
    warmup: float = 0.0
    decays_vectors: bool = True
    """Whether weight decay also shrinks tensors of one dimension: norms and biases."""

    def parameter_groups(self, parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
        """Return AdamW's groups of ``parameters``: those that decay, and those that do not."""
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter in parameters:
            decay = self.weight_decay if self.decays_vectors or parameter.ndim > 1 else 0.0
            groups.setdefault(decay, []).append(parameter)
        return [{"params": group, "weight_decay": decay} for decay, group in groups.items()]

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of optimiser step ``step``, the first being 0, of ``steps`` in all.

        It rises linearly to ``lr`` over the share ``warmup`` of all steps. Then it is constant, or ``cosine``: half a
        cosine that reaches 0 at the last step (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts).
        """
        rising = round(self.warmup * steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step + 1 - rising) / (steps - rising)))


class StateFile(Protocol):
    """Keeps the (JSON-able state, CPU tensors) of a training: a ``Checkpoint``, or a part of one."""

    def load(self) -> tuple[dict[str, Any], Tensors] | None: ...

    def save(self, state: dict[str, Any], tensors: Tensors) -> None: ...


class DivergedError(Exception):
    """The loss became NaN or infinite: ``where`` says so.

    ``seconds`` and the steps of so many ``images`` went into the epoch that was not finished.
    """

    def __init__(self, where: str, history: list[Row], seconds: float, images: int = 0) -> None:
        super().__init__(where)
        self.where, self.history, self.seconds, self.images = where, history, seconds, images


def fit(
    model: nn.Module,
    train: Loader,
    val: Loader,
    config: OptimizerConfig,
    checkpoint: StateFile,
    *,
    label: str = "",
    epochs_to_follow: int = 0,
) -> list[Row]:
    """Train the parameters of ``model`` that require gradients, and return a row for each epoch.

    The model ends in eval mode, with the weights of the epoch with the best validation accuracy (the earlier one on a
    tie). Goes on from ``checkpoint``, which is written at each epoch's end, every ten minutes, and on Ctrl-C or
    SIGTERM. On the CPU (and on CUDA with deterministic algorithms) a resumed training is bitwise an uninterrupted one.
    Losses are mean cross-entropies, accuracies shares of images; ``seconds`` counts the steps and the waiting for
    their data, not validation and checkpoints.

    Args:
        label: what stands before each epoch's printed line.
        epochs_to_follow: epochs of other trainings after this one, for the printed estimate of the time.

    Raises:
        DivergedError: the loss became NaN or infinite.
        UserError: the memory is too small, or the checkpoint is another run's.
    """
    loop = _Loop(model, train, val, config, checkpoint)
    with memory_errors(config.batch_size):
        while len(loop.state.history) < config.epochs:
            loop.train_epoch(epochs_to_follow)
            print(label + loop.end_epoch(), flush=True)
    set_weights(model, loop.best_weights)
    model.eval()
    return loop.state.history


@dataclass
class _State:
    """All that the rest of a training depends on, beside its weights, the best of them, and the optimiser."""

    history: list[Row] = field(default_factory=list)
    step: int = 0  # steps made in the epoch under way, and their sums:
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0


class _Loop:
    """The state of a training and the steps that change it."""

    def __init__(
        self, model: nn.Module, train: Loader, val: Loader, config: OptimizerConfig, checkpoint: StateFile
    ) -> None:
        self.model, self.train, self.val, self.config, self.checkpoint = model, train, val, config, checkpoint
        self.weights = trained_parameters(model)
        self.best_weights: Tensors = {}
        self.state = _State()
        self.unread: list[tuple[torch.Tensor, torch.Tensor, int]] = []  # loss and hits on the device, images: by step
        self.optimizer = AdamW(config.parameter_groups(self.weights.values()), lr=config.lr)
        if found := checkpoint.load():
            self._resume(*found)

    def train_epoch(self, epochs_to_follow: int) -> None:
        """Step once over all training images, or over those that the checkpoint left, in the epoch's own order."""
        state, config, epoch = self.state, self.config, len(self.state.history)
        order = numpy_generator(config.seed, "order", epoch=epoch).permutation(len(self.train.labels))
        batches = split_batches(order, config.batch_size)
        to_do = batches[state.step :]
        self.model.train()
        saved_at = time.monotonic()
        bar = progress(desc=f"epoch {epoch + 1}/{config.epochs}", total=len(batches), unit="step")
        bar.update(state.step)
        with bar, signals.hold_back() as interrupted:
            started = time.perf_counter()
            for step, (inputs, batch) in enumerate(zip(self.train.batches(to_do, epoch=epoch), to_do, strict=True), 1):
                self._step(inputs, self.train.labels[batch])
                is_due = interrupted() or time.monotonic() - saved_at > CHECKPOINT_SECONDS
                if is_due or step % steps_unread(inputs.device) == 0 or step == len(to_do):
                    self._read()
                state.seconds, started = state.seconds + time.perf_counter() - started, time.perf_counter()
                bar.update()
                if step == TIMED_STEPS:
                    epochs = config.epochs - epoch + epochs_to_follow
                    self._announce(epochs * len(batches) - state.step)
                if interrupted():
                    break
                if is_due:
                    self._save()
                    saved_at, started = time.monotonic(), time.perf_counter()
            if interrupted():
                self._save()

    def _step(self, inputs: torch.Tensor, labels: np.ndarray) -> None:
        state = self.state
        torch.manual_seed(torch_seed(self.config.seed, "dropout", epoch=len(state.history), step=state.step))
        targets = torch.from_numpy(labels).to(inputs.device)
        logits = self.model(inputs)  # (B, C)
        loss = functional.cross_entropy(logits, targets)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        state.step += 1
        self.unread.append((loss.detach(), (logits.argmax(1) == targets).sum(), len(labels)))

    def _read(self) -> None:
        """Add up the steps made since the last reading, once their device has finished them."""
        state, unread = self.state, self.unread
        if not unread:
            return
        values = torch.stack([torch.stack((loss.float(), hits.float())) for loss, hits, _ in unread]).tolist()
        first = state.step - len(unread)
        self.unread = []
        for step, ((loss, hits), (*_, images)) in enumerate(zip(values, unread, strict=True), first):
            state.loss_sum += self._require_finite("loss", loss, step) * images
            state.correct += int(hits)

    def _rate(self) -> float:
        """Return the rate of the step under way: a function of its number alone, so that resuming changes nothing."""
        steps_per_epoch = -(-len(self.train.labels) // self.config.batch_size)
        step = len(self.state.history) * steps_per_epoch + self.state.step
        return self.config.rate(step, self.config.epochs * steps_per_epoch)

    def end_epoch(self) -> str:
        """Validate, write the epoch's row, keep the weights where they are the best so far, save; return a line."""
        state, images = self.state, len(self.train.labels)
        val_loss, val_accuracy = self._validate()
        row = {
            "epoch": len(state.history) + 1,
            "lr": self.config.lr,
            "train_loss": state.loss_sum / images,
            "train_accuracy": state.correct / images,
            "val_loss": self._require_finite("validation loss", val_loss, state.step),
            "val_accuracy": val_accuracy,
            "seconds": state.seconds,
        }
        with signals.hold_back():  # what interrupts from here on waits for the save
            self.state = _State(history=[*state.history, row])
            if best_row(self.state.history) is row:
                self.best_weights = copy_weights(self.model)
            self._save()
        return (
            f"epoch {row['epoch']}/{self.config.epochs}  "
            f"train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.4f}  "
            f"val loss {val_loss:.4f} accuracy {val_accuracy:.4f}  {row['seconds']:.1f} s"
        )

    def _validate(self) -> tuple[float, float]:
        """Return (loss, accuracy) on the validation images; who does not wait for that loses no step of the epoch."""
        self.model.eval()
        try:
            logits = predict(self.model, self.val, batch_size=self.config.batch_size, desc="validation")
            return loss_and_accuracy(logits, self.val.labels)
        except (KeyboardInterrupt, signals.Terminated):
            self._save()
            raise

    def _save(self) -> None:
        self._read()
        tensors = {f"weights/{name}": value.cpu() for name, value in trained_tensors(self.model).items()}
        tensors |= {f"best/{name}": value for name, value in self.best_weights.items()}
        optimizer = optimizer_tensors(self.optimizer, self.weights)
        tensors |= {f"optimizer/{name}": value for name, value in optimizer.items()}
        self.checkpoint.save(asdict(self.state), tensors)

    def _resume(self, state: dict[str, Any], tensors: Tensors) -> None:
        self.state = _State(**state)
        set_weights(self.model, strip_prefix("weights/", tensors))
        self.best_weights = strip_prefix("best/", tensors)
        restore_optimizer(self.optimizer, self.weights, strip_prefix("optimizer/", tensors))

    def _announce(self, steps: int) -> None:
        """Print how long ``steps`` still to make will take, and what to try instead, where it is over half an hour."""
        seconds_per_step = self.state.seconds / self.state.step
        if (seconds := seconds_per_step * steps) > LONG_SECONDS:
            print(
                f"about {duration(seconds)} of training to go at {seconds_per_step:.2g} s a step; shorter: a train "
                "limit, fewer epochs, a smaller backbone, or a GPU. It may be stopped and resumed at any time",
                flush=True,
            )

    def _require_finite(self, what: str, value: float, step: int) -> float:
        if math.isfinite(value):
            return value
        state, epoch = self.state, len(self.state.history) + 1
        where = f"the {what} became {value} in epoch {epoch}, step {step}, at learning rate {self.config.lr:g}"
        images = min(state.step * self.config.batch_size, len(self.train.labels))
        raise DivergedError(where, state.history, state.seconds, images)


def steps_unread(device: torch.device) -> int:
    """Return in how many steps a device is asked once for its losses: on a GPU each question waits for all its work."""
    return 1 if device.type == "cpu" else TIMED_STEPS


def best_row(history: list[Row]) -> Row:
    """Return the epoch with the best validation accuracy, the earlier one on a tie."""
    return max(history, key=lambda row: row["val_accuracy"])


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of ``model`` that require gradients, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained_tensors(model: nn.Module) -> Tensors:
    """Return all that training changes in ``model``, by name: its trained parameters, and its running statistics.

    The latter move without a gradient; every other buffer is the same before and after.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    is_frozen = {name: not parameter.requires_grad for name, parameter in parameters.items()}
    return {name: tensor for name, tensor in model.state_dict().items() if not is_frozen.get(name)}


def copy_weights(model: nn.Module) -> Tensors:
    """Return ``trained_tensors`` as tensors of their own on the CPU."""
    return {name: tensor.cpu().clone() for name, tensor in trained_tensors(model).items()}


def set_weights(model: nn.Module, weights: Tensors) -> None:
    """Put what ``copy_weights`` returned back into ``model``."""
    for name, tensor in trained_tensors(model).items():
        tensor.copy_(weights[name])
