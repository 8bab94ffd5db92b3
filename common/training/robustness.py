"""Finished runs on corrupted test images: each image goes through a frozen backbone once for all heads on it."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from common.data.corruptions import SEVERITIES, SMALLEST_SIDE, prepare
from common.data.images import LabelledImages
from common.evaluation.corruption_scores import read_kinds, score_kind, write_kinds
from common.runs.methods import method_spec
from common.runs.predictions import read_predictions
from common.runs.result import Run
from common.runtime.environment import cores
from common.runtime.errors import UserError
from common.training.predict import predict
from common.training.restore import RestoredModel, restore_run


def check_images(run: Run) -> None:
    """Refuse a run that kept no test images, or whose images are too small for the corruptions (UserError)."""
    if run.result.test is None:
        raise UserError(f"{str(run.folder)!r} has no test images to corrupt: it was trained on all")
    if (size := run.result.data.image_size) is not None and size < SMALLEST_SIDE:
        raise UserError(f"{str(run.folder)!r} has images of {size} pixels; corruptions need {SMALLEST_SIDE} or more")


def groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Return ``runs`` in groups that read the same features of the same images; a run that reads images is alone."""
    found = defaultdict(list)
    for run in runs:
        found[_inputs(run)].append(run)
    return list(found.values())


def _inputs(run: Run) -> Hashable:
    result, config = run.result, run.result.config
    if not method_spec(result.method).reads_features:
        return run.folder
    settings = [config.get(name) for name in ("resize", "precision", "compile")]
    weights, data, tested = result.model.weights.sha256, result.data, read_predictions(run.folder, result)
    images = (data.fingerprint, *data.classes, tested.indices.tobytes(), tested.labels.tobytes())
    return (result.backbone, weights, data.image_size, *settings, *images)


def restore_group(runs: Sequence[Run], **options: Any) -> list[RestoredModel]:
    """Restore the runs of a group with one backbone for all; ``options`` and errors are those of ``restore_run``."""
    models: list[RestoredModel] = []
    for run in runs:
        model = restore_run(run, **options)
        models.append(replace(model, backbone=models[0].backbone, inputs=models[0].inputs) if models else model)
    return models


def score_group(models: Sequence[RestoredModel], images: LabelledImages, kinds: tuple[str, ...]) -> None:
    """Score ``models``, a group of ``groups``, on ``images``, their test split, under each of ``kinds``, and print it.

    A kind that a run has already is not made again; the file of each run is written after each kind.
    """
    made_by = prepare(kinds)
    for kind in kinds:
        missing = [model for model in models if kind not in read_kinds(model.run, made_by)]
        if not missing:
            continue
        of_severities = [_logits(missing, images, kind, severity) for severity in SEVERITIES]
        for model, *logits in zip(missing, *of_severities, strict=True):
            scores = score_kind(logits, images.labels)
            write_kinds(model.run, {**read_kinds(model.run, made_by), kind: scores}, made_by)
            numbers = " ".join(f"{value:.3f}" for value in scores["accuracy"])
            print(f"{model.run.folder}: {kind}, severity 1 to 5: accuracy {numbers}", flush=True)


def _logits(models: Sequence[RestoredModel], images: LabelledImages, kind: str, severity: int) -> list[np.ndarray]:
    """Return the logits (N, C) of each model; what they read is made once."""
    first = models[0]
    extractor = first.inputs.extractor
    workers = cores() if extractor.workers is None else extractor.workers  # drawing takes longer than a small backbone
    inputs = replace(first.inputs, extractor=replace(extractor, workers=workers))

    def of_all(batch: torch.Tensor) -> torch.Tensor:
        return torch.cat([model.model(batch).float() for model in models], dim=1)

    loader = inputs.loader(images, "test", augment=f"{kind}-{severity}")
    batch_size = first.run.result.config["batch_size"]
    return np.split(predict(of_all, loader, batch_size=batch_size, desc=f"{kind} {severity}"), len(models), axis=1)
