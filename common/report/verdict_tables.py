"""The pairs of models as a table: ``verdicts.csv`` a row a pair and metric, ``.md`` and ``.tex`` a row a pair."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.evaluation.comparison import Comparison
from common.evaluation.formatting import signed
from common.evaluation.significance import verdict
from common.evaluation.uncertainty import COMPARED, Difference
from common.report import markup, sentences
from common.report.sentences import remark, seeds_of

HEADER = (
    "Data set",
    "Model A",
    "Model B",
    "Seeds",
    "Test images",
    "Accuracy, A - B (points)",
    "F1 (macro), A - B (points)",
    "AUC (macro), A - B (points)",
    "McNemar p",
    "Holm p",
    "By accuracy",
    "Remark",
)

WORDS = ("Data set", "Model A", "Model B", "By accuracy", "Remark")


def write_verdicts(compared: Sequence[Comparison], folder: Path) -> list[Path]:
    """Write ``verdicts.csv`` (a row a pair and metric), ``verdicts.md`` and ``.tex`` (a row a pair); return the paths.

    Differences have their 95 % interval over images and seeds in brackets, each for itself; McNemar's p has its range
    over the seeds, and the largest of them is adjusted for the number of a data set's pairs.
    """
    pairs = [(one, difference) for one in compared for difference in one.evidence.differences]
    records = [_record(one, difference, metric) for one, difference in pairs for metric in COMPARED]
    fields = (
        *("dataset", "run_a", "run_b", "label_a", "label_b", "seeds_a", "seeds_b", "num_test", "metric"),
        *("difference", "low", "high", "verdict", "mcnemar_p_min", "mcnemar_p_max", "holm_p", "remark"),
    )
    rows = [_row(*pair) for pair in pairs]
    return markup.write_tables(folder / "verdicts", fields, records, HEADER, rows, words=WORDS)


def _record(one: Comparison, difference: Difference, metric: str) -> dict:
    """Return one pair's numbers for one metric; McNemar's test is on right and wrong, so it stands by accuracy only."""
    ours, theirs = sentences.pair(one, difference)
    estimate = difference.estimates[metric]
    record = {
        "dataset": one.dataset,
        **{f"run_{letter}": series.name for letter, series in (("a", ours), ("b", theirs))},
        **{f"label_{letter}": series.label for letter, series in (("a", ours), ("b", theirs))},
        **{f"seeds_{letter}": len(series.runs) for letter, series in (("a", ours), ("b", theirs))},
        "num_test": one.data["num_test"],
        "metric": metric,
        **dict(zip(("difference", "low", "high"), map(markup.known, estimate), strict=True)),
        "verdict": verdict(estimate),
        "remark": remark(ours, theirs),
    }
    if metric == "accuracy":
        p_values = difference.mcnemar
        record |= {"mcnemar_p_min": min(p_values), "mcnemar_p_max": max(p_values), "holm_p": difference.holm}
    return record


def _row(one: Comparison, difference: Difference) -> tuple[str, ...]:
    """Return one pair's cells in the order of ``HEADER``."""
    ours, theirs = sentences.pair(one, difference)
    cells = {}
    for metric, digits in (("accuracy", 1), ("f1_macro", 1), ("auc_macro", 2)):
        value, low, high = difference.estimates[metric]
        texts = [signed(number, digits=digits) for number in (value, low, high)]
        cells[metric] = "—" if np.isnan(value) else f"{texts[0]} [{texts[1]}, {texts[2]}]"
    word = verdict(difference.estimates["accuracy"])
    lowest, highest = _p(min(difference.mcnemar)), _p(max(difference.mcnemar))
    return (
        one.dataset,
        ours.label,
        theirs.label,
        seeds_of(ours, theirs),
        f"{one.data['num_test']:,}",
        *cells.values(),
        lowest if lowest == highest else f"{lowest} to {highest}",
        _p(difference.holm),
        {"better": "A is better", "worse": "B is better"}.get(word, word),
        remark(ours, theirs),
    )


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
