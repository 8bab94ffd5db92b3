"""What a finished run left, less what may differ between two runs of one command: times, and where it ran."""

import json
from pathlib import Path

TINY = [
    *("--dataset=digits", "--weights=random", "--image-size=32", "--precision=fp32", "--epochs=2", "--batch-size=32"),
    *("--train-limit=60", "--test-limit=20", "--workers=0"),
]
ARMS = {
    "head": (
        "train_cnn_head",
        [*TINY, "--backbone=test_resnet", "--no-feature-cache", "--lr", "1e-2", "3e-2", "--extend=1"],
    ),
    "lora": ("train_vit_lora", [*TINY, "--backbone=test_vit", "--rank=2", "--lr=1e-2"]),
}
# Checkpoints after every step, and features in several parts, so that 60 images have all phases of 60,000.
FINE = {"common.training.loop.CHECKPOINT_SECONDS": -1, "common.training.features.PART_IMAGES": 32}
_TIMES = ("train_seconds", "feature_seconds", "eval_seconds", "train_images_per_second", "feature_cache_hit")


def left(results_dir: Path) -> dict[str, object]:
    """Return every file below ``results_dir`` by its relative name: bytes, or of JSON what does not differ.

    The summary and the logs hold times, so that of these only the names are compared.
    """
    files = [path for path in results_dir.rglob("*") if path.is_file()]
    timed = {path for path in files if path.suffix == ".log" or path.stem == "summary"}
    return {str(path.relative_to(results_dir)): path in timed or _settled(path) for path in files}


def _settled(path: Path) -> object:
    if path.suffix != ".json":
        return path.read_bytes()
    record = json.loads(path.read_text())
    if path.name != "result.json":
        return record
    for row in record["history"] + record["trials"]:
        row.pop("seconds", None)
    cost = record["efficiency"]
    for name in [*_TIMES, "peak_host_bytes", "peak_device_bytes"]:
        del cost[name]
    record["files"] = {name: file for name, file in record["files"].items() if not name.endswith(".json")}
    return {key: value for key, value in record.items() if key not in ("environment", "command", "sha256", "config")}
