"""What one task of a Slurm array does: make its runs, and be queued again where it is ended before it is through."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from common.grid import scheduler
from common.grid.scheduler import Job
from common.grid.stages import PlannedRun
from common.runtime import signals

Batch = Sequence[PlannedRun]
"""Runs that are made one after the other, on one GPU."""


def make_runs(batches: Sequence[Batch]) -> None:
    """Make the runs of each batch in their order, the batches side by side, each on a GPU of its own.

    Finished runs are skipped. Where Slurm sends SIGTERM or SIGUSR1 the runs save their state, and the task is queued
    again. It ends by SystemExit: 0 where all is finished, 1 where a run failed, 143 where the task was ended.
    """
    signals.raise_on_sigterm()
    print(f"task {task_id()} of {os.environ.get('SLURMD_NODENAME', 'an unknown node')}", flush=True)
    try:
        is_complete = _make(batches)
    except signals.Terminated:
        requeue()
        sys.exit(143)
    sys.exit(0 if is_complete else 1)


def _make(batches: Sequence[Batch]) -> bool:
    """Return whether every run is finished now."""
    rest: dict[Job, Iterator[Job]] = {}

    def advance(jobs: Iterator[Job]) -> Job | None:
        if job := next(jobs, None):
            rest[job] = jobs
        return job

    firsts = [job for batch in batches if (job := advance(_unfinished(batch)))]
    scheduler.run_all(
        firsts,
        scheduler.job_devices(len(batches)),
        lambda job: "finished",
        follower=lambda job: advance(rest.pop(job)),
    )
    jobs = [run.settled() for batch in batches for run in batch]
    return all(job and scheduler.job_state(job) == "finished" for job in jobs)


def _unfinished(batch: Batch) -> Iterator[Job]:
    """Yield the runs that are to be made, each when the ones before it are."""
    for run in batch:
        job = run.settled(take_over=True)
        if job is None:
            print(f"{run.key}: failed: the choice that it follows from is not finished", flush=True)
        elif scheduler.job_state(job) == "finished":
            print(f"{job.name}: already finished", flush=True)
        else:
            yield job


def task_id() -> str:
    """Return the task's own id, ARRAYJOB_TASK: one task of every array has the plain id of the whole array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")


def requeue() -> None:
    """Queue this task again, unless it was cancelled or Slurm does so itself: then it counts as running no more."""
    asked = _slurm("squeue", "--noheader", f"--jobs={task_id()}", "--format=%T")
    state = asked.stdout.strip()
    if not asked.returncode and state != "RUNNING":
        print(f"task {task_id()} is not queued again here: it is {state or 'gone'}", flush=True)
        return
    done = _slurm("scontrol", "requeue", task_id())
    if done.returncode:
        print(
            f"task {task_id()} cannot be queued again ({done.stderr.strip()}): reproduce.py submits it anew", flush=True
        )
    else:
        print(f"task {task_id()}: the runs have saved their state; queued again", flush=True)


def _slurm(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
