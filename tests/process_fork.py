"""A process that has imported everything and computed nothing, and forks a child for each command that a test wants.

Start-up (seconds) dominates a run of 60 digits (a fraction of one). Each child runs one script's command line, with at
most one fault: killed or failing at the n-th step that writes to disk, out of room, out of memory, another user.
``ForkServer`` is the tests' side; this file run as a script is the process itself.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = ("train_cnn_head", "train_vit_lora", "train_full", "train_cnn_lora", "evaluate", "plot_results", "reproduce")


@dataclass(frozen=True)
class FinishedProcess:
    """How a child ended: its exit code (None where a signal killed it), what it printed, the disk steps it made."""

    code: int | None
    out: str
    err: str
    steps: list[str]


class ForkServer:
    """The tests' side: start the process once, then ``run`` one command after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=environment,
        )

    def start(self, script: str, argv: list, **fault) -> None:
        """Send a command without waiting for its end; see ``run``."""
        request = {"script": script, "argv": [str(word) for word in argv], "folder": str(self.folder), **fault}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def wait(self) -> FinishedProcess:
        """Wait for the end of the command that was sent."""
        code = json.loads(self.process.stdout.readline())
        texts = [(self.folder / name).read_text(errors="replace") for name in ("out", "err", "steps")]
        return FinishedProcess(code if code >= 0 else None, texts[0], texts[1], texts[2].splitlines())

    def run(self, script: str, argv: list, **fault) -> FinishedProcess:
        """Run ``script`` with ``argv`` in a forked child.

        ``at``, ``action``: what happens at disk step number ``at``: ``kill``, ``half`` (half of a write, then killed),
        an error's number, or minus that number (half of a write first). ``within``: only steps below this folder count.
        ``step``: the same at this training step, ``kill``, ``int``, ``term``, ``usr1``, ``terms`` (SIGTERM three
        times), or ``terminal``, Ctrl-C to all processes.
        ``seconds``: SIGKILL after so long.
        ``patch``: values of module attributes. ``uid``, ``file_bytes``, ``memory_bytes``: who runs it, and limits.
        """
        self.start(script, argv, **fault)
        return self.wait()

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class _DiskSteps:
    """Counts the calls that change the disk, and lets one of them fail."""

    def __init__(self, report: str, within: str, at: int | None, action: str | int) -> None:
        self.report, self.within, self.at, self.action, self.count = report, within, at, action, 0

    def take(self, name: str, path: object, half=lambda: None) -> None:
        """Note the step ``name`` on ``path`` that is about to be made; be killed, or raise, if it is the one."""
        path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
        if self.within not in path:
            return
        number, self.count = self.count, self.count + 1
        self.report.write(f"{name} {path}\n")
        if number != self.at:
            return
        self.report.flush()
        if self.action == "half" or (isinstance(self.action, int) and self.action < 0):
            half()
        if isinstance(self.action, str):
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(abs(self.action), os.strerror(abs(self.action)), path)


class _File:
    """A file opened for writing, whose ``write`` is a step."""

    def __init__(self, file, path: str, steps: _DiskSteps) -> None:
        self._file, self._path, self._steps = file, path, steps

    def write(self, content):
        def half():
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        self._steps.take("write", self._path, half)
        return self._file.write(content)

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def __iter__(self):
        return iter(self._file)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)


def _watch_disk(steps: _DiskSteps) -> None:
    import builtins

    def watched(name: str):
        call = getattr(os, name)

        def step(path, *rest, **options):
            folder = options.get("dir_fd")
            steps.take(name, path if folder is None else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path))
            return call(path, *rest, **options)

        setattr(os, name, step)

    for name in ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "write", "ftruncate"):
        watched(name)
    plain_open = builtins.open

    def open_for_writing(path, mode="r", *rest, **options):
        if isinstance(path, int) or not set(mode) & set("wax+"):
            return plain_open(path, mode, *rest, **options)
        steps.take("open", path)
        return _File(plain_open(path, mode, *rest, **options), os.fspath(path), steps)

    builtins.open = open_for_writing


def _interrupt_training(number: int, action: str) -> None:
    from common.training import loop

    step, steps = loop._Loop._step, iter(range(10**9))
    signals = {"kill": signal.SIGKILL, "int": signal.SIGINT, "terminal": signal.SIGINT, "usr1": signal.SIGUSR1}
    number_of = signals.get(action, signal.SIGTERM)
    send = os.killpg if action == "terminal" else os.kill  # a terminal sends Ctrl-C to the workers as well

    def interrupted(self, inputs, labels):
        if next(steps) == number:
            for _ in range(3 if action == "terms" else 1):
                send(os.getpid(), number_of)
        step(self, inputs, labels)

    loop._Loop._step = interrupted


class _ForkedRun:
    """In place of ``subprocess.Popen`` in ``common.grid.scheduler``: the run's process is a fork of this one."""

    def __init__(self, command, *, stdout, **_) -> None:
        self.returncode = None
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            os._exit(_command(Path(command[1]).stem, list(command[2:])))

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self):
        while self.poll() is None:
            time.sleep(0.01)

    def send_signal(self, number):
        os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)


def _command(script: str, argv: list[str]) -> int:
    from common import cli

    module = sys.modules[script]
    sys.argv = [f"{script}.py", *argv]
    try:
        code = cli.run(module.main, module.Config, argv)
    except SystemExit as error:
        code = error.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _limit(request: dict) -> None:
    import resource

    if "file_bytes" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"],) * 2)
    if "memory_bytes" in request:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + request["memory_bytes"],) * 2)
    if "uid" in request:
        os.setgroups([])
        os.setgid(request["uid"])
        os.setuid(request["uid"])


def _make_grid_tiny() -> None:
    """Let reproduce.py's demo be two arms on 60 digits, each run a fork, and each figure a file without a drawing."""
    from types import SimpleNamespace

    import profiles
    import reproduce
    import train_cnn_head
    import train_vit_lora
    from common.figures import style
    from common.grid import scheduler
    from common.grid.grid import Arm, Grid
    from common.runtime.files import write_atomically

    def save(figure, stem):
        for suffix in (".png", ".pdf"):
            write_atomically(stem.with_suffix(suffix), b"drawn")
        return [stem.with_suffix(suffix) for suffix in (".png", ".pdf")]

    def in_this_process(*_, **__):
        return contextlib.nullcontext(SimpleNamespace(map=map))

    few = {"epochs": 1, "batch_size": 32, "lr": (1e-3,), "weights": "random", "feature_cache": False}
    arms = (
        Arm(train_vit_lora, "test_vit.r160_in1k", profiles.LORA | few),
        Arm(train_cnn_head, "test_resnet.r160_in1k", profiles.HEAD | few),
    )
    small = {"train_limit": 60, "test_limit": 20, "image_size": 32, "precision": "fp32"}
    profiles.PROFILES["demo"] = (Grid(arms, {"digits": small}, seeds=(0,)),)
    scheduler.fork_context = lambda: None
    scheduler.import_ahead = lambda *_: None
    scheduler.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": _ForkedRun})
    reproduce.prefetch = SimpleNamespace(wanted=lambda *_: [], fetch=lambda *_, **__: {})
    style.save = save
    for module in list(sys.modules.values()):
        if hasattr(module, "ProcessPoolExecutor") and module.__name__ in ("plot_results", "common.runtime.parallel"):
            module.ProcessPoolExecutor = in_this_process


def _child(request: dict) -> int:
    from common.runtime import environment as environment_module

    os.setsid()
    folder = Path(request["folder"])
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
    environment_module._git = lambda *_: None  # a process, for nothing that is tested here
    if request["script"] == "reproduce":
        _make_grid_tiny()
    for name, value in request.get("patch", {}).items():
        module, _, attribute = name.rpartition(".")
        setattr(sys.modules[module], attribute, value)
    if "step" in request:
        _interrupt_training(request["step"], request["action"])
    report = open(folder / "steps", "w", buffering=1)  # noqa: SIM115, until the process ends
    if "step" not in request and "seconds" not in request:
        at = request.get("at")
        _watch_disk(_DiskSteps(report, request.get("within", str(folder)), at, request.get("action", "kill")))
    _limit(request)
    return _command(request["script"], request["argv"])


def _serve() -> None:
    """Fork a child for each request (a line of JSON) and answer with its exit code, negative for a signal."""
    import importlib

    # importlib.readers: a child that is another user may not be able to read Python's own modules any more.
    for name in (
        "importlib.readers",
        "torch",
        "timm",
        "peft",
        "sklearn.datasets",
        "matplotlib.figure",
        "torch.utils.flop_counter",
        "encodings.unicode_escape",  # jinja2 asks for it, which another user may not find
    ):
        importlib.import_module(name)
    import timm.models  # noqa: F401

    for name in (
        "training.save",
        "training.restore",
        "figures.style",
        "report.tables",
        "grid.estimate",
    ):
        importlib.import_module(f"common.{name}")
    for name in SCRIPTS:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            code = 71
            try:
                code = _child(request)
            finally:
                os._exit(code)
        if "seconds" in request:
            time.sleep(request["seconds"])
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


if __name__ == "__main__":
    _serve()
