"""How every figure looks, how names are made safe to print, and files that redraw to the same bytes."""

import contextlib
import io
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import font_manager, rcParams, style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import count_seeds
from common.runtime.files import write_atomically

# Inches: one and two columns of a journal page; a figure is wider only if its panels would not be readable.
WIDTHS = {"one": 3.5, "two": 7.2}

PANEL = 2.3  # inches that a panel needs

GREY = "#595959"

PNG_DPI = 200

TITLE_HEIGHT = 0.26  # inches

_RC = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.formatter.useoffset": False,
    "font.size": 8,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.5,
    "hatch.color": "white",
    "hatch.linewidth": 0.8,
    "legend.borderaxespad": 0.0,
    "legend.borderpad": 0.1,
    "legend.columnspacing": 1.4,
    "legend.fontsize": 7.5,
    "legend.handletextpad": 0.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType: Type 3 is refused by many publishers, and cannot be edited
    "text.parse_math": False,  # a class may be called "$5_note$"
    "xtick.color": GREY,
    "xtick.labelcolor": "black",
    "xtick.labelsize": 7.5,
    "xtick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "xtick.minor.size": 1.5,
    "ytick.color": GREY,
    "ytick.labelcolor": "black",
    "ytick.labelsize": 7.5,
    "ytick.major.size": 2.5,
    "ytick.major.width": 0.6,
}


@contextlib.contextmanager
def context(columns: str = "two") -> Iterator[None]:
    """Draw and save inside this: matplotlib's defaults and the benchmark's style, whatever the user's matplotlibrc.

    ``columns`` of a page, one of ``WIDTHS``, are how wide figures are made.
    Only ``font.family`` stays the user's, for names in scripts that DejaVu Sans lacks (see ``missing_letters``).
    """
    settings = {**_RC, "font.family": list(rcParams["font.family"]), "figure.figsize": [WIDTHS[columns]] * 2}
    with style.context(settings, after_reset=True), _no_glyph_warnings():
        yield


def width() -> float:
    """Return how many inches wide figures are within the present ``context``."""
    return rcParams["figure.figsize"][0]


def panels_abreast(count: int) -> int:
    """Return how many of ``count`` panels stand side by side: at most three, and one on a single column."""
    return min(count, max(1, int(width() / PANEL)))


def new_figure(
    width: float, height: float, *, title: str, caption: str, legend: Mapping[str, Artist] | None = None
) -> Figure:
    """Return an empty figure with ``width`` x ``height`` inches for axes, a title and a legend above, a caption below.

    ``legend`` maps labels to what they explain. All is placed by the inch: matplotlib's own layout of figure titles
    and legends lets them overlap.
    """
    lines = textwrap.wrap(" ".join(caption.split()), int(width * 18))  # 18 letters of 7 points an inch
    columns = max(1, int(width / (0.42 + 0.064 * max(map(len, legend))))) if legend else 1
    legend_height = 0.06 + 0.16 * -(-len(legend) // columns) if legend else 0.0
    below = 0.12 + 0.125 * len(lines)
    titles = textwrap.wrap(printable(title, int(22 * width)), int(11 * width))[:2]
    title_height = TITLE_HEIGHT + 0.15 * (len(titles) - 1)
    total = below + height + legend_height + title_height
    figure = Figure(figsize=(width, total))
    figure.set_layout_engine("constrained", rect=(0, below / total, 1, height / total), w_pad=0.03, h_pad=0.03)
    left = 0.05 / width
    figure.text(left, 1 - 0.06 / total, "\n".join(titles), va="top", fontsize=9.5, fontweight="bold")
    figure.text(left, 0.04 / total, "\n".join(lines), va="bottom", fontsize=7, color=GREY)
    if legend:
        anchor = (left, 1 - title_height / total)
        drawn = figure.legend(
            list(legend.values()), list(legend), loc="upper left", bbox_to_anchor=anchor, ncols=columns
        )
        drawn.set_in_layout(False)
    return figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem``.png and ``stem``.pdf atomically, without dates, and return their paths."""
    paths = []
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=PNG_DPI, metadata=metadata)
        figure.set_layout_engine("none")  # the layout stays, finding it once more takes as long as drawing
        paths.append(stem.with_name(f"{stem.name}.{suffix}"))
        write_atomically(paths[-1], buffer.getvalue())
    return paths


def printable(name: str, width: int = 24) -> str:
    """Return ``name`` on one line of at most ``width`` letters; what has no letter shape becomes a question mark."""
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(name.split()))
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def wrapped(label: str, width: int) -> str:
    """Return ``label`` printable, on as many lines of ``width`` letters as it needs.

    What stands in brackets, such as "[random weights]", stays on one line where it fits on one.
    """

    def joined(match: re.Match) -> str:
        return match[0].replace(" ", "\xa0") if len(match[0]) <= width else match[0]  # textwrap breaks at ASCII only

    text = re.sub(r"\[[^]]*\]|\([^)]*\)", joined, printable(label, max(72, 3 * width)))
    return textwrap.fill(text, width, break_on_hyphens=False).replace("\xa0", " ")


def missing_letters(names: Iterable[str]) -> str:
    """Return the letters of ``names`` that no font of ``font.family`` has: they are drawn as boxes."""
    paths = font_manager.fontManager._find_fonts_by_props(font_manager.FontProperties(family=rcParams["font.family"]))
    known = {code for path in paths for code in font_manager.get_font(path).get_charmap()}
    return "".join(sorted({letter for name in names for letter in printable(name) if ord(letter) not in known}))


def plain(ax: Axes, *, grid: str = "") -> Axes:
    """Remove the grid from ``ax`` except along ``grid`` ("x", "y" or nothing)."""
    ax.grid(False)
    if grid:
        ax.grid(True, axis=grid)
    return ax


def widen(axes: Iterable[Axes], least: float = 0.05) -> None:
    """Give ``axes`` one range of y with a margin, at least ``least`` in all, so that no axis blows noise up."""
    axes = list(axes)
    low, high = min(ax.dataLim.y0 for ax in axes), max(ax.dataLim.y1 for ax in axes)
    margin = max(0.08 * (high - low), (least - (high - low)) / 2)
    for ax in axes:
        ax.set_ylim(low - margin, high + margin)
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def used(axes: np.ndarray, count: int) -> list[Axes]:
    """Return the first ``count`` axes of a grid and remove the others, which would be empty frames."""
    for ax in axes.ravel()[count:]:
        ax.remove()
    return list(axes.ravel()[:count])


@contextlib.contextmanager
def _no_glyph_warnings() -> Iterator[None]:
    """Keep matplotlib from one warning a letter and figure; ``missing_letters`` says it once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def panel_titles(compared: Comparison, side: float) -> tuple[list[str], float]:
    """Return the models' labels, wrapped to panels of ``side`` inches, and the height that they need in inches."""
    titles = [wrapped(series.label, int(10.5 * side)) for series in compared.series]
    return titles, 0.14 * max(title.count("\n") + 1 for title in titles)


def label_outside(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Label a panel's axes and ticks only where it has no neighbour, which is where a text is given."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.tick_params(labelbottom=bool(xlabel), labelleft=bool(ylabel))


def draw_marks(ax: Axes, series: Series, x: np.ndarray, y: np.ndarray) -> Axes:
    """Draw one mark for each column of ``x`` and ``y`` (seeds, K) at the seeds' mean, and a dot for each seed."""
    look = series.look
    if len(x) > 1:  # in front of the mean and ringed in white: seeds that agree lie inside its mark
        dots = {"color": look.color, "edgecolors": "white", "linewidths": 0.35, "zorder": 4}
        ax.scatter(x.ravel(), y.ravel(), s=5, **dots)
    ax.scatter(x.mean(axis=0), y.mean(axis=0), s=40, marker=look.marker, color=look.color, linewidths=0, zorder=3)
    return ax


def marks_legend(compared: Sequence[Comparison]) -> dict[str, Line2D]:
    """Return each model's label with its mark, once where several data sets have it."""
    looks = {printable(series.label, 90): series.look for one in compared for series in one.series}
    marks = {label: {"marker": look.marker, "color": look.color} for label, look in looks.items()}
    return {label: Line2D([], [], linestyle="", markersize=6, **mark) for label, mark in marks.items()}


def marks_caption(compared: Sequence[Comparison], *, cut: bool) -> str:
    """Return the caption's sentences on marks and dots, and on the axis where it is ``cut``."""
    seeds = count_seeds(compared)
    marks = "One seed." if seeds == "1 seed" else f"Marks: mean of {seeds}; small dots: each seed."
    return f"{marks} The axis does not start at 0." if cut else marks
