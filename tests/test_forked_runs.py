"""A grid's runs as forks of one process: each still a process of its own, with the bits of the script in a shell."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import train_cnn_head
import train_vit_lora
from common.grid import forked as forked_runs
from common.grid import scheduler
from common.grid.grid import job_for
from common.runs.predictions import PREDICTIONS_FILE
from common.runs.result import RESULT_FILE
from common.runtime import parallel

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = {
    **{"dataset": "digits", "weights": "random", "image_size": 32, "batch_size": 32, "precision": "fp32"},
    **{"train_limit": 60, "test_limit": 20, "epochs": 2, "threads": 1, "feature_cache": False},
}
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux alone"),
    pytest.mark.skipif(bool(scheduler.visible_gpus()), reason="runs are not forked where there is a GPU"),
]


def _configs(folder: Path, **changed) -> list:
    settings = {**TINY, "results_dir": folder, "data_dir": folder / "data", **changed}
    return [
        train_vit_lora.Config(backbone="test_vit.r160_in1k", **settings),
        train_cnn_head.Config(backbone="test_resnet.r160_in1k", **settings),
    ]


def test_they_give_the_bits_of_the_scripts_in_a_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")  # later than the server's start: a run has the environment of its own
    monkeypatch.setattr(forked_runs, "code_facts", lambda: {"git_commit": "that of the grid"})
    forked = [job_for(config) for config in _configs(tmp_path / "forked")]
    assert scheduler.run_all(forked, [None, None], lambda job: "done") == {}
    for job, config in zip(forked, _configs(tmp_path / "shell"), strict=True):
        alone = job_for(config)
        subprocess.run([sys.executable, *alone.command[1:]], cwd=REPOSITORY, check=True, capture_output=True)
        predictions = [one.folder / PREDICTIONS_FILE for one in (job, alone)]
        assert predictions[0].read_bytes() == predictions[1].read_bytes()
        records = [json.loads((one.folder / RESULT_FILE).read_text()) for one in (job, alone)]
        for name, value in {"threads": 1, "slurm_job_id": "77"}.items():
            assert [record["environment"][name] for record in records] == [value, value]
        commits = [record["environment"]["git_commit"] for record in records]
        assert commits[0] == "that of the grid" != commits[1]
        assert "OPENBLAS_NUM_THREADS" not in os.environ
        assert records[0]["command"].replace("forked", "shell") == records[1]["command"]
        assert "test accuracy" in job.log.read_text()


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGKILL, "killed by SIGKILL"), (signal.SIGTERM, "exit 143")])
def test_a_mistake_and_a_signal_end_the_run_that_has_them_alone(number, reason, tmp_path):
    """The first has weights of another model; the second is hit as soon as it holds its folder; the third is made."""
    good, _ = _configs(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    wrong = job_for(replace(good, weights=str(tmp_path / "other.safetensors")))
    long = job_for(replace(good, epochs=10_000))
    threading.Thread(target=_hit, args=(long, number)).start()
    failures = scheduler.run_all([wrong, long, job_for(good)], [None, None], lambda job: "done")
    assert set(failures) == {wrong, long}
    assert "other.safetensors" in failures[wrong] and reason in failures[long]
    assert (job_for(good).folder / RESULT_FILE).exists()


def _hit(job, number) -> None:
    deadline = time.monotonic() + 60
    while not (holder := scheduler.job_holder(job)) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(int(holder.split()[1]), number)


def test_where_the_server_has_threads_each_process_starts_anew(monkeypatch):
    assert parallel.fork_context() is not None
    monkeypatch.setattr(parallel, "_exit_with_threads_of_the_server", partial(os._exit, 2))
    assert parallel.fork_context.__wrapped__() is None
