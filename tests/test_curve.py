"""The learning curve: what its draws share, what each chooses for itself, what is drawn and said of it."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_results import MODELS, fake_run

import profiles
import reproduce
import train_cnn_head
import train_vit_lora
from common.data.dataset import load_dataset
from common.evaluation import uncertainty
from common.evaluation.comparison import compare
from common.evaluation.paired import paired_difference
from common.evaluation.uncertainty import compute_uncertainty
from common.grid import scheduler
from common.grid.grid import Arm, Grid
from common.report.curve import change_sentences, write_curves
from common.runs.predictions import read_predictions
from common.runs.result import find_runs, write_result
from reproduce import Config

RANDOM = {"weights": "random", "image_size": 32}
LORA, RESNET, *_ = MODELS
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
    assert said.count("the seeds of each model differ in their training images") == 1


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


def test_what_a_draw_brings_to_both_models_is_no_part_of_their_difference():
    rng = np.random.default_rng(0)
    draws = {seed: rng.random(400) < share for seed, share in enumerate((0.5, 0.7, 0.9))}
    worse = {seed: right & (np.arange(400) % 20 > 0) for seed, right in draws.items()}
    paired = paired_difference(draws, worse)
    assert 0.02 < paired.value < 0.05 and paired.interval().excludes_zero
    alone = paired_difference(draws, {seed: np.zeros(400, bool) for seed in draws})
    assert alone.standard_error > 10 * paired.standard_error  # where the draws' own spread is part of it
    equal = paired_difference(draws, draws)
    assert equal.value == 0 and 0 < equal.standard_error == pytest.approx(np.sqrt(3) / 400)
    assert paired_difference(draws, {1: worse[1]}).freedom == np.inf  # one draw in common: over images alone


def test_the_verdicts_of_all_results_are_paired_by_draw_too(tmp_path):
    rng = np.random.default_rng(0)
    for draw, share in enumerate((0.5, 0.7, 0.9)):
        right = rng.random(400) < share
        for name, its in ((LORA, right), (RESNET, right & (np.arange(400) % 20 > 0))):
            for number in {draw, draw + 10 * (name == LORA)}:  # LoRA has draws of its own, too
                run = fake_run(tmp_path, name, seed=number, num_test=400, right=its)
                write_result(run.folder, replace(run.result, config=run.result.config | {"split_seed": number}))
    pairs = compute_uncertainty(compare(find_runs(tmp_path)[0], {})[0]).pairs.set_index("metric")
    assert 0.02 < pairs.difference["accuracy"] < 0.05 and pairs.low["accuracy"] > 0
