"""The summary of all runs as a table: ``summary.csv`` a row a seed, ``summary.md`` and ``.tex`` a row a model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.evaluation.comparison import Comparison, Series, training_seconds
from common.evaluation.formatting import count_seeds, mean_and_sd
from common.evaluation.significance import Estimate
from common.evaluation.uncertainty import estimates
from common.report import markup
from common.runs.result import Run

HEADER = (
    "Data set",
    "Model",
    "Seeds",
    "Accuracy",
    "F1 (macro)",
    "AUC (macro)",
    "ECE",
    "ECE (scaled)",
    "Trained parameters",
    "Trained (%)",
    "Forward (GFLOPs)",
    "Training (s)",
    "Features (s)",
    "Saved (bytes)",
    "Weights",
)

WORDS = ("Data set", "Model", "Weights")


def write_summary(compared: Sequence[Comparison], folder: Path) -> list[Path]:
    """Write ``summary.csv`` (raw numbers, a row a run and seed), ``summary.md`` and ``.tex``; return their paths.

    The latter two have a row a model: mean ± sd over seeds and, of the scores, [the 95 % interval of the mean].
    """
    rows = [_row(one, series) for one in compared for series in one.series]
    records = [
        _record(series, run, seed)
        for one in compared
        for series in one.series
        for run, seed in zip(series.runs, one.evidence.seeds[series.name], strict=True)
    ]
    return markup.write_tables(folder / "summary", list(records[0]), records, HEADER, rows, words=WORDS)


def _record(series: Series, run: Run, seed: dict) -> dict:
    """Return one seed's numbers as they stand in ``result.json``, and its intervals; None, an empty field, is unknown.

    ``_low`` and ``_high`` are the ends of the 95 % interval over test images; ``scaled`` is after the temperature.
    """
    result = run.result
    test, model, efficiency = result["test"], result["model"], result["efficiency"]
    scores = ("accuracy", "balanced_accuracy", "f1_macro", "f1_weighted", "auc_macro", "auc_micro", "ece", "loss")
    costs = ("train_seconds", "feature_seconds", "saved_bytes")
    ends = {
        f"test_{metric}_{end}": markup.known(getattr(estimate, end))
        for metric, estimate in estimates(seed).items()
        for end in ("low", "high")
    }
    calibration = seed["calibration"]
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
        **ends,
        "test_brier": calibration["brier"],
        "temperature": calibration["temperature"],
        "test_ece_scaled": calibration["after"] and calibration["after"]["ece"]["15"],
    }


def _row(one: Comparison, series: Series) -> tuple[str, ...]:
    """Return one model's cells in the order of ``HEADER``."""

    def cell(group: str, name: str, *, digits: int = 3) -> str:
        return mean_and_sd(series.values(lambda result: result[group][name]), digits)

    def score(name: str, *, digits: int = 3) -> str:
        return f"{cell('test', name, digits=digits)}{_brackets(one.evidence.means[series.name][name], digits)}"

    params = series.values(lambda result: result["model"]["trainable_params"])
    saved = series.values(lambda result: result["efficiency"]["saved_bytes"])
    percent = series.values(lambda result: result["model"]["trainable_percent"])
    sources = sorted({run.result["model"]["weights"]["source"] for run in series.runs})
    scaled = [seed["calibration"]["after"] for seed in one.evidence.seeds[series.name]]
    return (
        one.dataset,
        series.label,
        str(len(series.runs)),
        score("accuracy"),
        score("f1_macro"),
        score("auc_macro", digits=4),
        cell("test", "ece"),
        mean_and_sd(np.array([after["ece"]["15"] if after else np.nan for after in scaled])),
        f"{np.mean(params):,.0f}",
        f"{np.mean(percent):.3f}",
        _mean(series.values(lambda result: result["model"]["forward_flops"]) / 1e9, 2),
        cell("efficiency", "train_seconds", digits=1),
        cell("efficiency", "feature_seconds", digits=1),
        f"{np.mean(saved):,.0f}",
        ", ".join(sources),
    )


def _brackets(estimate: Estimate, digits: int) -> str:
    return "" if np.isnan(estimate.value) else f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _mean(values: np.ndarray, digits: int) -> str:
    return "—" if np.isnan(values).any() else f"{values.mean():,.{digits}f}"


def terminal(compared: Sequence[Comparison]) -> str:
    """Return the scores and costs as aligned text: a block a data set, a row a model, mean ± sd over its seeds."""
    blocks = []
    for one in compared:
        images = one.data["num_test"]
        lines = [("", "accuracy", "F1 (macro)", "AUC (macro)", "trained", "seconds", "ships (MB)")]
        for series in one.series:
            scores = [
                mean_and_sd(series.values(lambda result, name=name: result["test"][name]), digits)
                for name, digits in (("accuracy", 4), ("f1_macro", 4), ("auc_macro", 5))
            ]
            params = series.values(lambda result: result["model"]["trainable_params"]).mean()
            seconds = series.values(training_seconds).mean()
            saved = series.values(lambda result: result["efficiency"]["saved_bytes"]).mean()
            lines.append((series.label, *scores, f"{params:,.0f}", f"{seconds:,.0f}", f"{saved / 1e6:.2f}"))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = ("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)
        head = f"{one.title}: {images:,} test images, one is {100 / images:.2g} points; {count_seeds([one])}"
        blocks.append("\n".join([head, *(f"  {row}".rstrip() for row in rows)]))
    return "\n\n".join(blocks)
