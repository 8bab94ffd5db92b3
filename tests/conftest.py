"""What several test modules need."""

import os
from pathlib import Path

# Before PyTorch is imported: test processes side by side take one thread each, and none spins for the others.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from finished import ARMS, FINE, left
from process_fork import ForkServer

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real MNIST, Fashion-MNIST and JPEG CIFAR-10; a test that wants it is skipped elsewhere."""
    folder = Path(os.environ.get("BENCHMARK_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip(f"no real data at {folder}: set BENCHMARK_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory):
    """The process whose forks are killed, interrupted and cut off from the disk; see ``process_fork.py``."""
    process = ForkServer(tmp_path_factory.mktemp("fork_server"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def whole(fork_server, tmp_path_factory) -> dict[str, tuple[dict, list[str]]]:
    """Of each arm an undisturbed run: what it leaves, and the kinds of steps it makes on the disk."""
    runs = {}
    for arm, (script, argv) in ARMS.items():
        folder = tmp_path_factory.mktemp("whole")
        ended = fork_server.run(script, [*argv, "--results-dir", folder], within=str(folder), patch=FINE)
        assert ended.code == 0, ended.err
        runs[arm] = left(folder), [step.split(" ", 1)[0] for step in ended.steps]
    return runs
