"""What each defect of the published code is worth: the runs to make, and the differences to the sound ones.

``reproduce.py defects`` makes the runs of ``bench/published_defects.py`` beside sound ones of the same settings.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import published_defects
from bench.published_defects import DEFECTS, EPOCHS_FILE, SCRIPTS, Defect, arm_of, concerning, defective, stamp
from common.config import as_flags
from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import count_seeds, interval, signed
from common.evaluation.frames import table
from common.evaluation.kept_statistics import correct_images
from common.evaluation.significance import Estimate
from common.evaluation.spread import Spread, error_of_mean
from common.figures import style
from common.figures.defects import defects
from common.grid.grid import Grid, grid_configs, job_for
from common.grid.scheduler import Job
from common.report.tables import write_table
from common.runs.naming import run_identity
from common.runs.predictions import read_predictions
from common.runs.record import RunResult, disagreement
from common.runs.result import RESULT_FILE, Run, is_intact
from common.runs.schema import typed
from common.runtime.errors import UserError

FOLDER = "deliberate_defects"  # below the sound runs' results, where no reader of these looks
HALVES = 200  # pairs of halves of the test split, over which the choice on one is judged by the other
TITLE = "Deliberate defects of the published code, against the sound runs"
NO_EFFECT = "no effect shown with these backbones"
ARMS = ("LoRA", "the CNN")
SIGNS = {"+": "higher", "-": "lower", "0": "the same"}


def defect_jobs(grid: Grid, *, data_dir: Path, results_dir: Path) -> list[Job]:
    """Return a job for each sound run of ``grid`` and each defect that concerns it; on digits the flips alone."""
    configs = grid_configs(grid, data_dir=data_dir, results_dir=results_dir / FOLDER)
    return [_job(defective(config, name)) for config in configs for name in _measured(config)]


def _measured(config: Any) -> list[str]:
    return [name for name in concerning(config) if config.dataset != "digits" or name == "flips"]


def _job(config: Any) -> Job:
    """Return the child process of a defective run."""
    job = job_for(config)
    (script,) = (name for name, module in SCRIPTS.items() if isinstance(config, module.Config))
    flags = as_flags(_sound(config, SCRIPTS[script].Config))
    command = ("python", os.path.relpath(published_defects.__file__), config.defect, script, *flags)
    return replace(job, name=f"{FOLDER}/{job.name}", command=command, read=read_defective)


def _sound(config: Any, kind: type) -> Any:
    return kind(**{name: value for name, value in vars(config).items() if name != "defect"})


def read_defective(path: Path) -> RunResult:
    """Read the ``result.json`` of a defective run, with its sound method; every other reader refuses it.

    Raises:
        UserError: it cannot be read, was changed since it was written, or is no defective run's.
    """
    try:
        record = json.loads(path.read_bytes())
        result = typed(record, RunResult)
        defect = result.config.get("defect")
        method = result.method.removesuffix(stamp("", defect))
        problem = None if is_intact(record) and method != result.method else "it is no whole record of a defective run"
        result = replace(result, method=method)
        problem = problem or disagreement(result)
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except ValueError as error:
        problem = str(error)
    if problem:
        raise UserError(f"{str(path)!r}: {problem}; remove the folder and make the run again")
    return result


def find_defective(results_dir: Path) -> list[Run]:
    """Return the defective runs beside the sound ones of ``results_dir``, in the order of their names."""
    paths = sorted((results_dir / FOLDER).glob(f"*/*/seed*/{RESULT_FILE}"))
    return [Run(path.parent, read_defective(path)) for path in paths]


def write_defects(comparisons: Sequence[Comparison], results_dir: Path, figures_dir: Path) -> list[str]:
    """Draw ``defects`` and write ``defects.*``; return the files' paths and a line a row of the table."""
    rows = effect_rows(comparisons, find_defective(results_dir))
    if "difference" not in rows:  # no defective run is there
        return []
    texts = _texts(rows)
    seeds = count_seeds(*rows["seeds"].dropna().astype(int).agg(["min", "max"]))
    halves = "Of validation on the test split: the score on a half that chose minus that on the other, over seeds. "
    caption = (
        "Reported accuracy of defective minus sound runs, paired by seed and test image; bars: 95 % interval over "
        f"images and {seeds}, each for itself; hollow where no effect is shown. "
        f"{halves * ('validation-on-test' in set(rows['defect']))}These runs are wrong on purpose."
    )
    drawn = rows.dropna(subset="difference").assign(shown=rows["favours"].isin(ARMS))
    changes = [defect.title for defect in DEFECTS.values()]
    with style.context():
        figure = defects(drawn, changes=changes, title=TITLE, caption=caption)
        figures = style.save(figure, figures_dir / "defects")
    files = [*figures, *write_table(results_dir / "defects", rows, texts)]
    return [*map(str, files), *map(_sentence, rows.to_dict("records"))]


def effect_rows(comparisons: Sequence[Comparison], defective_runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row a defect, data set and model: the difference in reported accuracy, and whom it favours.

    ``predicted`` is its sign as it was foreseen. Of one seed there is a row a data set and pair of models, whose
    ``order`` says which share of the pairs of seeds has another order than the means.
    """
    rows = [row for comparison in comparisons for row in _rows_of(comparison, defective_runs)]
    rows += [row for comparison in comparisons for row in _order_rows(comparison)]
    return table(rows)


def _rows_of(comparison: Comparison, defective_runs: Sequence[Run]) -> Iterator[dict]:
    own = [run for run in defective_runs if run.dataset == comparison.dataset]
    for name, defect in DEFECTS.items():
        for series in comparison.series:
            seeds, settings = {run.seed for run in series.runs}, _settings(series.runs[0].result)
            alike = (run for run in own if run.seed in seeds and _settings(run.result) == settings)
            runs = [run for run in alike if run.result.config["defect"] == name]
            if len(runs) > 1 or (runs and name != "validation-on-test"):  # whose spread is that over seeds alone
                yield _about(comparison, series, name, defect) | _effect(series, runs, name)


def _settings(result: RunResult) -> dict:
    """Return what a defective run and its sound one have in common."""
    settings = run_identity(result.config, result.method) | {"backbone": result.backbone}
    return {name: value for name, value in settings.items() if name not in ("seed", "defect")}


def _about(comparison: Comparison, series: Series, name: str, defect: Defect) -> dict:
    backbone = series.runs[0].result.backbone
    sign = defect.sign(arm_of(series.method, backbone), backbone)
    about = _of_data(comparison) | {"defect": name, "title": defect.title}
    return about | {"model": series.label, "family": series.family, "predicted": sign}


def _of_data(comparison: Comparison) -> dict:
    return {"dataset": comparison.dataset, "panel": comparison.title}


def _effect(series: Series, runs: Sequence[Run], name: str) -> dict:
    """Return what a defect adds to the accuracy that is reported, over the seeds that both have."""
    found = replace(series, runs=tuple(runs))
    if name == "validation-on-test":
        values = np.array([optimism(run) for run in runs])
        estimate = Spread(values.mean(), 0.0, series.runs[0].result.data.num_test, [values]).estimate
    else:
        estimate = paired_difference(_correct_by_seed(found), _correct_by_seed(series))
    low, high = estimate.interval(bounds=(-1.0, 1.0))
    numbers = {"difference": estimate.value, "low": low, "high": high, "seeds": len(runs)}
    return numbers | {"favours": _favours(estimate, len(runs), is_lora=series.method == "lora")}


def _correct_by_seed(series: Series) -> dict[int, np.ndarray]:
    """Return by seed where the prediction of each test image is right, (N,) bool."""
    return {run.seed: correct_images(run) for run in series.runs}


def paired_difference(ours: Mapping[int, np.ndarray], theirs: Mapping[int, np.ndarray]) -> Estimate:
    """Return the difference of mean accuracy, ours - theirs, over the seeds that both have, at least one.

    Both say by seed where the prediction of each of the same test images is right, (N,) bool. What a seed brings to
    both alike is no part of the spread: the variance is that of the images, of each the mean difference over seeds, and
    that of the seeds, of each the mean difference over images; of a single seed the former alone.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    differences = np.stack([ours[seed].astype(np.float64) - theirs[seed] for seed in seeds])  # (K, N)
    of_images, of_seeds = differences.mean(axis=0), differences.mean(axis=1)
    return Spread(of_seeds.mean(), error_of_mean(of_images), len(of_images), [of_seeds]).estimate


def _favours(estimate: Estimate, seeds: int, *, is_lora: bool) -> str:
    """Return whom an effect favours: its own arm where it raises the score, the other one where it lowers it."""
    if seeds < 2:
        return "one seed, nothing is claimed"
    if not estimate.interval().excludes_zero:
        return NO_EFFECT
    return ARMS[(estimate.value > 0) != is_lora]


def optimism(run: Run, halves: int = HALVES) -> float:
    """Return by how much the score on a half of the test split on which the epoch was chosen exceeds that on the other.

    The mean over random halves, each of which is the chosen one in turn, so that it does not matter which is easier:
    0 or more, but for epochs that are equally good on one half.
    """
    predictions = read_predictions(run.folder, run.result)
    with np.load(run.folder / EPOCHS_FILE, allow_pickle=False) as arrays:
        correct = (arrays["predicted"] == predictions.val_labels).astype(np.float64)  # (E, N)
    rng, count = np.random.default_rng(0), correct.shape[1]
    differences = []
    for _ in range(halves):
        order = rng.permutation(count)
        one, two = (correct[:, half].mean(axis=1) for half in (order[: count // 2], order[count // 2 :]))  # (E,)
        differences += [one[one.argmax()] - two[one.argmax()], two[two.argmax()] - one[two.argmax()]]
    return float(np.mean(differences))


def _order_rows(comparison: Comparison) -> Iterator[dict]:
    for a, b in combinations(comparison.series, 2):
        ours, theirs = (np.array([run.test.scores["accuracy"] for run in series.runs]) for series in (a, b))
        about = _of_data(comparison) | {"defect": "one-seed", "title": "one seed"}
        other = other_order(ours, theirs)
        order = f"{other} of {ours.size * theirs.size} pairs of seeds in the other order"
        yield about | {"model": f"{a.label} and {b.label}", "order": order, "share": other / (ours.size * theirs.size)}


def other_order(ours: np.ndarray, theirs: np.ndarray) -> int:
    """Return how many pairs of one seed of each model have not the order of the means; a tie has none."""
    differences = ours[:, None] - theirs[None, :]
    return int((np.sign(differences) != np.sign(ours.mean() - theirs.mean())).sum())


def _sentence(row: Mapping) -> str:
    about = f"{row['dataset']}: {row['title']}, {row['model']}"
    if row["defect"] == "one-seed":
        return f"{about}: {row['order']}"
    favours = row["favours"] if row["favours"] not in ARMS else f"favours {row['favours']}"
    ends = interval(row["low"], row["high"])
    return f"{about}: {signed(row['difference'])} points ({ends}), predicted {SIGNS[row['predicted']]}: {favours}"


def _texts(rows: pd.DataFrame) -> pd.DataFrame:
    records: list[Mapping] = rows.to_dict("records")
    points = [
        row["order"]
        if row["defect"] == "one-seed"
        else f"{signed(row['difference'])} [{interval(row['low'], row['high'])}]"
        for row in records
    ]
    return pd.DataFrame(
        {
            "Data set": rows["dataset"],
            "Deliberate defect": rows["title"],
            "Model": rows["model"],
            "Predicted": rows["predicted"].fillna(""),
            "Points": points,
            "Favours": rows["favours"].fillna(""),
        }
    )
