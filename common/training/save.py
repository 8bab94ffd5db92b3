"""The end of a run: score it, write its folder, say what came out."""

import shlex
import sys
from pathlib import Path

import torch

from common.evaluation import metrics
from common.evaluation.metrics import scores_in_words
from common.models import complexity
from common.runs.folder import finish_run_folder
from common.runs.methods import method_spec
from common.runs.predictions import PREDICTIONS_FILE, npz_bytes
from common.runs.record import DataRecord, Efficiency, EpochRow, ModelRecord, RunResult, SplitMetrics, WeightsRecord
from common.runs.result import RESULT_FILE
from common.runs.schema import typed
from common.runtime.device import peak_memory
from common.runtime.environment import describe_environment
from common.training.loaders import FeatureLoader
from common.training.model_card import card_file, model_card
from common.training.sweep import FitResult
from common.training.task import Evaluation, Task


def save_run(task: Task, fitted: FitResult, evaluation: Evaluation, notes: list[str]) -> None:
    """Score validation and test, write the run's folder at once, and print what a person wants to know.

    Raises:
        UserError: the disk is full, or the logits are not finite; an earlier result is as it was.
    """
    weights = task.method.files(task.model)
    result = build_result(task, fitted, evaluation, notes, saved_bytes=sum(map(len, weights.values())))
    files = weights | {PREDICTIONS_FILE: encode_predictions(task, evaluation)}
    card = {card_file(task.method): model_card(result, task.backbone, task.method, task.model)}
    finish_run_folder(task.run.folder, files, result, to_edit=card)
    _print_summary(result)
    for name in (*files, *card, RESULT_FILE):
        print(f"wrote {task.run.folder.path / name}")


def build_result(
    task: Task, fitted: FitResult, evaluation: Evaluation, notes: list[str], *, saved_bytes: int
) -> RunResult:
    """Return the record of a run, scored; ``saved_bytes`` are those of its trained weights.

    Raises:
        UserError: the logits are not finite.
    """
    run, dataset, model = task.run, task.dataset, _model_record(task)
    val, val_notes = metrics.score(evaluation.val_logits, dataset.val.labels, dataset.classes)
    test, test_notes = None, []
    if len(dataset.test):
        test, test_notes = metrics.score(evaluation.test_logits, dataset.test.labels, dataset.classes)
    notes = [*notes, *(f"validation: {note}" for note in val_notes), *(f"test: {note}" for note in test_notes)]
    notes += fitted.notes
    if run.device.type != "cuda":
        notes.append(f"peak_device_bytes is null: not measured on {run.device.type}")
    return RunResult(
        method=run.config.method,
        dataset=dataset.name,
        backbone=task.backbone.tag,
        seed=run.config.seed,
        command=shlex.join([Path(sys.executable).name, *sys.argv]),
        # An index serves the runs of one grid: who reads the result reads the data themselves.
        config=run.settings | {"device": str(run.device), "precision": run.precision, "data_index": None},
        data=_data_record(task),
        model=model,
        history=[EpochRow(**row) for row in fitted.history],
        trials=fitted.trials,
        best_epoch=fitted.best_epoch,
        val=typed(val, SplitMetrics),
        test=typed(test, SplitMetrics | None),
        efficiency=Efficiency(
            train_seconds=fitted.train_seconds,
            feature_seconds=evaluation.feature_seconds,
            feature_cache_hit=evaluation.feature_cache_hit,
            eval_seconds=evaluation.eval_seconds,
            train_images_per_second=fitted.images_per_second,
            train_flops=_train_flops(task, fitted, model),
            **peak_memory(run.device),
            saved_bytes=saved_bytes,
            backbone_bytes=0 if task.method.saves_backbone else task.backbone_bytes,
        ),
        environment=describe_environment(run.device, run.precision) | {"features_compiled": task.inputs.compiled},
        skipped_images=list(dataset.skipped),
        notes=notes,
    )


def _data_record(task: Task) -> DataRecord:
    dataset, backbone = task.dataset, task.backbone
    return DataRecord(
        classes=list(dataset.classes),
        num_train=len(dataset.train),
        num_val=len(dataset.val),
        num_test=len(dataset.test),
        image_size=backbone.image_size,
        mean=list(backbone.mean),
        std=list(backbone.std),
        interpolation=backbone.interpolation,
        fingerprint=dataset.fingerprint,
        read_from=dataset.read_from,
    )


def _model_record(task: Task) -> ModelRecord:
    backbone, model, settings = task.backbone, task.model, task.run.settings
    own, size = method_spec(task.run.config.method).own_settings, backbone.image_size
    shape = (backbone.width,) if task.inputs.reads_features else (3, size, size)
    return ModelRecord(
        **complexity.count_parameters(backbone.module, model),
        forward_flops=complexity.forward_flops(task.method.plain(backbone, model), size),
        step_flops=complexity.step_flops(model, torch.zeros(1, *shape, device=task.run.device)),
        weights=WeightsRecord(source=backbone.source, sha256=backbone.sha256),
        method_settings={name: settings[name] for name in own if name in settings},
        **({"lora": None} | task.method.describe(model)),  # readers of older records look for LoRA's settings there
    )


def _train_flops(task: Task, fitted: FitResult, model: ModelRecord) -> int:
    """Return the operations of training: the steps, and the images' passes through a backbone that is frozen."""
    steps = fitted.images_stepped * model.step_flops
    if not task.inputs.reads_features:
        return steps
    passes = len(task.dataset.train) if isinstance(task.train, FeatureLoader) else fitted.images_stepped
    return steps + passes * task.inputs.extractor.feature_flops


def encode_predictions(task: Task, evaluation: Evaluation) -> bytes:
    """Return the bytes of the run's ``predictions.npz``."""
    val, test = task.dataset.val, task.dataset.test
    return npz_bytes(
        logits=evaluation.test_logits,
        labels=test.labels,
        indices=test.indices,
        val_logits=evaluation.val_logits,
        val_labels=val.labels,
        val_indices=val.indices,
    )


def _print_summary(result: RunResult) -> None:
    cost, model = result.efficiency, result.model
    spent = f"training {cost.train_seconds:.1f} s"
    if cost.feature_seconds is not None:
        spent += f", features {cost.feature_seconds:.1f} s{' (found in the cache)' if cost.feature_cache_hit else ''}"
    chosen = f"best epoch {result.best_epoch}" if result.history else f"best of {len(result.trials)} tried"
    if result.test:
        print(f"test {scores_in_words(result.test.scores)}")
        spent += f", test {cost.eval_seconds:.1f} s"
    else:
        print(f"no test score, all images were trained on; validation {scores_in_words(result.val.scores)}")
    print(f"{spent}; {chosen}, {model.trainable_params:,} of {model.total_params:,} parameters trained")
