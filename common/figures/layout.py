"""Figures of panels, placed by the inch: title and legend above, caption below, axes labelled on the outside."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.figures.style import GREY, WIDTHS, page_width, printable, wrapped

PANEL = 2.3  # inches that a panel needs
NARROW = 1.75  # inches that a panel needs where all stand side by side
MOST_BESIDE = 5  # panels that do: more would be too small on a page
UNIT_TICKS = [0, 0.5, 1], ["0", "0.5", "1"]


def panel_columns(count: int, width: float | None = None) -> int:
    """Return how many of ``count`` panels stand side by side: as many as fit ``width`` inches, rows being equally full.

    The default ``width`` is the page's.
    """
    rows = -(-count // max(1, int((width or page_width()) / PANEL)))
    return -(-count // rows)


def facets(
    titles: Sequence[str],
    heights: Sequence[float],
    *,
    wrap: bool = True,
    width: float | None = None,
    frame: float = 0.4,
    sharex: bool | str = True,
    sharey: bool | str = True,
    **texts,
) -> tuple[Figure, np.ndarray]:
    """Return a figure with a panel for each of ``titles``, and the axes (panels, heights).

    Each panel is a column of axes as high as ``heights`` in inches. They ``wrap`` into rows, ``width`` inches wide
    (default: the page), or up to ``MOST_BESIDE`` stand side by side, on a wider figure if need be; more are in rows as
    wide as two columns of a page. ``frame`` are the inches that the labels of the axes need; ``sharex`` and ``sharey``
    are those of ``subplots``, ``texts`` those of ``new_figure``.
    """
    if wrap:
        columns, width = panel_columns(len(titles)), width or page_width()
    elif len(titles) <= MOST_BESIDE:
        columns, width = len(titles), width or max(page_width(), NARROW * len(titles))
    else:
        columns, width = panel_columns(len(titles), WIDTHS["two"]), WIDTHS["two"]
    titles = [wrapped(title, int(10.5 * width / columns)) for title in titles]
    above = 0.1 + 0.14 * max((title.count("\n") + 1 for title in titles), default=0)
    rows = -(-len(titles) // columns)
    figure = new_figure(rows * (sum(heights) + above) + frame, width=width, **texts)
    shape = {"nrows": rows * len(heights), "ncols": columns, "height_ratios": [*heights] * rows, "squeeze": False}
    grid = figure.subplots(**shape, sharex=sharex, sharey=sharey)
    # (rows, heights, columns) -> (panels, heights)
    axes = grid.reshape(rows, len(heights), columns).swapaxes(1, 2).reshape(-1, len(heights))
    axes = remove_unused(axes, len(titles))
    for ax, title in zip(axes[:, 0], titles, strict=True):
        ax.set_title(title)
    return figure, axes


def remove_unused(axes: np.ndarray, count: int) -> np.ndarray:
    """Return the first ``count`` rows of ``axes`` and remove the others, which would be empty frames."""
    for ax in axes[count:].ravel():
        ax.remove()
    return axes[:count]


def new_figure(
    height: float, *, width: float | None = None, title: str, caption: str, legend: Mapping[str, Artist] | None = None
) -> Figure:
    """Return an empty figure with ``height`` inches for axes, a title and a legend above, and a caption below.

    ``legend`` maps labels to what they explain; the default ``width`` is the page's. All is placed by the inch:
    matplotlib's own layout of figure titles and legends lets them overlap.
    """
    width = width or page_width()
    lines = textwrap.wrap(" ".join(caption.split()), int(width * 18))  # 18 letters of 7 points an inch
    titles = textwrap.wrap(printable(title, int(22 * width)), int(11 * width))[:2]
    columns = max(1, int(width / (0.42 + 0.064 * max(map(len, legend))))) if legend else 1
    legend_height = 0.06 + 0.16 * -(-len(legend) // columns) if legend else 0.0
    title_height = 0.11 + 0.15 * len(titles)
    below = 0.12 + 0.125 * len(lines)
    total = below + height + legend_height + title_height
    left = 0.05 / width
    figure = Figure(figsize=(width, total))
    figure.set_layout_engine("constrained", rect=(0, below / total, 1, height / total), w_pad=0.03, h_pad=0.03)
    figure.text(left, 1 - 0.06 / total, "\n".join(titles), va="top", fontsize=9.5, fontweight="bold")
    figure.text(left, 0.04 / total, "\n".join(lines), va="bottom", fontsize=7, color=GREY)
    if legend:
        place = {"loc": "upper left", "bbox_to_anchor": (left, 1 - title_height / total), "ncols": columns}
        figure.legend(list(legend.values()), list(legend), **place).set_in_layout(False)
    return figure


def label_outside(axes: Sequence[Axes], xlabel: str, ylabel: str) -> None:
    """Label the x axis of the lowest of the panels' ``axes`` and the y axis of the leftmost."""
    columns = axes[0].get_gridspec().ncols
    for index, ax in enumerate(axes):
        lowest = index + columns >= len(axes)
        ax.set(xlabel=xlabel * lowest, ylabel=ylabel * (index % columns == 0))
        if xlabel and lowest:
            ax.tick_params(labelbottom=True)  # the place below may be empty


def widen(axes: Iterable[Axes], least: float = 0.05) -> None:
    """Give ``axes`` one range of y with a margin, at least ``least`` in all, so that no axis blows noise up."""
    axes = list(axes)
    low, high = min(ax.dataLim.y0 for ax in axes), max(ax.dataLim.y1 for ax in axes)
    margin = max(0.08 * (high - low), (least - (high - low)) / 2)
    for ax in axes:
        ax.set_ylim(low - margin, high + margin)
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def label_ends(ax: Axes, ends: Iterable[tuple[str, float, str]], *, height: float, x: float = 1.02) -> None:
    """Write the label of each line at its end's height, in its colour, none over another.

    Args:
        ends: the (label, y, colour) of each line.
        height: inches of the figure that ``ax`` takes, about.
        x: where the labels begin, as a share of the width of ``ax``; above 1 they stand beside it.
    """
    ends = sorted(((wrapped(label, 20), y, color) for label, y, color in ends), key=lambda end: end[1])
    low, high = ax.get_ylim()
    needed = [(high - low) * 0.165 / height * (label.count("\n") + 1.3) for label, _, _ in ends]
    places = [y for _, y, _ in ends]
    # Upwards until none overlaps, then all down again by as much as they rose in the mean.
    for above in range(1, len(ends)):
        places[above] = max(places[above], places[above - 1] + (needed[above - 1] + needed[above]) / 2)
    shift = np.mean([place - y for place, (_, y, _) in zip(places, ends, strict=True)])
    for place, (label, _, color) in zip(places, ends, strict=True):
        at = {"xy": (x, place - shift), "xycoords": ("axes fraction", "data")}
        ax.annotate(label, **at, color=color, va="center", fontsize=7.5, annotation_clip=False)
