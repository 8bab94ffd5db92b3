"""Paired differences between models, with their intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from common.evaluation.comparison import Comparison
from common.evaluation.formatting import joined_notes, points, repeats, signed
from common.evaluation.frames import Frames
from common.evaluation.metrics import HEADLINE, METRICS
from common.evaluation.significance import ONE_SEED
from common.evaluation.uncertainty import Uncertainty
from common.figures.layout import facets, label_outside
from common.figures.palette import VERDICTS
from common.figures.style import GREY, printable

MOST_PAIRS = 20  # rows in the figure of differences: more do not fit on a page


def differences(comparison: Comparison, frames: Frames, uncertainty: Uncertainty) -> Figure:
    """Draw each declared pair's differences in the headline metrics with their intervals; the mark is the verdict.

    Without a pair the panels are empty.
    """
    pairs = uncertainty.pairs.query("dataset == @comparison.dataset")
    declared = pairs[pairs.declared.astype(bool)]
    names = declared[["a", "b"]].drop_duplicates()
    count = min(len(names), MOST_PAIRS)
    looks = [
        look
        for verdict, look in VERDICTS.items()
        if verdict in set(zip(declared.verdict, declared.winner, strict=True))
    ]
    figure, axes = facets(
        [METRICS[metric].label for metric in HEADLINE],
        heights=(0.1 + 0.36 * count,),
        sharex=False,
        title=f"{comparison.title}: paired differences, {comparison.num_test:,} test images",
        caption=_caption(comparison, declared, count, len(pairs) // len(HEADLINE)),
        legend={label: Line2D([], [], markersize=5, linewidth=1.3, **look) for label, look in looks},
    )
    for metric, ax in zip(HEADLINE, axes[:, 0], strict=True):
        _differences_of(ax, declared[declared["metric"] == metric][:count], digits=METRICS[metric].digits - 2)
    label_outside(axes[:, 0], "Difference (points)", "")
    texts = pair_texts(comparison, names[:count])
    axes[0, 0].set_yticks(range(count), texts, fontsize=7.5 if max(map(len, texts), default=0) < 75 else 6)
    axes[0, 0].set_ylim(max(1, count) - 0.5, -0.5)
    return figure


def pair_texts(comparison: Comparison, pairs: pd.DataFrame) -> list[str]:
    """Return on two lines which models each of ``pairs``, with the run names ``a`` and ``b``, compares."""
    labels = {series.name: printable(series.label, 56) for series in comparison.series}
    return [f"{labels[pair.a]}\nminus {labels[pair.b]}" for pair in pairs.itertuples()]


def _caption(comparison: Comparison, declared: pd.DataFrame, shown: int, pairs: int) -> str:
    """Return what the marks, bars and the band are, and which of all ``pairs`` are ``shown``."""
    own = repeats([comparison])
    left_out = f"{shown} of {pairs} pairs, the others are in verdicts.csv. " if shown < pairs else ""
    kind = "simultaneous 95 % intervals (Holm)" if declared.family.max() > 1 else "95 % intervals"
    alone = (
        f" One {own.word} decides nothing: its bar is over the images alone."
        if ONE_SEED in set(declared.verdict)
        else ""
    )
    margins = declared.margin.dropna()
    band = f" Band: the margin of {points(margins.iloc[0])}." if len(margins) else ""
    return (
        f"{left_out}Upper minus lower model, {own.text}; bars: {kind} over {own.basis}, "
        f"without the choice of the learning rate. A model is called better where the bar excludes 0.{alone}{band} "
        f"{joined_notes([comparison])}"
    )


def _differences_of(ax: Axes, pairs: pd.DataFrame, *, digits: int) -> None:
    """Draw one metric's differences in points, a row a pair, the zero line, and the margin."""
    for row, pair in enumerate(pairs.itertuples()):
        look = VERDICTS[pair.verdict, pair.winner][1]
        draw_difference(ax, row, pair.difference, (pair.low, pair.high), look, digits=digits)
    for margin in pairs.margin.dropna().unique():
        ax.axvspan(-margin, margin, color="#EEEEEE", zorder=0)
    finish_differences(ax)


def draw_difference(
    ax: Axes, row: int, value: float, ends: tuple[float, float], look: Mapping[str, Any], *, digits: int = 1
) -> None:
    """Draw a difference (1 is 100 points) with its interval and its number in points; NaN is "not defined"."""
    if np.isnan(value):
        ax.text(0, row, "not defined", ha="center", va="center", fontsize=7, color=GREY)
        return
    low, high = ends
    ax.hlines(row, 100 * low, 100 * high, color=look["color"], linewidth=1.6)
    ax.plot(100 * value, row, markersize=5, **look)
    rim = [withStroke(linewidth=2, foreground="white")]  # the zero line may run through it
    text = {"ha": "center", "va": "bottom", "fontsize": 6.5, "path_effects": rim}
    ax.text(100 * value, row - 0.17, signed(value, digits=digits), **text)


def finish_differences(ax: Axes) -> None:
    """Draw the zero line through rows of differences, and their axis."""
    ax.axvline(0, color="black", linewidth=0.8)
    ax.tick_params(axis="y", length=0)
    ax.margins(x=0.15)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
