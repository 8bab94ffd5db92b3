"""Accuracy against what it costs. Marks, unlike bars, may stand on a cut axis."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, LogLocator, NullFormatter

from common.evaluation.comparison import Comparison, training_seconds
from common.evaluation.formatting import joined_notes
from common.figures import style
from common.figures.style import GREY, draw_marks, marks_caption, marks_legend


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
        training_seconds,
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
        caption=f"{marks_caption(compared, cut=True)} Line: the front of the means; no model is as cheap and better. "
        f"{remark} {joined_notes(compared)}",
        legend=marks_legend(compared),
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
                draw_marks(ax, series, price[:, None], accuracy[:, None])
        front = np.array(means)[pareto_front(*np.transpose(means))]
        ax.step(*front.T, where="post", color=GREY, linewidth=0.8, zorder=1.5)
        ax.set(xscale="log", xlim=(10 ** np.floor(low - 0.05), 10 ** np.ceil(high + 0.05)))
        ax.xaxis.set(major_locator=LogLocator(), major_formatter=formatter, minor_formatter=NullFormatter())
        ax.set_title(style.printable(one.title))
        ax.set_ylabel("Accuracy" if index % columns == 0 else "")
        ax.set_xlabel(xlabel if index + columns >= len(compared) else "")
        style.widen([ax])
    return figure
