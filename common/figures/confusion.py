"""Confusion matrices: one panel a model, side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import count_seeds, joined_notes
from common.figures import style
from common.figures.style import label_outside, panel_titles


def confusion_matrices(compared: Comparison) -> Figure:
    """Draw the counts, summed over the seeds, coloured by the share of the true class."""
    names = compared.data["classes"]
    side = 2.2 if len(names) <= 4 else 3.1 if len(names) <= 12 else 4.2  # inches
    columns = style.panels_abreast(len(compared.series))
    rows = -(-len(compared.series) // columns)
    seeds = count_seeds([compared])
    numbers = "Numbers: per cent of the true class" + ", and counts" * (len(names) <= 12)
    caption = [numbers] * (len(names) <= 30) + [f"Summed over {seeds}"] * (seeds != "1 seed")
    label_height = 0.06 * min(16, max(map(len, names)))
    titles, title_height = panel_titles(compared, side)
    figure = style.new_figure(
        max(4.2, columns * side + 0.9 + label_height),
        rows * (side + 0.1 + title_height) + 0.3 + label_height,
        title=f"{compared.title}: confusion matrices, test images",
        caption="".join(f"{sentence}. " for sentence in caption) + joined_notes([compared]),
    )
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axes = style.used(grid, len(compared.series))
    for index, (ax, series) in enumerate(zip(axes, compared.series, strict=True)):
        image = _confusion(ax, series, names, side)
        ax.set_title(titles[index])
        label_outside(ax, "Predicted" * (index + columns >= len(axes)), "True" * (index % columns == 0))
    bar = figure.colorbar(image, ax=axes, panchor=(0.5, 1.0), shrink=0.7, aspect=30, pad=0.01, format="{x:.0f} %")
    bar.set_label("Share of the true class")
    bar.outline.set_visible(False)
    return figure


def _confusion(ax: Axes, series: Series, names: Sequence[str], side: float) -> AxesImage:
    """Draw one matrix and return its image; without numbers above 30 classes, with fewer names above 60."""
    counts = np.sum([run.test["confusion_matrix"] for run in series.runs], axis=0)  # (C, C), true x predicted
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(counts)
    few = size <= 12
    font = min(9.0, max(4.5, 18 * side / size))  # points: two lines in a cell
    image = ax.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for (row, column), count in np.ndenumerate(counts) if size <= 30 else ():
        share = percent[row, column]
        text = _cell_text(count, share, with_count=few)
        color = "white" if share > 50 else "black"
        cell = {"ha": "center", "va": "center", "color": color, "fontsize": font, "linespacing": 1.0}
        if text:
            ax.text(column, row, text, **cell).set_in_layout(False)  # half the time of the layout
    step = -(-size // 60)
    labels = [style.printable(name, 16) for name in names[::step]]
    fits = 0.07 * max(map(len, labels)) < side / size
    ax.set_xticks(range(0, size, step), labels, rotation=0 if fits else 90)
    ax.set_yticks(range(0, size, step), labels)
    ax.tick_params(labelsize=7 if few else 6 if size <= 30 else 4.5)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    style.plain(ax)
    return image


def _cell_text(count: int, percent: float, *, with_count: bool) -> str:
    """Return a cell's percentage and below it its count, or nothing for an empty cell."""
    if not with_count:
        return f"{percent:.0f}" if percent >= 0.5 else ""
    return f"{percent:.{0 if percent >= 9.95 else 1}f}\n{count:,}" if count else ""
