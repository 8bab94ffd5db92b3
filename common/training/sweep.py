"""Several learning rates, each trained as if alone and from the same start; the best on validation is kept."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from common.runtime.errors import UserError
from common.training.checkpoint import Checkpoint, strip_prefix
from common.training.loaders import Loader
from common.training.loop import DivergedError, OptimizerConfig, Row, Tensors, best_row, copy_weights, fit, set_weights

EXTENSION = 3  # the factor between a rate and the next one beyond it


@dataclass(frozen=True)
class FitResult:
    """What training found: the best learning rate's history, a record of each rate, and the cost of them all.

    A method without epochs has an empty ``history`` and no ``best_epoch``. ``train_seconds`` counts every step of every
    rate, those of one that diverged included, and ``images_stepped`` their images, each as often as it was stepped on.
    ``notes``: what a reader of the result must know of the choice.
    """

    history: list[Row]
    trials: list[dict[str, Any]]
    best_epoch: int | None
    train_seconds: float
    images_stepped: int
    images_per_second: float | None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Trial:
    """A learning rate that is done with: its epochs, and where it diverged (None: nowhere), losing time and steps."""

    lr: float
    history: list[Row]
    diverged: str | None = None
    seconds_lost: float = 0.0
    images_lost: int = 0

    @property
    def val_accuracy(self) -> float:
        """What decides between rates; of one that diverged no epoch can be chosen."""
        return -1.0 if self.diverged else best_row(self.history)["val_accuracy"]

    @property
    def seconds(self) -> float:
        """What its steps took, those before a divergence included."""
        return sum(row["seconds"] for row in self.history) + self.seconds_lost

    def record(self) -> dict[str, Any]:
        """Return what the rate gave and cost: its best epoch, or None and where it diverged."""
        best = dict.fromkeys(("epoch", "val_loss", "val_accuracy")) if self.diverged else best_row(self.history)
        found = {"lr": self.lr, "best_epoch": best["epoch"], **{k: best[k] for k in ("val_loss", "val_accuracy")}}
        return found | {"seconds": self.seconds} | ({"diverged": self.diverged} if self.diverged else {})


def sweep(
    model: nn.Module,
    train: Loader,
    val: Loader,
    configs: Sequence[OptimizerConfig],
    checkpoint: Checkpoint,
    *,
    extend: int = 0,
) -> FitResult:
    """Train ``model`` by each of ``configs``, which differ in the learning rate; it ends with the best weights of all.

    While the best rate is the highest or the lowest, up to ``extend`` further ones follow, each by a factor of 3. Which
    they are depends on the finished trials alone, so that a resumed sweep tries the same. A rate that diverges is
    recorded as a trial without a result; the earlier of two equally good ones is kept.

    Raises:
        UserError: every rate diverged, the memory is too small, or the checkpoint is another run's.
    """
    initial, state = copy_weights(model), _SweepState(checkpoint)
    while config := _next_config(configs, state.trials, extend):
        number = len(state.trials)
        set_weights(model, initial)
        label = f"lr {config.lr:g}  " if len(configs) > 1 else ""
        to_follow = sum(later.epochs for later in configs[number + 1 :])
        try:
            history = fit(model, train, val, config, state, label=label, epochs_to_follow=to_follow)
            state.add(_Trial(config.lr, history), copy_weights(model))
        except DivergedError as error:
            if number >= len(configs) - 1 and not state.best_weights:
                advice = "try a lower `lr`, or `precision` fp32; nothing was kept of this step"
                raise UserError(f"{error.where}; {advice}") from error
            state.add(_Trial(config.lr, error.history, error.where, error.seconds, error.images), {})
            state.save(None, {})
            print(f"{error.where}: this learning rate is abandoned", flush=True)
    set_weights(model, state.best_weights)
    model.eval()
    return state.result(images=len(train.labels))


def _next_config(configs: Sequence[OptimizerConfig], trials: Sequence[_Trial], extend: int) -> OptimizerConfig | None:
    """Return the training that follows the finished ``trials``, None where none does."""
    done = len(trials)
    if done < len(configs):
        return configs[done]
    outward = _outward(trials)
    if outward is None or done >= len(configs) + extend:
        return None
    print(f"the best learning rate is at the end of those tried: trying {outward:g} as well", flush=True)
    return replace(configs[0], lr=outward)


def _outward(trials: Sequence[_Trial]) -> float | None:
    """Return the rate beyond the best one where that is the highest or the lowest of several, else None.

    Where a rate between the two ends is as good there is nothing to be sought beyond them.
    """
    best = max(trials, key=lambda trial: trial.val_accuracy)
    low, *inner, high = sorted(trials, key=lambda trial: trial.lr) if len(trials) > 1 else (None, None)
    if best not in (low, high) or any(trial.val_accuracy == best.val_accuracy for trial in inner):
        return None
    lr = best.lr * EXTENSION if best is high else best.lr / EXTENSION
    return float(f"{lr:.3g}")  # 0.003 / 3 is 0.001, not 0.0009999999


def _notes(trials: Sequence[_Trial]) -> list[str]:
    """Say of which rates nothing is known, and whether a better one may lie beyond those tried."""
    notes = [f"learning rate {trial.lr:g} gave no result: {trial.diverged}" for trial in trials if trial.diverged]
    if (outward := _outward(trials)) is not None:
        best = max(trials, key=lambda trial: trial.val_accuracy).lr
        end, beyond = ("highest", "higher") if outward > best else ("lowest", "lower")
        notes.append(f"the best learning rate, {best:g}, is the {end} tried: a {beyond} one may be better")
    return notes


class _SweepState:
    """The rates that are done with, and the best weights among them; for the one under way it is the checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.trials: list[_Trial] = []
        self.best_weights: Tensors = {}
        self._under_way: tuple[dict[str, Any], Tensors] | None = None
        if found := checkpoint.load():
            self._resume(*found)

    def _resume(self, record: dict[str, Any], tensors: Tensors) -> None:
        self.trials = [_Trial(**trial) for trial in record["trials"]]
        self.best_weights = strip_prefix("best/", tensors)
        state = record["under_way"]
        self._under_way = state and (state, strip_prefix("under_way/", tensors))
        epochs = sum(len(trial.history) for trial in self.trials) + (len(state["history"]) if state else 0)
        print(f"resuming after {epochs} finished epochs and {state['step'] if state else 0} steps", flush=True)

    def add(self, trial: _Trial, weights: Tensors) -> None:
        """Note that a rate is done with, and keep its ``weights`` where they are the best so far."""
        if trial.val_accuracy > max((earlier.val_accuracy for earlier in self.trials), default=-1.0):
            self.best_weights = weights
        self.trials.append(trial)

    def load(self) -> tuple[dict[str, Any], Tensors] | None:
        """Return the state of the rate under way, once: the next one starts anew."""
        found, self._under_way = self._under_way, None
        return found

    def save(self, state: dict[str, Any] | None, tensors: Tensors) -> None:
        """Save the sweep, with the state and the tensors of the rate under way, if one is."""
        record = {"trials": [asdict(trial) for trial in self.trials], "under_way": state}
        kept = {f"best/{name}": tensor for name, tensor in self.best_weights.items()}
        self.checkpoint.save(record, kept | {f"under_way/{name}": tensor for name, tensor in tensors.items()})

    def result(self, *, images: int) -> FitResult:
        """Return what was found with so many training ``images``."""
        best = max(self.trials, key=lambda trial: trial.val_accuracy)  # the first on a tie
        rows = [row for trial in self.trials for row in trial.history]
        return FitResult(
            history=best.history,
            trials=[trial.record() for trial in self.trials],
            best_epoch=best_row(best.history)["epoch"],
            train_seconds=sum(trial.seconds for trial in self.trials),
            images_stepped=len(rows) * images + sum(trial.images_lost for trial in self.trials),
            images_per_second=len(rows) * images / sum(row["seconds"] for row in rows),
            notes=_notes(self.trials),
        )
