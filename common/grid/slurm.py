"""A grid on a Slurm cluster, through submitit: its settings, what one array task makes, and its submission."""

import json
import os
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data.dataset import index_dataset, result_name
from common.grid import scheduler
from common.grid.grid import Grid
from common.grid.scheduler import Job
from common.grid.slurm_queue import State, Submissions, follow, read_queue, submission_folder
from common.grid.slurm_task import Batch, make_runs
from common.grid.stages import PlannedRun, planned_runs
from common.runs.methods import method_spec
from common.runs.result import natural_order
from common.runtime.environment import REPOSITORY
from common.runtime.errors import UserError, suggestion

if TYPE_CHECKING:
    from submitit import AutoExecutor

MOST_TASKS = 1_000  # of one array: Slurm's MaxArraySize is 1001 where nobody changed it
SIGNAL_SECONDS = 90  # submitit's signal_delay_s, from the signal to save until the time limit
# What submitit calls the same for every cluster, beside the names of its Slurm executor.
GENERIC = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
LISTS = ("setup", "teardown", "srun_args")
KINDS = {  # of what submitit does not check itself, or only when it submits
    **dict.fromkeys(LISTS, (list, "a text, or a JSON list of texts")),
    "additional_parameters": (dict, 'a JSON object, such as {"reservation": "mine"}'),
    **dict.fromkeys(("array_parallelism", "signal_delay_s"), (int, "a whole number")),
}
FIXED = {"nodes": 1, "ntasks_per_node": 1, "tasks_per_node": 1, "use_srun": True}  # a run is one process of one node


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Return KEY=VALUE pairs as submitit's parameters; a value is JSON (120, true, ["a", "b"]) or else a text.

    Raises:
        UserError: a pair is none, a run does not allow its value, or there is no time limit.
    """
    settings = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals and text):
            raise UserError(f"`slurm` {pair!r} is not of the form KEY=VALUE, such as partition=gpu")
        try:
            settings[key] = json.loads(text)
        except ValueError:
            settings[key] = text
        if settings[key] != FIXED.get(key, settings[key]):
            raise UserError(f"`slurm` {pair}: a run is one process on one node; leave it out")
        if key in LISTS and isinstance(settings[key], str):
            settings[key] = [settings[key]]
        if not _is_of_its_kind(key, settings[key]):
            raise UserError(f"`slurm` {pair}: it must be {KINDS[key][1]}")
    minutes, delay = settings.get("time", settings.get("timeout_min")), settings.get("signal_delay_s", SIGNAL_SECONDS)
    if minutes is None:
        raise UserError("`slurm` needs the tasks' time limit in minutes, such as time=120")
    if isinstance(minutes, int) and 60 * minutes < 2 * delay:
        raise UserError(
            f"`slurm` time={minutes}: a task is told {delay} s before its end to save; give it more minutes"
        )
    return settings


def _is_of_its_kind(key: str, value: Any) -> bool:
    if not isinstance(value, KINDS.get(key, (object,))[0]):
        return False
    return key not in LISTS or all(isinstance(each, str) for each in value)


def check(pairs: Sequence[str]) -> dict[str, Any]:
    """Return ``parse_settings`` of what submitit and this machine can do, else raise UserError, before any work."""
    settings = parse_settings(pairs)
    threads_of_a_run(settings)
    open_executor(Path(tempfile.gettempdir()), settings)
    return settings


def runs_at_once(settings: Mapping[str, Any]) -> int:
    """Return how many batches one task makes side by side: one for each GPU it asks for."""
    return _count(settings, "gpus_per_node")


def threads_of_a_run(settings: Mapping[str, Any]) -> int:
    """Return the CPU threads of each run: its share of the cores that a task asks for (Slurm's default: one)."""
    return max(1, _count(settings, "cpus_per_task") // runs_at_once(settings))


def _count(settings: Mapping[str, Any], key: str) -> int:
    """Return how many of something a task asks for, at least 1: 8 for 8, and for a type of GPU as in a100:8."""
    text = str(settings.get(key, 1)).rpartition(":")[2]
    if not text.isdecimal():
        raise UserError(f"`slurm` {key}={settings[key]}: it must be a whole number")
    return max(1, int(text))


def open_executor(folder: Path, settings: Mapping[str, Any]) -> "AutoExecutor":
    """Return submitit's executor of Slurm, which keeps what it writes, the tasks' logs among it, in ``folder``.

    Raises:
        UserError: submitit or Slurm is not there, or submitit does not know a setting.
    """
    # submitit's default, SIGUSR2, is not what Slurm sends to a task that another one takes the place of.
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "TERM"
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "`executor` slurm needs submitit, which is not installed: pip install -r requirements-slurm.txt"
        ) from error
    try:
        executor = submitit.AutoExecutor(folder, cluster="slurm")
    except RuntimeError as error:
        raise UserError("`executor` slurm: there is no Slurm on this machine (srun is not found)") from error
    usual = {"stderr_to_stdout": True, "setup": [], "additional_parameters": {}}
    if not {"name", "job_name"} & set(settings):
        usual["job_name"] = folder.absolute().parent.name
    wanted = usual | dict(settings)
    wanted["setup"] = [*_environment(), *wanted["setup"]]
    wanted["additional_parameters"] = {"requeue": True} | wanted["additional_parameters"]
    try:
        executor.update_parameters(**{f"slurm_{key}": value for key, value in wanted.items()})
    except NameError as error:
        known = sorted({*re.search("Valid arguments: (.*)", str(error))[1].split(", "), *GENERIC} - set(FIXED))
        key = next(key for key in settings if key not in {*known, *FIXED})
        raise UserError(
            f"`slurm` {key}: submitit has no such parameter{suggestion(key, known)}; it has {', '.join(known)}"
        ) from error
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"`slurm`: {error}") from error
    return executor


def _environment() -> list[str]:
    """Return the lines of shell that prepare a task: this checkout's code, and nothing from the network."""
    return [
        f"export PYTHONPATH={shlex.quote(str(REPOSITORY))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export SUBMITIT_PREEMPT_SIGNAL=TERM HF_HUB_OFFLINE=1",
        # From Slurm 22.05 on srun does not inherit the number of cores from sbatch.
        '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
    ]


def batches(runs: Sequence[PlannedRun]) -> list[Batch]:
    """Return what is made in one piece: all ``runs`` that read the same kept features, in their order, or one run.

    So the features of a data set by a backbone are made once, by one process.
    """
    grouped: dict[tuple, list[PlannedRun]] = {}
    for run in runs:
        config = run.job.config
        features = config.dataset, config.backbone, config.image_size
        key = features if method_spec(config.method).reads_features else (run.key,)
        grouped.setdefault(key, []).append(run)
    return list(grouped.values())


def submit(
    runs: Sequence[PlannedRun], settings: Mapping[str, Any], submissions: Submissions, queued: Collection[str] = ()
) -> list[str]:
    """Submit ``runs``, those that follow from a choice as arrays that wait for it; return the arrays' ids.

    ``queued``: the keys of other runs, whose tasks have not ended yet.

    Raises:
        UserError: Slurm refuses an array; those submitted before go on.
    """
    under_way = {run.key for run in runs}.union(queued)
    firsts, followers, needed = [], [], set()
    for batch in batches(runs):
        needs = {need for run in batch for need in run.needs} & under_way - {run.key for run in batch}
        (followers if needs else firsts).append(batch)
        needed |= needs
    ids = _submit(firsts, settings, submissions)
    tasks = sorted({submissions.task_of[need] for need in needed}, key=natural_order)
    return ids + _submit(followers, settings, submissions, after=tasks)


def _submit(
    pieces: Sequence[Batch], settings: Mapping[str, Any], submissions: Submissions, *, after: Sequence[str] = ()
) -> list[str]:
    """Submit batches in arrays of ``MOST_TASKS`` at most; they start when the tasks ``after`` have ended."""
    if not pieces:
        return []
    if after:
        own = settings.get("dependency")
        settings = {**settings, "dependency": ",".join([*filter(None, [own]), "afterany:" + ":".join(after)])}
    executor, size = open_executor(submissions.folder, settings), runs_at_once(settings)
    tasks = [pieces[start : start + size] for start in range(0, len(pieces), size)]
    ids = []
    for start in range(0, len(tasks), MOST_TASKS):
        part = tasks[start : start + MOST_TASKS]
        try:
            jobs = executor.map_array(make_runs, part)
        except RuntimeError as error:  # submitit's, with what sbatch printed
            raise UserError(f"Slurm refuses the grid: {' '.join(str(error).split())}") from error
        keys = [[run.key for batch in task for run in batch] for task in part]
        submissions.add({job.job_id: own for job, own in zip(jobs, keys, strict=True)})
        ids.append(jobs[0].job_id.split("_")[0])
    return ids


def make_grids(
    grids: Sequence[Grid],
    folders: Mapping[str, Path],
    settings: Mapping[str, Any],
    absent: Mapping[str, str],
    *,
    wait: Callable[[Job], str] | None,
    cache: Path | None = None,
) -> tuple[dict[Job, str], bool]:
    """Submit what is missing of ``grids``, and ``wait`` for its end (``follow``) where that is given.

    Returns why each run that cannot be made, or was not, is not; and whether nothing is left to be made.

    Args:
        folders: those of ``stages``; what the cluster's jobs print lies below ``results_dir``.
        absent: why data sets and backbones could not be fetched.
        cache: the folder where is kept what image folders hold.
    """
    submissions = Submissions(submission_folder(folders["results_dir"]))
    runs, queue = [run for grid in grids for run in planned_runs(grid, **folders)], read_queue()
    states = {run: submissions.state(run, queue) for run in runs}
    counts = Counter(state.word for state in states.values())
    print(f"{len(runs)} runs: " + ", ".join(f"{count} {word}" for word, count in counts.items()), flush=True)
    failures = {run.job: why for run in runs if (why := _obstacle(run, states[run], absent))}
    queued = {run.key for run in runs if states[run].word in ("pending", "running")}
    to_do = {run.key for run in runs if states[run].word != "finished" and run.job not in failures} - queued
    if to_do:
        indexed = [_with_indices(grid, folders["data_dir"], submissions.folder, absent, cache) for grid in grids]
        runs = [run for grid in indexed for run in planned_runs(grid, **folders)]
        _announce(submit([run for run in runs if run.key in to_do], settings, submissions, queued), submissions)
    left = [run for run in runs if run.key in to_do | queued]
    if left and wait:
        return failures | follow(left, submissions, wait), True
    return failures, not left


def _obstacle(run: PlannedRun, state: State, absent: Mapping[str, str]) -> str | None:
    """Return why a run cannot be made, or why a finished one is of no use; None where nothing is in the way."""
    if state.word == "finished":
        return scheduler.job_damage(run.settled() or run.job)
    return absent.get(run.job.config.dataset) or absent.get(run.job.config.backbone)


def _with_indices(grid: Grid, data_dir: Path, folder: Path, absent: Collection[str], cache: Path | None) -> Grid:
    """Return ``grid`` with an index of each of its image folders, written now: its tasks do not read them again."""

    def with_index(name: str, own: Mapping[str, Any]) -> Mapping[str, Any]:
        if "data_index" in own or name in absent:
            return own
        return {**own, **index_setting(name, data_dir, folder, cache, source=own.get("source", "auto"))}

    return replace(grid, datasets={name: with_index(name, own) for name, own in grid.datasets.items()})


def index_setting(
    dataset: str, data_dir: Path, folder: Path, cache: Path | None, *, source: str = "auto"
) -> dict[str, Path]:
    """Write the index of an image folder into ``folder``, and return the setting that names it; {} of other data.

    ``source`` is what a named data set is read from (``data.registry.read``).
    """
    path = folder / f"{result_name(dataset)}.index.npz"
    return {"data_index": path} if index_dataset(dataset, data_dir, path, source=source, cache=cache) else {}


def _announce(ids: Sequence[str], submissions: Submissions) -> None:
    """Say what was submitted, and what to type to watch, follow and end it."""
    tasks = {task for task in submissions.task_of.values() if task.split("_")[0] in ids}
    print(
        f"submitted {len(tasks)} tasks, as the arrays {' '.join(ids)}",
        f"how far they are: squeue --jobs {','.join(ids)}, and of each run the same command with --list",
        f"to wait for the figures: the same command with --wait; to end them: scancel {' '.join(ids)}",
        f"logs: {submissions.folder}, and of each run {submissions.folder.with_name('logs')}",
        sep="\n",
        flush=True,
    )
