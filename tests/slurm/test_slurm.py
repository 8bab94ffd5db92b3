"""Grids on a real Slurm on this machine: from empty to figures, and with tasks whose node is taken away."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from onebox import PACKAGES, one_box_slurm

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL_GRID = Path(__file__).with_name("small_grid.py")
WAIT_SECONDS = 240  # for what takes some on a machine that does nothing else


def _obstacle() -> str | None:
    if os.environ.get("BENCHMARK_SLURM_TESTS") != "1":
        return "a real Slurm is started with BENCHMARK_SLURM_TESTS=1 only"
    if os.geteuid() != 0:
        return "only root can start Slurm's daemons"
    if not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch", "munged"))):
        return f"Slurm is not installed: apt-get install {' '.join(PACKAGES)}"
    return None


pytestmark = pytest.mark.skipif(_obstacle() is not None, reason=str(_obstacle()))


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """The environment of who submits to a Slurm with one node of two cores."""
    with one_box_slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def grid(box, tmp_path):
    """Return a function that starts a small grid on Slurm and gives back its process."""
    processes = []

    def start(profile: str, *flags: str) -> subprocess.Popen:
        folders = [f"--results-dir={tmp_path / 'results'}", f"--figures-dir={tmp_path / 'figures'}"]
        folders += [f"--cache-dir={tmp_path / 'cache'}"]
        slurm = ["--executor=slurm", "--slurm", "partition=low", "time=15", "cpus_per_task=1"]
        command = [sys.executable, str(SMALL_GRID), profile, *folders, *slurm, *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=REPOSITORY, env=box, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()
    _slurm(box, "scancel", "--user=root")


def _end(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0, out + err
    return out


def _slurm(box: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=box, capture_output=True, text=True, check=True).stdout


def _wait_for(condition, what: str):
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


def _in_epoch_3(logs: Path, count: int):
    """Return a condition: so many runs have finished their second epoch."""
    return lambda: sum("epoch 2/" in path.read_text() for path in logs.glob("*.log")) >= count


def _predictions(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("predictions.npz")}


def _made_here(fork_server, profile: str, folder: Path) -> dict[str, bytes]:
    """Return the predictions of a small grid's runs, made one after the other on this machine with one thread."""
    code = "import sys; from small_grid import reproduce; from common import cli\n"
    code += "sys.exit(cli.run(reproduce.main, reproduce.Config))"
    command = [sys.executable, "-c", code, profile, "--print-commands", f"--results-dir={folder}"]
    printed = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(SMALL_GRID.parent)}, capture_output=True, text=True
    )
    for line in printed.stdout.splitlines():
        _, script, *argv = shlex.split(line)
        ended = fork_server.run(Path(script).stem, [*argv, "--threads=1"])
        assert ended.code == 0, ended.err
    return _predictions(folder / profile)


def test_from_empty_to_figures_with_the_predictions_of_one_machine(grid, fork_server, tmp_path):
    said = _end(grid("demo", "--wait"))
    assert "5 runs: 5 missing" in said and "submitted 3 tasks, as the arrays" in said
    assert len(re.findall(r"seed\d: test accuracy", said)) == 5
    assert (tmp_path / "figures" / "demo" / "overview.png").exists()
    slurm = tmp_path / "results" / "demo" / "slurm"
    (record,) = (json.loads(path.read_text()) for path in slurm.glob("array-*.json"))
    assert (record["python"], record["checkout"]) == (sys.executable, str(REPOSITORY)) and record["git_commit"]
    assert sorted(map(len, record["tasks"].values())) == [1, 1, 3]  # what reads features is one task
    found = [json.loads(path.read_text()) for path in (tmp_path / "results").rglob("result.json")]
    assert all(result["environment"]["slurm_job_id"] for result in found)
    hits = [result["efficiency"]["feature_cache_hit"] for result in found if result["method"] != "lora"]
    assert sorted(hits) == [False, True, True]  # made once
    assert _predictions(tmp_path / "results" / "demo") == _made_here(fork_server, "demo", tmp_path / "here")


def test_a_task_whose_node_is_taken_away_goes_on_and_a_cancelled_one_is_made_again(grid, box, fork_server, tmp_path):
    results = tmp_path / "results" / "paper"
    waiting = grid("paper", "--wait")
    _wait_for(_in_epoch_3(results / "logs", 2), "two runs in their third epoch")
    listed = _end(grid("paper", "--list"))
    first, second = re.findall(r"running .*: job (\d+_\d) on ", listed)

    waiting.send_signal(signal.SIGINT)
    said = waiting.communicate(timeout=WAIT_SECONDS)[1]
    assert waiting.returncode == 130 and "the jobs go on, nothing was cancelled" in said, said

    _slurm(box, "scancel", second)
    _slurm(box, "sbatch", "--partition=high", "--exclusive", "--time=1", "--output=/dev/null", "--wrap=sleep 1")
    _wait_for(lambda: second not in _queue(box), "the end of the cancelled task")
    listed = _end(grid("paper", "--list"))
    assert re.search(rf"failed .*: job {second} ended: terminated; a training goes on", listed), listed
    assert _slurm(box, "squeue", "-h", "-j", first, "-o", "%i").strip() == first

    said = _end(grid("paper", "--wait"))
    assert "submitted 1 tasks" in said
    assert all("resuming after" in path.read_text() for path in (results / "logs").glob("*.log"))
    assert _predictions(results) == _made_here(fork_server, "paper", tmp_path / "here")


def _queue(box: dict[str, str]) -> list[str]:
    return _slurm(box, "squeue", "-h", "-r", "-o", "%i").split()


def test_what_follows_from_a_choice_is_an_array_that_waits_for_it(grid, box, tmp_path):
    results = tmp_path / "results" / "mini"
    said = _end(grid("mini"))
    assert "submitted 5 tasks" in said and "--wait" in said and "scancel" in said
    firsts, followers = re.search(r"as the arrays (\d+) (\d+)", said).groups()
    assert firsts in _slurm(box, "squeue", "-h", "-j", followers, "-o", "%E")  # the job that it depends on
    said = _end(grid("mini", "--wait"))
    assert "submitted" not in said and "7 runs" in said
    found = {path: json.loads(path.read_text()) for path in results.rglob("result.json")}
    followed = [result for result in found.values() if result["config"]["tuned_on"] == 0]
    assert len(followed) == 2 and {result["seed"] for result in followed} == {1}
    checks = [result for path, result in found.items() if "tuning" in path.parts and result["config"]["epochs"] == 2]
    assert sorted(result["method"] for result in checks) == ["head_mlp", "lora"]
    (chosen,) = (result for result in followed if result["method"] == "lora")
    tried = [result for path, result in found.items() if "tuning" in path.parts and len(result["trials"]) > 1]
    best = max(tried, key=lambda result: result["val"]["accuracy"])
    assert chosen["config"]["rank"] == best["config"]["rank"]
    assert firsts != followers


def test_the_script_for_sbatch_queues_its_own_task_again(box, fork_server, tmp_path):
    printed = subprocess.run(
        [sys.executable, SMALL_GRID, "paper", "--print-commands", f"--results-dir={tmp_path / 'results'}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    (tmp_path / "runs.txt").write_text(printed.stdout)
    own = ["--array=1-2%8", "--gpus-per-node=0", "--cpus-per-task=1", "--time=15", f"--output={tmp_path}/%A_%a.log"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["sbatch", "--parsable", *own, "examples/slurm_array.sbatch", tmp_path / "runs.txt"]
    sent = subprocess.run(command, cwd=REPOSITORY, env=box | {"PATH": path}, capture_output=True, text=True, check=True)
    array = sent.stdout.strip()
    try:
        _wait_for(_in_epoch_3(tmp_path, 2), "two runs in their third epoch")
        _slurm(box, "scancel", "--signal=USR1", f"{array}_1")
        _wait_for(lambda: len(list(tmp_path.glob("results/*/*/*/seed?/result.json"))) == 2, "both runs")
    finally:
        _slurm(box, "scancel", array)
    logs = [(tmp_path / f"{array}_{task}.log").read_text() for task in (1, 2)]
    assert ["resuming after" in log for log in logs] == [True, False]
    assert _predictions(tmp_path / "results" / "paper") == _made_here(fork_server, "paper", tmp_path / "here")
