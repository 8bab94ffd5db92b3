"""What the learning curve says: at how many training images which method is better, and where that changes."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pandas as pd

from common.evaluation.comparison import Comparison
from common.evaluation.formatting import interval, p_text, signed
from common.evaluation.frames import frames_of, table
from common.evaluation.paired import correct_by_seed, paired_difference
from common.evaluation.significance import BETTER, UNDECIDED, Estimate, holm, simultaneous_levels, verdict
from common.evaluation.uncertainty import compute_uncertainty
from common.figures import draw_one
from common.figures.few_shot import few_shot_curves, sizes_of
from common.report.tables import write_summary, write_table

# The verdict on the first of two models.
WORSE, ONE_DRAW = "worse", "undecided by one draw"
COLUMNS = (
    *("dataset", "model", "other", "size", "unit", "run", "run_of_other", "draws", "num_test"),
    *("difference", "low", "high", "holm_p", "verdict"),
)


def write_curves(comparisons: Sequence[Comparison], results_dir: Path, figures_dir: Path) -> list[str]:
    """Draw ``<dataset>_few_shot``, write ``summary.*`` and ``curve.*``; return the files' paths and the sentences."""
    frames, uncertainty = frames_of(comparisons), compute_uncertainty(comparisons)
    lines = []
    for comparison in comparisons:
        lines += draw_one("few_shot", comparison, frames, uncertainty, figures_dir)
    lines += write_summary(frames, uncertainty, results_dir)
    found = [rows for comparison in comparisons if len(rows := curve_differences(comparison))]
    if not found:  # of one curve, or one size, alone
        return list(map(str, lines))
    differences = pd.concat(found)
    lines += write_table(results_dir / "curve", differences, _texts(differences))
    return [*map(str, lines), *change_sentences(differences)]


def curve_differences(comparison: Comparison) -> pd.DataFrame:
    """Return a row a pair of curves and size: the first curve (LoRA's, where there is one) against each other one.

    ``difference`` in accuracy, paired by draw, with the ends of its interval, which excludes 0 where ``holm_p``, over
    all rows, is below 0.05; ``verdict`` is on the first curve's model. Sizes that only one of the two has are left out;
    one curve alone has no row.
    """
    curves = few_shot_curves(comparison)
    if len(curves) < 2:
        return table([], COLUMNS)
    (first, ours), *others = curves.items()
    correct = {series.name: correct_by_seed(series) for curve in (ours, *dict(others).values()) for series in curve}
    pairs = [(label, a, b) for label, theirs in others for a in ours for b in theirs if a.num_train == b.num_train]
    estimates = [paired_difference(correct[a.name], correct[b.name]) for _, a, b in pairs]
    p_values = [estimate.p for estimate in estimates]
    sizes, unit = sizes_of(comparison)
    rows = []
    for (label, a, b), estimate, p, level in zip(
        pairs, estimates, holm(p_values), simultaneous_levels(p_values), strict=True
    ):
        draws = len(correct[a.name].keys() & correct[b.name].keys())
        ends = estimate.interval(level, bounds=(-1.0, 1.0))
        about = {"dataset": comparison.dataset, "model": first, "other": label, "size": sizes[a.name], "unit": unit}
        about |= {"run": a.name, "run_of_other": b.name, "draws": draws, "num_test": a.runs[0].result.data.num_test}
        numbers = {"difference": estimate.value, "low": ends.low, "high": ends.high, "holm_p": p}
        rows.append(about | numbers | {"verdict": _verdict(estimate, p, draws)})
    return table(rows, COLUMNS)


def _verdict(estimate: Estimate, holm_p: float, draws: int) -> str:
    word = verdict(estimate, holm_p, one_seed=draws < 2)
    return {BETTER: BETTER if estimate.value > 0 else WORSE, UNDECIDED: UNDECIDED}.get(word, ONE_DRAW)


def change_sentences(differences: pd.DataFrame) -> list[str]:
    """Return a sentence a pair of curves: the verdict at each size, and between which sizes it changes."""
    return [
        _sentence(dataset, model, other, list(zip(rows["size"], rows["verdict"], strict=True)), rows["unit"].iloc[0])
        for (dataset, model, other), rows in differences.groupby(["dataset", "model", "other"], sort=False)
    ]


def _sentence(dataset: str, model: str, other: str, verdicts: Sequence[tuple[int, str]], unit: str) -> str:
    sizes: dict[str, list[str]] = {}
    for size, word in verdicts:
        sizes.setdefault(word, []).append(f"{size:,}")
    parts = [f"{word} at {_and(its)}" for word, its in sizes.items()]
    changes = [f"between {a:,} and {b:,}" for (a, one), (b, two) in pairwise(verdicts) if one != two]
    changed = f"the verdict changes {_and(changes)}" if changes else "the verdict does not change"
    return f"{dataset}: {model} against {other}: {', '.join(parts)} {unit.lower()}; {changed}"


def _and(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _texts(differences: pd.DataFrame) -> pd.DataFrame:
    """Return the table's texts, a row a pair and size."""
    rows = list(differences.itertuples())
    which = {BETTER: "A is better", WORSE: "B is better"}
    return pd.DataFrame(
        {
            "Data set": differences["dataset"],
            "Model A": differences["model"],
            "Model B": differences["other"],
            "Size": [f"{row.size:,} {row.unit.lower()}" for row in rows],
            "Draws": differences["draws"],
            "Accuracy, A - B (points)": [f"{signed(row.difference)} [{interval(row.low, row.high)}]" for row in rows],
            "Holm p": differences["holm_p"].map(p_text),
            "By accuracy": differences["verdict"].replace(which),
        }
    )
