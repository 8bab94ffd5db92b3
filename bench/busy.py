"""A LoRA step on a machine that is idle, and beside another busy process: what waiting in a short spin is worth.

python bench/busy.py STEPS    # the process that is timed: prints the seconds of each step of the small ViT
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.measuring import alternate, paired  # noqa: E402, found once its folder is on the path
from common.cli import SPIN_COUNT  # noqa: E402, found once its folder is on the path

BATCH_SIZE, STEPS = 32, 20
NEIGHBOUR = "import torch\nmatrix = torch.randn(1024, 1024)\nwhile True:\n    matrix @ matrix\n"  # on every core


def compare(*, repeats: int) -> dict[str, Any]:
    """Time the median step in processes of their own: libgomp's long spin against this repository's, idle and busy."""
    records, medians = [], {}
    for beside, neighbour in (("idle", contextlib.nullcontext), ("beside a busy process", _neighbour)):
        with neighbour():
            sides = {"short spin": lambda: _seconds_a_step(SPIN_COUNT), "libgomp's own": lambda: _seconds_a_step(None)}
            found = alternate(sides, repeats, desc=f"busy, {beside}")
        records.append(paired(f"a step of demo_vit + LoRA, batch {BATCH_SIZE}, {beside}", found))
        medians[beside] = found
    for side in ("short spin", "libgomp's own"):
        pairs = {beside: found[side] for beside, found in medians.items()}
        records.append(paired(f"{side}, idle against beside a busy process", pairs))
    return {"records": records, "notes": [f"the other process multiplies matrices on all {os.cpu_count()} cores"]}


@contextlib.contextmanager
def _neighbour() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _seconds_a_step(spin_count: str | None) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {"GOMP_SPINCOUNT": spin_count} if spin_count else {}
    command = [sys.executable, __file__, str(STEPS)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout))


def _time_steps(count: int) -> None:
    """Print the median seconds of ``count`` steps, after two that warm up."""
    import statistics

    import torch

    from bench.measuring import timed
    from bench.vit_step import adapted, new_step
    from common.models import backbones
    from common.runtime.device import resolve_precision

    device = torch.device("cpu")
    base = backbones.load("demo_vit.cifar10", weights="random", image_size=32)
    model = adapted(base, resolve_precision("auto", device), device)
    images, labels = torch.randn(BATCH_SIZE, 3, 32, 32), torch.arange(BATCH_SIZE) % 10
    step = new_step(model, model, images, labels)
    print(json.dumps(statistics.median([timed(step) for _ in range(count + 2)][2:])))


if __name__ == "__main__":
    _time_steps(int(sys.argv[1]))
