"""Adapt a frozen Vision Transformer with LoRA on its query and value projections, and train its classifier.

    python train_vit_lora.py                                          # ViT-B/16 on CIFAR-10, the published recipe
    python train_vit_lora.py --rank 0                                 # the frozen ViT with its head alone
    python train_vit_lora.py --targets all-linear --also-train norms  # more of it is trained
    python train_vit_lora.py --backbone deit_small_patch16_224 --dataset path/to/images --lr 1e-4 3e-4

At rank 16 with ten classes 597,514 parameters are trained, 0.69 % of the model. Expected test accuracy of the defaults:
not yet measured here (the published study reports 97.3 % on CIFAR-10, one run, other weights and other LoRA layers).
"""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from common import cli
from common.config import TrainConfig, check_recipe, require, setting
from common.data.registry import DATASET_CHOICES
from common.runs.methods import METHODS


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Hyper-parameters of the adapted ViT: the published recipe. Edit a default here, or override it as a flag."""

    dataset: Annotated[str, tyro.conf.arg(help=DATASET_CHOICES)] = setting("cifar10", published="cifar10")
    backbone: str = setting("vit_base_patch16_224.augreg_in1k", published="vit_base_patch16_224.augreg_in1k")
    """A timm VisionTransformer with its weight tag (any size; also DeiT and DINOv2)."""
    rank: int = setting(16, published=16)
    """Rank of the LoRA matrices; 0 trains the classifier alone, on features made once."""
    alpha: float = setting(32.0, short="alpha", published=32.0)
    """LoRA's scale: the update is multiplied by alpha / rank. Without effect at rank 0."""
    dropout: float = setting(0.1, short="drop", published=0.1)
    """Dropout before the LoRA matrices. Without effect at rank 0."""
    targets: Literal["qv", "attention", "all-linear"] = setting("qv", short="", published="qv")
    """Layers with LoRA in every block: query and value, as in the study; attention: query, key, value and the
    projection of its output; all-linear: these and both layers of the MLP."""
    also_train: Literal["nothing", "norms", "norms-and-embeddings"] = setting(
        "nothing", short="also-", published="nothing"
    )
    """Trained beside LoRA and the classifier: weight and bias of every LayerNorm; with the embeddings also the patch
    projection, the position embedding and the class token."""
    head: Literal["linear", "mlp", "probe"] = setting("linear", published="linear")
    """For the frozen ViT (rank 0): linear: one layer; mlp: two; probe: one, fitted as a logistic regression."""
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
        require(0 <= self.rank <= 4096, "rank", self.rank, "0 to 4096")
        require(
            not self.rank or self.head == "linear", "head", self.head, "left out unless the ViT is frozen (`rank` 0)"
        )
        for name, usual in METHODS["lora"].usual.items():
            value = getattr(self, name)
            require(self.rank > 0 or value == usual, name, value, f"{usual} where there is no LoRA (`rank` 0)")
        require(0 < self.alpha < float("inf"), "alpha", self.alpha, "positive and finite")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 or more and below 1")

    @property
    def method(self) -> str:
        """What is trained, as results and run names call it."""
        return "lora" if self.rank else f"head_{self.head}"


def main(config: Config) -> None:
    """Train, test and save one run.

    Raises:
        AlreadyFinished: the run is on disk; it is not made again.
        UserError: what the user can put right.
    """
    from common.data.dataset import load_dataset_of_run
    from common.models import backbones, lora
    from common.training.run import announce_data, open_run
    from common.training.save import save_run
    from common.training.task import build_task, evaluate, fit

    with open_run(config) as run:
        # Backbone: first, because missing weights should not be found out after the images were checked
        backbone = backbones.load(run.config.backbone, weights=config.weights, image_size=run.config.image_size)
        lora.require_plain_vit(backbone, config.targets)

        # Data: train, validation and test images, fixed by the split seed
        dataset = load_dataset_of_run(run.settings)
        notes = announce_data(run, dataset)

        # Model: LoRA on the targets in the frozen ViT and a new classifier; at rank 0 the classifier alone
        task = build_task(run, backbone, dataset)

        # Train: the epoch that is best on validation is kept
        fitted = fit(task)

        # Evaluate: no model has seen a test image until here
        evaluation = evaluate(task)

        # Save
        save_run(task, fitted, evaluation, notes)


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
