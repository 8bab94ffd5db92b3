"""Image folders: seconds and peak memory to read one for the first time and again, by the number of its images.

python bench/folders.py FOLDER CACHE      # reads one, and prints both as JSON
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.measuring import single  # noqa: E402, found once its folder is on the path
from common.data.dataset import load_dataset  # noqa: E402, found once its folder is on the path
from common.runtime.progress import progress  # noqa: E402, found once its folder is on the path

SIZES = (50_000, 100_000, 200_000)
FILES, SIDE, CLASSES = 1_000, 32, 10


def compare(scratch: Path, *, sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """Read folders of so many links to ``FILES`` JPEG files of 32x32, each twice: everything, and what was kept."""
    files, records = _write_files(scratch / "files"), []
    for size in progress(sizes, desc="folder", unit="folder"):
        folder, cache = scratch / f"{size}", scratch / "cache"
        for number in range(size):
            link = folder / ("test" if number % 6 == 0 else "train") / str(number % CLASSES) / f"{number}.jpg"
            if number < 6 * CLASSES:
                link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(files[number % FILES])
        for when in ("the first time", "again"):
            done = subprocess.run([sys.executable, __file__, folder, cache], stdout=subprocess.PIPE, check=True)
            seconds, peak = json.loads(done.stdout)
            records.append(single(f"{size:,} images, {when}", [seconds], unit="s"))
            records.append(single(f"{size:,} images, {when}: peak", [peak / 1e6], unit="MB"))
    about = f"links to {FILES:,} JPEG files of {SIDE}x{SIDE}, one reading each in a process of its own, without PyTorch"
    return {
        "records": records,
        "notes": [f"{about}; the peak is that of the reading process, without its workers"],
    }


def _write_files(folder: Path) -> list[Path]:
    """Write JPEG files of noise at quality 50, about as large as those of photographs."""
    folder.mkdir()
    rng, paths = np.random.default_rng(0), [folder / f"{number}.jpg" for number in range(FILES)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path, quality=50)
    return paths


def _read(folder: str, cache: str) -> tuple[float, int]:
    """Return the seconds, and the peak memory in bytes, of reading and splitting a folder."""
    started = time.perf_counter()
    load_dataset(folder, data_dir=Path(folder), cache=Path(cache))
    return time.perf_counter() - started, _peak_bytes()


def _peak_bytes() -> int:
    """Return this process's peak resident memory; getrusage would count that of the process which started it."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1_024


if __name__ == "__main__":
    print(json.dumps(_read(*sys.argv[1:])))
