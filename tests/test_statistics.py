"""Every statistic against another implementation, or a case that can be solved by hand."""

import math

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as torchmetrics
from scipy import stats
from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_ind

from common.evaluation import calibration, metrics, power, significance
from common.evaluation.bootstrap import draw_counts
from common.evaluation.metrics import METRICS
from common.evaluation.scores import Scores
from common.evaluation.significance import Estimate
from common.evaluation.spread import Spread, freedom, image_error


def predictions(images: int, classes: int, *, seed: int = 0, levels: int | None = None):
    """Return probabilities (N, C) and labels (N,), every class present; few ``levels`` of logits make many ties."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(images) % classes)
    logits = rng.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels]
    if levels:
        logits = np.round(logits * levels) / levels
    return metrics.softmax(logits), labels


def resampled_metrics(probabilities, labels, counts):
    """Return the metrics on each resample of predictions that are given as probabilities."""
    scores = Scores(np.log(probabilities), labels, range(probabilities.shape[1]))
    vars(scores)["probabilities"] = probabilities  # as they are: rounding would undo ties
    return metrics.resampled_metrics(scores, counts)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("classes", "levels"), [(2, None), (5, None), (5, 1)])
def test_resampled_metrics_are_those_of_scikit_learn_with_weights(classes, levels):
    probabilities, labels = predictions(200, classes, levels=levels)
    counts = draw_counts(200, 3, generator())
    found = resampled_metrics(probabilities, labels, counts)
    predicted, one_hot = probabilities.argmax(1), np.eye(classes)[labels]
    for column, weights in enumerate(counts.T.astype(float)):
        auc = np.mean(
            [roc_auc_score(one_hot[:, c], probabilities[:, c], sample_weight=weights) for c in range(classes)]
        )
        assert found["accuracy"][column] == pytest.approx(np.average(predicted == labels, weights=weights))
        f1 = f1_score(labels, predicted, average="macro", sample_weight=weights)
        assert found["f1_macro"][column] == pytest.approx(f1, rel=1e-6)
        assert found["auc_macro"][column] == pytest.approx(auc, rel=1e-6)
        brier = np.average(((probabilities - one_hot) ** 2).sum(1), weights=weights)
        assert found["brier"][column] == pytest.approx(brier, rel=1e-5)


def test_a_resample_of_counts_is_the_run_on_repeated_images(monkeypatch):
    probabilities, labels = predictions(90, 7)
    counts = draw_counts(90, 7, generator())
    monkeypatch.setattr(metrics, "BLOCK", 180)  # two resamples at a time, one in the last block
    found = resampled_metrics(probabilities, labels, counts)
    for column in range(7):
        rows = np.repeat(np.arange(90), counts[:, column])
        scored, _ = metrics.score(np.log(probabilities[rows]), labels[rows], tuple("abcdefg"))
        assert all(metric.resampled for metric in METRICS.values() if metric.headline)
        for name in found:
            assert found[name][column] == pytest.approx(scored[name], rel=1e-6)


def test_resampled_metrics_are_those_of_torchmetrics():
    probabilities, labels = predictions(500, 6)
    found = resampled_metrics(probabilities, labels, np.ones((500, 1)))
    scores, truth = torch.from_numpy(probabilities), torch.from_numpy(labels)
    assert found["auc_macro"][0] == pytest.approx(float(torchmetrics.multiclass_auroc(scores, truth, 6)), rel=1e-5)
    assert found["f1_macro"][0] == pytest.approx(float(torchmetrics.multiclass_f1_score(scores, truth, 6)), rel=1e-5)


def test_each_resample_draws_as_many_images_as_there_are_and_the_generator_decides():
    counts = draw_counts(50, 400, generator(3))
    assert (counts.sum(axis=0) == 50).all() and counts.dtype == np.uint8
    assert (counts == draw_counts(50, 400, generator(3))).all()
    assert (counts != draw_counts(50, 400, generator(4))).any()
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.05)  # binomial, 50 draws with chance 1/50


def test_a_class_that_a_resample_lacks_is_left_out_and_one_that_all_lack_undoes_the_auc():
    probabilities, labels = predictions(12, 3)
    counts = np.ones((12, 1)) * (labels != 2)[:, None]
    found = resampled_metrics(probabilities, labels, counts)
    rest = labels != 2
    aucs = [roc_auc_score(labels[rest] == c, probabilities[rest, c]) for c in (0, 1)]
    assert found["auc_macro"][0] == pytest.approx(np.mean(aucs))
    assert np.isnan(resampled_metrics(probabilities[rest], labels[rest], np.ones((rest.sum(), 1)))["auc_macro"]).all()
    alone = resampled_metrics(probabilities, labels, (labels == 0)[:, None] * np.ones((12, 1)))
    assert np.isnan(alone["auc_macro"][0]) and np.isfinite(alone["f1_macro"][0])


def test_the_error_over_images_is_that_of_scipys_bootstrap():
    probabilities, labels = predictions(200, 2)
    found = resampled_metrics(probabilities, labels, draw_counts(200, 8_000, generator(2)))

    def accuracy(rows):
        return (probabilities.argmax(1) == labels)[rows].mean()

    def auc(rows):  # from the sum of the positives' ranks
        positive = labels[rows] == 1
        ranks = stats.rankdata(probabilities[rows, 1])[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
        return ranks / positive.sum() / (~positive).sum()

    for name, statistic in (("accuracy", accuracy), ("auc_macro", auc)):
        theirs = stats.bootstrap((np.arange(200),), statistic, vectorized=False, n_resamples=8_000, rng=generator(1))
        ours = image_error(found[name], 200, is_count=False)
        assert ours == pytest.approx(theirs.standard_error, rel=0.04)  # each is known to 0.8 %


def test_one_seed_has_the_error_over_images():
    assert Spread(0.8, 0.01, 1_000, [np.array([0.8])]).estimate == Spread(0.8, 0.01, 1_000).estimate
    low, high = Spread(0.8, 0.01, 1_000).estimate.interval()
    assert [low, high] == pytest.approx([0.8 - 0.0195996, 0.8 + 0.0195996], abs=1e-7)


def test_without_spread_over_images_a_mean_has_students_interval_and_p():
    values = generator(2).normal(0.02, 0.02, 6)
    found = Spread(values.mean(), 0.0, 1_000, [values]).estimate
    expected = stats.ttest_1samp(values, 0)
    assert found.interval(0.9) == pytest.approx(expected.confidence_interval(0.9))
    assert found.p == pytest.approx(expected.pvalue)


def test_a_difference_of_seeds_alone_has_welchs_interval_and_p():
    a, b = generator(1).normal(0.8, 0.02, 4), generator(2).normal(0.78, 0.01, 3)
    found = Spread(a.mean() - b.mean(), 0.0, 1_000, [a, b]).estimate
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue) and found.freedom == pytest.approx(expected.df)
    assert found.interval() == pytest.approx(expected.confidence_interval())


def test_seeds_count_three_times_against_the_images_and_two_seeds_eight_times():
    images, seeds = 2.0, 1.0
    assert freedom(images, [seeds], [5]) == pytest.approx((images + 3 * seeds) ** 2 / (9 * seeds**2 / 4))
    assert freedom(images, [seeds], [2]) == pytest.approx((images + 8 * seeds) ** 2 / (64 * seeds**2 / 1))
    assert freedom(0.0, [seeds, 1e-9], [3, 9]) >= 2
    assert freedom(images, [], []) == freedom(images, [0.0], [3]) == math.inf


def test_identical_models_differ_by_nothing():
    nothing = Spread(1e-17, 0.0, 100, [np.full(3, 0.9), np.full(3, 0.9)]).estimate
    assert nothing.p == 1 and not nothing.interval().excludes_zero


def test_few_images_without_an_error_are_no_proof_that_there_is_none():
    right = np.ones((1, 200))  # on each resample
    assert image_error(right, 20, is_count=True) == pytest.approx(3**0.5 / 20)
    assert image_error(right, 20, is_count=False) == 0
    assert not Spread(0.0, image_error(right, 20, is_count=True), 20).estimate.is_within(0.01)
    assert Spread(0.0, image_error(right, 400, is_count=True), 400).estimate.is_within(0.01)  # 3 / 400 is below 1 %


def test_a_metric_that_is_not_defined_has_no_interval():
    for error, value in ((image_error(np.full(50, np.nan), 9, is_count=True), 0.5), (0.1, np.nan)):
        found = Spread(value, error, 9, [np.array([0.4, 0.6])]).estimate
        assert np.isnan(found).all() and np.isnan(found.p) and np.isnan(found.interval()).all()
        assert not found.interval().excludes_zero and not found.is_within(0.5)


def test_resamples_without_a_value_are_left_out():
    assert image_error(np.array([0.0, 1.0, np.nan]), 100, is_count=False) == 0.5


def test_intervals_end_at_the_bounds_of_the_metric():
    assert Estimate(0.99, 0.1, 3).interval(bounds=(0, 1)).high == 1


@pytest.mark.parametrize("margin", [0.005, 0.01, 0.02])
def test_equivalence_is_that_of_statsmodels_two_one_sided_tests(margin):
    rng = generator(3)
    for _ in range(50):
        a, b = rng.normal(0, 0.004, 6), rng.normal(0.003, 0.008, 5)
        found = Spread(a.mean() - b.mean(), 0.0, 1_000, [a, b]).estimate
        assert found.is_within(margin) == (ttost_ind(a, b, -margin, margin, usevar="unequal")[0] < 0.05)


def test_the_interval_of_each_contrast_excludes_zero_exactly_where_holm_says_so():
    rng = generator(5)
    steps = 0
    for _ in range(3_000):
        family = [
            Estimate(rng.normal(0, 3), 1.0, rng.choice([2.0, 2.7, 8.0, 60.0, np.inf]))
            for _ in range(rng.integers(1, 8))
        ]
        p_values = [estimate.p for estimate in family]
        adjusted, levels = significance.holm(p_values), significance.simultaneous_levels(p_values)
        for estimate, p, level in zip(family, adjusted, levels, strict=True):
            assert estimate.interval(level).excludes_zero == (p < 0.05)
            assert 0.95 <= level <= 1 - 0.05 / len(family) or level == pytest.approx(0.95)
        steps += any(level < max(levels) for level in levels)
    assert steps > 100  # the later steps of Holm's did decide some


@pytest.mark.parametrize(
    ("estimate", "p_adjusted", "word"),
    [
        (Estimate(0.03, 0.004, 4), 0.01, "better"),
        (Estimate(-0.03, 0.004, 4), 0.01, "better"),
        (Estimate(0.004, 0.001, 40), 0.01, "better_within_margin"),
        (Estimate(0.001, 0.002, 40), 0.6, "equivalent"),
        (Estimate(0.004, 0.004, 40), 0.3, "undecided"),
        (Estimate(0.03, 0.014, 40), 0.05, "undecided"),
    ],
)
def test_the_words(estimate, p_adjusted, word):
    assert significance.verdict(estimate, p_adjusted, margin=0.01) == word
    assert significance.verdict(estimate, p_adjusted) == ("better" if p_adjusted < 0.05 else "undecided")
    assert significance.verdict(estimate, p_adjusted, margin=0.01, one_seed=True) == "one_seed"


def test_what_is_detectable_is_found_80_times_in_100():
    seeds = [np.array([-1.0, 0.0, 1.0] * 4) * 0.01, np.array([-1.0, 0.0, 1.0] * 4) * 0.005]
    spread = Spread(0.0, 0.004, 1_000, seeds)
    shown = power.detectable(spread.estimate, 0.05)
    value, error, degrees = spread.estimate
    found = stats.nct.sf(stats.t.isf(0.025, degrees), degrees, shown / error)
    assert value == 0 and found == pytest.approx(0.8, abs=0.01)


def test_the_seeds_and_images_that_are_needed_make_the_target_detectable():
    seeds = [np.array([0.80, 0.82, 0.81]), np.array([0.80, 0.805, 0.80])]
    spread = Spread(0.0, 0.001, 10_000, seeds)
    count = power.seeds_needed(spread, 0.01, 0.05)
    spreads = [values.std(ddof=1) for values in seeds]
    for number, enough in ((count, True), (count - 1, False)):
        patterns = [generator().permutation(np.resize([-1.0, 1.0], number)) for _ in spreads]
        alike = [0.8 + its * sd / its.std(ddof=1) for its, sd in zip(patterns, spreads, strict=True)]
        assert (power.detectable(spread._replace(seeds=alike).estimate, 0.05) <= 0.01) == enough
    images = power.images_needed(spread, 0.001, 0.05)
    larger = spread._replace(image_error=0.001 * (10_000 / images) ** 0.5, seeds=())
    assert power.detectable_by_images(larger, 0.05) == pytest.approx(0.001, rel=1e-3)
    assert power.seeds_needed(spread, 0.001, 0.05) == math.inf


@pytest.mark.parametrize("disagreements", [(0, 0), (3, 0), (5, 5), (1, 9), (40, 21)])
def test_mcnemars_p_is_that_of_statsmodels(disagreements):
    wins, losses = disagreements
    ours = np.array([True] * wins + [False] * losses + [True] * 5 + [False] * 4)
    theirs = np.array([False] * wins + [True] * losses + [True] * 5 + [False] * 4)
    found = significance.mcnemar(ours, theirs)
    assert found == significance.mcnemar(theirs, ours)
    expected = mcnemar([[5, wins], [losses, 4]], exact=True).pvalue if wins + losses else 1.0
    assert found == pytest.approx(expected)


def test_mcnemars_p_by_hand():
    assert significance.mcnemar(np.ones(6, bool), np.zeros(6, bool)) == pytest.approx(2 / 2**6)


def test_holms_correction_is_that_of_statsmodels():
    rng = generator()
    for number in range(1, 13):
        p_values = np.round(rng.random(number), 1) ** 3  # with ties, zeros and ones
        assert significance.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_holms_correction_by_hand():
    assert significance.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])  # 0.01*3, 0.03*2, not below 0.06
    assert significance.holm([]) == []


@pytest.mark.parametrize("bins", [10, 15, 20])
def test_calibration_error_is_that_of_torchmetrics(bins):
    probabilities, labels = predictions(700, 4)
    arguments = torch.from_numpy(probabilities), torch.from_numpy(labels)
    expected = torchmetrics.multiclass_calibration_error(*arguments, num_classes=4, n_bins=bins, norm="l1")
    assert calibration.expected_calibration_error(probabilities, labels, bins) == pytest.approx(
        float(expected), rel=1e-5
    )


def test_the_bins_of_a_reliability_diagram_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.95, 0.05], [0.4, 0.6], [0.7, 0.3]])
    found = calibration.reliability(probabilities, np.array([0, 1, 1, 0]), bins=5)
    assert found.images.tolist() == [0, 0, 1, 1, 2]
    assert found.confidence[2:] == pytest.approx([0.6, 0.7, 0.925])
    assert found.accuracy[2:] == pytest.approx([1.0, 1.0, 0.5]) and np.isnan(found.accuracy[:2]).all()


def test_the_brier_score_is_that_of_scikit_learn():
    probabilities, labels = predictions(100, 2)
    expected = 2 * brier_score_loss(labels, probabilities[:, 1])  # both classes' squares are summed
    brier = METRICS["brier"].score
    assert brier(Scores(np.log(probabilities), labels, "ab")) == pytest.approx(expected)
    assert brier(Scores(1_000 * np.eye(3), np.arange(3), "abc")) == 0
    assert brier(Scores(1_000 * np.eye(2), np.array([1, 0]), "ab")) == 2


def test_the_temperature_by_hand():
    # Every image has the same gap of 4 between two logits, and three of four are right: T = 4 / log(0.75 / 0.25).
    logits = np.array([[4, 0], [4, 0], [0, 4], [4, 0]], dtype=np.float32)
    found = calibration.fit_temperature(logits, np.array([0, 0, 1, 1]))
    assert found == pytest.approx(4 / math.log(3), rel=1e-4)
    assert calibration.fit_temperature(3 * logits, np.array([0, 0, 1, 1])) == pytest.approx(3 * found, rel=1e-4)


def test_the_temperature_of_a_model_without_errors_stays_within_the_range_searched():
    logits = np.array([[4, 0], [0, 4]], dtype=np.float32)  # any lower temperature is better, until the loss is 0
    low, high = calibration.TEMPERATURES
    assert low <= calibration.fit_temperature(logits, np.array([0, 1])) < 0.1
    assert 10 < calibration.fit_temperature(logits, np.array([1, 0])) <= high


def test_a_temperature_repairs_overconfidence():
    probabilities, labels = predictions(4_000, 5)
    logits = 5 * np.log(probabilities)
    temperature = calibration.fit_temperature(logits[:2_000], labels[:2_000])
    before, after = (metrics.softmax(logits[2_000:] / t) for t in (1, temperature))
    errors = [calibration.expected_calibration_error(each, labels[2_000:]) for each in (before, after)]
    assert errors[1] < 0.04 < 0.2 < errors[0]
