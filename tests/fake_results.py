"""Result folders as training would leave them, from synthetic logits: for tests, and to look at the figures."""

from pathlib import Path

import numpy as np

from common.evaluation import metrics
from common.evaluation.timings import BatchTiming, Timing, write_timing
from common.runs.predictions import PREDICTIONS_FILE, npz_bytes
from common.runs.record import SCHEMA_VERSION, RunResult
from common.runs.result import RESULT_FILE, Run, read_result, write_result
from common.runs.schema import typed
from common.runtime.files import sha256, write_atomically

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# run name: (backbone, method, total parameters, trainable parameters, skill, train seconds, feature seconds)
MODELS = {
    "vit_base_patch16_224.augreg_in1k-lora_r16": (
        "vit_base_patch16_224.augreg_in1k", "lora", 86_403_860, 597_514, 7.5, 900.0, None),
    "resnet50.tv2_in1k-head_mlp": ("resnet50.tv2_in1k", "head_mlp", 25_616_462, 2_108_426, 4.5, 14.0, 60.0),
    "efficientnet_b0.ra_in1k-head_mlp": ("efficientnet_b0.ra_in1k", "head_mlp", 4_668_550, 661_002, 4.0, 9.0, 31.0),
    "vit_base_patch16_224.augreg_in1k-head_linear": (
        "vit_base_patch16_224.augreg_in1k", "head_linear", 85_806_346, 7_690, 6.0, 4.0, 160.0),
    "resnet50.tv2_in1k-head_linear": ("resnet50.tv2_in1k", "head_linear", 23_528_522, 20_490, 4.1, 4.0, 60.0),
    "vit_small_patch16_224.augreg_in1k-lora_r8-lr1e-3": (
        "vit_small_patch16_224.augreg_in1k", "lora", 21_816_970, 151_306, 5.5, 400.0, None),
}  # fmt: skip
# What these lack of a probe, LoRA and full fine-tuning of one ViT and one CNN.
CROSSED = {
    "vit_base_patch16_224.augreg_in1k-head_probe": (
        "vit_base_patch16_224.augreg_in1k", "head_probe", 85_806_346, 7_690, 6.1, 4.0, 160.0),
    "vit_base_patch16_224.augreg_in1k-full": (
        "vit_base_patch16_224.augreg_in1k", "full", 85_806_346, 85_806_346, 7.6, 1_900.0, None),
    "resnet50.tv2_in1k-head_probe": ("resnet50.tv2_in1k", "head_probe", 23_528_522, 20_490, 4.2, 4.0, 60.0),
    "resnet50.tv2_in1k-lora_r16": ("resnet50.tv2_in1k", "cnn_lora", 24_192_074, 684_042, 6.2, 700.0, None),
    "resnet50.tv2_in1k-full": ("resnet50.tv2_in1k", "full", 23_528_522, 23_528_522, 6.4, 800.0, None),
}  # fmt: skip


def logits_for(labels: np.ndarray, num_classes: int, *, skill: float, seed: int) -> np.ndarray:
    """Return float32 logits (N, C) that favour each label by ``skill``, and confuse neighbouring classes most."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(scale=2.0, size=(len(labels), num_classes))
    rows = np.arange(len(labels))
    noise[rows, labels] += skill * (0.8 + 0.4 * (labels % 3) / 2)
    noise[rows, labels ^ 1 if num_classes % 2 == 0 else (labels + 1) % num_classes] += skill / 3
    return noise.astype(np.float32)


def history(epochs: int, accuracy: float, rng: np.random.Generator) -> list[dict]:
    """Return learning curves that rise to ``accuracy``."""
    rise = 1 - np.exp(-np.arange(1, epochs + 1) / 1.2)
    train, val = accuracy * rise + rng.normal(scale=0.004, size=(2, epochs))
    val -= 0.01 * np.arange(epochs) / epochs
    return [
        {
            "epoch": epoch + 1,
            "lr": 1e-4,
            "train_loss": float(2.3 - 2.1 * train[epoch]),
            "train_accuracy": float(np.clip(train[epoch], 0, 1)),
            "val_loss": float(2.35 - 2.1 * val[epoch]),
            "val_accuracy": float(np.clip(val[epoch], 0, 1)),
            "seconds": 3.0,
        }
        for epoch in range(epochs)
    ]


def fake_run(
    results_dir: Path,
    name: str = "resnet50.tv2_in1k-head_mlp",
    *,
    dataset: str = "cifar10",
    seed: int = 0,
    classes: tuple[str, ...] = CIFAR10,
    num_test: int = 400,
    num_train: int = 45_000,
    source: str = "pretrained",
    epochs: int = 5,
    test_set: int = 0,
    created: str = "2025-01-01T00:00:00+00:00",
    folder_name: str | None = None,
    trials: int = 1,
    train_limit: int | None = None,
    shift: int = 0,
    right: np.ndarray | None = None,
) -> Run:
    """Write one run's folder under ``results_dir`` and return it.

    ``test_set`` draws other test images, ``shift`` other predictions; ``trials`` learning rates were tried. ``right``,
    (num_test,) bool, says which test images are predicted right.
    """
    backbone, method, total, trainable, skill, train_seconds, feature_seconds = (MODELS | CROSSED)[name]
    rng = np.random.default_rng(sum(name.encode()) * 1_000 + seed + 500 * shift)
    arrays = {}
    for prefix, size in (("", num_test), ("val_", num_test // 2)):
        split_rng = np.random.default_rng(test_set * 2 + len(prefix))
        labels = np.arange(size) % len(classes)
        arrays[f"{prefix}logits"] = logits_for(labels, len(classes), skill=skill, seed=int(rng.integers(2**32)))
        arrays[f"{prefix}labels"] = labels
        arrays[f"{prefix}indices"] = split_rng.choice(2 * size, size, replace=False)
    if right is not None:
        arrays["logits"] = 5 * np.eye(len(classes), dtype=np.float32)[(arrays["labels"] + ~right) % len(classes)]
    test, notes = metrics.score(arrays["logits"], arrays["labels"], classes)
    val, _ = metrics.score(arrays["val_logits"], arrays["val_labels"], classes)
    curves = history(epochs, val["accuracy"], rng)
    lora = {"rank": 16, "alpha": 32, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
    predictions = npz_bytes(**arrays)
    result = {
        "schema_version": SCHEMA_VERSION,
        "method": method,
        "dataset": dataset,
        "backbone": backbone,
        "seed": seed,
        "command": "python train_cnn_head.py",
        "config": {"backbone": backbone, "seed": seed, "train_limit": train_limit}
        | ({"rank": 16} if "lora" in method else {}),
        "data": {
            "classes": list(classes),
            "num_train": num_train,
            "num_val": num_test // 2,
            "num_test": num_test,
            "image_size": 224,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "interpolation": "bicubic",
            "fingerprint": f"{dataset}-fingerprint",
        },
        "model": {
            "total_params": total,
            "trainable_params": trainable,
            "trainable_percent": 100 * trainable / total,
            "forward_flops": 400 * total,
            "step_flops": 400 * (total + trainable),
            "weights": {"source": source, "sha256": "0" * 64},
            "lora": lora if "lora" in method else None,
        },
        "history": curves,
        "trials": [
            {"lr": lr, "best_epoch": epochs, "val_loss": val["loss"], "val_accuracy": val["accuracy"]}
            for lr in 1e-4 * 3.0 ** (np.arange(trials) - trials // 2)
        ],
        "best_epoch": epochs,
        "val": val,
        "test": test,
        "efficiency": {
            "train_seconds": train_seconds * rng.uniform(0.9, 1.1),
            "feature_seconds": feature_seconds,
            "feature_cache_hit": False if feature_seconds else None,
            "eval_seconds": 5.0,
            "train_images_per_second": 1_000.0,
            "train_flops": 400 * (total + trainable) * num_train * epochs,
            "peak_host_bytes": 10**9,
            "peak_device_bytes": None,
            "saved_bytes": 4 * trainable,
            "backbone_bytes": 4 * (total - trainable),
        },
        "environment": {"device": "cpu", "cpu": "Abacus", "threads": 1, "precision": "fp32", "created": created},
        "files": {PREDICTIONS_FILE: {"sha256": sha256(predictions), "bytes": len(predictions)}},
        "skipped_images": [],
        "notes": notes,
    }
    folder = results_dir / dataset / (folder_name or name) / f"seed{seed}"
    write_atomically(folder / PREDICTIONS_FILE, predictions)
    write_result(folder, typed(result, RunResult))
    return Run(folder, read_result(folder / RESULT_FILE))


def fake_timing(run: Run, milliseconds: float, **environment: object) -> Timing:
    """Write the ``timing.json`` of a model that takes so long for one image, and half as long for each of 32."""
    one, many = (
        BatchTiming(images=images, seconds=seconds, quartiles=[0.9 * seconds, 1.1 * seconds], repeats=9)
        for images, seconds in ((1, milliseconds / 1e3), (32, 16 * milliseconds / 1e3))
    )
    facts = {"device": "cpu", "cpu": "Abacus", "threads": 2, "precision": "fp32", "created": "2025-01-02"} | environment
    own = {"result_sha256": run.result.sha256, "image_size": 224, "timed_with": [], "environment": facts}
    timing = Timing(latency=one, throughput=many, **own)
    write_timing(run, timing)
    return timing


def fake_comparison(results_dir: Path) -> Path:
    """Write two models of two seeds on one data set, of one seed on another; return ``results_dir``."""
    for name in tuple(MODELS)[:2]:
        for seed in (0, 1):
            fake_run(results_dir, name, seed=seed, num_test=60)
        fake_run(results_dir, name, dataset="digits", num_test=60)
    return results_dir
