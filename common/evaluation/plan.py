"""What was to be compared before the results were seen: the declared pairs of models, the seeds, the margin."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path

import numpy as np

from common.evaluation.comparison import Comparison, Series
from common.evaluation.folds import matched
from common.runs.naming import model_name
from common.runs.result import RESULT_FILE
from common.runtime.errors import UserError
from common.runtime.files import write_atomically

PLAN_FILE = "plan.json"
MARGIN = 1.0  # points
MOST_PAIRS = 6  # that are all declared where nobody declared any


@dataclass(frozen=True)
class Plan:
    """What ``reproduce.py`` writes beside the runs of a data set; nothing of it need be known."""

    contrasts: tuple[tuple[str, str], ...] = ()
    """Pairs of run names that are compared. A pair of which a run is missing is not there, and not corrected for."""
    seeds: tuple[int, ...] = ()
    """The seeds that were planned; of others it is said that they were added."""
    margin: float = MARGIN
    """Below how many points a difference in accuracy or F1 counts as none."""


def read_plan(folder: Path) -> Plan:
    """Return the plan of the data set whose runs lie in ``folder``, an empty one where there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / PLAN_FILE
    try:
        record = json.loads(path.read_bytes())
        contrasts = tuple((str(a), str(b)) for a, b in record["contrasts"])
        return Plan(contrasts, tuple(map(int, record["seeds"])), float(record["margin"]))
    except FileNotFoundError:
        return Plan()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is damaged: delete it, and reproduce.py writes it anew") from error


def plan_of(comparison: Comparison, contrasts: Sequence[tuple[str, str]], margin: float | None) -> Plan:
    """Return the plan of a data set, with ``contrasts`` and ``margin``, where given, in the place of its own.

    Raises:
        UserError: the file is damaged.
    """
    plan = read_plan(comparison.folder)
    return replace(plan, contrasts=tuple(contrasts) or plan.contrasts, margin=plan.margin if margin is None else margin)


def write_plan(folder: Path, plan: Plan) -> list[str]:
    """Write ``plan`` for the data set whose runs lie in ``folder``, and return lines on what stays as it was.

    Once a run is finished, what it shows must not decide what is claimed: an earlier plan's margin, seeds and pairs
    then stay, and only those pairs are added of which a model has no result yet.

    Raises:
        UserError: the earlier plan is damaged, or the file cannot be written.
    """
    seen = {model_name(path.parent.parent.name) for path in folder.glob(f"*/seed*/{RESULT_FILE}")}
    old, lines = read_plan(folder), []
    if seen and (folder / PLAN_FILE).exists():
        new = [pair for pair in plan.contrasts if frozenset(pair) not in set(map(frozenset, old.contrasts))]
        unseen = [pair for pair in new if not seen.issuperset(pair)]
        if plan.margin != old.margin:
            lines.append(f"the margin stays {old.margin:g}; plot_results.py takes another as its `margin`")
        if added := [str(seed) for seed in plan.seeds if seed not in old.seeds]:
            lines.append(f"seeds {' '.join(added)} are added to those planned, and said to be")
        if count := len(new) - len(unseen):
            pairs = f"{count} more pair{'s' * (count > 1)} of models that both have results"
            lines.append(f"{pairs}, not declared; plot_results.py takes them as its `contrast`")
        plan = replace(old, contrasts=(*old.contrasts, *unseen))
    write_atomically(folder / PLAN_FILE, (json.dumps(asdict(plan), indent=1) + "\n").encode())
    return [f"note: {folder.name!r}: the plan is from before the first result: {line}" for line in lines]


def comparable_pairs(comparison: Comparison) -> list[tuple[Series, Series]]:
    """Return the pairs of models trained on equally many images: else a difference would be the images' as well.

    Of models tested in folds, or on several draws of training images, the runs on those that both have.
    """
    pairs = filter(None, (matched(*pair) for pair in combinations(comparison.series, 2)))
    return [(a, b) for a, b in pairs if a.num_train == b.num_train]


def declared_pairs(
    pairs: Sequence[tuple[Series, Series]], contrasts: Iterable[tuple[str, str]]
) -> set[tuple[str, str]]:
    """Return the run names of those ``comparable_pairs`` that are corrected for one another and spoken of.

    They are those of ``contrasts``. Where none of these is there, they are all pairs, or if these are more than
    ``MOST_PAIRS`` those with the model that is best on validation images, the first of equals.
    """
    names = {(a.name, b.name) for a, b in pairs}
    wanted = {frozenset(contrast) for contrast in contrasts}
    if declared := {pair for pair in names if frozenset(pair) in wanted}:
        return declared
    if len(names) <= MOST_PAIRS:
        return names
    best = max((series for pair in pairs for series in pair), key=validation_accuracy).name
    return {pair for pair in names if best in pair}


def validation_accuracy(series: Series) -> float:
    """Return the mean over the seeds, by which the best model is chosen."""
    return float(np.mean([run.result.val.scores["accuracy"] for run in series.runs]))


def matching_contrasts(
    comparisons: Sequence[Comparison], patterns: Iterable[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    """Return the pairs of run names that ``patterns`` (*, ?, [abc]), each of two runs or labels, stand for.

    Raises:
        UserError: a pattern matches no model, or a pair of them no pair that can be compared.
    """
    contrasts = []
    for first, second in patterns:
        pairs = [pair for comparison in comparisons for pair in comparable_pairs(comparison)]
        found = [
            (a.name, b.name)
            for a, b in pairs
            if any(_matches(a, one) and _matches(b, other) for one, other in ((first, second), (second, first)))
        ]
        if not found:
            _refuse(comparisons, first, second)
        contrasts += found
    return tuple(dict.fromkeys(contrasts))


def _matches(series: Series, pattern: str) -> bool:
    return pattern in (series.name, series.label) or any(
        fnmatchcase(name, pattern) for name in (series.name, series.label)
    )


def _refuse(comparisons: Sequence[Comparison], *patterns: str) -> None:
    models = [series for comparison in comparisons for series in comparison.series]
    for pattern in patterns:
        if not any(_matches(series, pattern) for series in models):
            names = ", ".join(dict.fromkeys(series.name for series in models))
            raise UserError(f"`contrast` names {pattern!r}, which is no run or label; there are {names}")
    raise UserError(
        f"`contrast` {patterns[0]!r} {patterns[1]!r}: no two such models have the same test images and equally many "
        "training images"
    )
