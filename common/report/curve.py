"""What the learning curve says: at how many training images which method is better, and where that changes."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pandas as pd

from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import interval, p_text, points, signed
from common.evaluation.frames import frames_of, table
from common.evaluation.significance import BETTER, EQUIVALENT, ONE_SEED, UNDECIDED, WITHIN_MARGIN
from common.evaluation.uncertainty import Uncertainty, compute_uncertainty
from common.figures import draw_one
from common.figures.few_shot import few_shot_curves, sizes_of
from common.report.tables import write_summary, write_table

COLUMNS = (
    *("dataset", "model", "other", "size", "unit", "run", "run_of_other", "draws", "num_test"),
    *("difference", "low", "high", "holm_p", "verdict"),
)


def write_curves(comparisons: Sequence[Comparison], results_dir: Path, figures_dir: Path) -> list[str]:
    """Draw ``<dataset>_few_shot``, write ``summary.*`` and ``curve.*``; return the files' paths and the sentences."""
    frames = frames_of(comparisons)
    contrasts = [(a.name, b.name) for comparison in comparisons for *_, a, b in _at_each_size(comparison)]
    uncertainty = compute_uncertainty(comparisons, contrasts=contrasts)
    lines = []
    for comparison in comparisons:
        lines += draw_one("few_shot", comparison, frames, uncertainty, figures_dir)
    lines += write_summary(frames, uncertainty, results_dir)
    found = [rows for comparison in comparisons if len(rows := curve_differences(comparison, uncertainty))]
    if not found:  # of one curve, or one size, alone
        return list(map(str, lines))
    differences = pd.concat(found)
    lines += write_table(results_dir / "curve", differences, _texts(differences))
    return [*map(str, lines), *change_sentences(differences)]


def curve_differences(comparison: Comparison, uncertainty: Uncertainty) -> pd.DataFrame:
    """Return a row a pair of curves and size: the first curve (LoRA's, where there is one) against each other one.

    ``difference`` in accuracy with the ends of its interval, Holm's p and the ``verdict`` on the first curve's model
    are those of ``uncertainty.pairs``, turned round where the pair stands the other way there. Sizes or draws that only
    one of the two has are left out; one curve alone has no row.
    """
    pairs = uncertainty.pairs.query("dataset == @comparison.dataset and metric == 'accuracy'")
    found = {frozenset((pair.a, pair.b)): pair for pair in pairs.itertuples()}
    sizes, unit = sizes_of(comparison)
    rows = []
    for model, other, a, b in _at_each_size(comparison):
        if not (pair := found.get(frozenset((a.name, b.name)))):
            continue
        sign = 1 if pair.a == a.name else -1
        low, high = sorted((sign * pair.low, sign * pair.high))
        about = {"dataset": comparison.dataset, "model": model, "other": other, "size": sizes[a.name], "unit": unit}
        about |= {"run": a.name, "run_of_other": b.name, "draws": min(pair.seeds_a, pair.seeds_b)}
        numbers = {"num_test": pair.num_test, "difference": sign * pair.difference, "low": low, "high": high}
        rows.append(about | numbers | {"holm_p": pair.p_adjusted, "verdict": _verdict(pair, a.name)})
    return table(rows, COLUMNS)


def _at_each_size(comparison: Comparison) -> Iterator[tuple[str, str, Series, Series]]:
    """Yield the labels of the first curve and of another one, and their models of one number of training images."""
    curves = list(few_shot_curves(comparison).items())
    for first, ours in curves[:1]:
        for other, theirs in curves[1:]:
            yield from ((first, other, a, b) for a in ours for b in theirs if a.num_train == b.num_train)


def _verdict(pair, run: str) -> str:
    """Return what a row of ``Uncertainty.pairs`` says of ``run``, one of the two."""
    better = "better" if getattr(pair, pair.winner or "a") == run else "worse"
    return {
        BETTER: better,
        WITHIN_MARGIN: f"{better} by less than {points(pair.margin)}",
        EQUIVALENT: f"equivalent within {points(pair.margin)}",
        UNDECIDED: "undecided",
        ONE_SEED: f"undecided by one {pair.repeat}",
    }[pair.verdict]


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
    which = {"better": "A is better", "worse": "B is better"}
    return pd.DataFrame(
        {
            "Data set": differences["dataset"],
            "Model A": differences["model"],
            "Model B": differences["other"],
            "Size": [f"{row.size:,} {row.unit.lower()}" for row in rows],
            "Draws": differences["draws"],
            "Accuracy, A - B (points)": [f"{signed(row.difference)} [{interval(row.low, row.high)}]" for row in rows],
            "Holm p": differences["holm_p"].map(p_text),
            "By accuracy": differences["verdict"].replace(which, regex=True),
        }
    )
