"""A finished run brought back to life from its folder: the same backbone, the saved weights, the same arithmetic."""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.data.images import LabelledImages
from common.data.transforms import Transform
from common.models import backbones, heads, lora
from common.models.backbones import Backbone, pooled_features
from common.runs import schema
from common.runs.result import RESULT_FILE, Run
from common.runtime.errors import UserError
from common.runtime.files import sha256_of_file
from common.training.features import Extractor, extract
from common.training.loaders import FeatureLoader, ImageLoader
from common.training.predict import predict


class PlainClassifier(nn.Module):
    """Backbone and head as one float32 module: normalised images (B, 3, S, S) -> logits (B, C)."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(pooled_features(self.backbone, images))


@dataclass(frozen=True)
class RestoredModel:
    """The model of a finished run: ``model`` is a LoraViT, or the Head that reads the frozen backbone's features."""

    run: Run
    backbone: Backbone
    model: nn.Module
    device: torch.device
    transform: Transform
    workers: int | None

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the logits."""
        return self.run.result["data"]["classes"]

    @property
    def _config(self) -> dict:
        return self.run.result["config"]

    def logits(self, images: LabelledImages, desc: str) -> np.ndarray:
        """Return the logits (N, C) float32, in the batches and the precision that the run itself was scored in."""
        batch_size = self._config["batch_size"]
        if isinstance(self.model, lora.LoraViT):
            examples = ImageLoader(images, self.transform, self.device, self.workers)
            return predict(self.model, examples, batch_size=batch_size, desc=desc)
        with tempfile.TemporaryDirectory() as folder:
            features = extract(self._extractor(), images, desc, folder=Path(folder))
        examples = FeatureLoader(features.values.to(self.device), images.labels)
        return predict(self.model, examples, batch_size=batch_size, desc=desc)

    def plain(self) -> nn.Module:
        """Return images -> logits as one float32 module (a copy), adapters merged."""
        if isinstance(self.model, lora.LoraViT):
            return lora.merged(self.model)
        return PlainClassifier(copy.deepcopy(self.backbone.module), copy.deepcopy(self.model)).eval()

    def timm_state(self) -> dict[str, torch.Tensor]:
        """Return the state of a plain timm model with this run's classifier.

        Raises:
            UserError: the head has two layers, for which timm has no place.
        """
        if isinstance(self.model, lora.LoraViT):
            return lora.merged(self.model).state_dict()
        if self.model.hidden is not None:
            raise UserError(
                f"{str(self.run.folder)!r} has a head of two layers, which a plain timm model has no place for; "
                "export it with `export` FILE.pt2"
            )
        state = self.backbone.module.state_dict()
        weight, bias = self.model.output.weight.detach(), self.model.output.bias.detach()
        if self._classifier_is_convolution():
            weight = weight[:, :, None, None]  # (C, width) -> (C, width, 1, 1)
        name = self.backbone.classifier
        return state | {f"{name}.weight": weight, f"{name}.bias": bias}

    def _classifier_is_convolution(self) -> bool:
        import timm

        with torch.device("meta"):
            module = timm.create_model(self.backbone.tag, num_classes=len(self.classes))
        return isinstance(module.get_submodule(self.backbone.classifier), nn.Conv2d)

    def _extractor(self) -> Extractor:
        return Extractor(
            backbone=self.backbone,
            transform=self.transform,
            device=self.device,
            precision=self._config["precision"],
            compile=self._config["compile"],
            workers=self.workers,
            fingerprint="",
        )


def restore_run(run: Run, *, weights: str | None, device: torch.device, workers: int | None) -> RestoredModel:
    """Rebuild a run's model from its folder alone, and from the backbone's weights that it names.

    Args:
        weights: where the backbone's weights lie now, if not where they were in training.

    Raises:
        UserError: a file of the run is damaged, or the backbone's weights are missing or not those of the run.
    """
    result = run.result
    if problem := schema.problem_with_rebuilding(result):
        raise UserError(f"{str(run.folder / RESULT_FILE)!r}: {problem}; train the run again")
    config, record = result["config"], result["model"]
    _check_files(run)
    backbone = backbones.load(
        result["backbone"], weights=weights or config["weights"], image_size=result["data"]["image_size"]
    )
    if backbone.sha256 != record["weights"]["sha256"]:
        raise UserError(
            f"{str(run.folder)!r} was trained on other weights of {backbone.tag!r} than {backbone.source!r} "
            f"(SHA-256 {record['weights']['sha256'][:12]}... there, {backbone.sha256[:12]}... here); "
            "name the right file with `weights`"
        )
    model = _lora_model(run, backbone, device) if record["lora"] else _head_model(run, backbone)
    return RestoredModel(run, backbone, model.to(device).eval(), device, backbone.transform(config["resize"]), workers)


def _lora_model(run: Run, backbone: Backbone, device: torch.device) -> nn.Module:
    settings = run.result["model"]["lora"]
    model = lora.attach(
        backbone,
        classes=len(run.result["data"]["classes"]),
        rank=settings["rank"],
        alpha=settings["alpha"],
        dropout=settings["dropout"],
        seed=run.seed,
        precision=run.result["config"]["precision"],
        device=device,
    )
    lora.load_adapter(model, run.folder / "adapter")
    return model


def _head_model(run: Run, backbone: Backbone) -> nn.Module:
    head = heads.new_head(
        backbone.module,
        backbone.width,
        len(run.result["data"]["classes"]),
        kind=run.result["method"].removeprefix("head_"),
        dropout=0.0,  # only training drops
        seed=run.seed,
    )
    heads.load_head(head, run.folder / "head.safetensors")
    return head


def _check_files(run: Run) -> None:
    """Refuse a run whose weights are missing, damaged, or not those that its result describes (UserError)."""
    files = run.result["files"]
    adapter = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
    for name in dict.fromkeys([*(adapter if run.result["model"]["lora"] else ("head.safetensors",)), *files]):
        path = run.folder / name
        try:
            whole = sha256_of_file(path) == files.get(name, {}).get("sha256")
        except OSError as error:
            raise UserError(f"cannot read {str(path)!r}: {error.strerror}; train the run again") from error
        if not whole:
            raise UserError(f"{str(path)!r} is not the file that the run wrote; restore it, or train the run again")
