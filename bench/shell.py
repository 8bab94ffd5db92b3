"""What a person waits for in a shell: the help of every script, and the figures of a whole study."""

import itertools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measuring import ROOT, alternate, paired, run_script, single

SCRIPTS = (
    *("train_vit_lora.py", "train_full.py", "train_cnn_head.py", "train_cnn_lora.py"),
    *("evaluate.py", "plot_results.py", "reproduce.py", "bench/compare.py"),
)
STUDY = ("mnist", "fashion_mnist", "cifar10")


def start(*, repeats: int, scripts: Sequence[str] = SCRIPTS) -> dict[str, Any]:
    """Time ``--help`` of each script, from the start of the process to its exit."""
    sides = {script: (lambda script=script: run_script(script, "--help")) for script in scripts}
    for call in sides.values():
        call()
    found = alternate(sides, repeats, desc="start")
    records = [single(f"{script} --help", seconds, unit="s") for script, seconds in found.items()]
    return {"records": records, "notes": ["whole processes, one side only"]}


def plots(scratch: Path, *, repeats: int, seeds: int = 5, test_images: int = 10_000) -> dict[str, Any]:
    """Time ``plot_results.py`` on three data sets and three models: with intervals to compute, and with them kept.

    The runs are ``tests/fake_results.py``'s: their numbers are invented, and lie in ``scratch`` only.
    """
    runs = _fake_study(scratch / "results", seeds=seeds, test_images=test_images)
    copies = (scratch / f"copy{number}" for number in itertools.count())
    few = scratch / "few"
    _fake_study(few, seeds=1, test_images=100)
    _draw(few)
    latest: list[Path] = []

    def first() -> float:
        latest.append(shutil.copytree(scratch / "results", next(copies)))  # as the runs left them: no intervals kept
        return _draw(latest[-1])

    sides = {"intervals computed": first, "intervals kept": lambda: _draw(latest[-1])}
    found = alternate(sides, repeats, desc="plots")
    record = paired(f"plot_results.py, {runs} runs", {side: found[side] for side in reversed(sides)})
    return {
        "records": [record],
        "notes": [f"{runs} runs with invented numbers, {test_images:,} test images each; whole processes"],
    }


def grid(scratch: Path, *, repeats: int) -> dict[str, Any]:
    """Time ``reproduce.py demo`` from nothing to its figures: runs forked from one process, and each started anew."""
    numbers = itertools.count()

    def demo(*before: str) -> float:
        folder = scratch / str(next(numbers))
        words = ["--results-dir", folder / "results", "--figures-dir", folder / "figures"]
        return run_script("bench/demo_grid.py", *before, *words)

    sides = {"forked": demo, "each started anew": lambda: demo("--anew")}
    found = alternate(sides, repeats, desc="grid")
    return {"records": [paired("reproduce.py demo", found)], "notes": ["whole processes, figures included"]}


def _fake_study(results_dir: Path, *, seeds: int, test_images: int) -> int:
    """Write the runs of three models on three data sets; return how many."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        from fake_results import MODELS, fake_run
    finally:
        sys.path.remove(str(ROOT / "tests"))
    wanted = list(itertools.product(STUDY, list(MODELS)[:3], range(seeds)))
    for dataset, model, seed in wanted:
        fake_run(results_dir, model, dataset=dataset, seed=seed, num_test=test_images)
    return len(wanted)


def _draw(results_dir: Path) -> float:
    return run_script(
        "plot_results.py", "--results-dir", results_dir, "--figures-dir", results_dir.with_name("figures")
    )
