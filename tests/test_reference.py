"""The reference results: whole, on the right data, and what the figures and the README say of them."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_results import fake_run

import plot_results
import profiles
import reproduce
from bench.defects import find_defective
from common.data.registry import DATASETS
from common.evaluation.comparison import compare, missing_predictions
from common.evaluation.formatting import mean_sd
from common.grid.grid import depends_on_seed
from common.runs.predictions import read_predictions
from common.runs.result import find_runs, read_result, write_result
from common.runtime.errors import UserError
from demo import keep_reference

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS, FIGURES = REPOSITORY / "results" / "reference", REPOSITORY / "figures" / "reference"
REDRAWN = ("demo", "mini", "curve", "lite0")  # of the defects' table some rows need predictions that are not kept
COPIES = {"cifar10": "cifar10_jpeg"}  # how a data set is called that was a folder of images
DOCUMENTS = {"factorial": "mini", "curve": "curve", "defects": "defects", "lite0": "lite0"}  # whose rows they show
TABLES_OF_DIFFERENCES = ("effects", "verdicts", "curve", "defects")
IN_README = "mini"  # the profile whose table and answer README.md has


@pytest.mark.parametrize("profile", [*REDRAWN, "defects"])
def test_they_are_all_seeds_of_each_arm_on_each_data_set_whole_and_from_one_commit(profile):
    runs, problems = find_runs(RESULTS / profile)
    lite0 = [profiles.DEFECTS_LITE0] * (profile == "defects")
    expected = [
        (COPIES.get(dataset, dataset), arm.backbone, arm.method, seed)
        for grid in [*reproduce._grids(reproduce.Config(profile)), *lite0]
        for dataset in grid.datasets
        for arm in grid.arms
        for seed in (grid.seeds if depends_on_seed(grid, arm.method) else [grid.first_seed])
    ]
    assert not problems
    found = [(run.dataset, run.result.backbone, run.result.method, run.seed) for run in runs]
    assert sorted(found) == sorted(expected)
    assert len({run.result.environment["git_commit"] for run in runs}) == 1
    assert not [path for path in (RESULTS / profile).rglob("result.json") if re.search(r'"/\w', path.read_text())]
    for run in runs:
        if run.result.data.num_test <= keep_reference.FEW_TEST_IMAGES:
            read_predictions(run.folder, run.result)
        assert run.result.environment["git_dirty"] is False
        assert not any("/" in word and word.startswith("/") for word in run.result.command.split())
        if run.dataset in DATASETS:
            assert DATASETS[run.dataset].fingerprint in (None, run.result.data.fingerprint)


@pytest.mark.parametrize("profile", REDRAWN)
def test_their_figures_and_tables_are_drawn_again_with_the_same_numbers(profile, tmp_path):
    shutil.copytree(RESULTS / profile, tmp_path / "results" / profile)
    reproduce._draw(
        reproduce.Config(profile, results_dir=tmp_path / "results", figures_dir=tmp_path / "figures"), quiet=True
    )
    drawn = {path.name for path in (tmp_path / "figures" / profile).iterdir() if path.suffix == ".png"}
    comparisons, _ = compare(find_runs(RESULTS / profile)[0], {})
    without_logits = {f"{its.dataset}_roc_curves.png" for its in comparisons if missing_predictions(its)}
    assert drawn == {path.name for path in (FIGURES / profile).iterdir()} - without_logits
    for table in RESULTS.joinpath(profile).glob("*.*"):
        assert (tmp_path / "results" / profile / table.name).read_text() == table.read_text(), table.name


def test_each_difference_of_the_defects_is_that_of_the_accuracies_of_their_runs():
    folder = RESULTS / "defects"
    rows = pd.read_csv(folder / "defects.csv").query("defect not in ('one-seed', 'validation-on-test')")
    series = [its for comparison in compare(find_runs(folder)[0], {})[0] for its in comparison.series]
    sound = {(run.dataset, its.label, run.seed): run for its in series for run in its.runs}
    labels = {(run.dataset, run.result.backbone, run.result.method): label for (_, label, _), run in sound.items()}
    found = {}
    for run in find_defective(folder):
        label = labels[run.dataset, run.result.backbone, run.result.method]
        other = sound[run.dataset, label, run.seed]
        difference = run.test.scores["accuracy"] - other.test.scores["accuracy"]
        found.setdefault((run.dataset, run.result.config["defect"], label), []).append(difference)
    means = {key: np.mean(differences) for key, differences in found.items() if key[1] != "validation-on-test"}
    assert means == pytest.approx(rows.set_index(["dataset", "defect", "model"])["difference"].to_dict())


def accuracy_rows(profile: str) -> list[str]:
    """Return a line a model of a table of README.md: its accuracy in % on each data set, mean ± sd of the seeds."""
    seeds = pd.read_csv(RESULTS / profile / "summary.csv")
    texts = seeds.groupby(["label", "dataset"], sort=False)["test_accuracy"].agg(
        lambda values: mean_sd(values, 1, scale=100)
    )
    datasets = sorted(seeds["dataset"].unique())
    return [
        f"| {label} | {' | '.join(texts.get((label, dataset), '—') for dataset in datasets)} |"
        for label in seeds["label"].unique()
    ]


def test_the_readmes_table_has_the_accuracy_of_each_model_on_each_data_set():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert not [row for row in accuracy_rows(IN_README) if row not in readme]


@pytest.mark.parametrize(("part", "profiles_said"), [(0, [IN_README]), (2, [*REDRAWN, "defects"])])
def test_each_difference_in_the_readme_is_in_the_tables(part, profiles_said):
    """In the answer before the first heading those of the miniature alone, below it those of any profile."""
    said = re.findall(r"[+-]\d+\.\d", (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("\n## ")[part])
    paths = [RESULTS / name / f"{stem}.csv" for name in profiles_said for stem in TABLES_OF_DIFFERENCES]
    tables = [pd.read_csv(path) for path in paths if path.exists()]
    columns = {"difference", "low", "high", "accuracy", "accuracy_low", "accuracy_high"}
    numbers = np.concatenate([table[[*columns & {*table}]].to_numpy().ravel() for table in tables])
    known = {f"{sign * 100 * number:+.1f}" for number in numbers for sign in (1, -1)}
    assert said and set(said) <= known


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_row_of_a_documents_results_is_one_of_the_tables(document):
    results = (REPOSITORY / "docs" / f"{document}.md").read_text(encoding="utf-8").partition("\n## Results\n")[2]
    rows = re.sub(r"^\|.*\n\|[-:| ]+$", "", results, flags=re.M).splitlines()  # without heads
    rows = [line for line in rows if line.startswith("|")]
    folder = RESULTS / DOCUMENTS[document]
    known = [line for table in folder.glob("*.md") for line in table.read_text().splitlines()]
    known += accuracy_rows(DOCUMENTS[document]) if (folder / "summary.csv").exists() else []
    assert rows and set(rows) <= set(known)


def test_what_is_kept_are_records_tables_pictures_and_few_predictions(tmp_path, monkeypatch):
    results, figures = tmp_path / "results" / "demo", tmp_path / "figures" / "demo"
    config = keep_reference.Config(("demo",), results.parent, figures.parent)
    runs = [fake_run(results, num_test=size, dataset=name) for name, size in (("few", 20), ("many", 1_010))]
    monkeypatch.setattr(keep_reference, "ROOT", tmp_path / "repository")
    with pytest.raises(UserError, match="nothing is kept of the predictions"):
        keep_reference.main(config)
    plot_results.main(plot_results.Config(results_dir=results, figures_dir=figures))
    with pytest.raises(UserError, match="not of one commit without changes"):
        keep_reference.main(config)
    for run in runs:
        weights = replace(run.result.model.weights, source="/of/me/weights.safetensors")
        result = replace(run.result, environment=run.result.environment | {"git_commit": "abc"})
        settings = result.config | {"weights": weights.source}
        write_result(run.folder, replace(result, config=settings, model=replace(result.model, weights=weights)))
        (run.folder / "adapter").mkdir()
        (run.folder / "adapter" / "adapter_config.json").touch()

    keep_reference.main(config)
    kept = {path.relative_to(tmp_path / "repository") for path in (tmp_path / "repository").rglob("*.*")}
    assert {path.name for path in kept if path.suffix == ".npz"} == {"predictions.npz"}
    assert [path.parts[3] for path in kept if path.suffix == ".npz"] == ["few"]
    assert {path.suffix for path in kept if path.parts[0] == "figures"} == {".png"}
    names = {"result.json", "intervals.json", "predictions.npz"}
    assert {path.name for path in kept if path.parts[0] == "results"} > names
    for path in (tmp_path / "repository").rglob("result.json"):
        record = read_result(path)
        assert (record.config["weights"], record.model.weights.source) == ("weights.safetensors",) * 2
    assert not any(path.name == "adapter_config.json" for path in kept)
    again = tmp_path / "again"
    plot_results.main(
        plot_results.Config(results_dir=tmp_path / "repository" / "results" / "reference" / "demo", figures_dir=again)
    )
    drawn, drawn_again = ({path.name for path in folder.glob("*.png")} for folder in (figures, again))
    assert drawn - drawn_again == {"many_roc_curves.png"} and drawn_again < drawn
