"""A finished run brought back to life from its folder: the same backbone, the saved weights, the same arithmetic."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from common.data.images import LabelledImages
from common.models import backbones
from common.models.backbones import Backbone, pooled_features
from common.runs.methods import method_spec
from common.runs.record import problem_with_restoring
from common.runs.result import RESULT_FILE, Run
from common.runtime.device import autocast, prepare_device
from common.runtime.errors import UserError
from common.runtime.files import sha256_of_file
from common.training.features import Extractor
from common.training.inputs import Inputs
from common.training.methods import IMPLEMENTATIONS, new_method
from common.training.methods.base import Method
from common.training.predict import predict


@dataclass(frozen=True)
class RestoredModel:
    """The model of a finished run, in eval mode, with the method that made it and what it reads."""

    run: Run
    method: Method
    backbone: Backbone
    model: nn.Module
    inputs: Inputs

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the logits."""
        return self.run.result.data.classes

    def logits(self, images: LabelledImages, desc: str) -> np.ndarray:
        """Return the logits (N, C) float32, in the batches and the precision that the run itself was scored in."""
        batch_size = self.run.result.config["batch_size"]
        return predict(self.model, self.inputs.loader(images, desc), batch_size=batch_size, desc=desc)

    def features(self, images: LabelledImages, desc: str) -> np.ndarray:
        """Return the pooled features (N, width) float32 of ``images``: what the run's classifier reads."""
        loader, batch_size = self.inputs.loader(images, desc), self.run.result.config["batch_size"]
        if self.inputs.reads_features:
            return predict(nn.Identity(), loader, batch_size=batch_size, desc=desc)
        module, precision = self.method.plain(self.backbone, self.model), self.inputs.extractor.precision

        def pooled(batch: torch.Tensor) -> torch.Tensor:
            with autocast(batch.device, precision):
                return pooled_features(module, batch)

        return predict(pooled, loader, batch_size=batch_size, desc=desc)


def restore_run(run: Run, *, weights: str | None, device: torch.device, workers: int | None) -> RestoredModel:
    """Rebuild a run's model from its folder alone, and from the backbone's weights that it names.

    Args:
        weights: where the backbone's weights lie now, if not where they were in training.
        workers: processes that decode images, None to choose them from the data and the machine.

    Raises:
        UserError: a file of the run is damaged, or the backbone's weights are missing or not those of the run.
    """
    result = run.result
    if problem := problem_with_restoring(result):
        raise UserError(f"{str(run.folder / RESULT_FILE)!r}: {problem}; train the run again")
    method = _method_of(run)
    _check_files(run)
    backbone = _load_backbone(run, method, weights)
    config, precision = result.config, result.config["precision"]
    prepare_device(device, deterministic=config["deterministic"])
    model = method.build(backbone, len(result.data.classes), seed=run.seed, precision=precision, device=device)
    method.load(model, run.folder)
    extractor = Extractor(backbone, config["resize"], device, precision, config["compile"], workers)
    inputs = Inputs(extractor, method_spec(result.method).reads_features, config["batch_size"])
    return RestoredModel(run, method, backbone, model.eval(), inputs)


def _method_of(run: Run) -> Method:
    try:
        return new_method(run.result.method, run.result.method_settings)
    except (UserError, KeyError, TypeError) as error:
        path = str(run.folder / RESULT_FILE)
        raise UserError(
            f"{path!r}: the settings of its method cannot be used ({error}); train the run again"
        ) from error


def _load_backbone(run: Run, method: Method, weights: str | None) -> Backbone:
    """Return the backbone of a run, with the very weights it was trained on (else UserError) or that it saved."""
    result, is_saved = run.result, weights is None and method.saves_backbone
    source = str(run.folder / method.weight_files[0]) if is_saved else weights or result.config["weights"]
    backbone = backbones.load(result.backbone, weights=source, image_size=result.data.image_size)
    if not is_saved and backbone.sha256 != (expected := result.model.weights.sha256):
        raise UserError(
            f"{str(run.folder)!r} was trained on other weights of {backbone.tag!r} than {backbone.source!r} "
            f"(SHA-256 {expected[:12]}... there, {backbone.sha256[:12]}... here); name the right file with `weights`"
        )
    return backbone


def _check_files(run: Run) -> None:
    """Refuse a run whose weights are missing, damaged, or not those that its result describes (UserError)."""
    files = run.result.files
    for name in dict.fromkeys([*IMPLEMENTATIONS[run.result.method].weight_files, *files]):
        path = run.folder / name
        try:
            is_whole = name in files and sha256_of_file(path) == files[name].sha256
        except OSError as error:
            raise UserError(f"cannot read {str(path)!r}: {error.strerror}; train the run again") from error
        if not is_whole:
            raise UserError(f"{str(path)!r} is not the file that the run wrote; restore it, or train the run again")
