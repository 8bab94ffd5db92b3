"""The learning curve: what its draws share, what each chooses for itself, what is drawn and said of it."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_results import CROSSED, MODELS, fake_run

import profiles
import reproduce
import train_cnn_head
import train_vit_lora
from common.data.dataset import load_dataset
from common.evaluation import robustness, uncertainty
from common.evaluation.comparison import compare
from common.evaluation.frames import frames_of
from common.evaluation.plan import Plan, comparable_pairs, write_plan
from common.evaluation.uncertainty import compute_uncertainty
from common.grid import scheduler
from common.grid.grid import Arm, Grid
from common.report.curve import change_sentences, curve_differences, write_curves
from common.report.sentences import named_pairs, verdict_sentences
from common.runs.predictions import read_predictions
from common.runs.result import find_runs, write_result
from reproduce import Config

RANDOM = {"weights": "random", "image_size": 32}
LORA, PROBE = next(iter(MODELS)), next(iter(CROSSED))
SIZES = (60, 120)
DRAWS = (0, 1)


def _in_this_process(jobs, devices, done):
    for job in jobs:
        sys.modules[type(job.config).__module__].main(job.config)
        done(job)
    return {}


@pytest.fixture(scope="module")
def curve(tmp_path_factory) -> Path:
    """A curve of a probe and of LoRA over two sizes of digits, with random weights; its printed lines lie beside it."""
    folder = tmp_path_factory.mktemp("curve")
    rates = {"epochs": 2, "batch_size": 32, "lr": (1e-3, 1e-2), "rank": 2}
    arms = (
        Arm(train_cnn_head, "test_resnet.r160_in1k", profiles.CNN_PROBE | RANDOM),
        Arm(train_vit_lora, "test_vit.r160_in1k", profiles.LORA | profiles.TUNED | rates | RANDOM),
    )
    grids = [Grid(arms, {"digits": {"train_limit": size}}, seeds=DRAWS, tuned=True, draws=True) for size in SIZES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "run_all", _in_this_process)
        patch.setattr(uncertainty, "RESAMPLES", 100)
        patch.setattr(reproduce, "_announce_time", lambda config, grids, at_once: grids)
        patch.setitem(profiles.PROFILES, "curve", tuple(grids))
        patch.setitem(profiles.USUAL_DATASETS, "curve", ("digits",))
        lines = []
        patch.setattr("builtins.print", lambda *text, **_: lines.extend(map(str, text)))
        reproduce.main(Config(profile="curve", results_dir=folder / "results", figures_dir=folder / "figures"))
    (folder / "said.txt").write_text("\n".join(lines))
    return folder


def test_draws_lie_beside_one_another_as_seeds_do_and_differ_in_their_training_images(curve):
    runs, problems = find_runs(curve / "results" / "curve")
    assert not problems and len(runs) == len(SIZES) * 2 * len(DRAWS)
    for run in runs:
        assert run.result.config["split_seed"] == run.seed and "split" not in run.name
        assert f"-n{run.result.data.num_train}" in run.name


def test_all_draws_and_sizes_are_tested_on_the_same_images(real_data):
    """What `split_seed` changes of data that bring a test split: training and validation images, nothing else."""
    for name in ("digits", "fashion_mnist"):
        splits = [load_dataset(name, data_dir=real_data, split_seed=seed, train_limit=100) for seed in (0, 1)]
        one, two = splits
        assert np.array_equal(one.test.indices, two.test.indices)
        assert np.array_equal(one.test.labels, two.test.labels)
        assert not np.array_equal(one.train.indices, two.train.indices)
        assert not np.array_equal(one.val.indices, two.val.indices)
        larger = load_dataset(name, data_dir=real_data, split_seed=0, train_limit=1_000)
        assert set(one.train.indices) <= set(larger.train.indices)  # a draw's sizes are nested
        assert np.bincount(larger.train.labels).min() >= 97  # and stratified


def test_each_size_chooses_its_rate_by_the_first_draw(curve):
    for run in find_runs(curve / "results" / "curve", "*lora*")[0]:
        first = next(other for other in find_runs(run.folder.parent.parent.parent, run.name)[0] if other.seed == 0)
        assert len(run.result.trials) == (2 if run.seed == 0 else 1)
        assert run.result.history[0].lr == first.result.history[0].lr
        assert run.result.config["tuned_on"] == (None if run.seed == 0 else 0)
    assert not (curve / "results" / "curve" / "tuning").exists()


def test_probes_are_fitted_in_each_draw(curve):
    probes = find_runs(curve / "results" / "curve", "*probe*")[0]
    logits = [read_predictions(run.folder, run.result).logits.tobytes() for run in probes]
    assert len(set(logits)) == len(SIZES) * len(DRAWS)


def test_the_figure_joins_the_sizes_and_the_table_has_a_row_a_pair_and_size(curve):
    names = {path.name for path in (curve / "figures" / "curve").iterdir()}
    assert names == {"digits_few_shot.png", "digits_few_shot.pdf"}
    rows = pd.read_csv(curve / "results" / "curve" / "curve.csv")
    assert list(rows["size"]) == [6, 12] and set(rows["unit"]) == {"Training images a class"}
    assert set(rows["draws"]) == {2} and set(rows["num_test"]) == {359}
    runs = find_runs(curve / "results" / "curve")[0]
    for row in rows.itertuples():
        ours, theirs = (
            np.mean([run.test.scores["accuracy"] for run in runs if run.name == name])
            for name in (row.run, row.run_of_other)
        )
        assert row.difference == pytest.approx(ours - theirs) and row.low < row.difference < row.high
        assert (row.low > 0 or row.high < 0) == (row.holm_p < 0.05)
    said = (curve / "said.txt").read_text()
    assert "digits: test_vit + LoRA (r=2) against test_resnet (probe): " in said
    assert said.count("each draw has training images and a training seed of its own") == 1


def test_one_curve_alone_is_drawn_and_compared_with_nothing(curve, tmp_path):
    comparisons, _ = compare(find_runs(curve / "results" / "curve", "*lora*")[0], {})
    lines = write_curves(comparisons, tmp_path, tmp_path)
    assert {Path(line).name for line in lines} == {path.name for path in tmp_path.iterdir()}
    assert {path.stem for path in tmp_path.iterdir()} == {"digits_few_shot", "summary"}


def test_the_sizes_at_which_a_verdict_changes_are_said():
    words = ["worse", "worse", "undecided", "better", "better"]
    rows = pd.DataFrame({"size": [10, 30, 100, 300, 1_000], "verdict": words})
    rows = rows.assign(dataset="d", model="LoRA", other="probe", unit="Training images a class")
    assert change_sentences(rows) == [
        "d: LoRA against probe: worse at 10 and 30, undecided at 100, better at 300 and 1,000 training images a class; "
        "the verdict changes between 30 and 100 and between 100 and 300"
    ]
    (same,) = change_sentences(rows.assign(verdict="better"))
    assert same.endswith("better at 10, 30, 100, 300 and 1,000 training images a class; the verdict does not change")


def _draw(results: Path, name: str, number: int, right: np.ndarray, **more) -> None:
    run = fake_run(results, name, seed=number, num_test=len(right), right=right, **more)
    write_result(run.folder, replace(run.result, config=run.result.config | {"split_seed": number}))


def _three_draws() -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return by draw which of 400 images LoRA and a probe have right: draws differ much, the models little."""
    rng = np.random.default_rng(0)
    draws = {number: rng.random(400) < share for number, share in enumerate((0.5, 0.7, 0.9))}
    return {number: (right, right & (np.arange(400) % 20 > 0)) for number, right in draws.items()}


def test_what_a_draw_brings_to_both_models_is_no_part_of_their_difference(tmp_path, monkeypatch):
    right = {}
    for number, (ours, theirs) in _three_draws().items():
        _draw(tmp_path, LORA, number, ours)
        _draw(tmp_path, LORA, number + 10, ours)  # draws of its own, too
        _draw(tmp_path, PROBE, number, theirs)
        right |= {(LORA, number): ours, (PROBE, number): theirs}
    comparisons, _ = compare(find_runs(tmp_path)[0], {})
    pair = compute_uncertainty(comparisons).pairs.set_index("metric").loc["accuracy"]
    assert 0.02 < pair.difference < 0.05 and pair.low > 0
    monkeypatch.setattr(robustness, "share_correct", lambda run, kinds: right[run.name, run.seed].astype(float))
    spread = robustness._spread(*comparable_pairs(comparisons[0])[0], ["fog"])
    assert spread.value == pytest.approx(pair.difference) and spread.estimate.interval().excludes_zero


def test_a_sentence_names_the_draws_that_a_difference_rests_on(tmp_path):
    for number, (ours, theirs) in _three_draws().items():
        for name, its in ((LORA, ours), (PROBE, theirs)):
            if (name, number) != (PROBE, 2):
                _draw(tmp_path, name, number, its)
    assert "2 draws, 400 test images" in _sentence(tmp_path)


def test_one_draw_against_several_decides_nothing_also_of_a_probe(tmp_path):
    ours, theirs = _three_draws()[0]
    for number in range(3):
        _draw(tmp_path, LORA, number, ours)
    _draw(tmp_path, PROBE, 0, theirs & (np.arange(400) % 2 > 0))
    assert _sentence(tmp_path).startswith("undecided: one draw, between ")


def _sentence(results: Path) -> str:
    comparisons, _ = compare(find_runs(results)[0], {})
    pairs = named_pairs(frames_of(comparisons), compute_uncertainty(comparisons))
    (sentence,) = verdict_sentences(comparisons[0], pairs)
    return sentence


def test_the_curve_says_of_a_pair_what_all_results_say_of_it(tmp_path):
    """Better by much on 1,000 training images, and by so little on 5,000 that the plan's margin makes them equal."""
    images, names = np.arange(4_000), {}
    for size, lost in ((1_000, 20), (5_000, 2_000)):
        names[size] = [f"{name}-n{size}" for name in (PROBE, LORA)]
        for number in range(3):
            for name, right in ((LORA, images > 400), (PROBE, (images > 400) & (images % lost > 0))):
                sized = {"num_train": size, "train_limit": size, "folder_name": f"{name}-n{size}"}
                _draw(tmp_path, name, number, right & (images % 97 != number), **sized)
    write_plan(tmp_path / "cifar10", Plan(tuple(map(tuple, names.values())), (0, 1, 2), margin=1.0))
    comparisons, _ = compare(find_runs(tmp_path)[0], {})
    found = compute_uncertainty(comparisons)
    rows = curve_differences(comparisons[0], found)
    assert list(rows.verdict) == ["better", "equivalent within 1 point"] and (rows.model != rows.other).all()
    (line,) = write_curves(comparisons, tmp_path, tmp_path)[-1:]
    assert "better at 100, equivalent within 1 point at 500 training images a class; the verdict changes" in line
    pairs = found.pairs.query("metric == 'accuracy' and declared == True").set_index("a")
    assert set(pairs.verdict) == {"better", "equivalent"}
    for row in rows.itertuples():
        assert row.difference == pairs.loc[row.run].difference and row.holm_p == pairs.loc[row.run].p_adjusted
