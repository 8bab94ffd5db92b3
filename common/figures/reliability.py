"""Reliability diagrams: is a model as often right as it is sure?"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.evaluation.calibration import ECE_BINS, pooled
from common.evaluation.comparison import Comparison
from common.evaluation.formatting import joined_notes, repeats
from common.evaluation.frames import Frames
from common.evaluation.metrics import METRICS
from common.evaluation.uncertainty import Uncertainty
from common.figures.layout import UNIT_TICKS, facets, label_outside
from common.figures.palette import run_styles
from common.figures.style import GREY

_SCALED = {"markerfacecolor": "white", "linestyle": "--"}


def reliability(comparison: Comparison, frames: Frames, uncertainty: Uncertainty) -> Figure:
    """Draw accuracy over confidence, before and after the temperature, and below it how many images there are."""
    own_repeats = repeats([comparison])
    means = f"numbers are means over {own_repeats.word}s. "
    together = f"Images of {own_repeats.text} together; {means}" if own_repeats.most > 1 else ""
    figure, axes = facets(
        [series.label for series in comparison.series],
        heights=(1.9, 0.65),
        wrap=False,
        sharey="row",
        title=f"{comparison.title}: reliability, test images",
        caption=f"{ECE_BINS} bins of equal width, larger marks hold more images. {together}On the diagonal a model is "
        "as often right as sure. ECE: expected calibration error; T: the temperature that validation images ask for, "
        f"above 1 where the model is too sure. {joined_notes([comparison])}",
        legend={
            "as trained": Line2D([], [], color=GREY, marker="o", markersize=4),
            "after temperature": Line2D([], [], color=GREY, marker="o", markersize=4, **_SCALED),
        },
    )
    seeds, styles = uncertainty.calibration.query("dataset == @comparison.dataset"), run_styles(comparison)
    for series, column in zip(comparison.series, axes, strict=True):
        _reliability_of(*column, seeds[seeds["run"] == series.name], styles[series.name].color)
    for ax, below in axes:
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        ax.set_xticks(*UNIT_TICKS)
        ax.set_yticks(*UNIT_TICKS)
        below.set(ylim=(0, 1), yticks=[0, 1], yticklabels=["0", "100 %"])
    label_outside(axes[:, 0], "", METRICS["accuracy"].label)
    label_outside(axes[:, 1], "Confidence", "Images")
    return figure


def _reliability_of(ax: Axes, below: Axes, seeds: pd.DataFrame, color: str) -> None:
    """Draw one model's diagram with the images of all ``seeds`` together, and below the images of each bin."""
    ax.axline((0, 0), slope=1, color=GREY, linewidth=0.6, linestyle=":")
    for column, line in (("bins_scaled", _SCALED), ("bins", {"markerfacecolor": color, "linestyle": "-"})):
        if seeds[column].notna().any():
            images, confidence, accuracy = pooled(seeds[column].dropna())
            full = images > 0
            sizes = 3 + 60 * np.sqrt(images[full] / images.sum())  # points squared: few images, a small mark
            ax.plot(confidence[full], accuracy[full], color=color, linewidth=0.9, linestyle=line["linestyle"])
            marks = {"edgecolors": color, "linewidths": 0.8, "zorder": 3, "clip_on": False}
            ax.scatter(confidence[full], accuracy[full], sizes, line["markerfacecolor"], **marks)
    below.stairs(images / images.sum(), np.linspace(0, 1, len(images) + 1), fill=True, color=color)
    backing = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}  # lines of sparse bins pass below
    text = {"va": "top", "fontsize": 7, "linespacing": 1.3, "bbox": backing, "zorder": 4}
    ax.text(0.04, 0.97, _numbers(seeds), transform=ax.transAxes, **text)
    ax.grid(axis="y")
    below.grid(axis="y")


def _numbers(seeds: pd.DataFrame) -> str:
    """Return a panel's text: the means over seeds of Brier score and calibration error, before and after T."""
    mean = seeds[["brier", "ece", "temperature", "ece_scaled"]].mean()
    lines = [f"Brier {mean.brier:.3f}", f"{METRICS['ece'].label} {mean.ece:.3f}"]
    if not np.isnan(mean.temperature):
        lines.append(f"with T = {mean.temperature:.2f}: {mean.ece_scaled:.3f}")
    return "\n".join(lines)
