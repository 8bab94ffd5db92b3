"""A finished run's model as one file for other programs: a timm checkpoint, a torch.export program, or ONNX."""

import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from common.data.transforms import Transform
from common.models.weights import state_file
from common.runtime.errors import UserError, shown
from common.runtime.files import write_atomically
from common.training.restore import RestoredModel

OPSET = 18  # of ONNX; the first whose Resize can shrink without aliasing
MOST_ONNX_BYTES = 2**31  # what protobuf, ONNX's file format, can hold


class WithPreprocessing(nn.Module):
    """A classifier that prepares its images itself: uint8 RGB (N, H, W, 3) of any one size -> probabilities (N, C).

    Resized in float32 and rounded after each axis, as PyTorch's kernel for uint8 does in ``data.transforms.resize``;
    that one's weights have 16 bits, so that few pixels differ by one of 255 steps.
    """

    def __init__(self, classifier: nn.Module, transform: Transform) -> None:
        super().__init__()
        self.classifier, self.transform = classifier, transform
        self.register_buffer("mean", torch.tensor(transform.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(transform.std).view(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the probabilities (N, C) float32 of uint8 images (N, H, W, 3)."""
        pixels = self._resized(images.permute(0, 3, 1, 2).float())  # (N, 3, S, S)
        return self.classifier((pixels / 255 - self.mean) / self.std).softmax(-1)

    def _resized(self, pixels: torch.Tensor) -> torch.Tensor:
        size, (height, width) = self.transform.size, pixels.shape[-2:]
        if self.transform.resize == "squash":
            return self._interpolated(pixels, (size, size))
        shorter, target = torch.sym_min(height, width), int(size / self.transform.crop_pct)
        pixels = self._interpolated(pixels, (height * target // shorter, width * target // shorter))
        for axis in (2, 3):
            margin = pixels.shape[axis] - size
            pixels = pixels.narrow(axis, (margin + margin % 4 // 3) // 2, size)  # half of it, a half to the even number
        return pixels

    def _interpolated(self, pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        for sides in ((pixels.shape[-2], size[1]), size):
            pixels = functional.interpolate(pixels, sides, mode=self.transform.interpolation, antialias=True)
            pixels = pixels.round().clamp(0, 255)
        return pixels


def export(model: RestoredModel, path: Path, *, with_preprocessing: bool = False) -> list[str]:
    """Write ``model`` to ``path`` in the format that its ending names, and return lines on how to use the file.

    Raises:
        UserError: the format cannot hold the model, a package is missing, or ``path`` cannot be written.
    """
    content, usage = FORMATS[path.suffix](model, path, with_preprocessing)
    write_atomically(path, content)
    transform = model.inputs.extractor.transform
    prepared = f"RGB / 255, resized to {transform.size}x{transform.size}, minus mean {transform.mean}, over std "
    return [
        f"wrote {path} ({len(content) / 1e6:.1f} MB)",
        usage,
        "input: " + ("RGB, uint8, of any one size" if with_preprocessing else f"{prepared}{transform.std}"),
        f"classes: {', '.join(map(shown, model.classes))}",
    ]


def _timm_checkpoint(model: RestoredModel, path: Path, with_preprocessing: bool) -> tuple[bytes, str]:
    content = state_file(model.method.timm_state(model.backbone, model.model))
    arguments = f"num_classes={len(model.classes)}, checkpoint_path={str(path)!r}{_image_size(model)}"
    return content, f"load it with timm.create_model({model.backbone.tag!r}, {arguments})"


def _image_size(model: RestoredModel) -> str:
    """Return the argument that a ViT at another than its own image size needs."""
    import timm

    own = timm.get_pretrained_cfg(model.backbone.tag).input_size[-1]
    needed = hasattr(model.backbone.module, "set_input_size") and own != model.backbone.image_size
    return f", img_size={model.backbone.image_size}" if needed else ""


def _torch_program(model: RestoredModel, path: Path, with_preprocessing: bool) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    torch.export.save(_program(model, with_preprocessing), buffer)
    call = f"torch.export.load({str(path)!r}).module()(images)"
    return buffer.getvalue(), f"load it with {call}  # {_signature(model, with_preprocessing)}"


def _onnx(model: RestoredModel, path: Path, with_preprocessing: bool) -> tuple[bytes, str]:
    try:
        import onnx  # noqa: F401, what torch.onnx needs
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"`export` FILE.onnx needs {error.name}: pip install onnx onnxscript") from error
    plain = model.method.plain(model.backbone, model.model)
    if sum(tensor.nbytes for tensor in plain.state_dict().values()) >= MOST_ONNX_BYTES:
        raise UserError("the model is larger than the 2 GB that one ONNX file can hold; take `export` FILE.pt2")
    outputs = ["probabilities" if with_preprocessing else "logits"]
    options = {"dynamo": True, "opset_version": OPSET, "verbose": False}
    program = torch.onnx.export(
        _program(model, with_preprocessing), input_names=["images"], output_names=outputs, **options
    )
    program.model.metadata_props.update({name: json.dumps(value) for name, value in _metadata(model).items()})
    return program.model_proto.SerializeToString(), _onnx_usage(model, path, with_preprocessing)


def _metadata(model: RestoredModel) -> dict[str, Any]:
    """Return what the file says of itself; each value is stored as JSON."""
    transform, result = model.inputs.extractor.transform, model.run.result
    return {
        "classes": model.classes,
        "opset": OPSET,
        "backbone": result.backbone,
        "method": result.method,
        "dataset": result.dataset,
        "image_size": transform.size,
        "mean": transform.mean,
        "std": transform.std,
        "interpolation": transform.interpolation,
        "resize": transform.resize,
        "result_sha256": result.sha256,
    }


def _onnx_usage(model: RestoredModel, path: Path, with_preprocessing: bool) -> str:
    session = f"onnxruntime.InferenceSession({str(path)!r})"
    if not with_preprocessing:
        signature = _signature(model, with_preprocessing)
        return f"score with {session}.run(None, {{'images': images}})[0]  # {signature}, float32 NumPy arrays"
    lines = (
        "import json, sys, numpy, onnxruntime",
        "from PIL import Image",
        f"session = {session}",
        "image = numpy.asarray(Image.open(sys.argv[1]).convert('RGB'))",
        "scores = session.run(None, {'images': image[None]})[0][0]",
        "classes = json.loads(session.get_modelmeta().custom_metadata_map['classes'])",
        "print(classes[scores.argmax()], scores.max())",
    )
    return f"score an image with: {shlex.join(['python', '-c', '; '.join(lines)])} IMAGE"


def _program(model: RestoredModel, with_preprocessing: bool) -> torch.export.ExportedProgram:
    """Return the model as a graph in float32, for any number of images."""
    plain, size = model.method.plain(model.backbone, model.model).cpu(), model.backbone.image_size
    batch = torch.export.Dim("batch", min=1)
    if with_preprocessing:
        plain = WithPreprocessing(plain, model.inputs.extractor.transform).eval()
        images = torch.zeros(2, size + 1, size + 2, 3, dtype=torch.uint8)
        shapes = {0: batch, 1: torch.export.Dim("height", min=2), 2: torch.export.Dim("width", min=2)}
    else:
        images, shapes = torch.zeros(2, 3, size, size), {0: batch}
    return torch.export.export(plain, (images,), dynamic_shapes=(shapes,))


def _signature(model: RestoredModel, with_preprocessing: bool) -> str:
    size, classes = model.backbone.image_size, len(model.classes)
    shape = "(N, H, W, 3)" if with_preprocessing else f"(N, 3, {size}, {size})"
    return f"{shape} -> (N, {classes})"


FORMATS: dict[str, Callable[[RestoredModel, Path, bool], tuple[bytes, str]]] = {
    ".safetensors": _timm_checkpoint,
    ".pt2": _torch_program,
    ".onnx": _onnx,
}
"""By the file's ending: its content, and a line on how to use it; only programs can hold the preprocessing."""
