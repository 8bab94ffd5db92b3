"""Training runs as child processes: what state each is in, and running many of them, several at a time."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from common.grid.forked import IMPORTED, ForkedRun
from common.runs.folder import CHECKPOINT_FILE, lock_file
from common.runs.predictions import read_predictions
from common.runs.record import RunResult
from common.runs.result import RESULT_FILE, read_result
from common.runtime import locks
from common.runtime.environment import RUNS_AT_ONCE, code_facts
from common.runtime.errors import UserError
from common.runtime.parallel import fork_context, import_ahead
from common.runtime.progress import progress

POLL_SECONDS = 0.1
STATES = ("finished", "running", "unfinished", "missing")


@dataclass(frozen=True)
class Job:
    """One run to be made: its name for people, the command that makes it, its folder, and a file for what it prints.

    ``config`` is the training script's configuration behind the command; ``follows`` is the folder of the finished run
    whose learning rate it takes; ``read`` reads its finished result.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    log: Path
    config: Any
    follows: Path | None = None
    read: Callable[[Path], RunResult] = read_result

    @property
    def shell_line(self) -> str:
        """The command as a person would type it."""
        return shlex.join(self.command)


def job_state(job: Job) -> str:
    """Return one of ``STATES``; ``running``: another process holds the folder, ``unfinished``: it can be resumed."""
    if job_holder(job):
        return "running"
    if (job.folder / RESULT_FILE).exists():
        return "finished"
    return "unfinished" if (job.folder / CHECKPOINT_FILE).exists() else "missing"


def job_damage(job: Job) -> str | None:
    """Return what is wrong with a finished job's result or predictions, or None."""
    try:
        read_predictions(job.folder, job.read(job.folder / RESULT_FILE))
    except UserError as error:
        return str(error)
    return None


def job_obstacle(job: Job, absent: Mapping[str, str]) -> str | None:
    """Return why a run cannot be made now, or why a finished one is of no use; None where nothing is in the way.

    ``absent`` says of data sets and backbones why they could not be fetched.
    """
    if holder := job_holder(job):
        return f"in use by {holder}"
    if (job.folder / RESULT_FILE).exists():
        return job_damage(job)
    if job.follows and not (job.follows / RESULT_FILE).exists():
        return f"seed {job.config.tuned_on}, whose learning rate it takes, is not finished"
    return absent.get(job.config.dataset) or absent.get(job.config.backbone)


def job_holder(job: Job) -> str | None:
    """Return who works on the run's folder now (process, host, since when), or None."""
    return locks.lock_holder(lock_file(job.folder))


def run_all(
    jobs: Sequence[Job],
    devices: Sequence[str | None],
    done: Callable[[Job], str],
    *,
    follower: Callable[[Job], Job | None] = lambda job: None,
) -> dict[Job, str]:
    """Run ``jobs`` in their order, one at a time on each of ``devices``; return why each that failed did.

    A run that fails does not stop the others. Ctrl-C and SIGTERM are passed on once: every child saves its state.

    Args:
        devices: values of CUDA_VISIBLE_DEVICES, or None where a child sees what this process sees.
        done: says in a line what a finished job gave.
        follower: returns the job that follows, on the same device, on one that ended.
    """
    waiting, free, failures = deque(jobs), list(devices), {}
    active: dict[Job, tuple[subprocess.Popen | ForkedRun, str | None]] = {}
    context = _context_of_forks() if jobs else None
    with progress(desc="runs", total=len(jobs), unit="run") as bar, _stopping(active):
        while waiting or active:
            while waiting and free:
                job, device = waiting.popleft(), free.pop(0)
                active[job] = _start(job, device, context, at_once=len(devices)), device
            time.sleep(POLL_SECONDS)
            for job in [job for job, (process, _) in active.items() if process.poll() is not None]:
                process, device = active.pop(job)
                free.insert(0, device)
                if process.returncode:
                    failures[job] = _reason(job, process.returncode)
                bar.write(f"{job.name}: {f'failed: {failures[job]}' if job in failures else done(job)}")
                sys.stdout.flush()
                bar.update()
                if following := follower(job):
                    waiting.appendleft(following)
                    bar.total += 1
            if active and sys.stderr.isatty():
                bar.set_postfix_str(last_line(next(iter(active)).log)[:60])
    return failures


def prepare_forks() -> bool:
    """Let a server import what training scripts need, before anything else starts one; False where CUDA forbids it."""
    if visible_gpus():
        return False
    import_ahead(*IMPORTED)
    code_facts()  # of what the server imports now: the files may be others when a run is forked from it
    return True


def are_forked() -> bool:
    """Whether training scripts are forks of a server that has imported all they need."""
    return _context_of_forks() is not None


def _context_of_forks() -> BaseContext | None:
    """Return how training scripts are forked."""
    return fork_context() if prepare_forks() else None


@contextmanager
def _stopping(active: dict[Job, tuple[subprocess.Popen | ForkedRun, str | None]]) -> Iterator[None]:
    """Stop the children and wait for them where the block is left by an exception.

    By SIGTERM, which saves their state like Ctrl-C does, but is not ignored where a shell started all this in the
    background.
    """
    try:
        yield
    except BaseException:
        for process, _ in active.values():
            process.terminate()
        for process, _ in active.values():
            process.wait()
        raise


def _start(job: Job, device: str | None, context: BaseContext | None, *, at_once: int) -> subprocess.Popen | ForkedRun:
    """Start a job that writes its output to its log; it forks in ``context`` where there is one."""
    environment = os.environ | {RUNS_AT_ONCE: str(at_once)}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "wb") as log:
            if context:
                return ForkedRun(context, job.command, job.log, environment)
            # In a session of its own: a Ctrl-C in the terminal reaches it once, through ``_stopping``.
            return subprocess.Popen(
                [sys.executable, *job.command[1:]],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise UserError(f"cannot write {str(job.log)!r}: {error.strerror or error}") from error


def _reason(job: Job, code: int) -> str:
    """Return the job's own error message, else its last line and how it ended."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}, mostly for memory; see {str(job.log)!r}"
    last = last_line(job.log)
    return last.removeprefix("error: ") if last.startswith("error: ") else f"exit {code}: {last} (see {str(job.log)!r})"


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty, "" where there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def job_devices(at_once: int | None, *, without_gpu: int = 1) -> list[str | None]:
    """Return the GPU of each of ``at_once`` runs (default: a run a GPU, ``without_gpu`` runs where there is none).

    None stands for whatever a child finds by itself: there is one GPU at most.
    """
    gpus = visible_gpus()
    at_once = at_once or len(gpus) or without_gpu
    return [gpus[slot % len(gpus)] if len(gpus) > 1 else None for slot in range(at_once)]


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs as values for CUDA_VISIBLE_DEVICES, [] where there is none; PyTorch is not loaded."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device for device in chosen.split(",") if device.strip() not in ("", "-1")]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return found.stdout.split() if found.returncode == 0 else []
