"""What methods cost: operations counted by hand, bytes on disk, times of merged models, and who shows them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_results import MODELS, fake_run, fake_timing
from finished import TINY
from torch import nn

import evaluate
import plot_results
import train_cnn_head
import train_cnn_lora
import train_full
import train_vit_lora
from common import cli, figures
from common.evaluation.comparison import compare
from common.evaluation.formatting import mean_text
from common.evaluation.frames import frames_of
from common.evaluation.machines import machine_text, machines_note
from common.evaluation.timings import TIMING_FILE, read_timing
from common.evaluation.uncertainty import compute_uncertainty
from common.figures import FIGURES, style
from common.grid import scheduler
from common.grid.scheduler import Job
from common.models import complexity
from common.models.heads import new_head
from common.report.tables import model_texts, terminal, with_statistics, write_summary
from common.runs.result import Run, find_runs, read_result, write_result
from common.runtime.environment import RUNS_AT_ONCE, describe_environment
from common.training import timing
from common.training.restore import restore_run

LORA, RESNET, EFFICIENTNET, *_ = MODELS
CNN, VIT = "--backbone=test_resnet", "--backbone=test_vit"
OFF = "--no-feature-cache"
RUNS = {
    "probe": (train_cnn_head, (CNN, OFF, "--head=probe")),
    "linear": (train_cnn_head, (CNN, OFF, "--head=linear", "--lr=1e-2")),
    "rates": (train_cnn_head, (CNN, OFF, "--head=linear", "--lr", "1e-2", "3e-2")),
    "augmented": (train_cnn_head, (CNN, "--head=linear", "--augment=light", "--lr=1e-2")),
    "cnn_lora": (train_cnn_lora, (CNN, "--rank=2", "--lr=1e-3")),
    "norms": (train_full, (CNN, "--parts=norms-and-biases", "--lr=1e-3")),
    "full": (train_full, (CNN, "--lr=1e-3")),
    "frozen_vit": (train_vit_lora, (VIT, OFF, "--rank=0", "--lr=1e-2")),
    "lora": (train_vit_lora, (VIT, "--rank=2", "--lr=1e-2")),
    "lora_more": (train_vit_lora, (VIT, "--rank=2", "--targets=all-linear", "--lr=1e-2")),
    "full_vit": (train_full, (VIT, "--lr=1e-3")),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """One finished run of each method: 60 images, two epochs, random weights."""
    folder = tmp_path_factory.mktemp("results")
    for name, (script, flags) in RUNS.items():
        tiny = [flag for flag in TINY if name != "probe" or not flag.startswith(("--epochs", "--batch-size"))]
        argv = [*tiny, f"--results-dir={folder}", f"--run-name={name}", *flags]
        assert cli.run(script.main, script.Config, argv) == 0
    return {run.name: run for run in find_runs(folder)[0]}


def _evaluate(*argv: object) -> int:
    return cli.run(evaluate.main, evaluate.Config, [str(word) for word in argv])


def _compared(folder: Path):
    (comparison,), _ = compare(find_runs(folder)[0], {})
    return comparison, frames_of([comparison])


# Operations


@pytest.mark.parametrize(("frozen", "expected"), [(0, 4 * 5 * 7 + 6 * 7 * 3), (1, 2 * 5 * 7 + 4 * 7 * 3)])
def test_a_steps_operations_are_those_counted_by_hand(frozen, expected):
    """A layer: outputs x inputs x 2 forward, as much for its weights, and for its inputs where someone waits for it."""
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)).train()
    for layer in model[: 2 * frozen]:
        layer.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert complexity.step_flops(model, torch.zeros(1, 5)) == expected
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolutions_step_is_counted_by_hand_in_groups_too(groups):
    first, second = (nn.Conv2d(4, 4, 3, stride=stride, padding=1, groups=groups, bias=False) for stride in (1, 2))
    weights = 4 * 4 // groups * 9
    expected = 2 * (8 * 8 * weights) * 2 + 2 * (4 * 4 * weights) * 3  # the first one's inputs want no gradient
    assert complexity.step_flops(nn.Sequential(first, second), torch.zeros(1, 4, 8, 8)) == expected


def test_a_heads_step_grows_with_the_images():
    head = new_head(nn.ReLU(), 8, 3, kind="linear", dropout=0.5, seed=0)
    assert complexity.step_flops(head, torch.zeros(5, 8)) == 5 * 4 * 8 * 3


def test_the_operations_of_a_training_are_images_times_steps_and_features_once(runs):
    data = runs["linear"].result.data
    images, width = data.num_train, runs["linear"].result.model.step_flops / (4 * len(data.classes))
    features = runs["linear"].result.model.forward_flops - 2 * width * len(data.classes)
    flops = {name: run.result.efficiency.train_flops for name, run in runs.items()}
    step = {name: run.result.model.step_flops for name, run in runs.items()}
    assert flops["linear"] == images * features + 2 * images * step["linear"]
    assert flops["rates"] == images * features + 4 * images * step["linear"]  # two rates
    assert flops["augmented"] == 2 * images * (features + step["linear"])
    iterations = sum(trial["iterations"] for trial in runs["probe"].result.trials)
    assert iterations > 0 and flops["probe"] == images * features + iterations * images * step["linear"]
    for name in ("full", "lora", "cnn_lora"):
        assert flops[name] == 2 * images * step[name]


def test_what_is_frozen_saves_operations(runs):
    step = {name: run.result.model.step_flops for name, run in runs.items()}
    forward = {name: run.result.model.forward_flops for name, run in runs.items()}
    assert step["linear"] < forward["linear"] < step["cnn_lora"] < step["full"]
    assert forward["norms"] < step["norms"] < step["full"] < 3 * forward["full"]
    assert step["frozen_vit"] < forward["lora"] < step["lora"] < step["lora_more"] < step["full_vit"]
    assert forward["lora"] == forward["frozen_vit"] == forward["full_vit"]  # merged


# Bytes


def test_what_is_deployed_is_the_backbone_and_what_was_trained(runs):
    costs = {name: run.result.efficiency for name, run in runs.items()}
    for name, run in runs.items():
        model = restore_run(run, weights=None, device=torch.device("cpu"), workers=0)
        whole = complexity.weight_bytes(model.method.plain(model.backbone, model.model))
        if name in ("linear", "probe", "full", "norms", "full_vit", "frozen_vit"):
            header = costs[name].deployed_bytes - whole  # of the file
            assert 0 < header < 30_000, name
        assert (costs[name].backbone_bytes == 0) == (name in ("full", "norms", "full_vit"))
        assert costs[name].saved_bytes == sum((run.folder / file).stat().st_size for file in model.method.weight_files)
    assert costs["lora"].backbone_bytes == costs["lora_more"].backbone_bytes == costs["frozen_vit"].backbone_bytes
    assert costs["lora"].saved_bytes < costs["lora_more"].saved_bytes


# Times


@pytest.fixture(scope="module")
def timed(runs) -> dict[str, dict]:
    """The ``timing.json`` of each run, of stand-in sizes: three rounds, batches of 2 instead of 32."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"THROUGHPUT_IMAGES": 2, "LEAST_ROUNDS": 3, "SECONDS": 0}.items():
            patch.setattr(timing, name, value)
        assert _evaluate(*(run.folder for run in runs.values()), runs["full"].folder.parent, "--time") == 0
    return {name: json.loads((run.folder / TIMING_FILE).read_text()) for name, run in runs.items()}


def test_each_run_has_its_times_beside_it(runs, timed):
    for name, record in timed.items():
        assert record["result_sha256"] == runs[name].result.sha256
        assert record["timed_with"] == [f"digits/{other}" for other in runs]
        for part, images in (("latency", 1), ("throughput", 2)):
            assert (record[part]["images"], record[part]["repeats"]) == (images, 3)
            low, high = record[part]["quartiles"]
            assert 0 < low <= record[part]["seconds"] <= high
        read = read_timing(runs[name])
        assert read.latency_seconds == record["latency"]["seconds"]
        assert read.images_per_second == 2 / record["throughput"]["seconds"]
        assert record["environment"]["precision"] == "fp32" and record["environment"]["threads"] >= 1
    assert len({record["environment"]["created"] for record in timed.values()}) == 1  # one process


def test_models_are_timed_in_turn():
    calls = []
    seconds = timing._seconds_in_turn([lambda name=name: calls.append(name) for name in "abc"])
    rounds = seconds.shape[1]
    assert calls == [*"a" * timing.WARM_UP, *"b" * timing.WARM_UP, *"c" * timing.WARM_UP, *"abc" * rounds]
    assert seconds.shape == (3, timing.MOST_ROUNDS)


@pytest.mark.parametrize("name", ["linear", "augmented", "cnn_lora", "full", "frozen_vit", "lora", "lora_more"])
def test_what_is_timed_is_the_model_merged_and_folded(runs, name):
    model = restore_run(runs[name], weights=None, device=torch.device("cpu"), workers=0)
    module, images = timing.deployed(model), torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.method.plain(model.backbone, model.model)(images)
        torch.testing.assert_close(module(images), expected, rtol=1e-4, atol=1e-4)
    kinds = {type(layer).__name__ for layer in module.modules()}
    assert not {kind for kind in kinds if kind.startswith(("BatchNorm", "lora"))} and "LoraLayer" not in kinds
    assert not any("lora" in parameter for parameter, _ in module.named_parameters())


def test_times_of_another_result_or_damaged_ones_are_none(tmp_path):
    run = fake_run(tmp_path, RESNET, num_test=20)
    assert read_timing(run) is None
    fake_timing(run, 5.0)
    assert read_timing(run).latency_seconds == 0.005 and read_timing(run).images_per_second == pytest.approx(400)
    path = run.folder / TIMING_FILE
    content = path.read_text()
    for damaged in (content[:-40], content.replace("0.005", "0.004"), "[]", "{}", "not JSON"):
        path.write_text(damaged)
        assert read_timing(run) is None
    path.write_text(content)
    write_result(run.folder, replace(run.result, command="another"))
    assert read_timing(Run(run.folder, read_result(run.folder / "result.json"))) is None


def test_timing_goes_with_nothing_else(runs, capsys):
    assert _evaluate(runs["linear"].folder, "--time", "--corrupt", "all") == 2
    assert "--corrupt and --time do not go together" in capsys.readouterr().err
    assert _evaluate(runs["linear"].folder, "--time", "--out", "x.json") == 2
    assert "--out goes with" in capsys.readouterr().err


# What is shown


def test_a_shared_extraction_is_one_measurement_and_memory_is_no_cost(tmp_path):
    for seed in (0, 1):
        fake_run(tmp_path, RESNET, seed=seed, num_test=20)
    comparison, frames = _compared(tmp_path)
    text = model_texts(frames.runs, ["feature_seconds", "train_seconds"]).iloc[0]
    assert text["Features (s)"] == "60.0" and "±" in text["Training (s)"]
    assert mean_text("feature_seconds", [60.0, 61.0]) == "60.5 ± 0.7"  # two extractions
    assert mean_text("test_accuracy", [0.5, 0.5]) == "0.500 ± 0.000"
    write_summary(frames, compute_uncertainty([comparison]), tmp_path)
    assert not [path for path in tmp_path.glob("summary.*") if "peak" in path.read_text()]


def test_the_rate_of_a_head_is_of_features_unless_its_images_are_augmented(tmp_path):
    head, augmented = (fake_run(tmp_path, name, num_test=20) for name in (RESNET, EFFICIENTNET))
    write_result(augmented.folder, replace(augmented.result, config=augmented.result.config | {"augment": "light"}))
    fake_run(tmp_path, LORA, num_test=20)
    runs = _compared(tmp_path)[1].runs.set_index("run")
    assert runs.loc[head.name, "train_features_per_second"] == 1_000 and runs["train_features_per_second"].count() == 1
    assert runs["train_images_per_second"].dropna().index.tolist() == [LORA, EFFICIENTNET]


def test_a_grid_tells_its_runs_how_many_share_the_machine(tmp_path, monkeypatch):
    code = f"import os; print(os.environ[{RUNS_AT_ONCE!r}])"
    monkeypatch.setattr(scheduler, "prepare_forks", lambda: False)  # the command is no script
    jobs = [Job(name, ("python", "-c", code), tmp_path / name, tmp_path / f"{name}.log", None) for name in "abc"]
    assert scheduler.run_all(jobs, [None, None], lambda job: "done") == {}
    assert [job.log.read_text() for job in jobs] == ["2\n"] * 3
    recorded = []
    for value in ("2", ""):
        monkeypatch.setenv(RUNS_AT_ONCE, value)
        recorded.append(describe_environment(torch.device("cpu"), "fp32")["jobs"])
    assert recorded == [2, None]


def test_a_machine_is_named_as_far_as_it_is_recorded():
    known = {"device": "cpu", "cpu": "Abacus 9", "threads": 1, "precision": "bf16", "jobs": 2}
    assert machine_text(known) == "CPU (Abacus 9), 1 thread, bf16, 2 jobs"
    assert (
        machine_text({"device": "NVIDIA H100", "cpu": "x", "threads": 8, "jobs": None})
        == "GPU (NVIDIA H100), 8 threads"
    )
    assert (machine_text({"device": "cpu"}), machine_text({})) == ("CPU", "unknown device")


def _caption_and_axis(name: str, comparison, frames) -> tuple[str, str]:
    with style.context():
        figure = FIGURES[name].draw([comparison], frames, compute_uncertainty([comparison]))
        figure.canvas.draw()
    return " ".join(" ".join(text.get_text() for text in figure.texts).split()), figure.axes[0].get_xlabel()


def test_seconds_name_their_machine_and_those_of_several_have_a_note(tmp_path):
    fake_run(tmp_path, LORA, num_test=20)
    other = fake_run(tmp_path, RESNET, num_test=20)
    caption, axis = _caption_and_axis("accuracy_vs_time", *_compared(tmp_path))
    assert axis == "Training with features (s), log\nCPU (Abacus), 1 thread, fp32" and "timed on" not in caption
    environment = other.result.environment | {"device": "NVIDIA H100", "precision": "bf16"}
    write_result(other.folder, replace(other.result, environment=environment))
    comparison, frames = _compared(tmp_path)
    caption, axis = _caption_and_axis("accuracy_vs_time", comparison, frames)
    assert axis.endswith("2 machines, see below")
    note = (
        "Training timed on 2 machines or settings, which do not compare: CPU (Abacus), 1 thread, fp32: ViT-B/16 + LoRA"
    )
    assert note in caption and "GPU (NVIDIA H100), 1 thread, bf16: ResNet50 (published head)." in caption
    write_summary(frames, compute_uncertainty([comparison]), tmp_path)
    assert "note: Training timed on 2 machines" in terminal([comparison], frames)
    header, _, first, second = (tmp_path / "summary.md").read_text().splitlines()
    assert header.endswith("| Machine |") and "GPU (NVIDIA H100), 1 thread, bf16" in second and "GPU" not in first


def test_latency_is_drawn_of_all_seeds_of_what_was_timed(tmp_path):
    lora = [fake_run(tmp_path, LORA, seed=seed, num_test=20) for seed in (0, 1)]
    resnet = fake_run(tmp_path, RESNET, num_test=20)
    assert not FIGURES["accuracy_vs_latency"].wanted([], _compared(tmp_path)[1], None)
    fake_timing(lora[0], 80.0)
    comparison, frames = _compared(tmp_path)
    assert FIGURES["accuracy_vs_latency"].wanted([], frames, None)
    assert frames.runs["latency_seconds"].tolist()[:2] == [0.08, 0.08] and np.isnan(frames.runs["latency_seconds"][2])
    caption, axis = _caption_and_axis("accuracy_vs_latency", comparison, frames)
    assert axis == "Latency (ms), log\nCPU (Abacus), 2 threads, fp32"
    assert "Not measured: ResNet50 (published head)." in caption
    text = model_texts(frames.runs, ["latency_seconds", "images_per_second"])
    assert text.to_numpy().tolist() == [["80.00", "25"], ["—", "—"]]
    fake_timing(resnet, 20.0, created="2025-01-03")
    caption, _ = _caption_and_axis("accuracy_vs_latency", *_compared(tmp_path))
    assert "timed in 2 processes" in caption and "Not measured" not in caption


def test_bytes_for_tasks_are_one_backbone_and_what_each_task_adds(tmp_path):
    fake_run(tmp_path, LORA, num_test=20)
    full = fake_run(tmp_path, RESNET, num_test=20)
    whole = replace(full.result.efficiency, backbone_bytes=0, saved_bytes=10**8)
    write_result(full.folder, replace(full.result, efficiency=whole, method="full"))
    comparison, frames = _compared(tmp_path)
    with style.context():
        figure = FIGURES["bytes_for_tasks"].draw([comparison], frames, None)
    lora, resnet, grey = ((line.get_xdata(), line.get_ydata()) for line in figure.axes[0].lines)
    cost = comparison.series[0].runs[0].result.efficiency
    np.testing.assert_allclose(lora[1], cost.backbone_bytes + lora[0] * cost.saved_bytes)
    np.testing.assert_allclose(resnet[1], 1e8 * resnet[0])
    np.testing.assert_allclose(
        grey[1], cost.deployed_bytes * np.array([1, 10, 100])
    )  # of the ViT: no whole one is there
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[2:] == ["a whole ViT-B/16 each"] and "merged adapters" in figure.texts[-1].get_text()


def test_results_that_are_older_than_a_cost_are_read_and_drawn_without_it(tmp_path):
    for name in (LORA, RESNET):
        run = fake_run(tmp_path, name, num_test=20)
        older = replace(run.result.efficiency, train_flops=None, backbone_bytes=None)
        environment = {"device": "cpu", "created": run.result.environment["created"]}
        model = replace(run.result.model, step_flops=None)
        write_result(run.folder, replace(run.result, efficiency=older, model=model, environment=environment))
        record = json.loads((run.folder / "result.json").read_text())
        assert record["efficiency"]["train_flops"] is None
    comparison, frames = _compared(tmp_path)
    uncertainty = compute_uncertainty([comparison])
    wanted = {name for name, spec in FIGURES.items() if spec.across and spec.wanted([comparison], frames, uncertainty)}
    assert wanted == {"findings", "overview", "accuracy_vs_parameters", "accuracy_vs_time", "accuracy_vs_flops"}
    write_summary(frames, uncertainty, tmp_path)
    header = (tmp_path / "summary.md").read_text().splitlines()[0]
    assert "Saved (bytes)" in header and not any(word in header for word in ("TFLOPs", "Deployed", "Latency", "beside"))
    assert with_statistics(frames, uncertainty)["deployed_bytes"].isna().all()
    assert machines_note(frames.runs, "machine") == "Training timed on CPU." and not machines_note(
        frames.runs, "timing_machine"
    )


def test_costs_and_machines_are_in_the_report(runs, timed, tmp_path, monkeypatch):
    results, few = runs["lora"].folder.parents[2], ("accuracy_vs_latency", "bytes_for_tasks")
    monkeypatch.setattr(figures, "FIGURES", {name: FIGURES[name] for name in few})
    folders = ["--results-dir", results, "--figures-dir", tmp_path / "figures", "--report", tmp_path / "report.html"]
    argv = [*map(str, folders), "--runs=lin*"]
    assert cli.run(plot_results.main, plot_results.Config, argv) == 0
    page = (tmp_path / "report.html").read_text()
    for heading in ("Training with features (TFLOPs)", "Deployed (bytes)", "Latency (ms)", "Training (features/s)"):
        assert f"<button>{heading}</button>" in page
    assert "Latency and throughput timed on CPU" in page and 'alt="Bytes to ship for many tasks' in page
    assert (tmp_path / "figures" / "accuracy_vs_latency.png").exists()
