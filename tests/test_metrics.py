"""Metrics against values worked out by hand."""

import json
import math

import numpy as np
import pytest

from common.evaluation import calibration, metrics
from common.runtime.errors import UserError

# Three classes; predictions 0, 1, 1, 2, 0: class 1 is found once of twice, class 2 once of twice.
LOGITS = np.array([[5, 1, 0], [0, 5, 1], [1, 4, 2], [0, 1, 5], [3, 0, 2]], dtype=np.float32)
LABELS = np.array([0, 1, 1, 2, 2])
CLASSES = ("cat", "dog", "eel")


def test_counts_and_rates_by_hand():
    scored, notes = metrics.score(LOGITS, LABELS, CLASSES)
    assert notes == ["top5_accuracy is null: it needs more than five classes"]
    assert scored["accuracy"] == 4 / 5
    assert scored["confusion_matrix"] == [[1, 0, 0], [0, 2, 0], [1, 0, 1]]
    cat, dog, eel = scored["per_class"]
    f1 = pytest.approx(2 / 3)
    assert cat == {"class": "cat", "precision": 0.5, "recall": 1.0, "f1": f1, "auc": 1.0, "support": 1}
    assert dog == {"class": "dog", "precision": 1.0, "recall": 1.0, "f1": 1.0, "auc": 1.0, "support": 2}
    assert (eel["precision"], eel["recall"], eel["f1"]) == (1.0, 0.5, f1)
    assert scored["balanced_accuracy"] == scored["recall_macro"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert scored["precision_macro"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert scored["f1_macro"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    assert scored["f1_weighted"] == pytest.approx((1 * 2 / 3 + 2 * 1 + 2 * 2 / 3) / 5)


def test_auc_is_the_share_of_pairs_in_order():
    scored, _ = metrics.score(LOGITS, LABELS, CLASSES)
    probabilities = metrics.softmax(LOGITS)

    def share(positive: np.ndarray, scores: np.ndarray) -> float:
        wins = [(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
        return sum(wins) / len(wins)

    aucs = [share(c == LABELS, probabilities[:, c]) for c in range(3)]
    assert [row["auc"] for row in scored["per_class"]] == pytest.approx(aucs)
    assert scored["auc_macro"] == pytest.approx(np.mean(aucs))
    assert scored["auc_micro"] == pytest.approx(share(np.eye(3, dtype=bool)[LABELS].ravel(), probabilities.ravel()))
    assert scored["auc_micro"] < 1.0 == aucs[1]  # the average over all entries is not the average over classes


def test_binary_macro_auc_is_the_auc_of_either_class():
    logits = np.array([[2, 0], [1, 0], [0, 1], [0.5, 0]], dtype=np.float32)
    scored, _ = metrics.score(logits, np.array([0, 1, 1, 0]), ("no", "yes"))
    assert [row["auc"] for row in scored["per_class"]] == [0.75, 0.75]  # 3 of the 4 pairs are in order
    assert scored["auc_macro"] == 0.75
    assert scored["confusion_matrix"] == [[2, 0], [1, 1]]


def test_loss_is_the_mean_surprise_in_nats():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]], dtype=np.float32))
    scored, _ = metrics.score(logits, np.array([0, 2]), CLASSES)
    assert scored["loss"] == pytest.approx((math.log(2) + math.log(8)) / 2)


def test_calibration_error_by_hand():
    # Confidences 0.9 (right), 0.9 (wrong) share a bin with gap |0.5 - 0.9|; 0.6 (right) is alone with gap 0.4.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    ece = calibration.expected_calibration_error(probabilities, np.array([0, 1, 1]))
    assert ece == pytest.approx((2 * 0.4 + 1 * 0.4) / 3)
    assert calibration.expected_calibration_error(np.eye(2), np.array([0, 1])) == 0
    assert calibration.expected_calibration_error(np.eye(2), np.array([1, 0])) == 1


def test_bins_are_closed_above():
    # 0.6 = 9/15 belongs to (8/15, 9/15], together with 0.55: one image of the two is right.
    probabilities = np.array([[0.6, 0.4], [0.55, 0.45]])
    assert calibration.expected_calibration_error(probabilities, np.array([1, 0])) == pytest.approx(abs(1 - 1.15) / 2)


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_an_absent_class_is_null_and_noted_and_the_matrix_keeps_its_shape(absent):
    present = absent != LABELS
    scored, notes = metrics.score(LOGITS[present], LABELS[present], CLASSES)
    row = scored["per_class"][absent]
    assert row == {"class": CLASSES[absent], "precision": None, "recall": None, "f1": None, "auc": None, "support": 0}
    assert scored["auc_macro"] is None
    assert np.shape(scored["confusion_matrix"]) == (3, 3)
    others = [row for row in scored["per_class"] if row["support"]]
    assert scored["f1_macro"] == pytest.approx(np.mean([row["f1"] for row in others]))
    assert scored["balanced_accuracy"] == pytest.approx(np.mean([row["recall"] for row in others]))
    assert any(repr(CLASSES[absent]) in note for note in notes) and any("auc_macro" in note for note in notes)
    json.dumps(scored, allow_nan=False)


def test_a_class_that_is_alone_has_no_auc():
    scored, notes = metrics.score(LOGITS[:1], LABELS[:1], CLASSES)
    assert [row["auc"] for row in scored["per_class"]] == [None, None, None]
    assert scored["auc_macro"] is None and scored["accuracy"] == 1.0
    assert any("'cat'" in note and "only" in note for note in notes)
    json.dumps(scored, allow_nan=False)


def test_values_are_plain_json():
    scored, _ = metrics.score(LOGITS, LABELS, CLASSES)
    assert json.loads(json.dumps(scored, allow_nan=False)) == scored
    assert type(scored["accuracy"]) is float and type(scored["confusion_matrix"][0][0]) is int


def test_large_logits_neither_overflow_nor_tie():
    logits = np.array([[1e38, -1e38], [20, 0], [18, 0], [0, 50]], dtype=np.float32)
    assert np.isfinite(metrics.softmax(logits)).all()
    scored, _ = metrics.score(logits, np.array([0, 0, 1, 1]), ("a", "b"))
    assert scored["per_class"][0]["auc"] == 1.0  # in float32 the first three probabilities of "a" would all be 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_diverged_model_is_refused(bad):
    logits = LOGITS.copy()
    logits[1, 2] = bad
    with pytest.raises(UserError, match="1 of 5 images"):
        metrics.score(logits, LABELS, CLASSES)


def test_nothing_to_score_is_refused():
    with pytest.raises(UserError, match="no image"):
        metrics.score(np.empty((0, 3), np.float32), np.empty(0, int), CLASSES)


@pytest.mark.parametrize("labels", [np.array([0, 1, 1, 2, 3]), np.array([0, 1, 1, 2, -1]), np.array([0, 1])])
def test_labels_that_do_not_fit_are_a_defect(labels):
    with pytest.raises(ValueError, match="expected"):
        metrics.score(LOGITS, labels, CLASSES)


def test_a_label_counts_among_the_top_five_unless_five_logits_come_before_it():
    logits = np.tile(np.arange(7, dtype=np.float32), (4, 1))
    logits[3] = 0  # of equals the earlier comes first
    scored, notes = metrics.score(logits, np.array([2, 1, 6, 5]), tuple("abcdefg"))
    assert scored["top5_accuracy"] == 2 / 4 and not any("top5" in note for note in notes)
    assert metrics.score(LOGITS, LABELS, CLASSES)[0]["top5_accuracy"] is None


def test_the_brier_score_is_a_metric_of_the_record():
    scored, _ = metrics.score(LOGITS, LABELS, CLASSES)
    assert scored["brier"] == calibration.brier_score(metrics.softmax(LOGITS), LABELS)


def test_a_metric_is_one_entry_of_the_table(monkeypatch):
    error = metrics.Metric("Error", lambda scores: float((~scores.correct).mean()), higher_is_better=False)
    monkeypatch.setitem(metrics.METRICS, "error", error)
    scored, _ = metrics.score(LOGITS, LABELS, CLASSES)
    assert list(scored)[-3:] == ["error", "per_class", "confusion_matrix"] and scored["error"] == 1 / 5


def test_chance_is_the_share_of_the_largest_class_and_half_of_an_area():
    chance = {name: metric.chance(np.array([1, 3])) for name, metric in metrics.METRICS.items() if metric.chance}
    assert chance == {"accuracy": 0.75, "auc_macro": 0.5, "auc_micro": 0.5}


def test_roc_curves_enclose_the_reported_areas():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 500)
    logits = rng.normal(size=(500, 4)).astype(np.float32)
    logits[np.arange(500), labels] += 1.5
    grid = np.linspace(0, 1, 20_001)
    curves = metrics.roc_curves(logits, labels, grid)
    scored, _ = metrics.score(logits, labels, tuple("abcd"))
    areas = np.trapezoid(curves, grid, axis=1)
    expected = [row["auc"] for row in scored["per_class"]] + [scored["auc_macro"], scored["auc_micro"]]
    assert areas == pytest.approx(expected, abs=2e-4)
    assert (np.diff(curves, axis=1) >= 0).all() and (curves[:, -1] == 1).all()


def test_roc_macro_average_leaves_out_an_absent_class():
    curves = metrics.roc_curves(LOGITS[:3], LABELS[:3], np.linspace(0, 1, 5))
    assert np.isnan(curves[2]).all() and np.isfinite(curves[[0, 1, 3, 4]]).all()


def test_roc_curve_by_hand():
    # Ranked by the score of "a": a, b (tied with the next), a, b. The tie is one diagonal step.
    logits = np.array([[3, 0], [1, 0], [1, 0], [0, 0]], dtype=np.float32)
    curves = metrics.roc_curves(logits, np.array([0, 1, 0, 1]), np.array([0, 0.25, 0.5, 1]))
    assert curves[0] == pytest.approx([0.5, 0.75, 1, 1])
