"""How far a grid on Slurm has come, by the queue and the runs' folders: not every cluster keeps an accounting."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.grid import scheduler
from common.grid.grid import Grid
from common.grid.scheduler import Job
from common.grid.stages import PlannedRun, planned_runs
from common.runs.folder import lock_file
from common.runs.result import RESULT_FILE, natural_order
from common.runtime.environment import REPOSITORY, git_commit
from common.runtime.errors import UserError
from common.runtime.files import write_atomically
from common.runtime.progress import progress

POLL_SECONDS = 10  # between two questions to squeue, which all users of a cluster share


def submission_folder(results_dir: Path) -> Path:
    """Return where a grid's arrays, their logs and the indices of its image folders are kept."""
    return results_dir / "slurm"


def was_submitted(results_dir: Path) -> bool:
    """Whether a grid was given to the Slurm of this machine."""
    return submission_folder(results_dir).is_dir() and shutil.which("squeue") is not None


@dataclass(frozen=True)
class State:
    """How far a run has come: one of ``scheduler.STATES``, ``pending`` or ``failed``; ``about``: where, or why."""

    word: str
    about: str = ""


class Submissions:
    """The arrays that were submitted for a grid: one JSON file each in ``folder``, beside submitit's own files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.task_of: dict[str, str] = {}
        """The task (ARRAYJOB_TASK, or JOB of an array of one) that each run, by its key, was last given to."""
        for path in sorted(folder.glob("array-*.json"), key=lambda path: natural_order(path.name)):
            self._note(json.loads(path.read_text(encoding="utf-8")))

    def _note(self, record: Mapping[str, Any]) -> None:
        self.task_of |= {key: task for task, keys in record["tasks"].items() for key in keys}

    def add(self, tasks: Mapping[str, Sequence[str]]) -> None:
        """Record an array: the keys of each task's runs, and the checkout that it will run."""
        array = next(iter(tasks)).split("_")[0]
        record = {
            "submitted": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": sys.executable,
            "checkout": str(REPOSITORY),
            "git_commit": git_commit(),
            "folder": str(Path.cwd()),
            "host": socket.gethostname(),
            "tasks": dict(tasks),
        }
        write_atomically(self.folder / f"array-{array}.json", json.dumps(record, indent=1).encode())
        self._note(record)

    def state(self, run: PlannedRun, queue: Mapping[str, tuple[str, str]]) -> State:
        """Return the state of a run by its folder and by ``queue`` (``read_queue``)."""
        job, task = run.settled(), self.task_of.get(run.key)
        if job and (job.folder / RESULT_FILE).exists():
            return State("finished")
        if task not in queue:
            if task and not (job and scheduler.job_holder(job)):
                return State("failed", self._reason(job, task))
            return State(scheduler.job_state(job) if job else "missing")
        word, node = queue[task]
        if word != "PENDING" and job and lock_file(job.folder).exists():
            return State("running", f"job {task} on {node}")
        return State("pending", f"job {task}" + f", which is {word.lower()} on {node}" * (word != "PENDING"))

    def _reason(self, job: Job | None, task: str) -> str:
        log = self.log(task)
        said = scheduler.last_line(job.log) if job else ""
        if said.startswith("error: "):
            return said.removeprefix("error: ")
        return f"job {task} ended: {said or scheduler.last_line(log) or 'nothing was printed'} (see {str(log)!r})"

    def log(self, task: str) -> Path:
        """Return what a task printed itself; its runs have logs of their own."""
        return self.folder / f"{task}_0_log.out"


def read_queue() -> dict[str, tuple[str, str]]:
    """Return what Slurm says of this user's tasks that have not ended: id -> (state, node).

    Raises:
        UserError: squeue is not there, or its controller does not answer.
    """
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%N"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"squeue does not answer: {error}") from error
    if done.returncode:
        raise UserError(f"squeue does not answer: {done.stderr.strip()}")
    rows = (line.split("|") for line in done.stdout.splitlines())
    return {task: (state, node) for task, state, node in rows}


def follow(runs: Sequence[PlannedRun], submissions: Submissions, done: Callable[[Job], str]) -> dict[Job, str]:
    """Wait until no task of ``runs`` is left in the queue; return why each run that is not finished is not.

    What has left the queue has ended, whatever it managed to write before. Ctrl-C ends the waiting alone. ``done`` says
    in a line what a finished run gave.
    """
    waiting, failures, gone = list(runs), {}, set()
    with progress(desc="runs", total=len(runs), unit="run") as bar, _saying_that_jobs_go_on(submissions, waiting):
        while waiting:
            queue = _queue_or_none()
            for run in list(waiting) if queue is not None else ():
                state = submissions.state(run, queue)
                if state.word in ("pending", "running"):
                    continue
                if state.word != "finished" and run not in gone:  # a shared file system may show its result late
                    gone.add(run)
                    continue
                waiting.remove(run)
                job = run.settled() or run.job
                if state.word != "finished":
                    failures[job] = state.about
                bar.write(f"{job.name}: {done(job) if state.word == 'finished' else f'failed: {state.about}'}")
                sys.stdout.flush()
                bar.update()
            if waiting:
                time.sleep(POLL_SECONDS)
    return failures


def print_list(grids: Sequence[Grid], folders: Mapping[str, Path]) -> None:
    """Print a line on each run of grids that were submitted: its state, and where it runs or why it failed."""
    submissions, queue = Submissions(submission_folder(folders["results_dir"])), read_queue()
    for run in (run for grid in grids for run in planned_runs(grid, **folders)):
        state, job = submissions.state(run, queue), run.settled()
        print(f"{state.word:<10} {job.name if job else run.key}{f': {state.about}' if state.about else ''}")


def _queue_or_none() -> dict[str, tuple[str, str]] | None:
    """Return the queue; None, and a line that says why, where Slurm's controller does not answer for the moment."""
    try:
        return read_queue()
    except UserError as error:
        print(f"{error}; asking again", file=sys.stderr, flush=True)
        return None


@contextlib.contextmanager
def _saying_that_jobs_go_on(submissions: Submissions, waiting: Sequence[PlannedRun]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        arrays = sorted({submissions.task_of[run.key].split("_")[0] for run in waiting}, key=natural_order)
        print(
            "the jobs go on, nothing was cancelled: the same command waits for them again, and "
            f"scancel {' '.join(arrays)} ends them",
            file=sys.stderr,
        )
        raise
