"""The tables: tidy frames of the results, their numbers in CSV files, their texts in Markdown, LaTeX, the terminal."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_results import MODELS, fake_comparison, fake_run

from common.evaluation import comparison
from common.evaluation.formatting import QUANTITIES, display, mean_sd
from common.evaluation.frames import frames_of
from common.evaluation.metrics import HEADLINE, METRICS
from common.evaluation.uncertainty import compute_uncertainty
from common.report import sentences, tables
from common.runs.result import RESULT_FILE, encode_record, find_runs, write_result

LORA, RESNET, *_ = MODELS


def compare(folder: Path, pattern: str = "*", **labels: str) -> list[comparison.Comparison]:
    runs, problems = find_runs(folder, pattern)
    assert problems == []
    return comparison.compare(runs, labels)[0]


def write(comparisons, folder: Path) -> None:
    frames, uncertainty = frames_of(comparisons), compute_uncertainty(comparisons)
    paths = tables.write_summary(frames, uncertainty, folder) + tables.write_verdicts(frames, uncertainty, folder)
    suffixes = ("csv", "md", "tex")
    assert paths == [folder / f"{stem}.{suffix}" for stem in ("summary", "verdicts") for suffix in suffixes]


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def forget(folder: Path, metric: str) -> None:
    """Write the results of ``folder`` as they were before there was ``metric``."""
    for path in folder.rglob(RESULT_FILE):
        record = json.loads(path.read_text())
        del record["test"][metric], record["val"][metric]
        path.write_bytes(encode_record(record))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_comparison(tmp_path_factory.mktemp("results"))


def test_frames_have_a_row_a_run_an_epoch_and_split_and_a_class(folder):
    comparisons = compare(folder)
    frames = frames_of(comparisons)
    assert (len(frames.runs), len(frames.history), len(frames.per_class)) == (6, 6 * 5 * 2, 6 * 10)
    run = comparisons[0].series[1].runs[1]
    (row,) = frames.runs.query(f"dataset == 'cifar10' and run == '{RESNET}' and seed == 1").to_dict("records")
    assert (row["label"], row["family"], row["method"]) == ("ResNet50 (published head)", "resnet", "head_mlp")
    assert row["total_train_seconds"] == run.result.efficiency.train_seconds + 60.0
    assert {name: row[f"val_{name}"] for name in METRICS} == run.result.val.scores
    history = frames.history.query(f"dataset == 'cifar10' and run == '{RESNET}' and seed == 1 and split == 'val'")
    assert history.loss.tolist() == [epoch.val_loss for epoch in run.result.history]
    assert history.epoch[history.kept].tolist() == [run.result.best_epoch]
    classes = frames.per_class.query(f"dataset == 'cifar10' and run == '{RESNET}' and seed == 1")
    assert classes["class"].tolist() == run.result.data.classes
    assert classes.f1.tolist() == [row.f1 for row in run.test.per_class]


def test_what_no_run_knows_is_nan(tmp_path):
    fake_run(tmp_path, LORA, num_test=9)
    frames = frames_of(compare(tmp_path))
    assert np.isnan(frames.runs.test_auc_macro[0]) and np.isnan(frames.runs.feature_seconds[0])
    assert np.isnan(frames.per_class.f1.iloc[-1]) and frames.per_class.support.iloc[-1] == 0


def test_the_summary_has_the_numbers_of_the_records(folder, tmp_path):
    write(compare(folder), tmp_path)
    rows = read_csv(tmp_path / "summary.csv")
    assert len(rows) == 6
    for row in rows:
        path = folder / row["dataset"] / row["run"] / f"seed{row['seed']}" / RESULT_FILE
        result = json.loads(path.read_text())
        assert {name: float(row[f"test_{name}"]) for name in METRICS} == {
            name: result["test"][name] for name in METRICS
        }
        assert int(row["trainable_params"]) == result["model"]["trainable_params"]
        assert float(row["train_seconds"]) == result["efficiency"]["train_seconds"]
        assert (row["feature_seconds"] == "") == (result["efficiency"]["feature_seconds"] is None)
        assert 0 < float(row["test_accuracy_low"]) <= float(row["test_accuracy"]) <= float(row["test_accuracy_high"])
    assert len((tmp_path / "summary.md").read_text().splitlines()) == 2 + 4


def test_a_result_that_is_older_than_a_metric_has_an_empty_field(tmp_path):
    fake_run(tmp_path, RESNET, num_test=60)
    forget(tmp_path, "top5_accuracy")
    write(compare(tmp_path), tmp_path)
    (row,) = read_csv(tmp_path / "summary.csv")
    assert [row[f"test_top5_accuracy{end}"] for end in ("", "_low", "_high")] == [""] * 3
    runs = frames_of(compare(tmp_path)).runs
    assert tables.model_texts(runs, ["test_top5_accuracy"]).iloc[0].to_dict() == {"Top-5 accuracy": "—"}


def test_the_brier_score_of_an_older_result_comes_from_its_predictions(tmp_path):
    run = fake_run(tmp_path, RESNET, num_test=60)
    forget(tmp_path, "brier")
    write(compare(tmp_path), tmp_path)
    assert float(read_csv(tmp_path / "summary.csv")[0]["test_brier"]) == run.test.scores["brier"]


def test_the_verdicts_have_the_numbers_of_the_uncertainty(folder, tmp_path):
    comparisons = compare(folder)
    write(comparisons, tmp_path)
    rows = read_csv(tmp_path / "verdicts.csv")
    assert [(row["dataset"], row["metric"]) for row in rows] == [
        (dataset, metric) for dataset in ("cifar10", "digits") for metric in HEADLINE
    ]
    pair = compute_uncertainty(comparisons).pairs.iloc[0]
    assert [float(rows[0][name]) for name in ("difference", "low", "high")] == [pair.difference, pair.low, pair.high]
    assert rows[0]["verdict"] == pair.verdict and (rows[0]["run_a"], rows[0]["run_b"]) == (LORA, RESNET)
    assert float(rows[0]["p"]) == pair.p == float(rows[0]["p_adjusted"])  # of one pair
    assert rows[0]["mcnemar_p_by_seed"].count(": ") == 2 and rows[1]["mcnemar_p_by_seed"] == ""
    assert rows[0]["remark"] == "one learning rate, not tuned; the last epoch is the best"
    assert {row["verdict"] for row in rows[3:]} == {"one_seed"} and rows[3]["p_adjusted"] == ""
    markdown = (tmp_path / "verdicts.md").read_text().splitlines()
    assert len(markdown) == 2 + 2 and "| 2 seeds | 60 | +" in markdown[2] and "| one seed | 60 | +" in markdown[3]
    for text in (markdown[3], (tmp_path / "verdicts.tex").read_text()):
        assert "undecided: one seed, between A and B" in text


def test_without_a_pair_the_verdicts_are_an_empty_table(tmp_path):
    fake_run(tmp_path, RESNET, num_test=20)
    write(compare(tmp_path), tmp_path)
    assert [len((tmp_path / f"verdicts.{suffix}").read_text().splitlines()) for suffix in ("csv", "md")] == [1, 2]


def test_mean_and_sd_by_hand():
    assert mean_sd([0.5]) == "0.500"
    assert mean_sd([0.4, 0.6]) == "0.500 ± 0.141"  # 0.2 / sqrt(2)
    assert mean_sd([0.4, np.nan]) == "—"
    assert mean_sd([2e9, 4e9], 1, scale=1e-9, with_sd=False) == "3.0"


def test_latex_and_markdown_are_escaped(tmp_path):
    fake_run(tmp_path, RESNET, num_test=20, dataset="50%_a&b")
    write(compare(tmp_path, **{RESNET: r"\x|{y}^$ <z>"}), tmp_path)
    latex = (tmp_path / "summary.tex").read_text()
    escaped = r"50\%\_a\&b & \textbackslash x|\{y\}\textasciicircum \$ \textless{}z\textgreater{} & 1 &"
    assert escaped in latex
    assert r"| \x\|{y}^$ <z> |" in (tmp_path / "summary.md").read_text()


def test_a_name_that_is_no_text_is_written(tmp_path):
    fake_run(tmp_path, RESNET, num_test=20, dataset="own")
    write(compare(tmp_path, **{RESNET: "half a letter \udc80\nand a line"}), tmp_path)
    assert r"| half a letter \udc80 and a line |" in (tmp_path / "summary.md").read_text()


def test_a_quantity_has_one_name_in_all_tables(folder, tmp_path):
    comparisons = compare(folder)
    write(comparisons, tmp_path)
    markdown = (tmp_path / "summary.md").read_text().splitlines()[0]
    terminal = tables.terminal(comparisons, frames_of(comparisons))
    runs = tables.with_statistics(frames_of(comparisons), compute_uncertainty(comparisons))
    for name in tables.known_columns(runs, (*tables.SUMMARY, *tables.TERMINAL)):
        assert f"| {display(name).label} |" in markdown
    for name in tables.TERMINAL:
        assert display(name).label in terminal
    labels = [display(name).label for name in (*tables.SCORES, *QUANTITIES)]
    assert len(set(labels)) == len(labels)
    assert {*QUANTITIES} - {"test_ece_scaled"} <= set(frames_of(comparisons).runs)


def test_the_terminal_shows_means_of_each_data_set(folder):
    comparisons = compare(folder)
    head, columns, lora, *_ = tables.terminal(comparisons, frames_of(comparisons)).splitlines()
    assert head == "CIFAR-10: 60 test images, one is 1.7 points; 2 seeds"
    accuracy = [run.test.scores["accuracy"] for run in comparisons[0].series[0].runs]
    assert (
        " ".join(lora.split()).startswith(f"ViT-B/16 + LoRA (r=16) {mean_sd(accuracy)}")
        and columns.split()[0] == "Accuracy"
    )


@pytest.mark.parametrize(
    ("config", "trials", "gains", "said"),
    [
        ({}, [1e-3], {}, "one learning rate, not tuned"),
        ({"tuned_on": 0}, [1e-3], {}, ""),
        ({}, [1e-4, 1e-3], {}, "the best learning rate is at the end of those tried"),
        ({}, [1e-4, 1e-3, 1e-2], {}, ""),
        ({}, [1e-4, 1e-3, 1e-2], {"gain": 0.019}, "not converged, twice the epochs add +1.9 points on validation"),
        ({"schedule": "constant"}, [1e-4, 1e-3, 1e-2], {}, "the last epoch is the best"),
    ],
)
def test_a_remark_says_what_a_verdict_may_owe_to_the_rate_or_to_short_training(tmp_path, config, trials, gains, said):
    for name in list(MODELS)[1:3]:
        run = fake_run(tmp_path, name, num_test=40)
        history = [replace(row, lr=1e-3) for row in run.result.history]
        rates = [{**run.result.trials[0], "lr": lr} for lr in trials]
        settings = run.result.config | {"schedule": "cosine"} | config
        write_result(run.folder, replace(run.result, config=settings, trials=rates, history=history))
    comparisons, _ = comparison.compare(find_runs(tmp_path)[0], {})
    found = {("cifar10", series.name): gains["gain"] for series in comparisons[0].series if gains}
    pairs = sentences.named_pairs(frames_of(comparisons, found), compute_uncertainty(comparisons))
    assert set(pairs.remark) == {said}
