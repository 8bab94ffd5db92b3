"""Which model is better, in words that the interval of the paired difference decides and means alone never do."""

import pandas as pd

from common.evaluation.comparison import Comparison
from common.evaluation.formatting import interval, signed
from common.evaluation.frames import Frames
from common.evaluation.significance import NO_DIFFERENCE, Estimate
from common.evaluation.uncertainty import Uncertainty
from common.runs.convergence import NOT_CONVERGED


def named_pairs(frames: Frames, uncertainty: Uncertainty) -> pd.DataFrame:
    """Return ``uncertainty.pairs`` with run, label, number of seeds and of test images of a and b, and a ``remark``.

    Their columns end in ``_a`` and ``_b``. A remark says where a verdict may be that of a learning
    rate or of too short a training.
    """
    models = frames.runs.groupby(["dataset", "run"], sort=False, as_index=False).agg(
        label=("label", "first"),
        seeds=("seed", "size"),
        num_test=("num_test", "first"),
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
    """Return a sentence on each of ``named_pairs`` in ``comparison``, by accuracy: the better model first."""
    its_pairs = pairs[(pairs.dataset == comparison.dataset) & (pairs.metric == "accuracy")]
    if its_pairs.empty:
        alone = len(comparison.series) == 1
        what = "a single model" if alone else "no two models with equally many training images"
        return [f"nothing to compare, {what}"]
    return [" ".join(_sentence(pair).split()) for pair in its_pairs.itertuples()]


def seeds_in_words(seeds_a: int, seeds_b: int) -> str:
    """Return on how many seeds a difference rests: "3 seeds", "one seed", or "one seed and 3 seeds"."""
    words = ["one seed" if count == 1 else f"{count} seeds" for count in (seeds_a, seeds_b)]
    return words[0] if seeds_a == seeds_b else " and ".join(words)


def _remark(pair) -> str:
    """Say, for either model or both, where the verdict may be that of a learning rate or of too short a training."""
    a, b = ({name: getattr(pair, f"{name}_{letter}") for name in _DOUBTS} for letter in "ab")
    remarks = []
    for name, (holds, words) in _DOUBTS.items():
        labels = [label for label, value in ((pair.label_a, a[name]), (pair.label_b, b[name])) if holds(value)]
        if labels:
            text = words.format(signed(max(value for value in (a[name], b[name]) if holds(value))))
            remarks.append(text + (f", for {labels[0]}" if len(labels) == 1 else ""))
    return "; ".join(remarks)


# A column of a model's runs: when it casts a doubt, and in which words.
_DOUBTS = {
    "is_tuned": (lambda is_tuned: not is_tuned, "one learning rate, not tuned"),
    "rate_is_at_end": (bool, "the best learning rate is at the end of those tried"),
    "ends_at_best": (bool, "the last epoch is the best"),
    "gain": (lambda gain: gain > NOT_CONVERGED, "not converged, twice the epochs add {} points on validation"),
}


def _sentence(pair) -> str:
    better, other = pair.label_a, pair.label_b
    seeds = [pair.seeds_a, pair.seeds_b]
    difference = Estimate(pair.difference, pair.low, pair.high)
    if pair.verdict == "worse":
        better, other, seeds = other, better, seeds[::-1]
        difference = Estimate(-difference.value, -difference.high, -difference.low)
    if pair.verdict == NO_DIFFERENCE:
        claim = f"{NO_DIFFERENCE} between {better} and {other}"
    else:
        claim = f"{better} is better than {other}"
    basis = [f"95 % interval {interval(difference)}", f"{seeds_in_words(*seeds)}, {pair.num_test_a:,} test images"]
    basis += [pair.remark] if pair.remark else []
    return f"{claim}: accuracy {signed(difference.value)} points ({'; '.join(basis)})"
