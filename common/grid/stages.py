"""The runs of a grid in stages, where later ones follow from what earlier ones chose."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.grid.grid import Arm, Grid, arm_config, depends_on_seed, grid_configs, job_for, with_seed
from common.grid.scheduler import Job
from common.runs.convergence import TUNING
from common.runs.folder import lock_file
from common.runs.methods import method_spec
from common.runs.record import RunResult
from common.runs.result import RESULT_FILE, read_result
from common.runtime.errors import UserError
from common.runtime.files import remove_leftovers, temporary_path
from common.runtime.locks import locked


@dataclass(frozen=True)
class Stage:
    """Runs that can be made side by side; ``name`` says what they are for."""

    name: str
    jobs: list[Job]
    unknown: int = 0
    """How many runs belong to it that only a finished stage before it can name."""
    copies: list[tuple[Path, Path]] = field(default_factory=list)
    """(from, to): runs of a chosen variant, and their place among the results."""

    def take_over(self) -> None:
        """Make the copies that are not there yet."""
        for source, target in self.copies:
            if not (target / RESULT_FILE).exists():
                with locked(lock_file(target), what=repr(str(target)), wait=True):
                    _copy(source, target)


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run of a grid as it is known before the first one is made.

    ``key`` names it for as long as the grid is the same; ``job`` is how it may turn out. A run that follows from a
    choice has the ``part`` of the grid, one arm on one data set, that makes it, and the keys of the runs it ``needs``.
    """

    key: str
    job: Job
    part: Grid | None = None
    needs: tuple[str, ...] = ()
    folders: tuple[tuple[str, Path], ...] = ()

    def settled(self, *, take_over: bool = False) -> Job | None:
        """Return its job; None while the choice that names it is not made. ``take_over``: see ``Stage``."""
        if self.part is None:
            return self.job
        for stage in list(stages(self.part, **dict(self.folders)))[1:]:
            if take_over:
                stage.take_over()
            return next((job for job in stage.jobs if job.config.seed == self.job.config.seed), None)
        return None


def planned_runs(grid: Grid, **folders: Path) -> list[PlannedRun]:
    """Return all runs of ``grid``, also those that a choice must name first; ``folders`` are those of ``stages``."""
    if not grid.tuned:
        return [PlannedRun(job.name, job) for stage in stages(grid, **folders) for job in stage.jobs]
    runs = []
    for dataset, arm in ((dataset, arm) for dataset in grid.datasets for arm in grid.arms):
        part = replace(grid, arms=(arm,), datasets={dataset: grid.datasets[dataset]})
        tuning, *after = stages(part, **folders, presume=True)
        needs = tuple(job.name for job in tuning.jobs)
        runs += [PlannedRun(job.name, job) for job in tuning.jobs]
        for job in (job for stage in after for job in stage.jobs):
            seed = job.config.seed
            what = "twice the epochs" if seed == grid.first_seed else f"seed {seed}"
            runs.append(PlannedRun(f"{needs[0]}, then {what}", job, part, needs, tuple(folders.items())))
    return runs


def _copy(source: Path, target: Path) -> None:
    """Copy a finished run's folder, all of it or nothing; another host may make the same copy at the same time."""
    remove_leftovers(target.parent, "copy", of=f"{target.name}.*")
    new = temporary_path(target, "copy")
    shutil.copytree(source, new)
    if not (target / RESULT_FILE).exists():
        shutil.rmtree(target, ignore_errors=True)  # an interrupted run, if anything
    try:
        new.rename(target)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        if not target.exists():
            raise


def stages(grid: Grid, *, data_dir: Path, results_dir: Path, presume: bool = False) -> Iterator[Stage]:
    """Yield the stages of ``grid``; ask for the next one when the runs of the last one were made.

    A grid that is not tuned has one. In a tuned one each arm first chooses among its learning rates and its variants,
    on validation images, by the first seed (or fold). Then the others take its choice; and where the rate falls to 0,
    so that the last epochs are always among the best, the choice is trained once more with twice the epochs
    (``gains``; not in a grid of ``draws``). The runs of several variants and of that check lie below
    ``results_dir / TUNING``.

    ``presume`` names also runs that are not known yet, as if the last variant and the middle rate were chosen.
    """
    folders = {"data_dir": data_dir, "results_dir": results_dir}
    if not grid.tuned:
        yield Stage("all runs", [job_for(config) for config in grid_configs(grid, **folders)])
        return
    arms = [(dataset, arm) for dataset in grid.datasets for arm in grid.arms]
    tuning = [_tuning_jobs(grid, arm, dataset, folders) for dataset, arm in arms]
    first = f"fold {grid.first_seed}" if grid.folds > 1 else f"seed {grid.first_seed}"
    yield Stage(f"choices of {first}", [job for jobs in tuning for job in jobs])
    after = _after(grid, [_choose(jobs, results_dir, presume=presume) for jobs in tuning])
    if after.jobs or after.unknown:
        yield after


def _tuning_jobs(grid: Grid, arm: Arm, dataset: str, folders: dict[str, Path]) -> list[Job]:
    """Return the run of each variant of an arm; an arm of one has its place among the results at once."""
    variants = [arm.with_recipe(**variant) for variant in arm.variants]
    configs = [arm_config(grid, variant, dataset, seed=grid.first_seed, **folders) for variant in variants]
    return [_hidden_job(config) for config in configs] if len(configs) > 1 else [job_for(configs[0])]


def _hidden_job(config: Any) -> Job:
    """Return a job whose run lies apart from the results."""
    job = job_for(replace(config, results_dir=config.results_dir / TUNING))
    return replace(job, name=f"{TUNING}/{job.name}")


@dataclass(frozen=True)
class _Choice:
    """What an arm chose on a data set: its first seed's run among the results, and the learning rate in it.

    ``config`` is None while the variant is not known, ``lr`` while the rate is not, or where there is none.
    """

    tried: Job
    config: Any = None
    lr: float | None = None

    @property
    def has_rate(self) -> bool:
        """Whether it is trained by steps, at a learning rate."""
        return method_spec(self.tried.config.method).has_steps

    @property
    def is_checked(self) -> bool:
        """Whether its convergence is: under a constant rate it is told by which epoch is the best."""
        return self.has_rate and self.tried.config.schedule == "cosine"


def _choose(jobs: Sequence[Job], results_dir: Path, *, presume: bool) -> _Choice:
    """Choose among the ``jobs`` of an arm's variants by validation accuracy, the first of equals."""
    results = [_result(job) for job in jobs]
    if all(results):
        best = max(range(len(jobs)), key=lambda number: results[number].val.scores["accuracy"])
        lr = results[best].history[0].lr if results[best].history else None
        return _Choice(jobs[best], replace(jobs[best].config, results_dir=results_dir), lr)
    config = replace(jobs[-1].config, results_dir=results_dir)
    if presume:
        return _Choice(jobs[-1], config, config.lr[len(config.lr) // 2])
    return _Choice(jobs[-1], config if len(jobs) == 1 else None)


def _result(job: Job) -> RunResult | None:
    try:
        return read_result(job.folder / RESULT_FILE)
    except UserError:  # not there yet; a damaged one is said where the job's own turn comes
        return None


def _after(grid: Grid, choices: Sequence[_Choice]) -> Stage:
    """Return the stage that follows from ``choices``."""
    seeds = [seed for seed in grid.seeds if seed != grid.first_seed]
    checked = [choice for choice in choices if choice.is_checked and not grid.draws]
    seeded = [choice for choice in choices if depends_on_seed(grid, choice.tried.config.method)]
    jobs = [
        _hidden_job(replace(choice.config, lr=(choice.lr,), extend=0, epochs=2 * choice.config.epochs))
        for choice in checked
        if choice.lr
    ]
    jobs += [
        job_for(with_seed(grid, choice.config, seed, tuned_on=grid.first_seed if choice.has_rate else None))
        for seed in seeds
        for choice in seeded
        if choice.config
    ]
    places = [(choice.tried.folder, job_for(choice.config).folder) for choice in choices if choice.config and choice.lr]
    others = "draws" if grid.draws else f"{'folds' if grid.folds > 1 else 'seeds'}, and twice the epochs"
    return Stage(
        f"other {others}",
        jobs,
        unknown=len(checked) + len(seeded) * len(seeds) - len(jobs),
        copies=[(tried, place) for tried, place in places if tried != place],
    )
