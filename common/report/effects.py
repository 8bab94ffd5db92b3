"""What is said of method and backbone where they are crossed: sentences, and the texts of a table."""

import pandas as pd

from common.evaluation.factorial import BACKBONE, DEPENDS, INTERACTION, METHOD, NEGATIVE, POSITIVE
from common.evaluation.formatting import interval, p_text, signed
from common.evaluation.significance import ONE_SEED, UNDECIDED

NOT_ARCHITECTURES = (
    "method and backbone are what is compared: one backbone of a kind, pretrained in its own way, is no architecture"
)
_VERDICTS = {
    POSITIVE: "above 0",
    NEGATIVE: "below 0",
    DEPENDS: "depends on the scale",
    UNDECIDED: "undecided",
    ONE_SEED: "one seed",
}
_GAINS = {
    POSITIVE: "the gain of {method} over the probe is larger on {first} than on {other}",
    NEGATIVE: "the gain of {method} over the probe is smaller on {first} than on {other}",
    DEPENDS: "whether the gain of {method} over the probe is larger on {first} or {other} depends on the scale",
    UNDECIDED: "undecided whether the gain of {method} over the probe is larger on {first} or {other}",
    ONE_SEED: "undecided, with one seed, whether the gain of {method} over the probe is larger on {first} or {other}",
}


def effect_sentences(dataset: str, effects: pd.DataFrame) -> list[str]:
    """Return sentences on the rows of ``Uncertainty.effects`` of ``dataset``; none where nothing is crossed there."""
    own = effects[effects.dataset == dataset]
    if own.empty:
        return []
    lines = [
        f"{opening} {within}: " + "; ".join(_clause(row) for row in rows.itertuples())
        for family, opening in ((METHOD, "effect of the method on"), (BACKBONE, "effect of the backbone with"))
        for within, rows in own[own.effect == family].groupby("within", sort=False)
    ]
    lines += [_interaction(row) for row in own[own.effect == INTERACTION].itertuples()]
    return [*lines, NOT_ARCHITECTURES]


def _clause(row) -> str:
    remark = "" if row.verdict in (POSITIVE, NEGATIVE) else f", {_VERDICTS[row.verdict]}"
    return f"{row.first} minus {row.other} {_points(row)}{remark}"


def _points(row) -> str:
    return f"{signed(row.accuracy)} points ({interval(row.accuracy_low, row.accuracy_high)})"


def _interaction(row) -> str:
    claim = _GAINS[row.verdict].format(method=row.within, first=row.first, other=row.other)
    log_odds = f"{row.log_odds:+.2f} ({row.log_odds_low:+.2f} to {row.log_odds_high:+.2f}) in log-odds of accuracy"
    return f"interaction: {claim}: {_points(row)}, {log_odds}"


def effect_texts(effects: pd.DataFrame) -> pd.DataFrame:
    """Return a row of texts an effect: its value and interval on both scales, and what both say together."""
    rows = list(effects.itertuples())
    return pd.DataFrame(
        {
            "Data set": effects.dataset.tolist(),
            "Effect of": effects.effect.tolist(),
            "Within": effects.within.tolist(),
            "Difference": [f"{row.first} minus {row.other}" for row in rows],
            "Accuracy (points)": [
                f"{signed(row.accuracy)} [{interval(row.accuracy_low, row.accuracy_high).replace(' to ', ', ')}]"
                for row in rows
            ],
            "Log-odds": [f"{row.log_odds:+.2f} [{row.log_odds_low:+.2f}, {row.log_odds_high:+.2f}]" for row in rows],
            "Holm's p": [f"{p_text(row.accuracy_p_adjusted)}, {p_text(row.log_odds_p_adjusted)}" for row in rows],
            "Sign": [_VERDICTS[row.verdict] for row in rows],
        }
    )
