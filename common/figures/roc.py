"""ROC curves: one panel a model, side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.evaluation import metrics
from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import count_seeds, joined_notes
from common.figures import style
from common.figures.style import GREY, label_outside, panel_titles
from common.runs.predictions import read_predictions

# False-positive rates at which curves are averaged and drawn: even on a logarithmic axis, hence dense in the corner.
RATES = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, 400)])

AVERAGES = {
    "one class against the rest": {"linewidth": 0.5},
    "macro average": {"linewidth": 1.6},
    "micro average": {"linewidth": 1.2, "linestyle": "--"},
}

ZOOMS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def roc_curves(compared: Comparison) -> Figure:
    """Draw ROC curves one class against the rest (thin), their macro average and the micro average (thick)."""
    columns = style.panels_abreast(len(compared.series))
    rows = -(-len(compared.series) // columns)
    side = min(3.6, style.width() / columns)  # inches
    seeds = count_seeds([compared])
    curves = [_mean_curves(series) for series in compared.series]
    zoom = _zoom(curves)
    averaged = "" if seeds == "1 seed" else f"Curves and areas are means of {seeds}. "
    enlarged = "Inset: the corner, enlarged alike for all models. " if zoom else ""
    titles, title_height = panel_titles(compared, side)
    figure = style.new_figure(
        columns * side,
        rows * (0.92 * side + 0.1 + title_height) + 0.35,
        title=f"{compared.title}: ROC curves, test images",
        caption=averaged + enlarged + joined_notes([compared]),
        legend={label: Line2D([], [], color=GREY, **line) for label, line in AVERAGES.items()},
    )
    axes = style.used(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False), len(compared.series))
    for index, (ax, series, each) in enumerate(zip(axes, compared.series, curves, strict=True)):
        _roc(ax, series, each, zoom)
        ax.set_title(titles[index])
        xlabel = "False-positive rate" * (index + columns >= len(axes))
        label_outside(ax, xlabel, "True-positive rate" * (index % columns == 0))
    return figure


def _mean_curves(series: Series) -> np.ndarray:
    """Return the true-positive rates (C + 2, G) at ``RATES``, averaged over the seeds (see ``metrics.roc_curves``)."""
    curves = []
    for run in series.runs:
        predictions = read_predictions(run.folder, run.result)
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
