"""What twice the epochs add, and which model is recommended."""

from dataclasses import replace

import pytest
from fake_results import MODELS, fake_run

from common.evaluation.comparison import compare
from common.report.recommendation import recommendation
from common.runs.convergence import TUNING, gains
from common.runs.result import find_runs, write_result

LORA, RESNET, EFFICIENTNET, *_ = MODELS


def _with_config(run, accuracy=None, **config):
    scores = run.result.val.scores | ({"accuracy": accuracy} if accuracy is not None else {})
    lr = {"lr": [run.result.history[0].lr], "epochs": 5, "extend": 0}
    result = replace(run.result, config=run.result.config | lr | config, val=replace(run.result.val, scores=scores))
    write_result(run.folder, result)


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({"epochs": 10}, True),
        ({"epochs": 5}, False),
        ({"epochs": 10, "lr": [0.5]}, False),
        ({"epochs": 10, "weight_decay": 0.5}, False),
        ({"epochs": 10, "extend": 0, "results_dir": "elsewhere"}, True),
    ],
)
def test_twice_the_epochs_of_the_chosen_rate_and_nothing_else_says_what_they_add(changed, counts, tmp_path):
    run = fake_run(tmp_path)
    _with_config(run, lr=[run.result.history[0].lr, 1.0], extend=2, weight_decay=0.1)
    longer = fake_run(tmp_path / TUNING, shift=1)
    _with_config(longer, **{"weight_decay": 0.1} | changed)
    found = gains(find_runs(tmp_path)[0], tmp_path)
    added = longer.result.val.scores["accuracy"] - run.result.val.scores["accuracy"]
    assert found == ({("cifar10", run.name): added} if counts else {})


def test_the_model_recommended_is_the_best_on_validation_and_the_test_images_have_their_say(tmp_path):
    for name in (LORA, RESNET, EFFICIENTNET):
        for seed in range(2):
            fake_run(tmp_path, name, seed=seed, epochs=2)
    lines = recommendation(compare(find_runs(tmp_path)[0], {})[0][0])
    assert lines[0].startswith("use ViT-B/16 + LoRA (r=16): the best on validation images, accuracy 0.")
    assert "(the mean of 2 seeds); on test images 0." in lines[0]
    assert lines[1] == "on the test images, too, it is better than every other"
    assert lines[2].startswith("it costs ") and "of training with features" in lines[2]
    assert f"python evaluate.py {tmp_path / 'cifar10' / LORA / 'seed'}" in lines[-1]


@pytest.mark.parametrize(("kind", "words"), [("full", "94 MB of weights with"), ("head_mlp", "MB of weights beside")])
def test_what_holds_the_backbone_has_no_weights_beside_it(kind, words, tmp_path):
    fake_run(tmp_path, f"resnet50.tv2_in1k-{kind}", num_test=10, epochs=1)
    lines = recommendation(compare(find_runs(tmp_path)[0], {})[0][0])
    assert any(f"{words} the backbone's" in line for line in lines)


def test_what_the_test_images_do_not_decide_is_said_with_the_cheapest(tmp_path):
    for name in (LORA, RESNET):
        fake_run(tmp_path, name, num_test=10, epochs=1)
    lines = recommendation(compare(find_runs(tmp_path)[0], {})[0][0])
    assert any(line.startswith("the test images do not decide between it and ") for line in lines)
