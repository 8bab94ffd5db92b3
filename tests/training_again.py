"""A recorded run trained again by its own command, and whether this machine must give the same bits."""

import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from process_fork import ForkServer

from common.runs.result import RESULT_FILE, Run, find_runs, read_result

# What decides how sums round. Older records have no ``cpu_kind``: there the CPU's name has to do.
MACHINE = (
    *("cpu", "cpu_kind", "device", "precision", "threads"),
    *("python", "torch", "torchvision", "timm", "peft", "numpy", "scikit-learn"),
)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say what of the machine and the versions differs between two ``environment`` records; [] where nothing does."""
    shared = [name for name in MACHINE if name in then]
    return [f"{name} {now[name]!r}, not {then[name]!r}" for name in shared if now[name] != then[name]]


def cheapest_runs(results_dirs: Iterable[Path]) -> dict[str, Run]:
    """Return by method the run on digits that took least time to train, of those with one thread if there are any."""
    runs = [run for folder in results_dirs for run in find_runs(folder, "digits/*")[0]]
    dearest_first = sorted(runs, key=_cost, reverse=True)
    return {run.result.method: run for run in dearest_first}


def _cost(run: Run) -> tuple[bool, float]:
    return run.result.environment["threads"] != 1, run.result.efficiency.total_train_seconds


def train_again(fork_server: ForkServer, run: Run, folder: Path) -> Run:
    """Run the command of ``run`` in one thread, with all that it writes below ``folder``, and without old features.

    The seed whose learning rate it takes, if there is one, is not trained again: its recorded run is put beside it.
    """
    results_dir = folder / "results"
    runs = results_dir / run.dataset / run.name
    if (chooser := run.result.config.get("tuned_on")) is not None:
        shutil.copytree(run.folder.with_name(f"seed{chooser}"), runs / f"seed{chooser}")
    _python, script, *flags = shlex.split(run.result.command)
    folders = ["--results-dir", results_dir, "--cache-dir", folder / "cache"]  # of a repeated flag the last one holds
    ended = fork_server.run(Path(script).stem, [*flags, *folders])
    assert ended.code == 0, ended.err
    again = runs / run.folder.name
    return Run(again, read_result(again / RESULT_FILE))
