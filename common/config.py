"""What every training script's Config has beside its hyper-parameters, and the checks of both."""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from common.runtime.errors import UserError


def setting(default: Any, *, short: str | None = None, published: Any) -> Any:
    """Return a dataclass field of a setting that makes another result.

    Args:
        default: edit it at will: a run is named after what differs from ``published``.
        short: what stands before the value in a run's name; None where the name says it in another way.
        published: its value in the published recipe. For a setting that was added later: what all runs before had.
            Methods may differ (``runs.methods``).
    """
    return field(default=default, metadata={"published": published} | ({} if short is None else {"short": short}))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What goes in: the images, how they are split and prepared, and the weights of the backbone."""

    dataset_name: str | None = None
    """Name under which an image folder's results are kept (default: the folder's own name)."""
    data_dir: Path = Path("data")
    """Where the named data sets lie, or are downloaded to."""
    source: Literal["auto", "local", "hub", "torchvision"] = "auto"
    """What a named data set is read from: auto (what lies there, else a download), local (without a download), hub (the
    Hugging Face Hub's parquet files) or torchvision (its files)."""
    weights: str = setting("pretrained", published="pretrained")
    """Backbone weights: pretrained (timm's download), random (to try the code out), or a .safetensors file."""
    image_size: int | None = setting(None, short="px", published=None)
    """Side of the square input in pixels (default: 224 where the backbone was made for it, else its own)."""
    resize: Literal["squash", "crop"] = setting("squash", short="", published="squash")
    """squash: the whole image to a square, as in the study; crop: the shorter side, then the centre."""
    val_fraction: float = setting(0.1, short="val", published=0.1)
    """Share of the training split that is set aside for validation."""
    train_limit: int | None = setting(None, short="n", published=None)
    """Train on this many images, stratified, the same for every method and seed; validation shrinks with it."""
    test_limit: int | None = setting(None, short="test", published=None)
    """Test on this many images, stratified, the same for every method and seed."""
    split_seed: int = setting(0, short="split", published=0)
    """Seed of the validation split, limits and folds; apart from the seed, so that all seeds see the same images."""
    folds: int = setting(1, published=1)
    """For a folder without a test split: test on one of this many stratified parts, and train on the others."""
    fold: int = setting(0, published=0)
    """Which of the folds is the test part, from 0."""
    all_images: bool = setting(False, short="all-images", published=False)
    """For a folder without a test split: keep no test part, for a last model on all images. It has no test score."""
    skip_damaged: bool = setting(False, short="skip", published=False)
    """Leave unreadable images out and record them, instead of stopping with their list."""

    def __post_init__(self) -> None:
        require(_is_path_component(self.dataset_name), "dataset_name", self.dataset_name, "one plain folder name")
        require(self.image_size is None or 16 <= self.image_size <= 4096, "image_size", self.image_size, "16 to 4096")
        require(0 < self.val_fraction < 1, "val_fraction", self.val_fraction, "between 0 and 1, both excluded")
        for limit in ("train_limit", "test_limit"):
            value = getattr(self, limit)
            require(value is None or value >= 1, limit, value, "at least 1")
        require(0 <= self.split_seed < 2**63, "split_seed", self.split_seed, "0 or more, below 2**63")
        require(1 <= self.folds <= 1_000, "folds", self.folds, "1 (a single split) to 1000")
        require(0 <= self.fold < self.folds, "fold", self.fold, f"0 or more, and below `folds`, {self.folds}")
        is_tested = self.folds > 1 or self.test_limit is not None
        require(not (self.all_images and is_tested), "all_images", True, "given without `folds` and `test_limit`")
        check_weights(self.weights)


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """How one of several learning rates is chosen, on validation images."""

    extend: int = setting(0, published=0)
    """Further rates at most, each by a factor of 3, while the best one is the highest or the lowest."""
    tuned_on: int | None = setting(None, published=None)
    """Train the learning rate alone that the finished run of this seed chose among the same ones; with folds, its run
    of fold 0."""

    def __post_init__(self) -> None:
        require(0 <= self.extend <= 10, "extend", self.extend, "0 to 10")
        require(self.tuned_on is None or 0 <= self.tuned_on < 2**63, "tuned_on", self.tuned_on, "0 or more")


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """Where a run is computed, and where its files go."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", short="", published="auto")
    """Of the backbone: auto is bfloat16 where the hardware has it natively, else float32. Heads are float32. fp16 is
    for frozen backbones, on a GPU without bfloat16."""
    compile: Literal["auto", "off"] = setting("auto", short="compile", published="auto")
    """auto: torch.compile for the frozen backbone when enough images follow to repay it."""
    threads: int | None = None
    """CPU threads that PyTorch computes with (default: all cores; a resumed run keeps its own). Another number rounds
    differently."""
    workers: int | None = None
    """Processes that decode images (default: chosen from the data and the machine)."""
    feature_cache: bool = True
    """Keep the features of a frozen backbone and find them again in the next run."""
    cache_dir: Path | None = None
    """Features are kept in CACHE_DIR/features, what image folders hold in CACHE_DIR/folders (default: .cache in this
    repository); may be shared by many hosts."""
    data_index: Path | None = None
    """A file with what an image folder holds, as reproduce.py writes it for a cluster: the folder is not read again."""
    results_dir: Path = Path("results")
    """Results go to RESULTS_DIR/DATASET/RUN/seedN/."""
    run_name: str | None = None
    """Name of the run's folder (default: backbone, method, and each setting that differs from the published recipe)."""
    overwrite: bool = False
    """Train again and replace a finished run, once the new one is finished."""
    deterministic: bool = setting(False, short="deterministic", published=False)
    """On CUDA: only algorithms that give the same bits each time (slower). The CPU does so anyway."""

    def __post_init__(self) -> None:
        require(_is_path_component(self.run_name), "run_name", self.run_name, "one plain folder name")
        require(self.workers is None or 0 <= self.workers <= 1024, "workers", self.workers, "0 to 1024")
        require(self.threads is None or 1 <= self.threads <= 1024, "threads", self.threads, "1 to 1024")
        if self.cache_dir is not None:
            check_folder("cache_dir", self.cache_dir)
        if self.data_index is not None:
            require(self.data_index.is_file(), "data_index", str(self.data_index), "a file that exists")
        check_device(self.device)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig, TuningConfig, MachineConfig):
    """What all training scripts have beside their hyper-parameters.

    Each script's own Config says which of ``runs.methods.METHODS`` its ``method`` is.
    """

    method: ClassVar[str]

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        TuningConfig.__post_init__(self)
        MachineConfig.__post_init__(self)


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Refuse a setting's value with a UserError that names what is allowed, unless ``condition`` holds."""
    if not condition:
        raise UserError(f"`{name}` {value!r} is not possible: it must be {allowed}")


def check_recipe(config: Any) -> None:
    """Refuse hyper-parameters that are out of range, or do not go together.

    Raises:
        UserError: naming the setting and what is allowed.
    """
    require(bool(str(config.dataset).strip()), "dataset", config.dataset, "a data set's name or an image folder")
    require(bool(config.backbone.strip()), "backbone", config.backbone, "a timm model name")
    require(1 <= config.epochs <= 100_000, "epochs", config.epochs, "at least 1")
    require(1 <= config.batch_size <= 1_000_000, "batch_size", config.batch_size, "at least 1")
    several = isinstance(config.lr, tuple) and len(config.lr) > 0
    require(several, "lr", config.lr, "one or more learning rates, in the script a tuple such as (1e-4,)")
    for lr in config.lr:
        require(math.isfinite(lr) and lr > 0, "lr", lr, "positive and finite")
    require(len(set(config.lr)) == len(config.lr), "lr", config.lr, "free of repeated values")
    require(not config.extend or len(config.lr) > 1, "extend", config.extend, "0 where `lr` is a single rate")
    require(config.tuned_on != config.seed, "tuned_on", config.tuned_on, "another seed than the run's own")
    decay = config.weight_decay
    require(math.isfinite(decay) and decay >= 0, "weight_decay", decay, "0 or more, and finite")
    require(0 <= config.warmup < 1, "warmup", config.warmup, "0 or more and below 1")
    require(0 <= config.seed < 2**63, "seed", config.seed, "0 or more, below 2**63")


def _is_path_component(name: str | None) -> bool:
    if name is None:
        return True
    return bool(name.strip()) and name[0] not in ".-" and not re.search(r"[/\\\x00-\x1f]", name) and len(name) <= 200


def check_device(name: str) -> None:
    """Refuse what is no device's name; whether the machine has it is asked later."""
    require(bool(re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name)), "device", name, "auto, cpu, cuda, cuda:N or mps")


def check_folder(name: str, folder: Path) -> None:
    """Refuse for output what exists and is no folder, before any work is done."""
    require(folder.is_dir() or not folder.exists(), name, str(folder), "a folder")


def check_weights(weights: str) -> None:
    """Refuse weights that are neither ``pretrained`` nor ``random`` nor an existing .safetensors file."""
    if weights in ("pretrained", "random"):
        return
    path = Path(weights)
    require(path.suffix == ".safetensors", "weights", weights, "pretrained, random or a .safetensors file")
    require(path.is_file(), "weights", weights, "pretrained, random or a file that exists")


def as_flags(config: Any) -> list[str]:
    """Return the command line that gives ``config``: every field of its own class, and what differs from a default.

    A field that is None is left out: no flag stands for it, and None is its default.
    """
    own = type(config).__annotations__
    flags = []
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if value is None or (each.name not in own and value == each.default):
            continue
        name = each.name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return flags


def as_record(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON-able values: paths as strings, tuples as lists."""
    record = dataclasses.asdict(config)
    return {
        key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for key, value in record.items()
    }
