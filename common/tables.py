"""The runs as tables: ``summary.csv`` a row a seed, ``.md`` and ``.tex`` a row a model; ``verdicts`` a row a pair."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import comparison, evidence, markup, storage, verdicts
from common.comparison import Comparison, Series
from common.evidence import COMPARED, Difference
from common.results import Run
from common.statistics import Estimate

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
VERDICT_HEADER = (
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
WORDS = {"Data set", "Model", "Weights", "Model A", "Model B", "By accuracy", "Remark"}


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
    return _write(folder, "summary", (list(records[0]), records), (HEADER, rows))


def write_verdicts(compared: Sequence[Comparison], folder: Path) -> list[Path]:
    """Write ``verdicts.csv`` (a row a pair and metric), ``verdicts.md`` and ``.tex`` (a row a pair); return the paths.

    Differences have their 95 % interval over images and seeds in brackets, each for itself; McNemar's p has its range
    over the seeds, and the largest of them is adjusted for the number of a data set's pairs.
    """
    pairs = [(one, difference) for one in compared for difference in one.evidence.differences]
    records = [_verdict_record(one, difference, metric) for one, difference in pairs for metric in COMPARED]
    fields = (
        *("dataset", "run_a", "run_b", "label_a", "label_b", "seeds_a", "seeds_b", "num_test", "metric"),
        *("difference", "low", "high", "verdict", "mcnemar_p_min", "mcnemar_p_max", "holm_p", "remark"),
    )
    return _write(folder, "verdicts", (fields, records), (VERDICT_HEADER, [_verdict_row(*pair) for pair in pairs]))


def _write(folder: Path, stem: str, raw: tuple, table: tuple) -> list[Path]:
    contents = {
        f"{stem}.csv": markup.as_csv(*raw),
        f"{stem}.md": markup.as_markdown(*table, words=WORDS),
        f"{stem}.tex": markup.as_latex(*table, words=WORDS),
    }
    for name, text in contents.items():
        storage.write_atomically(folder / name, text.encode("utf-8", "backslashreplace"))
    return [folder / name for name in contents]


def _record(series: Series, run: Run, seed: dict) -> dict:
    """Return one seed's numbers as they stand in ``result.json``, and its intervals; None, an empty field, is unknown.

    ``_low`` and ``_high`` are the ends of the 95 % interval over test images; ``scaled`` is after the temperature.
    """
    result = run.result
    test, model, efficiency = result["test"], result["model"], result["efficiency"]
    scores = ("accuracy", "balanced_accuracy", "f1_macro", "f1_weighted", "auc_macro", "auc_micro", "ece", "loss")
    costs = ("train_seconds", "feature_seconds", "saved_bytes")
    ends = {
        f"test_{metric}_{end}": _known(getattr(estimate, end))
        for metric, estimate in evidence.estimates(seed).items()
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
        return comparison.mean_and_sd(series.values(lambda result: result[group][name]), digits)

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
        comparison.mean_and_sd(np.array([after["ece"]["15"] if after else np.nan for after in scaled])),
        f"{np.mean(params):,.0f}",
        f"{np.mean(percent):.3f}",
        _mean(series.values(lambda result: result["model"]["forward_flops"]) / 1e9, 2),
        cell("efficiency", "train_seconds", digits=1),
        cell("efficiency", "feature_seconds", digits=1),
        f"{np.mean(saved):,.0f}",
        ", ".join(sources),
    )


def _verdict_record(one: Comparison, difference: Difference, metric: str) -> dict:
    """Return one pair's numbers for one metric; McNemar's test is on right and wrong, so it stands by accuracy only."""
    ours, theirs = verdicts.pair(one, difference)
    estimate = difference.estimates[metric]
    record = {
        "dataset": one.dataset,
        **{f"run_{letter}": series.name for letter, series in (("a", ours), ("b", theirs))},
        **{f"label_{letter}": series.label for letter, series in (("a", ours), ("b", theirs))},
        **{f"seeds_{letter}": len(series.runs) for letter, series in (("a", ours), ("b", theirs))},
        "num_test": one.data["num_test"],
        "metric": metric,
        **dict(zip(("difference", "low", "high"), map(_known, estimate), strict=True)),
        "verdict": verdicts.verdict(estimate),
        "remark": verdicts.remark(ours, theirs),
    }
    if metric == "accuracy":
        p_values = difference.mcnemar
        record |= {"mcnemar_p_min": min(p_values), "mcnemar_p_max": max(p_values), "holm_p": difference.holm}
    return record


def _verdict_row(one: Comparison, difference: Difference) -> tuple[str, ...]:
    """Return one pair's cells in the order of ``VERDICT_HEADER``."""
    ours, theirs = verdicts.pair(one, difference)
    cells = {}
    for metric, digits in (("accuracy", 1), ("f1_macro", 1), ("auc_macro", 2)):
        value, low, high = difference.estimates[metric]
        texts = [verdicts.signed(number, digits=digits) for number in (value, low, high)]
        cells[metric] = "—" if np.isnan(value) else f"{texts[0]} [{texts[1]}, {texts[2]}]"
    word = verdicts.verdict(difference.estimates["accuracy"])
    lowest, highest = _p(min(difference.mcnemar)), _p(max(difference.mcnemar))
    return (
        one.dataset,
        ours.label,
        theirs.label,
        verdicts.seeds_of(ours, theirs),
        f"{one.data['num_test']:,}",
        *cells.values(),
        lowest if lowest == highest else f"{lowest} to {highest}",
        _p(difference.holm),
        {"better": "A is better", "worse": "B is better"}.get(word, word),
        verdicts.remark(ours, theirs),
    )


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _brackets(estimate: Estimate, digits: int) -> str:
    return "" if np.isnan(estimate.value) else f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _mean(values: np.ndarray, digits: int) -> str:
    return "—" if np.isnan(values).any() else f"{values.mean():,.{digits}f}"
