"""ROC curves: one panel a model, side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.evaluation import metrics
from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import joined_notes, mean_sd, repeats
from common.evaluation.frames import Frames
from common.evaluation.metrics import METRICS
from common.evaluation.uncertainty import Uncertainty
from common.figures.layout import UNIT_TICKS, facets, label_outside, panel_columns
from common.figures.palette import run_styles
from common.figures.style import GREY, page_width, printable
from common.runs.predictions import read_predictions

# False-positive rates at which curves are averaged and drawn: even on a logarithmic axis, hence dense in the corner.
RATES = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, 400)])
AVERAGES = {
    "one class against the rest": {"linewidth": 0.5},
    "macro average": {"linewidth": 1.6},
    "micro average": {"linewidth": 1.2, "linestyle": "--"},
}
ZOOMS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def roc_curves(comparison: Comparison, frames: Frames, uncertainty: Uncertainty) -> Figure:
    """Draw ROC curves one class against the rest (thin), their macro average and the micro average (thick)."""
    columns = panel_columns(len(comparison.series))
    side = min(3.6, page_width() / columns)  # inches
    curves = [_mean_curves(series) for series in comparison.series]
    zoom = _zoom(curves)
    own_repeats = repeats([comparison])
    averaged = f"Curves and areas are means of {own_repeats.text}. " if own_repeats.most > 1 else ""
    enlarged = "Inset: the corner, enlarged alike for all models. " if zoom else ""
    figure, axes = facets(
        [series.label for series in comparison.series],
        heights=(0.92 * side,),
        width=columns * side,
        title=f"{comparison.title}: ROC curves, test images",
        caption=averaged + enlarged + joined_notes([comparison]),
        legend={label: Line2D([], [], color=GREY, **line) for label, line in AVERAGES.items()},
    )
    styles = run_styles(comparison)
    for ax, series, own in zip(axes[:, 0], comparison.series, curves, strict=True):
        _roc(ax, own, zoom, styles[series.name].color)
        place = {"transform": ax.transAxes, "ha": "right", "fontsize": 6.5, "linespacing": 1.3}
        ax.text(0.98, 0.03, _areas(frames, comparison.dataset, series.name), **place)
    label_outside(axes[:, 0], "False-positive rate", "True-positive rate")
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
    equal_errors = [RATES[np.argmax(own[-2] >= 1 - RATES)] for own in curves]
    return next((zoom for zoom in ZOOMS if zoom >= 2 * max(equal_errors)), None)


def _roc(ax: Axes, curves: np.ndarray, zoom: float | None, color: str) -> None:
    """Draw one model's curves, and the corner of ``zoom`` x ``zoom`` once more in an inset."""
    alpha = min(0.45, max(0.12, 5 / len(curves)))  # a hundred classes are a cloud, ten are lines
    inset = ax.inset_axes([0.44, 0.3, 0.5, 0.5]) if zoom else None
    x, (*classes, macro, micro) = np.append(0.0, RATES), np.pad(curves, ((0, 0), (1, 0)))  # from the origin
    for frame in (ax, inset) if zoom else (ax,):
        frame.plot(x, np.transpose(classes), color=color, linewidth=0.5, alpha=alpha)
        frame.plot(x, macro, color=color, linewidth=1.6)
        frame.plot(x, micro, color="black", linewidth=1.0, linestyle=(0, (3, 1.5)))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.6, linestyle=":")
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.set_xticks(*UNIT_TICKS)
    ax.set_yticks(*UNIT_TICKS)
    if inset:
        inset.set(xlim=(-zoom / 50, zoom), ylim=(1 - zoom, 1 + zoom / 50))
        inset.set_xticks([0, zoom], ["0", f"{zoom:g}"], fontsize=6)
        inset.set_yticks([1 - zoom, 1], [f"{1 - zoom:g}", "1"], fontsize=6)


def _areas(frames: Frames, dataset: str, run: str) -> str:
    """Return a panel's text: macro and micro AUC, and the class of the lowest AUC, as means over the seeds."""
    own = "dataset == @dataset and run == @run"
    runs, per_class = frames.runs.query(own), frames.per_class.query(own)
    digits = METRICS["auc_macro"].digits
    macro, micro = (mean_sd(runs[f"test_auc_{kind}"], digits, with_sd=False) for kind in ("macro", "micro"))
    text = f"AUC: macro {macro}, micro {micro}"
    classes = per_class.groupby("class", sort=False)["auc"].mean().dropna()
    if len(classes) < 3:
        return text
    return f"{text}\nlowest: {printable(classes.idxmin(), 16)} ({classes.min():.{digits}f})"
