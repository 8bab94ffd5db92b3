"""Loss and accuracy by epoch."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import count_seeds, joined_notes
from common.figures import style
from common.figures.style import GREY

SPLITS = {"validation": "-", "training": "--"}


def learning_curves(compared: Comparison) -> Figure:
    """Draw loss and accuracy by epoch, a column a model on shared axes; a ring marks the epoch kept."""
    count = len(compared.series)
    width = max(style.width(), 1.75 * count)
    seeds = count_seeds([compared])
    lines = "Thin lines: seeds; thick lines: their mean. " if seeds != "1 seed" else ""
    figure = style.new_figure(
        width,
        3.6,
        title=f"{compared.title}: learning curves, {seeds}",
        caption=f"{lines}Ring: the epoch kept, best on validation images. {joined_notes([compared])}",
        legend={name: Line2D([], [], color=GREY, linestyle=line) for name, line in SPLITS.items()},
    )
    axes = figure.subplots(2, count, sharex="col", sharey="row", squeeze=False)
    for column, series in enumerate(compared.series):
        axes[0, column].set_title(style.wrapped(series.label, int(10 * (width - 0.4) / count)))
        for row, quantity in enumerate(("loss", "accuracy")):
            _history(axes[row, column], series, quantity)
        axes[1, column].set_xlabel("Epoch")
        axes[1, column].xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes[0, 0].set(ylabel="Cross-entropy (nats)", ylim=(0, None))
    axes[1, 0].set_ylabel("Accuracy")
    style.widen(axes[1])
    return figure


def _history(ax: Axes, series: Series, quantity: str) -> Axes:
    """Draw ``train_<quantity>`` (dashed) and ``val_<quantity>`` by epoch: the seeds thin, their mean thick."""
    for split, linestyle in (("train", "--"), ("val", "-")):
        curves = [
            {point["epoch"]: point[f"{split}_{quantity}"] for point in run.result["history"]} for run in series.runs
        ]
        epochs = sorted(set().union(*curves))
        marker = "." if len(epochs) == 1 else None
        means = [np.mean([curve[epoch] for curve in curves if epoch in curve]) for epoch in epochs]
        ax.plot(epochs, means, color=series.look.color, linestyle=linestyle, linewidth=1.4, marker=marker)
        for curve in curves if len(curves) > 1 else ():
            ax.plot(list(curve), list(curve.values()), color=series.look.color, linewidth=0.5, alpha=0.4)
    for run, curve in zip(series.runs, curves, strict=True):
        kept = run.result["best_epoch"]
        if kept in curve:
            ring = {"marker": "o", "markersize": 4.5, "markerfacecolor": "white", "clip_on": False, "zorder": 3}
            ax.plot(kept, curve[kept], color=series.look.color, **ring)
    return style.plain(ax, grid="y")
