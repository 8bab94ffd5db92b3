"""What several test modules need."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real MNIST, Fashion-MNIST and JPEG CIFAR-10; a test that wants it is skipped elsewhere."""
    folder = Path(os.environ.get("BENCHMARK_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip(f"no real data at {folder}: set BENCHMARK_TEST_DATA")
    return folder
