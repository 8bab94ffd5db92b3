"""Run a whole grid of the benchmark with one command, and draw its figures, tables and summary.

    python reproduce.py                      # demo: scikit-learn's digits, small shipped backbones, three seeds
    python reproduce.py mini                 # the same backbones on MNIST, Fashion-MNIST and digits
    python reproduce.py paper                # the study: ViT-B/16 + LoRA, ResNet50, EfficientNet-B0 at 224x224
    python reproduce.py paper --tune         # three learning rates for each arm, chosen on validation images
    python reproduce.py mini --list          # which runs are finished, unfinished, running or missing
    python reproduce.py compare --dataset path/to/images --backbones demo_vit demo_resnet demo_efficientnet

Finished runs are kept and unfinished ones resumed, so the same command goes on after Ctrl-C. Expected: demo in three
minutes and mini within an hour on two CPU cores, with the numbers in README.md; paper not yet measured here.
"""

import math
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

import plot_results
import train_cnn_head
import train_vit_lora
from common import cli
from common.config import check_folder, require
from common.data.dataset import load_dataset, result_name
from common.data.registry import DATASETS
from common.evaluation.comparison import compare
from common.grid import prefetch, scheduler
from common.grid.grid import Arm, Grid, grid_configs, job_for, narrow_grid
from common.grid.scheduler import Job
from common.runs.result import RESULT_FILE, find_runs, read_result
from common.runtime.progress import duration

SHARED = {"weight_decay": 0.01, "augment": "none"}
LORA = {"rank": 16, "alpha": 32.0, "dropout": 0.1} | SHARED
HEAD = {"head": "mlp", "head_dropout": 0.5} | SHARED

# Of the demo only learning rates and numbers of epochs were chosen, once, by validation accuracy at seed 0 (LoRA among
# 3e-4, 1e-3 and 3e-3, heads among 1e-3, 3e-3 and 1e-2). The miniature study gives each arm two rates to choose from.
DEMO = Grid(
    arms=(
        Arm(train_vit_lora, "demo_vit.cifar10", LORA | {"epochs": 5, "batch_size": 32, "lr": (3e-3,)}),
        Arm(train_cnn_head, "demo_resnet.cifar10", HEAD | {"epochs": 60, "batch_size": 32, "lr": (3e-3,)}),
        Arm(train_cnn_head, "demo_efficientnet.cifar10", HEAD | {"epochs": 60, "batch_size": 32, "lr": (3e-3,)}),
    ),
    datasets={"digits": {}},
)
MINI = Grid(
    arms=(
        Arm(train_vit_lora, "demo_vit.cifar10", LORA | {"epochs": 3, "batch_size": 32, "lr": (1e-3, 3e-3)}),
        Arm(train_cnn_head, "demo_resnet.cifar10", HEAD | {"epochs": 30, "batch_size": 32, "lr": (1e-3, 3e-3)}),
        Arm(train_cnn_head, "demo_efficientnet.cifar10", HEAD | {"epochs": 30, "batch_size": 32, "lr": (1e-3, 3e-3)}),
    ),
    datasets={"mnist": {"train_limit": 10_000}, "fashion_mnist": {"train_limit": 10_000}},
)
PUBLISHED = {"epochs": 5, "batch_size": 64}
PAPER = Grid(
    arms=(
        Arm(train_vit_lora, "vit_base_patch16_224.augreg_in1k", LORA | PUBLISHED | {"lr": (3e-5,)}),
        Arm(train_cnn_head, "resnet50.tv2_in1k", HEAD | PUBLISHED | {"lr": (1e-4,)}),
        Arm(train_cnn_head, "efficientnet_b0.ra_in1k", HEAD | PUBLISHED | {"lr": (1e-4,)}),
    ),
    datasets={"mnist": {}, "fashion_mnist": {}, "cifar10": {}},
)
# compare, and paper --tune: as many rates for each arm, the published one among them, chosen on validation images.
RATES = {train_vit_lora: (3e-5, 3e-4, 1e-3), train_cnn_head: (1e-4, 1e-3, 3e-3)}
COMPARE = {"batch_size": 32}
COMPARE_STEPS = 1_000  # optimiser steps at least, by more epochs where there are few images (5 to 100)
COMPARE_LIMITS = (
    "what this does not show: how the models do on images of another kind, with other pretraining, at learning rates "
    "that were not tried, or what they cost on other machines; the seeds share one split of the images"
)
STUDY = tuple(arm.backbone for arm in PAPER.arms)
PROFILES = {"demo": (DEMO,), "mini": (MINI, DEMO), "paper": (PAPER,)}


@dataclass(frozen=True)
class Config:
    """Which grid, and what of it. The hyper-parameters stand at the top of this file."""

    profile: Annotated[Literal["demo", "mini", "paper", "compare"], tyro.conf.Positional] = "demo"
    """demo: digits; mini: MNIST, Fashion-MNIST, digits with small backbones; paper: the study; compare: your images."""
    dataset: str | None = None
    """compare: an image folder, or the name of a data set."""
    backbones: tuple[str, ...] = STUDY
    """compare: which backbones; of a ViT LoRA and the head alone are trained, of a CNN the head."""
    tune: bool = False
    """paper: try three learning rates for each arm and keep the best on validation images."""
    show_list: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Only show each run as finished, running, unfinished or missing."""
    print_commands: bool = False
    """Only print one shell line a run, for GNU parallel, xargs or a Slurm array."""
    download_only: bool = False
    """Only fetch the data sets and weights: compute nodes often have no network."""
    seeds: tuple[int, ...] = ()
    """Seeds to run (default: the profile's three)."""
    datasets: tuple[str, ...] = ()
    """Data sets to run (default: all of the profile)."""
    data_dir: Path = Path("data")
    """Where the data sets lie, or are downloaded to."""
    results_dir: Path = Path("results")
    """Results go to RESULTS_DIR/PROFILE/."""
    figures_dir: Path = Path("figures")
    """Figures go to FIGURES_DIR/PROFILE/."""
    jobs: int | None = None
    """Runs at a time, each with a GPU of its own where there are several (default: one a GPU, one on a CPU)."""

    def __post_init__(self) -> None:
        check_folder("results_dir", self.results_dir)
        check_folder("figures_dir", self.figures_dir)
        is_comparison = self.profile == "compare"
        require(is_comparison == bool(self.dataset), "dataset", self.dataset, "given for compare, and only there")
        require(is_comparison or self.backbones == STUDY, "backbones", self.backbones, "given for compare only")
        require(len(self.backbones) > 0, "backbones", self.backbones, "one or more timm model names")
        require(self.profile == "paper" or not self.tune, "tune", self.tune, "given for paper only")
        known = [name for grid in PROFILES.get(self.profile, ()) for name in grid.datasets]
        for name in self.datasets:
            require(name in known, "datasets", name, f"among {', '.join(known) or 'none'} for {self.profile}")
        for seed in self.seeds:
            require(0 <= seed < 2**63, "seeds", seed, "0 or more")
        require(self.jobs is None or 1 <= self.jobs <= 256, "jobs", self.jobs, "1 to 256")


def main(config: Config) -> None:
    # The grid, as one child process a run
    folder = config.results_dir / config.profile
    asked = _grids(config)
    planned = [
        job_for(one) for grid in asked for one in grid_configs(grid, data_dir=config.data_dir, results_dir=folder)
    ]
    if config.show_list:
        print(*(f"{scheduler.job_state(job):<10} {job.name}" for job in planned), sep="\n")
        return
    if config.print_commands:
        print(*(job.shell_line for job in planned), sep="\n")
        return

    # What the runs read: fetched here, one after the other, never by runs side by side
    remote = prefetch.wanted([job.config for job in planned])
    if config.profile in ("paper", "compare"):
        _announce_needs(config, asked[0], planned, remote)
    absent = prefetch.fetch(remote, config.data_dir)
    if config.download_only:
        print(f"{config.profile}: " + ("not all could be fetched" if absent else "all data and weights are in place"))
        _exit_with_failures(absent)
        return

    # Train, each run in a process of its own
    failures = _train(config, planned, absent)

    # Figures, tables, summary
    if any(scheduler.job_state(job) == "finished" for job in planned):
        _draw_and_summarise(config, planned)
    _exit_with_failures({job.name: reason for job, reason in failures.items()})


def _grids(config: Config) -> list[Grid]:
    """Return the profile's grids, reduced to the seeds and data sets that were asked for."""
    if config.profile == "compare":
        return [narrow_grid(_comparison_grid(config), seeds=config.seeds)]
    profile = PROFILES[config.profile]
    if config.tune:
        tuned = [tuple(arm.with_recipe(lr=RATES[arm.script]) for arm in grid.arms) for grid in profile]
        profile = [replace(grid, arms=arms) for grid, arms in zip(profile, tuned, strict=True)]
    return [narrow_grid(grid, seeds=config.seeds, datasets=config.datasets) for grid in profile]


def _comparison_grid(config: Config) -> Grid:
    """Return a grid on the user's own images: of a ViT LoRA and its head alone, of a CNN its head."""
    from common.models import demo_backbones
    from common.models.backbones import is_vit, resolve_tag

    tags = list(map(resolve_tag, config.backbones))
    for tag in tags:
        demo_backbones.require_other_data(tag, config.dataset)  # before the images are read
    loaded = load_dataset(config.dataset, data_dir=config.data_dir)
    steps_per_epoch = math.ceil(len(loaded.train) / COMPARE["batch_size"])
    epochs = min(100, max(5, math.ceil(COMPARE_STEPS / steps_per_epoch)))
    arms = []
    for tag in tags:
        demo_backbones.require_other_data(tag, loaded.name, loaded.classes)
        if is_vit(tag):
            lora = Arm(train_vit_lora, tag, LORA | COMPARE | {"epochs": epochs, "lr": RATES[train_vit_lora]})
            arms += [lora, lora.with_recipe(rank=0, lr=RATES[train_cnn_head])]
        else:
            arms.append(Arm(train_cnn_head, tag, HEAD | COMPARE | {"epochs": epochs, "lr": RATES[train_cnn_head]}))
    images = {config.dataset: (len(loaded.train) + len(loaded.val), len(loaded.test))}
    return Grid(tuple(arms), {config.dataset: {}}, images=images)


def _announce_needs(config: Config, grid: Grid, planned: list[Job], remote: list[str]) -> None:
    """Print what the grid downloads, and what its unfinished runs take of this machine by a measurement of seconds."""
    from common.grid import estimate

    size = sum(prefetch.download_bytes(name) for name in remote) / 1e6
    reads = (
        f"reads {', '.join(remote)}: {size:,.0f} MB, downloaded where not here yet" if remote else "downloads nothing"
    )
    print(f"{config.profile} {reads}", flush=True)
    todo = [job.config for job in planned if scheduler.job_state(job) != "finished"]
    if config.download_only or not todo:
        return
    print("measuring this machine for an estimate of the time", flush=True)
    images = {name: (spec.num_train, spec.num_test) for name, spec in DATASETS.items()} | dict(grid.images)
    seconds, feature_bytes = estimate.grid(todo, images)
    at_once = len(scheduler.job_devices(config.jobs))
    print(
        f"{len(todo)} runs take about {duration(seconds / at_once)} here, {at_once} at a time, and "
        f"{feature_bytes / 1e9:.1f} GB of disk for features (.cache/features, to be deleted at will); "
        "they may be stopped and resumed at any time",
        flush=True,
    )


def _train(config: Config, planned: list[Job], absent: dict[str, str]) -> dict[Job, str]:
    """Make the runs that are not finished; return why each that is still not is not."""
    states = {job: scheduler.job_state(job) for job in planned}
    counts = Counter(states.values())
    numbers = ", ".join(f"{counts[state]} {state}" for state in scheduler.STATES)
    print(f"{config.profile}: {len(planned)} runs: {numbers}", flush=True)
    obstacles = {job: _obstacle(job, state, absent) for job, state in states.items()}
    to_do = [job for job, obstacle in obstacles.items() if not obstacle and states[job] != "finished"]
    failures = {job: obstacle for job, obstacle in obstacles.items() if obstacle}
    return failures | scheduler.run_all(to_do, scheduler.job_devices(config.jobs), _outcome)


def _obstacle(job: Job, state: str, absent: dict[str, str]) -> str | None:
    """Return why a run cannot be made now, or why a finished one is of no use; None where nothing is in the way."""
    if state == "finished":
        return scheduler.job_damage(job)
    if state == "running":
        return f"in use by {scheduler.job_holder(job)}"
    return absent.get(job.config.dataset) or absent.get(job.config.backbone)


def _outcome(job: Job) -> str:
    result = read_result(job.folder / RESULT_FILE)
    seconds = result.efficiency.total_train_seconds
    return f"test accuracy {result.test.scores['accuracy']:.4f}, training with features {seconds:.0f} s"


def _draw_and_summarise(config: Config, planned: list[Job]) -> None:
    """Draw the profile's figures and tables, and print its scores and the command of one run."""
    from common.evaluation.frames import frames_of
    from common.report import tables  # pandas takes a third of a second, --help does not wait

    folder = config.results_dir / config.profile
    figures = config.figures_dir / config.profile
    drawn = f"{result_name(config.dataset)}/*" if config.profile == "compare" else "*"
    plot_results.main(plot_results.Config(results_dir=folder, figures_dir=figures, runs=drawn))
    comparisons, _ = compare(find_runs(folder, drawn)[0], {})
    print("", tables.terminal(comparisons, frames_of(comparisons)), sep="\n")
    if config.profile == "compare":
        print(f"\n{COMPARE_LIMITS}")
    print(f"\none run by itself, to edit and run again:\n  {planned[0].shell_line}", flush=True)


def _exit_with_failures(failures: dict[str, str]) -> None:
    """Say what failed and why, each reason once, and exit with 1; do nothing where nothing failed."""
    for reason in dict.fromkeys(failures.values()):
        names = [name for name, its in failures.items() if its == reason]
        print(f"failed: {names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)}: {reason}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} failed; the same command tries them again", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
