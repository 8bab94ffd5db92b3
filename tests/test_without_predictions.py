"""Results whose ``predictions.npz`` were left out: drawn from what is kept, and only where that is to be trusted."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_results import CROSSED, MODELS, fake_run
from test_report import Names, data_of

import plot_results
from common import cli, figures
from common.evaluation import kept_statistics, uncertainty
from common.evaluation.comparison import compare, missing_predictions
from common.evaluation.kept_statistics import INTERVALS, correct_images
from common.evaluation.uncertainty import DIFFERENCES, compute_uncertainty
from common.runs.predictions import PREDICTIONS_FILE, read_predictions
from common.runs.result import find_runs, read_result, write_result

LORA, RESNET, EFFICIENTNET, *_ = MODELS
PROBE, _, CNN_PROBE, CNN_LORA, _ = CROSSED
IMAGES = 60
TABLES = ("*.csv", "*.md", "*.tex")


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(uncertainty, "RESAMPLES", 50)


def _crossed(results: Path) -> Path:
    """Write two backbones, each with a probe and LoRA of two seeds, and one model on a second data set."""
    for name in (PROBE, LORA, CNN_PROBE, CNN_LORA):
        for seed in (0, 1)[: 1 if "probe" in name else 2]:
            fake_run(results, name, seed=seed, num_test=IMAGES)
    fake_run(results, RESNET, dataset="digits", num_test=IMAGES)
    return results


def _leave_out(*folders: Path) -> list[Path]:
    """Delete the predictions below ``folders``; return the folders of their runs."""
    files = sorted(path for folder in folders for path in folder.rglob(PREDICTIONS_FILE))
    for file in files:
        file.unlink()
    return [file.parent for file in files]


def _runs(results: Path):
    runs, problems = find_runs(results)
    assert problems == []
    return runs


def _names(comparisons) -> list[str]:
    return [series.name for comparison in comparisons for series in comparison.series]


@pytest.fixture
def results(tmp_path):
    """Two models of two seeds with all that is kept of them."""
    for name in (LORA, RESNET):
        for seed in (0, 1):
            fake_run(tmp_path, name, seed=seed, num_test=IMAGES)
    compute_uncertainty(compare(_runs(tmp_path), {})[0])
    return tmp_path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """What ``plot_results.py`` writes and prints of ``_crossed`` before and after predictions are left out.

    By "before" and "after": the folder of figures, the tables by name, the printed lines. One of the six runs of the
    first data set and the second data set keep their predictions.
    """
    results, found = _crossed(tmp_path_factory.mktemp("results")), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "RESAMPLES", 50)
        for when in ("before", "after"):
            folder, lines = tmp_path_factory.mktemp(when), []
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr("builtins.print", lambda *text, lines=lines, **_: lines.extend(map(str, text)))
                report = folder / "report.html"
                plot_results.main(plot_results.Config(results_dir=results, figures_dir=folder, report=report))
            tables = {path.name: path.read_bytes() for pattern in TABLES for path in results.glob(pattern)}
            found[when] = folder, tables, lines
            _leave_out(*(results / "cifar10" / name for name in (PROBE, CNN_PROBE, CNN_LORA)))
            _leave_out(results / "cifar10" / LORA / "seed1")
    return found


def test_every_figure_but_roc_and_every_table_are_the_same_bytes(drawn):
    (before, tables, lines), (after, tables_after, lines_after) = drawn["before"], drawn["after"]
    pictures = {path.name: path.read_bytes() for path in before.glob("*.png")}
    again = {path.name: path.read_bytes() for path in after.glob("*.png")}
    assert pictures.keys() - again.keys() == {"cifar10_roc_curves.png"} and "digits_roc_curves.png" in again
    assert {"cifar10_method_and_backbone.png", "cifar10_differences.png", "cifar10_reliability.png"} <= again.keys()
    assert [name for name in again if again[name] != pictures[name]] == []
    assert {"effects.csv", "summary.csv", "verdicts.md"} <= tables.keys() and tables_after == tables
    note = "note: 'cifar10': no ROC curves are drawn: 5 of 6 runs have no predictions.npz"
    assert [line for line in lines_after if "ROC" in line] == [note] and not any("ROC" in line for line in lines)
    sentences = [line for line in lines if line.startswith("cifar10: ")]
    assert len(sentences) > 5 and sentences == [line for line in lines_after if line.startswith("cifar10: ")]


def test_the_report_opens_without_the_test_images_and_says_so(drawn):
    pages = {when: (drawn[when][0] / "report.html").read_text() for when in drawn}
    before, after = (Names(pages[when]) for when in ("before", "after"))
    assert set(after.names) == set(before.names)  # models, verdicts, effects, provenance
    pictures = [[tag for tag, _ in page.elements].count("img") for page in (before, after)]
    assert after.elements[-1][0] == "/html" and pictures[1] == pictures[0] - 1  # the ROC curves
    cifar10, digits = data_of(pages["after"])["datasets"]
    assert cifar10["remark"] == "5 of 6 runs have no predictions.npz" and cifar10["labels"] is None
    assert "predicted" not in str(cifar10) and digits["labels"] and digits["suspects"] is not None
    curves = [[model["runs"] for model in data_of(page)["datasets"][0]["models"]] for page in pages.values()]
    assert curves[0] == curves[1] and len(curves[0]) == 4
    (line,) = (line for line in drawn["after"][2] if "report" in line and "'cifar10'" in line)
    assert line == f"note: 'cifar10': the report shows no test images: {cifar10['remark']}"


def test_which_images_are_right_is_what_the_predictions_say(results):
    fake_run(results, EFFICIENTNET, num_test=IMAGES)  # whose statistics nobody has kept
    runs = _runs(results)
    predictions = [read_predictions(run.folder, run.result) for run in runs]
    right = [each.logits.argmax(axis=1) == each.labels for each in predictions]
    compute_uncertainty(compare(runs, {})[0])
    _leave_out(results)
    for run, expected in zip(runs, right, strict=True):
        assert correct_images(run).dtype == bool and np.array_equal(correct_images(run), expected)
    ((compared,), lines) = compare(runs, {})
    assert lines == [] and missing_predictions(compared) == "5 of 5 runs have no predictions.npz"
    (lora,) = (series for series in compared.series if series.name == LORA)
    by_run = {run.folder: expected for run, expected in zip(runs, right, strict=True)}
    assert all(np.array_equal(correct_images(run), by_run[run.folder]) for run in lora.runs)


@pytest.mark.parametrize("harm", ["nothing", "changed", "of others", "older", "missing", "damaged predictions"])
def test_only_what_is_intact_and_of_these_predictions_is_trusted(results, harm, monkeypatch):
    run, other = (results / "cifar10" / RESNET / f"seed{seed}" for seed in (1, 0))
    _leave_out(run)
    kept = run / INTERVALS
    if harm == "changed":
        text = kept.read_text()
        kept.write_text(text.replace('"correct": "', '"correct": "A', 1))
        assert kept.read_text() != text
    elif harm == "of others":
        shutil.copy(other / INTERVALS, kept)
    elif harm == "older":
        monkeypatch.setattr(kept_statistics, "ALGORITHM", kept_statistics.ALGORITHM + 1)
    elif harm == "missing":
        kept.unlink()
    elif harm == "damaged predictions":
        (run / PREDICTIONS_FILE).write_bytes(b"")
    (compared,), lines = compare(_runs(results), {})
    drawn = [each.folder for series in compared.series for each in series.runs]
    if harm == "nothing":
        assert lines == [] and run in drawn
        return
    (line,) = lines
    said = "is not the file that" if harm == "damaged predictions" else "cannot read"
    assert line.startswith("left out: ") and said in line and repr(str(run / PREDICTIONS_FILE)) in line
    assert run not in drawn and len(drawn) == 3


def test_runs_on_other_images_are_left_out_by_what_is_kept(results):
    fake_run(results, EFFICIENTNET, num_test=IMAGES, test_set=1)
    for pattern in ("cifar10/*head_mlp", "*"):
        for comparison in compare(find_runs(results, pattern)[0], {})[0]:
            compute_uncertainty([comparison])
    alone = [run for run in _runs(results) if run.name == EFFICIENTNET]
    compute_uncertainty(compare(alone, {})[0])
    _leave_out(results)
    comparisons, (line,) = compare(_runs(results), {})
    assert _names(comparisons) == [LORA, RESNET]
    assert "was tested on other images" in line and EFFICIENTNET in line


def test_a_missing_pair_is_one_line_that_names_the_predictions(results, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", {})
    (missing,) = _leave_out(results / "cifar10" / RESNET / "seed1")
    arguments = ["--results-dir", str(results), "--figures-dir", str(tmp_path / "figures")]
    assert cli.run(plot_results.main, plot_results.Config, arguments) == 0
    fake_run(results, EFFICIENTNET, num_test=IMAGES)
    assert cli.run(plot_results.main, plot_results.Config, arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {str(missing / PREDICTIONS_FILE)!r} is needed: the {DIFFERENCES} of 'cifar10' ")
    assert "of ResNet50 (published head) and EfficientNet-B0 (published head) with" in line and "--runs" in line


def test_folds_are_compared_without_predictions(tmp_path):
    for name in (LORA, RESNET):
        for fold in (0, 1):
            run = fake_run(tmp_path, name, seed=fold, folder_name=f"{name}-fold{fold}of2", num_test=IMAGES)
            write_result(run.folder, replace(run.result, config=run.result.config | {"folds": 2, "fold": fold}))
            assert read_result(run.folder / "result.json").config["fold"] == fold
    tables = []
    for _ in ("with", "without"):
        comparisons, lines = compare(_runs(tmp_path), {})
        assert lines == [] and comparisons[0].folds == 2
        found = compute_uncertainty(comparisons)
        tables.append([table.to_csv() for table in (found.means, found.pairs)])
        _leave_out(tmp_path)
    assert tables[0] == tables[1]
