"""Method and backbone crossed: the effects and their spread, what is claimed of them, said, written and drawn."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from fake_results import CROSSED, MODELS, fake_run
from scipy import stats

import plot_results
import reproduce
from common import figures
from common.evaluation import uncertainty as uncertainties
from common.evaluation.comparison import Comparison, compare
from common.evaluation.factorial import (
    BACKBONE,
    DEPENDS,
    INTERACTION,
    METHOD,
    NEGATIVE,
    POSITIVE,
    SCALES,
    crossed,
    effect_rows,
    effect_spread,
    effects,
)
from common.evaluation.frames import frames_of
from common.evaluation.significance import ONE_SEED, UNDECIDED, holm
from common.evaluation.uncertainty import compute_uncertainty
from common.figures import FIGURES, style
from common.figures.method_and_backbone import HEADINGS
from common.report.effects import NOT_ARCHITECTURES, effect_sentences, effect_texts
from common.report.tables import write_effects
from common.runs.methods import METHODS
from common.runs.predictions import read_predictions
from common.runs.result import Run, find_runs, write_result

VIT, RESNET = "vit_base_patch16_224.augreg_in1k", "resnet50.tv2_in1k"
LORA, HEAD, _, VIT_HEAD, *_ = MODELS
PROBE, FULL, CNN_PROBE, CNN_LORA, CNN_FULL = CROSSED
# LoRA adds 12 points to one probe and 2.2 to the other, but equally much in log-odds: 2.2 is most of what was left.
CEILING = {PROBE: 0.830, LORA: 0.950, CNN_PROBE: 0.970, CNN_LORA: 0.992}
OPEN = {PROBE: 0.500, LORA: 0.700, CNN_PROBE: 0.550, CNN_LORA: 0.600}


def _write(
    results: Path, accuracies: dict[str, float], *, num_test: int = 1_000, spread: int = 1, seeds=(0, 1, 2), **more
) -> Path:
    """Write runs with exactly these mean accuracies; an image is easy or hard for all, seeds differ by ``spread``."""
    for name, accuracy in accuracies.items():
        for seed in (0,) if name.endswith("probe") else seeds:
            count = round(accuracy * num_test) + (spread * (seed - 1) if not name.endswith("probe") else 0)
            fake_run(results, name, seed=seed, num_test=num_test, right=np.arange(num_test) < count, **more)
    return results


def _compare(results: Path) -> Comparison:
    runs, problems = find_runs(results)
    assert not problems
    (comparison,), _ = compare(runs, {})
    return comparison


def _rows(results: Path) -> pd.DataFrame:
    return pd.DataFrame(effect_rows(_compare(results)))


def _logit(right: float, wrong: float) -> float:
    return math.log((right + 0.5) / (wrong + 0.5))


def _right(run: Run) -> np.ndarray:
    predictions = read_predictions(run.folder, run.result)
    return predictions.logits.argmax(axis=1) == predictions.labels


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A ViT and a CNN with probe, LoRA and full fine-tuning, and heads of one and of two layers; three seeds."""
    accuracies = CEILING | {FULL: 0.955, CNN_FULL: 0.970, VIT_HEAD: 0.84, HEAD: 0.97}
    return _write(tmp_path_factory.mktemp("study"), accuracies)


# The numbers


def test_effects_are_sums_of_cells_as_computed_by_hand(tmp_path):
    accuracies = {PROBE: 0.80, LORA: 0.92, CNN_PROBE: 0.95, CNN_LORA: 0.97}
    rows = _rows(_write(tmp_path, accuracies, num_test=100, spread=0)).set_index(["effect", "within"])
    gain, other_gain = _logit(92, 8) - _logit(80, 20), _logit(97, 3) - _logit(95, 5)
    expected = {
        (METHOD, "ViT-B/16"): (0.12, gain),
        (METHOD, "ResNet50"): (0.02, other_gain),
        (BACKBONE, "probe"): (-0.15, _logit(80, 20) - _logit(95, 5)),
        (BACKBONE, "LoRA"): (-0.05, _logit(92, 8) - _logit(97, 3)),
        (INTERACTION, "LoRA"): (0.10, gain - other_gain),
    }
    assert list(rows.index) == list(expected)
    for key, (accuracy, log_odds) in expected.items():
        assert rows.loc[key, "accuracy"] == pytest.approx(accuracy, abs=1e-12)
        assert rows.loc[key, "log_odds"] == pytest.approx(log_odds, abs=1e-12)
    assert rows.loc[INTERACTION, "log_odds"].item() == pytest.approx(0.5465, abs=1e-4)


def test_a_cell_is_of_the_weights_that_most_runs_of_its_backbone_started_from(tmp_path):
    _write(tmp_path, OPEN)
    scratch = {"source": "random", "folder_name": f"{LORA}-scratch"}
    fake_run(tmp_path, LORA, num_test=1_000, right=np.arange(1_000) < 900, **scratch)
    cells = crossed(_compare(tmp_path))
    assert cells[VIT, "lora"].name == LORA and len(cells) == 4


def _cells(seeds: int, num_test: int = 600):
    """Return cells whose runs share easy and hard images; the probe, which is deterministic, has one run."""
    rng = np.random.default_rng(0)
    easiness, cells, correct = rng.normal(size=num_test), {}, {}
    for backbone, kind, level in (
        (VIT, "probe", 0.2),
        (VIT, "lora", 1.0),
        (RESNET, "probe", 0.5),
        (RESNET, "lora", 0.8),
    ):
        is_probe = kind == "probe"
        cells[backbone, kind] = SimpleNamespace(
            spans_folds=False,
            has_draws=False,
            is_deterministic=is_probe,
            method={"probe": "head_probe"}.get(kind, kind),
            runs=[SimpleNamespace(result=SimpleNamespace(data=SimpleNamespace(num_test=num_test)))],
        )
        runs = range(1 if is_probe else seeds)
        correct[backbone, kind] = [easiness + 0.8 * rng.normal(size=num_test) > -level + 0.05 * run for run in runs]
    return cells, correct


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("family", [METHOD, BACKBONE, INTERACTION])
def test_the_error_over_images_is_that_of_a_plain_bootstrap(family, scale):
    cells, correct = _cells(seeds=3)
    effect = next(effect for effect in effects(cells) if effect.family == family)
    counts = np.random.default_rng(1).multinomial(600, np.full(600, 1 / 600), size=5_000)  # (B, N)

    def value(weights):
        """The effect on images that count as often as ``weights`` (..., N) say."""
        total = 0.0
        for cell, sign in effect.terms.items():
            right = np.stack([weights @ run for run in correct[cell]])
            on_scale = right / 600 if scale == "accuracy" else np.log((right + 0.5) / (600 - right + 0.5))
            total += sign * on_scale.mean(axis=0)
        return total

    spread = effect_spread(effect, cells, correct, scale)
    assert spread.value == pytest.approx(value(np.ones(600)))
    assert spread.image_error == pytest.approx(value(counts).std(), rel=0.05)  # 5,000 draws leave 1 % uncertain


@pytest.mark.parametrize("scale", SCALES)
def test_the_spread_of_the_seeds_is_that_of_each_cell_that_is_random(scale):
    cells, correct = _cells(seeds=3)
    interaction = list(effects(cells))[-1]
    spread = effect_spread(interaction, cells, correct, scale)
    variances = [
        np.var(
            [run.mean() if scale == "accuracy" else _logit(run.sum(), (~run).sum()) for run in correct[cell]], ddof=1
        )
        for cell in interaction.terms
        if cell[1] != "probe"
    ]
    assert spread.estimate.standard_error**2 == pytest.approx(spread.image_error**2 + sum(variances) / 3)


@pytest.mark.parametrize("scale", SCALES)
def test_cells_without_a_disagreement_still_leave_an_error(scale):
    cells, _ = _cells(seeds=2, num_test=200)
    correct = {cell: [np.ones(200, bool)] * 2 for cell in cells}
    spread = effect_spread(list(effects(cells))[-1], cells, correct, scale)
    slope = 1.0 if scale == "accuracy" else 1 / (200.5 / 201 * 0.5 / 201)
    assert spread.value == 0 and spread.image_error == pytest.approx(math.sqrt(3) / 200 * slope)


def test_folds_are_compared_fold_by_fold_on_those_that_all_cells_have(tmp_path):
    right = {PROBE: (30, 32, 31, 20), LORA: (36, 37, 38, 20), CNN_PROBE: (33, 33, 31, 20), CNN_LORA: (34, 35, 33)}
    for name, counts in right.items():
        for fold, count in enumerate(counts):
            folder_name = f"{name}-fold{fold}of4"
            more = {"num_test": 40, "num_train": 100, "classes": ("a", "b", "c", "d"), "folder_name": folder_name}
            run = fake_run(tmp_path, name, seed=fold, right=np.arange(40) < count, **more)
            write_result(run.folder, replace(run.result, config=run.result.config | {"folds": 4, "fold": fold}))
    row = _rows(tmp_path).set_index("effect").loc[INTERACTION]
    gains = np.array([(36 - 30) - (34 - 33), (37 - 32) - (35 - 33), (38 - 31) - (33 - 31)]) / 40
    error = math.sqrt((1 / 3 + 40 / 120) * gains.var(ddof=1))  # Nadeau and Bengio's; 120 images are not tested
    assert row["accuracy"] == pytest.approx(gains.mean())
    assert row["accuracy_p_adjusted"] == pytest.approx(2 * stats.t(2).sf(gains.mean() / error))
    assert row["accuracy_high"] == pytest.approx(gains.mean() + stats.t(2).ppf(0.975) * error)


def test_what_a_draw_of_training_images_brings_to_all_cells_alike_is_no_spread_of_their_effects(tmp_path):
    right = {PROBE: (30, 32, 31), LORA: (36, 37, 38), CNN_PROBE: (33, 35, 31), CNN_LORA: (34, 37, 33)}
    for name, counts in right.items():
        for draw, count in enumerate(counts):
            run = fake_run(tmp_path, name, seed=draw, num_test=40, right=np.arange(40) < count)
            write_result(run.folder, replace(run.result, config=run.result.config | {"split_seed": draw}))
    comparison = _compare(tmp_path)
    cells = crossed(comparison)
    correct = {cell: [_right(run) for run in series.runs] for cell, series in cells.items()}
    spread = effect_spread(list(effects(cells))[-1], cells, correct, "accuracy")
    gains = np.array([(36 - 30) - (34 - 33), (37 - 32) - (37 - 35), (38 - 31) - (33 - 31)]) / 40
    assert spread.value == pytest.approx(gains.mean())
    np.testing.assert_allclose(spread.seeds, [gains])


# What is crossed


def test_nothing_is_said_of_a_study_whose_arms_are_not_crossed(tmp_path):
    for number, names in enumerate([(LORA, HEAD, VIT_HEAD), (PROBE, LORA, CNN_PROBE, HEAD), (PROBE, LORA, FULL)]):
        results = _write(tmp_path / str(number), dict.fromkeys(names, 0.5), num_test=60)
        comparison = _compare(results)
        uncertainty = compute_uncertainty([comparison])
        assert crossed(comparison) == {} and uncertainty.effects.empty
        assert effect_sentences(comparison.dataset, uncertainty.effects) == []
        assert write_effects(uncertainty, results) == []
        assert not FIGURES["method_and_backbone"].wanted(comparison, frames_of([comparison]), uncertainty)


def test_of_several_models_in_a_cell_the_best_on_validation_stands_of_those_with_as_many_training_images(tmp_path):
    _write(tmp_path, OPEN, num_test=60, num_train=500)
    _write(tmp_path, {CNN_LORA: 1.0}, num_test=60, num_train=900, folder_name="more-images")
    _write(tmp_path, {LORA: 0.7}, num_test=60, num_train=500, folder_name="wider")
    comparison = _compare(tmp_path)
    wider = next(series for series in comparison.series if series.name == "wider")
    for accuracy, name in ((1.0, "wider"), (0.0, LORA)):
        val = SimpleNamespace(scores={"accuracy": accuracy})
        runs = tuple(Run(run.folder, replace(run.result, val=val)) for run in wider.runs)
        other = [replace(series, runs=runs) if series == wider else series for series in comparison.series]
        names = {cell: series.name for cell, series in crossed(replace(comparison, series=tuple(other))).items()}
        assert names == {
            (VIT, "probe"): PROBE,
            (VIT, "lora"): name,
            (RESNET, "probe"): CNN_PROBE,
            (RESNET, "lora"): CNN_LORA,
        }


def test_backbones_are_compared_within_one_method_not_with_one_layer_against_two(study):
    rows = _rows(study)
    assert set(rows[rows.effect == METHOD].first) == {"new head", "LoRA", "full fine-tuning"}
    assert set(rows[rows.effect == BACKBONE].within) == {"probe", "LoRA", "full fine-tuning"}
    assert set(rows[rows.effect == INTERACTION].within) == {"LoRA", "full fine-tuning"}


def test_two_weights_of_one_backbone_are_told_apart_and_one_with_a_probe_alone_is_none_of_it(tmp_path):
    _write(tmp_path, OPEN, num_test=60)
    first = "resnet50.tv_in1k"
    for name, method in ((CNN_PROBE, "head_probe"), (CNN_LORA, "lora_r16")):
        seeds = (0,) if method == "head_probe" else (0, 1, 2)
        for seed in seeds:
            run = fake_run(tmp_path, name, seed=seed, num_test=60, folder_name=f"{first}-{method}")
            write_result(
                run.folder, replace(run.result, backbone=first, config=run.result.config | {"backbone": first})
            )
        others = set(_rows(tmp_path).query("effect == 'backbone'").other)
        both = method == "lora_r16"
        assert others == ({"ResNet50 [tv2_in1k]", "ResNet50 [tv_in1k]"} if both else {"ResNet50"})


def _grid_cells(profile: str, *methods: str) -> list[set[tuple[str, str]]]:
    """Return (backbone, kind of method) of each grid of a profile, of those backbones that have more than a probe."""
    grids = reproduce._grids(reproduce.Config(profile=profile, methods=methods))
    cells = [{(arm.backbone, METHODS[arm.method].kind) for arm in grid.arms} for grid in grids]
    return [{cell for cell in its if cell[0] != "resnet50.tv_in1k"} for its in cells]


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_the_grid_has_every_cell_where_all_methods_are_asked_for(profile):
    kinds = {"probe", "head", "lora", "full"}
    for cells in _grid_cells(profile, *kinds):
        backbones = {backbone for backbone, _ in cells}
        assert len(backbones) == 3 and cells == set(itertools.product(backbones, kinds))


def test_without_methods_paper_has_the_studys_cells_and_mini_all_but_a_new_head_on_the_vit():
    for cells in _grid_cells("paper"):
        assert {backbone for backbone, kind in cells if kind == "lora"} == {max(cells)[0]}  # the ViT's
        assert not any(kind == "full" for _, kind in cells)
    for cells, every in zip(_grid_cells("mini"), _grid_cells("mini", "probe", "head", "lora", "full"), strict=True):
        assert every - cells == {("demo_vit.cifar10", "head")}


# What is claimed


def _interaction(results: Path) -> pd.Series:
    return _rows(results).set_index("effect").loc[INTERACTION]


def test_what_a_ceiling_makes_depends_on_the_scale(tmp_path):
    row = _interaction(_write(tmp_path / "ceiling", CEILING))
    assert row["accuracy"] == pytest.approx(0.098) and row["accuracy_low"] > 0.05
    assert row["log_odds_low"] < 0 < row["log_odds_high"]
    assert row["verdict"] == DEPENDS
    opposite = CEILING | {LORA: 0.90}  # + 7 points against + 2.2, in log-odds + 0.6 against + 1.3
    row = _interaction(_write(tmp_path / "opposite", opposite))
    assert row["accuracy_low"] > 0 > row["log_odds_high"] and row["verdict"] == DEPENDS


def test_a_sign_is_claimed_where_both_scales_show_it(tmp_path):
    assert _interaction(_write(tmp_path / "more", OPEN))["verdict"] == POSITIVE
    less = {PROBE: 0.5, LORA: 0.55, CNN_PROBE: 0.5, CNN_LORA: 0.7}
    assert _interaction(_write(tmp_path / "less", less))["verdict"] == NEGATIVE
    assert _interaction(_write(tmp_path / "few", OPEN, num_test=60, spread=6))["verdict"] == UNDECIDED
    one = _interaction(_write(tmp_path / "one", OPEN, seeds=(0,)))
    assert one["verdict"] == ONE_SEED and np.isnan(one["accuracy_p_adjusted"])


def test_the_effects_of_a_family_are_corrected_for_one_another(study):
    comparison, rows = _compare(study), _rows(study)
    cells = crossed(comparison)
    correct = {cell: [_right(run) for run in series.runs] for cell, series in cells.items()}
    for family, members in rows.groupby("effect"):
        its_effects = [effect for effect in effects(cells) if effect.family == family]
        for scale in SCALES:
            alone = [effect_spread(effect, cells, correct, scale).estimate.p for effect in its_effects]
            low, high, p = (members[f"{scale}_{end}"] for end in ("low", "high", "p_adjusted"))
            assert p.tolist() == pytest.approx(holm(alone), rel=1e-6, abs=0) and p.tolist() != alone
            assert (((low > 0) | (high < 0)) == (p < 0.05)).all()
    wide = rows[rows.effect == INTERACTION].set_index("within").loc["LoRA"]
    fewer = replace(comparison, series=tuple(series for series in comparison.series if series.method != "full"))
    narrow = pd.DataFrame(effect_rows(fewer)).set_index("effect").loc[INTERACTION]
    assert narrow["accuracy"] == wide["accuracy"] and narrow["accuracy_high"] < wide["accuracy_high"]  # one, not two


def test_two_seeds_that_disagree_bound_nothing_beyond_what_accuracies_can_be(tmp_path):
    results = _write(tmp_path, OPEN, num_test=300)
    for seed, count in ((0, 60), (1, 290)):
        fake_run(results, FULL, seed=seed, num_test=300, right=np.arange(300) < count)
        fake_run(results, CNN_FULL, seed=seed, num_test=300, right=np.arange(300) < 160)
    comparison = _compare(results)
    uncertainty = compute_uncertainty([comparison])
    rows = uncertainty.effects.set_index(["effect", "within", "first"])
    assert rows.loc[(METHOD, "ViT-B/16", "full fine-tuning"), "accuracy_high"] == 1
    assert rows.loc[(INTERACTION, "full fine-tuning", "ViT-B/16"), "accuracy_low"] == -2
    with style.context():
        figure = FIGURES["method_and_backbone"].draw(comparison, frames_of([comparison]), uncertainty)
    low, high = figure.axes[1].get_xlim()
    assert low < 100 * rows.accuracy.min() and 100 * rows.accuracy.max() < high < 150  # the others stay legible
    assert "those that reach the edge go on" in " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


# What is said, written and drawn


def _draw_one(comparisons, frames, uncertainty, folder, columns):
    yield "cifar10", figures.draw_one("method_and_backbone", *comparisons, frames, uncertainty, folder)


@pytest.fixture(scope="module")
def drawn(study, tmp_path_factory):
    """The study's tables, and what ``plot_results.py`` prints and writes of it."""
    folder, lines = tmp_path_factory.mktemp("drawn"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainties, "RESAMPLES", 50)
        patch.setattr(figures, "draw_all", _draw_one)
        patch.setattr("builtins.print", lambda *text, **_: lines.extend(map(str, text)))
        config = plot_results.Config(results_dir=study, figures_dir=folder, report=folder / "report.html")
        plot_results.main(config)
    comparison = _compare(study)
    return comparison, compute_uncertainty([comparison]), folder, lines


def test_the_sentences_say_what_the_numbers_say(drawn):
    _, uncertainty, _, printed = drawn
    sentences = effect_sentences("cifar10", uncertainty.effects)
    lora = uncertainty.effects.query("effect == 'interaction' and within == 'LoRA'").iloc[0]
    (said,) = (line for line in sentences if line.startswith("interaction") and "LoRA" in line)
    assert said == (
        "interaction: whether the gain of LoRA over the probe is larger on ViT-B/16 or ResNet50 depends on the scale: "
        f"+9.8 points ({100 * lora.accuracy_low:+.1f} to {100 * lora.accuracy_high:+.1f}), "
        f"{lora.log_odds:+.2f} ({lora.log_odds_low:+.2f} to {lora.log_odds_high:+.2f}) in log-odds of accuracy"
    )
    (full,) = (line for line in sentences if line.startswith("interaction") and "full" in line)
    assert full.startswith(
        "interaction: the gain of full fine-tuning over the probe is larger on ViT-B/16 than on ResNet50: +12.5"
    )
    (of_method,) = (line for line in sentences if line.startswith("effect of the method on ResNet50: "))
    assert "LoRA minus probe +2.2 points (" in of_method and "full fine-tuning minus probe 0.0 points (" in of_method
    assert of_method.endswith(", undecided")
    assert sentences[-1] == NOT_ARCHITECTURES and "architecture" not in " ".join(sentences[:-1])
    assert [f"cifar10: {sentence}" for sentence in sentences] == [line for line in printed if line[9:] in sentences]


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (POSITIVE, "the gain of LoRA over the probe is larger on A than on B: "),
        (NEGATIVE, "the gain of LoRA over the probe is smaller on A than on B: "),
        (DEPENDS, "whether the gain of LoRA over the probe is larger on A or B depends on the scale: "),
        (UNDECIDED, "undecided whether the gain of LoRA over the probe is larger on A or B: "),
        (ONE_SEED, "undecided, with one seed, whether the gain of LoRA over the probe is larger on A or B: "),
    ],
)
def test_only_what_is_decided_is_claimed(drawn, verdict, words):
    rows = drawn[1].effects.query("effect == 'interaction'").iloc[:1]
    sentence, _ = effect_sentences("cifar10", rows.assign(within="LoRA", first="A", other="B", verdict=verdict))
    assert sentence.startswith(f"interaction: {words}")


def test_the_table_has_a_row_an_effect_with_both_scales(study, drawn):
    _, uncertainty, folder, _ = drawn
    written = pd.read_csv(study / "effects.csv")
    pd.testing.assert_frame_equal(written, uncertainty.effects, check_dtype=False)
    texts = effect_texts(uncertainty.effects)
    assert list(texts["Effect of"]) == 6 * [METHOD] + 3 * [BACKBONE] + 2 * [INTERACTION]
    markdown, page = (study / "effects.md").read_text(), (folder / "report.html").read_text()
    for text in texts.itertuples(index=False):
        assert " | ".join(text) in markdown
        assert text[4] in page and text[5] in page
    for sentence in effect_sentences("cifar10", uncertainty.effects):
        assert sentence in page


def test_the_figure_shows_the_cells_and_every_effect_where_it_lies(drawn):
    comparison, uncertainty, folder, _ = drawn
    assert (folder / "cifar10_method_and_backbone.png").exists()
    with style.context():
        figure = FIGURES["method_and_backbone"].draw(comparison, frames_of([comparison]), uncertainty)
    above, *scales = figure.axes
    means = uncertainty.means.query("metric == 'accuracy'").set_index("run")["value"]
    for line, names in zip(
        above.lines, ((PROBE, VIT_HEAD, LORA, FULL), (CNN_PROBE, HEAD, CNN_LORA, CNN_FULL)), strict=True
    ):
        assert line.get_ydata() == pytest.approx(means[list(names)].to_numpy())
    assert [text.get_text() for text in above.texts] in (["ViT-B/16", "ResNet50"], ["ResNet50", "ViT-B/16"])
    assert len({line.get_color() for line in above.lines}) == 2
    labels = [label.get_text() for label in scales[0].get_yticklabels()]
    assert [label for label in labels if label in HEADINGS.values()] == list(HEADINGS.values())
    for scale, ax, factor in zip(SCALES, scales, (100, 1), strict=True):
        marks = [line for line in ax.lines if len(line.get_xdata()) == 1]
        assert [line.get_xdata()[0] for line in marks] == pytest.approx(factor * uncertainty.effects[scale])
        rows = {round(float(line.get_ydata()[0])) for line in marks}
        assert rows == {row for row, label in enumerate(labels) if label not in HEADINGS.values()}
        bars = [segment for bar in ax.collections for segment in bar.get_segments()]
        ends = uncertainty.effects[[f"{scale}_low", f"{scale}_high"]].to_numpy()
        assert np.array([bar[:, 0] for bar in bars]) == pytest.approx(factor * ends)
