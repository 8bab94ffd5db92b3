"""Numbers as a person reads them: means with their spread, signed differences, numbers of seeds."""

from collections.abc import Sequence

import numpy as np

from common.evaluation.comparison import Comparison
from common.evaluation.significance import Estimate


def count_seeds(comparisons: Sequence[Comparison]) -> str:
    """Return the number of seeds of each model in words: "1 seed", "3 seeds" or "2 to 5 seeds"."""
    counts = sorted({len(series.runs) for comparison in comparisons for series in comparison.series})
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} seeds"
    return "1 seed" if counts == [1] else f"{counts[0]} seeds"


def joined_notes(comparisons: Sequence[Comparison]) -> str:
    """Return what a reader of a figure of ``comparisons`` must know, as sentences."""
    lines = [(one.title, note) for one in comparisons for note in one.notes]
    return " ".join(f"{title}: {note}." if len(comparisons) > 1 else f"{note.capitalize()}." for title, note in lines)


def mean_and_sd(values: np.ndarray, digits: int = 3) -> str:
    """Return "mean ± sd" of the seeds' ``values`` (ddof 1), the mean alone of one seed, a dash if one is NaN."""
    if np.isnan(values).any():
        return "—"
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def interval(estimate: Estimate, *, scale: float = 100, digits: int = 1) -> str:
    """Return "+0.3 to +2.1": the ends in points where ``scale`` is 100. An end that is not 0 is never written as 0."""
    return " to ".join(signed(end, scale=scale, digits=digits) for end in (estimate.low, estimate.high))


def signed(value: float, *, scale: float = 100, digits: int = 1) -> str:
    """Return ``value`` times ``scale`` with its sign, with more digits where ``digits`` would round it to 0."""
    scaled = value * scale
    while scaled and digits < 6 and abs(scaled) < 0.5 * 10**-digits:
        digits += 1
    text = f"{scaled:+.{digits}f}"
    return text if float(text) else f"{0:.{digits}f}"
