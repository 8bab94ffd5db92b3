"""The published study's numbers, as its notebooks store them, for the same data sets and architectures."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

from common.evaluation.comparison import Comparison, Series


@functools.cache
def _records() -> list[dict]:
    return json.loads(Path(__file__).with_name("published_study.json").read_text("utf-8"))["results"]


def published_results(comparison: Comparison, series: Series) -> list[dict]:
    """Return the published records of one model: none unless asked for, two for CIFAR-10 (see the file's notes).

    A model matches by data set, architecture and method, unless its training images were limited; its weights and
    hyper-parameters may be others.
    """
    result = series.runs[0].result
    if not comparison.with_published or result.config.get("train_limit"):
        return []
    wanted = (comparison.dataset, result.backbone.partition(".")[0], result.method)
    return [row for row in _records() if (row["dataset"], row["backbone"], row["method"]) == wanted]


def published_caption(comparisons: Sequence[Comparison]) -> str:
    """Return the sentence that explains the hollow marks, or nothing where there are none."""
    if not any(published_results(comparison, series) for comparison in comparisons for series in comparison.series):
        return ""
    return "Hollow diamonds: published, one run each, chosen on the test split (preprints.org 202510.2514)."
