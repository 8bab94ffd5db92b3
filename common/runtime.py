"""The machine a run happens on: device, precision, compilation, memory, and the record of all that."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError

# Operations of a frozen backbone's forward passes that repay the compiler. Measured on two CPU cores with BatchNorm
# folded: it takes 5 to 17 s, after which ResNet50 makes 45 instead of 38 images a second in bfloat16, 23 instead of 21
# in float32, EfficientNet-B0 185 instead of 149 and 110 instead of 104: break-even at 10 to 22 T operations. On a GPU
# not measured: half a minute of 100 T operations a second.
COMPILING_PAYS_AFTER = {"cpu": 20e12, "cuda": 3e15, "mps": 3e15}


def resolve_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` stands for on this machine.

    Raises:
        UserError: the machine, or this build of PyTorch, does not have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name!r}: PyTorch sees {torch.cuda.device_count()} CUDA devices here; try --device auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device 'mps': PyTorch sees no Apple GPU here; try --device auto")
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """Return ``fp32`` or ``bf16``; ``auto`` is bfloat16 only where the hardware multiplies it natively."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
    return "fp32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Return the context in which a backbone runs: bfloat16 autocast, or nothing for float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def prepare(device: torch.device, *, deterministic: bool) -> None:
    """Set the process-wide switches of a run: reproducible algorithms where asked, tuned kernels otherwise."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def compiling_pays(operations: float, device: torch.device) -> bool:
    """Whether so many operations repay the compiler: by their number alone, never by a stopwatch.

    So a repeated run computes the same thing.
    """
    return operations >= COMPILING_PAYS_AFTER[device.type]


def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``forward`` compiled for inference with frozen weights, or as it is where no C++ compiler is found."""
    from torch._inductor import config as inductor
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:  # a class of its own in each release; whatever is wrong, the plain way works
        print("no C++ compiler: the backbone runs uncompiled (the same features, slower)")
        return forward
    inductor.freezing = True  # folds BatchNorm into the convolutions; right only because nothing here trains
    return torch.compile(forward, dynamic=False)


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock read next shows work done and not work queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def memory_errors(batch_size: int, *, fixed: bool = False) -> Iterator[None]:
    """Turn an allocation that fails inside the block, on the host or the device, into a UserError with a way out.

    ``fixed``: no flag changes this batch size.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        # On the CPU PyTorch raises a plain RuntimeError.
        if not known and not re.search("not enough memory|can't allocate memory|ALLOC_FAILED", str(error)):
            raise
        reducible = batch_size > 1 and not fixed
        smaller = f"--batch-size {batch_size // 2}" if reducible else "a smaller --image-size or --backbone"
        raise UserError(f"out of memory with batches of {batch_size}: try {smaller}") from error


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Return peak_host_bytes (this process, resident) and peak_device_bytes (None where it cannot be measured)."""
    on_cuda = device.type == "cuda"
    return {
        "peak_host_bytes": _peak_host_bytes(),
        "peak_device_bytes": torch.cuda.max_memory_allocated(device) if on_cuda else None,
    }


def _peak_host_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """Return the ``environment`` block of a result: versions, machine, commit, time (UTC, ISO 8601)."""
    packages = ("torch", "torchvision", "timm", "peft", "numpy", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": precision,
        **{package: importlib.metadata.version(package) for package in packages},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if (status := _git("status", "--porcelain")) is None else bool(status),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hostname": socket.gethostname(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    repository = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", "-C", repository, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
