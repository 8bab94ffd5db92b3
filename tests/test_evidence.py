"""Evidence is computed once, kept, and made again where it does not fit; verdicts follow from intervals alone."""

import json

import numpy as np
import pytest
from fake_results import MODELS, fake_run

from common.evaluation import comparison, uncertainty
from common.evaluation.formatting import interval, signed
from common.evaluation.significance import Estimate, verdict
from common.evaluation.uncertainty import DIFFERENCES, INTERVALS, Difference, Uncertainty, estimates
from common.report import sentences
from common.report.sentences import verdict_sentences
from common.runs.result import RESULT_FILE, find_runs

LORA, RESNET, EFFICIENTNET, *_ = MODELS


def compare(folder, pattern="*"):
    runs, problems = find_runs(folder, pattern)
    assert problems == []
    return comparison.compare(runs, {})[0]


def numbers(found: Uncertainty) -> list:
    return [found.seeds, found.means, found.differences]


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(uncertainty, "RESAMPLES", 200)


@pytest.fixture
def folder(tmp_path):
    """Two models of two seeds on one data set."""
    for name in (LORA, RESNET):
        for seed in (0, 1):
            fake_run(tmp_path, name, seed=seed, num_test=60)
    return tmp_path


@pytest.fixture
def sampled(monkeypatch):
    """Return the list of the runs that are resampled."""
    runs, sample = [], uncertainty._sample
    monkeypatch.setattr(uncertainty, "_sample", lambda run: (runs.append(run.folder), sample(run))[1])
    return runs


def test_what_is_kept_is_not_computed_again_and_is_the_same(folder, sampled):
    (first,) = compare(folder)
    before = numbers(first.evidence)
    assert len(sampled) == 4 and first.evidence is first.evidence
    (second,) = compare(folder)
    assert str(numbers(second.evidence)) == str(before) and len(sampled) == 4
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))


def test_a_new_model_resamples_the_others_for_its_pairs_and_a_subset_keeps_the_rest(folder, sampled):
    (both,) = compare(folder)
    assert len(both.evidence.differences) == 1
    fake_run(folder, EFFICIENTNET, num_test=60)
    (all_three,) = compare(folder)
    assert len(all_three.evidence.differences) == 3 and len(sampled) == 4 + 5
    (alone,) = compare(folder, LORA)
    assert alone.evidence.differences == ()
    (again,) = compare(folder)
    assert len(again.evidence.differences) == 3 and len(sampled) == 9


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"sha256": 1, "algorithm": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_or_foreign_file_is_made_again(folder, content):
    (first,) = compare(folder)
    before = str(numbers(first.evidence))
    files = [*folder.rglob(INTERVALS), *folder.rglob(DIFFERENCES)]
    good = {path: path.read_bytes() for path in files}
    assert len(files) == 5
    for path in files:
        path.write_bytes(content)
    (second,) = compare(folder)
    assert str(numbers(second.evidence)) == before
    assert {path: path.read_bytes() for path in files} == good


def test_a_changed_digit_or_another_algorithm_is_made_again(folder, sampled, monkeypatch):
    (first,) = compare(folder)
    before = str(numbers(first.evidence))
    path = next(folder.rglob(INTERVALS))
    path.write_text(path.read_text().replace("0.9", "0.8", 1))
    assert str(numbers(compare(folder)[0].evidence)) == before and len(sampled) == 5
    monkeypatch.setattr(uncertainty, "ALGORITHM", 2)
    assert str(numbers(compare(folder)[0].evidence)) == before and len(sampled) == 9


def test_other_predictions_are_resampled(folder, sampled):
    assert compare(folder)[0].evidence and len(sampled) == 4
    intervals = next(folder.rglob(f"{RESNET}/seed1/{INTERVALS}"))
    kept = intervals.read_bytes()
    fake_run(folder, RESNET, seed=1, num_test=60, shift=7)
    assert compare(folder)[0].evidence and len(sampled) == 4 + 4  # its pair needs the other model too
    assert intervals.read_bytes() != kept


def test_a_folder_that_cannot_be_written_is_no_error(folder):
    for seed in folder.glob("*/*/seed*"):
        (seed / INTERVALS).mkdir()
    (folder / "cifar10" / DIFFERENCES).mkdir()
    (compared,) = compare(folder)
    assert len(compared.evidence.differences) == 1
    assert not list(folder.rglob("*.tmp"))


def test_many_images_are_shared_out_to_processes_with_the_same_numbers(folder, monkeypatch):
    monkeypatch.setattr(uncertainty, "RESAMPLES", 2_000)  # as the new processes read it
    (compared,) = compare(folder)
    before = str(numbers(compared.evidence))
    for path in folder.rglob("*.json"):
        if path.name != RESULT_FILE:
            path.unlink()
    monkeypatch.setattr(uncertainty, "LARGE", 0)
    assert str(numbers(compare(folder)[0].evidence)) == before


def test_estimates_are_the_numbers_of_the_records(folder):
    (compared,) = compare(folder)
    for series in compared.series:
        for run, record in zip(series.runs, compared.evidence.seeds[series.name], strict=True):
            for name, estimate in estimates(record).items():
                value = run.test.get(name, record["calibration"]["brier"])
                assert estimate.value == pytest.approx(value, rel=1e-6) and estimate.low <= value <= estimate.high
            assert record["calibration"]["ece"]["15"] == pytest.approx(run.test["ece"])
        accuracy = series.values(lambda result: result["test"]["accuracy"])
        assert compared.evidence.means[series.name]["accuracy"].value == pytest.approx(accuracy.mean())
    (difference,) = compared.evidence.differences
    means = [compared.evidence.means[name]["f1_macro"].value for name in (LORA, RESNET)]
    assert difference.estimates["f1_macro"].value == pytest.approx(means[0] - means[1])


def test_pairs_are_models_with_equally_many_training_images(tmp_path):
    for name, num_train in ((LORA, 1_000), (RESNET, 1_000), (EFFICIENTNET, 500)):
        fake_run(tmp_path, name, num_test=40, num_train=num_train)
    (compared,) = compare(tmp_path)
    assert [(one.ours, one.theirs) for one in compared.evidence.differences] == [(LORA, RESNET)]
    (_, lonely) = verdict_sentences([compared, *compare(tmp_path, EFFICIENTNET)])
    assert lonely == "cifar10: nothing to compare, a single model"


def test_identical_predictions_are_no_difference(tmp_path):
    for folder_name in ("a", "b"):
        fake_run(tmp_path, RESNET, num_test=40, folder_name=folder_name)
    (compared,) = compare(tmp_path)
    (difference,) = compared.evidence.differences
    assert (difference.mcnemar, difference.holm) == ((1.0,), 1.0)
    (sentence,) = verdict_sentences([compared])
    assert "no difference seen between ResNet50 (head) [a] and" in sentence
    assert "accuracy 0.0 points (95 % interval 0.0 to 0.0; one seed, 40 test images; one learning rate" in sentence


def test_a_class_without_images_leaves_the_auc_undefined(tmp_path):
    for name in (LORA, RESNET):
        fake_run(tmp_path, name, num_test=9)
    (compared,) = compare(tmp_path)
    (again,) = compare(tmp_path)
    for one in (compared, again):
        (difference,) = one.evidence.differences
        assert np.isnan(difference.estimates["auc_macro"]).all() and np.isfinite(difference.estimates["accuracy"]).all()


def test_the_better_model_comes_first_and_the_remark_names_the_untuned(tmp_path):
    for name, trials in ((LORA, 1), (RESNET, 3)):
        for seed in range(3):
            fake_run(tmp_path, name, dataset="digits", seed=seed, num_test=360, trials=trials)
    (compared,) = compare(tmp_path)
    (difference,) = compared.evidence.differences
    value, low, high = (f"{100 * number:+.1f}" for number in difference.estimates["accuracy"])
    assert verdict_sentences([compared]) == [
        "digits: ViT-B/16 + LoRA (r=16) is better than ResNet50 (head): accuracy "
        f"{value} points (95 % interval {low} to {high}; 3 seeds, 360 test images; "
        "one learning rate, not tuned, for ViT-B/16 + LoRA (r=16))"
    ]
    swapped = Difference(RESNET, LORA, {"accuracy": Estimate(-0.2, -0.25, -0.1)}, (0.1,), 0.1)
    assert sentences._sentence(compared, swapped).startswith(
        "ViT-B/16 + LoRA (r=16) is better than ResNet50 (head): accuracy +20.0 points (95 % interval +10.0 to +25.0;"
    )


@pytest.mark.parametrize(
    ("ends", "word"),
    [
        ((0.001, 0.2), "better"),
        ((-0.2, -0.001), "worse"),
        ((0.0, 0.2), "no difference seen"),
        ((-0.2, 0.0), "no difference seen"),
        ((-0.1, 0.3), "no difference seen"),
        ((np.nan, np.nan), "not defined"),
    ],
)
def test_the_interval_decides(ends, word):
    assert verdict(Estimate(sum(ends) / 2, *ends)) == word


def test_numbers_in_words():
    assert interval(Estimate(0.01, -0.0012, 0.031)) == "-0.1 to +3.1"
    assert signed(0.0003) == "+0.03"  # an interval that excludes zero must not read as if it began there
    assert signed(0.0) == signed(-0.0) == "0.0"
