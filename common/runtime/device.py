"""The device of a run: which one, in what precision it computes, and how much memory it took."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator

import torch

from common.runtime.errors import UserError


def resolve_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` stands for on this machine.

    One that the machine, or this build of PyTorch, does not have is a UserError.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"`device` {name!r}: PyTorch sees {torch.cuda.device_count()} CUDA devices here; try `device` auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("`device` 'mps': PyTorch sees no Apple GPU here; try `device` auto")
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """Return ``fp32``, ``bf16`` or ``fp16``; ``auto`` is bfloat16 only where the hardware multiplies it natively."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
    return "fp32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Return the context in which a backbone runs: autocast to a type of 16 bits, or nothing for float32."""
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, types[precision]) if precision in types else contextlib.nullcontext()


def prepare_device(device: torch.device, *, deterministic: bool, threads: int | None = None) -> None:
    """Set the process-wide switches of a run: CPU threads, and reproducible algorithms where asked, else tuned ones."""
    if threads:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        torch.backends.cudnn.benchmark = not deterministic
        # float32 means float32: else convolutions, but not products, would be computed in TF32.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # telling PyTorch imports its compiler
        torch.use_deterministic_algorithms(deterministic)


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
        smaller = f"`batch_size` {batch_size // 2}" if reducible else "a smaller `image_size` or `backbone`"
        raise UserError(f"out of memory with batches of {batch_size}: free some, or train with {smaller}") from error


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
