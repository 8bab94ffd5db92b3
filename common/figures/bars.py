"""Bars of the headline metrics on the test split, of one data set or of all."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import Repeats, count_seeds, joined_notes, mean_sd, repeats
from common.evaluation.frames import Frames
from common.evaluation.metrics import HEADLINE, METRICS
from common.evaluation.published_study import published_caption, published_results
from common.evaluation.uncertainty import Uncertainty
from common.figures import palette
from common.figures.layout import UNIT_TICKS, new_figure, panel_columns, remove_unused
from common.figures.style import wrapped


def final_benchmark_comparison(comparison: Comparison, frames: Frames, uncertainty: Uncertainty) -> Figure:
    """Draw the headline metrics as bars from zero, with every seed as a dot."""
    title = f"{comparison.title}: {comparison.num_test:,} test images"
    return _bars([comparison], frames, uncertainty, title)


def overview(comparisons: Sequence[Comparison], frames: Frames, uncertainty: Uncertainty) -> Figure:
    """Draw the same bars for all data sets, one below the other."""
    return _bars(comparisons, frames, uncertainty, "All data sets, test images")


def _bars(comparisons: Sequence[Comparison], frames: Frames, uncertainty: Uncertainty, title: str) -> Figure:
    """Draw a block of panels a data set, in it a panel a metric."""
    own_repeats = repeats(comparisons)
    columns = panel_columns(len(HEADLINE))
    rows = -(-len(HEADLINE) // columns)
    models = [len(comparison.series) for comparison in comparisons]
    figure = new_figure(
        0.25 + rows * sum(0.33 * count + 0.35 for count in models),
        title=title,
        caption=f"{own_repeats.text.capitalize()}: {_spread(own_repeats)} Dotted lines: chance. "
        f"{published_caption(comparisons)} {joined_notes(comparisons)}",
    )
    ratios = np.repeat([count + 0.5 for count in models], rows)
    grid = figure.subplots(len(ratios), columns, sharex=True, squeeze=False, height_ratios=ratios)
    for comparison, block in zip(comparisons, grid.reshape(len(models), -1), strict=True):
        for index, (metric, ax) in enumerate(zip(HEADLINE, remove_unused(block, len(HEADLINE)), strict=True)):
            _metric_bars(ax, comparison, frames, uncertainty, metric)
            ax.set_title(METRICS[metric].label)
            ax.tick_params(axis="y", labelleft=index % columns == 0)
        if len(models) > 1:
            block[0].set_title(f"{comparison.title}: {METRICS[HEADLINE[0]].word}")
    return figure


def _spread(own: Repeats) -> str:
    """Return the sentences that explain the numbers, whiskers and dots of the bars."""
    if own.most == 1:
        return f"whiskers and [ ]: 95 % interval over test images; the spread between {own.word}s is not known."
    return f"mean ± standard deviation; whiskers and [ ]: its 95 % interval over {own.basis}; a dot is a {own.word}."


def _metric_bars(ax: Axes, comparison: Comparison, frames: Frames, uncertainty: Uncertainty, metric: str) -> None:
    """Draw one metric: a bar a model from 0 to the mean, its interval, a dot a seed, and the values in a column beside.

    The interval is a white-rimmed whisker along the bar, the seeds stand around it; published values are hollow.
    """
    runs, column = frames.runs.query("dataset == @comparison.dataset"), f"test_{metric}"
    means = uncertainty.means.query("dataset == @comparison.dataset and metric == @metric").set_index("run")
    _seed_dots(ax, runs, column, [series.name for series in comparison.series])
    styles = palette.run_styles(comparison)
    rim = [withStroke(linewidth=2.6, foreground="white")]
    for row, series in enumerate(comparison.series):
        values, look = runs.loc[runs["run"] == series.name, column].to_numpy(), styles[series.name]
        ax.barh(row, values.mean(), height=0.66, color=look.color, hatch=look.hatch, edgecolor="white", linewidth=0)
        interval = means.loc[series.name, ["low", "high"]]
        ax.plot(interval, [row, row], color="black", linewidth=1.2, zorder=2.5, path_effects=rim)
        for record in published_results(comparison, series):
            ax.plot(record.get(metric, np.nan), row, zorder=4, clip_on=False, **palette.PUBLISHED)
        text = _numbers(values, *interval, METRICS[metric].digits)
        ax.text(1.1, row, text, va="center", fontsize=6.5, linespacing=1.15)
    ax.set_yticks(range(len(means)), [_row_label(series, comparison) for series in comparison.series])
    ax.set_xticks(*UNIT_TICKS)
    ax.set(xlim=(0, 1.72), ylim=(len(means) - 0.5, -0.5), xlabel="", ylabel="")
    ax.tick_params(axis="y", length=0)
    ax.spines[["bottom", "left"]].set_visible(False)
    ax.grid(axis="x")
    if chance := METRICS[metric].chance:
        support = frames.per_class.query("dataset == @comparison.dataset").groupby("class")["support"].first()
        ax.axvline(chance(support.to_numpy()), color="black", linewidth=0.8, linestyle=":")


def _seed_dots(ax: Axes, runs: pd.DataFrame, column: str, models: Sequence[str]) -> None:
    """Draw a dot for each seed of the runs with several, around the middle of the model's row."""
    several = runs[runs.groupby("run")["seed"].transform("size") > 1]
    if several.empty:
        return
    black = dict.fromkeys(sorted(several["seed"].unique()), "black")
    dots = {"size": 2.8, "edgecolor": "white", "linewidth": 0.4, "zorder": 3}
    axes = {"x": column, "y": "run", "order": models, "hue": "seed", "hue_order": list(black)}
    sns.stripplot(several, **axes, dodge=True, jitter=False, palette=black, legend=False, ax=ax, **dots)


def _numbers(values: np.ndarray, low: float, high: float, digits: int) -> str:
    """Return the mean ± sd of the seeds, and below it the interval."""
    text = mean_sd(values, digits)
    return text if np.isnan(low) else f"{text}\n[{low:.{digits}f}, {high:.{digits}f}]"


def _row_label(series: Series, comparison: Comparison) -> str:
    """Return a model's label, with its number of seeds where that differs between the models."""
    label = wrapped(series.label, 30)
    if len({len(other.runs) for other in comparison.series}) == 1:
        return label
    seeds = count_seeds(len(series.runs), word=series.repeat)
    return f"{label}, {seeds}" if len(label.splitlines()[-1]) < 20 else f"{label}\n{seeds}"
