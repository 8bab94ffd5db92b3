"""What was cut short or had a bit flipped is known as such: made again where that is safe, else refused by name."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_results import fake_run
from finished import ARMS, left

from common.models import backbones, heads, lora
from common.runs.folder import open_run_folder
from common.runs.result import Run, read_result
from common.runtime.errors import UserError
from common.runtime.files import temporary_path
from common.training import feature_cache, restore
from common.training.checkpoint import Checkpoint

KEY = {"backbone": "b", "count": 3}
STATE = {"histories": [[{"epoch": 1, "val_accuracy": 0.5}]], "step": 3, "loss_sum": 1.25}
TENSORS = {
    "weights/a": torch.arange(6.0).reshape(2, 3),
    "best/a": torch.ones(2, 3),
    "optimizer/step/a": torch.tensor(3.0),
}


def damaged(content: bytes):
    """Yield ``content`` cut at every byte, and with one bit of every byte flipped."""
    draw = np.random.default_rng(0)
    for length in range(len(content)):
        yield content[:length]
    for at in range(len(content)):
        yield content[:at] + bytes([content[at] ^ 1 << int(draw.integers(8))]) + content[at + 1 :]


def test_a_damaged_checkpoint_is_never_taken_up(tmp_path, capsys):
    checkpoint = Checkpoint(tmp_path / "checkpoint", {"lr": [0.1]})
    checkpoint.save(STATE, TENSORS)
    content = checkpoint.path.read_bytes()
    count = 0
    for other in damaged(content):
        checkpoint.path.write_bytes(other)
        found = checkpoint.load()
        count += 1
        if found is not None:  # a bit that says nothing: white space
            assert found[0] == STATE
            assert all(torch.equal(found[1][name], tensor) for name, tensor in TENSORS.items())
    said = capsys.readouterr().out
    assert said.count("is damaged and not used; the run starts from the beginning") >= count - 8
    assert count >= 1_000


def test_damaged_features_are_never_read(tmp_path):
    path = tmp_path / "features-00000000.safetensors"
    values = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    feature_cache.write_part(path, "digest", KEY, values, 1.5)
    content = path.read_bytes()
    refused = 0
    for other in damaged(content):
        path.write_bytes(other)
        found = feature_cache.read_part(path, "digest")
        refused += found is None
        assert found is None or (torch.equal(found[0], values) and found[1] == 1.5)
    assert refused > 500
    path.write_bytes(content)
    assert feature_cache.read_part(path, "digest") is not None
    exchanged = path.rename(tmp_path / "features-00002048.safetensors")
    assert feature_cache.read_part(exchanged, "digest") is None
    assert feature_cache.read_part(path, "another digest") is None


@pytest.fixture(scope="module")
def finished(fork_server, tmp_path_factory) -> dict[str, Run]:
    """A finished run of each arm."""
    found = {}
    for arm, (script, argv) in ARMS.items():
        folder = tmp_path_factory.mktemp(arm)
        assert fork_server.run(script, [*argv, "--results-dir", folder]).code == 0
        (path,) = folder.rglob("result.json")
        found[arm] = Run(path.parent, read_result(path))
    return found


@pytest.mark.parametrize(
    ("arm", "name"),
    [
        ("head", "head.safetensors"),
        ("head", "predictions.npz"),
        ("lora", "adapter/adapter_model.safetensors"),
        ("lora", "adapter/adapter_config.json"),
    ],
)
def test_a_damaged_file_of_a_run_is_refused_by_name(arm, name, finished, tmp_path):
    folder = Path(shutil.copytree(finished[arm].folder, tmp_path / "seed0"))
    run = Run(folder, finished[arm].result)
    content = (folder / name).read_bytes()
    draw = np.random.default_rng(0)
    for at in draw.integers(len(content), size=150):
        for other in (content[:at], content[:at] + bytes([content[at] ^ 1 << int(at % 8)]) + content[at + 1 :]):
            (folder / name).write_bytes(other)
            with pytest.raises(UserError, match=name):
                restore._check_files(run)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        restore._check_files(run)


@pytest.mark.parametrize("arm", ARMS)
def test_weights_that_the_result_does_not_list_are_not_loaded(arm, finished):
    run = finished[arm]
    bare = Run(run.folder, replace(run.result, files={}))
    with pytest.raises(UserError, match="is not the file that the run wrote"):
        restore._check_files(bare)


def test_an_adapter_or_a_head_that_is_none_is_refused(finished, tmp_path):
    """Whoever loads them by hand, without the hashes of a result, gets a line as well."""
    tag = finished["lora"].result.backbone
    model = lora.attach(
        backbones.load(tag, weights="random", image_size=32),
        classes=10, rank=2, alpha=32.0, dropout=0.1, seed=0, precision="fp32",
    )  # fmt: skip
    folder = Path(shutil.copytree(finished["lora"].folder / "adapter", tmp_path / "adapter"))
    good = (folder / "adapter_config.json").read_text()
    for text in ("[]", "3", "{", '{"base_model_name_or_path": "resnet50"}'):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(UserError, match="adapter"):
            lora.load_adapter(model, folder)
    (folder / "adapter_config.json").write_text(good)
    content = (folder / "adapter_model.safetensors").read_bytes()
    for other in (content[:100], b"", b"\x80\x04K\x01.", content[:-1]):
        (folder / "adapter_model.safetensors").write_bytes(other)
        with pytest.raises(UserError, match="no whole adapter"):
            lora.load_adapter(model, folder)
    backbone = backbones.load("test_resnet.r160_in1k", weights="random", image_size=32)
    head = heads.new_head(backbone.module, backbone.width, 10, kind="linear", dropout=0.0, seed=0)
    with pytest.raises(UserError, match="does not hold this run's head"):
        heads.load_head(head, folder / "adapter_model.safetensors")


def test_a_damaged_result_is_neither_drawn_nor_called_finished(fork_server, tmp_path):
    argv = ["--results-dir", tmp_path / "results", "--figures-dir", tmp_path / "figures"]
    assert fork_server.run("reproduce", argv).code == 0
    before = left(tmp_path)
    good, bad = sorted(tmp_path.rglob("predictions.npz"))
    content = bad.read_bytes()
    bad.write_bytes(content[:-1])
    ended = fork_server.run("reproduce", argv)
    assert ended.code == 1, ended.err
    assert f"{str(bad)!r} is not the file that its result.json describes" in ended.err
    assert f"left out: {str(bad)!r}" in ended.out
    bad.write_bytes(content)
    assert fork_server.run("reproduce", argv).code == 0
    assert left(tmp_path) == before
    record = good.with_name("result.json")
    record.write_bytes(record.read_bytes()[:-40])
    ended = fork_server.run("reproduce", argv)
    assert ended.code == 1 and f"{str(record)!r} is not valid JSON" in ended.err


def test_a_checkpoint_of_another_version_is_not_misread(fork_server, tmp_path):
    script, argv = ARMS["head"]
    argv = [*argv, "--results-dir", tmp_path]
    earlier = {"common.training.checkpoint.VERSION": 1}
    assert fork_server.run(script, argv, step=2, action="int", patch=earlier).code == 130
    ended = fork_server.run(script, argv)
    assert ended.code == 0 and "is of another version of this code and not used" in ended.out


def test_leftovers_of_killed_writes_are_removed_by_who_holds_the_folder(tmp_path):
    kept = fake_run(tmp_path, num_test=20)
    leftover = temporary_path(kept.folder / "checkpoint", "tmp")
    leftover.write_bytes(b"half")
    with open_run_folder(kept.folder, {}, overwrite=True):
        assert not leftover.exists()
