"""Figures of marks: per-class F1, and accuracy against what it costs. Marks, unlike bars, may stand on a cut axis."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, LogLocator, NullFormatter

from common import comparison, style
from common.comparison import Comparison, Series
from common.style import GREY

MOST_CLASSES = 40  # rows in the figure of per-class F1: more do not fit on a page


def per_class_f1(compared: Comparison) -> Figure:
    """Draw a row a class and in it a mark a model at its F1, the hardest class at the bottom."""
    f1 = [_f1(series) for series in compared.series]  # (seeds, C) each
    overall = np.mean([array.mean(axis=0) for array in f1], axis=0)  # (C,), NaN for a class without test images
    order = [index for index in np.argsort(-overall, kind="stable") if not np.isnan(overall[index])]
    rows = order[-MOST_CLASSES:]
    names = compared.data["classes"]
    left_out = f"The {len(rows)} classes of lowest mean F1 of {len(names)}. " if len(rows) < len(names) else ""
    low = max(0.0, min(0.9, np.floor(min(array[:, rows].min() for array in f1) * 10 - 0.2) / 10))
    figure = style.new_figure(
        style.width(),
        0.75 + 0.2 * len(rows),
        title=f"{compared.title}: F1 of each class, test images",
        caption=f"{left_out}{_marks([compared], cut=low > 0)} {comparison.notes([compared])}",
        legend=_legend([compared]),
    )
    ax = style.plain(figure.subplots(), grid="y")
    positions = np.arange(len(rows))[::-1]
    offsets = np.linspace(0.24, -0.24, len(f1)) if len(f1) > 1 else [0.0]
    for series, array, offset in zip(compared.series, f1, offsets, strict=True):
        _draw(ax, series, array[:, rows], np.broadcast_to(positions + offset, (len(array), len(rows))))
    ax.set_yticks(positions, [style.printable(names[index], 32) for index in rows])
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="F1", xlim=(low - 0.005, 1.005), ylim=(-0.6, len(rows) - 0.4))
    ax.grid(True, axis="x", linestyle=":")
    return figure


def accuracy_vs_parameters(compared: Sequence[Comparison]) -> Figure:
    """Draw test accuracy over the number of trained parameters, a panel a data set."""
    return _trade_off(
        compared,
        lambda result: result["model"]["trainable_params"],
        title="Accuracy and trained parameters",
        xlabel="Trained parameters (log)",
        formatter=EngFormatter(sep=" "),
    )


def accuracy_vs_time(compared: Sequence[Comparison]) -> Figure:
    """Draw test accuracy over the seconds of training, the extraction of features included, a panel a data set."""
    runs = [run for one in compared for series in one.series for run in series.runs]
    devices = {str(run.result["environment"].get("device")) for run in runs}
    return _trade_off(
        compared,
        comparison.training_seconds,
        title="Accuracy and training time",
        xlabel="Training and features (s, log)",
        formatter=FuncFormatter(lambda seconds, _: f"{seconds:,.6g}"),
        remark="Times are from different devices." if len(devices) > 1 else f"Device: {min(devices)}.",
    )


def accuracy_vs_flops(compared: Sequence[Comparison]) -> Figure:
    """Draw test accuracy over the floating-point operations of one image's way forward, a panel a data set."""
    return _trade_off(
        compared,
        lambda result: result["model"]["forward_flops"],
        title="Accuracy and operations an image",
        xlabel="FLOPs, forward (log)",
        formatter=EngFormatter(sep=" "),
    )


def accuracy_vs_saved_bytes(compared: Sequence[Comparison]) -> Figure:
    """Draw test accuracy over the bytes that a trained model adds to its backbone, a panel a data set."""
    return _trade_off(
        compared,
        lambda result: result["efficiency"]["saved_bytes"],
        title="Accuracy and saved bytes",
        xlabel="Saved adapter or head (log)",
        formatter=EngFormatter(unit="B", sep=" "),
    )


def pareto_front(costs: np.ndarray, accuracies: np.ndarray) -> np.ndarray:
    """Return which models (M,) no other undercuts, in order of cost: none is as cheap and more accurate.

    Models whose cost or accuracy is NaN are left out; of equals the first stays.
    """
    order = [index for index in np.lexsort((-accuracies, costs)) if not np.isnan(costs[index] + accuracies[index])]
    best = np.maximum.accumulate([accuracies[index] for index in order]) if order else []
    front = [index for place, index in enumerate(order) if place == 0 or accuracies[index] > best[place - 1]]
    return np.array(front, dtype=int)


def _trade_off(
    compared: Sequence[Comparison],
    cost: Callable[[dict], float | None],
    *,
    title: str,
    xlabel: str,
    formatter: Formatter,
    remark: str = "",
) -> Figure:
    """Draw accuracy over ``cost`` on a logarithmic axis, a panel a data set, with the front of the best models."""
    columns = style.panels_abreast(len(compared))
    rows = -(-len(compared) // columns)
    figure = style.new_figure(
        style.width(),
        0.4 + 2.2 * rows,
        title=f"{title}, test images",
        caption=f"{_marks(compared, cut=True)} Line: the front of the means; no model is as cheap and better. "
        f"{remark} {comparison.notes(compared)}",
        legend=_legend(compared),
    )
    axes = style.used(figure.subplots(rows, columns, sharex=True, squeeze=False), len(compared))
    costs = np.hstack([np.maximum(series.values(cost), 1e-3) for one in compared for series in one.series])
    known = costs[~np.isnan(costs)] if not np.isnan(costs).all() else np.ones(1)
    low, high = np.log10(known.min()), np.log10(known.max())
    for index, (one, ax) in enumerate(zip(compared, axes, strict=True)):
        means = []
        for series in one.series:
            accuracy = series.values(lambda result: result["test"]["accuracy"])
            price = np.maximum(series.values(cost), 1e-3)
            means.append((price.mean(), accuracy.mean()))
            if not np.isnan(price).any():
                _draw(ax, series, price[:, None], accuracy[:, None])
        front = np.array(means)[pareto_front(*np.transpose(means))]
        ax.step(*front.T, where="post", color=GREY, linewidth=0.8, zorder=1.5)
        ax.set(xscale="log", xlim=(10 ** np.floor(low - 0.05), 10 ** np.ceil(high + 0.05)))
        ax.xaxis.set(major_locator=LogLocator(), major_formatter=formatter, minor_formatter=NullFormatter())
        ax.set_title(style.printable(one.title))
        ax.set_ylabel("Accuracy" if index % columns == 0 else "")
        ax.set_xlabel(xlabel if index + columns >= len(compared) else "")
        style.widen([ax])
    return figure


def _draw(ax: Axes, series: Series, x: np.ndarray, y: np.ndarray) -> Axes:
    """Draw one mark for each column of ``x`` and ``y`` (seeds, K) at the seeds' mean, and a dot for each seed."""
    look = series.look
    if len(x) > 1:  # in front of the mean and ringed in white: seeds that agree lie inside its mark
        dots = {"color": look.color, "edgecolors": "white", "linewidths": 0.35, "zorder": 4}
        ax.scatter(x.ravel(), y.ravel(), s=5, **dots)
    ax.scatter(x.mean(axis=0), y.mean(axis=0), s=40, marker=look.marker, color=look.color, linewidths=0, zorder=3)
    return ax


def _legend(compared: Sequence[Comparison]) -> dict[str, Line2D]:
    """Return each model's label with its mark, once where several data sets have it."""
    looks = {style.printable(series.label, 90): series.look for one in compared for series in one.series}
    marks = {label: {"marker": look.marker, "color": look.color} for label, look in looks.items()}
    return {label: Line2D([], [], linestyle="", markersize=6, **mark) for label, mark in marks.items()}


def _marks(compared: Sequence[Comparison], *, cut: bool) -> str:
    """Return the caption's sentences on marks and dots, and on the axis where it is ``cut``."""
    seeds = comparison.seeds(compared)
    marks = "One seed." if seeds == "1 seed" else f"Marks: mean of {seeds}; small dots: each seed."
    return f"{marks} The axis does not start at 0." if cut else marks


def _f1(series: Series) -> np.ndarray:
    """Return the F1 of each seed and class (seeds, C), NaN for a class without test images."""
    rows = [[row["f1"] for row in run.test["per_class"]] for run in series.runs]
    return np.array(rows, dtype=np.float64)
