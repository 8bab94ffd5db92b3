"""Method and backbone crossed: the effect of each within the other, and whether one depends on the other.

The study compares a ViT with LoRA to CNNs with a new head, so that method and backbone change together. Where the same
methods were applied to several backbones, their effects come apart.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from common.evaluation.comparison import Comparison, Series
from common.evaluation.folds import FoldSpread, Term, matched, spread_of_sum
from common.evaluation.kept_statistics import correct_images
from common.evaluation.labels import FAMILIES, backbone_names, family_of_backbone, has_random_weights
from common.evaluation.plan import validation_accuracy
from common.evaluation.significance import ALPHA, LEVEL, ONE_SEED, UNDECIDED, holm, simultaneous_levels
from common.evaluation.spread import Spread
from common.runs.methods import KINDS, METHODS

Cell = tuple[str, str]  # (backbone's timm name, kind of method)
BASE = next(iter(KINDS))  # the kind that the others are compared with
METHOD, BACKBONE, INTERACTION = "method", "backbone", "interaction"
POSITIVE, NEGATIVE, DEPENDS = "positive", "negative", "depends_on_scale"
SCALES = ("accuracy", "log_odds")
EFFECT_COLUMNS = (
    *("dataset", "effect", "within", "first", "other"),
    *(f"{scale}{end}" for scale in SCALES for end in ("", "_low", "_high", "_p_adjusted")),
    "verdict",
)


class Effect(NamedTuple):
    """A sum of cells' accuracies, each with its sign; those of one ``family`` are corrected for one another."""

    family: str
    within: str  # the backbone or method that stays the same; of an interaction the method whose gain is compared
    first: str  # backbone or method
    other: str  # what is subtracted
    terms: Mapping[Cell, int]


def crossed(comparison: Comparison) -> dict[Cell, Series]:
    """Return the models of a data set by backbone and kind of method, in the order of figures and of ``KINDS``.

    They are those trained on the most common number of images, of each backbone from its most common weights, of
    several in one cell that which is best on validation images; backbones with one method alone are left out. Empty
    where no two backbones have both the probe and a method that changes the backbone.
    """
    num_train = _most_common(series.num_train for series in comparison.series)
    alike = [series for series in comparison.series if series.num_train == num_train]
    cells: dict[Cell, Series] = {}
    for series in alike:
        backbone = series.runs[0].result.backbone
        if _weights(series) == _most_common(_weights(its) for its in alike if its.runs[0].result.backbone == backbone):
            cell = backbone, METHODS[series.method].kind
            cells[cell] = max(cells.get(cell, series), series, key=validation_accuracy)
    methods = Counter(backbone for backbone, _ in cells)
    order = [cell for cell in cells if methods[cell[0]] > 1]
    order.sort(key=lambda cell: (FAMILIES.index(family_of_backbone(cell[0])), [*KINDS].index(cell[1])))
    cells = {cell: cells[cell] for cell in order}
    return cells if any(effect.family == INTERACTION for effect in effects(cells)) else {}


def _most_common(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _weights(series: Series) -> str | None:
    """Return what tells the weights of a backbone before training; random ones differ by seed and are alike."""
    run = series.runs[0]
    return "random" if has_random_weights(run) else run.result.model.weights.sha256


def effects(cells: Mapping[Cell, Series]) -> Iterator[Effect]:
    """Yield each effect that ``cells`` give: of methods against the probe, and of the first backbone against others.

    The latter where both have one method, not heads of one layer and of two, which are of one kind. The interaction is
    (first, method - probe) - (other, method - probe), for each method that changes the backbone.
    """
    names = backbone_names(backbone for backbone, _ in cells)
    kinds = [kind for kind in KINDS if any(kind == its for _, its in cells)]
    first, others = next(iter(names), None), list(names)[1:]
    for backbone in names:
        for kind in kinds:
            terms = {(backbone, kind): 1, (backbone, BASE): -1}
            if len(terms) == 2 and terms.keys() <= cells.keys():
                yield Effect(METHOD, names[backbone], KINDS[kind], KINDS[BASE], terms)
    for kind in kinds:
        for other in others:
            terms = {(first, kind): 1, (other, kind): -1}
            if terms.keys() <= cells.keys() and _is_one_method(cells[first, kind], cells[other, kind]):
                yield Effect(BACKBONE, KINDS[kind], names[first], names[other], terms)
    for kind in kinds:
        for other in others:
            terms = {(first, kind): 1, (first, BASE): -1, (other, kind): -1, (other, BASE): 1}
            if len(terms) == 4 and terms.keys() <= cells.keys() and _changes_backbone(cells[first, kind]):
                yield Effect(INTERACTION, KINDS[kind], names[first], names[other], terms)


def _is_one_method(*cells: Series) -> bool:
    return len({METHODS[series.method].suffix for series in cells}) == 1  # LoRA has one for ViTs and for CNNs


def _changes_backbone(series: Series) -> bool:
    return not METHODS[series.method].reads_features


def effect_rows(comparison: Comparison) -> list[dict]:
    """Return what ``Uncertainty.effects`` says of one data set, an effect a row; nothing where nothing is crossed.

    Each family of effects is corrected by Holm's procedure, on each scale for itself. A sign is claimed where both
    scales show it.
    """
    cells = crossed(comparison)
    cells = dict(zip(cells, matched(*cells.values()), strict=False)) if cells else {}
    correct = {cell: [correct_images(run) for run in series.runs] for cell, series in cells.items()}
    its_effects = list(effects(cells)) if cells else []
    rows = []
    for family in (METHOD, BACKBONE, INTERACTION):
        members = [effect for effect in its_effects if effect.family == family]
        one_seed = [any(cells[cell].is_one_seed for cell in effect.terms) for effect in members]
        scales = {
            scale: _scale_rows(
                [effect_spread(effect, cells, correct, scale) for effect in members], one_seed, scale, family
            )
            for scale in SCALES
        }
        for effect, is_one_seed, *on_scales in zip(members, one_seed, *scales.values(), strict=True):
            about = {"effect": family, "within": effect.within, "first": effect.first, "other": effect.other}
            numbers = {name: value for row in on_scales for name, value in row.items()}
            rows.append({"dataset": comparison.dataset} | about | numbers | {"verdict": _word(numbers, is_one_seed)})
    return rows


def effect_spread(
    effect: Effect, cells: Mapping[Cell, Series], correct: Mapping[Cell, Sequence[np.ndarray]], scale: str
) -> Spread | FoldSpread:
    """Return the value of an effect on a scale with its spread over test images and seeds, or over folds.

    A cell is the mean over its seeds of the accuracy p, or of its log-odds, log(p / (1 - p)) with half an image added
    to the right and to the wrong ones (Anscombe 1956), so that p = 1 has one. The error over images is that of the
    mean of what each image adds to the effect, to first order (the delta method).

    Args:
        correct: of each cell and run (N,) bool; but for folds all have the same images.
    """
    terms, slopes, of_images = [], [], np.zeros(1)
    for cell, sign in effect.terms.items():
        values, steep = np.array([_on_scale(right, scale) for right in correct[cell]]).T  # (K,) each
        terms.append(Term(sign, cells[cell], values))
        slopes.append(steep.mean())
        if not cells[cell].spans_folds:
            of_images = of_images + sign * np.mean(steep[:, None] * np.stack(correct[cell]), axis=0)  # (N,)
    error = of_images.std() / math.sqrt(len(of_images))
    return spread_of_sum(terms, float(error), slope=float(np.mean(slopes)))


def _on_scale(right: np.ndarray, scale: str) -> tuple[float, float]:
    """Return the accuracy of ``right`` (N,) bool on a scale, and how steeply that rises with it."""
    if scale == "accuracy":
        return float(right.mean()), 1.0
    share = (right.sum() + 0.5) / (len(right) + 1)
    return math.log(share / (1 - share)), 1 / (share * (1 - share))


def _scale_rows(
    spreads: Sequence[Spread | FoldSpread], one_seed: Sequence[bool], scale: str, family: str
) -> list[dict]:
    """Return value, interval and p of each effect on one scale; those with one seed are not tested."""
    bound = math.inf if scale == "log_odds" else 2.0 if family == INTERACTION else 1.0  # of two accuracies, or of four
    tested = [place for place, alone in enumerate(one_seed) if not alone]
    p_values = [spreads[place].estimate.p for place in tested]
    levels, adjusted = (dict(zip(tested, its, strict=True)) for its in (simultaneous_levels(p_values), holm(p_values)))
    rows = []
    for place, spread in enumerate(spreads):
        low, high = spread.estimate.interval(levels.get(place, LEVEL), (-bound, bound))
        numbers = {"": spread.value, "_low": low, "_high": high, "_p_adjusted": adjusted.get(place, math.nan)}
        rows.append({f"{scale}{name}": value for name, value in numbers.items()})
    return rows


def _word(numbers: Mapping[str, float], one_seed: bool) -> str:
    """Return what both scales say together."""
    if one_seed:
        return ONE_SEED
    found = {math.copysign(1, numbers[scale]) for scale in SCALES if numbers[f"{scale}_p_adjusted"] < ALPHA}
    seen = sum(numbers[f"{scale}_p_adjusted"] < ALPHA for scale in SCALES)
    if not seen:
        return UNDECIDED
    if seen < len(SCALES) or len(found) > 1:
        return DEPENDS
    return POSITIVE if found == {1.0} else NEGATIVE
