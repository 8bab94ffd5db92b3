"""A grid of runs as plain data, and what follows from it: the configuration and the command of each run."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from common.config import as_flags
from common.data.dataset import result_name
from common.grid.scheduler import Job
from common.runs.methods import method_spec
from common.runs.naming import choosing_run, run_folder, run_name


@dataclass(frozen=True)
class Arm:
    """One method: the training script, the backbone with its weight tag, and every hyper-parameter."""

    script: ModuleType
    backbone: str
    recipe: Mapping[str, Any]
    variants: tuple[Mapping[str, Any], ...] = ({},)
    """Further settings; of several the arm chooses the best as it does among learning rates."""
    crossed: bool = False
    """Whether the study lacks it: it crosses method and backbone, and is made where it is asked for."""

    @property
    def method(self) -> str:
        """Which of ``runs.methods.METHODS`` it is."""
        return self.script.Config(backbone=self.backbone, **self.recipe).method

    def with_recipe(self, **changed: Any) -> "Arm":
        """Return this arm with other values of some hyper-parameters."""
        return replace(self, recipe={**self.recipe, **changed})


@dataclass(frozen=True)
class Grid:
    """Every arm on every data set with every seed; ``datasets`` maps names or folders to settings of their own."""

    arms: tuple[Arm, ...]
    datasets: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...] = (0, 1, 2)
    first_seed: int = 0
    """The seed on which arms are tuned, and the one run of those that draw nothing at random."""
    tuned: bool = False
    """Whether each arm chooses among its rates on the first seed, and the others take its choice (``stages``)."""
    folds: int = 1
    """Where more than one: the run of each seed is tested on the fold of its number, also of what is not random."""
    draws: bool = False
    """Whether a seed also draws the training and validation images (``split_seed``), under one run name for all."""
    images: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """(training, test) images of each data set that has no name, for an estimate of the time."""


def grid_configs(grid: Grid, **folders: Path) -> Iterator[Any]:
    """Yield the training script's configuration of each run, seed by seed, so that an early stop leaves whole sets."""
    for seed in dict.fromkeys((grid.first_seed, *grid.seeds)):
        for dataset in grid.datasets:
            for arm in grid.arms:
                if seed in grid.seeds if depends_on_seed(grid, arm.method) else seed == grid.first_seed:
                    yield arm_config(grid, arm, dataset, seed=seed, **folders)


def depends_on_seed(grid: Grid, method: str) -> bool:
    """Whether another seed of ``grid`` gives another result: of what is not random other images alone do."""
    return grid.draws or grid.folds > 1 or not method_spec(method).is_deterministic


def arm_config(grid: Grid, arm: Arm, dataset: str, *, seed: int, **folders: Path) -> Any:
    """Return the training script's configuration of ``arm`` on a data set of ``grid`` with ``seed``."""
    recipe = {**arm.recipe, **grid.datasets[dataset], **folders, "folds": grid.folds}
    return with_seed(grid, arm.script.Config(dataset=dataset, backbone=arm.backbone, **recipe), seed)


def with_seed(grid: Grid, config: Any, seed: int, **settings: Any) -> Any:
    """Return ``config`` with another seed of ``grid``, which is also the number of its fold or its draw."""
    if grid.draws:
        # Draws stand beside one another as seeds do, in one folder: its name leaves the split seed out.
        name = config.run_name or run_name(config, backbone=config.backbone, image_size=config.image_size)
        settings |= {"split_seed": seed, "run_name": name}
    return replace(config, seed=seed, fold=seed if grid.folds > 1 else 0, **settings)


def on_all_images(config: Any, *, seed: int, lr: float | None) -> Any:
    """Return the configuration that trains what ``config`` does on all images of its folder, at the rate it chose."""
    chosen = {} if lr is None else {"lr": (lr,), "extend": 0, "tuned_on": None}
    return replace(config, seed=seed, folds=1, fold=0, all_images=True, **chosen)


def job_for(config: Any) -> Job:
    """Return the child process that makes the run of a training script's ``config``, and where its files will lie.

    The backbone must have its weight tag, and ``image_size`` be left to it: the run's name is found without timm.
    """
    script = sys.modules[type(config).__module__].__file__
    dataset = result_name(config.dataset, config.dataset_name)
    folder = run_folder(config, dataset=dataset, backbone=config.backbone, image_size=config.image_size)
    name = folder.parent.name
    return Job(
        name=f"{dataset}/{name}/seed{config.seed}",
        command=("python", os.path.relpath(script), *as_flags(config)),
        folder=folder,
        log=config.results_dir / "logs" / f"{dataset}-{name}-seed{config.seed}.log",
        config=config,
        follows=None if config.tuned_on is None else job_for(choosing_run(config)).folder,
    )


def with_settings(grid: Grid, **settings: Any) -> Grid:
    """Return ``grid`` with the same ``settings`` in each of its arms."""
    return replace(grid, arms=tuple(arm.with_recipe(**settings) for arm in grid.arms))


def narrow_grid(grid: Grid, *, seeds: Sequence[int] = (), datasets: Sequence[str] = ()) -> Grid:
    """Return the part of a grid with the given seeds, each once, and data sets; empty means the grid's own."""
    kept = {name: its for name, its in grid.datasets.items() if not datasets or name in datasets}
    return replace(grid, seeds=tuple(dict.fromkeys(seeds)) or grid.seeds, datasets=kept)
