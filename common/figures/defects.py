"""What a change adds to several models' accuracy on several data sets, with intervals."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.figures.differences import finish_differences
from common.figures.layout import facets, label_outside
from common.figures.palette import STYLES
from common.figures.style import printable, wrapped


def defects(rows: pd.DataFrame, *, changes: Sequence[str], title: str, caption: str) -> Figure:
    """Draw ``difference`` with its ends ``low`` and ``high`` in points, a panel a data set, a row a change.

    Args:
        rows: a row a change (``title``), data set (``panel``) and ``model``, whose ``family`` gives colour and mark, a
            hollow one where no effect is ``shown``.
        changes: the order of the changes; those that ``rows`` lack are left out.
    """
    changes = [change for change in changes if change in set(rows["title"])]
    panels = list(rows["panel"].unique())
    models = rows.groupby("family")["model"].agg(lambda models: " / ".join(models.unique()))
    families = {family: models[family] for family in STYLES if family in models}
    look = {"linestyle": "", "markersize": 5}
    legend = {
        printable(model, 90): Line2D([], [], color=STYLES[family].color, marker=STYLES[family].marker, **look)
        for family, model in families.items()
    }
    figure, axes = facets(
        panels,
        heights=(0.15 + 0.38 * len(changes),),
        wrap=False,
        title=title,
        caption=caption,
        legend=legend,
    )
    for panel, ax in zip(panels, axes[:, 0], strict=True):
        _panel(ax, rows[rows["panel"] == panel], changes, list(families))
    label_outside(axes[:, 0], "Difference (points)", "")
    axes[0, 0].set_yticks(range(len(changes)), [wrapped(change, 22) for change in changes])
    axes[0, 0].set_ylim(len(changes) - 0.5, -0.5)
    return figure


def _panel(ax: Axes, rows: pd.DataFrame, changes: list[str], families: list[str]) -> None:
    for row in rows.itertuples():
        own = STYLES[row.family]
        nudge = 0.22 * (families.index(row.family) - (len(families) - 1) / 2)
        y = changes.index(row.title) + nudge
        ax.hlines(y, 100 * row.low, 100 * row.high, color=own.color, linewidth=1.6)
        fill = own.color if row.shown else "white"
        ax.plot(100 * row.difference, y, color=own.color, marker=own.marker, markersize=4.5, markerfacecolor=fill)
    finish_differences(ax)
