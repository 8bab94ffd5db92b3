"""The estimate of a grid's time: what is measured, and what follows from it."""

import pytest
import torch

import train_cnn_head
import train_vit_lora
from common.grid import estimate
from common.grid.grid import job_for
from common.models.lora import LoraViT
from common.runtime.errors import UserError
from common.training import cost
from common.training.cost import Cost, measure

LORA = {"dataset": "digits", "backbone": "test_vit.r160_in1k", "image_size": 32, "rank": 2}
HEAD = {"dataset": "digits", "backbone": "test_resnet.r160_in1k", "image_size": 32}


@pytest.mark.parametrize("batch_size", [3, 17])
def test_a_step_is_measured_in_the_batches_that_training_makes(batch_size, monkeypatch):
    sizes, forward = set(), LoraViT.forward
    monkeypatch.setattr(LoraViT, "forward", lambda self, images: sizes.add(len(images)) or forward(self, images))
    found = measure(train_vit_lora.Config(**LORA, batch_size=batch_size))
    assert sizes == {batch_size}
    assert found.train_seconds > found.forward_seconds > 0 == found.feature_bytes


def test_of_a_frozen_backbone_the_features_and_the_steps_of_its_head_are_measured(monkeypatch):
    sizes, pooled = set(), cost.pooled_features
    monkeypatch.setattr(cost, "pooled_features", lambda module, x: sizes.add(len(x)) or pooled(module, x))
    probe = train_cnn_head.Config(**HEAD, head="probe")
    for config in (train_cnn_head.Config(**HEAD), train_vit_lora.Config(**LORA | {"rank": 0}), probe):
        found = measure(config)
        assert found.train_seconds > 0 < found.forward_seconds
        assert found.feature_bytes == 4 * {"test_resnet": 96, "test_vit": 64}[config.backbone.split(".")[0]]
    assert sizes == {cost.batch_images(torch.device("cpu"), 32)}


def test_long_steps_are_not_repeated(monkeypatch):
    calls = []
    for seconds, expected in ((1e-9, 1), (60, 1 + cost.STEPS)):
        monkeypatch.setattr(cost, "LONG_SECONDS", seconds)
        calls.clear()
        assert cost._seconds_per_image(lambda: calls.append(1), torch.zeros(4, 1)) > 0
        assert len(calls) == expected


def test_epochs_rates_and_shared_features_are_counted(monkeypatch):
    costs = {"lora": Cost(1.0, 0.25, 0), "head_mlp": Cost(0.125, 0.5, 8), "head_probe": Cost(0.125, 0.5, 8)}
    asked = []
    monkeypatch.setattr(estimate, "measure", lambda config: asked.append(config.method) or costs[config.method])
    images = {"digits": (1000, 200)}

    def total(configs, **more):
        jobs = list(map(job_for, configs))
        seconds, feature_bytes = estimate.job_seconds(jobs, images, start_seconds=3.0, **more)
        return sum(seconds.values()), feature_bytes

    recipe = LORA | {"epochs": 2, "lr": (1e-3, 3e-3)}
    lora = [train_vit_lora.Config(**recipe, seed=seed) for seed in (0, 1)]
    # Of 1,000 images 100 are for validation: 4 epochs of 900 steps and 100 predictions, then 100 and 200 predictions.
    each = 3 + 4 * 900 * 1.0 + (4 * 100 + 100 + 200) * 0.25
    assert total(lora) == (2 * each, 0)
    assert total(lora, at_once=2) == (each, 0)
    one_rate = 3 + 2 * 900 * 1.0 + (2 * 100 + 100 + 200) * 0.25
    assert total([train_vit_lora.Config(**recipe, seed=1, tuned_on=0)]) == (one_rate, 0)
    # Of up to two further rates one is counted.
    assert total([train_vit_lora.Config(**recipe, extend=2)]) == (
        each + one_rate - 3 - 300 * 0.25,
        0,
    )  # one further one
    heads = [train_cnn_head.Config(**HEAD, seed=seed) for seed in (0, 1, 2)]
    assert total(heads) == (3 * (3 + 5 * 900 * 0.125) + 1200 * 0.5, 1200 * 8)
    assert total([train_cnn_head.Config(**HEAD, head="probe")]) == (3 + 900 * 0.125 + 1200 * 0.5, 1200 * 8)
    asked.clear()
    total([*lora, train_vit_lora.Config(**LORA, batch_size=8), train_vit_lora.Config(**LORA, threads=1)])
    assert asked == 3 * ["lora"]  # another batch size, other threads: another measurement


def test_the_seconds_of_an_arm_are_those_of_its_runs():
    jobs = [job_for(train_cnn_head.Config(**HEAD, seed=seed)) for seed in (0, 1)]
    jobs.append(job_for(train_vit_lora.Config(**LORA)))
    assert estimate.arm_seconds(jobs, dict(zip(jobs, (1.0, 2.0, 4.0), strict=True))) == {
        (HEAD["backbone"], "head_mlp"): 3.0,
        (LORA["backbone"], "lora"): 4.0,
    }


def test_the_start_of_a_script_is_measured_by_starting_one(monkeypatch):
    monkeypatch.setattr(estimate, "START", "import time; time.sleep(0.3)")
    assert estimate.measure_start() > 0.3


def test_memory_that_is_short_names_the_batch_size(monkeypatch):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(LoraViT, "forward", out_of_memory)
    with pytest.raises(UserError, match="batches of 64: free some, or train with `batch_size` 32"):
        measure(train_vit_lora.Config(**LORA))
