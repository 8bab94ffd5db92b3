"""Run a whole grid of the benchmark with one command, and draw its figures, tables and summary.

    python reproduce.py                      # demo: scikit-learn's digits, small shipped backbones, three seeds
    python reproduce.py mini                 # the same backbones on MNIST, Fashion-MNIST and digits
    python reproduce.py paper                # the study: ViT-B/16 + LoRA, ResNet50, EfficientNet-B0 at 224x224
    python reproduce.py mini --list          # which runs are finished, unfinished, running or missing

Finished runs are kept and unfinished ones resumed, so the same command goes on after Ctrl-C. Expected: demo in three
minutes and mini within an hour on two CPU cores, with the numbers in README.md; paper not yet measured here.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import plot_results
import train_cnn_head
import train_vit_lora
from common import cli, comparison, data, jobs, remarks, results, runs, tables
from common.errors import UserError
from common.jobs import Job


@dataclass(frozen=True)
class Arm:
    """One method: the script that trains it, the backbone with its weight tag, and every hyper-parameter."""

    script: Any
    backbone: str
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """Every arm on every data set with every seed; ``datasets`` maps names to what is special about them."""

    arms: tuple[Arm, ...]
    datasets: dict[str, dict[str, Any]]
    seeds: tuple[int, ...] = (0, 1, 2)


SHARED = {"weight_decay": 0.01, "augment": "none"}
LORA = {"rank": 16, "alpha": 32.0, "dropout": 0.1} | SHARED
HEAD = {"head": "mlp", "head_dropout": 0.5} | SHARED

# Of the demo's and the miniature study's recipes only the learning rate and the number of epochs were chosen, once, by
# validation accuracy (seed 0).
DEMO_LORA = LORA | {"epochs": 5, "batch_size": 32, "lr": (1e-3,)}
DEMO_HEAD = HEAD | {"epochs": 30, "batch_size": 32, "lr": (1e-3,)}
DEMO = Grid(
    arms=(
        Arm(train_vit_lora, "demo_vit.cifar10", DEMO_LORA),
        Arm(train_cnn_head, "demo_resnet.cifar10", DEMO_HEAD),
        Arm(train_cnn_head, "demo_efficientnet.cifar10", DEMO_HEAD),
    ),
    datasets={"digits": {}},
)
MINI = Grid(
    arms=DEMO.arms,
    datasets={"mnist": {"train_limit": 10_000}, "fashion_mnist": {"train_limit": 10_000}, "digits": {}},
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
GRIDS = {"demo": DEMO, "mini": MINI, "paper": PAPER}
# What comes from the internet, in bytes; what is not named here comes with the packages or with this repository.
DOWNLOADS = {
    "mnist": 11_600_000,
    "fashion_mnist": 30_900_000,
    "cifar10": 170_500_000,
    "vit_base_patch16_224.augreg_in1k": 346_000_000,
    "resnet50.tv2_in1k": 102_000_000,
    "efficientnet_b0.ra_in1k": 21_400_000,
}


@dataclass(frozen=True)
class Config:
    """Which grid, and what of it. The hyper-parameters stand at the top of this file."""

    profile: Annotated[Literal["demo", "mini", "paper"], tyro.conf.Positional] = "demo"
    """demo: digits; mini: MNIST, Fashion-MNIST, digits with small backbones; paper: the study itself."""
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
        known = tuple(GRIDS[self.profile].datasets)
        for name in self.datasets:
            cli.require(name in known, "datasets", name, f"among {', '.join(known)} (of the profile {self.profile})")
        for seed in self.seeds:
            cli.require(0 <= seed < 2**63, "seeds", seed, "0 or more")
        cli.require(self.jobs is None or 1 <= self.jobs <= 256, "jobs", self.jobs, "1 to 256")


def main(config: Config) -> None:
    # The grid, as one training configuration a run
    configs = list(_configs(config))
    planned = [_job(one, config) for one in configs]
    if config.show_list:
        print(*(f"{jobs.state(job):<10} {job.name}" for job in planned), sep="\n")
        return
    if config.print_commands:
        print(*(job.shell_line for job in planned), sep="\n")
        return

    # What the runs read: fetched here, one after the other, never by runs side by side
    absent = _fetch(config, configs)
    if config.download_only:
        print(f"{config.profile}: " + ("not all could be fetched" if absent else "all data and weights are in place"))
        _exit_with_failures(absent)
        return

    # Train, each run in a process of its own
    if any(one.backbone in DOWNLOADS for one in configs) and not absent:
        _announce_needs(config, configs, planned)
    failures = _train(config, configs, planned, absent)

    # Figures, tables, summary
    if any(jobs.state(job) == "finished" for job in planned):
        _draw_and_summarise(config, planned)
    _exit_with_failures({job.name: reason for job, reason in failures.items()})


def _configs(config: Config) -> Iterator[Any]:
    """Yield the training script's configuration of each run, seed by seed, so that an early stop leaves whole sets."""
    grid = GRIDS[config.profile]
    for seed in config.seeds or grid.seeds:
        for dataset in config.datasets or grid.datasets:
            for arm in grid.arms:
                yield arm.script.Config(
                    dataset=dataset,
                    backbone=arm.backbone,
                    seed=seed,
                    data_dir=config.data_dir,
                    results_dir=config.results_dir / config.profile,
                    **arm.recipe,
                    **grid.datasets[dataset],
                )


def _job(one: Any, config: Config) -> Job:
    """Return the child process that makes one run, and where its result and its output will lie."""
    script = sys.modules[type(one).__module__].__file__
    name = runs.run_name(cli.as_record(one), method=one.method, backbone=one.backbone)
    dataset = data.result_name(one.dataset, one.dataset_name)
    return Job(
        name=f"{dataset}/{name}/seed{one.seed}",
        command=("python", os.path.relpath(script), *cli.as_flags(one)),
        folder=one.results_dir / dataset / name / f"seed{one.seed}",
        log=one.results_dir / "logs" / f"{dataset}-{name}-seed{one.seed}.log",
    )


def _fetch(config: Config, configs: list[Any]) -> dict[str, str]:
    """Find or download every data set and backbone among ``DOWNLOADS``; return why each that is absent is."""
    wanted = {name: None for one in configs for name in (one.dataset, one.backbone) if name in DOWNLOADS}
    absent = {}
    for name in wanted:
        print(f"looking for {name} ({DOWNLOADS[name] / 1e6:,.0f} MB where it must be downloaded)", flush=True)
        try:
            _fetch_one(name, config.data_dir)
        except UserError as error:
            absent[name] = str(error)
    return absent


def _fetch_one(name: str, data_dir: Path) -> None:
    from common import backbones, named_sets  # these load PyTorch, which the demo's parent process does without

    if name in data.NAMES:
        named_sets.read(name, data_dir)
    else:
        backbones.download(name)


def _train(config: Config, configs: list[Any], planned: list[Job], absent: dict[str, str]) -> dict[Job, str]:
    """Make the runs that are not finished; return why each that is still not is not."""
    states = {job: jobs.state(job) for job in planned}
    counts = [f"{sum(found == state for found in states.values())} {state}" for state in jobs.STATES]
    print(f"{config.profile}: {len(planned)} runs: {', '.join(counts)}", flush=True)
    failures = {job: f"in use by {jobs.holder(job)}" for job in planned if states[job] == "running"}
    for one, job in zip(configs, planned, strict=True):
        missing = next((absent[name] for name in (one.dataset, one.backbone) if name in absent), None)
        if missing and states[job] != "finished":
            failures[job] = missing
    devices = _devices(config.jobs)
    to_do = [job for job in planned if states[job] != "finished" and job not in failures]
    return failures | jobs.run_all(to_do, devices, _outcome)


def _devices(at_once: int | None) -> list[str | None]:
    """Return the GPU of each run of those made at a time; None where there are no several to choose from."""
    gpus = jobs.visible_gpus()
    at_once = at_once or max(1, len(gpus))
    return [gpus[slot % len(gpus)] if len(gpus) > 1 else None for slot in range(at_once)]


def _announce_needs(config: Config, configs: list[Any], planned: list[Job]) -> None:
    """Print what the unfinished runs will take of this machine, from a measurement of some seconds."""
    from common import estimate

    todo = [one for one, job in zip(configs, planned, strict=True) if jobs.state(job) != "finished"]
    print("measuring this machine for an estimate", flush=True)
    seconds, feature_bytes = estimate.grid(todo)
    side_by_side = len(_devices(config.jobs))
    print(
        f"about {remarks.duration(seconds / side_by_side)} for {len(todo)} runs, {side_by_side} at a time, and "
        f"{feature_bytes / 1e9:.1f} GB of disk for features (.cache/features, may be removed afterwards); "
        "it may be stopped and resumed at any time",
        flush=True,
    )


def _outcome(job: Job) -> str:
    result = results.read(job.folder / results.RESULT)
    return f"test accuracy {result['test']['accuracy']:.4f}, training {comparison.training_seconds(result):.0f} s"


def _draw_and_summarise(config: Config, planned: list[Job]) -> None:
    """Draw the profile's figures and tables, and print its scores and the command of one run."""
    folder = config.results_dir / config.profile
    plot_results.main(plot_results.Config(results_dir=folder, figures_dir=config.figures_dir / config.profile))
    compared, _ = comparison.compare(results.find(folder)[0], {})
    print("", tables.terminal(compared), sep="\n")
    print(f"\none run by itself, to edit and run again:\n  {planned[0].shell_line}", flush=True)


def _exit_with_failures(failures: dict[str, str]) -> None:
    """Say what failed and why, and exit with 1; do nothing where nothing failed."""
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} failed; the same command tries them again", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
