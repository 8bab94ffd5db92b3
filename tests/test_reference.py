"""The reference results: whole, on the right data, and what the figures and the README say of them."""

import shutil
from pathlib import Path

import pytest

import plot_results
import reproduce
from common.data.registry import DATASETS
from common.runs.predictions import read_predictions
from common.runs.result import find_runs

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS, FIGURES = REPOSITORY / "results" / "reference", REPOSITORY / "figures" / "reference"
PROFILES = ("demo", "mini")


@pytest.mark.parametrize("profile", PROFILES)
def test_they_are_three_seeds_of_each_model_on_each_data_set_whole_and_from_a_commit(profile):
    runs, problems = find_runs(RESULTS / profile)
    assert not problems
    datasets = {name for grid in reproduce.PROFILES[profile] for name in grid.datasets}
    models = {(run.dataset, run.name) for run in runs}
    assert {dataset for dataset, _ in models} == datasets and len(models) == 3 * len(datasets)
    assert len({run.result.environment["git_commit"] for run in runs}) == 1
    assert {(run.dataset, run.name, run.seed) for run in runs} == {
        (*model, seed) for model in models for seed in range(3)
    }
    for run in runs:
        read_predictions(run.folder, run.result)
        assert run.result.environment["git_dirty"] is False
        assert not any("/" in word and word.startswith("/") for word in run.result.command.split())
        expected = DATASETS[run.dataset].fingerprint
        assert expected in (None, run.result.data.fingerprint)


@pytest.mark.parametrize("profile", PROFILES)
def test_their_figures_and_tables_are_drawn_again_with_the_same_numbers(profile, tmp_path):
    shutil.copytree(RESULTS / profile, tmp_path / "results")
    plot_results.main(plot_results.Config(results_dir=tmp_path / "results", figures_dir=tmp_path / "figures"))
    drawn = {path.name for path in (tmp_path / "figures").iterdir() if path.suffix == ".png"}
    assert drawn == {path.name for path in (FIGURES / profile).iterdir()}
    for table in RESULTS.joinpath(profile).glob("*.*"):
        assert (tmp_path / "results" / table.name).read_text() == table.read_text(), table.name


def test_the_readmes_table_is_the_miniature_studys():
    header, _, *rows = (RESULTS / "mini" / "summary.md").read_text(encoding="utf-8").splitlines()
    names = [name.strip() for name in header.strip("|").split("|")]
    shown = ("Data set", "Model", "Accuracy", "F1 (macro)", "AUC (macro)", "Trained parameters")
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(rows) == 9
    for row in rows:
        cells = dict(zip(names, (cell.strip() for cell in row.strip("|").split("|")), strict=True))
        assert f"| {' | '.join(cells[name] for name in shown)} |" in readme
