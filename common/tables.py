"""The summary of all runs as a table: ``summary.csv`` a row a seed, ``summary.md`` and ``.tex`` a row a model."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import comparison, storage
from common.comparison import Comparison, Series
from common.results import Run

HEADER = (
    "Data set",
    "Model",
    "Seeds",
    "Accuracy",
    "F1 (macro)",
    "AUC (macro)",
    "Trained parameters",
    "Trained (%)",
    "Forward (GFLOPs)",
    "Training (s)",
    "Features (s)",
    "Saved (bytes)",
    "Weights",
)
TEX_ESCAPES = str.maketrans(
    {letter: f"\\{letter}" for letter in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"—": "---", "±": r"\(\pm\)", "<": r"\textless{}", ">": r"\textgreater{}", "\n": " "}
)


def write_summary(compared: Sequence[Comparison], folder: Path) -> list[Path]:
    """Write ``summary.csv`` (raw numbers, a row a run and seed), ``summary.md`` and ``summary.tex`` (mean ± sd)."""
    rows = [_row(one.dataset, series) for one in compared for series in one.series]
    records = [_record(series, run) for one in compared for series in one.series for run in series.runs]
    contents = {"summary.csv": _csv(records), "summary.md": _markdown(rows), "summary.tex": _latex(rows)}
    for name, text in contents.items():
        storage.write_atomically(folder / name, text.encode("utf-8", "backslashreplace"))
    return [folder / name for name in contents]


def _record(series: Series, run: Run) -> dict:
    """Return one seed's numbers as they stand in ``result.json``; None, an empty field, is not known."""
    result = run.result
    test, model, efficiency = result["test"], result["model"], result["efficiency"]
    scores = ("accuracy", "balanced_accuracy", "f1_macro", "f1_weighted", "auc_macro", "auc_micro", "ece", "loss")
    costs = ("train_seconds", "feature_seconds", "saved_bytes")
    return {
        "dataset": run.dataset,
        "run": run.name,
        "label": series.label,
        "seed": run.seed,
        **{f"test_{name}": test[name] for name in scores},
        **{name: model[name] for name in ("trainable_params", "trainable_percent", "total_params", "forward_flops")},
        **{name: efficiency[name] for name in costs},
        "num_train": result["data"]["num_train"],
        "num_test": result["data"]["num_test"],
        "weights_source": model["weights"]["source"],
    }


def _row(dataset: str, series: Series) -> tuple[str, ...]:
    """Return one model's cells in the order of ``HEADER``: mean ± sd over the seeds where more than one."""

    def cell(group: str, name: str, *, digits: int = 3) -> str:
        return comparison.mean_and_sd(series.values(lambda result: result[group][name]), digits)

    params = series.values(lambda result: result["model"]["trainable_params"])
    saved = series.values(lambda result: result["efficiency"]["saved_bytes"])
    percent = series.values(lambda result: result["model"]["trainable_percent"])
    sources = sorted({run.result["model"]["weights"]["source"] for run in series.runs})
    return (
        dataset,
        series.label,
        str(len(series.runs)),
        cell("test", "accuracy"),
        cell("test", "f1_macro"),
        cell("test", "auc_macro", digits=4),
        f"{np.mean(params):,.0f}",
        f"{np.mean(percent):.3f}",
        _mean(series.values(lambda result: result["model"]["forward_flops"]) / 1e9, 2),
        cell("efficiency", "train_seconds", digits=1),
        cell("efficiency", "feature_seconds", digits=1),
        f"{np.mean(saved):,.0f}",
        ", ".join(sources),
    )


def _mean(values: np.ndarray, digits: int) -> str:
    return "—" if np.isnan(values).any() else f"{values.mean():,.{digits}f}"


def _csv(records: Sequence[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table of GitHub's Markdown; numbers are aligned to the right."""
    rule = ["---" if name in ("Data set", "Model", "Weights") else "---:" for name in HEADER]
    cells = [HEADER, rule, *([" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _latex(rows: Sequence[Sequence[str]]) -> str:
    r"""Return a ``tabular`` with rules of the booktabs package; ``\input`` it into a document."""
    lines = [" & ".join(cell.translate(TEX_ESCAPES) for cell in row) + r" \\" for row in (HEADER, *rows)]
    columns = "".join("l" if name in ("Data set", "Model", "Weights") else "r" for name in HEADER)
    start = [r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*start, *lines[1:], r"\bottomrule", r"\end{tabular}", ""])


def terminal(compared: Sequence[Comparison]) -> str:
    """Return the scores and costs as aligned text: a block a data set, a row a model, mean ± sd over its seeds."""
    blocks = []
    for one in compared:
        images = one.data["num_test"]
        lines = [("", "accuracy", "F1 (macro)", "AUC (macro)", "trained", "seconds", "ships (MB)")]
        for series in one.series:
            scores = [
                comparison.mean_and_sd(series.values(lambda result, name=name: result["test"][name]), digits)
                for name, digits in (("accuracy", 4), ("f1_macro", 4), ("auc_macro", 5))
            ]
            params = series.values(lambda result: result["model"]["trainable_params"]).mean()
            seconds = series.values(comparison.training_seconds).mean()
            saved = series.values(lambda result: result["efficiency"]["saved_bytes"]).mean()
            lines.append((series.label, *scores, f"{params:,.0f}", f"{seconds:,.0f}", f"{saved / 1e6:.2f}"))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = ("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)
        head = f"{one.title}: {images:,} test images, one is {100 / images:.2g} points; {comparison.seeds([one])}"
        blocks.append("\n".join([head, *(f"  {row}".rstrip() for row in rows)]))
    return "\n\n".join(blocks)
