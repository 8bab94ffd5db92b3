"""Reliability diagrams: is a model as often right as it is sure?"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import count_seeds, joined_notes
from common.figures import style
from common.figures.style import GREY


def reliability(compared: Comparison) -> Figure:
    """Draw accuracy over confidence, before and after the temperature, and below it how many images there are."""
    count = len(compared.series)
    width = max(style.width(), 1.75 * count)
    seeds = count_seeds([compared])
    pooled = "" if seeds == "1 seed" else f"Images of {seeds} together; numbers are means over seeds. "
    figure = style.new_figure(
        width,
        3.3,
        title=f"{compared.title}: reliability, test images",
        caption=f"15 bins of equal width, larger marks hold more images. {pooled}On the diagonal a model is as often "
        "right as sure. ECE: expected calibration error; T: the temperature that validation images ask for, above 1 "
        f"where the model is too sure. {joined_notes([compared])}",
        legend={
            "as trained": Line2D([], [], color=GREY, marker="o", markersize=4),
            "after temperature": Line2D([], [], color=GREY, marker="o", markersize=4, **_SCALED),
        },
    )
    axes = figure.subplots(2, count, sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1))
    for column, series in enumerate(compared.series):
        axes[0, column].set_title(style.wrapped(series.label, int(10 * (width - 0.4) / count)))
        _reliability_of(*axes[:, column], series, compared.evidence.seeds[series.name])
        axes[1, column].set_xlabel("Confidence")
    axes[0, 0].set_ylabel("Accuracy")
    axes[1, 0].set_ylabel("Images")
    return figure


_SCALED = {"markerfacecolor": "white", "linestyle": "--"}


def _reliability_of(ax: Axes, below: Axes, series: Series, seeds: Sequence[dict]) -> Axes:
    """Draw one model's diagram with the images of all ``seeds`` together, and below the images of each bin."""
    records = [seed["calibration"] for seed in seeds]
    edges = np.linspace(0, 1, 1 + len(records[0]["bins"]["images"]))
    images = np.sum([record["bins"]["images"] for record in records], axis=0)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.6, linestyle=":")
    scaled = [record["after"] for record in records if record["after"]]
    for each, line in ((scaled, _SCALED), (records, {"markerfacecolor": series.look.color, "linestyle": "-"})):
        if each:
            sums = {key: np.sum([one["bins"][key] for one in each], axis=0) for key in each[0]["bins"]}
            full = sums["images"] > 0
            x, y = (sums[key][full] / sums["images"][full] for key in ("confidence", "correct"))
            sizes = 3 + 60 * np.sqrt(sums["images"][full] / images.sum())  # points squared: few images, a small mark
            ax.plot(x, y, color=series.look.color, linewidth=0.9, linestyle=line["linestyle"])
            ax.scatter(
                x,
                y,
                sizes,
                line["markerfacecolor"],
                edgecolors=series.look.color,
                linewidths=0.8,
                zorder=3,
                clip_on=False,
            )
    temperatures = [record["temperature"] for record in records if record["temperature"]]
    lines = [f"Brier {np.mean([record['brier'] for record in records]):.3f}"]
    lines.append(f"ECE {np.mean([record['ece']['15'] for record in records]):.3f}")
    lines += [f"with T = {np.mean(temperatures):.2f}: {np.mean([one['ece']['15'] for one in scaled]):.3f}"] * bool(
        scaled
    )
    backing = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}  # lines of sparse bins pass below
    text = {"va": "top", "fontsize": 7, "linespacing": 1.3, "bbox": backing, "zorder": 4}
    ax.text(0.04, 0.97, "\n".join(lines), transform=ax.transAxes, **text)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    below.stairs(images / images.sum(), edges, fill=True, color=series.look.color)
    below.set_ylim(0, 1)
    below.set_yticks([0, 1], ["0", "100 %"])
    style.plain(below, grid="y")
    return style.plain(ax, grid="y")
