"""How things are timed: the sides in turn, whole processes from start to exit, ratios of each pair."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from common.runtime.errors import UserError
from common.runtime.progress import progress

ROOT = Path(__file__).resolve().parent.parent
Result = TypeVar("Result")


def alternate(sides: Mapping[str, Callable[[], Result]], repeats: int, *, desc: str) -> dict[str, list[Result]]:
    """Call each of the ``sides`` in turn, A B A B ..., and return what each gave, ``repeats`` results a side.

    So a machine that slows down or speeds up meanwhile does so for all of them. Each side keeps its own clock.
    """
    results = {side: [] for side in sides}
    with progress(desc=desc, total=repeats * len(sides), unit="run") as bar:
        for _ in range(repeats):
            for side, call in sides.items():
                results[side].append(call())
                bar.update()
    return results


def timed(call: Callable[[], Any]) -> float:
    """Return the wall-clock seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def run_script(script: str, *words: object) -> float:
    """Run one of this repository's scripts as a process of its own; return its seconds from start to exit.

    ``script`` is relative to the repository. The compiler's cache is an empty folder, so that no run profits from an
    earlier one. The output is shown only where the process fails.

    Raises:
        UserError: its exit code is not 0.
    """
    command = [sys.executable, str(ROOT / script), *map(str, words)]
    with tempfile.TemporaryDirectory(prefix="bench-compiler-") as compiler_cache:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": compiler_cache}
        started = time.perf_counter()
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        seconds = time.perf_counter() - started
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace"))
        raise UserError(f"{script} ended with exit code {done.returncode}; what it printed stands above")
    return seconds


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the ``values`` as they were measured, with their min, median and max."""
    return {"values": list(values), "min": min(values), "median": statistics.median(values), "max": max(values)}


def single(what: str, values: Sequence[float], *, unit: str) -> dict[str, Any]:
    """Return the record of something that has one side."""
    return {"what": what, "unit": unit, "sides": {what: spread(values)}}


def paired(what: str, sides: Mapping[str, Sequence[float]], *, unit: str = "s") -> dict[str, Any]:
    """Return the record of two sides and of the ratio second / first of each pair, measured one after the other."""
    (first, base), (second, other) = sides.items()
    ratios = [b / a for a, b in zip(base, other, strict=True)]
    return {
        "what": what,
        "unit": unit,
        "sides": {side: spread(values) for side, values in sides.items()},
        "ratio": {"of": f"{second} / {first}", **spread(ratios)},
    }


def lines(record: Mapping[str, Any]) -> list[str]:
    """Return a record as lines for a person: min, median and max of each side, or the share of each operation."""
    if "operations" in record:
        shares = (f"    {share:5.1f} {record['unit']}  {name}" for name, share in record["operations"].items())
        return [f"  {record['what']}", *shares]
    sides = record["sides"]
    shown = [f"  {side}: {_numbers(found)} {record['unit']}" for side, found in sides.items()]
    if "ratio" not in record:
        return shown
    ratio = record["ratio"]
    return [f"  {record['what']}", *(f"  {line}" for line in shown), f"    {ratio['of']}: {_numbers(ratio)}"]


def _numbers(found: Mapping[str, Any]) -> str:
    if len(found["values"]) == 1:
        return f"{found['median']:,.4g}"
    low, middle, high = (f"{found[name]:,.4g}" for name in ("min", "median", "max"))
    return f"min {low}, median {middle}, max {high} (n={len(found['values'])})"
