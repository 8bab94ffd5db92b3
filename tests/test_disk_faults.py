"""A disk that is full, forbidden or broken: one line, exit code 2, what was there is there, and no rubbish."""

import errno
import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from fake_results import fake_run
from finished import ARMS, FINE, TINY, left
from process_fork import FinishedProcess

from common.evaluation.comparison import compare
from common.evaluation.frames import frames_of
from common.evaluation.uncertainty import compute_uncertainty
from common.figures import style
from common.report import tables
from common.runs.folder import RunFolder, finish_run_folder, open_run_folder
from common.runs.result import read_result
from common.runtime import files, locks
from common.runtime.errors import UserError
from common.runtime.files import flush_folder, write_atomically

ERRORS = (errno.ENOSPC, errno.EIO, -errno.ENOSPC, errno.EACCES, errno.EROFS)  # negative: half of the write first
FAULTS = 10  # disk steps of a run that fail, spread evenly; -m slow takes every one


def _one_line(ended) -> None:
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err


def _fail_and_run_again(fork_server, arm, whole, folder, number, error) -> None:
    script, argv = ARMS[arm]
    expected, steps = whole[arm]
    argv = [*argv, "--results-dir", folder]
    folder.mkdir(parents=True)  # as the whole run's was there: the steps have the same numbers
    ended = fork_server.run(script, argv, within=str(folder), patch=FINE, at=number, action=error)
    about = number, steps[number], error, ended.err
    if ended.code == 0:  # only where nothing depends on it
        assert steps[number] in ("mkdir", "rmdir", "unlink") or error in (errno.EACCES,), about
    else:
        assert ended.code == 2, about
        _one_line(ended)
        assert os.strerror(abs(error)) in ended.err, about
    if steps[number] != "unlink":
        assert not list(folder.rglob("*.tmp")) and not list(folder.rglob(".seed0.*.new")), about
    again = fork_server.run(script, argv, within=str(folder), patch=FINE)
    assert again.code == 0, (about, again.err)
    assert left(folder) == expected, about


@pytest.mark.parametrize("arm", ARMS)
def test_a_disk_step_that_fails_is_a_line_and_the_same_command_goes_on(fork_server, arm, whole, tmp_path):
    count = len(whole[arm][1])
    for index in range(FAULTS):
        number = index * count // FAULTS + index % 3
        _fail_and_run_again(fork_server, arm, whole, tmp_path / str(index), number, ERRORS[index % len(ERRORS)])


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_every_disk_step_that_fails_is_a_line_and_the_same_command_goes_on(fork_server, arm, whole, tmp_path):
    for number in range(len(whole[arm][1])):
        for error in ERRORS[:3]:
            _fail_and_run_again(fork_server, arm, whole, tmp_path / f"{number}{error}", number, error)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system in memory that can be made as small as a test wants."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size: str, *options: str) -> Path:
        mounted = os.path.ismount(folder)
        how = ["-o", f"{'remount,' if mounted else ''}size={size}"]
        done = subprocess.run(["mount", "-t", "tmpfs", *how, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("no tmpfs can be mounted here; RLIMIT_FSIZE stands for it in another test")
        return folder

    yield resize
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("size", ["16k", "48k", "96k"])
@pytest.mark.parametrize("arm", ARMS)
def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(fork_server, arm, size, whole, small_disk):
    disk = small_disk(size)
    script, argv = ARMS[arm]
    argv = [*argv, "--results-dir", disk]
    ended = fork_server.run(script, argv, patch=FINE)
    assert ended.code == 2, ended.out
    _one_line(ended)
    assert "No space left on device" in ended.err and str(disk) in ended.err
    assert not list(disk.rglob("*.tmp"))
    small_disk("64m")
    again = fork_server.run(script, argv, patch=FINE)
    assert again.code == 0, again.err
    assert left(disk) == whole[arm][0]


@pytest.mark.parametrize("arm", ARMS)
def test_a_file_that_may_not_grow_is_named(fork_server, arm, tmp_path):
    script, argv = ARMS[arm]
    ended = fork_server.run(script, [*argv, "--results-dir", tmp_path], file_bytes=8_192)
    assert ended.code == 2, ended.out
    _one_line(ended)
    assert "File too large" in ended.err and str(tmp_path) in ended.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "features"
                and path.suffix == ".tmp"]  # fmt: skip


@pytest.fixture
def shared_folder():
    """A folder that another user can reach; pytest's own ones are private."""
    if not hasattr(os, "geteuid") or os.geteuid():
        pytest.skip("only root can become another user")
    folder = Path(tempfile.mkdtemp(prefix="shared"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


NOBODY = 65_534


def _skip_where_packages_are_unreadable(ended: FinishedProcess) -> None:
    """Skip where the virtual environment lies in a folder that only its owner may enter, such as mktemp makes."""
    if "ModuleNotFoundError" in ended.err:
        pytest.skip(f"the packages are not readable to another user: {ended.err[-200:]}")


def test_another_user_is_refused_and_nothing_of_the_owner_is_touched(fork_server, shared_folder):
    script, argv = ARMS["head"]
    argv = [*argv, "--results-dir", shared_folder / "results"]
    mine = fork_server.run(script, [*argv, "--run-name=mine"], uid=NOBODY)
    _skip_where_packages_are_unreadable(mine)
    assert mine.code == 0, mine.err
    assert fork_server.run(script, argv, step=2, action="int").code == 130
    (checkpoint,) = shared_folder.rglob("checkpoint")
    before = checkpoint.read_bytes()
    theirs = fork_server.run(script, argv, uid=NOBODY)
    assert theirs.code == 2 and "Permission denied" in theirs.err
    _one_line(theirs)
    digits, run = shared_folder / "results" / "digits", checkpoint.parent
    for folder in [digits, run.parent, run, run / "features"]:
        folder.chmod(0o777)
    checkpoint.chmod(0o600)
    theirs = fork_server.run(script, argv, uid=NOBODY)
    assert theirs.code == 2 and "cannot read the checkpoint" in theirs.err
    _one_line(theirs)
    assert checkpoint.read_bytes() == before
    assert fork_server.run(script, argv).code == 0


def test_images_that_another_user_may_not_read_are_named(fork_server, shared_folder):
    from PIL import Image

    for name in ("a", "b"):
        (shared_folder / "pets" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("L", (8, 8), number * 9).save(shared_folder / "pets" / name / f"{number}.png")
    (shared_folder / "pets" / "a" / "3.png").chmod(0o600)
    argv = [f"--dataset={shared_folder / 'pets'}", *TINY[1:5], "--backbone=test_resnet", "--val-fraction=0.3"]
    argv += ["--results-dir", shared_folder / "results"]
    ended = fork_server.run("train_cnn_head", argv, uid=NOBODY)
    _skip_where_packages_are_unreadable(ended)
    assert ended.code == 2 and "'a/3.png' (Permission denied)" in ended.err
    assert (
        fork_server.run(*ARMS["head"][:1], [*ARMS["head"][1], f"--results-dir={shared_folder / 'results'}"]).code == 0
    )
    (run,) = shared_folder.rglob("seed0")
    (shared_folder / "pets" / "b").chmod(0o700)
    ended = fork_server.run("evaluate", [run, f"--predict={shared_folder}", "--out=x.csv"], uid=NOBODY)
    assert ended.code == 2 and "cannot read the folder" in ended.err, ended.err
    ended = fork_server.run("train_cnn_head", argv, uid=NOBODY)
    assert ended.code == 2 and "cannot read the folder" in ended.err and "Permission denied" in ended.err
    _one_line(ended)


# What writes beside the runs' folders


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_write_that_fails_at_any_step_leaves_the_old_file_alone(step, error, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def failing(*_, **__):
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        if step == "open":
            patch.setattr(files, "open", failing, raising=False)
        else:
            patch.setattr(files.os, step, failing)
        with pytest.raises(UserError, match=os.strerror(error)) as caught:
            write_atomically(path, b"new")
    assert "nothing was overwritten" in str(caught.value) and repr(str(path)) in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"old"


def test_a_folder_that_cannot_be_flushed_is_told_apart_from_a_write_that_failed(tmp_path, monkeypatch):
    fsync, path = os.fsync, tmp_path / "file"

    def failing(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", failing)
    with pytest.raises(UserError, match="was written, but the disk did not confirm it"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    monkeypatch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EINVAL, "no")))
    flush_folder(tmp_path)  # a file system that cannot flush folders


def test_figures_and_tables_are_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    comparisons, _ = compare([fake_run(tmp_path / "results", num_test=20)], {})
    statistics = frames_of(comparisons), compute_uncertainty(comparisons)
    from matplotlib.figure import Figure

    drawn = style.save(Figure(figsize=(1, 1)), tmp_path / "figures" / "one")
    written = tables.write_summary(*statistics, tmp_path / "results")
    before = {path: path.read_bytes() for path in [*drawn, *written]}
    os_replace = os.replace

    def failing(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    for path in before:
        path.write_bytes(path.read_bytes() + b" ")
    monkeypatch.setattr(files.os, "replace", failing)
    with pytest.raises(UserError, match="No space left"):
        style.save(Figure(figsize=(1, 1)), tmp_path / "figures" / "one")
    with pytest.raises(UserError, match="No space left"):
        tables.write_summary(*statistics, tmp_path / "results")
    assert {path: path.read_bytes() for path in before} == {path: b + b" " for path, b in before.items()}
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.setattr(files.os, "replace", os_replace)


def test_a_lock_that_cannot_be_written_is_named_and_not_left_behind(tmp_path, monkeypatch):
    def failing(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(locks.os, "write", failing)
    path = tmp_path / "run" / ".seed0.lock"
    with (
        pytest.raises(UserError, match=r"cannot write .*\.seed0\.lock.*No space left"),
        locks.locked(path, what="it", wait=False),
    ):
        pass
    assert not path.parent.exists()


def test_a_file_system_without_locks_is_noted_and_used(tmp_path, monkeypatch, capsys):
    import fcntl

    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with open_run_folder(tmp_path / "run" / "seed0", {}, overwrite=False) as run:
        assert run.finished is None
        assert locks.lock_holder(tmp_path / "run" / ".seed0.lock") is None
    assert "has no locks (No locks available): start no run twice" in capsys.readouterr().out


@pytest.mark.parametrize("call", [1, 2])
def test_an_exchange_of_folders_that_fails_leaves_the_old_run_readable(call, tmp_path, monkeypatch):
    kept = fake_run(tmp_path, num_test=20)
    before = left(tmp_path)
    run = RunFolder(kept.folder, None)
    rename, count = Path.rename, iter(range(1, 9))

    def failing(self, target):
        if next(count) == call:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UserError, match="Input/output error; what was there is as it was"):
        finish_run_folder(run, {}, replace(kept.result, notes=["new"]))
    assert left(tmp_path) == before
    assert read_result(kept.folder / "result.json") == kept.result


def test_a_log_that_cannot_be_opened_stops_the_grid_with_its_name(fork_server, tmp_path):
    (tmp_path / "results" / "demo").mkdir(parents=True)
    (tmp_path / "results" / "demo" / "logs").write_text("a file")
    ended = fork_server.run("reproduce", ["--results-dir", tmp_path / "results", "--figures-dir", tmp_path / "figures"])
    assert ended.code == 2, ended.err
    _one_line(ended)
    assert "logs" in ended.err
