"""Folds: each image is tested once, models are compared fold by fold, and at the end all images are trained on."""

import csv
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_results import MODELS, fake_run
from PIL import Image
from sklearn.datasets import load_digits

import evaluate
import reproduce
import train_cnn_head
from common import cli
from common.data.dataset import DatasetSplits, load_dataset
from common.data.splits import stratified_folds
from common.evaluation import robustness
from common.evaluation.comparison import Comparison, Series, compare
from common.evaluation.folds import FoldSpread
from common.evaluation.frames import frames_of
from common.evaluation.uncertainty import Uncertainty, compute_uncertainty
from common.figures import FIGURES, style
from common.grid import scheduler
from common.report.explorer import read_test_predictions
from common.report.html import write_report
from common.report.sentences import named_pairs, verdict_sentences
from common.report.tables import write_summary, write_verdicts
from common.runs.naming import model_name, run_name
from common.runs.predictions import read_predictions
from common.runs.result import RESULT_FILE, Run, find_runs, read_result, write_result
from common.runtime.errors import UserError

LORA, RESNET, EFFICIENTNET, *_ = MODELS
TINY = {
    **{"backbone": "test_resnet", "weights": "random", "image_size": 32, "precision": "fp32", "feature_cache": False},
    **{"workers": 0, "val_fraction": 0.2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Three digits as an image folder without a test split: 15, 14 and 13 images."""
    root, digits = tmp_path_factory.mktemp("images") / "few", load_digits()
    for label, count in ((0, 15), (1, 14), (2, 13)):
        (root / f"digit{label}").mkdir(parents=True)
        for number in np.flatnonzero(digits.target == label)[:count]:
            pixels = (digits.images[number] * 15.9).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"digit{label}" / f"{number:04d}.png")
    return str(root)


def _load(folder: str, **settings) -> DatasetSplits:
    return load_dataset(folder, data_dir=Path("data"), val_fraction=0.2, **settings)


# The data


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_the_parts_and_those_of_every_class_differ_by_one_image_at_most(folds):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [40, 11, 7]))
    parts = stratified_folds(labels, folds, np.random.default_rng(1))
    for chosen in (slice(None), *(labels == label for label in range(3))):
        sizes = np.bincount(parts[chosen], minlength=folds)
        assert sizes.max() - sizes.min() <= 1 and sizes.min() >= 1


def test_every_image_is_tested_once_and_validation_is_taken_from_the_rest(folder):
    whole, splits = _load(folder, all_images=True), [_load(folder, folds=5, fold=fold) for fold in range(5)]
    everything = np.arange(42)
    assert np.array_equal(np.sort(np.concatenate([each.test.indices for each in splits])), everything)
    for each in splits:
        parts = [images.indices for images in (each.train, each.val, each.test)]
        assert np.array_equal(np.sort(np.concatenate(parts)), everything)  # positions in the whole folder
        assert set(each.test.labels) == set(each.val.labels) == {0, 1, 2}
        assert each.fingerprint == whole.fingerprint
    assert not len(whole.test) and len(whole.train) + len(whole.val) == 42
    other = _load(folder, folds=5, split_seed=1)
    assert not np.array_equal(other.test.indices, splits[0].test.indices)
    assert "fold 3 (from 0) of 5" in " ".join(splits[3].notes) and "no test score" in " ".join(whole.notes)


@pytest.mark.parametrize(
    ("dataset", "settings", "words"),
    [
        (None, {"folds": 14}, "needs at least 14 images of each class, and the smallest class, 'digit2', has 13"),
        ("digits", {"folds": 5}, "`folds` 5 is for an image folder without a test split; these data have one"),
        ("digits", {"all_images": True}, "`all_images` is for an image folder without a test split"),
    ],
)
def test_folds_that_cannot_be_are_refused_in_a_line(folder, dataset, settings, words):
    with pytest.raises(UserError, match=words):
        _load(dataset or folder, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"folds": 0}, "`folds` 0 is not possible"),
        ({"folds": 5, "fold": 5}, "`fold` 5 is not possible: it must be 0 or more, and below `folds`, 5"),
        ({"fold": 1}, "`fold` 1 is not possible"),
        ({"folds": 5, "all_images": True}, "given without `folds` and `test_limit`"),
        ({"test_limit": 9, "all_images": True}, "given without `folds` and `test_limit`"),
    ],
)
def test_wrong_values_are_refused_by_name(settings, words):
    with pytest.raises(UserError, match=words):
        train_cnn_head.Config(**settings)


def test_small_data_without_a_test_split_have_five_folds_or_as_many_as_the_smallest_class_has_images(folder, tmp_path):
    assert _load(folder, folds=None).folds == 5
    assert _load("digits", folds=None).folds == 1
    for label, count in (("a", 3), ("b", 9)):
        (tmp_path / label).mkdir()
        for number in range(count):
            Image.new("L", (4, 4), number).save(tmp_path / label / f"{number}.png")
    assert _load(str(tmp_path), folds=None).folds == 3


# The runs


def test_the_fold_ends_a_runs_name_and_is_never_cut_off(folder):
    config = train_cnn_head.Config(folds=5, fold=2, epochs=9)
    assert run_name(config, backbone="resnet50", image_size=None) == "resnet50-head_mlp-ep9-fold2of5"
    names = {
        run_name(replace(config, fold=fold, lr=tuple(np.linspace(0.1, 0.9, 30))), backbone="resnet50", image_size=None)
        for fold in range(5)
    }
    assert len(names) == 5 and max(map(len, names)) < 150
    assert len({model_name(name) for name in names}) == 1


def _train(results: Path, dataset: str, **settings) -> Run:
    config = train_cnn_head.Config(dataset=dataset, results_dir=results, **TINY | settings)
    train_cnn_head.main(config)
    return next(run for run in find_runs(results)[0] if (run.seed, run.fold) == (config.seed, config.fold))


# A comparison


def _fold_run(results: Path, name: str = RESNET, *, fold: int, folds: int = 5, seed: int | None = None, **more) -> Run:
    """Write a run on fold ``fold`` of 200 images, its seed the same number unless given."""
    seed = fold if seed is None else seed
    more = {"num_test": 200 // folds, "num_train": 150, "classes": ("a", "b", "c", "d")} | more
    run = fake_run(results, name, seed=seed, folder_name=f"{name}-fold{fold}of{folds}", **more)
    config = run.result.config | {"folds": folds, "fold": fold, "split_seed": 0}
    write_result(run.folder, replace(run.result, config=config))
    return Run(run.folder, read_result(run.folder / RESULT_FILE))


def _compared(results: Path) -> tuple[Comparison, Uncertainty, list[str]]:
    found, problems = find_runs(results)
    (comparison,), lines = compare(found, {})
    assert not problems
    return comparison, compute_uncertainty([comparison]), lines


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Two models on five folds."""
    folder = tmp_path_factory.mktemp("results")
    for name in (LORA, RESNET):
        for fold in range(5):
            _fold_run(folder, name, fold=fold)
    return folder


def test_the_folds_of_a_model_are_one_series_whose_label_does_not_show_them(results):
    comparison, _, lines = _compared(results)
    assert lines == [] and comparison.num_test == 200
    labels = ["ViT-B/16 + LoRA (r=16)", "ResNet50 (published head)"]
    assert [(series.label, len(series.runs)) for series in comparison.series] == [(label, 5) for label in labels]
    assert len(frames_of([comparison]).runs) == 10


def test_the_difference_is_nadeau_and_bengios(results):
    comparison, uncertainty, _ = _compared(results)
    lora, resnet = ([run.test.scores["accuracy"] for run in series.runs] for series in comparison.series)
    differences = np.subtract(lora, resnet)
    row = uncertainty.pairs.query("metric == 'accuracy'").iloc[0]
    assert row.difference == pytest.approx(differences.mean())
    # 40 test images; 150 for training and 20 for validation
    reach = 2.776445 * np.sqrt((1 / 5 + 40 / 170) * differences.var(ddof=1))
    assert [row.low, row.high] == pytest.approx([row.difference - reach, row.difference + reach], abs=1e-6)
    (sentence,) = verdict_sentences(comparison, named_pairs(frames_of([comparison]), uncertainty))
    assert "5 folds, 200 test images" in sentence and "seed" not in sentence


def _false_claims(images: int, repetitions: int, correction: bool = True) -> float:
    """Return how often two equally good classifiers (nearest class mean) are found to differ in 5 folds."""
    rng, labels, found = np.random.default_rng(0), np.arange(images) % 3, 0
    for _ in range(repetitions):
        inputs = rng.standard_normal((2, images, 9)) + 0.55 * np.tile(np.eye(3), (1, 3))[labels]
        parts = stratified_folds(labels, 5, rng)
        accuracy = [[_accuracy(its, labels, parts == fold) for fold in range(5)] for its in inputs]
        spread = FoldSpread(np.subtract(*accuracy), 1 / 4 if correction else 0.0, images)
        found += spread.estimate.p < 0.05
    return found / repetitions


def _accuracy(inputs: np.ndarray, labels: np.ndarray, tested: np.ndarray) -> float:
    means = np.stack([inputs[~tested & (labels == label)].mean(axis=0) for label in range(3)])
    distances = ((inputs[tested][:, None] - means) ** 2).sum(axis=-1)
    return (distances.argmin(axis=1) == labels[tested]).mean()


def test_equally_good_classifiers_are_rarely_found_to_differ():
    assert _false_claims(100, 600) <= 0.04 < _false_claims(100, 600, correction=False)


def test_folds_that_agree_leave_an_error():
    """Of five folds of 20 images, each with one image more for the first model, or none on which the two differ."""
    for difference in (0.05, 0.0):
        spread = FoldSpread(np.full(5, difference), 1 / 4, 100, least=np.sqrt(3) / 100)
        assert spread.estimate.standard_error == pytest.approx(np.sqrt(3) / 100 * 1.5)  # inflated as any: 1 + 5 / 4
        assert spread.estimate.p > 0.05 and not spread.estimate.is_within(0.01)
    widely = FoldSpread(np.array([0.1, 0.2, 0.3, 0.2, 0.1]), 1 / 4, 100)
    assert widely.estimate == widely._replace(least=np.sqrt(3) / 100).estimate


def test_models_that_predict_alike_in_few_folds_are_not_called_equivalent(tmp_path):
    for name in (LORA, RESNET):
        for fold in range(5):
            _fold_run(tmp_path, name, fold=fold, num_test=20, right=np.arange(20) > 2)
    pairs = _compared(tmp_path)[1].pairs.set_index("metric")
    assert pairs.difference["accuracy"] == 0 and pairs.verdict["accuracy"] == "undecided"


def test_models_with_other_folds_are_compared_on_those_that_both_have(tmp_path):
    for fold in range(3):
        _fold_run(tmp_path, LORA, fold=fold)
        _fold_run(tmp_path, RESNET, fold=fold + 1)
    comparison, uncertainty, _ = _compared(tmp_path)
    row = uncertainty.pairs.query("metric == 'accuracy'").iloc[0]
    lora, resnet = ({run.fold: run.test.scores["accuracy"] for run in series.runs} for series in comparison.series)
    assert row.difference == pytest.approx(np.mean([lora[fold] - resnet[fold] for fold in (1, 2)]))
    assert row.mcnemar_p_by_seed.startswith("1: ") and "; 2: " in row.mcnemar_p_by_seed
    assert len(read_test_predictions(comparison).indices)


def test_one_fold_alone_decides_nothing(tmp_path):
    for name in (LORA, RESNET):
        _fold_run(tmp_path, name, fold=0)
    comparison, uncertainty, _ = _compared(tmp_path)
    assert set(uncertainty.pairs.verdict) == {"one_seed"}
    (sentence,) = verdict_sentences(comparison, named_pairs(frames_of([comparison]), uncertainty))
    assert sentence.startswith("undecided: one fold, between ")


def test_corrupted_images_of_one_fold_in_common_have_an_interval(tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "share_correct", lambda run, kinds: np.arange(8) % (2 + (run.name == LORA)) > 0)
    one, other = (Series(name, name, "", "head_mlp", (_fold_run(tmp_path, name, fold=0),)) for name in (LORA, RESNET))
    low, high = robustness._spread(one, other, ["fog"]).estimate.interval()
    assert low < 0.125 < high


def test_other_cuts_and_further_seeds_of_a_fold_are_left_out_by_name(results, tmp_path):
    for fold in range(5):
        _fold_run(tmp_path, fold=fold)
    _fold_run(tmp_path, fold=0, seed=7)
    _fold_run(tmp_path, EFFICIENTNET, fold=0, folds=10)
    fake_run(tmp_path, LORA, num_test=40)
    comparison, _, lines = _compared(tmp_path)
    assert [len(series.runs) for series in comparison.series] == [5]
    assert "fold0of5/seed7' is a further seed on its fold; folds have one seed each" in lines[0]
    assert sum("was tested on other images than the 5 runs" in line for line in lines) == 2 and len(lines) == 3


def test_figures_tables_and_report_speak_of_folds(results, tmp_path):
    comparison, uncertainty, _ = _compared(results)
    frames = frames_of([comparison])
    for name, spec in FIGURES.items():
        if spec.across or not spec.wanted(comparison, frames, uncertainty):
            continue
        with style.context():
            figure = spec.draw(comparison, frames, uncertainty)
        words = "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))
        assert "fold" in words and "seed" not in words, name
        if name == "confusion_matrices":
            assert "Summed over 5 folds: each image once." in words
    write_summary(frames, uncertainty, tmp_path)
    write_verdicts(frames, uncertainty, tmp_path)
    assert "| 5 folds |" in (tmp_path / "summary.md").read_text()
    assert "| 5 folds | 200 |" in (tmp_path / "verdicts.md").read_text()
    with open(tmp_path / "summary.csv") as file:
        assert [row["folds"] for row in csv.DictReader(file)] == ["5"] * 10
    figures = {"cifar10": [], "": []}
    write_report(tmp_path / "report.html", [comparison], frames, uncertainty, figures=figures, data_dir=None)
    page = (tmp_path / "report.html").read_text()
    assert "<h4>Fold 3</h4>" in page and "all folds" in page


def test_the_closer_look_has_each_image_once(results):
    comparison, _, _ = _compared(results)
    tested = read_test_predictions(comparison)
    shared = np.unique(np.concatenate([read_predictions(run.folder, run.result).indices
                                       for run in comparison.series[0].runs]))  # fmt: skip
    assert tested.predicted.shape == (2, len(tested.indices)) and np.array_equal(tested.indices, shared)


# reproduce.py compare


@pytest.fixture
def in_this_process(monkeypatch):
    """Make the runs of a grid in this process, without an estimate of the time and without figures."""

    def run_all(jobs, devices, done):
        for job in jobs:
            sys.modules[type(job.config).__module__].main(job.config)
        return {}

    monkeypatch.setattr(scheduler, "run_all", run_all)
    monkeypatch.setattr(reproduce.plot_results, "main", lambda config: None)
    monkeypatch.setattr(reproduce, "_announce_time", lambda config, grids, at_once: grids)


def _config(folder: str, tmp_path: Path, **settings) -> reproduce.Config:
    places = {"results_dir": tmp_path / "results", "figures_dir": tmp_path / "figures"}
    return reproduce.Config(profile="compare", dataset=folder, backbones=("demo_resnet",), **places | settings)


def test_compare_plans_one_seed_a_fold_tuned_on_the_first(folder, tmp_path, capsys):
    config = _config(folder, tmp_path)
    jobs = reproduce._jobs(config, reproduce._grids(config))
    assert "compare: 42 images without a test split: 5 stratified folds, one seed each" in capsys.readouterr().err
    shown = [job.config for job in jobs if "tuning" not in str(job.folder)]
    assert [(each.method, each.folds, each.fold, each.seed) for each in shown] == [
        (method, 5, fold, fold) for method in ("head_probe", "head_mlp") for fold in range(5)
    ]
    heads = [job for job in jobs if job.config.method == "head_mlp" and job.config.tuned_on is not None]
    assert {job.follows.parent.name[-8:] for job in heads} == {"fold0of5"} and len(heads) == 4
    for settings, count in (({"folds": 1}, 1 + 5 + 1), ({"seeds": (0,)}, 1 + 1 + 1)):
        single = _config(folder, tmp_path, **settings)
        jobs = reproduce._jobs(single, reproduce._grids(single))
        assert {job.config.folds for job in jobs} == {1} and len(jobs) == count
    with pytest.raises(UserError, match=r"`seeds` .* left out with `folds`"):
        _config(folder, tmp_path, seeds=(0,), folds=5)


def test_compare_ends_with_the_command_that_trains_on_all_images(folder, tmp_path, capsys, in_this_process):
    config = _config(folder, tmp_path, methods=("probe",), folds=3)
    reproduce.main(config)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("few: 42 test images") and line.endswith("3 folds") for line in lines)
    place = next(number for number, line in enumerate(lines) if "none of these models has seen all images" in line)
    _, script, *flags = shlex.split(lines[place + 1])
    assert script == "train_cnn_head.py" and "--all-images" in flags
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, flags) == 0
    assert "no test score, all images were trained on; validation accuracy" in capsys.readouterr().out

    _, script, run, *_ = shlex.split(lines[place + 3])
    result = read_result(Path(run) / RESULT_FILE)
    assert result.test is None and result.data.num_test == 0 and result.data.num_train + result.data.num_val == 42
    labels = tmp_path / "labels.csv"
    assert cli.run(evaluate.main, evaluate.Config, [run, "--predict", folder, "--out", str(labels)]) == 0
    assert len(labels.read_text().splitlines()) == 43
    assert cli.run(evaluate.main, evaluate.Config, [run]) == 0
    assert "no test images, validation: accuracy" in capsys.readouterr().out

    assert cli.run(train_cnn_head.main, train_cnn_head.Config, flags) == 0
    assert "(trained on all images)" in capsys.readouterr().out
    _, left_out = compare(find_runs(tmp_path / "results" / "compare")[0], {})
    assert left_out == [f"left out: {run!r} was trained on all images and has no test score"]
