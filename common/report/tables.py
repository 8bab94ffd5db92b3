"""The tables of the results: models and pairs of models, as numbers (CSV) and as texts (Markdown, LaTeX, terminal)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from common.evaluation.comparison import Comparison
from common.evaluation.formatting import MISSING, QUANTITIES, display, mean_sd, mean_text, p_text, repeats, signed
from common.evaluation.frames import Frames
from common.evaluation.machines import mixture_note
from common.evaluation.metrics import HEADLINE, METRICS
from common.evaluation.uncertainty import Uncertainty
from common.report.effects import effect_texts
from common.report.sentences import named_pairs, seeds_in_words, verdict_in_words
from common.runtime.files import write_atomically

MODEL = ["dataset", "run"]  # what names a model
SCORES = [f"test_{name}" for name in METRICS]
HEADLINE_SCORES = [f"test_{name}" for name in HEADLINE]
COSTS = (
    *("total_params", "trainable_params", "trainable_percent", "forward_flops", "train_flops"),
    *("train_seconds", "feature_seconds", "total_train_seconds", "kept_train_seconds"),
    *("train_images_per_second", "train_features_per_second"),
    *("saved_bytes", "backbone_bytes", "deployed_bytes", "latency_seconds", "images_per_second"),
)
SUMMARY = (
    *HEADLINE_SCORES,
    *("test_ece", "test_ece_scaled"),
    *COSTS,
)
TERMINAL = (*HEADLINE_SCORES, "trainable_params", "total_train_seconds", "saved_bytes")
WORDS = {  # the other columns are numbers
    *("Data set", "Model", "Weights", "Machine", "Model A", "Model B", "By accuracy", "Remark"),
    *("Effect of", "Within", "Difference", "Sign", "Deliberate defect", "Favours"),
}


def write_summary(frames: Frames, uncertainty: Uncertainty, folder: Path) -> list[Path]:
    """Write ``summary.csv`` (raw numbers, a row a run and seed), ``summary.md`` and ``.tex``; return their paths.

    The latter two have a row a model: mean ± sd over seeds, of the headline metrics [the 95 % interval of the mean],
    and the machine where there were several. In the CSV ``_low`` and ``_high`` are the ends of a seed's 95 % interval
    over test images, ``scaled`` is after the temperature, and an empty field is unknown.
    """
    runs = with_statistics(frames, uncertainty)
    models = runs.groupby(MODEL, sort=False)
    texts = models.agg(**{"Model": ("label", "first"), "Seeds": ("seed", "size")})
    are_folds = frames.runs.groupby(MODEL, sort=False).folds.first() > 1
    texts["Seeds"] = [f"{count} folds" if are_folds[model] else count for model, count in texts["Seeds"].items()]
    texts = texts.join(model_texts(runs, SUMMARY, uncertainty))
    texts["Weights"] = models.weights_source.agg(lambda sources: ", ".join(sorted(set(sources))))
    if runs["machine"].nunique() > 1:  # whose seconds do not compare
        texts["Machine"] = models.machine.agg(lambda machines: "; ".join(dict.fromkeys(machines)))
    return write_table(
        folder / "summary", runs, texts.reset_index().rename(columns={"dataset": "Data set"}).drop(columns="run")
    )


def write_verdicts(frames: Frames, uncertainty: Uncertainty, folder: Path) -> list[Path]:
    """Write ``verdicts.csv`` (a row a pair and metric), ``verdicts.md`` and ``.tex`` (a row a declared pair).

    Returns the paths. The CSV's columns are those of ``Uncertainty.pairs``; the texts have the differences with their
    simultaneous 95 % intervals in brackets, and Holm's p by accuracy.
    """
    pairs = named_pairs(frames, uncertainty)
    columns = (
        *("dataset", "run_a", "run_b", "label_a", "label_b", "seeds_a", "seeds_b", "num_test", "metric"),
        *("declared", "difference", "level", "low", "high", "low_90", "high_90", "margin", "p", "p_adjusted"),
        *("verdict", "winner", "detectable", "detectable_by_images", "seeds_needed", "images_needed"),
        *("mcnemar_p_by_seed", "remark", *(["folds"] if (pairs.folds_a > 1).any() else [])),
    )
    pairs["folds"] = pairs.folds_a
    declared = pairs[pairs.declared.astype(bool)]
    return write_table(folder / "verdicts", pairs[list(columns)], _pair_texts(declared))


def write_corruptions(frames: Frames, folder: Path) -> list[Path]:
    """Write ``corruptions.csv`` (a row a run, kind and severity), ``.md`` and ``.tex`` (a row a model).

    The latter have of each kind the accuracy over its severities, mean ± sd over the seeds, beside the clean one.
    """
    rows = frames.corruptions
    seed = [*MODEL, "label", "seed"]
    means = rows.pivot_table(index=seed, columns="kind", values="accuracy", sort=False)
    means.insert(0, "Clean", frames.runs.set_index(seed)["test_accuracy"].reindex(means.index))
    means.insert(1, "Mean of the kinds", means.iloc[:, 1:].mean(axis=1, skipna=False))
    texts = means.groupby([*MODEL, "label"], sort=False).agg(mean_sd).reset_index()
    texts = texts.rename(columns={"dataset": "Data set", "label": "Model"}).drop(columns="run")
    return write_table(folder / "corruptions", rows, texts.rename(columns=lambda name: name.replace("_", " ")))


def write_effects(uncertainty: Uncertainty, folder: Path) -> list[Path]:
    """Write ``effects.csv``, the columns of ``Uncertainty.effects``, ``.md`` and ``.tex``; return the paths.

    Nothing is written where no data set has method and backbone crossed.
    """
    if uncertainty.effects.empty:
        return []
    return write_table(folder / "effects", uncertainty.effects, effect_texts(uncertainty.effects))


def model_texts(runs: pd.DataFrame, columns: Sequence[str], uncertainty: Uncertainty | None = None) -> pd.DataFrame:
    """Return a row a model, by ``MODEL``, with the text of each of ``columns`` of ``runs`` under its label.

    A cost that no run knows has no column.
    With ``uncertainty`` the headline metrics have the 95 % interval of their mean in brackets.
    """
    columns = known_columns(runs, columns)
    texts = runs.groupby(MODEL, sort=False).agg({column: partial(mean_text, column) for column in columns})
    for row in uncertainty.means.itertuples() if uncertainty else ():
        if not np.isnan(row.value) and texts.loc[(row.dataset, row.run), f"test_{row.metric}"] != MISSING:
            ends = (f"{end:.{METRICS[row.metric].digits}f}" for end in (row.low, row.high))
            texts.loc[(row.dataset, row.run), f"test_{row.metric}"] += f" [{', '.join(ends)}]"
    return texts.rename(columns={column: display(column).label for column in columns})


def known_columns(runs: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Return ``columns`` without the costs that were measured of no run."""
    return [column for column in columns if column not in QUANTITIES or runs[column].notna().any()]


def with_statistics(frames: Frames, uncertainty: Uncertainty) -> pd.DataFrame:
    """Return the numbers of ``summary.csv``: ``frames.runs``'s, with each seed's intervals and calibration."""
    seed = [*MODEL, "seed"]
    calibration = uncertainty.calibration.rename(columns={"ece_scaled": "test_ece_scaled"})
    runs = frames.runs.merge(calibration[[*seed, "brier", "temperature", "test_ece_scaled"]], on=seed)
    runs["test_brier"] = runs["test_brier"].fillna(runs["brier"])  # older results have it in their statistics alone
    ends = uncertainty.runs.assign(metric="test_" + uncertainty.runs.metric)
    ends = ends.pivot(index=seed, columns="metric", values=["low", "high"])
    ends.columns = [f"{metric}_{end}" for end, metric in ends.columns]
    runs = runs.merge(ends, on=seed)
    folds = ["folds"] if (runs["folds"] > 1).any() else []  # ``seed`` is then the number of the fold
    with_ends = [score for score in SCORES if f"{score}_low" in runs]
    for score in with_ends:  # of a metric that is newer than a result, no ends without the value
        runs.loc[runs[score].isna(), [f"{score}_low", f"{score}_high"]] = np.nan
    columns = [*MODEL, "label", "seed", *folds, *SCORES, *(name for name in QUANTITIES if name != "test_ece_scaled")]
    columns += ["weights_source", "machine", "timing_machine"]
    columns += [f"{score}_{end}" for score in with_ends for end in ("low", "high")]
    return runs[[*columns, "temperature", "test_ece_scaled"]]


def terminal(comparisons: Sequence[Comparison], frames: Frames) -> str:
    """Return the scores and costs as aligned text: a block a data set, a row a model, mean ± sd over its seeds."""
    blocks = []
    for comparison in comparisons:
        runs, images = frames.runs[frames.runs.dataset == comparison.dataset], comparison.num_test
        texts = model_texts(runs, TERMINAL)
        texts.index = [series.label for series in comparison.series]
        seeds = repeats([comparison]).text
        head = f"{comparison.title}: {images:,} test images, one is {100 / images:.2g} points; {seeds}"
        note = mixture_note(runs, "machine")
        blocks.append(f"{head}\n{texts.to_string()}" + f"\nnote: {note}" * bool(note))
    return "\n\n".join(blocks)


def _pair_texts(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return a row a pair of ``named_pairs``, with a column a headline metric."""
    by_accuracy = pairs[pairs.metric == "accuracy"]
    texts = {
        "Data set": by_accuracy.dataset,
        "Model A": by_accuracy.label_a,
        "Model B": by_accuracy.label_b,
        "Seeds": map(seeds_in_words, by_accuracy.itertuples()),
        "Test images": [f"{count:,}" for count in by_accuracy.num_test],
    }
    for name in HEADLINE:
        rows = pairs[pairs.metric == name].itertuples()
        texts[f"{METRICS[name].label}, A - B (points)"] = [_points(row, METRICS[name].digits - 2) for row in rows]
    texts |= {
        "Holm p": map(p_text, by_accuracy.p_adjusted),
        "By accuracy": map(verdict_in_words, by_accuracy.itertuples()),
        "Remark": by_accuracy.remark,
    }
    return pd.DataFrame({heading: list(column) for heading, column in texts.items()})


def _points(pair, digits: int) -> str:
    """Return a difference in points with its interval in brackets."""
    value, low, high = (signed(number, digits=digits) for number in (pair.difference, pair.low, pair.high))
    return MISSING if np.isnan(pair.difference) else f"{value} [{low}, {high}]"


def write_table(stem: Path, numbers: pd.DataFrame, texts: pd.DataFrame) -> list[Path]:
    """Write ``numbers`` to ``stem``.csv and ``texts`` to ``stem``.md and ``stem``.tex; return the paths."""
    texts = texts.map(lambda cell: " ".join(str(cell).split()))
    align = "".join("l" if heading in WORDS else "r" for heading in texts)
    latex = texts.to_latex(index=False, escape=True, column_format=align)
    contents = {
        "csv": numbers.to_csv(index=False, lineterminator="\n"),
        "md": _markdown(texts),
        "tex": "% needs \\usepackage{booktabs}\n" + latex.replace("<", r"\textless{}").replace(">", r"\textgreater{}"),
    }
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in contents]
    for path, text in zip(paths, contents.values(), strict=True):
        write_atomically(path, text.encode("utf-8", "backslashreplace"))
    return paths


def _markdown(texts: pd.DataFrame) -> str:
    """Return a table of GitHub's Markdown; numbers are aligned to the right."""
    rule = ["---" if heading in WORDS else "---:" for heading in texts]
    rows = [list(texts), rule, *texts.map(lambda cell: cell.replace("|", "\\|")).to_numpy().tolist()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
