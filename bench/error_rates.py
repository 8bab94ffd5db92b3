"""How often a verdict is wrong, and what it can find, by simulation, beside a percentile bootstrap.

    python bench/error_rates.py                # prints the tables of docs/statistics.md

Normal model: K seeds of each of several methods, tested on the same images; score = method + seed effect + image
effect. Methods are equal, so that each "better" is a false one; the draws are seeded. Expected: the tables that
docs/statistics.md has.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.evaluation.power import POWER
from common.evaluation.significance import ALPHA, holm
from common.evaluation.spread import freedom

DRAWS, BOOTSTRAP_DRAWS, RESAMPLES = 40_000, 4_000, 1_000


@dataclass(frozen=True)
class Scenario:
    """Equal methods, each with its seeds and their standard deviation; no seeds: deterministic."""

    seeds: tuple[int, ...]
    spreads: tuple[float, ...]
    image_spread: float  # the standard deviation over test images of a difference between two methods


PAIRS = (
    Scenario((3, 3), (0.009, 0.009), 0.0035),
    Scenario((3, 3), (0.009, 0.002), 0.0025),
    Scenario((3, 3), (0.039, 0.005), 0.008),
    Scenario((5, 5), (0.009, 0.002), 0.0025),
    Scenario((5, 5), (0.039, 0.005), 0.008),
    Scenario((3, 0), (0.009, 0.0), 0.0025),
    Scenario((5, 0), (0.009, 0.0), 0.0025),
    Scenario((3, 5), (0.009, 0.002), 0.0025),
    Scenario((2, 2), (0.02, 0.0005), 0.0),
    Scenario((2, 2), (0.02, 0.002), 0.002),
)
DATA_SETS = (  # every pair of their methods is compared: 3 and 6 contrasts
    Scenario((3,) * 3, (0.009, 0.008, 0.002), 0.0025),
    Scenario((3,) * 4, (0.005,) * 4, 0.0025),
    Scenario((5,) * 3, (0.009, 0.008, 0.002), 0.0025),
    Scenario((5,) * 4, (0.005,) * 4, 0.0025),
    Scenario((3, 3, 0), (0.009, 0.002, 0.0), 0.0025),
    Scenario((5, 5, 5, 0), (0.009, 0.005, 0.002, 0.0), 0.0025),
)


@dataclass(frozen=True)
class Drawn:
    """The scores of one method in D simulated studies: of each seed (D, K), and what the test images add (D,)."""

    scores: np.ndarray
    image_effect: np.ndarray
    count: int  # of seeds, 0 where deterministic

    @property
    def mean(self) -> np.ndarray:
        return self.scores.mean(axis=1) + self.image_effect


def draw(scenario: Scenario, draws: int, rng: np.random.Generator) -> list[Drawn]:
    """Return the methods of ``draws`` studies."""
    return [
        Drawn(
            rng.normal(0, spread, (draws, max(count, 1))),
            rng.normal(0, scenario.image_spread / 2**0.5, draws),
            count,
        )
        for count, spread in zip(scenario.seeds, scenario.spreads, strict=True)
    ]


def p_values(methods: Sequence[Drawn], image_spread: float) -> np.ndarray:
    """Return the p (D,) of a difference between two methods, or of one method's mean."""
    value, error, degrees = _estimates(methods, image_spread)
    return 2 * stdtr(degrees, -np.abs(value) / error)


def holm_rejects(scenario: Scenario, methods: Sequence[Drawn]) -> np.ndarray:
    """Return which studies (D,) call a method better, Holm's correction being over all pairs."""
    pairs = [p_values(pair, scenario.image_spread) for pair in combinations(methods, 2)]
    return np.array([min(holm(study)) for study in np.stack(pairs, axis=1)]) < ALPHA


def detectable(scenario: Scenario, rng: np.random.Generator, *, contrasts: int = 1) -> float:
    """Return the true difference between two methods that is found 80 times in 100, in the first step of Holm's."""
    value, error, degrees = _estimates(draw(scenario, DRAWS, rng), scenario.image_spread)
    return float(np.quantile(stdtrit(degrees, 1 - ALPHA / contrasts / 2) * error - value, POWER))


def _estimates(methods: Sequence[Drawn], image_spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    several = [method for method in methods if method.count > 1]
    variances = [method.scores.var(axis=1, ddof=1) / method.count for method in several]
    degrees = freedom(image_spread**2, variances, [method.count for method in several])
    value = methods[0].mean - (methods[1].mean if len(methods) == 2 else 0)
    return value, np.sqrt(image_spread**2 + sum(variances)), degrees


def bootstrap_reach(methods: Sequence[Drawn], image_spread: float, rng: np.random.Generator) -> np.ndarray:
    """Return how far the intervals of a percentile bootstrap reach below and above the value, (2, D).

    Percentiles of draws of images and of K - 1 of K seeds, stretched by Student's t over the normal quantile.
    """
    reach = np.empty((2, len(methods[0].scores)))
    for study in range(reach.shape[1]):
        draws = rng.normal(0, image_spread, RESAMPLES)
        variances = []
        for sign, method in zip((1, -1), methods, strict=False):
            values = method.scores[study]
            drawn = rng.integers(len(values), size=(max(1, len(values) - 1), RESAMPLES))
            draws += sign * (values[drawn].mean(axis=0) - values.mean())
            if method.count > 1:
                variances.append((values.var(ddof=1) / len(values)) ** 2 / (len(values) - 1))
        fewest = min(method.count for method in methods if method.count) - 1
        stretch = stdtrit(max(fewest, draws.var() ** 2 / sum(variances)), 1 - ALPHA / 2) / ndtri(1 - ALPHA / 2)
        reach[:, study] = stretch * np.abs(np.quantile(draws, [ALPHA / 2, 1 - ALPHA / 2]))
    return reach


def _bootstrap_excludes_zero(methods: Sequence[Drawn], image_spread: float, rng: np.random.Generator) -> np.ndarray:
    value = methods[0].mean - (methods[1].mean if len(methods) == 2 else 0)
    below, above = bootstrap_reach(methods, image_spread, rng)
    return (value - below > 0) | (value + above < 0)


def _pair_rows(rng: np.random.Generator) -> Iterator[list[str]]:
    yield ["seeds", "sd over seeds", "sd over images", "percentile bootstrap", "here"]
    for scenario in PAIRS:
        bootstrap = _bootstrap_excludes_zero(draw(scenario, BOOTSTRAP_DRAWS, rng), scenario.image_spread, rng)
        here = p_values(draw(scenario, DRAWS, rng), scenario.image_spread) < ALPHA
        yield [*_names(scenario), _percent(bootstrap), _percent(here)]


def _data_set_rows(rng: np.random.Generator) -> Iterator[list[str]]:
    yield ["seeds", "sd over seeds", "sd over images", "contrasts", "percentile bootstrap", "here, after Holm"]
    for scenario in DATA_SETS:
        pairs = list(combinations(draw(scenario, BOOTSTRAP_DRAWS, rng), 2))
        bootstrap = np.any([_bootstrap_excludes_zero(pair, scenario.image_spread, rng) for pair in pairs], axis=0)
        here = holm_rejects(scenario, draw(scenario, DRAWS, rng))
        yield [*_names(scenario), str(len(pairs)), _percent(bootstrap), _percent(here)]


def _coverage_rows(rng: np.random.Generator) -> Iterator[list[str]]:
    yield ["seeds", "sd over seeds", "sd over images", "percentile bootstrap", "here"]
    for count in (2, 3, 5):
        for image_spread in (0.0025, 0.009):
            scenario = Scenario((count,), (0.009,), image_spread)
            alone = replace(scenario, image_spread=image_spread * 2**0.5)  # of a method, not of a difference
            means = [draw(alone, draws, rng) for draws in (BOOTSTRAP_DRAWS, DRAWS)]
            bootstrap = ~_bootstrap_excludes_zero(means[0], image_spread, rng)
            here = p_values(means[1], image_spread) >= ALPHA
            yield [*_names(scenario), _percent(bootstrap), _percent(here)]


def _power_rows(rng: np.random.Generator) -> Iterator[list[str]]:
    yield ["seeds", "percentile bootstrap", "here, one contrast", "one of 3", "one of 6"]
    for count in (2, 3, 5, 10):
        scenario = Scenario((count, count), (0.009, 0.002), 0.0025)
        methods = draw(scenario, BOOTSTRAP_DRAWS, rng)
        below = bootstrap_reach(methods, scenario.image_spread, rng)[0]
        bootstrap = np.quantile(below - (methods[0].mean - methods[1].mean), POWER)
        here = [detectable(scenario, rng, contrasts=contrasts) for contrasts in (1, 3, 6)]
        yield [str(count), *(f"{100 * points:.1f}" for points in (bootstrap, *here))]


def _names(scenario: Scenario) -> list[str]:
    seeds = [str(count) if count else "deterministic" for count in scenario.seeds]
    spreads = [f"{spread:g}" for spread in scenario.spreads]
    return [", ".join(seeds), ", ".join(spreads), f"{scenario.image_spread:g}"]


def _percent(events: np.ndarray) -> str:
    return f"{100 * events.mean():.1f} %"


def main() -> None:
    rng = np.random.default_rng(0)
    for title, rows in (
        ("False verdicts of one pair", _pair_rows(rng)),
        ("Data sets with a false verdict", _data_set_rows(rng)),
        ("Coverage of a mean's 95 % interval", _coverage_rows(rng)),
        ("Points found with 80 % power (sd over seeds 0.009, 0.002, over images 0.0025)", _power_rows(rng)),
    ):
        header, *body = rows
        print(f"\n{title}\n", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", sep="\n")
        print(*(f"| {' | '.join(row)} |" for row in body), sep="\n", flush=True)


if __name__ == "__main__":
    main()
