"""Fine-tune a whole backbone, ViT or CNN, or only its norms and biases, and train its classifier.

    python train_full.py                                              # ViT-B/16 on CIFAR-10
    python train_full.py --backbone resnet50.tv2_in1k --batchnorm frozen
    python train_full.py --parts norms-and-biases --lr 1e-3           # 129,802 parameters, 0.15 %
    python train_full.py --backbone convnext_tiny --dataset path/to/images --lr 1e-5 3e-5 1e-4

The classifier is a single linear layer, as with LoRA. The published study has no full fine-tuning: the learning rate is
no published value, all else is as in its other methods. Expected test accuracy of the defaults: not yet measured here.
"""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from common import cli
from common.config import TrainConfig, check_recipe, setting
from common.data.registry import DATASET_CHOICES


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Hyper-parameters of full fine-tuning: the published recipe's. Edit a default here, or override it as a flag."""

    dataset: Annotated[str, tyro.conf.arg(help=DATASET_CHOICES)] = setting("cifar10", published="cifar10")
    backbone: str = setting("vit_base_patch16_224.augreg_in1k", published="vit_base_patch16_224.augreg_in1k")
    """A timm model with its weight tag, whose classifier is one layer."""
    parts: Literal["all", "norms-and-biases"] = setting("all", published="all")
    """Trained beside the classifier: every parameter; or weight and bias of every norm, and every layer's bias."""
    batchnorm: Literal["train", "frozen"] = setting("train", short="bn-", published="train")
    """Statistics of BatchNorm: each batch's, with their running mean for evaluation; frozen: the pretrained ones, its
    weight and bias being trained all the same."""
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
    """AdamW's weight decay; norms and biases have none."""
    augment: Literal["none", "light"] = setting("none", short="aug", published="none")
    """light: random flip, affine, brightness, contrast, blur, drawn for each image."""
    seed: int = setting(0, published=0)
    """Seed of the classifier, the order of the images, and augmentation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_recipe(self)

    @property
    def method(self) -> str:
        """What is trained, as results and run names call it."""
        return "full" if self.parts == "all" else "norms_and_biases"


def main(config: Config) -> None:
    """Train, test and save one run.

    Raises:
        AlreadyFinished: the run is on disk; it is not made again.
        UserError: what the user can put right.
    """
    from common.data.dataset import load_dataset_of_run
    from common.models import backbones, finetuning
    from common.training.run import announce_data, open_run
    from common.training.save import save_run
    from common.training.task import build_task, evaluate, fit

    with open_run(config) as run:
        # Backbone: first, because missing weights should not be found out after the images were checked
        backbone = backbones.load(run.config.backbone, weights=config.weights, image_size=run.config.image_size)
        finetuning.require_trainable(backbone, config.batchnorm)

        # Data: train, validation and test images, fixed by the split seed
        dataset = load_dataset_of_run(run.settings)
        notes = announce_data(run, dataset)

        # Model: the backbone itself and a new classifier
        task = build_task(run, backbone, dataset)

        # Train: the epoch that is best on validation is kept
        fitted = fit(task)

        # Evaluate: no model has seen a test image until here
        evaluation = evaluate(task)

        # Save
        save_run(task, fitted, evaluation, notes)


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
