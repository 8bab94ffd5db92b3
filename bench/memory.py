"""Peak resident memory of the CNN head's training, by the number of images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measuring import run_script, single
from common.data.dataset import load_dataset
from common.models import backbones
from common.runtime.progress import progress

BACKBONE = "test_efficientnet.r160_in1k"  # a third of a million parameters: what grows with the images shows
IMAGE_SIZE = 224
SIZES = (1_000, 10_000, 60_000)
TEST_IMAGES = 1_000
VAL_FRACTION = 0.1


def measure(scratch: Path, *, data_dir: Path, dataset: str = "mnist", sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """Train on each number of images (validation among them) and return the peak that each run recorded of itself.

    Raises:
        UserError: the data are missing, or fewer than a size.
    """
    loaded = load_dataset(dataset, data_dir=data_dir)
    whole = len(loaded.train) + len(loaded.val)
    image_bytes = loaded.train.pixels[0].nbytes
    width = backbones.load(BACKBONE, weights="random", image_size=IMAGE_SIZE).width
    records = []
    for size in progress(sizes, desc="memory", unit="run"):
        peak = _peak_bytes(scratch / str(size), size if size < whole else None, data_dir=data_dir, dataset=dataset)
        count = size + TEST_IMAGES
        known = {
            "peak": peak,
            "uint8 images": count * image_bytes,
            "features": count * width * 4,  # float32
        }
        records += [single(f"{size:,} images: {what}", [value / 1e6], unit="MB") for what, value in known.items()]
    return {
        "weights": "random",
        "records": records,
        "notes": [
            f"{dataset} at {IMAGE_SIZE}x{IMAGE_SIZE} through {BACKBONE} with random weights, one epoch, "
            f"{TEST_IMAGES:,} test images, no feature cache; the peak of the one process (resident, PyTorch itself "
            f"included), one run each; at any size the whole data set of {whole:,} training images is read before the "
            "sample is taken",
        ],
    }


def _peak_bytes(results_dir: Path, images: int | None, *, data_dir: Path, dataset: str) -> int:
    limit = () if images is None else ("--train-limit", images - round(VAL_FRACTION * images))
    run_script(
        "train_cnn_head.py",
        *("--dataset", dataset, "--data-dir", data_dir, "--backbone", BACKBONE, "--weights", "random"),
        *("--image-size", IMAGE_SIZE, "--epochs", 1, "--no-feature-cache", "--results-dir", results_dir),
        *("--test-limit", TEST_IMAGES, "--val-fraction", VAL_FRACTION, *limit),
    )
    (result,) = results_dir.glob("*/*/seed0/result.json")
    return json.loads(result.read_text())["efficiency"]["peak_host_bytes"]
