"""Test accuracy over the number of training images: a line for the runs that differ by nothing else."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import QUANTITIES, repeats
from common.evaluation.frames import Frames
from common.evaluation.labels import friendly_name
from common.evaluation.metrics import METRICS
from common.evaluation.uncertainty import Uncertainty
from common.figures.layout import label_ends, new_figure, widen
from common.figures.palette import Style, run_styles
from common.runs.naming import run_identity

ACCURACY = METRICS["accuracy"].label
HEIGHT = 3.0  # inches
# What is chosen for each size anew: how long to train, and at which of several rates.
FITTED_TO_SIZE = ("epochs", "lr", "extend", "tuned_on")
DRAWS = "its bar: 95 % interval over test images and draws of the training images; small dots: each draw"


def few_shot(comparison: Comparison, frames: Frames, uncertainty: Uncertainty) -> Figure:
    """Draw test accuracy over the training images (a class, where all classes have as many), a labelled line a model.

    Where the seeds of a model drew their training images themselves the interval covers that too, and the caption says
    so.
    """
    curves = few_shot_curves(comparison)
    own = run_styles(comparison)
    styles = {label: own[min((series.name for series in curve), key=len)] for label, curve in curves.items()}
    members = replace(comparison, series=tuple(series for curve in curves.values() for series in curve))
    figure = new_figure(
        HEIGHT,
        title=f"{comparison.title}: accuracy by training images, {comparison.num_test:,} test images",
        caption=f"Marks: mean of {_basis(members)}. The axis does not start at 0.",
    )
    ax = figure.subplots()
    sizes, word = sizes_of(members)
    means = uncertainty.means.query("dataset == @comparison.dataset and metric == 'accuracy'").set_index("run")
    seeds = frames.runs.query("dataset == @comparison.dataset")
    for place, (label, curve) in enumerate(curves.items()):
        nudge = 1.06 ** (place - (len(curves) - 1) / 2)  # bars of one size stand beside one another
        places = {series.name: sizes[series.name] * nudge for series in curve}
        _curve(ax, places, means.loc[list(places)], seeds, styles[label])
    ticks = sorted(set(sizes.values()))
    ax.set(xscale="log", xlabel=f"{word}, log", ylabel=ACCURACY)
    ax.set_xticks(ticks, [f"{size:,}" for size in ticks])
    ax.xaxis.set(minor_formatter=NullFormatter(), minor_locator=NullLocator())
    ax.grid(axis="y")
    widen([ax])
    ends = [(label, means.loc[curve[-1].name, "value"], styles[label].color) for label, curve in curves.items()]
    label_ends(ax, ends, height=HEIGHT)
    return figure


def few_shot_curves(comparison: Comparison) -> dict[str, list[Series]]:
    """Return by label the models that differ by ``train_limit`` alone, where there are several sizes.

    Or also by what was ``FITTED_TO_SIZE``, where each size then occurs once.
    """
    groups = []
    for group in _alike(comparison.series, ("train_limit", *FITTED_TO_SIZE)):
        sizes = [series.num_train for series in group]
        groups += [group] if len(set(sizes)) == len(sizes) else _alike(group, ("train_limit",))
    curves = {}
    for group in groups:
        if len({series.num_train for series in group}) < 2:
            continue
        label = friendly_name(group[0].runs[0].result)
        label = f"{label} [{group[0].name}]" if label in curves else label
        curves[label] = sorted(group, key=lambda series: series.num_train)
    return curves


def _alike(series: Sequence[Series], apart_from: Sequence[str]) -> list[list[Series]]:
    """Return groups of ``series`` that have the same settings, seeds and those named ``apart_from`` left out."""
    groups = defaultdict(list)
    for each in series:
        result = each.runs[0].result
        settings = run_identity(result.config, result.method)
        same = sorted(item for item in settings.items() if item[0] not in ("seed", "split_seed", "fold", *apart_from))
        groups[repr((result.backbone, same))].append(each)
    return list(groups.values())


def sizes_of(comparison: Comparison) -> tuple[dict[str, int], str]:
    """Return the training images of each run's name, and what they are called.

    They are those of a class where every number is a multiple of the classes: splits are stratified, so that each class
    has as many, if the data set's have.
    """
    classes, word = len(comparison.data.classes), QUANTITIES["num_train"].label
    if any(series.num_train % classes for series in comparison.series):
        return {series.name: series.num_train for series in comparison.series}, word
    return {series.name: series.num_train // classes for series in comparison.series}, f"{word} a class"


def _basis(comparison: Comparison) -> str:
    """Say in the caption what a mark is the mean of, and what its interval is over."""
    own = repeats([comparison])
    if "draw" in own.word:
        return f"{own.text} of the training images, each with a training seed of its own; {DRAWS}"
    dots = f"; small dots: each {own.word}" if own.most > 1 else ""
    return f"{own.text}; bars: 95 % interval over {own.basis}{dots}"


def _curve(ax: Axes, places: Mapping[str, float], means: pd.DataFrame, seeds: pd.DataFrame, look: Style) -> None:
    """Draw one line of means with their intervals, and each seed of several as a dot beside."""
    x = list(places.values())
    line = {"color": look.color, "marker": look.marker, "linestyle": look.linestyle, "markersize": 5}
    ax.plot(x, means["value"], linewidth=1.2, **line)
    ax.vlines(x, means["low"], means["high"], color=look.color, linewidth=1.6)
    dots = seeds[seeds["run"].isin(places)]
    dots = dots[dots.groupby("run")["seed"].transform("size") > 1]
    beside = {"s": 7, "color": look.color, "edgecolors": "white", "linewidths": 0.35, "zorder": 4}
    ax.scatter(1.03 * dots["run"].map(places), dots["test_accuracy"], **beside)
