"""Which model is better, in words that the interval of the paired difference decides and means alone never do."""

import pandas as pd

from common.evaluation.comparison import Comparison
from common.evaluation.formatting import interval, signed
from common.evaluation.frames import Frames
from common.evaluation.significance import NO_DIFFERENCE, Estimate
from common.evaluation.uncertainty import Uncertainty


def named_pairs(frames: Frames, uncertainty: Uncertainty) -> pd.DataFrame:
    """Return ``uncertainty.pairs`` with run, label, number of seeds and of test images of a and b, and a ``remark``.

    Their columns end in ``_a`` and ``_b``. A remark says where a verdict may be the learning rate's.
    """
    models = frames.runs.groupby(["dataset", "run"], sort=False, as_index=False).agg(
        label=("label", "first"), seeds=("seed", "size"), trials=("num_trials", "min"), num_test=("num_test", "first")
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
        return [
            f"nothing to compare, {'a single model' if alone else 'no two models with equally many training images'}"
        ]
    return [" ".join(_sentence(pair).split()) for pair in its_pairs.itertuples()]


def seeds_in_words(seeds_a: int, seeds_b: int) -> str:
    """Return on how many seeds a difference rests: "3 seeds", "one seed", or "one seed and 3 seeds"."""
    words = ["one seed" if count == 1 else f"{count} seeds" for count in (seeds_a, seeds_b)]
    return words[0] if seeds_a == seeds_b else " and ".join(words)


def _remark(pair) -> str:
    """Name the models for which one learning rate was tried, published or not, in at least one of their seeds."""
    untuned = [label for label, trials in ((pair.label_a, pair.trials_a), (pair.label_b, pair.trials_b)) if trials < 2]
    if not untuned:
        return ""
    return "one learning rate, not tuned" + (f", for {untuned[0]}" if len(untuned) == 1 else "")


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
