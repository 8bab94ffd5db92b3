"""Accuracy over the number of training images."""

from collections import defaultdict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import count_seeds
from common.evaluation.labels import Style, friendly_name
from common.figures import style

# Settings that change neither the model nor its images, beside the one that few-shot curves are about.
_SAME_CURVE = {"train_limit", "seed", "run_name", "results_dir", "overwrite", "data_dir", "device", "workers"}
_SAME_CURVE |= {"feature_cache", "compile"}


def few_shot(compared: Comparison) -> Figure:
    """Draw test accuracy over the number of training images, a line for the runs that differ by nothing else."""
    curves = few_shot_curves(compared)
    members = [series for curve in curves.values() for series in curve]
    seeds = count_seeds([Comparison(compared.dataset, tuple(members), ())])
    dots = "" if seeds == "1 seed" else " and seeds; small dots: each seed"
    looks = {label: min(curve, key=lambda series: len(series.name)).look for label, curve in curves.items()}
    figure = style.new_figure(
        style.width(),
        2.8,
        title=f"{compared.title}: accuracy by training images, {compared.data['num_test']:,} test images",
        caption=f"Marks: mean of {seeds}; bars: 95 % interval over test images{dots}. The axis does not start at 0.",
        legend={
            style.printable(label, 90): Line2D([], [], color=look.color, marker=look.marker, linestyle=look.linestyle)
            for label, look in looks.items()
        },
    )
    ax = style.plain(figure.subplots(), grid="y")
    for place, (label, curve) in enumerate(curves.items()):
        nudge = 1.02 ** (place - (len(curves) - 1) / 2)  # bars of one size stand beside one another
        _few_shot_curve(
            ax, curve, looks[label], [compared.evidence.means[one.name]["accuracy"] for one in curve], nudge
        )
    sizes = sorted({series.num_train for series in members})
    ax.set(xscale="log", xlabel="Training images (log)", ylabel="Accuracy")
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.xaxis.set_minor_formatter(NullFormatter())
    style.widen([ax])
    return figure


def few_shot_curves(compared: Comparison) -> dict[str, list[Series]]:
    """Return by label the models that differ by ``train_limit`` alone, where there are several sizes."""
    groups = defaultdict(list)
    for series in compared.series:
        result = series.runs[0].result
        settings = {name: value for name, value in result["config"].items() if name not in _SAME_CURVE}
        groups[repr((result["backbone"], result["method"], sorted(settings.items())))].append(series)
    curves = {}
    for group in groups.values():
        if len({series.num_train for series in group}) < 2:
            continue
        label = friendly_name(group[0].runs[0].result)
        label = f"{label} [{group[0].name}]" if label in curves else label
        curves[label] = sorted(group, key=lambda series: series.num_train)
    return curves


def _few_shot_curve(ax: Axes, curve: list[Series], look: Style, means: list, nudge: float) -> Axes:
    """Draw one line of means with their intervals, and each seed as a dot."""
    sizes = np.array([series.num_train for series in curve]) * nudge
    values, low, high = np.transpose(means)
    style_ = {"color": look.color, "marker": look.marker, "linestyle": look.linestyle, "markersize": 5}
    ax.plot(sizes, values, linewidth=1.2, **style_)
    ax.vlines(sizes, low, high, color=look.color, linewidth=1.6)
    for size, series in zip(sizes, curve, strict=True):
        accuracy = series.values(lambda result: result["test"]["accuracy"])
        if len(accuracy) > 1:
            dots = {"color": look.color, "edgecolors": "white", "linewidths": 0.35, "zorder": 4}
            ax.scatter(np.full(len(accuracy), 1.05 * size), accuracy, s=7, **dots)  # beside the interval
    return ax
