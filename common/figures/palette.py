"""Which colour, mark, line and hatch a model has in every figure, and a verdict in the figure of differences."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from common.evaluation.comparison import Comparison
from common.evaluation.formatting import repeats
from common.evaluation.significance import BETTER, EQUIVALENT, ONE_SEED, UNDECIDED, WITHIN_MARGIN
from common.figures.style import GREY, printable
from common.runs.result import natural_order


@dataclass(frozen=True)
class Style:
    """How a model is drawn; each of the four tells it apart, also in grey print."""

    color: str
    marker: str
    linestyle: str
    hatch: str


# Okabe and Ito's colours, which colour-blind readers tell apart.
STYLES = {
    "lora": Style("#0072B2", "o", "-", ""),
    "vit": Style("#56B4E9", "D", "-.", "\\\\\\\\"),
    "resnet": Style("#D55E00", "s", "--", "////"),
    "efficientnet": Style("#009E73", "^", ":", "...."),
    "other": Style("#CC79A7", "P", (0, (5, 1)), "xxxx"),
}
SHADES = (0.0, -0.4, 0.5, -0.75, 0.7)  # towards white, or black where negative, for further runs of one family
# What is said of a pair, by verdict and winner, and how. Tol's indigo and Okabe and Ito's orange are no model's, and
# far apart for the colour-blind; in grey print the shapes tell a verdict.
_A, _B = {"color": "#332288", "marker": ">"}, {"color": "#E69F00", "marker": "<"}
_HOLLOW = {"markerfacecolor": "white"}
VERDICTS = {
    (BETTER, "a"): ("the upper model is better", _A),
    (BETTER, "b"): ("the lower model is better", _B),
    (WITHIN_MARGIN, "a"): ("the upper is better, by less than the margin", _A | _HOLLOW),
    (WITHIN_MARGIN, "b"): ("the lower is better, by less than the margin", _B | _HOLLOW),
    (EQUIVALENT, ""): ("equivalent within the margin", {"color": "black", "marker": "s"}),
    (UNDECIDED, ""): ("undecided", {"color": GREY, "marker": "o"} | _HOLLOW),
    (ONE_SEED, ""): ("undecided: one seed", {"color": GREY, "marker": "x"}),
}
PUBLISHED = {"marker": "D", "markersize": 4.5, "markerfacecolor": "none", "markeredgecolor": "black", "linestyle": ""}


def run_styles(comparison: Comparison) -> dict[str, Style]:
    """Return the style of each run's name: its family's, in other shades for further runs of it.

    The shortest name, which has the fewest settings of its own, has the family's colour itself.
    """
    families = defaultdict(list)
    for series in comparison.series:
        families[series.family].append(series.name)
    return {
        name: replace(STYLES[family], color=shade(STYLES[family].color, SHADES[index % len(SHADES)]))
        for family, names in families.items()
        for index, name in enumerate(sorted(names, key=lambda name: (len(name), natural_order(name))))
    }


def shade(color: str, amount: float) -> str:
    """Mix a "#rrggbb" colour with white (``amount`` above 0) or black (below 0)."""
    target = 255 if amount > 0 else 0
    channels = (int(channel, 16) for channel in re.findall("..", color[1:]))
    return "#" + "".join(f"{round(value + (target - value) * abs(amount)):02x}" for value in channels)


def draw_marks(ax: Axes, seeds: pd.DataFrame, means: pd.DataFrame, x: str, y: str, styles: dict[str, Style]) -> Axes:
    """Draw a mark for each row of ``means`` and a dot for each row of ``seeds``, both with a column ``run``.

    The dots, of runs with several seeds, lie in front and are ringed in white: seeds that agree lie inside the mark.
    """
    look = {"x": x, "y": y, "hue": "run", "palette": {name: style.color for name, style in styles.items()}}
    look |= {"legend": False, "ax": ax}
    markers = {name: style.marker for name, style in styles.items()}
    sns.scatterplot(means, style="run", markers=markers, s=40, linewidth=0, zorder=3, **look)
    several = seeds[seeds.groupby("run")["seed"].transform("nunique") > 1]
    if len(several):
        sns.scatterplot(several, s=5, edgecolor="white", linewidth=0.35, zorder=4, **look)
    return ax


def marks_legend(comparisons: Sequence[Comparison]) -> dict[str, Line2D]:
    """Return each model's label with its mark, once where several data sets have it."""
    styles = {
        printable(series.label, 90): run_styles(comparison)[series.name]
        for comparison in comparisons
        for series in comparison.series
    }
    look = {"linestyle": "", "markersize": 6}
    return {label: Line2D([], [], marker=own.marker, color=own.color, **look) for label, own in styles.items()}


def marks_caption(comparisons: Sequence[Comparison], *, cut: bool) -> str:
    """Return the caption's sentences on marks and dots, and on the axis where it is ``cut``."""
    own = repeats(comparisons)
    marks = f"Marks: mean of {own.text}; small dots: each {own.word}." if own.most > 1 else f"One {own.word}."
    return f"{marks} The axis does not start at 0." if cut else marks
