"""Train one run with a deliberate defect of the published study's code, to measure what it is worth.

    python bench/published_defects.py batchnorm-drift train_cnn_head --backbone demo_resnet.cifar10 --dataset mnist
    python reproduce.py defects          # each of them, what it adds to the sound run, and which arm it favours

The first argument is one of DEFECTS, ``all`` being those that concern the arm; then comes a training script and its
flags, the backbone with its weight tag. All defects are here and nowhere else. They reach the training through
arguments and hooks; ``common/`` knows none of them. Such a run is called defective in its folder's name and in its
record's ``method``, which every other reader refuses; its weights are not kept.

What was predicted of the reported accuracy against the sound run before any of it was measured, by arm (0: nothing):

    lora-on-mlp         lora +                           more layers and parameters, although out_proj's are dead
    batchnorm-drift     resnet +   efficientnet +        the statistics of other images fit them better (Li et al. 2016)
    stochastic-depth    efficientnet -                   the head learns features of other networks than is tested
    validation-on-test  lora +  resnet +  efficientnet + the highest of several scores on the very same images
    flips               lora -  resnet -  efficientnet - a mirrored digit is another digit, or none
    imagenet-norm       lora 0  resnet 0  efficientnet 0 nearly the demo backbones' own; of Lite0, whose own differs, -
    all                 lora +  resnet +  efficientnet + drift and the choice on test images outweigh the flips

One seed, which needs no run of its own: where two arms' means are within a point, seeds often have the other order.
Expected: the files of the run's folder named, after about a minute on two CPU cores with the demo backbones.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train_cnn_head  # noqa: E402, found once its folder is on the path
import train_vit_lora  # noqa: E402
from common import cli  # noqa: E402
from common.config import require, setting  # noqa: E402
from common.data.dataset import DatasetSplits, load_dataset_of_run, result_name  # noqa: E402
from common.data.images import LabelledImages  # noqa: E402
from common.models import backbones, lora  # noqa: E402
from common.models.backbones import Backbone, pooled_features  # noqa: E402
from common.runs.folder import finish_run_folder  # noqa: E402
from common.runs.naming import run_folder  # noqa: E402
from common.runs.predictions import PREDICTIONS_FILE, npz_bytes  # noqa: E402
from common.runs.result import RESULT_FILE  # noqa: E402
from common.runtime.device import autocast  # noqa: E402
from common.runtime.errors import AlreadyFinished, UserError  # noqa: E402
from common.runtime.seeding import numpy_generator  # noqa: E402
from common.training.loaders import FeatureLoader, ImageLoader, Loader  # noqa: E402
from common.training.methods.lora import Lora  # noqa: E402
from common.training.run import RunContext, announce_data, open_run  # noqa: E402
from common.training.save import build_result, encode_predictions  # noqa: E402
from common.training.sweep import FitResult  # noqa: E402
from common.training.task import Task, build_task, evaluate  # noqa: E402

SCRIPTS = {"train_vit_lora": train_vit_lora, "train_cnn_head": train_cnn_head}
DIGIT_DATA = ("mnist", "digits")
STOCHASTIC_DEPTH = 0.2  # torchvision's EfficientNet-B0, by the last block; its ResNet50 and ViT-B/16 have none
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EPOCHS_FILE = "epochs.npz"


@dataclass(frozen=True)
class Defect:
    """One defect: its title in tables and figures, and by arm the predicted sign (``+``, ``-`` or ``0``)."""

    title: str
    predicted: Mapping[str, str]
    datasets: tuple[str, ...] | None = None
    """Where it is one; None: on every data set."""
    predicted_of_lite0: str | None = None
    """The sign for EfficientNet-Lite0, where it is another than that of its arm."""

    def concerns(self, arm: str, dataset: str) -> bool:
        """Say whether it can be in a run of an arm on a data set."""
        return arm in self.predicted and (self.datasets is None or dataset in self.datasets)

    def sign(self, arm: str, backbone: str) -> str:
        """Return the predicted sign for a run."""
        return (self.predicted_of_lite0 if "lite0" in backbone else None) or self.predicted[arm]


def _all_arms(sign: str) -> dict[str, str]:
    return dict.fromkeys(("lora", "resnet", "efficientnet"), sign)


DEFECTS = {
    "lora-on-mlp": Defect("LoRA on MLP and dead out_proj", {"lora": "+"}),
    "batchnorm-drift": Defect("BatchNorm statistics drift", {"resnet": "+", "efficientnet": "+"}),
    "stochastic-depth": Defect("stochastic depth left on", {"efficientnet": "-"}),
    "validation-on-test": Defect("validation on the test split", _all_arms("+")),
    "flips": Defect("horizontal flips of digits", _all_arms("-"), DIGIT_DATA),
    "imagenet-norm": Defect("ImageNet's mean and deviation", _all_arms("0"), predicted_of_lite0="-"),
    "all": Defect("all of them", _all_arms("+")),
}


class _Defective:
    """What a configuration has beside its training script's: the name of one defect, or ``all``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.lr) == 1, "lr", self.lr, "a single rate where there is a defect")
        if self.defect not in (names := concerning(self)):
            raise UserError(
                f"the defect {self.defect!r} is none of this run's; these are: {', '.join(names) or 'none'}"
            )

    @property
    def defects(self) -> tuple[str, ...]:
        """The defects that the run has."""
        return tuple(_single(self)) if self.defect == "all" else (self.defect,)


@dataclass(frozen=True, kw_only=True)
class DefectiveLora(_Defective, train_vit_lora.Config):
    """A run of ``train_vit_lora.py`` with a defect."""

    defect: str = setting("", short="DEFECT-", published="")


@dataclass(frozen=True, kw_only=True)
class DefectiveHead(_Defective, train_cnn_head.Config):
    """A run of ``train_cnn_head.py`` with a defect."""

    defect: str = setting("", short="DEFECT-", published="")


def defective(config: Any, defect: str) -> DefectiveLora | DefectiveHead:
    """Return a training script's ``config`` with a ``defect``.

    Raises:
        UserError: there is no such defect, or it does not concern this arm or data set.
    """
    kind = DefectiveLora if isinstance(config, train_vit_lora.Config) else DefectiveHead
    return kind(**{each.name: getattr(config, each.name) for each in fields(config)}, defect=defect)


def concerning(config: Any) -> list[str]:
    """Return the defects, ``all`` among them where they are several, that concern a training script's ``config``."""
    names = _single(config)
    return [*names, "all"] if len(names) > 1 else names


def _single(config: Any) -> list[str]:
    arm = arm_of(config.method, config.backbone)
    return [name for name, defect in DEFECTS.items() if name != "all" and defect.concerns(arm, config.dataset)]


def arm_of(method: str, backbone: str) -> str:
    """Return which arm a run is: lora, resnet or efficientnet; "" of any other, which no defect concerns."""
    if method == "lora":
        return "lora"
    kinds = ("resnet", "efficientnet") if method == "head_mlp" else ()
    return next((kind for kind in kinds if kind in backbone), "")


def stamp(method: str, defect: str) -> str:
    """Return what the record of a defective run says its method was: none that ``runs.methods`` knows."""
    return f"{method} with the deliberate defect {defect}"


def main(config: DefectiveLora | DefectiveHead) -> None:
    """Train, test and save one defective run; the stages are those of the training scripts.

    Raises:
        AlreadyFinished: the run is on disk; it is not made again.
        UserError: what the user can put right.
    """
    _refuse_finished(config)
    with open_run(config) as run:
        backbone = _backbone(run)
        dataset = load_dataset_of_run(run.settings)
        notes = [*announce_data(run, dataset), f"deliberate defects: {', '.join(config.defects)}"]
        if "validation-on-test" in config.defects:
            dataset = replace(dataset, val=dataset.test)
        task = _task(run, backbone, dataset)
        fitted, epochs = fit(task)
        evaluation = evaluate(task)

        weights = task.method.files(task.model)  # counted, and not kept: nobody should predict with them
        result = build_result(task, fitted, evaluation, notes, saved_bytes=sum(map(len, weights.values())))
        files = {PREDICTIONS_FILE: encode_predictions(task, evaluation), EPOCHS_FILE: npz_bytes(predicted=epochs)}
        finish_run_folder(run.folder, files, replace(result, method=stamp(result.method, config.defect)))
        for name in (*files, RESULT_FILE):
            print(f"wrote {run.folder.path / name}")


def _refuse_finished(config: Any) -> None:
    dataset = result_name(config.dataset, config.dataset_name)
    folder = run_folder(config, dataset=dataset, backbone=config.backbone, image_size=config.image_size)
    if (folder / RESULT_FILE).exists() and not config.overwrite:
        raise AlreadyFinished(f"already finished: {folder}; `overwrite` trains it again")


def _backbone(run: RunContext) -> Backbone:
    """Load the run's backbone, normalised as ImageNet's whatever it was trained with where that is the defect."""
    config = run.config
    backbone = backbones.load(config.backbone, weights=config.weights, image_size=config.image_size)
    if "imagenet-norm" in config.defects:
        backbone = replace(backbone, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return backbone


def _task(run: RunContext, backbone: Backbone, dataset: DatasetSplits) -> Task:
    """Return the sound task with its defects put in."""
    task = build_task(run, backbone, dataset)
    defects = run.config.defects
    if "lora-on-mlp" in defects:
        task = with_published_lora(task, _backbone(run))
    live = live_layers(task.backbone.module, defects) if isinstance(task.train, FeatureLoader) else []
    if live:
        return through_backbone(task, live, flips="flips" in defects)
    return replace(task, train=_either_way(task, task.train)) if "flips" in defects else task


def fit(task: Task) -> tuple[FitResult, np.ndarray]:
    """Train ``task``; return also what each epoch predicts of the validation images, (epochs, V) int64.

    A run that is interrupted starts anew: what drifts is in no checkpoint. The statistics that drifted end as they were
    in the epoch whose weights are kept.
    """
    predicted: list[torch.Tensor] = []

    def note(model: nn.Module, inputs: tuple, logits: torch.Tensor) -> None:
        if not model.training:
            predicted.append(logits.argmax(1).cpu())

    hook = task.model.register_forward_hook(note)
    config = task.run.config
    try:
        fitted = task.method.fit(task.model, task.train, task.val, task.run.optimizer_configs, _NoCheckpoint())
    finally:
        hook.remove()
    if isinstance(task.val, ThroughBackbone):
        task.val.restore(fitted.best_epoch)
    epochs = torch.cat(predicted).view(config.epochs, -1).numpy()
    return fitted, epochs


class _NoCheckpoint:
    """Keeps nothing, in the place of a ``Checkpoint``."""

    def load(self) -> None:
        return None

    def save(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        return None


# lora-on-mlp


class PublishedLora(Lora):
    """LoRA where the published code has it: on both layers of the MLP, and dead on the attention's output.

    There every Linear is wrapped; torchvision's attention keeps query, key and value in one parameter that is none, and
    reads ``out_proj.weight`` itself instead of calling the layer, so that LoRA there neither computes nor learns.
    """

    LAYERS = ("attn.proj", "mlp.fc1", "mlp.fc2")

    def build(
        self, backbone: Backbone, classes: int, *, seed: int, precision: str, device: torch.device
    ) -> lora.LoraViT:
        from peft import LoraConfig

        lora.require_plain_vit(backbone, "all-linear")
        settings = {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout}
        config = LoraConfig(**settings, target_modules=list(self.LAYERS), modules_to_save=["head"])
        model = lora.adapt(backbone, config, classes=classes, seed=seed)
        for block in backbone.module.blocks:
            block.attn.proj.register_forward_hook(read_weight_alone)
        if device.type == "cpu" and precision == "bf16":
            backbones.unfuse_attention(model)  # its fused kernel is slow there
        options = {"classifier": "head", "precision": precision, "memory_format": torch.contiguous_format}
        return lora.LoraViT(model, **options).to(device).train(False)

    def describe(self, model: nn.Module) -> dict[str, Any]:
        return {"lora": self.matrices() | {"target_modules": list(self.LAYERS)}}


def read_weight_alone(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    """Return what a layer's weight and bias give: a forward hook that puts it in the place of the adapted output."""
    return functional.linear(inputs[0], layer.weight, layer.bias)


def with_published_lora(task: Task, backbone: Backbone) -> Task:
    """Return ``task`` with LoRA as published in a new ``backbone``; the sound one's layers are already exchanged."""
    run = task.run
    method = PublishedLora(**{each.name: getattr(task.method, each.name) for each in fields(Lora)})
    classes, options = len(task.dataset.classes), {"precision": run.precision, "device": run.device}
    model = method.build(backbone, classes, seed=run.config.seed, **options)
    return replace(task, backbone=backbone, method=method, model=model)


# batchnorm-drift and stochastic-depth: the published code's model.train() reaches the frozen backbone


def live_layers(module: nn.Module, defects: Sequence[str]) -> list[nn.Module]:
    """Return the layers of a backbone that training switches to training mode, as the published code does to all.

    With stochastic depth the blocks get it, as torchvision builds them; timm's backbones are built without.
    """
    layers = []
    if "batchnorm-drift" in defects:
        layers += [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    if "stochastic-depth" in defects:
        layers += _stochastic_depth(module)
    return layers


def _stochastic_depth(module: nn.Module) -> list[nn.Module]:
    """Put timm's DropPath where a block of ``module`` has its place for it, from 0 up to ``STOCHASTIC_DEPTH``."""
    from timm.layers import DropPath

    names = [name for name, _ in module.named_modules() if name.endswith(".drop_path")]
    layers = [DropPath(STOCHASTIC_DEPTH * number / len(names)) for number in range(len(names))]
    for name, layer in zip(names, layers, strict=True):
        module.set_submodule(name, layer.eval())
    return layers


@dataclass(frozen=True)
class ThroughBackbone:
    """Features made anew in every epoch, by a backbone whose ``live`` layers are in training mode if ``training``.

    Before each pass it notes the buffers of the backbone, which such training changes.
    """

    images: ImageLoader
    backbone: nn.Module
    precision: str
    live: tuple[nn.Module, ...]
    training: bool
    passes: list[dict[str, torch.Tensor]] = field(default_factory=list)

    @property
    def labels(self) -> np.ndarray:
        return self.images.labels

    def batches(self, positions: Sequence[np.ndarray], *, epoch: int) -> Iterator[torch.Tensor]:
        self.passes.append({name: buffer.clone() for name, buffer in self.backbone.named_buffers()})
        for layer in self.live:
            layer.train(self.training)
        for images in self.images.batches(positions, epoch=epoch):
            with torch.no_grad(), autocast(images.device, self.precision):
                features = pooled_features(self.backbone, images)  # (B, width)
            yield features.float()
        for layer in self.live:
            layer.eval()

    def restore(self, number: int) -> None:
        """Put the buffers back as they were before pass ``number``, the first being 1."""
        with torch.no_grad():
            for name, buffer in self.backbone.named_buffers():
                buffer.copy_(self.passes[number - 1][name])


def through_backbone(task: Task, live: Sequence[nn.Module], *, flips: bool) -> Task:
    """Return ``task`` whose images go through the ``live`` backbone in every epoch; no feature is kept for others."""
    run, module = task.run, task.backbone.module.to(task.run.device)
    inputs = replace(task.inputs, folder=None, made={}, featured=[])

    def loader(images: LabelledImages, *, training: bool) -> ThroughBackbone:
        source = _image_loader(task, images)
        source = _either_way(task, source) if flips and training else source
        return ThroughBackbone(source, module, run.precision, tuple(live), training)

    train, val = loader(task.dataset.train, training=True), loader(task.dataset.val, training=False)
    return replace(task, inputs=inputs, train=train, val=val)


def _image_loader(task: Task, images: LabelledImages) -> ImageLoader:
    extractor = task.inputs.extractor
    return ImageLoader(images, extractor.transform, extractor.device, extractor.workers)


# flips


@dataclass(frozen=True)
class EitherWay:
    """Each image as it is or mirrored, as a coin of its own says anew in each epoch; or the features of the two."""

    plain: Loader
    mirrored: Loader
    seed: int

    @property
    def labels(self) -> np.ndarray:
        """Class numbers, (N,) int64."""
        return self.plain.labels

    def batches(self, positions: Sequence[np.ndarray], *, epoch: int) -> Iterator[torch.Tensor]:
        """Yield the images or features at each array of positions."""
        coins = numpy_generator(self.seed, "augment", epoch=epoch).random(len(self.labels)) < 0.5
        pairs = (loader.batches(positions, epoch=epoch) for loader in (self.plain, self.mirrored))
        for batch, plain, mirrored in zip(positions, *pairs, strict=True):
            coin = torch.from_numpy(coins[batch]).view(-1, *[1] * (plain.ndim - 1)).to(plain.device)
            yield torch.where(coin, mirrored, plain)


def _either_way(task: Task, plain: Loader) -> EitherWay:
    """Return ``plain``, a loader of the training images or of their features, with each image also mirrored."""
    mirrored = mirror(task.dataset.train)
    if isinstance(plain, FeatureLoader):
        inputs = replace(task.inputs, folder=None, made={}, featured=[])  # the cache knows images by their number alone
        return EitherWay(plain, inputs.loader(mirrored, "mirrored"), task.run.config.seed)
    return EitherWay(plain, _image_loader(task, mirrored), task.run.config.seed)


def mirror(images: LabelledImages) -> LabelledImages:
    """Return ``images`` flipped from left to right.

    Raises:
        UserError: they are files, which none of the data sets with digits is.
    """
    if images.pixels is None:
        raise UserError("only images in memory can be mirrored here, not files")
    return replace(images, pixels=np.ascontiguousarray(images.pixels[:, :, ::-1]))  # (N, H, W[, 3])


def run(argv: Sequence[str]) -> int:
    """Run ``DEFECT SCRIPT FLAGS...`` and return the exit code of ``cli.run``."""
    if len(argv) < 2 or argv[0] not in DEFECTS or argv[1] not in SCRIPTS:
        print(f"{__doc__}\nusage: DEFECT SCRIPT FLAGS...; DEFECT: {', '.join(DEFECTS)}; SCRIPT: {', '.join(SCRIPTS)}")
        return 0 if argv[:1] == ["--help"] else 2
    start: Callable[[Any], None] = lambda config: main(defective(config, argv[0]))  # noqa: E731
    return cli.run(start, SCRIPTS[argv[1]].Config, list(argv[2:]))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
