"""The shape of ``result.json``: the fields that readers rely on, and their types."""

from itertools import pairwise
from pathlib import PurePath, PureWindowsPath

SCHEMA_VERSION = 1

MAX_DEPTH = 32  # a record has 5; what is nested a thousand deep ends Python's recursion


class Number:
    """A finite int or float (not a bool), optionally within bounds or None."""

    def __init__(
        self, low: float = -1e300, high: float = 1e300, *, optional: bool = False, whole: bool = False
    ) -> None:
        self.low, self.high, self.optional, self.whole = low, high, optional, whole

    def problem_with(self, value: object) -> str | None:
        """Say what is wrong with ``value``, or return None."""
        if value is None and self.optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return f"should be {'a whole' if self.whole else 'a'} number"
        return None if self.low <= value <= self.high else f"should lie in {self.low}..{self.high}"


FRACTION, OPTIONAL_FRACTION = Number(0, 1), Number(0, 1, optional=True)

NUMBER, OPTIONAL_NUMBER = Number(), Number(optional=True)

AMOUNT, OPTIONAL_AMOUNT = Number(0), Number(0, optional=True)

COUNT, OPTIONAL_COUNT = Number(0, 2**63, whole=True), Number(0, 2**63, optional=True, whole=True)

METRICS = {
    "loss": AMOUNT,
    "accuracy": FRACTION,
    "balanced_accuracy": FRACTION,
    "f1_macro": FRACTION,
    "f1_weighted": FRACTION,
    "precision_macro": FRACTION,
    "recall_macro": FRACTION,
    "auc_macro": OPTIONAL_FRACTION,
    "auc_micro": OPTIONAL_FRACTION,
    "ece": FRACTION,
    "per_class": [
        {
            "class": str,
            "precision": OPTIONAL_FRACTION,
            "recall": OPTIONAL_FRACTION,
            "f1": OPTIONAL_FRACTION,
            "auc": OPTIONAL_FRACTION,
            "support": COUNT,
        }
    ],
    "confusion_matrix": [[COUNT]],
}

RESULT = {
    "method": str,
    "dataset": str,
    "backbone": str,
    "seed": COUNT,
    "config": dict,
    "data": {"classes": [str], "num_train": COUNT, "num_val": COUNT, "num_test": COUNT, "fingerprint": str},
    "model": {
        "total_params": COUNT,
        "trainable_params": COUNT,
        "trainable_percent": Number(0, 100),
        "forward_flops": OPTIONAL_AMOUNT,
        "weights": {"source": str},
        "lora": (dict, type(None)),
    },
    "history": [
        {
            "epoch": COUNT,
            "train_loss": NUMBER,
            "train_accuracy": FRACTION,
            "val_loss": NUMBER,
            "val_accuracy": FRACTION,
        }
    ],
    "trials": [dict],
    "best_epoch": COUNT,
    "val": METRICS,
    "test": METRICS,
    "efficiency": {
        "train_seconds": AMOUNT,
        "feature_seconds": OPTIONAL_AMOUNT,
        "eval_seconds": OPTIONAL_AMOUNT,
        "train_images_per_second": OPTIONAL_AMOUNT,
        "peak_host_bytes": OPTIONAL_COUNT,
        "peak_device_bytes": OPTIONAL_COUNT,
        "saved_bytes": COUNT,
    },
    "environment": {"created": str},
    "files": dict,
    "notes": [str],
    "sha256": str,
}


# What it takes beyond that to rebuild a run's model and its data.
REBUILDING = {
    "config": {
        "dataset": str,
        "dataset_name": (str, type(None)),
        "data_dir": str,
        "weights": str,
        "resize": str,
        "precision": str,
        "compile": str,
        "batch_size": Number(1, 1_000_000, whole=True),
        "workers": Number(0, 1024, optional=True, whole=True),
        "val_fraction": FRACTION,
        "split_seed": COUNT,
        "train_limit": OPTIONAL_COUNT,
        "test_limit": OPTIONAL_COUNT,
        "skip_damaged": bool,
    },
    "data": {"image_size": Number(16, 4096, whole=True)},
    "model": {"weights": {"sha256": str}},
}

LORA = {"rank": Number(1, 4096, whole=True), "alpha": AMOUNT, "dropout": FRACTION}

CHOICES = {"resize": ("squash", "crop"), "precision": ("fp32", "bf16"), "compile": ("auto", "off")}

METHODS = ("lora", "head_mlp", "head_linear")


def problem_with_rebuilding(result: dict) -> str | None:
    """Say what a result that ``problem_with`` passed lacks for its model to be rebuilt, or return None."""
    lora = result["model"]["lora"]
    problem = _mismatch(result, REBUILDING, "") or (_mismatch(lora, LORA, ".model.lora") if lora else None)
    if problem:
        return problem
    if result["method"] not in METHODS or (result["method"] == "lora") != bool(lora):
        return f"method {result['method']!r} and model.lora do not fit together"
    odd = (name for name, allowed in CHOICES.items() if result["config"][name] not in allowed)
    return next((f"config.{name} is {result['config'][name]!r}" for name in odd), None)


def problem_with(result: dict) -> str | None:
    """Say which field of ``result`` is missing, of the wrong type or at odds with another, or return None."""
    if _depth_exceeds(result, MAX_DEPTH):
        return f"it is nested more than {MAX_DEPTH} deep"
    return _mismatch(result, RESULT, "") or _disagreement(result)


def _depth_exceeds(value: object, depth: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_depth_exceeds(item, depth - 1) for item in inner)


def _mismatch(value: object, shape: object, where: str) -> str | None:
    """Compare ``value`` with a template: a Number, a type (or several), a list of one template, or a dict of them."""
    field = where.removeprefix(".") or "the file"
    if isinstance(shape, Number):
        problem = shape.problem_with(value)
        return problem and f"{field} {problem}"
    kind = type(shape) if isinstance(shape, (dict, list)) else shape
    if not isinstance(value, kind):
        return f"{field} is {type(value).__name__}, which is not what this benchmark writes"
    if isinstance(shape, list):
        problems = (_mismatch(item, shape[0], f"{where}[{index}]") for index, item in enumerate(value))
    elif isinstance(shape, dict):
        missing = next((key for key in shape if key not in value), None)
        if missing:
            return f"{f'{where}.{missing}'.removeprefix('.')} is missing"
        problems = (_mismatch(value[key], inner, f"{where}.{key}") for key, inner in shape.items())
    else:
        return None
    return next((problem for problem in problems if problem), None)


def _disagreement(result: dict) -> str | None:
    """Say which parts of a record of the right types contradict each other, or return None."""
    data, history = result["data"], result["history"]
    if len(set(data["classes"])) < max(2, len(data["classes"])):
        return "data.classes are fewer than two, or repeated"
    for split in ("val", "test"):
        per_class, matrix = result[split]["per_class"], result[split]["confusion_matrix"]
        if [row["class"] for row in per_class] != data["classes"]:
            return f"{split}.per_class does not list data.classes"
        if [len(row) for row in matrix] != [len(per_class)] * len(per_class):
            return f"{split}.confusion_matrix is not {len(per_class)} x {len(per_class)}"
        if [sum(row) for row in matrix] != [row["support"] for row in per_class]:
            return f"{split}.confusion_matrix and {split}.per_class count different images"
        if sum(map(sum, matrix)) != data[f"num_{split}"] or not data[f"num_{split}"]:
            return f"{split}.confusion_matrix does not count data.num_{split} images"
    if not history or any(later["epoch"] <= earlier["epoch"] for earlier, later in pairwise(history)):
        return "history is empty or its epochs do not increase"
    if result["best_epoch"] not in (row["epoch"] for row in history):
        return "best_epoch is not in the history"
    bad = next((name for name, file in result["files"].items() if not isinstance(file, dict)), None)
    if bad is not None:
        return f"files.{bad} is not a record"
    outside = next((name for name in result["files"] if not _is_inside(name)), None)
    return None if outside is None else f"files names {outside!r}, which is not inside the run's folder"


def _is_inside(name: str) -> bool:
    """Whether a file's name stays below the folder it is joined to, on any system."""
    path = PurePath(name)
    return bool(path.parts) and not PureWindowsPath(name).anchor and ".." not in path.parts and "\0" not in name
