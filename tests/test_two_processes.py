"""Two processes and one run: the second is told who works on it; nobody waits for the dead, nobody trips."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from finished import ARMS, left

from common.runtime import locks
from common.runtime.errors import UserError
from common.runtime.files import prune

REPOSITORY = Path(__file__).resolve().parent.parent
HOLD = """
import sys, time
from pathlib import Path
from common.runtime.locks import locked
with locked(Path(sys.argv[1]), what="it", wait=False):
    print("held", flush=True)
    time.sleep(120)
"""
LOOK = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(0.5)
"""


@pytest.fixture
def held():
    """Return a function that lets another process hold a lock file, and gives back that process."""
    processes = []

    def hold(lock: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, str(lock)]
        processes.append(subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE))
        assert processes[-1].stdout.readline() == b"held\n"
        return processes[-1]

    yield hold
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("arm", ARMS)
def test_the_second_process_is_told_who_and_since_when_and_a_dead_one_does_not_block(
    fork_server, arm, held, whole, tmp_path
):
    script, argv = ARMS[arm]
    argv = [*argv, "--results-dir", tmp_path]
    (name,) = {path.split("/")[1] for path in whole[arm][0]}
    holder = held(tmp_path / "digits" / name / ".seed0.lock")
    ended = fork_server.run(script, argv)
    assert ended.code == 2
    assert f"is in use by process {holder.pid} on " in ended.err and " since 20" in ended.err
    assert ended.err.count("\n") == 1
    holder.kill()
    holder.wait()
    assert fork_server.run(script, argv).code == 0
    assert not list(tmp_path.rglob(".*"))


def test_a_grid_shows_a_run_in_use_and_makes_the_others(fork_server, held, tmp_path):
    argv = ["--results-dir", tmp_path / "results", "--figures-dir", tmp_path / "figures"]
    planned = fork_server.run("reproduce", [*argv, "--list"]).out.splitlines()
    assert [line.split()[0] for line in planned] == ["missing", "missing"]
    used, other = (line.split(maxsplit=1)[1] for line in planned)
    holder = held(tmp_path / "results" / "demo" / Path(used).parent / ".seed0.lock")
    listed = fork_server.run("reproduce", [*argv, "--list"]).out.splitlines()
    assert [line.split()[0] for line in listed] == ["running", "missing"]
    ended = fork_server.run("reproduce", argv)
    assert ended.code == 1
    assert "0 finished, 1 running, 0 unfinished, 1 missing" in ended.out
    assert f"failed: {used}: in use by process {holder.pid}" in ended.err
    assert (tmp_path / "results" / "demo" / other / "result.json").exists()
    holder.kill()
    holder.wait()
    assert fork_server.run("reproduce", argv).code == 0
    assert sum(name.endswith("result.json") for name in left(tmp_path)) == 2


@pytest.mark.parametrize("attempts", [1, 200])
def test_who_looks_whether_a_run_is_held_does_not_turn_away_who_starts_it(attempts, tmp_path, monkeypatch):
    """``reproduce.py --list`` has the lock for an instant; a run that starts in that instant asks once more."""
    monkeypatch.setattr(locks, "ATTEMPTS", attempts)
    lock = tmp_path / "run" / ".seed0.lock"
    lock.parent.mkdir()
    looking = subprocess.Popen([sys.executable, "-c", LOOK, lock], stdout=subprocess.PIPE)
    assert looking.stdout.readline() == b"held\n"
    if attempts == 1:
        with pytest.raises(UserError, match="in use by another process"), locks.locked(lock, what="it", wait=False):
            pass
    else:
        with locks.locked(lock, what="it", wait=False):
            pass
    looking.communicate()


def test_pruning_beside_a_process_that_writes_does_not_fail(tmp_path):
    stop = threading.Event()

    def churn():
        entry = tmp_path / "entry"
        while not stop.is_set():
            entry.mkdir(exist_ok=True)
            file = entry / "part.tmp"
            file.write_bytes(b"x")
            file.unlink()
            entry.rmdir()

    writer = threading.Thread(target=churn)
    writer.start()
    try:
        for _ in range(3_000):
            prune(tmp_path, limit_bytes=2**40)
    finally:
        stop.set()
        writer.join()


SERVER = """
import os, signal, sys
from multiprocessing import forkserver
from common.runtime import parallel, signals
def leave():
    os.kill(os.getppid(), signal.SIGTERM)
    signals.unblock()
    os._exit(5)
if __name__ == "__main__":
    parallel.import_ahead("json")
    for number in signals.END_SIGNALS:
        os.kill(forkserver._forkserver._forkserver_pid, number)
    process = parallel.fork_context().Process(target=leave)
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks runs")
def test_the_server_that_forks_runs_outlives_the_signals_that_slurm_sends_to_all(tmp_path):
    (tmp_path / "server.py").write_text(SERVER)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, tmp_path / "server.py"], env=environment, timeout=60).returncode == 5
