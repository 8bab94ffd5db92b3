"""The deliberate defects do what the published code did, and no reader takes a run with one for a sound one."""

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import tyro
from torch import nn

import profiles
import reproduce
import train_cnn_head
import train_vit_lora
from bench import defects, published_defects
from bench.published_defects import (
    DEFECTS,
    EitherWay,
    PublishedLora,
    ThroughBackbone,
    defective,
    live_layers,
    mirror,
)
from common.data.images import LabelledImages
from common.evaluation.comparison import compare
from common.grid import scheduler
from common.grid.grid import Arm, Grid
from common.models import backbones
from common.runs.predictions import npz_bytes
from common.runs.result import RESULT_FILE, Run, find_runs, read_result
from common.runtime.errors import AlreadyFinished, UserError
from common.training.loaders import FeatureLoader, ImageLoader

CPU = torch.device("cpu")
TINY = {"weights": "random", "image_size": 32, "precision": "fp32", "epochs": 2, "batch_size": 32, "lr": (1e-2,)}
TINY |= {"dataset": "digits", "train_limit": 60, "test_limit": 30, "feature_cache": False}
HEAD = train_cnn_head.Config(backbone="test_efficientnet.r160_in1k", **TINY)
RESNET = replace(HEAD, backbone="test_resnet.r160_in1k")
LORA = train_vit_lora.Config(backbone="test_vit.r160_in1k", rank=2, **TINY)
SIXTEEN = PublishedLora(rank=16, alpha=32.0, dropout=0.1, targets="qv", also_train="nothing")


def _images(count=40, side=32):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
    return LabelledImages(rng.integers(0, 10, count), np.arange(count), pixels=pixels)


def test_the_predictions_stand_in_the_docstring_as_the_table_has_them():
    for name, defect in DEFECTS.items():
        (line,) = re.findall(rf"^    {name} .*$", published_defects.__doc__, flags=re.M)
        assert dict(re.findall(r"(lora|resnet|efficientnet) ([-+0])(?=\s)", line)) == defect.predicted
        (own,) = re.findall(r"of Lite0, .*, ([-+0])$", line) or [defect.predicted.get("efficientnet")]
        if own is not None:
            assert own == defect.sign("efficientnet", "tf_efficientnet_lite0.in1k")


def test_lora_on_out_proj_is_dead_at_the_size_of_the_study():
    """294,912 of 1,769,472 LoRA parameters never receive a gradient, as in the published code."""
    backbone = backbones.load("vit_base_patch16_224.augreg_in1k", weights="random", image_size=32)
    model = SIXTEEN.build(backbone, 10, seed=0, precision="fp32", device=CPU).train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    matrices = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    dead = {name for name, parameter in matrices.items() if parameter.grad is None}
    assert dead == {name for name in matrices if ".attn.proj." in name}
    assert sum(matrices[name].numel() for name in dead) == 294_912
    assert sum(parameter.numel() for parameter in matrices.values()) == 1_769_472


def test_dead_lora_changes_no_prediction_and_the_rest_starts_as_the_base():
    images = torch.randn(3, 3, 32, 32)
    backbone = backbones.load(LORA.backbone, weights="random", image_size=32)
    with torch.no_grad():
        before = backbones.pooled_features(backbone.module, images)
        model = SIXTEEN.build(backbone, 10, seed=0, precision="fp32", device=CPU)
        assert torch.equal(backbones.pooled_features(model.module, images), before)
        logits = model(images)
        for name, parameter in model.named_parameters():
            if ".attn.proj.lora_B" in name:
                parameter.fill_(1.0)
        assert torch.equal(model(images), logits)
        for name, parameter in model.named_parameters():
            if ".mlp.fc1.lora_B" in name:
                parameter.fill_(1.0)
        assert not torch.equal(model(images), logits)


def _live(defects, training=True, tag=HEAD.backbone):
    backbone = backbones.load(tag, weights="random", image_size=32)
    layers = live_layers(backbone.module, defects)
    images = ImageLoader(_images(), backbone.transform("squash"), CPU, workers=0)
    return backbone.module, ThroughBackbone(images, backbone.module, "fp32", tuple(layers), training)


def _features(loader):
    return torch.cat(list(loader.batches(np.arange(40).reshape(2, 20), epoch=0)))


def test_statistics_drift_in_training_and_are_brought_back_with_the_epoch_that_is_kept():
    module, loader = _live(["batchnorm-drift"])
    weights = {name: value.clone() for name, value in module.named_parameters()}
    start = {name: value.clone() for name, value in module.named_buffers()}
    _features(loader)
    moved = [name for name, value in module.named_buffers() if not torch.equal(value, start[name])]
    assert sorted(moved) == sorted(start)  # mean, variance and count of every BatchNorm
    assert all(torch.equal(value, weights[name]) for name, value in module.named_parameters())
    assert not any(layer.training for layer in module.modules())
    loader.restore(1)
    assert all(torch.equal(value, start[name]) for name, value in module.named_buffers())
    _features(replace(loader, training=False))
    assert all(torch.equal(value, start[name]) for name, value in module.named_buffers())


def test_stochastic_depth_drops_blocks_in_training_alone():
    module, loader = _live(["stochastic-depth"], tag="demo_efficientnet.cifar10")
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    rates = [layer.drop_prob for layer in loader.live]
    assert rates[0] == 0 and rates == sorted(rates) and rates[-1] < published_defects.STOCHASTIC_DEPTH
    still, sound = replace(loader, training=False), _live([], tag="demo_efficientnet.cifar10")[1]
    assert torch.equal(_features(still), _features(sound))
    assert not torch.equal(_features(loader), _features(loader))
    assert torch.equal(_features(still), _features(sound))
    assert all(torch.equal(value, buffers[name]) for name, value in module.named_buffers())


def test_about_half_of_the_images_are_mirrored_anew_in_each_epoch():
    images = _images(200)
    backbone = backbones.load(RESNET.backbone, weights="random", image_size=32)
    plain, mirrored = (
        ImageLoader(each, backbone.transform("squash"), CPU, workers=0) for each in (images, mirror(images))
    )
    whole = [np.arange(200)]
    (one,), (two,) = (list(loader.batches(whole, epoch=0)) for loader in (plain, mirrored))
    assert torch.equal(two, one.flip(-1))
    drawn = [next(iter(EitherWay(plain, mirrored, 0).batches(whole, epoch=epoch))) for epoch in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    turned = (drawn[0] == two).flatten(1).all(1)
    assert ((drawn[0] == one).flatten(1).all(1) ^ turned).all() and 70 < turned.sum() < 130
    features = [FeatureLoader(torch.full((200, 3), value), images.labels) for value in (0.0, 1.0)]
    drawn = next(iter(EitherWay(*features, 0).batches(whole, epoch=0)))
    assert torch.equal(drawn[:, 0] == 1, turned)  # the same coins


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (LORA, ["lora-on-mlp", "validation-on-test", "flips", "imagenet-norm", "all"]),
        (RESNET, ["batchnorm-drift", "validation-on-test", "flips", "imagenet-norm", "all"]),
        (HEAD, ["batchnorm-drift", "stochastic-depth", "validation-on-test", "flips", "imagenet-norm", "all"]),
        (replace(RESNET, dataset="fashion_mnist"), ["batchnorm-drift", "validation-on-test", "imagenet-norm", "all"]),
        (replace(HEAD, head="linear"), []),
    ],
)
def test_a_defect_is_refused_where_it_is_none(config, names):
    assert published_defects.concerning(config) == names
    for name in {*DEFECTS, "unheard-of"} - set(names):
        with pytest.raises(UserError, match="is none of this run's"):
            defective(config, name)


@pytest.fixture(scope="module")
def all_defects(tmp_path_factory):
    """Runs of each arm with all of its defects, by arm."""
    folder = tmp_path_factory.mktemp("defective")
    for config in (LORA, RESNET, HEAD):
        published_defects.main(defective(replace(config, results_dir=folder), "all"))
    return folder


def test_every_other_reader_refuses_a_defective_run(all_defects, tmp_path):
    paths = sorted(all_defects.glob(f"digits/*/seed0/{RESULT_FILE}"))
    assert len(paths) == 3
    for path in paths:
        assert path.parent.parent.name.endswith("-DEFECT-all")
        with pytest.raises(UserError, match="with the deliberate defect all"):
            read_result(path)
        names = {file.name for file in path.parent.iterdir()}
        assert names == {RESULT_FILE, "predictions.npz", "epochs.npz"}  # no weights to predict with
        assert any("deliberate defects:" in note for note in json.loads(path.read_text())["notes"])
    runs, problems = find_runs(all_defects)
    assert not runs and len(problems) == 3
    # A sound run that is aimed at its folder does not take it for its own.
    aimed = replace(RESNET, results_dir=all_defects, run_name="test_resnet.random-head_mlp-lr1e-2-ep2-n60-bs32")
    name = next(path.parent.parent.name for path in paths if "resnet" in str(path))
    with pytest.raises(UserError, match="with the deliberate defect all"):
        train_cnn_head.main(replace(aimed, run_name=name))
    with pytest.raises(AlreadyFinished):
        published_defects.main(defective(replace(RESNET, results_dir=all_defects), "all"))


def test_usage_is_printed_for_what_is_no_defect(capsys):
    assert published_defects.run(["--help"]) == 0
    assert published_defects.run(["batchnorm", "train_cnn_head"]) == 2
    assert "validation-on-test" in capsys.readouterr().out
    assert published_defects.run(["flips", "train_cnn_head", "--dataset", "fashion_mnist"]) == 2
    assert "is none of this run's" in capsys.readouterr().err
    assert isinstance(live_layers(nn.Sequential(nn.BatchNorm2d(3)), ["batchnorm-drift"])[0], nn.BatchNorm2d)


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """The profile on 60 digits with random weights, a defect of each of two arms; what it printed lies in it."""
    folder = tmp_path_factory.mktemp("profile")
    few = {"weights": "random", "image_size": 32, "epochs": 2, "batch_size": 32, "lr": (1e-2,)}
    arms = (
        Arm(train_vit_lora, "test_vit.r160_in1k", profiles.LORA | few | {"rank": 2}),
        Arm(train_cnn_head, "test_efficientnet.r160_in1k", profiles.HEAD | few),
    )
    grid = Grid(arms, {"digits": {"train_limit": 60}}, seeds=(0, 1))
    chosen = {"lora": ["validation-on-test"], "head_mlp": ["batchnorm-drift"]}

    def run_all(jobs, devices, done):
        for job in jobs:
            sys.modules[type(job.config).__module__].main(job.config)
            done(job)
        return {}

    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "run_all", run_all)
        patch.setattr(reproduce, "_announce_time", lambda config, grids, at_once: grids)
        patch.setattr(reproduce.plot_results, "main", lambda config: None)
        patch.setattr(defects, "_measured", lambda config: chosen[config.method])
        patch.setitem(profiles.PROFILES, "defects", (grid,))
        patch.setattr("builtins.print", lambda *text, **_: lines.extend(map(str, text)))
        config = reproduce.Config(profile="defects", results_dir=folder / "results", figures_dir=folder / "figures")
        reproduce.main(config)
        reproduce.main(config)  # nothing is made twice
    (folder / "said.txt").write_text("\n".join(lines))
    return folder


def test_the_profile_measures_each_defect_against_the_sound_runs(profile):
    results = profile / "results" / "defects"
    said = (profile / "said.txt").read_text()
    assert "defects, deliberate defects: 4 runs: 0 finished, 0 running, 0 unfinished, 4 missing" in said
    assert "defects, deliberate defects: 4 runs: 4 finished" in said
    sound, problems = find_runs(results)
    assert len(sound) == 4 and not problems  # the defective ones lie where no reader of these looks
    found = defects.find_defective(results)
    assert {run.result.method for run in found} == {"lora", "head_mlp"} and len(found) == 4
    rows = pd.read_csv(results / "defects.csv").set_index("defect")
    assert list(rows.index) == ["batchnorm-drift", "validation-on-test", "one-seed"]
    drift = [run for run in found if run.result.config["defect"] == "batchnorm-drift"]
    heads = [run for run in sound if run.result.method == "head_mlp"]
    means = [np.mean([run.test.scores["accuracy"] for run in group]) for group in (drift, heads)]
    assert rows.loc["batchnorm-drift", "difference"] == pytest.approx(means[0] - means[1])
    assert rows.loc["batchnorm-drift", "predicted"] == "+" and rows.loc["validation-on-test", "seeds"] == 2
    assert "of 4 pairs of seeds in the other order" in rows.loc["one-seed", "order"]
    assert (profile / "figures" / "defects" / "defects.png").exists()
    comparison = compare(sound, {})[0][0]
    one_seed = tuple(replace(series, runs=series.runs[:1]) for series in comparison.series)
    shared = defects.effect_rows([replace(comparison, series=one_seed)], found).query("defect != 'one-seed'")
    assert set(shared["seeds"]) == {1} and set(shared["favours"]) == {"one seed, nothing is claimed"}
    assert set(shared["defect"]) == {"batchnorm-drift"}  # the spread of the other is that over seeds alone
    others = [_with_rate(run, 0.5) for run in drift]
    rows = defects.effect_rows([comparison], [*found, *others]).query("defect == 'batchnorm-drift'")
    assert list(rows["seeds"]) == [2] and rows["difference"].item() == pytest.approx(means[0] - means[1])
    assert (
        "deliberate_defects/digits/test_efficientnet.random-head_mlp-lr1e-2-ep2-n60-bs32-px32-DEFECT-batchnorm-drift"
        in said
    )


def _with_rate(run: Run, rate: float) -> Run:
    return replace(run, result=replace(run.result, config=run.result.config | {"lr": [rate]}))


def test_of_what_was_chosen_on_the_test_split_the_choice_is_the_best_there(profile):
    runs = defects.find_defective(profile / "results" / "defects")
    for run in (run for run in runs if "validation" in run.result.config["defect"]):
        assert run.result.val.scores == run.result.test.scores
        best = max(run.result.history, key=lambda row: row.val_accuracy)
        assert run.result.best_epoch == best.epoch
        assert best.val_accuracy == run.result.test.scores["accuracy"]


def test_the_optimism_of_a_choice_is_that_of_the_best_of_equally_good_epochs(tmp_path, monkeypatch):
    """Of E epochs that are all right with the same probability, known by simulation; of one epoch there is none."""
    rng = np.random.default_rng(0)
    labels = np.zeros(2_000, np.int64)
    monkeypatch.setattr(defects, "read_predictions", lambda folder, result: SimpleNamespace(val_labels=labels))

    def optimism(predicted):
        (tmp_path / published_defects.EPOCHS_FILE).write_bytes(npz_bytes(predicted=predicted))
        return defects.optimism(SimpleNamespace(folder=tmp_path, result=None))

    independent = (rng.random((8, 2_000)) < 0.2).astype(np.int64)
    assert 0.01 < optimism(independent) < 0.03  # about 1.4 standard errors of a half, 0.9 points each
    assert optimism(np.repeat(independent[:1], 8, axis=0)) == pytest.approx(0, abs=2e-3)
    clear = np.stack([independent[0], np.zeros(2_000, np.int64)])  # one epoch is far better: nothing to be gained
    assert optimism(clear) == 0


def test_what_a_seed_brings_to_both_is_no_part_of_the_difference():
    rng = np.random.default_rng(0)
    sound = {seed: rng.random(400) < share for seed, share in enumerate((0.5, 0.7, 0.9))}
    worse = {seed: right & (np.arange(400) % 20 > 0) for seed, right in sound.items()}
    paired = defects.paired_difference(sound, worse)
    assert 0.02 < paired.value < 0.05 and paired.interval().excludes_zero
    alone = defects.paired_difference(sound, {seed: np.zeros(400, bool) for seed in sound})
    assert alone.standard_error > 10 * paired.standard_error  # where the seeds' own spread is part of it
    equal = defects.paired_difference(sound, sound)
    assert equal.value == 0 and 0 < equal.standard_error == pytest.approx(np.sqrt(3) / 400)
    assert defects.paired_difference(sound, {1: worse[1]}).freedom == np.inf  # of one seed over images alone


def test_seed_pairs_in_another_order_than_the_means_are_counted():
    assert defects.other_order(np.array([0.9, 0.8]), np.array([0.7, 0.6])) == 0
    assert defects.other_order(np.array([0.9, 0.5]), np.array([0.6, 0.6])) == 2
    assert defects.other_order(np.array([0.9, 0.6]), np.array([0.6, 0.6])) == 2  # ties


def test_a_damaged_or_sound_record_is_no_defective_one(profile, tmp_path):
    results = profile / "results" / "defects"
    sound = find_runs(results)[0][0].folder / RESULT_FILE
    defective_one = defects.find_defective(results)[0].folder / RESULT_FILE
    changed = tmp_path / RESULT_FILE
    changed.write_text(defective_one.read_text().replace('"seed": 0', '"seed": 7', 1))
    for path in (sound, changed, tmp_path / "missing.json"):
        with pytest.raises(UserError):
            defects.read_defective(path)


def test_the_whole_profile_is_planned_with_lite0_where_its_weights_are_given(tmp_path):
    weights = tmp_path / "lite0.safetensors"
    weights.touch()
    config = reproduce.Config(profile="defects", lite0_weights=weights)
    jobs = reproduce._jobs(config, reproduce._grids(config))
    made = Counter(job.config.defect for job in jobs if hasattr(job.config, "defect"))
    # Three seeds on MNIST and Fashion-MNIST, and of Lite0; flips on MNIST and digits.
    assert made == {
        "lora-on-mlp": 6,
        "batchnorm-drift": 12 + 3,
        "stochastic-depth": 6 + 3,
        "validation-on-test": 18 + 3,
        "flips": 9 + 9,
        "imagenet-norm": 18 + 3,
        "all": 18 + 3,
    }
    assert len({job.folder for job in jobs}) == len(jobs)
    for job in jobs:
        if hasattr(job.config, "defect"):
            name, script, *flags = job.command[2:]
            parsed = tyro.cli(published_defects.SCRIPTS[script].Config, args=flags)
            assert defective(parsed, name) == job.config
    with pytest.raises(UserError, match="given for lite0 and defects only"):
        reproduce.Config(profile="mini", lite0_weights=weights)
