"""Which model is better, in words that follow from the verdict on the paired difference, never from means alone."""

import numpy as np
import pandas as pd

from common.evaluation.comparison import Comparison
from common.evaluation.formatting import interval, p_text, points, signed
from common.evaluation.frames import Frames
from common.evaluation.power import MOST_SEEDS
from common.evaluation.significance import BETTER, EQUIVALENT, ONE_SEED, UNDECIDED, WITHIN_MARGIN
from common.evaluation.uncertainty import Uncertainty
from common.runs.convergence import NOT_CONVERGED


def named_pairs(frames: Frames, uncertainty: Uncertainty) -> pd.DataFrame:
    """Return ``uncertainty.pairs`` with what is known of a and b (label, folds ...) and a ``remark``.

    Their columns end in ``_a`` and ``_b``. A remark says where a verdict may be that of a learning rate or of too short
    a training, and which seeds were added to the plan.
    """
    models = frames.runs.groupby(["dataset", "run"], sort=False, as_index=False).agg(
        label=("label", "first"),
        folds=("folds", "first"),
        is_tuned=("is_tuned", "all"),
        rate_is_at_end=("rate_is_at_end", "any"),
        ends_at_best=("ends_at_best", "all"),
        gain=("gain", "max"),
    )
    pairs = uncertainty.pairs.merge(models, how="left", left_on=["dataset", "a"], right_on=["dataset", "run"])
    pairs = pairs.merge(
        models, how="left", left_on=["dataset", "b"], right_on=["dataset", "run"], suffixes=("_a", "_b")
    )
    return pairs.assign(remark=[_remark(pair) for pair in pairs.itertuples()])


def verdict_sentences(comparison: Comparison, pairs: pd.DataFrame) -> list[str]:
    """Return a sentence on each declared pair of ``named_pairs`` in ``comparison``, by accuracy."""
    its_pairs = pairs[
        (pairs.dataset == comparison.dataset) & (pairs.metric == "accuracy") & pairs.declared.astype(bool)
    ]
    if its_pairs.empty:
        alone = len(comparison.series) == 1
        what = "a single model" if alone else "no two models with equally many training images"
        return [f"nothing to compare, {what}"]
    return [" ".join(_sentence(pair).split()) for pair in its_pairs.itertuples()]


def families_sentence(pairs: pd.DataFrame) -> str:
    """Return of how many pairs something is said and what is corrected for what; "" where no data set has two."""
    counts = pairs[pairs.metric == "accuracy"].groupby("dataset", sort=False).declared.agg(["sum", "size"])
    if counts.empty or counts["size"].max() == 1:
        return ""
    shares = ", ".join(f"{dataset} {row['sum']} of {row['size']} pairs" for dataset, row in counts.iterrows())
    others = "; of the other pairs, uncorrected in verdicts.csv, nothing is claimed"
    return (
        f"declared: {shares}; p and intervals are corrected for the declared pairs of one data set and metric (Holm), "
        f"not across data sets{others * bool((counts['sum'] < counts['size']).any())}"
    )


def verdict_in_words(pair, first: str = "A", second: str = "B") -> str:
    """Return what the verdict of a row of ``Uncertainty.pairs`` says of the models a and b, named as given."""
    better, other = (second, first) if pair.winner == "b" else (first, second)
    return {
        BETTER: f"{better} is better than {other}",
        WITHIN_MARGIN: f"{better} is better than {other}, by less than {points(pair.margin)}",
        EQUIVALENT: f"{first} and {second} are equivalent within {points(pair.margin)}",
        UNDECIDED: f"undecided between {first} and {second}",
        ONE_SEED: f"undecided: one {pair.repeat}, between {first} and {second}",
    }[pair.verdict]


def seeds_in_words(pair, sign: int = 1) -> str:
    """Return on what a and b rest, b first where ``sign`` is -1: "3 seeds", "5 seeds against a deterministic run"."""
    if pair.deterministic_a and pair.deterministic_b:
        return "two deterministic runs"
    words = [
        "a deterministic run" if is_fixed else f"one {pair.repeat}" if count == 1 else f"{count} {pair.repeat}s"
        for is_fixed, count in ((pair.deterministic_a, pair.seeds_a), (pair.deterministic_b, pair.seeds_b))
    ]
    return " against ".join(dict.fromkeys(words[::sign]))


def _remark(pair) -> str:
    """Say, for either model or both, where the verdict may be that of a learning rate or of too short a training."""
    a, b = ({name: getattr(pair, f"{name}_{letter}") for name in _DOUBTS} for letter in "ab")
    remarks = []
    for name, (holds, words) in _DOUBTS.items():
        labels = [label for label, value in ((pair.label_a, a[name]), (pair.label_b, b[name])) if holds(value)]
        if labels:
            text = words.format(signed(max(value for value in (a[name], b[name]) if holds(value))))
            remarks.append(text + (f", for {labels[0]}" if len(labels) == 1 else ""))
    for label, count, added in (
        (pair.label_a, pair.seeds_a, pair.unplanned_a),
        (pair.label_b, pair.seeds_b, pair.unplanned_b),
    ):
        if added:
            remarks.append(
                f"{count - added} {pair.repeat}s planned, {added} added after a first look, for which the interval "
                f"does not correct, for {label}"
            )
    return "; ".join(remarks)


# A column of a model's runs: when it casts a doubt, and in which words.
_DOUBTS = {
    "is_tuned": (lambda is_tuned: not is_tuned, "one learning rate, not tuned"),
    "rate_is_at_end": (bool, "the best learning rate is at the end of those tried"),
    "ends_at_best": (bool, "the last epoch is the best"),
    "gain": (lambda gain: gain > NOT_CONVERGED, "not converged, twice the epochs add {} points on validation"),
}


def _sentence(pair) -> str:
    """Return the claim, the better model first, what it rests on, and of an undecided pair what it could show."""
    sign = -1 if pair.winner == "b" else 1
    claim = verdict_in_words(pair, pair.label_a, pair.label_b)
    basis = [_interval_in_words(pair, sign), f"{seeds_in_words(pair, sign)}, {pair.num_test:,} test images"]
    basis += [pair.remark] if pair.remark else []
    return f"{claim}: accuracy {signed(sign * pair.difference)} points ({'; '.join(basis)}){_power_in_words(pair)}"


def _interval_in_words(pair, sign: int) -> str:
    """Return the interval that the verdict follows from, turned round where ``sign`` is -1, and its p."""
    if pair.verdict == EQUIVALENT:
        return f"90 % interval {interval(pair.low_90, pair.high_90)}"
    low, high = sorted((sign * pair.low, sign * pair.high))
    if pair.verdict == ONE_SEED:
        return f"95 % interval {interval(low, high)} over the test images alone"
    name, p = ("95 % interval", "p") if pair.family == 1 else ("simultaneous 95 % interval", "Holm's p")
    return f"{name} {interval(low, high)}, {p} {p_text(pair.p_adjusted)}"


def _power_in_words(pair) -> str:
    """Return what an undecided pair could have shown, and what its margin would need."""
    if pair.verdict != UNDECIDED:
        return ""
    shown = f"; with 80 % power this shows {100 * pair.detectable:.1f} points"
    if not np.isnan(pair.images_needed):
        limit, images = 100 * pair.detectable_by_images, float(f"{pair.images_needed:.2g}")
        if pair.repeat == "fold":
            return f"{shown}; about {images:,.0f} images would be needed for {points(pair.margin)}"
        return (
            f"{shown}, and more {pair.repeat}s alone do not reach {points(pair.margin)}: {pair.num_test:,} test images "
            f"show nothing under {limit:.1f}, about {images:,.0f} would be needed"
        )
    if np.isnan(pair.seeds_needed):
        return shown
    seeds = f"about {pair.seeds_needed:.0f}" if np.isfinite(pair.seeds_needed) else f"more than {MOST_SEEDS}"
    return f"{shown}; {seeds} {pair.repeat}s would be needed for {points(pair.margin)}"
