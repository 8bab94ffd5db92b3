"""Figures of evidence: differences with their intervals, reliability diagrams, accuracy over training images."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullFormatter

from common import comparison, identity, style, verdicts
from common.comparison import Comparison, Series
from common.evidence import COMPARED, Difference
from common.style import GREY

NAMES = dict(zip(COMPARED, ("Accuracy", "F1 (macro)", "AUC (macro)"), strict=True))
MOST_PAIRS = 20  # rows in the figure of differences: more do not fit on a page
# Okabe and Ito's blue and vermilion; in grey print the shapes tell a verdict.
VERDICTS = {
    "better": ("the upper model is better", {"color": "#0072B2", "marker": ">"}),
    "worse": ("the lower model is better", {"color": "#D55E00", "marker": "<"}),
    verdicts.NO_DIFFERENCE: ("no difference seen", {"color": GREY, "marker": "o", "markerfacecolor": "white"}),
}
# Settings that change neither the model nor its images, beside the one that few-shot curves are about.
_SAME_CURVE = {"train_limit", "seed", "run_name", "results_dir", "overwrite", "data_dir", "device", "workers"}
_SAME_CURVE |= {"feature_cache", "compile"}


def differences(compared: Comparison) -> Figure:
    """Draw each pair's differences in accuracy, F1 and AUC with their intervals; the colour is the verdict.

    Without a pair the panels are empty.
    """
    pairs = compared.evidence.differences
    shown = pairs[:MOST_PAIRS]
    left_out = f"The first {len(shown)} of {len(pairs)} pairs. " if len(shown) < len(pairs) else ""
    columns, seeds = style.panels_abreast(len(COMPARED)), comparison.seeds([compared])
    over = "test images" if seeds == "1 seed" else "test images and seeds"
    figure = style.new_figure(
        style.width(),
        (0.55 + 0.36 * len(shown)) * len(COMPARED) / columns,
        title=f"{compared.title}: paired differences, {compared.data['num_test']:,} test images",
        caption=f"{left_out}Upper minus lower model, {seeds}; bars: 95 % interval over {over}, each for itself. "
        f"A difference is called one where its interval excludes 0. {comparison.notes([compared])}",
        legend={label: Line2D([], [], markersize=5, linewidth=1.3, **look) for label, look in VERDICTS.values()},
    )
    axes = figure.subplots(len(COMPARED) // columns, columns, sharey=True, squeeze=False).ravel()
    for metric, ax in zip(COMPARED, axes, strict=True):
        _differences_of(ax, shown, metric).set_title(NAMES[metric])
    pairs = [verdicts.pair(compared, difference) for difference in shown]
    texts = [f"{style.printable(ours.label, 50)}\nminus {style.printable(theirs.label, 50)}" for ours, theirs in pairs]
    axes[0].set_yticks(range(len(texts)), texts, fontsize=7.5 if max(map(len, texts), default=0) < 75 else 6)
    axes[0].set_ylim(max(1, len(texts)) - 0.5, -0.5)
    return figure


def reliability(compared: Comparison) -> Figure:
    """Draw accuracy over confidence, before and after the temperature, and below it how many images there are."""
    count = len(compared.series)
    width = max(style.width(), 1.75 * count)
    seeds = comparison.seeds([compared])
    pooled = "" if seeds == "1 seed" else f"Images of {seeds} together; numbers are means over seeds. "
    figure = style.new_figure(
        width,
        3.3,
        title=f"{compared.title}: reliability, test images",
        caption=f"15 bins of equal width, larger marks hold more images. {pooled}On the diagonal a model is as often "
        "right as sure. ECE: expected calibration error; T: the temperature that validation images ask for, above 1 "
        f"where the model is too sure. {comparison.notes([compared])}",
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


def few_shot(compared: Comparison) -> Figure:
    """Draw test accuracy over the number of training images, a line for the runs that differ by nothing else."""
    curves = few_shot_curves(compared)
    members = [series for curve in curves.values() for series in curve]
    seeds = comparison.seeds([Comparison(compared.dataset, tuple(members), ())])
    dots = "" if seeds == "1 seed" else " and seeds; small dots: each seed"
    looks = {label: min(curve, key=lambda series: len(series.name)).look for label, curve in curves.items()}
    figure = style.new_figure(
        style.width(),
        2.8,
        title=f"{compared.title}: accuracy by training images, {compared.data['num_test']:,} test images",
        caption=f"Marks: mean of {seeds}; bars: 95 % interval over test images{dots}. The axis does not start at 0.",
        legend={
            style.printable(label, 90): Line2D([], [], color=look.color, marker=look.marker, linestyle=look.linestyle)
            for label, look in looks.items()
        },
    )
    ax = style.plain(figure.subplots(), grid="y")
    for place, (label, curve) in enumerate(curves.items()):
        nudge = 1.02 ** (place - (len(curves) - 1) / 2)  # bars of one size stand beside one another
        _few_shot_curve(
            ax, curve, looks[label], [compared.evidence.means[one.name]["accuracy"] for one in curve], nudge
        )
    sizes = sorted({series.num_train for series in members})
    ax.set(xscale="log", xlabel="Training images (log)", ylabel="Accuracy")
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.xaxis.set_minor_formatter(NullFormatter())
    style.widen([ax])
    return figure


def few_shot_curves(compared: Comparison) -> dict[str, list[Series]]:
    """Return by label the models that differ by ``--train-limit`` alone, where there are several sizes."""
    groups = defaultdict(list)
    for series in compared.series:
        result = series.runs[0].result
        settings = {name: value for name, value in result["config"].items() if name not in _SAME_CURVE}
        groups[repr((result["backbone"], result["method"], sorted(settings.items())))].append(series)
    curves = {}
    for group in groups.values():
        if len({series.num_train for series in group}) < 2:
            continue
        label = identity.friendly_name(group[0].runs[0].result)
        label = f"{label} [{group[0].name}]" if label in curves else label
        curves[label] = sorted(group, key=lambda series: series.num_train)
    return curves


_SCALED = {"markerfacecolor": "white", "linestyle": "--"}


def _differences_of(ax: Axes, shown: Sequence[Difference], metric: str) -> Axes:
    """Draw one metric's differences in points, a row a pair, and the zero line."""
    for row, difference in enumerate(shown):
        value, low, high = (100 * number for number in difference.estimates[metric])
        word = verdicts.verdict(difference.estimates[metric])
        if word == verdicts.NOT_DEFINED:
            ax.text(0, row, word, ha="center", va="center", fontsize=7, color=GREY)
            continue
        look = VERDICTS[word][1]
        ax.plot([low, high], [row, row], color=look["color"], linewidth=1.6, solid_capstyle="butt")
        ax.plot(value, row, markersize=5, **look)
        text = verdicts.signed(value, scale=1, digits=2 if metric == "auc_macro" else 1)
        rim = [withStroke(linewidth=2, foreground="white")]  # the zero line may run through it
        ax.text(value, row - 0.17, text, ha="center", va="bottom", fontsize=6.5, path_effects=rim)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("Difference (points)")
    ax.margins(x=0.15)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.spines["left"].set_visible(False)
    return style.plain(ax, grid="x")


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


def _few_shot_curve(ax: Axes, curve: list[Series], look: identity.Look, means: list, nudge: float) -> Axes:
    """Draw one line of means with their intervals, and each seed as a dot."""
    sizes = np.array([series.num_train for series in curve]) * nudge
    values, low, high = np.transpose(means)
    style_ = {"color": look.color, "marker": look.marker, "linestyle": look.linestyle, "markersize": 5}
    ax.plot(sizes, values, linewidth=1.2, **style_)
    ax.vlines(sizes, low, high, color=look.color, linewidth=1.6)
    for size, series in zip(sizes, curve, strict=True):
        accuracy = series.values(lambda result: result["test"]["accuracy"])
        if len(accuracy) > 1:
            dots = {"color": look.color, "edgecolors": "white", "linewidths": 0.35, "zorder": 4}
            ax.scatter(np.full(len(accuracy), 1.05 * size), accuracy, s=7, **dots)  # beside the interval
    return ax
