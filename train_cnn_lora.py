"""Adapt a frozen CNN with LoRA on its convolutions, and train its classifier.

    python train_cnn_lora.py                                          # ResNet50 on CIFAR-10
    python train_cnn_lora.py --targets all-convs                      # the 3x3 convolutions as well
    python train_cnn_lora.py --backbone efficientnet_b0.ra_in1k --dataset path/to/images --lr 1e-4 3e-4 1e-3

At rank 16 with ten classes 684,042 parameters of ResNet50 are trained, 2.83 % of the model. BatchNorm and grouped
(depthwise) convolutions stay frozen. The published study has no LoRA on a CNN: the hyper-parameters are those of its
LoRA on the ViT. Expected test accuracy of the defaults: not yet measured here.
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
    """Hyper-parameters of the adapted CNN: those of the ViT's LoRA. Edit a default here, or override it as a flag."""

    dataset: Annotated[str, tyro.conf.arg(help=DATASET_CHOICES)] = setting("cifar10", published="cifar10")
    backbone: str = setting("resnet50.tv2_in1k", published="resnet50.tv2_in1k")
    """A convolutional timm model with its weight tag."""
    rank: int = setting(16, published=16)
    """Rank of the LoRA matrices."""
    alpha: float = setting(32.0, short="alpha", published=32.0)
    """LoRA's scale: the update is multiplied by alpha / rank."""
    dropout: float = setting(0.1, short="drop", published=0.1)
    """Dropout before the LoRA matrices."""
    targets: Literal["pointwise", "all-convs"] = setting("pointwise", short="", published="pointwise")
    """Convolutions with LoRA: those of kernel 1x1 outside squeeze-and-excite; or all. Grouped (depthwise) ones stay
    frozen in either case."""
    epochs: int = setting(5, short="ep", published=5)
    """Passes over the training images."""
    batch_size: int = setting(64, short="bs", published=64)
    """Images in one optimiser step."""
    lr: tuple[float, ...] = setting((3e-5,), short="lr", published=(3e-5,))
    """AdamW's learning rate. Several: one training each, the best on validation is kept."""
    schedule: Literal["constant", "cosine"] = setting("constant", short="", published="constant")
    """The rate after the warm-up: constant, as published, or half a cosine down to 0 at the last step."""
    warmup: float = setting(0.0, short="warm", published=0.0)
    """Share of all steps over which the rate rises linearly from 0."""
    weight_decay: float = setting(0.01, short="wd", published=0.01)
    """AdamW's weight decay."""
    augment: Literal["none", "light"] = setting("none", short="aug", published="none")
    """light: random flip, affine, brightness, contrast, blur, drawn for each image."""
    seed: int = setting(0, published=0)
    """Seed of the LoRA matrices and the classifier, the order of the images, dropout and augmentation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_recipe(self)
        require(1 <= self.rank <= 4096, "rank", self.rank, "1 to 4096")
        require(0 < self.alpha < float("inf"), "alpha", self.alpha, "positive and finite")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 or more and below 1")

    @property
    def method(self) -> str:
        """What is trained, as results and run names call it."""
        return "cnn_lora"


def main(config: Config) -> None:
    """Train, test and save one run.

    Raises:
        AlreadyFinished: the run is on disk; it is not made again.
        UserError: what the user can put right.
    """
    from common.data.dataset import load_dataset_of_run
    from common.models import backbones, cnn_lora
    from common.training.run import announce_data, open_run
    from common.training.save import save_run
    from common.training.task import build_task, evaluate, fit

    with open_run(config) as run:
        # Backbone: first, because missing weights should not be found out after the images were checked
        backbone = backbones.load(run.config.backbone, weights=config.weights, image_size=run.config.image_size)
        cnn_lora.require_targets(backbone, config.targets)

        # Data: train, validation and test images, fixed by the split seed
        dataset = load_dataset_of_run(run.settings)
        notes = announce_data(run, dataset)

        # Model: LoRA on the targets in the frozen CNN, and a new classifier
        task = build_task(run, backbone, dataset)

        # Train: the epoch that is best on validation is kept
        fitted = fit(task)

        # Evaluate: no model has seen a test image until here
        evaluation = evaluate(task)

        # Save
        save_run(task, fitted, evaluation, notes)


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
