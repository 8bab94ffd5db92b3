"""F1 of each class."""

import numpy as np
from matplotlib.figure import Figure

from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import joined_notes
from common.figures import style
from common.figures.style import draw_marks, marks_caption, marks_legend

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
        caption=f"{left_out}{marks_caption([compared], cut=low > 0)} {joined_notes([compared])}",
        legend=marks_legend([compared]),
    )
    ax = style.plain(figure.subplots(), grid="y")
    positions = np.arange(len(rows))[::-1]
    offsets = np.linspace(0.24, -0.24, len(f1)) if len(f1) > 1 else [0.0]
    for series, array, offset in zip(compared.series, f1, offsets, strict=True):
        draw_marks(ax, series, array[:, rows], np.broadcast_to(positions + offset, (len(array), len(rows))))
    ax.set_yticks(positions, [style.printable(names[index], 32) for index in rows])
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="F1", xlim=(low - 0.005, 1.005), ylim=(-0.6, len(rows) - 0.4))
    ax.grid(True, axis="x", linestyle=":")
    return figure


def _f1(series: Series) -> np.ndarray:
    """Return the F1 of each seed and class (seeds, C), NaN for a class without test images."""
    rows = [[row["f1"] for row in run.test["per_class"]] for run in series.runs]
    return np.array(rows, dtype=np.float64)
