"""Bars of the test metrics, of one data set or of all."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import count_seeds, joined_notes, mean_and_sd
from common.evaluation.published_study import PUBLISHED_MARK, published_caption, published_results
from common.evaluation.significance import Estimate
from common.figures import style

METRICS = {"accuracy": "Accuracy", "f1_macro": "F1 (macro)", "auc_macro": "AUC (macro)"}

DIGITS = {"accuracy": 3, "f1_macro": 3, "auc_macro": 4}


def final_benchmark_comparison(compared: Comparison) -> Figure:
    """Draw accuracy, macro F1 and macro AUC on the test split as bars from zero, with every seed as a dot."""
    return _bars([compared], f"{compared.title}: {compared.data['num_test']:,} test images")


def overview(compared: Sequence[Comparison]) -> Figure:
    """Draw the same bars for all data sets, one below the other."""
    return _bars(compared, "All data sets, test images")


def _bars(compared: Sequence[Comparison], title: str) -> Figure:
    """Draw a row of axes a data set and a column a metric, or all in one column where the page has no room."""
    columns = style.panels_abreast(len(METRICS))
    rows = [len(one.series) for one in compared]
    seeds = count_seeds(compared)
    figure = style.new_figure(
        style.width(),
        0.25 + sum(0.33 * count + 0.35 for count in rows) * len(METRICS) / columns,
        title=title,
        caption=f"{seeds.capitalize()}: {_spread(seeds)} Dotted lines: chance. {published_caption(compared)} "
        f"{joined_notes(compared)}",
    )
    ratios = np.repeat([count + 0.5 for count in rows], len(METRICS) // columns)
    axes = figure.subplots(len(ratios), columns, sharex=True, squeeze=False, height_ratios=ratios)
    for one, line in zip(compared, axes.reshape(len(rows), len(METRICS)), strict=True):
        for (metric, name), ax in zip(METRICS.items(), line, strict=True):
            _metric_bars(ax, one, metric).set_title(name)
            ax.tick_params(axis="y", labelleft=ax is line[0] or columns == 1)
        if len(rows) > 1:
            line[0].set_title(f"{style.printable(one.title)}: {METRICS['accuracy'].lower()}")
    return figure


def _spread(seeds: str) -> str:
    """Return the sentences that explain the numbers, whiskers and dots of the bars."""
    if seeds == "1 seed":
        return "whiskers and [ ]: 95 % interval over test images; the spread between seeds is not known."
    return "mean ± standard deviation; whiskers and [ ]: its 95 % interval over test images and seeds; a dot is a seed."


def _metric_bars(ax: Axes, compared: Comparison, metric: str) -> Axes:
    """Draw one metric: a bar a model from 0 to the mean, its interval, a dot a seed, and the values in a column beside.

    The interval is a white-rimmed whisker along the bar, the seeds stand around it; published values are hollow.
    """
    labels = []
    for row, series in enumerate(compared.series):
        values, look = series.values(lambda result: result["test"][metric]), series.look
        mean = 0.0 if np.isnan(values).any() else values.mean()
        ax.barh(row, mean, height=0.66, color=look.color, hatch=look.hatch, edgecolor="white", linewidth=0)
        if len(values) > 1:
            heights = row + np.linspace(-0.22, 0.22, len(values))
            ax.scatter(values, heights, s=8, color="black", edgecolors="white", linewidths=0.4, zorder=3)
        estimate = compared.evidence.means[series.name][metric]
        if not np.isnan(estimate.value):
            rim = [withStroke(linewidth=2.6, foreground="white")]
            ax.plot(estimate[1:], [row, row], color="black", linewidth=1.2, zorder=2.5, path_effects=rim)
        for record in published_results(compared, series):
            ax.plot(record[metric], row, zorder=4, clip_on=False, **PUBLISHED_MARK)
        ax.text(1.1, row, _texts(values, estimate, DIGITS[metric]), va="center", fontsize=6.5, linespacing=1.15)
        labels.append(_row_label(series, compared))
    ax.set_yticks(range(len(labels)), labels)
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(0, 1.72), ylim=(len(labels) - 0.5, -0.5))
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.spines[["bottom", "left"]].set_visible(False)
    support = [row["support"] for row in compared.series[0].runs[0].test["per_class"]]
    chance = {"accuracy": max(support) / sum(support), "auc_macro": 0.5}.get(metric)
    if chance:
        ax.axvline(chance, color="black", linewidth=0.8, linestyle=":")
    return style.plain(ax, grid="x")


def _texts(values: np.ndarray, estimate: Estimate, digits: int) -> str:
    """Return the mean ± sd of the seeds, and below it the interval."""
    text = mean_and_sd(values, digits)
    return text if np.isnan(estimate.value) else f"{text}\n[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _row_label(series: Series, compared: Comparison) -> str:
    """Return a model's label, with its number of seeds where that differs between the models."""
    label = style.wrapped(series.label, 30)
    if len({len(other.runs) for other in compared.series}) == 1:
        return label
    seeds = "1 seed" if len(series.runs) == 1 else f"{len(series.runs)} seeds"
    return f"{label}, {seeds}" if len(label.splitlines()[-1]) < 20 else f"{label}\n{seeds}"
