"""Accuracy against what it costs, and over the training images. Marks, unlike bars, may stand on a cut axis."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import QUANTITIES, joined_notes, repeats
from common.evaluation.frames import Frames
from common.evaluation.labels import friendly_name
from common.evaluation.metrics import METRICS
from common.evaluation.uncertainty import Uncertainty
from common.figures.layout import facets, label_outside, new_figure, widen
from common.figures.palette import Style, draw_marks, marks_caption, marks_legend, run_styles
from common.figures.style import GREY, printable
from common.runs.naming import run_identity

ACCURACY = METRICS["accuracy"].label


def accuracy_vs(
    cost: str, title: str, comparisons: Sequence[Comparison], frames: Frames, uncertainty: Uncertainty
) -> Figure:
    """Draw test accuracy over ``cost``, a column of ``frames.runs``, on a logarithmic axis, a panel a data set.

    A line joins the means of ``pareto_front``. Runs of unknown cost are left out.
    """
    quantity = QUANTITIES[cost]
    seeds = frames.runs.assign(cost=(frames.runs[cost] * quantity.scale).clip(lower=1e-3)).dropna(subset="cost")
    devices = ", ".join(sorted(frames.runs["device"].dropna().unique()))
    remark = f"Measured on: {devices}." if devices and cost.endswith("seconds") else ""
    figure, axes = facets(
        [comparison.title for comparison in comparisons],
        heights=(1.95,),
        sharey=False,
        title=f"{title}, test images",
        caption=f"{marks_caption(comparisons, cut=True)} Line: from the cheapest model to each that is better "
        f"than the one before by the verdict on their difference. {remark} {joined_notes(comparisons)}",
        legend=marks_legend(comparisons),
    )
    for ax, comparison in zip(axes[:, 0], comparisons, strict=True):
        own = seeds[seeds["dataset"] == comparison.dataset]
        if own.empty:
            continue
        means = own.groupby("run", as_index=False, sort=False)[["cost", "test_accuracy"]].mean()
        draw_marks(ax, own, means, "cost", "test_accuracy", run_styles(comparison))
        front = pareto_front(means, _decided(comparison, uncertainty))
        ax.step(front["cost"], front["test_accuracy"], where="post", color=GREY, linewidth=0.8, zorder=1.5)
        ax.grid()
        widen([ax])
    low, high = np.log10([seeds["cost"].min(), seeds["cost"].max()] if len(seeds) else [1, 1])
    ax.set(xscale="log", xlim=(10 ** np.floor(low - 0.05), 10 ** np.ceil(high + 0.05)))
    whole = EngFormatter(sep=" ") if quantity.digits == 0 else FuncFormatter(lambda number, _: f"{number:,.6g}")
    ax.xaxis.set(major_locator=LogLocator(), major_formatter=whole, minor_formatter=NullFormatter())
    label_outside(axes[:, 0], f"{quantity.label}, log", ACCURACY)
    return figure


def pareto_front(means: pd.DataFrame, decided: Collection[tuple[str, str]]) -> pd.DataFrame:
    """Return the cheapest of the rows and, in order of ``cost``, each that is better than the last one returned.

    ``decided`` are the (better, other) pairs of ``run``; a higher mean alone joins nothing. Rows whose cost or
    accuracy is NaN are left out; of equal costs the more accurate, of equals the first, comes first.
    """
    ordered = means.dropna().sort_values(["cost", "test_accuracy"], ascending=[True, False], kind="stable")
    front = []
    for place, run in ordered["run"].items():
        if not front or (run, means["run"][front[-1]]) in decided:
            front.append(place)
    return ordered.loc[front]


def _decided(comparison: Comparison, uncertainty: Uncertainty) -> set[tuple[str, str]]:
    """Return the (better, other) runs of a data set, by accuracy."""
    pairs = uncertainty.pairs.query("dataset == @comparison.dataset and metric == 'accuracy' and winner != ''")
    return {(pair.a, pair.b) if pair.winner == "a" else (pair.b, pair.a) for pair in pairs.itertuples()}


def few_shot(comparison: Comparison, frames: Frames, uncertainty: Uncertainty) -> Figure:
    """Draw test accuracy over the number of training images, a line for the runs that differ by nothing else."""
    curves = few_shot_curves(comparison)
    members = [replace(comparison, series=tuple(series for curve in curves.values() for series in curve))]
    own_repeats = repeats(members)
    dots = f"; small dots: each {own_repeats.word}" if own_repeats.most > 1 else ""
    own = run_styles(comparison)
    styles = {label: own[min((series.name for series in curve), key=len)] for label, curve in curves.items()}
    figure = new_figure(
        2.8,
        title=f"{comparison.title}: accuracy by training images, {comparison.num_test:,} test images",
        caption=f"Marks: mean of {own_repeats.text}; bars: 95 % interval over {own_repeats.basis}{dots}. The axis "
        "does not start at 0.",
        legend={
            printable(label, 90): Line2D([], [], color=look.color, marker=look.marker, linestyle=look.linestyle)
            for label, look in styles.items()
        },
    )
    ax = figure.subplots()
    means = uncertainty.means.query("dataset == @comparison.dataset and metric == 'accuracy'").set_index("run")
    seeds = frames.runs.query("dataset == @comparison.dataset")
    for place, (label, curve) in enumerate(curves.items()):
        nudge = 1.02 ** (place - (len(curves) - 1) / 2)  # bars of one size stand beside one another
        _few_shot_curve(ax, curve, means, seeds, styles[label], nudge)
    sizes = sorted({series.num_train for series in members[0].series})
    ax.set(xscale="log", xlabel=f"{QUANTITIES['num_train'].label}, log", ylabel=ACCURACY)
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y")
    widen([ax])
    return figure


def few_shot_curves(comparison: Comparison) -> dict[str, list[Series]]:
    """Return by label the models that differ by ``train_limit`` alone, where there are several sizes."""
    groups = defaultdict(list)
    for series in comparison.series:
        result = series.runs[0].result
        settings = run_identity(result.config, result.method)
        same = sorted((name, value) for name, value in settings.items() if name not in ("train_limit", "seed"))
        groups[repr((result.backbone, same))].append(series)
    curves = {}
    for group in groups.values():
        if len({series.num_train for series in group}) < 2:
            continue
        label = friendly_name(group[0].runs[0].result)
        label = f"{label} [{group[0].name}]" if label in curves else label
        curves[label] = sorted(group, key=lambda series: series.num_train)
    return curves


def _few_shot_curve(
    ax: Axes, curve: Sequence[Series], means: pd.DataFrame, seeds: pd.DataFrame, look: Style, nudge: float
) -> None:
    """Draw one line of means with their intervals, and each seed as a dot."""
    sizes = {series.name: series.num_train * nudge for series in curve}
    own = means.loc[list(sizes)]
    line = {"color": look.color, "marker": look.marker, "linestyle": look.linestyle, "markersize": 5}
    ax.plot(list(sizes.values()), own["value"], linewidth=1.2, **line)
    ax.vlines(list(sizes.values()), own["low"], own["high"], color=look.color, linewidth=1.6)
    dots = seeds[seeds["run"].isin([series.name for series in curve if len(series.runs) > 1])]
    x = 1.05 * dots["run"].map(sizes)  # beside the interval
    ax.scatter(x, dots["test_accuracy"], s=7, color=look.color, edgecolors="white", linewidths=0.35, zorder=4)
