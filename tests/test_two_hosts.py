"""Two hosts of a cluster with equal process ids, whose shared file system gives every lock to both.

Whatever one does at once while the other is between two steps on the disk, every file is whole and the last one stays.
"""

import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_results import fake_run

from common.grid.stages import Stage
from common.runs.folder import CHECKPOINT_FILE, finish_run_folder, open_run_folder
from common.runs.result import RESULT_FILE, read_result
from common.runtime import files, locks
from common.runtime.files import remove_leftovers, sha256_of_file, temporary_path, write_atomically
from common.training.checkpoint import Checkpoint
from common.training.feature_cache import part_file, read_part, write_part

STEPS = ("open", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir")


@pytest.fixture
def host(monkeypatch):
    """Return a function that makes this process one of a host; all have the same number, and no lock excludes any."""
    monkeypatch.setattr(os, "getpid", lambda: 77)
    monkeypatch.setattr(locks.fcntl, "lockf", lambda *_: None)
    names = ["a"]
    monkeypatch.setattr(socket, "gethostname", lambda: names[0])
    return lambda name: names.__setitem__(0, name)


@pytest.fixture
def interleave(host, monkeypatch):
    """Return a function that lets one host act, and another one from start to end before the first one's n-th step."""

    def act(of_a, of_b, at: int) -> int:
        count, inside = 0, False

        def watched(call):
            def step(*arguments, **options):
                nonlocal count, inside
                if not inside and count == at:
                    inside = True
                    host("b")
                    of_b()
                    host("a")
                    inside = False
                count += not inside
                return call(*arguments, **options)

            return step

        with monkeypatch.context() as patch:
            for name in STEPS:
                patch.setattr(os, name, watched(getattr(os, name)))
            of_a()
        return count

    return act


def _each_step(interleave, folder: Path, of_a, of_b, check) -> None:
    steps = interleave(of_a, lambda: None, at=-1)
    assert steps > 3
    for at in range(steps):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        interleave(of_a, of_b, at)
        check(at)
        assert not [path for path in folder.rglob(".*") if path.name.endswith((".tmp", ".new", ".old"))], at


def test_a_checkpoint_is_one_hosts_and_whole(interleave, tmp_path):
    checkpoint = Checkpoint(tmp_path / "run" / CHECKPOINT_FILE, {"run": 1})

    def save(value: float):
        remove_leftovers(checkpoint.path.parent)
        checkpoint.save({"at": value}, {"weights": torch.full((1_000,), value)})

    def check(at: int) -> None:
        state, tensors = checkpoint.load()
        assert tensors["weights"].eq(state["at"]).all(), at

    (tmp_path / "run").mkdir()
    _each_step(interleave, tmp_path / "run", lambda: save(1.0), lambda: save(2.0), check)


def test_features_are_one_hosts_and_whole(interleave, tmp_path):
    path = part_file(tmp_path / "entry", 0)

    def write(value: float):
        remove_leftovers(path.parent)
        write_part(path, "digest", {"key": 1}, torch.full((10, 4), value), value)

    def check(at: int) -> None:
        values, seconds = read_part(path, "digest")
        assert values.eq(seconds).all(), at

    (tmp_path / "entry").mkdir()
    _each_step(interleave, tmp_path / "entry", lambda: write(1.0), lambda: write(2.0), check)


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_finished_run_is_one_hosts_and_whole(has_checkpoint, interleave, tmp_path):
    result = fake_run(tmp_path / "fake", num_test=20).result
    path = tmp_path / "run" / "seed0"

    def finish(name: str):
        with open_run_folder(path, {}, overwrite=True) as run:
            if has_checkpoint:
                write_atomically(run.checkpoint, name.encode())
            finish_run_folder(run, {"weights": name.encode() * 99}, replace(result, notes=[name]))

    def check(at: int) -> None:
        found = read_result(path / RESULT_FILE)
        assert (path / "weights").read_bytes() == found.notes[0].encode() * 99, at
        assert found.files["weights"].sha256 == sha256_of_file(path / "weights"), at

    (tmp_path / "run").mkdir()
    _each_step(interleave, tmp_path / "run", lambda: finish("a"), lambda: finish("b"), check)


def test_a_chosen_run_is_copied_by_both(interleave, tmp_path):
    source, target = tmp_path / "tuning" / "seed0", tmp_path / "run" / "seed0"
    write_atomically(source / RESULT_FILE, b"{}")
    stage = Stage("", [], copies=[(source, target)])

    def check(at: int) -> None:
        assert (target / RESULT_FILE).read_bytes() == b"{}" and not list(target.parent.glob(".*.copy")), at

    (tmp_path / "run").mkdir()
    _each_step(interleave, tmp_path / "run", stage.take_over, stage.take_over, check)


def test_an_exchange_that_a_host_did_not_survive_is_completed_by_another_one(host, tmp_path):
    path = tmp_path / "seed0"
    for content in (True, False):
        host("a")
        new, old = temporary_path(path, "new"), temporary_path(path, "old")
        write_atomically(old / CHECKPOINT_FILE, b"state")
        if content:
            write_atomically(new / RESULT_FILE, b"{}")
        host("b")
        with open_run_folder(path, {}, overwrite=True):
            assert (path / RESULT_FILE).exists() == content
            assert (path / CHECKPOINT_FILE).exists() != content
        shutil.rmtree(path)
        shutil.rmtree(old, ignore_errors=True)


def test_what_another_host_left_is_removed_after_a_day(host, tmp_path):
    host("a")
    leftover = temporary_path(tmp_path / "checkpoint", "tmp")
    leftover.touch()
    host("b.cluster.org")
    mine = temporary_path(tmp_path / "checkpoint", "tmp")
    assert ".b." in mine.name and mine != temporary_path(tmp_path / "checkpoint", "tmp")
    mine.touch()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [leftover]
    old = leftover.stat().st_mtime - files.FORGOTTEN_SECONDS - 60
    os.utime(leftover, (old, old))
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())
