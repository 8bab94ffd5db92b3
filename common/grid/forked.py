"""Training runs as forks of a process that has imported everything and computed nothing: a grid starts up once."""

import json
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import BaseContext
from pathlib import Path

from common.runtime import signals
from common.runtime.environment import CODE_OF_GRID, code_facts

# What the training scripts import when they need it, and the figures, which follow the runs.
IMPORTED = (
    *("torch", "torch._dynamo", "torch.utils.flop_counter", "torchvision", "timm", "peft", "scipy.optimize"),
    "sklearn.linear_model",
    *("common.training.save", "common.models.lora", "common.figures"),
)


class ForkedRun:
    """A training script in a process of its own; with as much of ``subprocess.Popen`` as the scheduler needs."""

    def __init__(self, context: BaseContext, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        own = {**environment, CODE_OF_GRID: json.dumps(code_facts())}
        arguments = (list(command), os.path.abspath(log), os.getcwd(), own)
        self._process = context.Process(target=_run_script, args=arguments)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the signal's number where one killed it, None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return ``returncode``."""
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def wait(self) -> None:
        """Wait for its end."""
        self._process.join()


def _run_script(command: list[str], log: str, folder: str, environment: dict[str, str]) -> None:
    """Be ``command`` ("python", script, flags) started in ``folder``: what it prints goes to ``log``."""
    signals.unblock()  # of the server, which outlives its children
    os.setsid()  # as for any child: a Ctrl-C in the terminal reaches it once, through the scheduler
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command[1:]
    runpy.run_path(command[1], run_name="__main__")
