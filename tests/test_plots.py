"""Figures: every file named, the same bytes again, nothing compared that cannot be, nothing that chokes."""

import hashlib
import io
import os
import re
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from fake_results import CROSSED, MODELS, fake_comparison, fake_run
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

import plot_results
from common.evaluation import calibration, comparison, metrics
from common.evaluation.formatting import QUANTITIES
from common.evaluation.frames import frames_of
from common.evaluation.labels import friendly_name
from common.evaluation.metrics import METRICS
from common.evaluation.published_study import published_caption
from common.evaluation.uncertainty import compute_uncertainty
from common.figures import FIGURES, bars, differences, draw_one, layout, style
from common.figures.few_shot import few_shot_curves
from common.figures.palette import SHADES, STYLES, VERDICTS, run_styles, shade
from common.figures.trade_offs import pareto_front
from common.report.tables import write_summary
from common.runs.predictions import read_predictions
from common.runs.result import find_runs, unfinished_runs, write_result
from common.runtime.errors import UserError

LORA, RESNET, EFFICIENTNET, VIT_HEAD, RESNET_LINEAR, _ = MODELS
ROOT = Path(__file__).parents[1]
OF_ONE = ("learning_curves", "confusion_matrices", "roc_curves", "per_class_f1", "reliability", "differences")
STEMS = {
    *("cifar_10_final_benchmark_comparison", "digits_final_benchmark_comparison"),
    *(f"{dataset}_{name}" for dataset in ("cifar10", "digits") for name in OF_ONE),
    *("findings", "overview", "accuracy_vs_parameters", "accuracy_vs_time", "accuracy_vs_flops"),
    *("accuracy_vs_training_flops", "accuracy_vs_deployed_bytes", "bytes_for_tasks"),
}
OF_SOME = ("few_shot", "corruptions", "method_and_backbone")  # where the runs have what they show
PER_DATA_SET = [name for name, spec in FIGURES.items() if not spec.across and name not in OF_SOME]
ACROSS = [name for name, spec in FIGURES.items() if spec.across]


def compare(folder: Path, pattern: str = "*", **labels: str):
    runs, problems = find_runs(folder, pattern)
    assert problems == []
    return comparison.compare(runs, labels)


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def tables(comparisons):
    return frames_of(comparisons), compute_uncertainty(comparisons)


def figure(name: str, subject) -> Figure:
    """Draw one of ``FIGURES`` of a comparison, or of several across data sets."""
    return FIGURES[name].draw(subject, *tables(subject if FIGURES[name].across else [subject]))


def draw(folder: Path, to: Path) -> None:
    """Draw all figures of one data set on the screen, and the one with most names into files too."""
    (compared,), _ = compare(folder)
    with style.context():
        for name in PER_DATA_SET:
            drawn = figure(name, compared)
            _ = style.save(drawn, to / name) if name == "confusion_matrices" else drawn.canvas.draw()
        figure("accuracy_vs_time", [compared])


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    script = [sys.executable, "-W", "error", str(ROOT / "plot_results.py"), *arguments]
    return subprocess.run(script, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_comparison(tmp_path_factory.mktemp("results"))


def test_the_script_writes_every_named_file_and_the_same_bytes_again(folder, tmp_path):
    arguments = ("--results-dir", str(folder), "--figures-dir")
    finished = command(*arguments, str(tmp_path / "first"), PYTHONHASHSEED="1")  # pytest's own is another
    assert (finished.returncode, finished.stderr) == (0, "")
    files = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    assert set(files) == {f"{stem}.{suffix}" for stem in STEMS for suffix in ("png", "pdf")}
    printed = finished.stdout.splitlines()
    assert printed[:2] == ["cifar10: 4 runs, intervals", "digits: 2 runs, intervals"]
    assert sorted(map(Path, printed[2:-9])) == sorted((tmp_path / "first").iterdir())
    tables = [str(folder / f"{stem}.{suffix}") for stem in ("summary", "verdicts") for suffix in ("csv", "md", "tex")]
    assert printed[-9:-2] == [*tables, ""]
    assert printed[-2].startswith(
        "cifar10: undecided between ViT-B/16 + LoRA (r=16) and ResNet50 (published head): accuracy +"
    )
    assert printed[-1].startswith("digits: ") and "one seed, 60 test images" in printed[-1]

    (several_seeds, _), _ = compare(folder)
    with style.context():
        again = [path for name in PER_DATA_SET for path in style.save(figure(name, several_seeds), tmp_path / name)]
    assert [path.name for path in again if path.read_bytes() not in files.values()] == []


def test_pdfs_embed_type_42_fonts_and_carry_no_date(folder, tmp_path):
    with style.context():
        png, pdf = style.save(figure("overview", compare(folder)[0]), tmp_path / "overview")
    assert b"/FontType 42" in pdf.read_bytes() or b"/CIDFontType2" in pdf.read_bytes()
    assert b"/Type3" not in pdf.read_bytes() and b"CreationDate" not in pdf.read_bytes()
    assert b"Software" not in png.read_bytes()


def test_neither_torch_nor_its_libraries_are_imported():
    modules = "plot_results, common.figures, common.report.tables, sklearn.metrics"
    heavy = {"torch", "timm", "peft", "torchvision"}
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert printed == "[]\n"


def test_help_does_not_wait_for_matplotlib():
    slow = {"matplotlib", "sklearn", "scipy", "pandas", "seaborn"}
    code = f"import sys, plot_results; print(bool({slow} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert printed == "False\n"


def test_nothing_found_says_what_to_do(tmp_path):
    finished = command("--results-dir", str(tmp_path / "empty"), "--runs", "resnet*")
    assert finished.returncode == 2 and finished.stdout == ""
    assert len(finished.stderr.splitlines()) == 1
    assert all(word in finished.stderr for word in ("'resnet*'", "empty", "train_cnn_head.py"))


@pytest.mark.parametrize("label", ["no equals sign", "=x", "run=", "run= "])
def test_a_malformed_label_is_refused(label):
    with pytest.raises(UserError, match="RUN=LABEL"):
        plot_results.Config(labels=(label,))


def test_a_label_of_an_unknown_run_is_refused(folder):
    with pytest.raises(UserError, match="'missing'"):
        compare(folder, missing="x")


def test_labels_replace_the_automatic_ones(folder):
    compared, _ = compare(folder, **{RESNET: "All", f"digits/{RESNET}": "One"})
    assert [[series.label for series in one.series][1] for one in compared] == ["All", "One"]


def test_one_method_has_one_name_and_look_on_all_data_sets_whatever_its_settings_there(tmp_path):
    fake_run(tmp_path, dataset="digits", folder_name="resnet50.tv2_in1k-head_mlp-lr3e-3")
    fake_run(tmp_path, dataset="mnist", folder_name="resnet50.tv2_in1k-head_mlp-ep30")
    compared, _ = comparison.compare(find_runs(tmp_path)[0], {})
    assert [one.series[0].label for one in compared] == ["ResNet50 (published head)"] * 2
    looks = [list(run_styles(one).values()) for one in compared]
    assert looks[0] == looks[1]


@pytest.mark.parametrize(
    ("backbone", "rank", "label"),
    [
        ("vit_base_patch16_224.augreg_in1k", 16, "ViT-B/16 + LoRA (r=16)"),
        ("vit_small_patch14_dinov2.lvd142m", 0, "ViT-S/14 (linear head)"),
        ("deit_tiny_patch16_224.fb_in1k", 4, "DeiT-Ti/16 + LoRA (r=4)"),
        ("resnet50.tv2_in1k", 0, "ResNet50 (linear head)"),
        ("efficientnet_b0.ra_in1k", 0, "EfficientNet-B0 (linear head)"),
        ("tf_efficientnet_lite0.demo", 0, "EfficientNet-Lite0 (linear head)"),
        ("convnext_tiny.in12k", 0, "convnext_tiny (linear head)"),
    ],
)
def test_friendly_names(backbone, rank, label):
    method, settings = ("lora", {"rank": rank}) if rank else ("head_linear", {})
    assert friendly_name(SimpleNamespace(backbone=backbone, method=method, method_settings=settings)) == label


def test_a_label_names_what_is_adapted_and_trained_where_it_is_not_the_study_s():
    usual = {"rank": 8, "targets": "qv", "also_train": "nothing"}
    for changed, suffix in (
        ({}, ""),
        ({"targets": "all-linear"}, ", all-linear"),
        ({"targets": "attention", "also_train": "norms"}, ", attention, norms"),
    ):
        run = SimpleNamespace(backbone="vit_base_patch16_224", method="lora", method_settings=usual | changed)
        assert friendly_name(run) == f"ViT-B/16 + LoRA (r=8{suffix})"


def test_labels_that_collide_say_how_their_runs_differ(tmp_path):
    fake_run(tmp_path, LORA, num_test=20)
    fake_run(tmp_path, LORA, num_test=20, folder_name=f"{LORA}-lr1e-3")
    fake_run(tmp_path, RESNET, num_test=20)
    fake_run(tmp_path, RESNET_LINEAR, num_test=20)
    (compared,), _ = compare(tmp_path)
    assert [series.label for series in compared.series] == [
        "ViT-B/16 + LoRA (r=16)",
        "ViT-B/16 + LoRA (r=16) [lr1e-3]",
        "ResNet50 (linear head)",
        "ResNet50 (published head)",
    ]


@pytest.mark.parametrize("folders", [("a", "b"), ("a-b", "b-a")])
def test_every_run_has_its_own_entry_in_the_legend(tmp_path, folders):
    for folder_name in folders:
        fake_run(tmp_path, RESNET, num_test=20, folder_name=folder_name)
    for labels in ({}, dict.fromkeys(folders, "Same")):
        compared, _ = compare(tmp_path, **labels)
        with style.context():
            (legend,) = figure("accuracy_vs_parameters", compared).legends
        assert len({text.get_text() for text in legend.get_texts()}) == 2


def test_a_models_colour_does_not_depend_on_the_others(tmp_path):
    for name in MODELS:
        fake_run(tmp_path, name, num_test=20)
    (everything,), _ = compare(tmp_path)
    looks = run_styles(everything)
    assert len({look.color for look in looks.values()}) == len(MODELS)
    for name in (LORA, RESNET, EFFICIENTNET, VIT_HEAD):
        (alone,), _ = compare(tmp_path, name)
        assert run_styles(alone) == {name: looks[name]}


def test_runs_on_other_test_images_are_named_and_left_out(folder, tmp_path):
    for seed in (0, 1):
        fake_run(tmp_path, RESNET, seed=seed, num_test=20)
    other = fake_run(tmp_path, EFFICIENTNET, num_test=20, test_set=1, created="2026-01-01T00:00:00+00:00")
    (compared,), (line,) = compare(tmp_path)
    assert [series.name for series in compared.series] == [RESNET]
    assert line.startswith("left out: ") and repr(str(other.folder)) in line


def test_of_equally_large_groups_the_latest_is_drawn(tmp_path):
    fake_run(tmp_path, RESNET, num_test=20)
    fake_run(tmp_path, EFFICIENTNET, num_test=20, test_set=1, created="2026-01-01T00:00:00+00:00")
    (compared,), lines = compare(tmp_path)
    assert [series.name for series in compared.series] == [EFFICIENTNET] and len(lines) == 1


def test_damaged_predictions_leave_a_run_out(tmp_path):
    fake_run(tmp_path, RESNET, num_test=20)
    bad = fake_run(tmp_path, LORA, num_test=20)
    (bad.folder / "predictions.npz").write_bytes(b"")
    (compared,), (line,) = compare(tmp_path)
    assert [series.name for series in compared.series] == [RESNET] and repr(str(bad.folder))[1:-1] in line


def test_random_weights_are_labelled_everywhere(tmp_path):
    fake_run(tmp_path, RESNET, num_test=20, source="random")
    fake_run(tmp_path, LORA, num_test=20)
    compared, lines = compare(tmp_path)
    assert any("random weights" in line for line in lines)
    with style.context():
        figures = [figure(name, compared[0]) for name in PER_DATA_SET] + [figure(name, compared) for name in ACROSS]
    for drawn in figures:
        shown = " ".join(texts(drawn).split())
        assert "ResNet50 (published head) [random weights]" in shown and "beside pretrained" in shown
    write_summary(*tables(compared), tmp_path)
    assert "[random weights]" in (tmp_path / "summary.md").read_text()


def test_other_numbers_of_training_images_are_labelled(tmp_path):
    fake_run(tmp_path, RESNET, num_test=20, num_train=1_000)
    fake_run(tmp_path, LORA, num_test=20)
    (compared,), lines = compare(tmp_path)
    assert [series.label for series in compared.series] == [
        "ViT-B/16 + LoRA (r=16) (n=45,000)",
        "ResNet50 (published head) (n=1,000)",
    ]
    assert any("different numbers" in line for line in lines)


def test_a_number_of_training_images_is_said_once(tmp_path):
    for limit in (500, 1_000):
        folder = f"{RESNET}-n{limit}-wd0.1" if limit == 500 else f"{RESNET}-n{limit}"
        fake_run(tmp_path, RESNET, num_test=20, num_train=limit, folder_name=folder)
    (compared,), _ = compare(tmp_path)
    labels = [series.label for series in compared.series]
    assert sorted(labels) == ["ResNet50 (published head) (n=1,000)", "ResNet50 (published head) [wd0.1] (n=500)"]


def test_an_unfinished_run_is_named(tmp_path):
    run = fake_run(tmp_path, num_test=20)
    for seed in (0, 1):
        folder = run.folder.with_name(f"seed{seed}")
        folder.mkdir(exist_ok=True)
        (folder / "checkpoint.safetensors").touch()
    assert unfinished_runs(tmp_path) == [run.folder.with_name("seed1")]


@pytest.mark.parametrize(
    "classes",
    [
        ("no", "yes"),
        ("$x_1$", "100 %", "a & b", "line\nbreak", "\x00\x1b[31m", "$\\frac{$", "^~", "a|b", "x" * 300),
        ("猫", "собака", "كلب", "🐈", "undecodable \udc80"),
        tuple(f"class {index}" for index in range(65)),
    ],
)
def test_any_class_names_and_numbers_are_drawn(tmp_path, classes):
    for name in (LORA, RESNET):
        fake_run(tmp_path, name, dataset="own", classes=classes, num_test=3 * len(classes), epochs=1)
    draw(tmp_path, tmp_path / "figures")
    write_summary(*tables(compare(tmp_path)[0]), tmp_path)
    assert len(list((tmp_path / "figures").iterdir())) == 2


def test_a_process_that_only_draws_keeps_half_a_letter(tmp_path):
    fake_run(tmp_path / "results", RESNET, dataset="own", classes=("no", "half \udc80"), num_test=6, epochs=1)
    (compared,), _ = compare(tmp_path / "results")
    given = tables([compared])
    with pd.option_context("mode.string_storage", "auto"):  # as a new process has it
        assert draw_one("per_class_f1", compared, *given, tmp_path)


def test_a_long_data_set_name_leaves_room_in_the_title(tmp_path):
    fake_run(tmp_path, RESNET, num_test=20, dataset="d" * 200)
    (compared,), _ = compare(tmp_path)
    with style.context():
        title = figure("roc_curves", compared).texts[0].get_text()
    assert title.startswith("d" * 23 + "…: ROC")


def test_letters_that_the_font_lacks_are_found():
    with style.context():
        assert style.missing_letters(["cat $x$ é", "собака"]) == ""
        assert style.missing_letters(["cat 猫", "🐈"]) == "猫🐈"


def test_a_class_without_test_images_leaves_gaps_but_no_error(tmp_path):
    fake_run(tmp_path, RESNET, num_test=9)  # the tenth class has none
    (compared,), _ = compare(tmp_path)
    assert compared.series[0].runs[0].test.scores["auc_macro"] is None
    draw(tmp_path, tmp_path / "figures")
    with style.context():
        rows = [label.get_text() for label in figure("per_class_f1", compared).axes[0].get_yticklabels()]
    assert len(rows) == 9 and "truck" not in rows
    write_summary(*tables([compared]), tmp_path)
    assert "| — |" in (tmp_path / "summary.md").read_text() and "& — &" in (tmp_path / "summary.tex").read_text()


def test_figures_show_the_numbers_of_the_records(folder):
    (compared,), _ = compare(folder, "cifar10/*")
    accuracy = np.array([run.test.scores["accuracy"] for run in compared.series[0].runs])
    with style.context():
        shown = texts(figure("final_benchmark_comparison", compared))
        matrix = figure("confusion_matrices", compared).axes[0].collections[0].get_array()
    assert f"{accuracy.mean():.3f} ± {accuracy.std(ddof=1):.3f}" in shown
    low, high = interval(compared, LORA)
    assert f"[{low:.3f}, {high:.3f}]" in shown
    counts = np.sum([run.test.confusion_matrix for run in compared.series[0].runs], axis=0)
    assert np.allclose(matrix.reshape(counts.shape), 100 * counts / counts.sum(axis=1, keepdims=True))


def interval(compared, run: str) -> list[float]:
    means = compute_uncertainty([compared]).means
    return means.query("run == @run and metric == 'accuracy'")[["low", "high"]].iloc[0].tolist()


def test_every_seed_is_a_dot_in_front_of_its_mean(folder):
    (compared,), _ = compare(folder, "cifar10/*")
    with style.context():
        (ax,) = figure("accuracy_vs_parameters", [compared]).axes
    means, dots = ax.collections
    accuracies = [[run.test.scores["accuracy"] for run in series.runs] for series in compared.series]
    assert dots.get_offsets()[:, 1].tolist() == np.ravel(accuracies).tolist()
    assert np.allclose(means.get_offsets()[:, 1], np.mean(accuracies, axis=1))
    assert dots.get_zorder() > means.get_zorder()
    looks = run_styles(compared)
    assert means.get_facecolors().tolist() == [list(to_rgba(looks[series.name].color)) for series in compared.series]


def test_every_seed_is_a_dot_at_its_value_on_the_bar_of_its_model(folder):
    (compared,), _ = compare(folder, "cifar10/*")
    with style.context():
        ax = figure("final_benchmark_comparison", compared).axes[0]
    dots = np.concatenate([dots.get_offsets() for dots in ax.collections])
    wanted = [(run.test.scores["accuracy"], row) for row, series in enumerate(compared.series) for run in series.runs]
    assert sorted((x, round(y)) for x, y in dots) == sorted(wanted)
    assert len({y for _, y in dots}) == len(wanted)  # none hides another


def test_whiskers_are_the_intervals_and_published_marks_come_when_asked_for(folder):
    (compared,), _ = compare(folder, "cifar10/*")
    with style.context():
        drawn = figure("final_benchmark_comparison", compared)
        whiskers = [line for line in drawn.axes[0].lines if len(line.get_xdata()) == 2 and line.get_path_effects()]
        assert [list(line.get_xdata()) for line in whiskers] == [
            interval(compared, one.name) for one in compared.series
        ]
        assert "Hollow diamonds" not in texts(drawn)
        drawn = figure("final_benchmark_comparison", replace(compared, with_published=True))
    diamonds = [line.get_xdata()[0] for line in drawn.axes[0].lines if line.get_marker() == "D"]
    assert diamonds == [0.9732, 0.9742, 0.8348, 0.8273] and "published, one run each" in texts(drawn)


def test_a_fourth_headline_metric_is_one_more_panel(folder, monkeypatch):
    balanced = replace(METRICS["accuracy"], label="Balanced accuracy", chance=lambda _: 0.1)
    more = {**METRICS, "balanced_accuracy": balanced}
    named = [name for name, metric in more.items() if metric.headline]
    compared, _ = compare(folder)
    frames, unsure = tables(compared)
    means, pairs = (  # as if it had been resampled
        pd.concat([frame, frame[frame["metric"] == "accuracy"].assign(metric="balanced_accuracy")])
        for frame in (unsure.means, unsure.pairs)
    )
    unsure = replace(unsure, means=means, pairs=pairs)
    for module in (bars, differences):
        monkeypatch.setattr(module, "HEADLINE", named)
        monkeypatch.setattr(module, "METRICS", more)
    for columns, shape in (("one", (4, 1)), ("two", (2, 2))):
        with style.context(columns):
            for name in ("final_benchmark_comparison", "differences"):
                drawn = FIGURES[name].draw(compared[0], frames, unsure)
                drawn.canvas.draw()
                assert [ax.get_title(loc="left") for ax in drawn.axes] == [more[metric].label for metric in named]
                assert drawn.axes[0].get_gridspec().get_geometry() == shape
            everything = FIGURES["overview"].draw(compared, frames, unsure)
            assert len(everything.axes) == len(compared) * len(named)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (6, 3), (7, 3)])
def test_panels_fill_the_page_evenly(count, columns):
    with style.context("two"):
        assert layout.panel_columns(count) == columns
        figure, axes = layout.facets(["title"] * count, (1, 0.5), title="", caption="")
    assert axes.shape == (count, 2) and len(figure.axes) == 2 * count
    places = [(spec.rowspan.start, spec.colspan.start) for spec in (ax.get_subplotspec() for ax in axes[:, 0])]
    assert places == [(2 * (index // columns), index % columns) for index in range(count)]
    layout.label_outside(axes[:, 1], "x", "y")
    assert [bool(ax.get_xlabel()) for ax in axes[:, 1]] == [index + columns >= count for index in range(count)]
    assert [bool(ax.get_ylabel()) for ax in axes[:, 1]] == [index % columns == 0 for index in range(count)]


@pytest.mark.parametrize(("columns", "inches", "rows"), [("one", 3.5, 3), ("two", 7.2, 1)])
def test_figures_fit_the_columns_of_a_page(folder, columns, inches, rows):
    (compared,), _ = compare(folder, "cifar10/*")
    with style.context(columns):
        for name in ("final_benchmark_comparison", "differences"):
            drawn = figure(name, compared)
            assert drawn.get_figwidth() == inches and drawn.axes[0].get_gridspec().nrows == rows
            drawn.canvas.draw()
    assert style.page_width() != inches


def test_published_marks_are_not_drawn_beside_other_training_sets_or_data(tmp_path):
    fake_run(tmp_path, RESNET, num_test=20, train_limit=100)
    fake_run(tmp_path, EFFICIENTNET, num_test=20, dataset="mnist")  # the study's MNIST notebook loads CIFAR-10
    for one in compare(tmp_path)[0]:
        assert published_caption([replace(one, with_published=True)]) == ""


def test_differences_are_coloured_by_their_verdict(tmp_path):
    for name, folder_name in ((LORA, None), (RESNET, "a"), (RESNET, "b")):
        for seed in range(3):
            fake_run(tmp_path, name, seed=seed, num_test=400, folder_name=folder_name)
    (compared,), _ = compare(tmp_path)
    pairs = compute_uncertainty([compared]).pairs.query("metric == 'accuracy'")
    with style.context():
        ax = figure("differences", compared).axes[0]
    marks = [(line.get_marker(), line.get_color()) for line in ax.lines if line.get_marker() not in ("None", "")]
    assert pairs["verdict"].tolist() == ["better", "better", "undecided"]
    looks = [VERDICTS[pair.verdict, pair.winner][1] for pair in pairs.itertuples()]
    assert marks == [(look["marker"], look["color"]) for look in looks] and len(set(marks)) == 2
    bars = [segment[:, 0].tolist() for lines in ax.collections for segment in lines.get_segments()]
    assert bars == [pytest.approx([100 * pair.low, 100 * pair.high]) for pair in pairs.itertuples()]


def test_findings_have_a_row_a_declared_pair_and_a_mark_where_a_data_set_has_it(tmp_path):
    for dataset, names in (("cifar10", (LORA, RESNET)), ("digits", (LORA, RESNET, EFFICIENTNET))):
        for name in names:
            for seed in range(2):
                fake_run(tmp_path, name, dataset=dataset, seed=seed)
    compared, _ = compare(tmp_path)
    pairs = compute_uncertainty(compared).pairs.query("metric == 'accuracy' and declared")
    with style.context():
        drawn = figure("findings", compared)
    rows = dict(zip(drawn.axes[0].get_yticks(), drawn.axes[0].get_yticklabels(), strict=True))
    rows = {place: label.get_text() for place, label in rows.items()}
    assert rows[0] == "Declared differences" and len(rows) == 1 + 3  # no interaction: nothing is crossed here
    assert rows[1] == "ViT-B/16 + LoRA (r=16)\nminus ResNet50 (published head)"
    for ax, (_, own) in zip(drawn.axes, pairs.groupby("dataset", sort=False), strict=True):
        marks = [line.get_xydata()[0] for line in ax.lines if line.get_marker() not in ("None", "")]
        assert [x for x, _ in marks] == pytest.approx(100 * own["difference"])
        assert len({rows[y] for _, y in marks}) == len(own)


def test_findings_show_the_interactions_where_method_and_backbone_are_crossed(tmp_path):
    for name in (LORA, *CROSSED):
        for seed in range(1 if "probe" in name else 2):
            fake_run(tmp_path, name, seed=seed)
    (compared,), _ = compare(tmp_path)
    with style.context():
        drawn = figure("findings", [compared])
    shown = texts(drawn)
    assert "Gain of LoRA on ViT-B/16\nminus its gain on ResNet50" in shown
    assert "Gain of full fine-tuning on ViT-B/16\nminus its gain on ResNet50" in shown
    assert "An interaction is what a method adds to the probe" in " ".join(shown.split())


def test_a_verdict_has_no_models_colour():
    models = {shade(look.color, amount) for look in STYLES.values() for amount in SHADES}
    assert not models & {look["color"].lower() for _, look in VERDICTS.values()}
    looks = {(look["marker"], look.get("markerfacecolor")) for _, look in VERDICTS.values()}
    assert len(looks) == len(VERDICTS)  # shapes alone tell them apart


def test_reliability_shows_the_bins_before_and_after_the_temperature(tmp_path):
    run = fake_run(tmp_path, RESNET, num_test=200)
    (compared,), _ = compare(tmp_path)
    with style.context():
        drawn_figure = figure("reliability", compared)
    top = drawn_figure.axes[0]
    predictions = read_predictions(run.folder, run.result)
    probabilities = metrics.softmax(predictions.logits)
    bins = calibration.reliability(probabilities, predictions.labels)
    drawn = top.collections[-1].get_offsets()  # as trained, in front
    full = bins.images > 0
    assert np.allclose(drawn, np.column_stack([bins.confidence[full], bins.accuracy[full]]))
    assert f"ECE {run.test.scores['ece']:.3f}" in texts(drawn_figure)


@pytest.mark.parametrize(
    ("name", "cost"),
    [
        ("accuracy_vs_parameters", "trainable_params"),
        ("accuracy_vs_training_flops", "train_flops"),
        ("accuracy_vs_flops", "forward_flops"),
        ("accuracy_vs_deployed_bytes", "deployed_bytes"),
    ],
)
def test_the_axis_of_a_cost_has_its_one_name_and_unit(folder, name, cost):
    compared, _ = compare(folder, "cifar10/*")
    with style.context():
        (ax,) = figure(name, compared).axes
    means = frames_of(compared).runs.groupby("run", sort=False)[cost].mean() * QUANTITIES[cost].scale
    assert ax.get_xlabel() == f"{QUANTITIES[cost].label}, log" and ax.get_ylabel() == METRICS["accuracy"].label
    assert np.allclose(ax.collections[0].get_offsets()[:, 0], means)


@pytest.mark.parametrize(("seeds", "is_drawn"), [(1, False), (3, True)])
def test_the_line_of_a_trade_off_is_explained_where_one_is_drawn(tmp_path, seeds, is_drawn):
    for name in (LORA, RESNET):  # the ViT with LoRA is the dearer and the better one
        for seed in range(seeds):
            fake_run(tmp_path, name, seed=seed)
    with style.context():
        drawn = figure("accuracy_vs_flops", compare(tmp_path)[0])
    assert [len(line.get_xdata()) for line in drawn.axes[0].lines] == [2 if is_drawn else 1]
    assert ("Line:" in texts(drawn)) is is_drawn


def test_a_cost_that_no_run_knows_is_an_empty_panel(tmp_path):
    run = fake_run(tmp_path, RESNET, num_test=20)
    write_result(run.folder, replace(run.result, model=replace(run.result.model, forward_flops=None)))
    fake_run(tmp_path, RESNET, num_test=20, dataset="digits")
    with style.context():
        drawn = figure("accuracy_vs_flops", compare(tmp_path)[0])
        drawn.canvas.draw()
    assert [len(ax.collections) for ax in drawn.axes] == [0, 1]
    with style.context():
        (ax,) = figure("accuracy_vs_flops", compare(tmp_path, "cifar10/*")[0]).axes
    assert len(ax.collections) == 0


@pytest.mark.parametrize(
    ("costs", "accuracies", "decided", "front"),
    [  # 4's cost is unknown; (3, 5): 3 is decided to be better than 5
        ([1.0, 2.0, 3.0, 2.0, np.nan, 0.5], [0.5, 0.7, 0.6, 0.8, 0.9, 0.5], {(3, 5), (1, 5), (2, 0)}, [5, 3]),
        ([1.0, 2.0, 3.0], [0.5, 0.6, 0.7], {(1, 0), (2, 1)}, [0, 1, 2]),
        ([1.0, 2.0, 3.0], [0.5, 0.6, 0.7], {(2, 0)}, [0, 2]),
        ([1.0, 2.0, 3.0], [0.5, 0.6, 0.7], set(), [0]),
        ([1.0, 1.0], [0.5, 0.5], set(), [0]),
        ([np.nan, np.nan], [1.0, 1.0], set(), []),
    ],
)
def test_the_pareto_front_joins_decided_differences_alone(costs, accuracies, decided, front):
    means = pd.DataFrame({"run": range(len(costs)), "cost": costs, "test_accuracy": accuracies})
    assert pareto_front(means, decided).index.tolist() == front


def test_models_without_epochs_have_no_learning_curves(tmp_path):
    for name in (RESNET, EFFICIENTNET):
        run = fake_run(tmp_path, name, num_test=40)
        if name == RESNET:
            write_result(run.folder, replace(run.result, history=[], best_epoch=None))
    (both,) = compare(tmp_path)[0]
    assert [ax.get_title() for ax in figure("learning_curves", both).axes if ax.get_title()] == [both.series[1].label]
    probes, wanted = replace(both, series=both.series[:1]), FIGURES["learning_curves"].wanted
    assert not wanted(probes, None, None) and wanted(both, None, None)


def test_few_shot_curves_join_runs_that_differ_by_their_training_images_alone(tmp_path):
    for limit in (None, 1_000, 100):
        name = RESNET + (f"-n{limit}" if limit else "")
        fake_run(tmp_path, RESNET, num_test=40, train_limit=limit, num_train=limit or 45_000, folder_name=name)
    fake_run(tmp_path, LORA, num_test=40)
    fake_run(tmp_path, RESNET_LINEAR, num_test=40, train_limit=100, num_train=100)
    (compared,), _ = compare(tmp_path)
    curves = few_shot_curves(compared)
    assert {label: [one.num_train for one in curve] for label, curve in curves.items()} == {
        "ResNet50 (published head)": [100, 1_000, 45_000]
    }
    with style.context():
        (ax,) = figure("few_shot", compared).axes
    unsure = compute_uncertainty([compared])
    means = unsure.means.query("metric == 'accuracy'").set_index("run")["value"]
    assert ax.lines[0].get_ydata().tolist() == [means[one.name] for one in curves["ResNet50 (published head)"]]
    assert unsure.pairs["a"].iloc[0] == LORA  # and among equally many images the rest is compared
    assert not few_shot_curves(compare(tmp_path, LORA)[0][0])


@pytest.mark.parametrize("name", ["learning_curves", "reliability"])
def test_many_models_stand_in_rows_as_wide_as_two_columns_on_the_same_scale(tmp_path, name):
    for epochs, run in enumerate(MODELS, 2):
        fake_run(tmp_path, run, num_test=40, epochs=epochs)
    (many,), _ = compare(tmp_path)
    with style.context("one"):
        drawn = figure(name, many)
    assert len(many.series) > layout.MOST_BESIDE and drawn.get_figwidth() == style.WIDTHS["two"]
    upper = [ax for ax in drawn.axes if ax.get_title("left")]
    assert len(upper) == len(many.series) and len({ax.get_ylim() for ax in upper}) == 1
    assert len({round(ax.get_subplotspec().get_position(drawn).y0, 3) for ax in upper}) == 2  # rows
    if name == "learning_curves":
        assert len({ax.get_xlim() for ax in upper}) == len(many.series)  # each its own epochs


def test_wrapping_keeps_brackets_together_where_they_fit():
    assert style.wrapped("ResNet50 (probe) [px96] [random weights]", 30) == "ResNet50 (probe) [px96]\n[random weights]"
    label = "ResNet50 (published head) [mlp] [random weights] (n=45,000)"
    assert " ".join(style.wrapped(label, 16).split()) == label  # a number that is cut is another number
    assert max(map(len, style.wrapped("x [many words in one pair of brackets]", 12).splitlines())) <= 12


def test_bars_start_at_zero(folder):
    with style.context():
        drawn = figure("final_benchmark_comparison", compare(folder)[0][0])
    for ax in drawn.axes:
        assert ax.get_xlim()[0] == 0 and all(bar.get_x() == 0 for bar in ax.patches)


def test_drawing_leaves_matplotlib_and_the_results_as_they_were(folder, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    files = {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("seed*/*")}
    with style.context():
        style.save(figure("learning_curves", compare(folder)[0][0]), tmp_path / "curves")
    assert dict(matplotlib.rcParams) == before
    assert files == {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("seed*/*")}


def test_fonts_in_a_pdf_have_the_shapes_of_the_letters_and_nothing_to_shape_text_by(tmp_path):
    with style.context():
        panel = Figure()
        panel.text(0.1, 0.1, "Äfi ± 0.3")
        _, pdf = style.save(panel, tmp_path / "letters")
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf.read_bytes(), re.DOTALL)
    fonts = [font for font in map(_inflated, streams) if font.startswith(b"\0\1\0\0")]
    embedded = [TTFont(io.BytesIO(font)) for font in fonts]
    assert embedded and not any({"GSUB", "GPOS", "GDEF", "kern"} & set(font.keys()) for font in embedded)
    known = _shapes(TTFont(font_manager.findfont("DejaVu Sans")))
    ours = [shape for font in embedded for shape in _shapes(font)]
    assert len(ours) >= 7 and all(shape in known for shape in ours)


def _inflated(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return b""


def _shapes(font: TTFont) -> list:
    """Return the outlines of a font's letters, but of those that are made of others."""
    table = font["glyf"]
    glyphs = [table[name] for name in font.getGlyphOrder()]
    return [list(glyph.coordinates) for glyph in glyphs if glyph.numberOfContours > 0]
