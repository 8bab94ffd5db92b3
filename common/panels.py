"""Confusion matrices and ROC curves: one panel a model, side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from common import comparison, metrics, results, style
from common.comparison import Comparison, Series
from common.style import GREY

# False-positive rates at which curves are averaged and drawn: even on a logarithmic axis, hence dense in the corner.
RATES = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, 400)])
AVERAGES = {
    "one class against the rest": {"linewidth": 0.5},
    "macro average": {"linewidth": 1.6},
    "micro average": {"linewidth": 1.2, "linestyle": "--"},
}
ZOOMS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def confusion_matrices(compared: Comparison) -> Figure:
    """Draw the counts, summed over the seeds, coloured by the share of the true class."""
    names = compared.data["classes"]
    side = 2.2 if len(names) <= 4 else 3.1 if len(names) <= 12 else 4.2  # inches
    columns = style.panels_abreast(len(compared.series))
    rows = -(-len(compared.series) // columns)
    seeds = comparison.seeds([compared])
    numbers = "Numbers: per cent of the true class" + ", and counts" * (len(names) <= 12)
    caption = [numbers] * (len(names) <= 30) + [f"Summed over {seeds}"] * (seeds != "1 seed")
    label_height = 0.06 * min(16, max(map(len, names)))
    titles, title_height = _titles(compared, side)
    figure = style.new_figure(
        max(4.2, columns * side + 0.9 + label_height),
        rows * (side + 0.1 + title_height) + 0.3 + label_height,
        title=f"{compared.title}: confusion matrices, test images",
        caption="".join(f"{sentence}. " for sentence in caption) + comparison.notes([compared]),
    )
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axes = style.used(grid, len(compared.series))
    for index, (ax, series) in enumerate(zip(axes, compared.series, strict=True)):
        image = _confusion(ax, series, names, side)
        ax.set_title(titles[index])
        _label_outside(ax, "Predicted" * (index + columns >= len(axes)), "True" * (index % columns == 0))
    bar = figure.colorbar(image, ax=axes, panchor=(0.5, 1.0), shrink=0.7, aspect=30, pad=0.01, format="{x:.0f} %")
    bar.set_label("Share of the true class")
    bar.outline.set_visible(False)
    return figure


def roc_curves(compared: Comparison) -> Figure:
    """Draw ROC curves one class against the rest (thin), their macro average and the micro average (thick)."""
    columns = style.panels_abreast(len(compared.series))
    rows = -(-len(compared.series) // columns)
    side = min(3.6, style.width() / columns)  # inches
    seeds = comparison.seeds([compared])
    curves = [_mean_curves(series) for series in compared.series]
    zoom = _zoom(curves)
    averaged = "" if seeds == "1 seed" else f"Curves and areas are means of {seeds}. "
    enlarged = "Inset: the corner, enlarged alike for all models. " if zoom else ""
    titles, title_height = _titles(compared, side)
    figure = style.new_figure(
        columns * side,
        rows * (0.92 * side + 0.1 + title_height) + 0.35,
        title=f"{compared.title}: ROC curves, test images",
        caption=averaged + enlarged + comparison.notes([compared]),
        legend={label: Line2D([], [], color=GREY, **line) for label, line in AVERAGES.items()},
    )
    axes = style.used(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False), len(compared.series))
    for index, (ax, series, each) in enumerate(zip(axes, compared.series, curves, strict=True)):
        _roc(ax, series, each, zoom)
        ax.set_title(titles[index])
        xlabel = "False-positive rate" * (index + columns >= len(axes))
        _label_outside(ax, xlabel, "True-positive rate" * (index % columns == 0))
    return figure


def _titles(compared: Comparison, side: float) -> tuple[list[str], float]:
    """Return the models' labels, wrapped to panels of ``side`` inches, and the height that they need in inches."""
    titles = [style.wrapped(series.label, int(10.5 * side)) for series in compared.series]
    return titles, 0.14 * max(title.count("\n") + 1 for title in titles)


def _label_outside(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Label a panel's axes and ticks only where it has no neighbour, which is where a text is given."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.tick_params(labelbottom=bool(xlabel), labelleft=bool(ylabel))


def _confusion(ax: Axes, series: Series, names: Sequence[str], side: float) -> AxesImage:
    """Draw one matrix and return its image; without numbers above 30 classes, with fewer names above 60."""
    counts = np.sum([run.test["confusion_matrix"] for run in series.runs], axis=0)  # (C, C), true x predicted
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(counts)
    few = size <= 12
    font = min(9.0, max(4.5, 18 * side / size))  # points: two lines in a cell
    image = ax.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for (row, column), count in np.ndenumerate(counts) if size <= 30 else ():
        share = percent[row, column]
        text = _cell_text(count, share, with_count=few)
        color = "white" if share > 50 else "black"
        cell = {"ha": "center", "va": "center", "color": color, "fontsize": font, "linespacing": 1.0}
        if text:
            ax.text(column, row, text, **cell).set_in_layout(False)  # half the time of the layout
    step = -(-size // 60)
    labels = [style.printable(name, 16) for name in names[::step]]
    fits = 0.07 * max(map(len, labels)) < side / size
    ax.set_xticks(range(0, size, step), labels, rotation=0 if fits else 90)
    ax.set_yticks(range(0, size, step), labels)
    ax.tick_params(labelsize=7 if few else 6 if size <= 30 else 4.5)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    style.plain(ax)
    return image


def _cell_text(count: int, percent: float, *, with_count: bool) -> str:
    """Return a cell's percentage and below it its count, or nothing for an empty cell."""
    if not with_count:
        return f"{percent:.0f}" if percent >= 0.5 else ""
    return f"{percent:.{0 if percent >= 9.95 else 1}f}\n{count:,}" if count else ""


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
    alpha = min(0.45, max(0.12, 5 / len(curves)))  # a hundred classes are a cloud, ten are lines
    inset = ax.inset_axes([0.44, 0.3, 0.5, 0.5]) if zoom else None
    for frame in (ax, inset) if zoom else (ax,):
        x = np.concatenate([[0.0], RATES])
        for curve in curves[:-2][~np.isnan(curves[:-2, 0])]:
            frame.plot(x, [0.0, *curve], color=series.look.color, linewidth=0.5, alpha=alpha)
        frame.plot(x, [0.0, *curves[-2]], color=series.look.color, linewidth=1.6)
        frame.plot(x, [0.0, *curves[-1]], color="black", linewidth=1.0, linestyle=(0, (3, 1.5)))
    ax.text(0.98, 0.03, _areas(series), transform=ax.transAxes, ha="right", fontsize=6.5, linespacing=1.3)
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
    """Return a panel's text: macro and micro AUC, and the class of the lowest AUC."""
    lines = [f"AUC: macro {_auc(series, 'auc_macro')}, micro {_auc(series, 'auc_micro')}"]
    per_class = [[row["auc"] for row in run.test["per_class"]] for run in series.runs]
    aucs = np.array(per_class, dtype=np.float64).mean(axis=0)  # (C,), NaN where null
    if len(aucs) > 2 and not np.isnan(aucs).all():
        worst = int(np.nanargmin(aucs))
        name = style.printable(series.runs[0].test["per_class"][worst]["class"], 16)
        lines.append(f"lowest: {name} ({aucs[worst]:.4f})")
    return "\n".join(lines)


def _auc(series: Series, key: str) -> str:
    values = series.values(lambda result: result["test"][key])
    return "—" if np.isnan(values).any() else f"{values.mean():.4f}"
