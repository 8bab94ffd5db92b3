"""The figures: what each shows, when it is drawn, and the drawing of all of them in a few processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from common.evaluation.comparison import Comparison, missing_predictions
from common.evaluation.frames import Frames, keep_texts_whole
from common.evaluation.robustness import corrupted
from common.evaluation.uncertainty import Uncertainty
from common.figures import (
    bars,
    corruptions,
    differences,
    few_shot,
    findings,
    learning_curves,
    method_and_backbone,
    per_class,
    reliability,
    roc,
    shipping,
    style,
    trade_offs,
)
from common.runtime.parallel import parallel_map


@dataclass(frozen=True)
class FigureSpec:
    """One figure: how it is drawn, its title in the report, and for what."""

    draw: Callable[..., Figure]
    """Takes a comparison (all of them, if the figure is ``across`` data sets), the frames and the uncertainty."""
    title: str
    across: bool = False
    wanted: Callable[..., bool] = lambda *_: True
    """Whether there is anything to draw; takes what ``draw`` takes."""


def _has_effects(comparison: Comparison, _: Frames, uncertainty: Uncertainty) -> bool:
    return comparison.dataset in set(uncertainty.effects["dataset"])


def _has_pairs(comparison: Comparison, _: Frames, uncertainty: Uncertainty) -> bool:
    return comparison.dataset in set(uncertainty.pairs["dataset"])


def _has_findings(_: Sequence[Comparison], __: Frames, uncertainty: Uncertainty) -> bool:
    return bool(uncertainty.pairs["declared"].astype(bool).any())


def _has_epochs(comparison: Comparison, *_: Frames | Uncertainty) -> bool:
    return any(map(learning_curves.has_epochs, comparison.series))


def _has_logits(comparison: Comparison, *_: Frames | Uncertainty) -> bool:
    return not missing_predictions(comparison)


def _has_corruptions(comparison: Comparison, *_: Frames | Uncertainty) -> bool:
    return bool(corrupted(comparison)[1])


def _has_few_shot_curves(comparison: Comparison, *_: Frames | Uncertainty) -> bool:
    return bool(few_shot.few_shot_curves(comparison))


def _is_known(column: str, _: Sequence[Comparison], frames: Frames, __: Uncertainty) -> bool:
    return bool(frames.runs[column].notna().any())


def _trade_off(cost: str, title: str) -> FigureSpec:
    draw = partial(trade_offs.accuracy_vs, cost, title)
    return FigureSpec(draw, title, across=True, wanted=partial(_is_known, cost))


# By the name of the figure's file, before which that of a data set's own figure has the data set's.
FIGURES = {
    "final_benchmark_comparison": FigureSpec(bars.final_benchmark_comparison, "Metrics on test images"),
    "learning_curves": FigureSpec(learning_curves.learning_curves, "Learning curves", wanted=_has_epochs),
    "confusion_matrices": FigureSpec(per_class.confusion_matrices, "Confusion matrices"),
    "roc_curves": FigureSpec(roc.roc_curves, "ROC curves", wanted=_has_logits),
    "per_class_f1": FigureSpec(per_class.per_class_f1, "F1 of each class"),
    "reliability": FigureSpec(reliability.reliability, "Reliability of the confidences"),
    "differences": FigureSpec(differences.differences, "Differences between the models", wanted=_has_pairs),
    "corruptions": FigureSpec(corruptions.corruptions, "Corrupted test images", wanted=_has_corruptions),
    "method_and_backbone": FigureSpec(
        method_and_backbone.method_and_backbone, "Method and backbone crossed", wanted=_has_effects
    ),
    "few_shot": FigureSpec(few_shot.few_shot, "Accuracy and training images", wanted=_has_few_shot_curves),
    "findings": FigureSpec(findings.findings, "What was asked, on all data sets", across=True, wanted=_has_findings),
    "overview": FigureSpec(bars.overview, "All data sets", across=True),
    "accuracy_vs_parameters": _trade_off("trainable_params", "Accuracy and trained parameters"),
    "accuracy_vs_time": _trade_off("total_train_seconds", "Accuracy and training time"),
    "accuracy_vs_training_flops": _trade_off("train_flops", "Accuracy and operations of training"),
    "accuracy_vs_flops": _trade_off("forward_flops", "Accuracy and operations of one image"),
    "accuracy_vs_latency": _trade_off("latency_seconds", "Accuracy and time of one image"),
    "accuracy_vs_deployed_bytes": _trade_off("deployed_bytes", "Accuracy and bytes to deploy"),
    "bytes_for_tasks": FigureSpec(
        shipping.bytes_for_tasks,
        "Bytes to ship for many tasks",
        across=True,
        wanted=partial(_is_known, "deployed_bytes"),
    ),
}


def draw_all(
    comparisons: Sequence[Comparison], frames: Frames, uncertainty: Uncertainty, folder: Path, columns: str = "two"
) -> Iterator[tuple[str, list[Path]]]:
    """Draw every figure of ``FIGURES`` that is wanted into ``folder``, as wide as ``columns`` of a page.

    Yields for each the data set, "" for all together, and the files written.
    """
    subjects = [*((comparison.dataset, comparison) for comparison in comparisons), ("", comparisons)]
    drawings = [
        (dataset, folder / _stem(dataset, name), columns, spec.draw, (subject, frames, uncertainty))
        for dataset, subject in subjects
        for name, spec in FIGURES.items()
        if spec.across == (not dataset) and spec.wanted(subject, frames, uncertainty)
    ]
    yield from zip((dataset for dataset, *_ in drawings), parallel_map(_draw, drawings), strict=True)


def draw_one(name: str, comparison: Comparison, frames: Frames, uncertainty: Uncertainty, folder: Path) -> list[Path]:
    """Draw the figure ``name`` of a data set where it is wanted; return the files written."""
    spec = FIGURES[name]
    if not spec.wanted(comparison, frames, uncertainty):
        return []
    stem = folder / _stem(comparison.dataset, name)
    return _draw((comparison.dataset, stem, "two", spec.draw, (comparison, frames, uncertainty)))


def _stem(dataset: str, name: str) -> str:
    """Return a file's name without suffix."""
    if name == "final_benchmark_comparison" and dataset == "cifar10":
        dataset = "cifar_10"  # the study's own name for this file
    return f"{dataset}_{name}" if dataset else name


def _draw(drawing: tuple) -> list[Path]:
    """Draw and save one figure; return the files written."""
    keep_texts_whole()
    _, stem, columns, draw, subject = drawing
    with style.context(columns):
        return style.save(draw(*subject), stem)
