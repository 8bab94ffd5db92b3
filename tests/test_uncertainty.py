"""Uncertainty is computed once, kept, and made again where it does not fit; verdicts follow from intervals alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fake_results import MODELS, fake_run

from common.evaluation import comparison, metrics, uncertainty
from common.evaluation.formatting import count_seeds, interval, signed
from common.evaluation.frames import frames_of
from common.evaluation.metrics import HEADLINE, METRICS
from common.evaluation.significance import Estimate, verdict
from common.evaluation.uncertainty import DIFFERENCES, INTERVALS, Uncertainty, compute_uncertainty
from common.report import sentences
from common.report.sentences import named_pairs
from common.runs.result import RESULT_FILE, find_runs, write_result

LORA, RESNET, EFFICIENTNET, *_ = MODELS


def compare(folder, pattern="*"):
    runs, problems = find_runs(folder, pattern)
    assert problems == []
    return comparison.compare(runs, {})[0]


def uncertainty_of(folder, pattern="*"):
    return compute_uncertainty(compare(folder, pattern))


def numbers(found: Uncertainty) -> list:
    return [table.to_csv() for table in (found.runs, found.means, found.pairs, found.calibration)]


def verdict_sentences(comparisons) -> list[str]:
    pairs = named_pairs(frames_of(comparisons), compute_uncertainty(comparisons))
    return [sentence for one in comparisons for sentence in sentences.verdict_sentences(one, pairs)]


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
    before = numbers(uncertainty_of(folder))
    assert len(sampled) == 4
    assert numbers(uncertainty_of(folder)) == before and len(sampled) == 4
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))


def test_a_new_model_resamples_the_others_for_its_pairs_and_a_subset_keeps_the_rest(folder, sampled):
    assert len(uncertainty_of(folder).pairs) == 1 * len(HEADLINE)
    fake_run(folder, EFFICIENTNET, num_test=60)
    assert len(uncertainty_of(folder).pairs) == 3 * len(HEADLINE) and len(sampled) == 4 + 5
    assert uncertainty_of(folder, LORA).pairs.empty
    assert len(uncertainty_of(folder).pairs) == 3 * len(HEADLINE) and len(sampled) == 9


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"sha256": 1, "algorithm": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_or_foreign_file_is_made_again(folder, content):
    before = numbers(uncertainty_of(folder))
    files = [*folder.rglob(INTERVALS), *folder.rglob(DIFFERENCES)]
    good = {path: path.read_bytes() for path in files}
    assert len(files) == 5
    for path in files:
        path.write_bytes(content)
    assert numbers(uncertainty_of(folder)) == before
    assert {path: path.read_bytes() for path in files} == good


def test_a_changed_digit_or_another_algorithm_is_made_again(folder, sampled, monkeypatch):
    before = numbers(uncertainty_of(folder))
    path = next(folder.rglob(INTERVALS))
    path.write_text(path.read_text().replace("0.9", "0.8", 1))
    assert numbers(uncertainty_of(folder)) == before and len(sampled) == 5
    monkeypatch.setattr(uncertainty, "ALGORITHM", 2)
    assert numbers(uncertainty_of(folder)) == before and len(sampled) == 9


def test_a_new_metric_is_resampled_without_another_word(folder, sampled, monkeypatch):
    before = uncertainty_of(folder)
    error = metrics.Metric(
        "Error", lambda scores: 1 - scores.correct.mean(), lambda scores, n: ~scores.correct @ n / 60
    )
    monkeypatch.setitem(METRICS, "error", error)
    after = uncertainty_of(folder)
    assert len(sampled) == 4 + 4 and set(after.runs.metric) - set(before.runs.metric) == {"error"}
    values = after.runs.pivot(index=["run", "seed"], columns="metric", values="value")
    assert np.allclose(values.error, 1 - values.accuracy)
    assert frames_of(compare(folder)).runs.test_error.isna().all()  # the stored results do not have it


def test_other_predictions_are_resampled(folder, sampled):
    uncertainty_of(folder)
    assert len(sampled) == 4
    intervals = next(folder.rglob(f"{RESNET}/seed1/{INTERVALS}"))
    kept = intervals.read_bytes()
    fake_run(folder, RESNET, seed=1, num_test=60, shift=7)
    uncertainty_of(folder)
    assert len(sampled) == 4 + 4  # its pair needs the other model too
    assert intervals.read_bytes() != kept


def test_a_folder_that_cannot_be_written_is_no_error(folder):
    for seed in folder.glob("*/*/seed*"):
        (seed / INTERVALS).mkdir()
    (folder / "cifar10" / DIFFERENCES).mkdir()
    assert len(uncertainty_of(folder).pairs) == len(HEADLINE)
    assert not list(folder.rglob("*.tmp"))


def test_many_images_are_shared_out_to_processes_with_the_same_numbers(folder, monkeypatch):
    monkeypatch.setattr(uncertainty, "RESAMPLES", 2_000)  # as the new processes read it
    before = numbers(uncertainty_of(folder))
    for path in folder.rglob("*.json"):
        if path.name != RESULT_FILE:
            path.unlink()
    monkeypatch.setattr(uncertainty, "LARGE", 0)
    assert numbers(uncertainty_of(folder)) == before


def test_values_are_the_numbers_of_the_records(folder):
    comparisons = compare(folder)
    found = compute_uncertainty(comparisons)
    records = {(run.name, run.seed): run.test.scores for series in comparisons[0].series for run in series.runs}
    for row in found.runs.itertuples():
        value = records[row.run, row.seed][row.metric]
        assert row.value == pytest.approx(value, rel=1e-6) and row.low <= value <= row.high
    assert set(found.runs.metric) == {name for name, metric in METRICS.items() if metric.resampled}
    for row in found.calibration.itertuples():
        assert row.ece == records[row.run, row.seed]["ece"] and row.brier == records[row.run, row.seed]["brier"]
        assert sum(row.bins["images"]) == sum(row.bins_scaled["images"]) == 60
    for row in found.means.itertuples():
        seeds = [records[row.run, seed][row.metric] for seed in (0, 1)]
        assert row.value == pytest.approx(np.mean(seeds), rel=1e-6) and row.low <= row.value <= row.high


def test_pairs_are_models_with_equally_many_training_images(tmp_path):
    for name, num_train in ((LORA, 1_000), (RESNET, 1_000), (EFFICIENTNET, 500)):
        fake_run(tmp_path, name, num_test=40, num_train=num_train)
    pairs = uncertainty_of(tmp_path).pairs
    assert list(zip(pairs.a, pairs.b, pairs.metric, strict=True)) == [(LORA, RESNET, name) for name in HEADLINE]
    (lonely,) = verdict_sentences(compare(tmp_path, EFFICIENTNET))
    assert lonely == "nothing to compare, a single model"


def test_identical_predictions_are_no_difference(tmp_path):
    for folder_name in ("a", "b"):
        fake_run(tmp_path, RESNET, num_test=40, folder_name=folder_name)
    pair = uncertainty_of(tmp_path).pairs.iloc[0]
    assert (pair.mcnemar_p_min, pair.mcnemar_p_max, pair.holm_p) == (1.0, 1.0, 1.0)
    (sentence,) = verdict_sentences(compare(tmp_path))
    assert "no difference seen between ResNet50 (published head) [a] and" in sentence
    assert "accuracy 0.0 points (95 % interval 0.0 to 0.0; one seed, 40 test images; one learning rate" in sentence


def test_a_class_without_images_leaves_the_auc_undefined(tmp_path):
    for name in (LORA, RESNET):
        fake_run(tmp_path, name, num_test=9)
    for _ in ("computed", "as it was kept"):
        pairs = uncertainty_of(tmp_path).pairs.set_index("metric")[["difference", "low", "high"]]
        assert pairs.loc["auc_macro"].isna().all() and pairs.loc["accuracy"].notna().all()


def test_the_better_model_comes_first_and_the_remark_names_the_untuned(tmp_path):
    for name, trials in ((LORA, 1), (RESNET, 3)):
        for seed in range(3):
            fake_run(tmp_path, name, dataset="digits", seed=seed, num_test=360, trials=trials)
    comparisons = compare(tmp_path)
    pairs = named_pairs(frames_of(comparisons), compute_uncertainty(comparisons))
    value, low, high = (f"{100 * number:+.1f}" for number in pairs.loc[0, ["difference", "low", "high"]])
    assert verdict_sentences(comparisons) == [
        "ViT-B/16 + LoRA (r=16) is better than ResNet50 (published head): accuracy "
        f"{value} points (95 % interval {low} to {high}; 3 seeds, 360 test images; "
        "one learning rate, not tuned, for ViT-B/16 + LoRA (r=16); the last epoch is the best)"
    ]
    swapped = pairs.rename(columns={"label_a": "label_b", "label_b": "label_a"})
    swapped = swapped.assign(difference=-0.2, low=-0.25, high=-0.1, verdict="worse")
    (sentence,) = sentences.verdict_sentences(comparisons[0], swapped)
    assert sentence.startswith(
        "ViT-B/16 + LoRA (r=16) is better than ResNet50 (published head): accuracy +20.0 points (95 % interval +10.0"
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


def test_of_an_error_less_is_better():
    assert verdict(Estimate(-0.1, -0.2, -0.05), higher_is_better=False) == "better"
    assert verdict(Estimate(0.1, 0.05, 0.2), higher_is_better=False) == "worse"


def test_numbers_in_words():
    assert interval(Estimate(0.01, -0.0012, 0.031)) == "-0.1 to +3.1"
    assert signed(0.0003) == "+0.03"  # an interval that excludes zero must not read as if it began there
    assert signed(0.0) == signed(-0.0) == "0.0"
    assert [count_seeds(1), count_seeds(3, 3), count_seeds(2, 5)] == ["1 seed", "3 seeds", "2 to 5 seeds"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"threads": 2, "torch": "2.13"}, "the seeds of ResNet50 (published head) differ in CPU threads, torch"),
        ({"git_commit": "b"}, "the seeds of ResNet50 (published head) differ in code"),
        ({"git_commit": "b", "code_sha256": "1"}, None),  # the commits differ elsewhere
        ({"code_sha256": "2"}, "the seeds of ResNet50 (published head) differ in code"),
    ],
)
def test_seeds_that_were_computed_otherwise_are_noted(tmp_path, changed, said):
    own = {"threads": 1, "torch": "2.14", "git_commit": "a", "code_sha256": "1"}
    if "git_commit" in changed and "code_sha256" not in changed:
        del own["code_sha256"]  # an older record
    for seed, environment in enumerate((own, own | changed)):
        run = fake_run(tmp_path, seed=seed, num_test=20)
        write_result(run.folder, replace(run.result, environment=run.result.environment | environment))
    (compared,), lines = comparison.compare(find_runs(tmp_path)[0], {})
    assert list(compared.notes) == ([said] if said else [])
    assert any(said in line for line in lines) if said else not lines
