"""Accuracy against what it costs. Marks, unlike bars, may stand on a cut axis."""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from common.evaluation.comparison import Comparison
from common.evaluation.formatting import QUANTITIES, joined_notes, not_measured
from common.evaluation.frames import Frames
from common.evaluation.machines import machines_of, mixture_note
from common.evaluation.metrics import METRICS
from common.evaluation.uncertainty import Uncertainty
from common.figures.layout import facets, label_outside, widen
from common.figures.palette import draw_marks, marks_caption, marks_legend, run_styles
from common.figures.style import GREY, wrapped

ACCURACY = METRICS["accuracy"].label


def accuracy_vs(
    cost: str, title: str, comparisons: Sequence[Comparison], frames: Frames, uncertainty: Uncertainty
) -> Figure:
    """Draw test accuracy over ``cost``, a column of ``frames.runs``, on a logarithmic axis, a panel a data set.

    A line joins the means of ``pareto_front``. Runs of unknown cost are left out. Of a time the axis names the machine,
    and the caption all of them where there are several.
    """
    quantity = QUANTITIES[cost]
    seeds = frames.runs.assign(cost=frames.runs[cost].clip(lower=1e-6) * quantity.scale).dropna(subset="cost")
    machines = list(machines_of(seeds, quantity.timed_on)) if quantity.timed_on else []
    mixed = mixture_note(seeds, quantity.timed_on) if quantity.timed_on else ""
    means = seeds.groupby(["dataset", "run"], as_index=False, sort=False)[["cost", "test_accuracy"]].mean()
    fronts = [
        pareto_front(means[means["dataset"] == comparison.dataset], _decided(comparison, uncertainty))
        for comparison in comparisons
    ]
    line = (
        "Line: from the cheapest model to each that is better than the one before by the verdict on their difference."
    )
    figure, axes = facets(
        [comparison.title for comparison in comparisons],
        heights=(1.95,),
        sharey=False,
        title=f"{title}, test images",
        caption=f"{marks_caption(comparisons, cut=True)} {line * any(len(front) > 1 for front in fronts)} "
        f"{mixed} {not_measured(frames.runs, seeds)} {joined_notes(comparisons)}",
        legend=marks_legend(comparisons),
    )
    for ax, comparison, front in zip(axes[:, 0], comparisons, fronts, strict=True):
        own, its_means = (rows[rows["dataset"] == comparison.dataset] for rows in (seeds, means))
        if own.empty:
            continue
        draw_marks(ax, own, its_means, "cost", "test_accuracy", run_styles(comparison))
        ax.step(front["cost"], front["test_accuracy"], where="post", color=GREY, linewidth=0.8, zorder=1.5)
        ax.grid()
        widen([ax])
    low, high = np.log10([seeds["cost"].min(), seeds["cost"].max()] if len(seeds) else [1, 1])
    ax.set(xscale="log", xlim=(10 ** np.floor(low - 0.05), 10 ** np.ceil(high + 0.05)))
    whole = EngFormatter(sep=" ") if quantity.digits == 0 else FuncFormatter(lambda number, _: f"{number:,.6g}")
    ax.xaxis.set(major_locator=LogLocator(), major_formatter=whole, minor_formatter=NullFormatter())
    letters = int(14 * figure.get_figwidth() / axes[0, 0].get_gridspec().ncols)  # of 8 points, across a panel
    named = [f"{len(machines)} machines, see below"] if len(machines) > 1 else machines
    lines = [f"{quantity.label}, log", *(wrapped(text, letters) for text in named)]
    label_outside(axes[:, 0], "\n".join(lines), ACCURACY)
    return figure


def pareto_front(means: pd.DataFrame, decided: Collection[tuple[str, str]]) -> pd.DataFrame:
    """Return the cheapest of the rows and, in order of ``cost``, each that is better than the last one returned.

    ``decided`` are the (better, other) pairs of ``run``; a higher mean alone joins nothing. Rows whose cost or
    accuracy is NaN are left out; of equal costs the more accurate, of equals the first, comes first.
    """
    ordered = means.dropna().sort_values(["cost", "test_accuracy"], ascending=[True, False], kind="stable")
    front = []
    for place, run in ordered["run"].items():
        if not front or (run, means["run"][front[-1]]) in decided:
            front.append(place)
    return ordered.loc[front]


def _decided(comparison: Comparison, uncertainty: Uncertainty) -> set[tuple[str, str]]:
    """Return the (better, other) runs of a data set, by accuracy."""
    pairs = uncertainty.pairs.query("dataset == @comparison.dataset and metric == 'accuracy' and winner != ''")
    return {(pair.a, pair.b) if pair.winner == "a" else (pair.b, pair.a) for pair in pairs.itertuples()}
