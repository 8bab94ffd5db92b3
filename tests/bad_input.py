"""The table of wrong inputs: how to make each, and what must be said of it."""

import gzip
import json
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from fake_results import fake_run
from PIL import Image
from safetensors.torch import save_file

from common.runs.result import encode_record

SMALL = ["--weights=random", "--image-size=32", "--epochs=1", "--no-feature-cache", "--precision=fp32", "--workers=0"]
CNN, VIT = [*SMALL, "--backbone=test_resnet"], [*SMALL, "--backbone=test_vit"]
FOLDER = ["--dataset={here}/pets", "--val-fraction=0.3"]


@dataclass(frozen=True)
class Case:
    """A command line that must be refused: ``{here}`` is a folder that ``make`` has prepared."""

    name: str
    script: str
    argv: list[str]
    said: str
    make: Callable[[Path], object] = lambda here: None
    in_shell: bool = False  # also run as a process of its own


def pets(here: Path, *, classes: tuple[str, ...] = ("cat", "dog"), count: int = 6) -> Path:
    """Write a folder of small grey images, ``here/pets/<class>/<number>.png``."""
    for place, name in enumerate(classes):
        (here / "pets" / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng([place, number]).integers(0, 256, (9, 9), dtype=np.uint8)
            Image.fromarray(pixels).save(here / "pets" / name / f"{number}.png")
    return here / "pets"


def _with(*parts: str, content: bytes) -> Callable[[Path], object]:
    """Return a maker of the pets with one more file."""

    def make(here: Path) -> None:
        pets(here)
        (here / "pets").joinpath(*parts).write_bytes(content)

    return make


def _encoded(kind: str, size: tuple[int, int] = (64, 64)) -> bytes:
    import io

    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def bomb() -> bytes:
    """Return a PNG that says it has 90 million pixels."""
    content = bytearray(_encoded("PNG"))
    content[16:24] = struct.pack(">II", 10_000, 9_000)
    content[29:33] = struct.pack(">I", crc32(bytes(content[12:29])))
    return bytes(content)


def _idx(*, magic: int = 8, count: int = 40, labels: int = 10, cut: int = 0, pixels: int = 28) -> Callable:
    """Return a maker of MNIST's four files, of which the training pair is wrong in the given way."""

    def make(here: Path) -> None:
        raw = here / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for part in ("train", "t10k"):
            wrong = part == "train"
            image_header = struct.pack(
                ">BBBB3I", 0, 0, magic if wrong else 8, 3, count if wrong else 40, pixels, pixels
            )
            content = image_header + bytes(40 * pixels * pixels)
            (raw / f"{part}-images-idx3-ubyte").write_bytes(content[: len(content) - cut * wrong])
            values = bytes(number % (labels if wrong else 10) for number in range(40))
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 40) + values)

    return make


def _weights(change: Callable[[dict], dict]) -> Callable[[Path], object]:
    """Return a maker of a weights file of ``test_resnet`` after ``change``."""

    def make(here: Path) -> None:
        import timm

        state = timm.create_model("test_resnet", pretrained=False, num_classes=0).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in change(state).items()}, here / "w.safetensors")

    return make


def _poisoned(state: dict) -> dict:
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    return state | {name: torch.full_like(state[name], float("nan"))}


def _misshapen(state: dict) -> dict:
    name = next(name for name, tensor in state.items() if tensor.ndim == 4)
    return state | {name: state[name][..., :1, :1].clone()}


def _cut_weights(here: Path) -> None:
    _weights(dict)(here)
    content = (here / "w.safetensors").read_bytes()
    (here / "w.safetensors").write_bytes(content[: len(content) // 2])


def _foreign_architecture(here: Path) -> None:
    import timm

    save_file(timm.create_model("test_vit", pretrained=False, num_classes=0).state_dict(), here / "w.safetensors")


def _edited(**changes: object) -> Callable[[Path], object]:
    """Return a maker of a result whose record was edited and hashed again, as another program might write it."""

    def make(here: Path) -> None:
        folder = fake_run(here / "results", num_test=20).folder
        record = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_bytes(encode_record({**record, **changes}))

    return make


def _result(content: bytes) -> Callable[[Path], object]:
    def make(here: Path) -> None:
        (fake_run(here / "results", num_test=20).folder / "result.json").write_bytes(content)

    return make


def _link_loop(here: Path) -> None:
    (here / "pets").symlink_to(here / "pets")


def _unknown_test_class(here: Path) -> None:
    for part in ("train", "test"):
        pets(here / part)
        (here / part / "pets").rename(here / f"moved-{part}")
    (here / "pets").mkdir()
    (here / "moved-train").rename(here / "pets" / "train")
    (here / "moved-test").rename(here / "pets" / "test")
    shutil.copytree(here / "pets" / "test" / "cat", here / "pets" / "test" / "zebra")


def _truncated_gz(here: Path) -> None:
    _idx()(here)
    file = here / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes())[:-20])
    file.unlink()


def _empty_class(here: Path) -> None:
    (pets(here) / "eel").mkdir()


def _by_hand(here: Path) -> None:
    path = fake_run(here / "results", num_test=20).folder / "result.json"
    path.write_text(re.sub(r'"accuracy": [\d.]+', '"accuracy": 0.987', path.read_text(), count=1))


def _nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


PLOT = ["--results-dir={here}/results", "--figures-dir={here}/figures"]
RUN = "{here}/results/cifar10/resnet50.tv2_in1k-head_mlp/seed0"
MNIST = ["--dataset=mnist", "--data-dir={here}"]
OWN = ["--backbone=test_resnet", "--weights={here}/w.safetensors", "--dataset=digits", "--image-size=32"]

CASES = [
    # Image folders
    Case("no such folder", "train_cnn_head", [*CNN, "--dataset={here}/none"], "no data set"),
    Case("empty folder", "train_cnn_head", [*CNN, *FOLDER], "no class folders", lambda h: (h / "pets").mkdir()),
    Case("a file", "train_cnn_head", [*CNN, *FOLDER], "no data set", lambda h: (h / "pets").touch()),
    Case("a link to itself", "train_cnn_head", [*CNN, *FOLDER], "no data set", _link_loop),
    Case("one class", "train_cnn_head", [*CNN, *FOLDER], "only the class 'cat'", lambda h: pets(h, classes=("cat",))),
    Case("a class without images", "train_cnn_head", [*CNN, *FOLDER], "no usable image", _empty_class),
    Case("too few for a split", "train_cnn_head", [*CNN, *FOLDER], "add images", lambda h: pets(h, count=1)),
    Case("a class of test alone", "train_cnn_head", [*CNN, *FOLDER], "train lacks: 'zebra'", _unknown_test_class),
    Case("a text named .png", "train_cnn_head", [*CNN, *FOLDER], "'cat/x.png' (its content is none of",
         _with("cat", "x.png", content=b"hello\n" * 20)),
    Case("a cut JPEG", "train_cnn_head", [*CNN, *FOLDER], "'cat/x.jpg' (", _with("cat", "x.jpg",
         content=_encoded("JPEG")[:2_000])),
    Case("a cut PNG, to the ViT", "train_vit_lora", [*VIT, *FOLDER], "'dog/x.png' (", _with("dog", "x.png",
         content=_encoded("PNG")[:5_000])),
    Case("0 bytes", "train_cnn_head", [*CNN, *FOLDER], "'cat/x.png' (it has 0 bytes)", _with("cat", "x.png",
         content=b"")),
    Case("a decompression bomb", "train_cnn_head", [*CNN, *FOLDER], "'cat/x.png' (it has more than 89,478,485 pixels",
         _with("cat", "x.png", content=bomb())),
    Case("an EPS, which runs code", "train_cnn_head", [*CNN, *FOLDER], "'cat/x.png' (its content is none of",
         _with("cat", "x.png", content=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")),
    Case("a train limit below the classes", "train_cnn_head", [*CNN, *FOLDER, "--train-limit=1"], "--train-limit",
         pets),
    Case("a train limit above the data", "train_cnn_head", [*CNN, *FOLDER, "--train-limit=99"], "--train-limit", pets),
    Case("a test limit above the data", "train_vit_lora", [*VIT, *FOLDER, "--test-limit=99"], "--test-limit", pets),
    Case("a validation share of all", "train_cnn_head", [*CNN, FOLDER[0], "--val-fraction=0.99"], "--val-fraction",
         pets),
    # Named data sets
    Case("a wrong magic", "train_cnn_head", [*CNN, *MNIST], "train-images-idx3-ubyte' is damaged", _idx(magic=13)),
    Case("a wrong count", "train_cnn_head", [*CNN, *MNIST], "train-images-idx3-ubyte' is damaged", _idx(count=41)),
    Case("a huge count", "train_cnn_head", [*CNN, *MNIST], "train-images-idx3-ubyte' is damaged",
         _idx(count=2**32 - 1)),
    Case("a cut idx file", "train_cnn_head", [*CNN, *MNIST], "train-images-idx3-ubyte' is damaged", _idx(cut=1)),
    Case("a cut archive", "train_cnn_head", [*CNN, *MNIST], "is missing", _truncated_gz),
    Case("labels outside the classes", "train_cnn_head", [*CNN, *MNIST], "the label 11", _idx(labels=12)),
    Case("images without pixels", "train_cnn_head", [*CNN, *MNIST], "train-images-idx3-ubyte", _idx(pixels=0)),
    # Weights
    Case("a pickle", "train_cnn_head", OWN, "is not a whole safetensors file",
         lambda h: (h / "w.safetensors").write_bytes(pickle.dumps({"a": 1}))),
    Case("a pickle by name", "train_cnn_head", [*CNN[1:], "--dataset=digits", "--weights={here}/w.bin"],
         "a .safetensors file", lambda h: torch.save({}, h / "w.bin"), in_shell=True),
    Case("cut weights", "train_cnn_head", OWN, "is not a whole safetensors file", _cut_weights),
    Case("weights of another kind", "train_cnn_head", OWN, "does not hold weights of", _foreign_architecture),
    Case("weights with NaN", "train_cnn_head", OWN, "not finite", _weights(_poisoned)),
    Case("weights of other shapes", "train_cnn_head", OWN, "does not hold weights of", _weights(_misshapen)),
    Case("weights without a layer", "train_cnn_head", OWN, "does not hold weights of",
         _weights(lambda state: dict(list(state.items())[:-3]))),
    Case("a folder as weights", "train_cnn_head", OWN, "a file that exists", lambda h: (h / "w.safetensors").mkdir()),
    # Where results go
    Case("results in a file", "train_cnn_head", [*CNN, "--dataset=digits", "--results-dir={here}/file"], "file",
         lambda h: (h / "file").touch()),
    Case("a name too long", "train_cnn_head", [*CNN, "--dataset=digits", f"--run-name={'ä' * 200}"], "too long"),
    Case("too long a path", "train_cnn_head", [*CNN, f"--dataset={'x' * 5_000}"], "too long"),
    # Flags of every script
    Case("a batch of none", "train_cnn_head", ["--batch-size=0"], "--batch-size 0", in_shell=True),
    Case("a rate that is no number", "train_vit_lora", ["--lr=nan"], "--lr nan", in_shell=True),
    Case("a seed too large", "train_vit_lora", ["--seed=9223372036854775808"], "below 2**63", in_shell=True),
    Case("another device", "evaluate", ["{here}", "--device=tpu"], "--device 'tpu'", in_shell=True),
    Case("too many workers", "evaluate", ["{here}", "--workers=-1"], "--workers -1"),
    Case("no run", "evaluate", ["{here}/none"], "holds no finished run", in_shell=True),
    Case("two requests", "evaluate", ["{here}", "--predict=a", "--export=b.pt2"], "do not go together"),
    Case("labels nowhere", "evaluate", ["{here}", "--predict=a"], "--predict needs --out"),
    Case("an output that exists", "evaluate", ["{here}", "--export={here}/m.pt2"], "exists already",
         lambda h: (h / "m.pt2").touch()),
    Case("scores to a picture", "evaluate", ["{here}", "--dataset=digits", "--out=a.png"], "it must be FILE.json"),
    Case("weights that are none", "evaluate", ["{here}", "--weights=a.bin"], "a .safetensors file"),
    Case("no results", "plot_results", ["--results-dir={here}/none"], "no finished run matches", in_shell=True),
    Case("results are a file", "plot_results", ["--results-dir={here}/f"], "no finished run matches",
         lambda h: (h / "f").touch()),
    Case("a label without a run", "plot_results", [*PLOT, "--labels", "x"], "RUN=LABEL", in_shell=True),
    Case("a contrast of no run", "plot_results", [*PLOT, "--contrast", "x", "y"], "which is no run or label",
         lambda h: fake_run(h / "results", num_test=20)),
    Case("a margin of nothing", "plot_results", [*PLOT, "--margin=0"], "above 0 and below 100"),
    Case("a label of no run", "plot_results", [*PLOT, "--labels", "x=y"], "which is not a run",
         lambda h: fake_run(h / "results", num_test=20)),
    Case("a report of another kind", "plot_results", [*PLOT, "--report={here}/report.pdf"], "FILE.html, and no folder",
         lambda h: fake_run(h / "results", num_test=20)),
    Case("a report in a folder's place", "plot_results", [*PLOT, "--report={here}/r.html"], "FILE.html, and no folder",
         lambda h: ((h / "r.html").mkdir(), fake_run(h / "results", num_test=20))),
    Case("folds of no run", "plot_results", [*PLOT, "--folds=7"], "--folds 7: the runs that match '*' have 1",
         lambda h: fake_run(h / "results", num_test=20)),
    Case("figures in a file", "plot_results", [*PLOT[:1], "--figures-dir={here}/f"], "must be a folder",
         lambda h: ((h / "f").touch(), fake_run(h / "results", num_test=20)), in_shell=True),
    Case("a grid's figures in a file", "reproduce", ["--figures-dir={here}/f"], "must be a folder",
         lambda h: (h / "f").touch()),
    Case("a grid's results in a file", "reproduce", ["--results-dir={here}/f"], "must be a folder",
         lambda h: (h / "f").touch()),
    Case("a grid's margin", "reproduce", ["demo", "--margin", "-1"], "--margin -1"),
    Case("seeds below none", "reproduce", ["demo", "--seeds", "-1"], "--seeds -1", in_shell=True),
    Case("another profile's data", "reproduce", ["demo", "--datasets", "cifar10"], "among digits", in_shell=True),
    Case("no jobs at all", "reproduce", ["demo", "--jobs", "0"], "1 to 256", in_shell=True),
    Case("a comparison of nothing", "reproduce", ["compare"], "given for compare"),
    Case("a comparison of no folder", "reproduce", ["compare", "--dataset={here}/x", "--backbones", "demo_vit"],
         "no data set"),
    Case("damaged images of a comparison", "reproduce", ["compare", "--dataset={here}/pets", "--backbones", "demo_vit"],
         "1 of 13 images in", _with("cat", "bad.png", content=b"")),
    Case("a comparison on the old images", "reproduce", ["compare", "--dataset=cifar10", "--backbones", "demo_vit"],
         "was pretrained on the training images of cifar10"),
    Case("a comparison of two images", "reproduce", ["compare", "--dataset={here}/pets", "--backbones", "demo_vit"],
         "the smallest is 'cat' with 1", lambda h: pets(h, count=2)),
    Case("a comparison of no name", "reproduce", ["compare", "--dataset={here}/---", "--backbones", "demo_vit"],
         "rename it", lambda h: pets(h).rename(h / "---")),
    Case("a comparison of other kinds", "reproduce",
         ["compare", "--dataset=digits", "--backbones", "demo_vit", "swin_tiny_patch4_window7_224"],
         "--backbones 'swin_tiny_patch4_window7_224.ms_in1k' is not possible: it must be a convolutional network"),
    Case("a comparison of no model", "reproduce", ["compare", "--dataset=digits", "--backbones", "demo_vat"],
         "did you mean 'demo_vit'"),
    # Results that are not what a run wrote: left out with their name, and nothing is drawn or scored
    *(
        Case(f"{script}: {name}", script, PLOT if script == "plot_results" else [RUN], said, make)
        for script in ("plot_results", "evaluate")
        for name, said, make in (
            ("no JSON", "not valid JSON", _result(b"{")),
            ("JSON of another kind", "no schema_version", _result(b'{"accuracy": 0.99}')),
            ("another version", "schema_version 7", _edited(schema_version=7)),
            ("a better accuracy by hand", "was changed after it was written",
             _by_hand),
            ("no classes", "data.classes", _edited(data={"classes": [], "num_train": 1, "num_val": 0, "num_test": 0,
                                                          "fingerprint": ""})),
            ("files elsewhere", "not inside the run's folder",
             _edited(files={"../../secret": {"sha256": "", "bytes": 0}})),
            ("a nest of lists", "nested", _edited(config={"x": _nested(200)})),
        )
    ),
    Case("a result without its settings", "evaluate", [RUN], "config.dataset is missing",
         lambda h: fake_run(h / "results", num_test=20)),
]  # fmt: skip
