"""Paired differences between models, with their intervals."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from common.evaluation.comparison import Comparison
from common.evaluation.formatting import count_seeds, joined_notes, signed
from common.evaluation.significance import NO_DIFFERENCE, NOT_DEFINED, verdict
from common.evaluation.uncertainty import COMPARED, Difference
from common.figures import style
from common.figures.style import GREY
from common.report.sentences import pair

NAMES = dict(zip(COMPARED, ("Accuracy", "F1 (macro)", "AUC (macro)"), strict=True))

MOST_PAIRS = 20  # rows in the figure of differences: more do not fit on a page

# Okabe and Ito's blue and vermilion; in grey print the shapes tell a verdict.
VERDICTS = {
    "better": ("the upper model is better", {"color": "#0072B2", "marker": ">"}),
    "worse": ("the lower model is better", {"color": "#D55E00", "marker": "<"}),
    NO_DIFFERENCE: ("no difference seen", {"color": GREY, "marker": "o", "markerfacecolor": "white"}),
}


def differences(compared: Comparison) -> Figure:
    """Draw each pair's differences in accuracy, F1 and AUC with their intervals; the colour is the verdict.

    Without a pair the panels are empty.
    """
    pairs = compared.evidence.differences
    shown = pairs[:MOST_PAIRS]
    left_out = f"The first {len(shown)} of {len(pairs)} pairs. " if len(shown) < len(pairs) else ""
    columns, seeds = style.panels_abreast(len(COMPARED)), count_seeds([compared])
    over = "test images" if seeds == "1 seed" else "test images and seeds"
    figure = style.new_figure(
        style.width(),
        (0.55 + 0.36 * len(shown)) * len(COMPARED) / columns,
        title=f"{compared.title}: paired differences, {compared.data['num_test']:,} test images",
        caption=f"{left_out}Upper minus lower model, {seeds}; bars: 95 % interval over {over}, each for itself. "
        f"A difference is called one where its interval excludes 0. {joined_notes([compared])}",
        legend={label: Line2D([], [], markersize=5, linewidth=1.3, **look) for label, look in VERDICTS.values()},
    )
    axes = figure.subplots(len(COMPARED) // columns, columns, sharey=True, squeeze=False).ravel()
    for metric, ax in zip(COMPARED, axes, strict=True):
        _differences_of(ax, shown, metric).set_title(NAMES[metric])
    pairs = [pair(compared, difference) for difference in shown]
    texts = [f"{style.printable(ours.label, 50)}\nminus {style.printable(theirs.label, 50)}" for ours, theirs in pairs]
    axes[0].set_yticks(range(len(texts)), texts, fontsize=7.5 if max(map(len, texts), default=0) < 75 else 6)
    axes[0].set_ylim(max(1, len(texts)) - 0.5, -0.5)
    return figure


def _differences_of(ax: Axes, shown: Sequence[Difference], metric: str) -> Axes:
    """Draw one metric's differences in points, a row a pair, and the zero line."""
    for row, difference in enumerate(shown):
        value, low, high = (100 * number for number in difference.estimates[metric])
        word = verdict(difference.estimates[metric])
        if word == NOT_DEFINED:
            ax.text(0, row, word, ha="center", va="center", fontsize=7, color=GREY)
            continue
        look = VERDICTS[word][1]
        ax.plot([low, high], [row, row], color=look["color"], linewidth=1.6, solid_capstyle="butt")
        ax.plot(value, row, markersize=5, **look)
        text = signed(value, scale=1, digits=2 if metric == "auc_macro" else 1)
        rim = [withStroke(linewidth=2, foreground="white")]  # the zero line may run through it
        ax.text(value, row - 0.17, text, ha="center", va="bottom", fontsize=6.5, path_effects=rim)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("Difference (points)")
    ax.margins(x=0.15)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.spines["left"].set_visible(False)
    return style.plain(ax, grid="x")
