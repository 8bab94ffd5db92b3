"""Method and backbone crossed: the accuracy of each cell, and every effect with its interval on two scales."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.evaluation.comparison import Comparison
from common.evaluation.factorial import DEPENDS, NEGATIVE, POSITIVE, SCALES, crossed
from common.evaluation.formatting import joined_notes, repeats
from common.evaluation.frames import Frames
from common.evaluation.labels import backbone_names, family_of_backbone
from common.evaluation.metrics import METRICS
from common.evaluation.significance import BETTER, ONE_SEED, UNDECIDED
from common.evaluation.uncertainty import Uncertainty
from common.figures.differences import finish_differences
from common.figures.layout import label_ends, new_figure, widen
from common.figures.palette import SHADES, STYLES, VERDICTS, shade
from common.figures.style import WIDTHS, printable
from common.runs.methods import KINDS

ROW, CELLS_HEIGHT = 0.17, 2.0  # inches
LABELS_FROM = 0.77  # of the width of the cells; beside them the labels would take it from the effects, too
LABELS = {"accuracy": "Accuracy (points)", "log_odds": "Log-odds of accuracy"}
FACTORS = {"accuracy": 100, "log_odds": 1}
LONGEST = 3  # times the median bar: one of two seeds that disagree would leave nothing to see of the others
HEADINGS = {
    "method": "Method, within a backbone",
    "backbone": "Backbone, within a method",
    "interaction": "Interaction",
}
EFFECT_LOOKS = {
    POSITIVE: ("above 0 on both scales", VERDICTS[BETTER, "a"][1]),
    NEGATIVE: ("below 0 on both scales", VERDICTS[BETTER, "b"][1]),
    DEPENDS: ("depends on the scale", {"color": "black", "marker": "D", "markerfacecolor": "white"}),
    UNDECIDED: ("undecided", VERDICTS[UNDECIDED, ""][1]),
    ONE_SEED: ("one seed", VERDICTS[ONE_SEED, ""][1]),
}


def method_and_backbone(comparison: Comparison, frames: Frames, uncertainty: Uncertainty) -> Figure:
    """Draw a line a backbone over the methods, above a row an effect with its interval in points and in log-odds."""
    effects = uncertainty.effects[uncertainty.effects.dataset == comparison.dataset]
    heights = [CELLS_HEIGHT, ROW * (len(effects) + effects.effect.nunique() + 0.5)]
    looks = [look for word, look in EFFECT_LOOKS.items() if word in set(effects.verdict)]
    own = repeats([comparison])
    limits, is_cut = zip(*(_limits(effects, scale) for scale in SCALES), strict=True)
    figure = new_figure(
        sum(heights) + 0.8,
        width=WIDTHS["two"],  # in one column the labels would leave no room
        title=f"{comparison.title}: method and backbone crossed, {comparison.num_test:,} test images",
        caption=f"Above: mean of {own.text} and its 95 % interval over {own.basis}; the "
        "axis does not start at 0. Below: an interaction is what a method adds to the first backbone's probe, less "
        "what it adds to the other's. Bars: 95 % intervals, which hold together for the effects of one kind "
        f"(Holm){'; those that reach the edge go on' * any(is_cut)}. {joined_notes([comparison])}",
        legend={label: Line2D([], [], markersize=5, linewidth=1.3, **look) for label, look in looks},
    )
    grid = figure.add_gridspec(2, 2, height_ratios=heights)
    _draw_cells(figure.add_subplot(grid[0, :]), comparison, uncertainty)
    left = figure.add_subplot(grid[1, 0])
    right = figure.add_subplot(grid[1, 1], sharey=left)
    for scale, ax, ends in zip(SCALES, (left, right), limits, strict=True):
        _draw_effects(ax, effects, scale)
        ax.set_xlim(ends)
    right.tick_params(labelleft=False)
    return figure


def _draw_cells(ax: Axes, comparison: Comparison, uncertainty: Uncertainty) -> None:
    """Draw the accuracy of each cell, a line a backbone, named at its end."""
    cells = crossed(comparison)
    means = uncertainty.means.query("dataset == @comparison.dataset and metric == 'accuracy'").set_index("run")
    kinds = [kind for kind in KINDS if any(kind == its for _, its in cells)]
    backbones = backbone_names(backbone for backbone, _ in cells)
    families, ends = list(map(family_of_backbone, backbones)), []
    for place, (backbone, name) in enumerate(backbones.items()):
        look = STYLES[families[place]]
        color = shade(look.color, SHADES[families[:place].count(families[place])])
        own = {kinds.index(kind): means.loc[series.name] for (its, kind), series in cells.items() if its == backbone}
        x = np.array(list(own)) + 0.06 * (place - (len(backbones) - 1) / 2)
        rows = pd.DataFrame(list(own.values()))
        ax.plot(x, rows["value"], color=color, marker=look.marker, linestyle=look.linestyle, markersize=5)
        ax.vlines(x, rows["low"], rows["high"], color=color, linewidth=1.6)
        ends.append((name, rows["value"].iloc[-1], color))
    ax.set_xticks(range(len(kinds)), [KINDS[kind] for kind in kinds])
    ax.set(ylabel=METRICS["accuracy"].label, xlim=(-0.2, (len(kinds) - 0.6) / LABELS_FROM - 0.2))
    ax.grid(axis="y")
    widen([ax])
    label_ends(ax, ends, height=CELLS_HEIGHT, x=LABELS_FROM)


def _limits(effects: pd.DataFrame, scale: str) -> tuple[tuple[float, float], bool]:
    """Return the ends of an axis that shows every value, and whether it cuts the bars that reach farthest from 0."""
    bars = FACTORS[scale] * effects[[f"{scale}_low", f"{scale}_high"]].to_numpy()  # (effects, 2)
    values = FACTORS[scale] * effects[scale].to_numpy()
    most = max(LONGEST * np.median(np.abs(bars).max(axis=1)), np.abs(values).max())
    low, high = max(bars.min(), -most), min(bars.max(), most)
    margin = 0.06 * (high - low)
    return (low - margin, high + margin), bool((np.abs(bars) > most).any())


def _draw_effects(ax: Axes, effects: pd.DataFrame, scale: str) -> None:
    """Draw one scale: a row an effect, those of a kind under their heading."""
    factor, texts, row = FACTORS[scale], {}, -1.0
    for kind, members in effects.groupby("effect", sort=False):
        row += 1
        texts[row] = HEADINGS[kind]
        for effect in members.itertuples():
            row += 1
            texts[row] = f"{printable(effect.within)}: {printable(effect.first)} minus {printable(effect.other)}"
            look = EFFECT_LOOKS[effect.verdict][1]
            low, high = (factor * getattr(effect, f"{scale}_{end}") for end in ("low", "high"))
            ax.hlines(row, low, high, color=look["color"], linewidth=1.4)
            ax.plot(factor * getattr(effect, scale), row, markersize=4, **look)
    finish_differences(ax)
    ax.set_yticks(list(texts), list(texts.values()), fontsize=6.5)
    for label in ax.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in HEADINGS.values() else "normal")
    ax.set(ylim=(row + 0.5, -0.5), xlabel=LABELS[scale])
