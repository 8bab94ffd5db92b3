"""Which of the models compared to use: the best on validation images, how sure that is, and what it costs."""

from pathlib import Path

import numpy as np

from common.evaluation.comparison import Comparison, Series
from common.evaluation.frames import frames_of
from common.evaluation.significance import NO_DIFFERENCE
from common.evaluation.uncertainty import compute_uncertainty
from common.report.sentences import named_pairs
from common.runtime.progress import duration


def best_model(comparison: Comparison) -> Series:
    """Return the model that is best on validation images, by the mean over its seeds or folds."""
    return max(comparison.series, key=lambda series: _mean(series, "val"))


def recommendation(comparison: Comparison) -> list[str]:
    """Return the lines that say which model to use, why, what it costs, and the command that labels a folder with it.

    Of a model tested in folds there is no such command: none of its runs has seen all images.

    The choice is by the mean validation accuracy: choosing by test images would make their accuracy too good.
    """
    best = best_model(comparison)
    pairs = named_pairs(frames_of([comparison]), compute_uncertainty([comparison]))
    run = max(best.runs, key=lambda run: run.result.val.scores["accuracy"])
    runs = "one run" if len(best.runs) == 1 else f"the mean of {len(best.runs)} {best.repeat}s"
    flops = run.result.model.forward_flops
    cost = [f"{duration(_seconds(best))} of training with features here for one learning rate and {best.repeat}"]
    longest = max(run.result.efficiency.total_train_seconds for run in best.runs)
    cost += [f"{duration(longest)} with the choice of its rate"] if longest > 1.5 * _seconds(best) else []
    cost += [f"{flops / 1e9:.2g} billion operations an image"] if flops else []
    cost += [f"{run.result.efficiency.saved_bytes / 1e6:.2g} MB of weights beside the backbone's"]
    return [
        f"use {best.label}: the best on validation images, accuracy {_mean(best, 'val'):.4f} ({runs}); "
        f"on test images {_mean(best, 'test'):.4f}",
        *_doubts(comparison, best, pairs[(pairs.metric == "accuracy")]),
        f"it costs {', '.join(cost)}",
        *([] if comparison.folds > 1 else [labelling_command(run.folder)]),
    ]


def labelling_command(folder: Path) -> str:
    """Return the lines that say how to label new images with the run in ``folder``."""
    return f"label a new folder with it:\n  python evaluate.py {folder} --predict path/to/new/images --out labels.csv"


def _doubts(comparison: Comparison, best: Series, pairs) -> list[str]:
    """Return what the test images say of the choice: which models they do not tell from it, and which they prefer."""
    its_pairs = [pair for pair in pairs.itertuples() if best.name in (pair.a, pair.b)]
    words = {pair.b if pair.a == best.name else pair.a: pair for pair in its_pairs}
    equal, better = [], []
    for series in comparison.series:
        if (pair := words.get(series.name)) is None:
            continue
        if pair.verdict == NO_DIFFERENCE:
            equal.append(series)
        elif (pair.verdict == "worse") == (pair.a == best.name):
            better.append(series)
    lines = [f"but on the test images {series.label} is better" for series in better]
    if equal:
        cheapest = min([best, *equal], key=_seconds)
        lines.append(
            f"the test images do not decide between it and {', '.join(series.label for series in equal)}"
            + (f"; of these {cheapest.label} trains fastest ({duration(_seconds(cheapest))})" * (cheapest is not best))
        )
    elif not better and words:
        lines.append("on the test images, too, it is better than every other")
    return lines


def _mean(series: Series, split: str) -> float:
    return float(np.mean([getattr(run.result, split).scores["accuracy"] for run in series.runs]))


def _seconds(series: Series) -> float:
    """Return the seconds of one training with its features, the mean over the seeds."""
    return float(np.mean([run.result.kept_train_seconds for run in series.runs]))
