"""The reference results: whole, on the right data, and what the figures and the README say of them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fake_results import fake_run

import plot_results
import reproduce
from common.data.registry import DATASETS
from common.runs.predictions import read_predictions
from common.runs.result import find_runs, write_result
from common.runtime.errors import UserError
from demo import keep_reference

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
        write_result(run.folder, replace(run.result, environment=run.result.environment | {"git_commit": "abc"}))
        (run.folder / "adapter").mkdir()
        (run.folder / "adapter" / "adapter_config.json").touch()

    keep_reference.main(config)
    kept = {path.relative_to(tmp_path / "repository") for path in (tmp_path / "repository").rglob("*.*")}
    assert {path.name for path in kept if path.suffix == ".npz"} == {"predictions.npz"}
    assert [path.parts[3] for path in kept if path.suffix == ".npz"] == ["few"]
    assert {path.suffix for path in kept if path.parts[0] == "figures"} == {".png"}
    names = {"result.json", "intervals.json", "predictions.npz"}
    assert {path.name for path in kept if path.parts[0] == "results"} > names
    assert not any(path.name == "adapter_config.json" for path in kept)
    again = tmp_path / "again"
    plot_results.main(
        plot_results.Config(results_dir=tmp_path / "repository" / "results" / "reference" / "demo", figures_dir=again)
    )
    drawn, drawn_again = ({path.name for path in folder.glob("*.png")} for folder in (figures, again))
    assert drawn - drawn_again == {"many_roc_curves.png"} and drawn_again < drawn
