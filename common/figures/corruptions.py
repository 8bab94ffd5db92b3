"""Accuracy and calibration on corrupted test images, by kind of corruption."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.evaluation.comparison import Comparison
from common.evaluation.corruption_scores import corruption_name
from common.evaluation.formatting import joined_notes
from common.evaluation.frames import Frames
from common.evaluation.metrics import METRICS
from common.evaluation.robustness import corrupted
from common.evaluation.uncertainty import Uncertainty
from common.figures.layout import facets
from common.figures.palette import draw_marks, marks_caption, marks_legend, run_styles

CLEAN, MEAN = "clean", "mean of the kinds"


def corruptions(comparison: Comparison, frames: Frames, uncertainty: Uncertainty) -> Figure:
    """Draw accuracy and ECE on clean images, under each kind of corruption, and on average, a mark a model."""
    shown, kinds = corrupted(comparison)
    rows = [CLEAN, *kinds, MEAN]
    seeds = _rows_of_seeds(shown, frames, kinds)
    size = comparison.data.image_size
    figure, axes = facets(
        [METRICS[metric].label for metric in ("accuracy", "ece")],
        heights=(0.19 * len(rows) + 0.1,),
        sharex=False,
        title=f"{comparison.title}: {comparison.num_test:,} test images, corrupted ({corruption_name(kinds)})",
        caption=f"Of each kind the mean over five severities. {marks_caption([shown], cut=False)} Corruptions of "
        f"Hendrycks and Dietterich 2019 at {size} pixels; their constants are for 224. {joined_notes([shown])}",
        legend=marks_legend([shown]),
    )
    for ax, metric in zip(axes[:, 0], ("accuracy", "ece"), strict=True):
        _marks(ax, seeds, metric, rows, shown)
    axes[0, 0].set_yticks(range(len(rows)), [row.replace("_", " ") for row in rows])
    axes[0, 0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _rows_of_seeds(comparison: Comparison, frames: Frames, kinds: list[str]) -> pd.DataFrame:
    """Return run, seed, row, accuracy, ece: clean, the mean over severities of each kind, and that over the kinds."""
    names = [series.name for series in comparison.series]
    clean, scored = (
        rows[(rows.dataset == comparison.dataset) & rows.run.isin(names)] for rows in (frames.runs, frames.corruptions)
    )
    clean = clean.rename(columns={"test_accuracy": "accuracy", "test_ece": "ece"}).assign(kind=CLEAN)
    scored = scored[scored.kind.isin(kinds)]
    model = ["run", "seed"]
    by_kind = scored.groupby([*model, "kind"], as_index=False)[["accuracy", "ece"]].mean()
    mean = scored.groupby(model, as_index=False)[["accuracy", "ece"]].mean().assign(kind=MEAN)
    return pd.concat([part[[*model, "kind", "accuracy", "ece"]] for part in (clean, by_kind, mean)])


def _marks(ax: Axes, seeds: pd.DataFrame, metric: str, rows: list[str], comparison: Comparison) -> None:
    """Draw one metric; the models of a row stand a little below one another."""
    names = [series.name for series in comparison.series]
    steps = dict(zip(names, np.linspace(-0.22, 0.22, len(names)) if len(names) > 1 else [0.0], strict=True))
    seeds = seeds.assign(place=seeds["kind"].map(rows.index) + seeds["run"].map(steps))
    means = seeds.groupby(["run", "place"], as_index=False, sort=False)[metric].mean()
    draw_marks(ax, seeds, means, metric, "place", run_styles(comparison))
    for line in (0.5, len(rows) - 1.5):  # the kinds stand between clean and mean
        ax.axhline(line, color="black", linewidth=0.5)
    ax.set(xlim=(0, max(1.0 if metric == "accuracy" else 0.1, 1.05 * seeds[metric].max())), xlabel="", ylabel="")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
