"""Whether training was long enough: what the choice of a run, trained once more with twice the epochs, adds."""

from collections.abc import Sequence
from pathlib import Path

from common.runs.naming import run_identity
from common.runs.record import RunResult
from common.runs.result import Run, find_runs

TUNING = "tuning"  # the folder, below results, of runs that chose or checked something, and that no figure shows
NOT_CONVERGED = 0.01  # of validation accuracy that twice the epochs add


def gains(runs: Sequence[Run], results_dir: Path) -> dict[tuple[str, str], float]:
    """Return what twice the epochs add to the validation accuracy of (data set, model name), where that was tried.

    Above ``NOT_CONVERGED`` the training was too short to say what the model can do.
    """
    longer = find_runs(results_dir / TUNING)[0]
    return {
        (run.dataset, run.model_name): other.result.val.scores["accuracy"] - run.result.val.scores["accuracy"]
        for run in runs
        for other in longer
        if run.dataset == other.dataset and _is_twice_as_long(run.result, other.result)
    }


def _is_twice_as_long(run: RunResult, other: RunResult) -> bool:
    """Whether ``other`` has the settings and the chosen learning rate of ``run``, and twice its epochs."""
    if run.method != other.method or not run.history:
        return False
    one, two = (run_identity(each.config, each.method) for each in (run, other))
    expected = {"epochs": 2 * one["epochs"], "lr": [run.history[0].lr], "extend": 0}
    return all(two.get(name) == expected.get(name, value) for name, value in one.items())
