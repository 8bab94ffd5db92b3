"""Uncertainty is computed once, kept, and made again where it does not fit; verdicts follow from intervals alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fake_results import MODELS, fake_run
from statsmodels.stats.multitest import multipletests

from common.evaluation import comparison, kept_statistics, metrics, uncertainty
from common.evaluation.formatting import count_seeds, interval, p_text, signed
from common.evaluation.frames import frames_of
from common.evaluation.kept_statistics import INTERVALS
from common.evaluation.metrics import HEADLINE, METRICS
from common.evaluation.plan import PLAN_FILE, Plan, matching_contrasts, read_plan, write_plan
from common.evaluation.spread import Spread
from common.evaluation.uncertainty import DIFFERENCES, Uncertainty, compute_uncertainty
from common.evaluation.verdicts import verdict_rows
from common.report import sentences
from common.report.sentences import named_pairs
from common.report.tables import write_verdicts
from common.runs.predictions import PREDICTIONS_FILE
from common.runs.result import RESULT_FILE, find_runs, read_result, write_result
from common.runtime.errors import UserError
from common.runtime.files import write_atomically

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
    monkeypatch.setattr(kept_statistics, "ALGORITHM", -1)
    assert numbers(uncertainty_of(folder)) == before and len(sampled) == 9


def test_a_new_metric_is_resampled_without_another_word(folder, sampled, monkeypatch):
    before = uncertainty_of(folder)
    error = metrics.Metric(
        "Error", lambda scores: 1 - scores.correct.mean(), lambda scores, n: ~scores.correct @ n.counts / 60
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


def test_one_seed_decides_nothing_however_large_the_difference(tmp_path):
    for name, seeds in ((LORA, 3), (RESNET, 1)):
        for seed in range(seeds):
            fake_run(tmp_path, name, seed=seed, num_test=400)
    pairs = uncertainty_of(tmp_path).pairs
    assert set(pairs.verdict) == {"one_seed"} and pairs.p.isna().all() and pairs.p_adjusted.isna().all()
    assert pairs.low.min() > 0.02  # the images alone would decide
    (sentence,) = verdict_sentences(compare(tmp_path))
    assert sentence.startswith("undecided: one seed, between ViT-B/16 + LoRA (r=16) and ResNet50 (published head): ")
    assert "over the test images alone; 3 seeds against one seed, 400 test images; " in sentence


def test_a_deterministic_run_is_compared_over_images_and_the_others_seeds(tmp_path):
    for folder_name, seeds in (("probe", 1), ("probe2", 1), (LORA, 3)):
        for seed in range(seeds):
            name = LORA if folder_name == LORA else RESNET
            run = fake_run(tmp_path, name, seed=seed, num_test=400, folder_name=folder_name, shift=len(folder_name))
            if folder_name != LORA:
                write_result(run.folder, replace(run.result, method="head_probe"))
    (compared,) = compare(tmp_path)
    found = {(pair.a, pair.b): pair for pair in compute_uncertainty([compared]).pairs.iloc[::3].itertuples()}
    assert {pair.metric for pair in found.values()} == {"accuracy"}
    accuracy = {series.name: [run.result.test.scores["accuracy"] for run in series.runs] for series in compared.series}
    pair = found[LORA, "probe"]
    assert pair.verdict == "better" and pair.winner == "a"
    assert pair.difference == pytest.approx(np.mean(accuracy[LORA]) - accuracy["probe"][0])
    assert pair.mcnemar_p_by_seed.startswith("0: ") and pair.mcnemar_p_by_seed.count(":") == 3
    sentences = verdict_sentences([compared])
    assert "; 3 seeds against a deterministic run, 400 test images" in sentences[0]
    assert "; two deterministic runs, 400 test images" in sentences[2] and found["probe", "probe2"].p_adjusted <= 1


def test_identical_models_are_equivalent_where_images_suffice(tmp_path):
    for size, dataset in ((40, "few"), (1_000, "many")):
        for folder_name in ("a", "b"):
            for seed in range(3):
                fake_run(tmp_path, RESNET, seed=seed, num_test=size, folder_name=folder_name, dataset=dataset)
                first, own = (tmp_path / dataset / each for each in ("a/seed0", f"{folder_name}/seed{seed}"))
                write_atomically(own / PREDICTIONS_FILE, (first / PREDICTIONS_FILE).read_bytes())
                write_result(own, replace(read_result(first / RESULT_FILE), seed=seed))
    found = uncertainty_of(tmp_path).pairs.set_index(["dataset", "metric"])
    assert (found.difference == 0).all() and (found.p_adjusted == 1).all()
    assert found.verdict["many"].to_dict() == {
        "accuracy": "equivalent",
        "f1_macro": "equivalent",
        "auc_macro": "undecided",
    }
    assert set(found.verdict["few"]) == {"undecided"}  # 40 images without a difference leave a rate of up to 3 / 40
    few, many = verdict_sentences(compare(tmp_path))
    assert (
        "[a] and ResNet50 (published head) [b] are equivalent within 1 point: accuracy 0.0 points (90 % inter" in many
    )
    assert "and more seeds alone do not reach 1 point: 40 test images show nothing under " in few
    assert set(compute_uncertainty(compare(tmp_path), margin=0.1).pairs.verdict) == {"undecided"}


def _three_models(folder, *, seeds=(0, 1, 2)):
    for name in (LORA, RESNET, EFFICIENTNET):
        for seed in seeds:
            fake_run(folder, name, dataset="digits", seed=seed, num_test=300)


def test_only_declared_pairs_are_tested_and_corrected_and_a_missing_run_undeclares_its_own(tmp_path):
    _three_models(tmp_path)
    plan = Plan(contrasts=((RESNET, LORA), (LORA, "missing")), seeds=(0, 1), margin=2.0)
    write_plan(tmp_path / "digits", plan)
    assert read_plan(tmp_path / "digits") == plan
    pairs = uncertainty_of(tmp_path).pairs.query("metric == 'accuracy'").set_index(["a", "b"])
    assert pairs.declared.to_dict() == {
        (LORA, RESNET): True, (LORA, EFFICIENTNET): False, (RESNET, EFFICIENTNET): False
    }  # fmt: skip
    declared, other = pairs.loc[LORA, RESNET], pairs.loc[LORA, EFFICIENTNET]
    assert declared.family == 1 and declared.p_adjusted == declared.p and declared.margin == 2
    assert (declared.verdict, declared.winner) == ("better", "a")
    assert other.p < 0.05 and other.low > 0 and (other.verdict, other.winner) == ("undecided", "")
    (sentence,) = verdict_sentences(compare(tmp_path))
    assert "2 seeds planned, 1 added after a first look, for which the interval does not correct" in sentence
    both = ((LORA, RESNET), (LORA, EFFICIENTNET))
    chosen = compute_uncertainty(compare(tmp_path), contrasts=both).pairs.query("metric == 'accuracy'")
    assert chosen.declared.tolist() == [True, True, False] and set(chosen.family) == {2}
    adjusted = chosen[chosen.declared].p_adjusted.tolist()
    assert adjusted == pytest.approx(multipletests(chosen[chosen.declared].p, method="holm")[1].tolist())


def test_a_plan_is_not_changed_by_what_the_results_may_have_shown(tmp_path):
    folder = tmp_path / "digits"
    assert write_plan(folder, Plan(((LORA, RESNET),), (0, 1), 1.0)) == []
    first = Plan(((LORA, RESNET), (LORA, "unseen")), (0, 1, 2), 2.0)
    assert write_plan(folder, first) == [] and read_plan(folder) == first  # nothing has been seen yet
    _three_models(tmp_path)
    later = Plan(((RESNET, LORA), (LORA, EFFICIENTNET), (RESNET, "new")), (0, 1, 2, 3, 4), 5.0)
    lines = write_plan(folder, later)
    assert read_plan(folder) == replace(first, contrasts=(*first.contrasts, (RESNET, "new")))
    assert [line.partition("first result: ")[2] for line in lines] == [
        "the margin stays 2; plot_results.py takes another as its `margin`",
        "seeds 3 4 are added to those planned, and said to be",
        "1 more pair of models that both have results, not declared; plot_results.py takes them as its `contrast`",
    ]
    assert write_plan(folder, first) == []


def test_a_sentence_has_the_seeds_of_the_better_model_first_and_the_table_those_of_model_a(tmp_path):
    for name, seeds, wrong in ((LORA, 2, 200), (RESNET, 3, 40)):
        for seed in range(seeds):
            fake_run(tmp_path, name, seed=seed, num_test=400, right=np.arange(400) > wrong + seed)
    (sentence,) = verdict_sentences(comparisons := compare(tmp_path))
    assert "; 3 seeds against 2 seeds, 400 test images" in sentence
    write_verdicts(frames_of(comparisons), compute_uncertainty(comparisons), tmp_path)
    assert "| 2 seeds against 3 seeds | 400 |" in (tmp_path / "verdicts.md").read_text()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"contrasts": [["a"]], "seeds": [], "margin": 1}', b"\xff"])
def test_a_damaged_plan_is_named(tmp_path, content):
    (tmp_path / PLAN_FILE).write_bytes(content)
    with pytest.raises(UserError, match="is damaged: delete it"):
        read_plan(tmp_path)


def test_without_a_plan_up_to_six_pairs_are_declared_and_above_those_with_the_best_on_validation(tmp_path):
    names = list(MODELS)[:5]
    for number, name in enumerate(names, start=1):
        fake_run(tmp_path, name, num_test=40)
        pairs = uncertainty_of(tmp_path).pairs.query("metric == 'accuracy'")
        assert len(pairs) == number * (number - 1) / 2
        assert pairs.declared.sum() == (len(pairs) if number < 5 else 4)
    val = {run.name: run.result.val.scores["accuracy"] for run in find_runs(tmp_path)[0]}
    best = max(val, key=val.get)
    assert all(best in (pair.a, pair.b) for pair in pairs[pairs.declared.astype(bool)].itertuples())
    fake_run(tmp_path, best, num_test=40, num_train=50_000)  # the best is now comparable to no other
    pairs = uncertainty_of(tmp_path).pairs.query("metric == 'accuracy'")
    assert len(pairs) == 6 and pairs.declared.all()
    fake_run(tmp_path, list(MODELS)[5], num_test=40)
    pairs = uncertainty_of(tmp_path).pairs.query("metric == 'accuracy'")
    assert len(pairs) == 10 and pairs.declared.sum() == 4


def test_contrasts_are_named_by_run_label_or_pattern(tmp_path):
    _three_models(tmp_path, seeds=(0,))
    comparisons = compare(tmp_path)
    assert matching_contrasts(comparisons, [("ResNet50 (published head)", "*lora*")]) == ((LORA, RESNET),)
    assert matching_contrasts(comparisons, [(LORA, "*head_mlp")]) == ((LORA, RESNET), (LORA, EFFICIENTNET))
    with pytest.raises(UserError, match=f"'nothing', which is no run or label; there are {LORA}"):
        matching_contrasts(comparisons, [(LORA, "nothing")])
    with pytest.raises(UserError, match="no two such models"):
        matching_contrasts(comparisons, [(LORA, "*lora*")])


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
        f"{value} points (95 % interval {low} to {high}, p {p_text(pairs.loc[0, 'p'])}; 3 seeds, 360 test images; "
        "one learning rate, not tuned, for ViT-B/16 + LoRA (r=16); the last epoch is the best)"
    ]
    swapped = pairs.rename(columns={"label_a": "label_b", "label_b": "label_a"})
    swapped = swapped.assign(difference=-0.2, low=-0.25, high=-0.1, winner="b", family=3, p_adjusted=0.012)
    (sentence,) = sentences.verdict_sentences(comparisons[0], swapped)
    assert sentence.startswith(
        "ViT-B/16 + LoRA (r=16) is better than ResNet50 (published head): accuracy +20.0 points "
        "(simultaneous 95 % interval +10.0 to +25.0, Holm's p 0.012; 3 seeds"
    )
    narrow = swapped.assign(difference=-0.004, verdict="better_within_margin")
    (sentence,) = sentences.verdict_sentences(comparisons[0], narrow)
    assert sentence.startswith(
        "ViT-B/16 + LoRA (r=16) is better than ResNet50 (published head), by less than 1 point: accuracy +0.4 points"
    )


@pytest.mark.parametrize(
    ("needed", "said"),
    [
        ({"seeds_needed": 9.0}, "; with 80 % power this shows 2.9 points; about 9 seeds would be needed for 1 point"),
        ({"seeds_needed": np.inf}, "2.9 points; more than 100 seeds would be needed for 1 point"),
        ({}, "; with 80 % power this shows 2.9 points"),
        (
            {"images_needed": 1163.0},
            "2.9 points, and more seeds alone do not reach 1 point: 360 test images show nothing under 1.8, about "
            "1,200 would be needed",
        ),
    ],
)
def test_an_undecided_pair_says_what_it_could_have_shown_and_what_would_be_needed(tmp_path, needed, said):
    for name in (LORA, RESNET):
        fake_run(tmp_path, name, num_test=360)
    comparisons = compare(tmp_path)
    pairs = named_pairs(frames_of(comparisons), compute_uncertainty(comparisons))
    plain = {"verdict": "undecided", "detectable": 0.029, "detectable_by_images": 0.018}
    pairs = pairs.assign(**plain, **{"seeds_needed": np.nan, "images_needed": np.nan} | needed)
    (sentence,) = sentences.verdict_sentences(comparisons[0], pairs)
    assert sentence.endswith(said)


def test_of_an_error_less_is_better():
    spreads = {("a", "b"): Spread(-0.1, 0.01, 100), ("a", "c"): Spread(0.1, 0.01, 100)}
    rows = verdict_rows(spreads, metric="brier", margin=1.0, declared=spreads, one_seed=())
    assert [row["winner"] for row in rows.values()] == ["a", "b"]


def test_numbers_in_words():
    assert interval(-0.0012, 0.031) == "-0.1 to +3.1"
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
