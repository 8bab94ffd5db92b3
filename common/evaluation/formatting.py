"""Numbers as a person reads them: means with their spread, signed differences, numbers of seeds."""

from collections.abc import Sequence

import numpy as np

from common.evaluation.comparison import Comparison
from common.evaluation.significance import Estimate

MISSING = "—"


def seed_range(comparisons: Sequence[Comparison]) -> tuple[int, int]:
    """Return the fewest and the most seeds that a model of ``comparisons`` has."""
    counts = [len(series.runs) for comparison in comparisons for series in comparison.series]
    return min(counts), max(counts)


def count_seeds(fewest: int, most: int | None = None) -> str:
    """Return the numbers of seeds in words: "1 seed", "3 seeds" or "2 to 5 seeds"."""
    if most is not None and most != fewest:
        return f"{fewest} to {most} seeds"
    return "1 seed" if fewest == 1 else f"{fewest} seeds"


def joined_notes(comparisons: Sequence[Comparison]) -> str:
    """Return what a reader of a figure of ``comparisons`` must know, as sentences."""
    lines = [(comparison.title, note) for comparison in comparisons for note in comparison.notes]
    return " ".join(f"{title}: {note}." if len(comparisons) > 1 else f"{note.capitalize()}." for title, note in lines)


def mean_sd(values: Sequence[float], digits: int = 3, *, scale: float = 1.0, with_sd: bool = True) -> str:
    """Return "mean ± sd" (ddof 1) of the seeds' ``values`` times ``scale``; of one the mean, "—" if one is NaN."""
    values = np.asarray(values, dtype=np.float64) * scale
    if np.isnan(values).any():
        return MISSING
    mean = f"{values.mean():,.{digits}f}"
    return f"{mean} ± {values.std(ddof=1):,.{digits}f}" if with_sd and len(values) > 1 else mean


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
