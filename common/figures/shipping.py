"""What has to be shipped where one backbone serves many tasks: where small adapters and heads pay."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter

from common.evaluation.comparison import Comparison
from common.evaluation.formatting import joined_notes, not_measured
from common.evaluation.frames import Frames
from common.evaluation.labels import backbone_name
from common.evaluation.uncertainty import Uncertainty
from common.figures.layout import facets, label_outside
from common.figures.palette import marks_legend, run_styles
from common.figures.style import GREY

TASKS = np.array([1, 10, 100])  # where marks stand; on logarithmic axes a line between them is curved
DASHES = ("--", ":", "-.", (0, (8, 2)))


def bytes_for_tasks(comparisons: Sequence[Comparison], frames: Frames, _: Uncertainty) -> Figure:
    """Draw the bytes to ship for 1 to 100 tasks, a panel a data set: a line a model, backbone + k x what is trained.

    Where no model of a backbone saves the whole of itself a grey line is k whole models of it, each as large as the
    smallest. Models whose bytes are not known are left out.
    """
    seeds = frames.runs.dropna(subset="deployed_bytes")
    known = seeds.assign(backbone=seeds["backbone"].map(backbone_name)).groupby(["dataset", "run"], sort=False).first()
    comparisons = [comparison for comparison in comparisons if comparison.dataset in known.index]
    in_parts = known.groupby("backbone", sort=False).filter(lambda models: models["backbone_bytes"].all())
    dashes = {name: DASHES[place % len(DASHES)] for place, name in enumerate(in_parts["backbone"].unique())}
    whole = {f"a whole {name} each": Line2D([], [], color=GREY, linestyle=dash) for name, dash in dashes.items()}
    grey = "Grey: a whole model for each task, which is what merged adapters take." if whole else ""
    figure, axes = facets(
        [comparison.title for comparison in comparisons],
        heights=(2.4,),
        title="Bytes to ship for many tasks",
        caption="Marks: one backbone and, of each task, what was saved: an adapter, a head, or the whole model. "
        f"{grey} Files in float32; each task has as many classes as the data set. "
        f"{not_measured(frames.runs, seeds)} {joined_notes(comparisons)}",
        legend=marks_legend(comparisons) | whole,
    )
    for ax, comparison in zip(axes[:, 0], comparisons, strict=True):
        own = known.loc[comparison.dataset]
        _shared(ax, own, comparison)
        smallest_of = own[own["backbone"].isin(dashes)].groupby("backbone")["deployed_bytes"].min()
        for name, smallest in smallest_of.items():
            ax.plot(TASKS, TASKS * smallest, color=GREY, linestyle=dashes[name], linewidth=0.9, zorder=1.5)
        ax.grid()
    ax.set(xscale="log", yscale="log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda tasks, _: f"{tasks:g}"))
    ax.yaxis.set_major_formatter(EngFormatter(unit="B", sep=" "))
    label_outside(axes[:, 0], "Tasks, log", "Bytes, log")
    return figure


def _shared(ax: Axes, models: pd.DataFrame, comparison: Comparison) -> None:
    """Draw the line of each of ``models`` (by run), with a mark at each of ``TASKS``."""
    styles, tasks = run_styles(comparison), np.geomspace(TASKS[0], TASKS[-1], 61)
    for model in models.itertuples():
        look = styles[model.Index]
        needed = model.backbone_bytes + tasks * model.saved_bytes
        marks = {"marker": look.marker, "markersize": 4.5, "markevery": (len(tasks) - 1) // (len(TASKS) - 1)}
        ax.plot(tasks, needed, color=look.color, linewidth=1.2, **marks)
