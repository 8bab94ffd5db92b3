"""The machine and the versions that a run is made with: its record, its cores, and where this repository lies."""

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.runtime.files import sha256, sha256_of_file

if TYPE_CHECKING:
    import torch

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".cache"  # unless ``cache_dir`` is set
RUNS_AT_ONCE = "BENCHMARK_RUNS_AT_ONCE"  # a grid tells its runs how many share the machine
CODE_OF_GRID = "BENCHMARK_CODE_OF_GRID"  # and those that it forks which code they have, as JSON of ``code_facts``


def describe_environment(device: "torch.device", precision: str) -> dict[str, Any]:
    """Return the ``environment`` block of a result: versions, machine, commit, time (UTC, ISO 8601).

    ``jobs``: how many runs of a grid shared the machine at most; None of a run by hand.
    """
    import torch

    cpu = _cpu_facts()
    packages = ("torch", "torchvision", "timm", "peft", "numpy", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cpu_kind": f"{_cpu_kind(cpu)} {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "jobs": int(jobs) if (jobs := os.environ.get(RUNS_AT_ONCE, "")).isdigit() else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": precision,
        "tf32": torch.backends.cuda.matmul.allow_tf32 if device.type == "cuda" else None,
        **{package: importlib.metadata.version(package) for package in packages},
        **code_facts(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hostname": socket.gethostname(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
    }


@functools.cache
def code_facts() -> dict[str, Any]:
    """Return git_commit, code_sha256 and git_dirty as they were when this process first asked.

    A run asks when it starts, since the files may be others when it ends. One that a grid forked has the code that the
    grid imported, of which it is told.
    """
    if told := os.environ.get(CODE_OF_GRID):
        return json.loads(told)
    status = _git("status", "--porcelain")
    return {
        "git_commit": git_commit(),
        "code_sha256": _code_sha256(),
        "git_dirty": None if status is None else bool(status),
    }


def git_commit() -> str | None:
    """Return the commit that this code was checked out from, None outside of git."""
    return _git("rev-parse", "HEAD")


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _code_sha256() -> str | None:
    """Return a hash of the scripts and of all of ``common/``: commits that differ elsewhere alone have the same."""
    files = sorted([*REPOSITORY.glob("*.py"), *(REPOSITORY / "common").rglob("*.py")])
    try:
        return sha256("".join(f"{file.relative_to(REPOSITORY)} {sha256_of_file(file)}\n" for file in files).encode())
    except OSError:  # not readable any more for whoever runs this
        return None


def _cpu_facts() -> dict[str, str]:
    """Return what Linux says of the first CPU, nothing elsewhere."""
    try:
        first, *_ = Path("/proc/cpuinfo").read_text().split("\n\n")
    except OSError:
        return {}
    facts = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in facts}


def _cpu_kind(facts: Mapping[str, str]) -> str:
    """Return what tells CPUs of one name apart, whose sums may round differently: "AuthenticAMD 25/17/1"."""
    vendor, *numbers = (facts.get(name, "?") for name in ("vendor_id", "cpu family", "model", "stepping"))
    return f"{vendor} {'/'.join(numbers)}"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", REPOSITORY, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
