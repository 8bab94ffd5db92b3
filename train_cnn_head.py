"""Freeze a CNN and train only a new classifier head on its features.

    python train_cnn_head.py                                          # ResNet50 on CIFAR-10, the published recipe
    python train_cnn_head.py --backbone efficientnet_b0.ra_in1k --dataset fashion_mnist
    python train_cnn_head.py --dataset path/to/images --epochs 50 --lr 3e-4 1e-3 3e-3

Each image goes through the frozen backbone once; the head trains on the features, and of several learning rates the
one that is best on validation is kept. Expected test accuracy of the defaults: not yet measured here (the published
study reports 83.5 % for ResNet50 and 80.4 % for EfficientNet-B0 on CIFAR-10, one run each, with augmentation).
"""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from common import cli
from common.config import TrainConfig, check_recipe, require, setting
from common.data.registry import DATASET_CHOICES


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Hyper-parameters of the frozen CNN: the published recipe. Edit a default here, or override it as a flag."""

    dataset: Annotated[str, tyro.conf.arg(help=DATASET_CHOICES)] = setting("cifar10", published="cifar10")
    backbone: str = setting("resnet50.tv2_in1k", published="resnet50.tv2_in1k")
    """A convolutional timm model with its weight tag; the study also takes efficientnet_b0.ra_in1k."""
    head: Literal["mlp", "linear", "probe"] = setting("mlp", published="mlp")
    """mlp: one hidden layer (1024 units for ResNet50, 512 for EfficientNet-B0); linear: none;
    probe: none, fitted as an L2-regularised logistic regression, its penalty chosen on validation."""
    head_dropout: float = setting(0.5, short="drop", published=0.5)
    """Share of the head's inputs that is dropped in training."""
    epochs: int = setting(5, short="ep", published=5)
    """Passes over the training images."""
    batch_size: int = setting(64, short="bs", published=64)
    """Images in one optimiser step."""
    lr: tuple[float, ...] = setting((1e-4,), short="lr", published=(1e-4,))
    """AdamW's learning rate. Several: one training each, the best on validation is kept."""
    schedule: Literal["constant", "cosine"] = setting("constant", short="", published="constant")
    """The rate after the warm-up: constant, as published, or half a cosine down to 0 at the last step."""
    warmup: float = setting(0.0, short="warm", published=0.0)
    """Share of all steps over which the rate rises linearly from 0."""
    weight_decay: float = setting(0.01, short="wd", published=0.01)
    """AdamW's weight decay."""
    augment: Literal["none", "light"] = setting("none", short="aug", published="none")
    """light: random flip, affine, brightness, contrast, blur; the backbone then runs on every image in every epoch."""
    seed: int = setting(0, published=0)
    """Seed of the head's start, the order of the images, dropout and augmentation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_recipe(self)
        require(0 <= self.head_dropout < 1, "head_dropout", self.head_dropout, "0 or more and below 1")

    @property
    def method(self) -> str:
        """What is trained, as results and run names call it."""
        return f"head_{self.head}"


def main(config: Config) -> None:
    """Train, test and save one run.

    Raises:
        AlreadyFinished: the run is on disk; it is not made again.
        UserError: what the user can put right.
    """
    from common.data.dataset import load_dataset_of_run
    from common.models import backbones
    from common.training.run import announce_data, open_run
    from common.training.save import save_run
    from common.training.task import build_task, evaluate, fit

    with open_run(config) as run:
        # Backbone: first, because missing weights should not be found out after the images were checked
        backbone = backbones.load(run.config.backbone, weights=config.weights, image_size=run.config.image_size)
        backbones.require_cnn(backbone)

        # Data: train, validation and test images, fixed by the split seed
        dataset = load_dataset_of_run(run.settings)
        notes = announce_data(run, dataset)

        # Model: a new head on the frozen CNN, which reads features that are made once
        task = build_task(run, backbone, dataset)

        # Train: the epoch that is best on validation is kept
        fitted = fit(task)

        # Evaluate: no model has seen a test image until here
        evaluation = evaluate(task)

        # Save
        save_run(task, fitted, evaluation, notes)


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
