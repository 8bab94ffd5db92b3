"""Which of the models compared to use: the best on validation images, how sure that is, and what it costs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.evaluation.comparison import Comparison, Series
from common.evaluation.frames import frames_of
from common.evaluation.plan import validation_accuracy
from common.evaluation.significance import EQUIVALENT
from common.evaluation.uncertainty import compute_uncertainty
from common.report.sentences import named_pairs
from common.runtime.progress import duration


def recommendation(comparison: Comparison) -> list[str]:
    """Return the lines that say which model to use, why, what it costs, and the command that labels a folder with it.

    Of a model tested in folds there is no such command: none of its runs has seen all images.

    The choice is by the mean validation accuracy: choosing by test images would make their accuracy too good.
    """
    best = max(comparison.series, key=validation_accuracy)
    pairs = named_pairs(frames_of([comparison]), compute_uncertainty([comparison]))
    run = max(best.runs, key=lambda run: run.result.val.scores["accuracy"])
    test_accuracy = np.mean([run.result.test.scores["accuracy"] for run in best.runs])
    runs = "one run" if len(best.runs) == 1 else f"the mean of {len(best.runs)} {best.repeat}s"
    flops = run.result.model.forward_flops
    cost = [f"{duration(_seconds(best))} of training with features here for one learning rate and {best.repeat}"]
    longest = max(run.result.efficiency.total_train_seconds for run in best.runs)
    cost += [f"{duration(longest)} with the choice of its rate"] if longest > 1.5 * _seconds(best) else []
    cost += [f"{flops / 1e9:.2g} billion operations an image"] if flops else []
    whole = run.result.efficiency.backbone_bytes == 0
    megabytes = run.result.efficiency.saved_bytes / 1e6
    cost += [f"{megabytes:.2g} MB of weights {'with' if whole else 'beside'} the backbone's"]
    return [
        f"use {best.label}: the best on validation images, accuracy {validation_accuracy(best):.4f} ({runs}); "
        f"on test images {test_accuracy:.4f}",
        *_doubts(comparison, best, pairs[pairs.metric == "accuracy"]),
        f"it costs {', '.join(cost)}",
        *([] if comparison.folds > 1 else [labelling_command(run.folder)]),
    ]


def labelling_command(folder: Path) -> str:
    """Return the lines that say how to label new images with the run in ``folder``."""
    return f"label a new folder with it:\n  python evaluate.py {folder} --predict path/to/new/images --out labels.csv"


def _doubts(comparison: Comparison, best: Series, pairs: pd.DataFrame) -> list[str]:
    """Return what the test images say of the choice, by the declared pairs: what is better, worse or neither."""
    others = {series.name: series for series in comparison.series if series is not best}
    better, worse, equivalent, undecided = [], [], [], []
    for pair in pairs[pairs.declared.astype(bool)].itertuples():
        if best.name not in (pair.a, pair.b):
            continue
        other = others[pair.b if pair.a == best.name else pair.a]
        if pair.winner:
            (worse if getattr(pair, pair.winner) == best.name else better).append(other)
        else:
            (equivalent if pair.verdict == EQUIVALENT else undecided).append(other)
    lines = [f"but on the test images {series.label} is better" for series in better]
    if undecided:
        lines.append(f"the test images do not decide between it and {_labels(undecided)}")
    if equivalent:
        lines.append(f"on the test images it is equivalent to {_labels(equivalent)}")
    cheapest = min([best, *undecided, *equivalent], key=_seconds)
    if cheapest is not best:
        lines[-1] += f"; of these {cheapest.label} trains fastest ({duration(_seconds(cheapest))})"
    if worse:
        losers = "every other" if len(worse) == len(others) else _labels(worse)
        lines.append(f"on the test images, too, it is better than {losers}")
    return lines


def _labels(models: Sequence[Series]) -> str:
    return ", ".join(series.label for series in models)


def _seconds(series: Series) -> float:
    """Return the seconds of one training with its features, the mean over the seeds."""
    return float(np.mean([run.result.kept_train_seconds for run in series.runs]))
