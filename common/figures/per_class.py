"""How each class fares: confusion matrices, and F1 a class."""

from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import joined_notes, repeats
from common.evaluation.frames import Frames
from common.evaluation.uncertainty import Uncertainty
from common.figures.layout import facets, label_outside, new_figure, panel_columns
from common.figures.palette import draw_marks, marks_caption, marks_legend, run_styles
from common.figures.style import printable

MOST_CLASSES = 40  # rows in the figure of per-class F1: more do not fit on a page


def confusion_matrices(comparison: Comparison, frames: Frames, uncertainty: Uncertainty) -> Figure:
    """Draw the counts, summed over the seeds or folds, coloured by the share of the true class."""
    names = comparison.data.classes
    side = 2.2 if len(names) <= 4 else 3.1 if len(names) <= 12 else 4.2  # inches
    columns = panel_columns(len(comparison.series))
    numbers = "Numbers: per cent of the true class" + ", and counts" * (len(names) <= 12)
    own_repeats = repeats([comparison])
    summed = f"Summed over {own_repeats.text}" + ": each image once" * (own_repeats.fewest == comparison.folds)
    caption = [numbers] * (len(names) <= 30) + [summed] * (own_repeats.most > 1)
    label_height = 0.06 * min(16, max(map(len, names)))
    figure, axes = facets(
        [series.label for series in comparison.series],
        heights=(side,),
        width=max(4.2, columns * side + 0.9 + label_height),
        frame=0.3 + label_height,
        title=f"{comparison.title}: confusion matrices, test images",
        caption="".join(f"{sentence}. " for sentence in caption) + joined_notes([comparison]),
    )
    for ax, series in zip(axes[:, 0], comparison.series, strict=True):
        _confusion(ax, series, names, side)
    label_outside(axes[:, 0], "Predicted", "True")
    image = axes[0, 0].collections[0]
    bar = figure.colorbar(image, ax=axes, panchor=(0.5, 1.0), shrink=0.7, aspect=30, pad=0.01, format="{x:.0f} %")
    bar.set_label("Share of the true class")
    bar.outline.set_visible(False)
    return figure


def _confusion(ax: Axes, series: Series, names: Sequence[str], side: float) -> None:
    """Draw one matrix; without numbers above 30 classes, with fewer names above 60."""
    counts = np.sum([run.test.confusion_matrix for run in series.runs], axis=0)  # (C, C), true x predicted
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(counts)
    step = -(-size // 60)
    labels = [printable(name, 16) for name in names[::step]]
    font = {"fontsize": min(9.0, max(4.5, 18 * side / size)), "linespacing": 1.0}  # points: two lines in a cell
    texts = np.vectorize(_cell_text, otypes=[str])(counts, percent, with_count=size <= 12) if size <= 30 else None
    bare = {"cbar": False, "xticklabels": False, "yticklabels": False, "rasterized": True}  # PDF: no seams
    sns.heatmap(
        percent, vmin=0, vmax=100, cmap="Blues", square=True, annot=texts, fmt="", annot_kws=font, ax=ax, **bare
    )
    for text in ax.texts:
        text.set_in_layout(False)  # half the time of the layout
    fits = 0.07 * max(map(len, labels)) < side / size
    ticks = np.arange(0, size, step) + 0.5
    ax.set_xticks(ticks, labels, rotation=0 if fits else 90)
    ax.set_yticks(ticks, labels, rotation=0)
    ax.tick_params(length=0, labelsize=7 if size <= 12 else 6 if size <= 30 else 4.5)


def _cell_text(count: int, percent: float, *, with_count: bool) -> str:
    """Return a cell's percentage and below it its count, or nothing for an empty cell."""
    if not with_count:
        return f"{percent:.0f}" if percent >= 0.5 else ""
    return f"{percent:.{0 if percent >= 9.95 else 1}f}\n{count:,}" if count else ""


def per_class_f1(comparison: Comparison, frames: Frames, uncertainty: Uncertainty) -> Figure:
    """Draw a row a class and in it a mark a model at its F1, the hardest class at the bottom."""
    # A class without test images has no F1.
    seeds = frames.per_class.query("dataset == @comparison.dataset").dropna(subset="f1")
    overall = seeds.groupby(["class", "run"], sort=False)["f1"].mean().groupby("class", sort=False).mean()
    shown = overall.sort_values(ascending=False, kind="stable").index[-MOST_CLASSES:]
    seeds = seeds[seeds["class"].isin(shown)]
    models = [series.name for series in comparison.series]
    offsets = dict(zip(models, np.linspace(-0.24, 0.24, len(models)) if len(models) > 1 else [0.0], strict=True))
    rows = seeds["class"].map({name: row for row, name in enumerate(shown)}) + seeds["run"].map(offsets)
    seeds = seeds.assign(row=rows)
    classes = len(comparison.data.classes)
    left_out = f"The {len(shown)} classes of lowest mean F1 of {classes}. " if len(shown) < classes else ""
    low = max(0.0, min(0.9, np.floor(seeds["f1"].min() * 10 - 0.2) / 10))
    figure = new_figure(
        0.75 + 0.2 * len(shown),
        title=f"{comparison.title}: F1 of each class, test images",
        caption=f"{left_out}{marks_caption([comparison], cut=low > 0)} {joined_notes([comparison])}",
        legend=marks_legend([comparison]),
    )
    ax = figure.subplots()
    means = seeds.groupby(["run", "row"], as_index=False, sort=False)["f1"].mean()
    draw_marks(ax, seeds, means, "f1", "row", run_styles(comparison))
    ax.set_yticks(range(len(shown)), [printable(name, 32) for name in shown])
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="F1", ylabel="", xlim=(low - 0.005, 1.005), ylim=(len(shown) - 0.4, -0.6))
    ax.grid(axis="y")
    ax.grid(axis="x", linestyle=":")
    return figure
