"""What was asked and what came out, on all data sets: the declared differences of accuracy, and the interactions."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.evaluation.comparison import Comparison
from common.evaluation.factorial import INTERACTION
from common.evaluation.formatting import joined_notes, points, repeats
from common.evaluation.frames import Frames
from common.evaluation.significance import ONE_SEED
from common.evaluation.uncertainty import Uncertainty
from common.figures.differences import draw_difference, finish_differences, pair_texts
from common.figures.layout import facets, label_outside
from common.figures.method_and_backbone import EFFECT_LOOKS
from common.figures.palette import VERDICTS
from common.figures.style import printable

ROW = 0.33  # inches
MOST_ROWS = 24  # more do not fit on a page
PAIRS, INTERACTIONS = "Declared differences", "Interactions: gains over the probe"


class Finding(NamedTuple):
    """One difference of accuracies (1 is 100 points) with its interval, and what is said of it."""

    dataset: str
    block: str  # the heading that it stands under
    text: str
    value: float
    low: float
    high: float
    look: tuple[str, dict]  # (entry in the legend, how it is drawn)


def findings(comparisons: Sequence[Comparison], _: Frames, uncertainty: Uncertainty) -> Figure:
    """Draw a panel a data set: its declared pairs' differences of accuracy, and below them its interactions."""
    found = pd.DataFrame(list(_findings(comparisons, uncertainty)))
    rows = found[["block", "text"]].drop_duplicates().sort_values("block", key=lambda its: its != PAIRS, kind="stable")
    shown = rows[:MOST_ROWS]
    found = found[found["text"].isin(shown["text"])]
    places = _places(shown)
    comparisons = [comparison for comparison in comparisons if comparison.dataset in set(found["dataset"])]
    figure, axes = facets(
        [comparison.title for comparison in comparisons],
        heights=(0.1 + ROW * len(places),),
        sharex=False,
        title="Differences of accuracy on test images",
        caption=_caption(comparisons, uncertainty, shown, len(rows)),
        legend={label: Line2D([], [], markersize=5, linewidth=1.3, **look) for label, look in _legend(found)},
    )
    for ax, comparison in zip(axes[:, 0], comparisons, strict=True):
        for row in found[found["dataset"] == comparison.dataset].itertuples():
            draw_difference(ax, places[row.text], row.value, (row.low, row.high), row.look[1])
        finish_differences(ax)
    label_outside(axes[:, 0], "Difference (points)", "")
    for ax in axes[:: axes[0, 0].get_gridspec().ncols, 0]:
        ax.set_yticks(list(places.values()), list(places), fontsize=7)
        for label in ax.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() in (PAIRS, INTERACTIONS) else "normal")
    axes[0, 0].set_ylim(len(places) - 0.4, -0.5)
    return figure


def _findings(comparisons: Sequence[Comparison], uncertainty: Uncertainty) -> Iterator[Finding]:
    """Yield the declared pairs of each data set, then its interactions."""
    pairs = uncertainty.pairs[uncertainty.pairs["declared"].astype(bool) & (uncertainty.pairs["metric"] == "accuracy")]
    effects = uncertainty.effects[uncertainty.effects["effect"] == INTERACTION]
    for comparison in comparisons:
        own = pairs[pairs["dataset"] == comparison.dataset]
        for row, text in zip(own.itertuples(), pair_texts(comparison, own), strict=True):
            look = VERDICTS[row.verdict, row.winner]
            yield Finding(comparison.dataset, PAIRS, text, row.difference, row.low, row.high, look)
        for row in effects[effects["dataset"] == comparison.dataset].itertuples():
            text = f"Gain of {row.within} on {printable(row.first)}\nminus its gain on {printable(row.other)}"
            ends = row.accuracy, row.accuracy_low, row.accuracy_high
            yield Finding(comparison.dataset, INTERACTIONS, text, *ends, EFFECT_LOOKS[row.verdict])


def _places(rows: pd.DataFrame) -> dict[str, int]:
    """Return the place of each heading and of each row below it, from the top."""
    texts = [text for block, its in rows.groupby("block", sort=False) for text in (block, *its["text"])]
    return {text: place for place, text in enumerate(texts)}


def _legend(found: pd.DataFrame) -> list[tuple[str, dict]]:
    """Return the looks that are drawn, those of verdicts first; of two meanings of one look both in one entry."""
    used = {label for label, _ in found["look"]}
    meanings: dict[tuple, str] = {}
    for label, look in (*VERDICTS.values(), *EFFECT_LOOKS.values()):
        same = tuple(look.items())
        if label in used and label not in meanings.get(same, ""):
            meanings[same] = f"{meanings[same]}; {label}" if same in meanings else label
    return [(label, dict(look)) for look, label in meanings.items()]


def _caption(comparisons: Sequence[Comparison], uncertainty: Uncertainty, shown: pd.DataFrame, count: int) -> str:
    own = repeats(comparisons)
    margins = uncertainty.pairs["margin"].dropna()
    margin = f"Margin: {points(margins.iloc[0])}. " if len(margins) else ""
    alone = "With one seed the bar is over images alone. " if ONE_SEED in set(uncertainty.pairs["verdict"]) else ""
    left_out = f"{len(shown)} of {count} rows. " if len(shown) < count else ""
    interaction = (
        "An interaction is what a method adds to the probe of the first backbone, less what it adds to that of the "
        "other; its sign is claimed only where log-odds show the same. "
        if INTERACTIONS in set(shown["block"])
        else ""
    )
    return (
        f"{left_out}Upper minus lower model, {own.text}; bars: 95 % intervals over {own.basis}, which hold together "
        f"for the differences of a data set{', and for its interactions' * bool(interaction)} (Holm). "
        f"{margin}{alone}{interaction}"
        f"{joined_notes(comparisons)}"
    )
