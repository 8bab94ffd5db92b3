"""The probe: the logistic regression it says it is, deterministic, and a run like any other."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info, threadpool_limits

import evaluate
import train_cnn_head
import train_vit_lora
from common import cli
from common.models.heads import Head
from common.models.logistic_regression import Standardisation, solve
from common.runs.predictions import read_predictions
from common.runs.result import read_result
from common.runtime.errors import UserError
from common.training.loaders import FeatureLoader
from common.training.methods import new_method, probe
from common.training.run import open_run

TINY = [*("--dataset=digits", "--backbone=test_resnet", "--weights=random", "--image-size=32", "--no-feature-cache")]


def _blobs(classes: int, images: int = 300, width: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    centres = np.random.default_rng(9).normal(size=(classes, width))
    features = centres[labels] + 1.5 * rng.normal(size=(images, width))
    return (3 + features * np.linspace(0.1, 10, width)).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3])
def test_the_solution_is_where_the_gradient_of_the_stated_objective_vanishes(classes):
    features, labels = _blobs(classes)
    inputs = Standardisation.of(features).apply(features)
    for solution in solve(inputs, labels, [1.0, 1e-1, 1e-2, 1e-3]):
        weight, bias = (
            torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (solution.weight, solution.bias)
        )
        logits = torch.tensor(inputs, dtype=torch.float64) @ weight.T + bias
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        (loss + solution.l2 / 2 * (weight**2).sum()).backward()
        largest = max(weight.grad.abs().max().item(), bias.grad.abs().max().item())
        assert largest < 2e-4  # scikit-learn stops at 1e-4, in float32
        assert solution.gradient_norm == pytest.approx(largest, abs=2e-6)


def test_it_predicts_as_scikit_learn_started_anew_does():
    features, labels = _blobs(4, images=400)
    standard, scaler = Standardisation.of(features), StandardScaler().fit(features)
    unseen, _ = _blobs(4, images=1_000, seed=1)
    for solution in solve(standard.apply(features), labels, [1e-1, 1e-2, 1e-3]):
        cold = LogisticRegression(C=1 / (len(labels) * solution.l2), max_iter=2_000)
        cold.fit(scaler.transform(features), labels)
        same = solution.logits(standard.apply(unseen)).argmax(1) == cold.predict(scaler.transform(unseen))
        assert same.mean() >= 0.995


def test_standardised_weights_fold_into_weights_for_features_as_they_are():
    features, labels = _blobs(3)
    features[:, 4] = 7.25  # constant: it says nothing, and must divide by nothing
    standard = Standardisation.of(features)
    assert (standard.apply(features)[:, 4] == 0).all()
    np.testing.assert_allclose(standard.apply(features).std(axis=0), np.arange(12) != 4, atol=1e-4)
    (solution,) = solve(standard.apply(features), labels, [1e-3])
    weight, bias = solution.unstandardised(standard)
    np.testing.assert_allclose(features @ weight.T + bias, solution.logits(standard.apply(features)), atol=1e-4)


def _fit(penalties: tuple[float, ...], monkeypatch) -> list[dict]:
    monkeypatch.setattr(probe, "PENALTIES", penalties)
    loaders = [FeatureLoader(torch.from_numpy(f), y) for f, y in (_blobs(3), _blobs(3, seed=1))]
    head = torch.nn.Module()
    head.output = torch.nn.Linear(12, 3)
    return new_method("head_probe", {}).fit(head, *loaders, [], None).trials


def test_the_path_goes_on_where_the_best_penalty_is_at_its_end(monkeypatch):
    whole = _fit(tuple(10.0**-k for k in range(-1, 8)), monkeypatch)
    best = min(whole, key=lambda trial: trial["val_loss"])["l2"]
    assert 1e-4 < best < 10  # inside, so that nothing was added
    assert [trial["l2"] for trial in whole] == pytest.approx([10.0**-k for k in range(-1, 8)])
    for short in ((best * 1e3, best * 1e2), (best / 1e2, best / 1e3)):
        found = [trial["l2"] for trial in _fit(short, monkeypatch)]
        assert len(found) == 5 and found == sorted(found, reverse=True)
        assert any(l2 == pytest.approx(best) for l2 in found)


@pytest.mark.parametrize("script", [train_cnn_head, train_vit_lora])
def test_a_probe_is_a_run_that_no_seed_changes(script, tmp_path, capsys):
    own = ["--backbone=test_vit", "--rank=0"] if script is train_vit_lora else []
    argv = [*TINY, *own, "--head=probe", "--train-limit=200", "--test-limit=60", f"--results-dir={tmp_path}"]
    for seed in (0, 1):
        assert cli.run(script.main, script.Config, [*argv, f"--seed={seed}"]) == 0
    paths = sorted(tmp_path.rglob("result.json"))
    first, second = map(read_result, paths)
    assert paths[0].parent.parent.name.split("-")[1] == "head_probe" and first.method == "head_probe"
    assert first.history == [] and first.best_epoch is None and first.efficiency.train_images_per_second is None
    chosen = min(first.trials, key=lambda trial: trial["val_loss"])
    assert first.val.scores["loss"] == pytest.approx(chosen["val_loss"], abs=1e-4)
    assert set(chosen) == {"l2", "C", "val_loss", "val_accuracy", "iterations", "gradient_norm"}
    assert chosen["C"] == pytest.approx(1 / (200 * chosen["l2"]))
    logits = [read_predictions(path.parent, result).logits for path, result in zip(paths, (first, second), strict=True)]
    np.testing.assert_array_equal(*logits)
    assert cli.run(evaluate.main, evaluate.Config, [str(paths[0].parent)]) == 0
    assert "identical" in capsys.readouterr().out
    assert (
        cli.run(evaluate.main, evaluate.Config, [str(paths[0].parent), f"--export={tmp_path / 'm.safetensors'}"]) == 0
    )


@pytest.mark.parametrize("flags", [["--epochs=3"], ["--lr", "1e-3", "3e-3"], ["--augment=light"], ["--head-dropout=0"]])
def test_settings_of_steps_are_refused(flags, tmp_path, capsys):
    argv = [*TINY, "--head=probe", *flags, f"--results-dir={tmp_path}"]
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, argv) == 2
    name = flags[0].partition("=")[0]
    assert f"{name} has no effect on head_probe" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_out_of_memory_it_names_no_setting_of_steps(tmp_path):
    config = train_cnn_head.Config(
        **{"dataset": "digits", "backbone": "test_resnet", "weights": "random", "image_size": 32, "head": "probe"},
        results_dir=tmp_path,
    )
    with pytest.raises(UserError, match=r"memory .* train with a smaller `image_size`"), open_run(config):
        raise MemoryError


def test_a_head_is_chosen_for_a_frozen_vit_alone(tmp_path, capsys):
    argv = [*TINY, "--backbone=test_vit", "--head=probe", f"--results-dir={tmp_path}"]
    assert cli.run(train_vit_lora.main, train_vit_lora.Config, argv) == 2
    assert (
        "--head 'probe' is not possible: it must be left out unless the ViT is frozen (--rank 0)"
        in capsys.readouterr().err
    )


def test_a_record_without_epochs_is_read(tmp_path):
    argv = [*TINY, "--head=probe", "--train-limit=100", "--test-limit=20", f"--results-dir={tmp_path}"]
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, argv) == 0
    (path,) = tmp_path.rglob("result.json")
    assert json.loads(path.read_text())["history"] == []


def test_a_fit_keeps_to_the_threads_of_the_run(monkeypatch):
    """NumPy's threads are not PyTorch's; a probe that took more would round otherwise."""
    seen = []

    def watched(*problem):
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return solve(*problem)

    monkeypatch.setattr(probe, "solve", watched)
    features, labels = _blobs(3)
    loader = FeatureLoader(torch.from_numpy(features), labels)
    model = Head(features.shape[1], 3, hidden=None, dropout=0.0, activation=None)
    with threadpool_limits(torch.get_num_threads() + 1, user_api="blas"):
        probe.Probe(kind="linear", dropout=0.0).fit(model, loader, loader, [], None)
    assert set(seen) == {torch.get_num_threads()}
