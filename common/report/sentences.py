"""Which model is better, in words that the interval of the paired difference decides and means alone never do."""

from collections.abc import Sequence

from common.evaluation.comparison import Comparison, Series
from common.evaluation.formatting import interval, signed
from common.evaluation.significance import NO_DIFFERENCE, Estimate, verdict
from common.evaluation.uncertainty import Difference


def verdict_sentences(comparisons: Sequence[Comparison]) -> list[str]:
    """Return a sentence on each pair of models, by accuracy: the better one first, difference, interval, its basis."""
    sentences = []
    for one in comparisons:
        sentences += [f"{one.dataset}: {_sentence(one, difference)}" for difference in one.evidence.differences]
        if not one.evidence.differences:
            why = "a single model" if len(one.series) == 1 else "no two models with equally many training images"
            sentences.append(f"{one.dataset}: nothing to compare, {why}")
    return [" ".join(sentence.split()) for sentence in sentences]


def pair(one: Comparison, difference: Difference) -> tuple[Series, Series]:
    """Return the two models of ``difference``."""
    by_name = {series.name: series for series in one.series}
    return by_name[difference.ours], by_name[difference.theirs]


def seeds_of(ours: Series, theirs: Series) -> str:
    """Return on how many seeds a difference rests: "3 seeds", "one seed", or "one seed and 3 seeds"."""
    counts = ["one seed" if count == 1 else f"{count} seeds" for count in (len(ours.runs), len(theirs.runs))]
    return counts[0] if counts[0] == counts[1] else " and ".join(counts)


def remark(ours: Series, theirs: Series) -> str:
    """Say where a verdict may be the learning rate's: models for which one rate was tried, published or not; or "".

    A run is tuned when each of its seeds chose among several ``trials`` on validation images.
    """
    untuned = [one.label for one in (ours, theirs) if any(len(run.result["trials"]) < 2 for run in one.runs)]
    if not untuned:
        return ""
    return "one learning rate, not tuned" + (f", for {untuned[0]}" if len(untuned) == 1 else "")


def _sentence(one: Comparison, difference: Difference) -> str:
    ours, theirs = pair(one, difference)
    accuracy = difference.estimates["accuracy"]
    word = verdict(accuracy)
    if word == "worse":
        ours, theirs = theirs, ours
        accuracy = Estimate(-accuracy.value, -accuracy.high, -accuracy.low)
    claim = f"{NO_DIFFERENCE} between {ours.label} and {theirs.label}"
    if word != NO_DIFFERENCE:
        claim = f"{ours.label} is better than {theirs.label}"
    basis = [f"95 % interval {interval(accuracy)}"]
    basis.append(f"{seeds_of(ours, theirs)}, {one.data['num_test']:,} test images")
    basis += [note for note in [remark(ours, theirs)] if note]
    return f"{claim}: accuracy {signed(accuracy.value)} points ({'; '.join(basis)})"
