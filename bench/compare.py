"""Measure what this repository's ways of training cost against the usual ones, both sides in turn on this machine.

    python bench/compare.py                                           # everything: hours on two CPU cores
    python bench/compare.py --only input start plots                  # the quick ones: minutes
    python bench/compare.py --only head --backbones efficientnet_b0.ra_in1k --repeats 1

head: the CNN head as a whole job against the recipe of bench/textbook.py; cache: the same with features kept; sweep:
eight learning rates against one; vit: a LoRA step against transformers + PEFT, and against the machine's peak; methods:
a step of LoRA on all linear layers, LoRA on a CNN and full fine-tuning against timm + PEFT; input: images to batches
against Pillow; start: --help; plots: the figures of 45 runs; grid: the demo, its runs forked against each started anew;
busy: a step beside another busy process; memory: peak against the number of images; folder: image folders read for the
first time and again; precision: accuracy in bfloat16 against float32; profile: where the time of a step goes.

The sides alternate, warm-up is outside the clock, and every measured value goes to bench/results.json after each
measurement; the next call adds to it. Backbones have random weights (but for precision), so that nothing but data is
downloaded. Expected: of each pair min, median and max of both sides and of their ratio, which says how many times as
long the second side takes; what it gave on one machine stands in bench/README.md.
"""

import datetime
import importlib.util
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import cli  # noqa: E402, found once its folder is on the path
from common.config import as_record, require  # noqa: E402, found once its folder is on the path
from common.data.registry import DATASET_CHOICES  # noqa: E402, found once its folder is on the path
from common.runtime.errors import UserError  # noqa: E402, found once its folder is on the path

Name = Literal[
    *("head", "cache", "sweep", "vit", "methods", "input", "start"),
    *("plots", "grid", "busy", "memory", "folder", "precision", "profile"),
]


@dataclass(frozen=True)
class Config:
    """Which measurements, and how large; the defaults are the ones to quote."""

    only: tuple[Name, ...] = ()
    """Measurements to make (default: all)."""
    repeats: int = 3
    """Pairs of each comparison."""
    dataset: Annotated[str, tyro.conf.arg(help=f"head, cache, sweep: {DATASET_CHOICES}")] = "cifar10"
    data_dir: Path = Path("data")
    """Where the named data sets lie, or are downloaded to."""
    train_images: int = 2_000
    """head, cache, sweep: training images, a tenth of them for validation."""
    test_images: int = 500
    """head, cache, sweep: test images."""
    epochs: int = 5
    """head, cache, sweep: passes over the training images."""
    long_epochs: int = 20
    """head: measured here as well, and scaled for the textbook."""
    backbones: tuple[str, ...] = ("resnet50.tv2_in1k", "efficientnet_b0.ra_in1k")
    """head, cache, profile: timm names with their weight tags; sweep takes the last of them."""
    vit: str = "vit_base_patch16_224.augreg_in1k"
    """vit, profile: a timm VisionTransformer."""
    batch_size: int = 8
    """vit, profile: images in one step."""
    out: Path = Path("bench/results.json")
    """Where all measurements are kept."""

    def __post_init__(self) -> None:
        require(1 <= self.repeats <= 1_000, "repeats", self.repeats, "1 to 1,000")
        require(bool(self.dataset.strip()), "dataset", self.dataset, "a data set's name or an image folder")
        for flag in ("train_images", "test_images", "epochs", "batch_size"):
            value = getattr(self, flag)
            require(1 <= value <= 1_000_000, flag, value, "at least 1")
        require(self.long_epochs >= self.epochs, "long_epochs", self.long_epochs, "--epochs or more")
        require(len(self.backbones) > 0, "backbones", self.backbones, "one or more timm model names")
        require(not self.out.is_dir(), "out", str(self.out), "a file")

    @property
    def names(self) -> tuple[str, ...]:
        """The measurements to make, in the order in which they are listed above."""
        known = Name.__args__
        return tuple(name for name in known if name in self.only) if self.only else known


def main(config: Config) -> None:
    from bench import measuring, record
    from common.runtime.device import resolve_device, resolve_precision
    from common.runtime.environment import describe_environment

    # Machine: measurements of another one are not overwritten
    device = resolve_device("auto")
    environment = describe_environment(device, resolve_precision("auto", device))
    measured = record.read(config.out, environment)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        scratch = Path(folder)

        # Data and packages: what is missing should be said before the hours, not after
        sizes = _prepare(config, scratch)

        # Measure, each kept as soon as it is finished
        done: dict[str, Any] = {}
        for number, name in enumerate(config.names, 1):
            print(f"{name} ({number} of {len(config.names)})", flush=True)
            done[name] = _measurement(name, config, scratch, done)()
            about = {
                "settings": as_record(config) | {"images": sizes},
                "command": shlex.join(["python", *sys.argv]),
            }
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            measured[name] = {**done[name], **about, "environment": environment | {"created": created}}
            record.write(config.out, measured)
            for found in done[name]["records"]:
                print(*measuring.lines(found), sep="\n")
            print(*(f"  note: {note}" for note in done[name]["notes"]), sep="\n", flush=True)
    print(f"wrote {config.out}")


def _prepare(config: Config, scratch: Path) -> dict[str, int] | None:
    """Find the data and packages of all measurements; write the images of the whole jobs, and return how many."""
    from bench import samples
    from common.data.dataset import check_dataset, load_dataset
    from common.models.backbones import resolve_tag

    names = set(config.names)
    if "vit" in names and not importlib.util.find_spec("transformers"):
        raise UserError("the measurement vit needs transformers: pip install -r requirements-dev.txt")
    for name, dataset in (("memory", "mnist"), ("precision", "fashion_mnist")):
        if name in names:
            load_dataset(dataset, data_dir=config.data_dir)
    for tag in (*config.backbones, config.vit):
        resolve_tag(tag)
    if not names & {"head", "cache", "sweep"}:
        return None
    check_dataset(config.dataset)
    sizes = samples.write(
        scratch / "sample",
        dataset=config.dataset,
        data_dir=config.data_dir,
        train_images=config.train_images,
        test_images=config.test_images,
    )
    counts = ", ".join(f"{count:,} {split}" for split, count in sizes.items())
    print(f"images: {config.dataset}, {counts}, as PNG files for both sides", flush=True)
    samples.write_few(scratch / "few", scratch / "sample")
    return sizes


def _measurement(name: str, config: Config, scratch: Path, done: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Return the measurement ``name``; ``done`` holds what this call has measured so far."""
    from bench import busy, folders, head_jobs, inputs, memory, method_steps, precision, profiles, shell, vit_step
    from common.models.backbones import resolve_tag

    own = scratch / name
    own.mkdir()
    jobs = {"sample": scratch / "sample", "few": scratch / "few", "scratch": own, "epochs": config.epochs}
    repeats, tags = config.repeats, tuple(map(resolve_tag, config.backbones))
    vit = resolve_tag(config.vit)
    textbook = done["head"]["textbook_reports"] if "head" in done else {}
    return {
        "head": lambda: head_jobs.whole(**jobs, tags=tags, long_epochs=config.long_epochs, repeats=repeats),
        "cache": lambda: head_jobs.cached(**jobs, tags=tags, repeats=repeats, textbook=textbook),
        "sweep": lambda: head_jobs.sweep(**jobs, tag=tags[-1], repeats=repeats),
        "vit": lambda: vit_step.compare(tag=vit, batch_size=config.batch_size, repeats=repeats),
        "methods": lambda: method_steps.compare(vit=vit, cnns=tags, batch_size=config.batch_size, repeats=repeats),
        "input": lambda: inputs.compare(images=256, repeats=repeats),
        "start": lambda: shell.start(repeats=repeats),
        "plots": lambda: shell.plots(own, repeats=repeats),
        "grid": lambda: shell.grid(own, repeats=repeats),
        "busy": lambda: busy.compare(repeats=repeats),
        "memory": lambda: memory.measure(own, data_dir=config.data_dir),
        "folder": lambda: folders.compare(own),
        "precision": lambda: precision.compare(own, data_dir=config.data_dir),
        "profile": lambda: profiles.compare(vit=vit, cnns=tags, batch_size=config.batch_size),
    }[name]


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
