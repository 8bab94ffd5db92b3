"""Confusion matrices and ROC curves: one panel a model, side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common import comparison, metrics, results, style
from common.comparison import Comparison, Series
from common.style import GREY, WIDTH

COLUMNS = 3
# False-positive rates at which curves are averaged and drawn: even on a logarithmic axis, hence dense in the corner.
RATES = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, 400)])
ZOOMS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def confusion_matrices(compared: Comparison) -> Figure:
    """Draw the counts, summed over the seeds, coloured by the share of the true class."""
    names = compared.data["classes"]
    side = 3.1 if len(names) <= 12 else 4.2  # inches
    columns, rows = min(len(compared.series), COLUMNS), -(-len(compared.series) // COLUMNS)
    seeds = comparison.seeds([compared])
    text = "" if len(names) > 30 else "Numbers: per cent of the true class" + ", and counts. " * (len(names) <= 12)
    summed = "" if seeds == "1 seed" else f"Summed over {seeds}. "
    figure = style.new_figure(
        max(WIDTH, columns * side + 1.2),
        rows * (side + 0.35) + 1.5,
        title=f"{style.printable(compared.dataset)}: confusion matrices, test images",
        caption=f"{text.rstrip('. ')}. {summed}{comparison.notes([compared])}",
    )
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axes = style.used(grid, len(compared.series))
    for index, (ax, series) in enumerate(zip(axes, compared.series, strict=True)):
        image = _confusion(ax, series, names)
        ax.set_title(style.wrapped(series.label, 40))
        ax.tick_params(labelbottom=index + columns >= len(axes), labelleft=index % columns == 0)
        ax.set_xlabel("Predicted" if index + columns >= len(axes) else "")
        ax.set_ylabel("True" if index % columns == 0 else "")
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=30, pad=0.01, format="{x:.0f} %")
    bar.set_label("Share of the true class")
    bar.outline.set_visible(False)
    return figure


def roc_curves(compared: Comparison) -> Figure:
    """Draw ROC curves one class against the rest (thin), their macro average and the micro average (thick)."""
    columns, rows = min(len(compared.series), COLUMNS), -(-len(compared.series) // COLUMNS)
    seeds = comparison.seeds([compared])
    averaged = "" if seeds == "1 seed" else f"Curves and areas are means of {seeds}. "
    side = WIDTH / max(columns, 2)
    figure = style.new_figure(
        WIDTH,
        rows * (side + 0.25) + 1.0,
        title=f"{style.printable(compared.dataset)}: ROC curves, test images",
        caption=f"{averaged}Inset: the corner, enlarged alike for all models. {comparison.notes([compared])}",
    )
    axes = style.used(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False), len(compared.series))
    curves = [_mean_curves(series) for series in compared.series]
    zoom = _zoom(curves)
    for index, (ax, series, each) in enumerate(zip(axes, compared.series, curves, strict=True)):
        _roc(ax, series, each, zoom)
        ax.set_title(_areas(series), fontsize=7.5, fontweight="normal")
        ax.set_xlabel("False-positive rate" if index + columns >= len(axes) else "")
        ax.set_ylabel("True-positive rate" if index % columns == 0 else "")
        ax.tick_params(labelbottom=index + columns >= len(axes))
    styles = ({"linewidth": 0.5}, {"linewidth": 1.6}, {"linewidth": 1.2, "linestyle": "--"})
    handles = [Line2D([], [], color=GREY, **line) for line in styles]
    labels = ["one class against the rest", "macro average", "micro average"]
    figure.legend(handles, labels, loc="outside upper left", ncols=3)
    return figure


def _confusion(ax: Axes, series: Series, names: Sequence[str]):
    """Draw one matrix and return its mesh; without text above 30 classes, with fewer names above 60."""
    import seaborn  # a second to import, and needed here alone

    counts = np.sum([run.test["confusion_matrix"] for run in series.runs], axis=0)  # (C, C), true x predicted
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(counts)
    few = size <= 12
    seaborn.heatmap(
        percent,
        ax=ax,
        cmap="Blues",
        vmin=0,
        vmax=100,
        cbar=False,
        square=True,
        annot=_cell_texts(counts, percent, few) if size <= 30 else None,
        fmt="",
        annot_kws={"fontsize": 5.5 if few else 4.5, "linespacing": 1.0},
        rasterized=True,
    )
    step = -(-size // 60)
    labels = [style.printable(name, 16) for name in names[::step]]
    font = 7 if few else 6 if size <= 30 else 4.5
    ax.set_xticks(np.arange(0, size, step) + 0.5, labels, rotation=90, fontsize=font)
    ax.set_yticks(np.arange(0, size, step) + 0.5, labels, rotation=0, fontsize=font)
    ax.tick_params(length=0)
    return ax.collections[0]


def _cell_texts(counts: np.ndarray, percent: np.ndarray, with_counts: bool) -> np.ndarray:
    """Return a text for each cell (C, C): the percentage, below it the count, nothing in empty cells."""

    def text(count: int, share: float) -> str:
        if not count:
            return ""
        number = f"{share:.0f}" if share >= 9.95 or not with_counts else f"{share:.1f}"
        return f"{number}\n{count:,}" if with_counts else number if share >= 0.5 else ""

    return np.vectorize(text, otypes=[str])(counts, percent)


def _mean_curves(series: Series) -> np.ndarray:
    """Return the true-positive rates (C + 2, G) at ``RATES``, averaged over the seeds (see ``metrics.roc_curves``)."""
    curves = []
    for run in series.runs:
        predictions = results.read_predictions(run.folder, run.result)
        curves.append(metrics.roc_curves(predictions.logits, predictions.labels, RATES))
    return np.mean(curves, axis=0)


def _zoom(curves: Sequence[np.ndarray]) -> float | None:
    """Return the side of the corner that shows where every macro curve bends, or None if that is not a corner."""
    equal_errors = [RATES[np.argmax(each[-2] >= 1 - RATES)] for each in curves]
    return next((zoom for zoom in ZOOMS if zoom >= 2 * max(equal_errors)), None)


def _roc(ax: Axes, series: Series, curves: np.ndarray, zoom: float | None) -> Axes:
    """Draw one model's curves, and the corner of ``zoom`` x ``zoom`` once more in an inset."""
    inset = ax.inset_axes([0.42, 0.14, 0.54, 0.54]) if zoom else None
    for frame in (ax, inset) if zoom else (ax,):
        x = np.concatenate([[0.0], RATES])
        for curve in curves[:-2][~np.isnan(curves[:-2, 0])]:
            frame.plot(x, [0.0, *curve], color=series.look.color, linewidth=0.5, alpha=0.45)
        frame.plot(x, [0.0, *curves[-2]], color=series.look.color, linewidth=1.6)
        frame.plot(x, [0.0, *curves[-1]], color="black", linewidth=1.0, linestyle=(0, (3, 1.5)))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.6, linestyle=":")
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    if inset:
        inset.set(xlim=(-zoom / 50, zoom), ylim=(1 - zoom, 1 + zoom / 50))
        inset.set_xticks([0, zoom], ["0", f"{zoom:g}"], fontsize=6)
        inset.set_yticks([1 - zoom, 1], [f"{1 - zoom:g}", "1"], fontsize=6)
        style.plain(inset)
    return style.plain(ax)


def _areas(series: Series) -> str:
    """Return a panel's title: the model, its macro and micro AUC, and the class of the lowest AUC."""
    macro, micro = (_auc(series, key) for key in ("auc_macro", "auc_micro"))
    aucs = np.array([[row["auc"] for row in run.test["per_class"]] for run in series.runs], dtype=np.float64).mean(
        axis=0
    )
    lines = [style.wrapped(series.label, 34), f"AUC: macro {macro}, micro {micro}"]
    if len(aucs) > 2 and not np.isnan(aucs).all():
        worst = int(np.nanargmin(aucs))
        name = style.printable(series.runs[0].test["per_class"][worst]["class"], 16)
        lines.append(f"lowest: {name} {aucs[worst]:.3f}")
    return "\n".join(lines)


def _auc(series: Series, key: str) -> str:
    values = series.values(lambda result: result["test"][key])
    return "—" if np.isnan(values).any() else f"{values.mean():.4f}"
