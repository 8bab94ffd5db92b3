"""The fields of ``result.json`` as typed values, and what must agree among them."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePath, PureWindowsPath
from typing import Annotated, Any, Literal

from common.runs.methods import METHODS
from common.runs.schema import REST, Within, typed

SCHEMA_VERSION = 1
Number = Annotated[float, Within(-1e300, 1e300)]
Amount = Annotated[float, Within(0, 1e300)]
Fraction = Annotated[float, Within(0, 1)]
Count = Annotated[int, Within(0, 2**63)]


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The images of a run; ``mean`` and ``std`` are of channel values in 0..1; ``read_from`` says what they lay in."""

    classes: list[str]
    num_train: Count
    num_val: Count
    num_test: Count
    image_size: Annotated[int, Within(16, 4096)] | None = None
    mean: list[Number] = field(default_factory=list)
    std: list[Number] = field(default_factory=list)
    interpolation: str | None = None
    fingerprint: str
    read_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class WeightsRecord:
    """Where the backbone's weights came from: ``pretrained``, ``random`` or a file; the hash is over its tensors."""

    source: str
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The size of a model and what its method was set to; operations are of one image, a multiply-add is 2.

    ``forward_flops``: of the model as it is used, merged. ``step_flops``: of what is trained in a step, forward and
    backward; of a frozen backbone's head without the backbone. None in records that are older.
    """

    total_params: Count
    trainable_params: Count
    trainable_percent: Annotated[float, Within(0, 100)]
    forward_flops: Amount | None
    step_flops: Amount | None = None
    weights: WeightsRecord
    lora: dict[str, Any] | None
    method_settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch: mean cross-entropies in nats, shares of right images, seconds of its steps."""

    epoch: Count
    lr: Amount | None = None
    train_loss: Number
    train_accuracy: Fraction
    val_loss: Number
    val_accuracy: Fraction
    seconds: Amount | None = None


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """The scores of one class, None where it has no image (``auc``: also where it has all of them)."""

    name: str = field(metadata={"json": "class"})
    precision: Fraction | None
    recall: Fraction | None
    f1: Fraction | None
    auc: Fraction | None
    support: Count


@dataclass(frozen=True, kw_only=True)
class SplitMetrics:
    """The metrics of one split: a number or None by name, a row a class, counts (true x predicted)."""

    scores: dict[str, Number | None] = field(metadata=REST)
    per_class: list[ClassRow]
    confusion_matrix: list[list[Count]]


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """What a run cost.

    ``train_seconds``: the steps of all learning rates, with the waiting for their images. ``feature_seconds``: making
    the features that training read, when they were made, also where they were found in the cache; None without any.
    ``feature_cache_hit``: all were found there, those of the test split included. ``eval_seconds``: the test split's
    prediction, with making its features when they were made. ``train_flops``: the operations of all steps of all
    learning rates, and of the training images' features, once or, where they are augmented, at each step.
    ``saved_bytes``: the trained weights alone. ``backbone_bytes``: the weights that these need beside them; 0 where the
    trained weights are the whole model. Both None in records that are older.
    """

    train_seconds: Amount
    feature_seconds: Amount | None
    feature_cache_hit: bool | None = None
    eval_seconds: Amount | None
    train_images_per_second: Amount | None
    train_flops: Amount | None = None
    peak_host_bytes: Count | None
    peak_device_bytes: Count | None
    saved_bytes: Count
    backbone_bytes: Count | None = None

    @property
    def deployed_bytes(self) -> int | None:
        """Bytes of all that is needed to use the model: the backbone's weights, and what was trained."""
        return None if self.backbone_bytes is None else self.backbone_bytes + self.saved_bytes

    @property
    def total_train_seconds(self) -> float:
        """Seconds of training with those of making its features."""
        return self.train_seconds + (self.feature_seconds or 0.0)


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file of a run's folder."""

    sha256: str
    bytes: Count


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One finished run, field by field as in ``result.json``; ``sha256`` is the hash of all its other fields."""

    schema_version: Count = SCHEMA_VERSION
    method: str
    dataset: str
    backbone: str
    seed: Count
    command: str = ""
    config: dict[str, Any]
    data: DataRecord
    model: ModelRecord
    history: list[EpochRow]
    trials: list[dict[str, Any]]
    best_epoch: Count | None
    val: SplitMetrics
    test: SplitMetrics | None
    """None where a model was trained on all images, and none was kept for a test."""
    efficiency: Efficiency
    environment: dict[str, Any]
    skipped_images: list[str] = field(default_factory=list)
    notes: list[str]
    files: dict[str, FileRecord] = field(default_factory=dict)
    sha256: str = ""

    @property
    def kept_train_seconds(self) -> float:
        """Seconds of the training that was kept, without those at other learning rates, and of making its features."""
        steps = sum(row.seconds or 0.0 for row in self.history) if self.history else self.efficiency.train_seconds
        return steps + (self.efficiency.feature_seconds or 0.0)

    @property
    def method_settings(self) -> dict[str, Any]:
        """The settings that only its method has; older records have LoRA's alone, and all of them in ``config``."""
        own = {name: self.config[name] for name in METHODS[self.method].own_settings if name in self.config}
        return own | (self.model.lora or {}) | self.model.method_settings


@dataclass(frozen=True, kw_only=True)
class RestoreSettings:
    """The settings without which a run's model and its data cannot be made again."""

    dataset: str
    dataset_name: str | None
    data_dir: str
    weights: str
    resize: Literal["squash", "crop"]
    precision: Literal["fp32", "bf16", "fp16"]
    compile: Literal["auto", "off"]
    deterministic: bool
    batch_size: Annotated[int, Within(1, 1_000_000)]
    workers: Annotated[int, Within(0, 1024)] | None
    val_fraction: Fraction
    split_seed: Count
    train_limit: Count | None
    test_limit: Count | None
    skip_damaged: bool
    folds: Annotated[int, Within(1, 1_000)] = 1
    fold: Count = 0
    all_images: bool = False


def problem_with_restoring(result: RunResult) -> str | None:
    """Say what a record lacks for its model to be made again, or return None; its method judges its own settings."""
    if result.data.image_size is None or result.model.weights.sha256 is None:
        return "data.image_size or model.weights.sha256 is missing"
    try:
        typed(result.config, RestoreSettings, ".config")
    except ValueError as error:
        return str(error)
    return None


def disagreement(result: RunResult) -> str | None:
    """Say which parts of a record of the right types contradict each other, or return None."""
    data, epochs = result.data, [row.epoch for row in result.history]
    if result.method not in METHODS:
        return f"method is {result.method!r}, and this code knows {', '.join(METHODS)}"
    if len(set(data.classes)) < max(2, len(data.classes)):
        return "data.classes are fewer than two, or repeated"
    if result.test is None and data.num_test:
        return "test is null"
    for split, size in (("val", data.num_val), ("test", data.num_test))[: 2 if result.test else 1]:
        if problem := _split_problem(getattr(result, split), data.classes, size):
            return f"{split}.{problem}"
    if any(later <= earlier for earlier, later in pairwise(epochs)):
        return "the epochs of history do not increase"
    if result.best_epoch not in (epochs or [None]):
        return "best_epoch is not in the history"
    if not isinstance(result.environment.get("created"), str):
        return "environment.created is missing"
    outside = next((name for name in result.files if not _is_inside(name)), None)
    return None if outside is None else f"files names {outside!r}, which is not inside the run's folder"


def _split_problem(split: SplitMetrics, classes: list[str], size: int) -> str | None:
    """Say what contradicts itself in the metrics of a split of ``size`` images, or return None."""
    matrix = split.confusion_matrix
    if [row.name for row in split.per_class] != classes:
        return "per_class does not list data.classes"
    if [len(row) for row in matrix] != [len(classes)] * len(classes):
        return f"confusion_matrix is not {len(classes)} x {len(classes)}"
    if [sum(row) for row in matrix] != [row.support for row in split.per_class]:
        return "confusion_matrix and per_class count different images"
    if sum(map(sum, matrix)) != size or not size:
        return "confusion_matrix does not count its split's images"
    right, accuracy = sum(row[index] for index, row in enumerate(matrix)), split.scores.get("accuracy")
    if accuracy is None or abs(accuracy - right / size) > 1e-9:
        return "accuracy is not that of confusion_matrix"
    return None


def _is_inside(name: str) -> bool:
    """Whether a file's name stays below the folder it is joined to, on any system."""
    path = PurePath(name)
    return bool(path.parts) and not PureWindowsPath(name).anchor and ".." not in path.parts and "\0" not in name
