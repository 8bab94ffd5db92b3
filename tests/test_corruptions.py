"""Corrupted test images: the same for every run, drawn once for the heads of one backbone, compared by the verdicts."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from finished import TINY

import evaluate
import plot_results
import train_cnn_head
import train_vit_lora
from common import cli, figures
from common.data.corruptions import KINDS, SEVERITIES, corrupt, prepare
from common.evaluation import robustness
from common.evaluation.comparison import compare
from common.evaluation.corruption_scores import read_kinds, share_correct
from common.runs.result import find_runs
from common.training import robustness as scoring
from common.training.features import FrozenForward


def _evaluate(*argv: object) -> int:
    return cli.run(evaluate.main, evaluate.Config, [str(word) for word in argv])


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Two seeds of a head, another head on the same backbone, and LoRA; all on the same 20 digits, fog and pixelate."""
    folder = tmp_path_factory.mktemp("results")
    cnn = ("--backbone=test_resnet", "--lr=1e-2", "--no-feature-cache")
    for script, name, flags in (
        (train_cnn_head, "mlp", cnn),
        (train_cnn_head, "mlp", (*cnn, "--seed=1")),
        (train_cnn_head, "linear", (*cnn, "--head=linear")),
        (train_vit_lora, "lora", ("--backbone=test_vit", "--rank=2", "--lr=1e-2")),
    ):
        argv = [*TINY, "--results-dir", str(folder), "--run-name", name, *flags]
        assert cli.run(script.main, script.Config, argv) == 0
    assert _evaluate(*sorted((folder / "digits").glob("*")), "--corrupt", "fog", "pixelate", "--workers", "0") == 0
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_is_drawn_from_kind_severity_and_number_alone(kind):
    prepare((kind,))
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    first = [corrupt(image, kind, severity, 7) for severity in SEVERITIES]
    np.random.seed(1)  # noqa: NPY002, as other code may
    again = [corrupt(image, kind, severity, 7) for severity in reversed(SEVERITIES)]
    np.random.seed(0)  # noqa: NPY002
    assert all(made.shape == image.shape and made.dtype == np.uint8 for made in first)
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert all((made != image).any() for made in first)


def test_numpys_generator_is_left_as_it_was():
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    corrupt(np.zeros((32, 32, 3), np.uint8), "gaussian_noise", 1, 0)
    assert np.array_equal(np.random.random(3), expected)  # noqa: NPY002


def test_the_record_has_what_the_models_say_of_the_corrupted_images(results):
    """One kind and severity, made again by hand: resized, corrupted, through the restored model."""
    import torch

    from common.data.dataset import load_dataset_of_run
    from common.data.transforms import channels_first, normalise, resize
    from common.training.restore import restore_run

    (run,) = find_runs(results, "lora")[0]
    record = json.loads((run.folder / "corruption.json").read_text())
    model = restore_run(run, weights=None, device=torch.device("cpu"), workers=0)
    transform, test = model.inputs.extractor.transform, load_dataset_of_run(run.result.config).test
    pixels = resize(channels_first(test.pixels), transform).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    numbered = zip(pixels, test.indices.tolist(), strict=True)
    made = np.stack([corrupt(np.ascontiguousarray(image), "fog", 3, index) for image, index in numbered])
    with torch.inference_mode():
        right = model.model(normalise(channels_first(made), transform)).argmax(1).numpy() == test.labels
    assert record["kinds"]["fog"]["accuracy"][2] == right.mean()
    assert record["clean"]["accuracy"] == run.test.scores["accuracy"]
    assert record["name"] == "C-like, 2 of 15 kinds" and record["image_size"] == 32
    of_all = np.mean([scores["accuracy"] for scores in record["kinds"].values()])
    assert share_correct(run, ["fog", "pixelate"]).mean() == pytest.approx(of_all)
    assert record["mean"]["accuracy"] == pytest.approx(of_all)


def test_heads_on_one_backbone_read_each_corrupted_image_once(results, tmp_path, monkeypatch, capsys):
    runs, _ = find_runs(results)
    assert sorted(len(group) for group in scoring.groups(runs)) == [1, 3]
    argv = [*TINY, "--backbone=test_resnet", "--lr=1e-2", "--no-feature-cache", "--run-name=other"]
    argv += ["--split-seed=1", "--results-dir", str(tmp_path)]  # with a limit it draws other test images
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, argv) == 0
    assert sorted(len(group) for group in scoring.groups([*runs, *find_runs(tmp_path)[0]])) == [1, 1, 3]
    corrupted = []
    predict = scoring.predict
    monkeypatch.setattr(scoring, "predict", lambda *a, desc, **k: corrupted.append(desc) or predict(*a, desc=desc, **k))
    sizes, forward = [], FrozenForward.__call__
    monkeypatch.setattr(FrozenForward, "__call__", lambda self, x: sizes.append(len(x)) or forward(self, x))
    folders = [run.folder for run in runs if "lora" not in str(run.folder)]
    assert _evaluate(*folders, "--corrupt", "fog", "contrast", "--workers", "0") == 0
    assert sizes == [20] * len(SEVERITIES)  # all images at a time, not one by one
    assert corrupted == [f"contrast {severity}" for severity in SEVERITIES]  # fog is there already
    assert capsys.readouterr().out.count("C-like, 3 of 15 kinds") == 3


def test_what_is_of_other_predictions_or_damaged_is_not_read(results):
    (run,) = find_runs(results, "linear")[0]
    assert read_kinds(run) and not read_kinds(run, "another-package 1.0")
    path = run.folder / "corruption.json"
    content = path.read_text()
    path.write_text(content.replace('"severities"', '"severitie"'))
    assert read_kinds(run) == {}
    path.write_text(content)
    files = {name: replace(file, sha256="0" * 64) for name, file in run.result.files.items()}
    assert read_kinds(replace(run, result=replace(run.result, files=files))) == {}


def test_pairs_follow_the_rules_of_the_verdicts(results):
    runs, _ = find_runs(results)
    comparisons, _ = compare(runs, {})
    pairs = robustness.corrupted_pairs(comparisons)
    assert set(pairs.verdict) == {"one_seed"}  # only the first head has two
    of_run = {run.folder.parent.name: [] for run in runs}
    for run in runs:
        of_run[run.folder.parent.name].append(share_correct(run, ["fog", "pixelate"]).mean())
    for pair in pairs.itertuples():
        assert pair.difference == pytest.approx(np.mean(of_run[pair.a]) - np.mean(of_run[pair.b]))
        assert pair.low <= pair.difference <= pair.high


def test_the_figure_and_the_table_show_them(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "FIGURES", {"corruptions": figures.FIGURES["corruptions"]})
    argv = ["--results-dir", str(results), "--figures-dir", str(tmp_path)]
    assert cli.run(plot_results.main, plot_results.Config, argv) == 0
    said = capsys.readouterr().out
    assert (tmp_path / "digits_corruptions.png").exists() and (tmp_path / "digits_corruptions.pdf").exists()
    assert "digits, corrupted images: undecided: one seed" in said
    assert "Mean of the kinds" in (results / "corruptions.md").read_text()


def test_an_unknown_kind_and_small_images_are_refused(results, tmp_path, capsys):
    (run,) = find_runs(results, "linear")[0]
    assert _evaluate(run.folder, "--corrupt", "rain") == 2
    assert "--corrupt 'rain' is not possible: it must be all, or some of gaussian_noise" in capsys.readouterr().err
    small = replace(run, result=replace(run.result, data=replace(run.result.data, image_size=16)))
    with pytest.raises(Exception, match="images of 16 pixels"):
        scoring.check_images(small)


def test_without_the_package_one_line_names_it(results, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    (run,) = find_runs(results, "linear")[0]
    assert _evaluate(run.folder, "--corrupt", "snow") == 2
    error = capsys.readouterr().err
    assert "pip install imagecorruptions-imaug" in error and error.count("\n") == 1
