"""Loss and accuracy by epoch."""

from dataclasses import replace

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import joined_notes, repeats
from common.evaluation.frames import Frames
from common.evaluation.metrics import METRICS
from common.evaluation.uncertainty import Uncertainty
from common.figures.layout import facets, label_outside, widen
from common.figures.palette import run_styles
from common.figures.style import GREY

DASHES = {"val": "", "train": (4, 1.7)}  # of the splits' lines, in line widths


def learning_curves(comparison: Comparison, frames: Frames, uncertainty: Uncertainty) -> Figure:
    """Draw loss and accuracy by epoch, a panel a model with axes in common; a ring marks the epoch kept."""
    shown = [series for series in comparison.series if has_epochs(series)]
    others = ", ".join(series.label for series in comparison.series if not has_epochs(series))
    without = f"Fitted without epochs: {others}. " if others else ""
    own_repeats = repeats([replace(comparison, series=tuple(shown))])
    lines = f"Thin lines: {own_repeats.word}s; thick lines: their mean. " if own_repeats.most > 1 else ""
    figure, axes = facets(
        [series.label for series in shown],
        heights=(1.3, 1.3),
        wrap=False,
        sharex=False,
        sharey="row",
        title=f"{comparison.title}: learning curves, {own_repeats.text}",
        caption=f"{lines}Ring: the epoch kept, best on validation images. {without}{joined_notes([comparison])}",
        legend={
            "validation": Line2D([], [], color=GREY),
            "training": Line2D([], [], color=GREY, linestyle=(0, DASHES["train"])),
        },
    )
    history, styles = frames.history.query("dataset == @comparison.dataset"), run_styles(comparison)
    for series, column in zip(shown, axes, strict=True):
        column[0].sharex(column[1])
        column[0].tick_params(labelbottom=False)
        for ax, quantity in zip(column, ("loss", "accuracy"), strict=True):
            _curves(ax, history[history["run"] == series.name], quantity, styles[series.name].color)
    label_outside(axes[:, 0], "", METRICS["loss"].label)
    label_outside(axes[:, 1], "Epoch", METRICS["accuracy"].label)
    highest = max(ax.get_ylim()[1] for ax in axes[:, 0])
    for ax in axes[:, 0]:
        ax.set_ylim(0, highest)
    widen(axes[:, 1])
    return figure


def has_epochs(series: Series) -> bool:
    """Whether a model was trained by epochs; a probe is not."""
    return any(run.result.history for run in series.runs)


def _curves(ax: Axes, history: pd.DataFrame, quantity: str, color: str) -> None:
    """Draw ``quantity`` of one model by epoch, a line a split: the seeds thin, their mean thick."""
    lines = {"x": "epoch", "y": quantity, "style": "split", "dashes": DASHES, "color": color, "legend": False, "ax": ax}
    marker = "." if history["epoch"].nunique() == 1 else None
    sns.lineplot(history, errorbar=None, linewidth=1.4, marker=marker, **lines)
    if history["seed"].nunique() > 1:
        sns.lineplot(history, units="seed", estimator=None, linewidth=0.5, alpha=0.4, **lines)
    kept = history.query("kept and split == 'val'")
    ring = {"marker": "o", "markersize": 4.5, "markerfacecolor": "white", "linestyle": "", "clip_on": False}
    ax.plot(kept["epoch"], kept[quantity], color=color, zorder=3, **ring)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    ax.grid(axis="y")
