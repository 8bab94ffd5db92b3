"""Killed at any moment, the same command ends with the bits of a run that nobody killed."""

import random
import shutil
import time

import pytest
from finished import ARMS, FINE, left

KILLS = 14  # disk steps of a run at which it is killed, spread evenly; -m slow takes every one
SIGNALS = {  # exit code, what is said of it, and what would stop at once
    "int": (130, "interrupted", "once more"),
    "term": (143, "terminated", "Ctrl-C"),
    "usr1": (143, "terminated", "Ctrl-C"),
    "terms": (143, "terminated", "Ctrl-C"),  # Slurm signals every process, and a grid passes its own signal on
}


def _killed_and_run_again(fork_server, arm, folder, expected, **fault):
    script, argv = ARMS[arm]
    argv = [*argv, "--results-dir", folder]
    ended = fork_server.run(script, argv, within=str(folder), patch=FINE, **fault)
    assert ended.code is None, (fault, ended.out, ended.err)
    again = fork_server.run(script, argv, within=str(folder), patch=FINE)
    assert again.code == 0, (fault, again.err)
    assert left(folder) == expected, fault
    return again


def _every(fork_server, arm, whole, folder, numbers, action="kill"):
    expected, _ = whole[arm]
    for number in numbers:
        _killed_and_run_again(fork_server, arm, folder / "run", expected, at=number, action=action)
        shutil.rmtree(folder / "run")


@pytest.mark.parametrize("arm", ARMS)
def test_killed_at_disk_steps_spread_over_the_run(fork_server, arm, whole, tmp_path):
    count = len(whole[arm][1])
    assert {"open", "write", "fsync", "replace", "rename", "unlink", "mkdir"} <= set(whole[arm][1])
    _every(fork_server, arm, whole, tmp_path, [number * count // KILLS for number in range(KILLS)])


@pytest.mark.slow
@pytest.mark.parametrize("action", ["kill", "half"])
@pytest.mark.parametrize("arm", ARMS)
def test_killed_at_every_disk_step(fork_server, arm, action, whole, tmp_path):
    steps = whole[arm][1]
    numbers = [number for number, step in enumerate(steps) if action == "kill" or step == "write"]
    _every(fork_server, arm, whole, tmp_path, numbers, action)


@pytest.mark.parametrize("arm", ARMS)
def test_killed_with_half_of_a_file_written(fork_server, arm, whole, tmp_path):
    writes = [number for number, step in enumerate(whole[arm][1]) if step == "write"]
    chosen = [writes[0], writes[len(writes) // 3], writes[2 * len(writes) // 3], writes[-1]]
    _every(fork_server, arm, whole, tmp_path, chosen, "half")


@pytest.mark.parametrize("arm", ARMS)
def test_killed_within_an_epoch(fork_server, arm, whole, tmp_path):
    for step in (0, 1, 3):
        again = _killed_and_run_again(fork_server, arm, tmp_path / str(step), whole[arm][0], step=step, action="kill")
        assert ("resuming after" in again.out) == (step > 0)


@pytest.mark.parametrize("arm", ARMS)
def test_killed_again_and_again_at_random_times(fork_server, arm, whole, tmp_path):
    script, argv = ARMS[arm]
    argv = [*argv, "--results-dir", tmp_path]
    draw, kills = random.Random(0), 0
    for latest in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7):  # seconds: a fast machine finishes within the last ones
        ended = fork_server.run(script, argv, patch=FINE, seconds=draw.uniform(0.0, latest))
        kills += ended.code is None
    assert kills
    assert fork_server.run(script, argv, patch=FINE).code == 0
    assert left(tmp_path) == whole[arm][0]


@pytest.mark.parametrize("action", SIGNALS)
@pytest.mark.parametrize("arm", ARMS)
def test_a_signal_saves_the_step_and_says_so_in_a_line(fork_server, arm, action, whole, tmp_path):
    script, argv = ARMS[arm]
    argv = [*argv, "--results-dir", tmp_path]
    code, word, at_once = SIGNALS[action]
    ended = fork_server.run(script, argv, step=1, action=action, patch={"common.training.features.PART_IMAGES": 32})
    assert ended.code == code, ended.err
    assert ended.err.splitlines() == [
        f"stopping after this step; {at_once} stops at once",
        f"{word}; a training goes on with the same command",
    ]
    (checkpoint,) = tmp_path.rglob("checkpoint")
    again = fork_server.run(script, argv, patch=FINE)
    assert again.code == 0 and "2 steps" in again.out.replace("0 finished epochs and ", "")
    assert left(tmp_path) == whole[arm][0] and not checkpoint.exists()


def test_a_terminals_ctrl_c_reaches_the_decoding_processes_and_is_still_two_lines(fork_server, whole, tmp_path):
    script, argv = ARMS["lora"]
    argv = [*argv, "--workers=2", "--results-dir", tmp_path]
    ended = fork_server.run(script, argv, step=1, action="terminal")
    assert ended.code == 130 and len(ended.err.splitlines()) == 2, ended.err
    assert fork_server.run(script, argv).code == 0
    assert left(tmp_path) == whole["lora"][0]


def test_an_overwrite_killed_anywhere_leaves_the_old_run_or_the_new_one(fork_server, tmp_path):
    """Killed while the new result is put in place of the old one, which has other settings."""
    script, argv = ARMS["head"]
    argv = [*argv, "--results-dir", tmp_path / "run", "--run-name=run"]
    assert fork_server.run(script, argv).code == 0
    shutil.copytree(tmp_path / "run", tmp_path / "old")
    overwrite = [*argv, "--overwrite", "--weight-decay=0.5"]
    traced = fork_server.run(script, overwrite, within=str(tmp_path / "run"))
    assert traced.code == 0
    old, new = left(tmp_path / "old"), left(tmp_path / "run")
    assert old != new
    last = len(traced.steps)
    for number in range(last - 20, last, 4):
        shutil.rmtree(tmp_path / "run")
        shutil.copytree(tmp_path / "old", tmp_path / "run")
        assert fork_server.run(script, overwrite, within=str(tmp_path / "run"), at=number).code is None
        found = fork_server.run(script, argv), fork_server.run(script, [*argv, "--weight-decay=0.5"])
        codes = tuple(ended.code for ended in found)
        assert codes in ((0, 2), (2, 0)), [ended.err for ended in found]
        parts = ("checkpoint", "features-00000000.safetensors")  # of the new run, which may go on
        held = {name: content for name, content in left(tmp_path / "run").items() if not name.endswith(parts)}
        assert held == (old if codes == (0, 2) else new)


# reproduce.py: two runs, then figures and a summary


def _reproduce(fork_server, folder, **fault):
    argv = ["--results-dir", folder / "results", "--figures-dir", folder / "figures"]
    return fork_server.run("reproduce", argv, **fault)


@pytest.fixture(scope="module")
def whole_grid(fork_server, tmp_path_factory):
    """What an uninterrupted grid leaves, and its steps on the disk of results and of figures."""
    folder = tmp_path_factory.mktemp("grid")
    ended = _reproduce(fork_server, folder, within=str(folder))
    assert ended.code == 0, ended.err
    return left(folder), [step for step in ended.steps if str(folder / "figures") in step]


@pytest.mark.parametrize("number", [5, 20, 33])
def test_a_grid_whose_run_was_killed_says_so_and_goes_on(fork_server, number, whole_grid, tmp_path):
    ended = _reproduce(fork_server, tmp_path, within=str(tmp_path / "results" / "demo" / "digits" / "test_"), at=number)
    assert ended.code == 1 and "killed by SIGKILL" in ended.err and "Traceback" not in ended.err, ended.err
    again = _reproduce(fork_server, tmp_path)
    assert again.code == 0, again.err
    assert left(tmp_path) == whole_grid[0]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_grid_killed_while_it_draws_draws_again(fork_server, share, whole_grid, tmp_path):
    expected, steps = whole_grid
    figures = tmp_path / "figures"
    assert _reproduce(fork_server, tmp_path, within=str(figures), at=int(share * len(steps))).code is None
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(before) == 2
    assert _reproduce(fork_server, tmp_path).code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert _left_of_a_killed_grid(tmp_path) == expected


def test_a_killed_grids_run_goes_on_alone_and_is_found_again(fork_server, whole_grid, tmp_path):
    draw = random.Random(1)
    for _ in range(3):
        _reproduce(fork_server, tmp_path, seconds=draw.uniform(0.3, 1.2))
    for _ in range(60):
        ended = _reproduce(fork_server, tmp_path)
        if ended.code == 0:
            break
        assert "in use by process" in ended.err, ended.err
        time.sleep(0.5)
    assert _left_of_a_killed_grid(tmp_path) == whole_grid[0]


def _left_of_a_killed_grid(folder):
    """Return what ``left`` does, less the hidden file that a killed drawing leaves, of no use and no harm."""
    return {name: content for name, content in left(folder).items() if not name.endswith(".tmp")}
