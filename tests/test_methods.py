"""Each method has its facts and its behaviour under one name, and the rest of the code finds out by asking it."""

import dataclasses
import json
import shutil

import pytest
import torch
from test_earlier_runs import EARLIER, RUNS

from common.models import backbones
from common.models.complexity import forward_flops
from common.runs.methods import METHODS
from common.runs.result import encode_record
from common.runtime.errors import UserError
from common.training.loop import OptimizerConfig
from common.training.methods import IMPLEMENTATIONS, new_method

CPU = torch.device("cpu")
SETTINGS = {"rank": 2, "alpha": 8.0, "dropout": 0.1, "head_dropout": 0.5, "batchnorm": "train"}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _built(name: str):
    method = new_method(name, SETTINGS)
    tag = "test_vit.r160_in1k" if name == "lora" else "test_resnet.r160_in1k"
    backbone = backbones.load(tag, weights="random", image_size=32)
    return method, backbone, method.build(backbone, 5, seed=0, precision="fp32", device=CPU)


def _logits(name: str, backbone, model) -> torch.Tensor:
    with torch.no_grad():
        read = backbones.pooled_features(backbone.module, IMAGES) if METHODS[name].reads_features else IMAGES
        return model(read)


def test_every_method_has_facts_and_behaviour():
    assert METHODS.keys() == IMPLEMENTATIONS.keys()


def test_a_method_without_steps_uses_no_setting_of_the_optimizer():
    of_steps = {each.name for each in dataclasses.fields(OptimizerConfig)} - {"seed", "decays_vectors"}
    without = [spec for spec in METHODS.values() if not spec.has_steps]
    assert without and all(of_steps <= set(spec.unused_settings) for spec in without)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_saved_makes_the_same_model_again(name, tmp_path):
    method, backbone, model = _built(name)
    for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
        torch.nn.init.normal_(parameter, std=0.3)  # as if it had been trained
    files = method.files(model)
    assert set(files) == set(method.weight_files)
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    _, other_backbone, other = _built(name)
    expected = _logits(name, backbone, model)
    assert not torch.allclose(_logits(name, other_backbone, other), expected)
    method.load(other, tmp_path)
    assert torch.equal(_logits(name, other_backbone, other), expected)
    with torch.no_grad():
        torch.testing.assert_close(method.plain(backbone, model)(IMAGES), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tag", ["test_vit.r160_in1k", "test_resnet.r160_in1k"])
def test_a_frozen_backbone_goes_where_its_head_goes(tag):
    """Else the operations of the two together cannot be counted; PyTorch's device without data stands for a GPU."""
    method, backbone = new_method("head_mlp", SETTINGS), backbones.load(tag, weights="random", image_size=32)
    model = method.build(backbone, 5, seed=0, precision="fp32", device=torch.device("meta"))
    assert forward_flops(method.plain(backbone, model), 32) > 0


def test_the_settings_that_only_a_method_has_are_recorded(fork_server, tmp_path):
    matrices = {"rank": 2, "alpha": 32.0, "dropout": 0.1}
    own = matrices | {"targets": "qv", "also_train": "nothing"}
    expected = {"lora": own, "head_mlp": {"head_dropout": 0.25}}
    shared = ["--dataset=digits", "--weights=random", "--image-size=32", "--epochs=1", "--train-limit=60"]
    shared += ["--test-limit=20", "--no-feature-cache", "--results-dir", tmp_path]
    assert fork_server.run("train_vit_lora", [*shared, "--backbone=test_vit", "--rank=2"]).code == 0
    assert fork_server.run("train_cnn_head", [*shared, "--backbone=test_resnet", "--head-dropout=0.25"]).code == 0
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert {record["method"]: record["model"]["method_settings"] for record in records} == expected
    loras = {record["method"]: record["model"]["lora"] for record in records}
    assert loras == {"lora": matrices | {"target_modules": ["q_proj", "v_proj"]}, "head_mlp": None}


def test_an_unknown_method_is_a_line_that_lists_those_there_are(fork_server, tmp_path):
    with pytest.raises(UserError, match="no method 'no_such_method'; there are lora, head_mlp, head_linear"):
        new_method("no_such_method", SETTINGS)
    record = json.loads((RUNS["train_cnn_head"] / "result.json").read_text()) | {"method": "no_such_method"}
    (tmp_path / "result.json").write_bytes(encode_record(record))
    ended = fork_server.run("evaluate", [tmp_path])
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert "'no_such_method'" in ended.err and all(name in ended.err for name in METHODS)


@pytest.mark.parametrize(("name", "value"), [("rank", "four"), ("alpha", None), ("dropout", 2.0)])
def test_settings_that_were_edited_into_nonsense_are_a_line(fork_server, name, value, tmp_path):
    run = shutil.copytree(RUNS["train_vit_lora"], tmp_path / "seed0")
    record = json.loads((run / "result.json").read_text())
    record["model"]["method_settings"] = {name: value}
    (run / "result.json").write_bytes(encode_record(record))
    ended = fork_server.run("evaluate", [run, f"--weights={EARLIER / 'test_vit.safetensors'}"])
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    assert "settings of its method" in ended.err
