"""Pretrain the demo backbones on CIFAR-10's 50,000 training images, alike but that the ViT alone drops patches.

    python demo/pretrain.py                                  # all three: about four hours of one CPU core
    python demo/pretrain.py --backbones demo_vit             # one; others in other shells

Writes demo/weights/NAME.safetensors (float16, without the classifier) and NAME.json (recipe, test accuracy, versions).
The test images are read once, after the last epoch, by the weights as they are stored. The same command resumes at the
last finished epoch, and leaves finished weights alone. Expected result: the table in demo/README.md.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import cli  # noqa: E402, found once its folder is on the path
from common.config import require  # noqa: E402, found once its folder is on the path

NAMES = ("demo_vit", "demo_resnet", "demo_efficientnet")


@dataclass(frozen=True)
class Config:
    """The recipe of all backbones: Muon and AdamW, one epoch of warm-up, then half a cosine down to zero."""

    backbones: tuple[str, ...] = NAMES
    """Which to pretrain."""
    data_dir: Path = Path("data")
    """Where CIFAR-10 lies: torchvision's files, or cifar10/{train,test}/<class>/."""
    epochs: int = 40
    """Passes over the training images."""
    batch_size: int = 128
    """Images in one optimiser step."""
    lr: float = 2e-3
    """The highest learning rate."""
    weight_decay: float = 0.05
    """Weight decay, of all but norms and the biases of the body."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and the augmentation."""
    weights_dir: Path = ROOT / "demo" / "weights"
    """Where the weights go."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.backbones if name not in NAMES]
        require(bool(self.backbones) and not unknown, "backbones", self.backbones, f"among {', '.join(NAMES)}")
        require(1 <= self.epochs <= 10_000, "epochs", self.epochs, "at least 1")
        require(1 <= self.batch_size <= 50_000, "batch_size", self.batch_size, "1 to 50,000")
        require(0 < self.lr < 1, "lr", self.lr, "between 0 and 1")
        require(0 <= self.weight_decay < float("inf"), "weight_decay", self.weight_decay, "0 or more, and finite")
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 or more")


def main(config: Config) -> None:
    """Pretrain each of the backbones that is not finished, and write its weights and their record."""
    from common.data import registry, splits
    from demo import pretraining

    # Data: the whole training split; nothing is selected, so nothing is set aside for validation
    source = registry.read("cifar10", config.data_dir)
    fingerprint = splits.fingerprint(source.classes, source.parts)

    recipe = pretraining.Recipe(config.epochs, config.batch_size, config.lr, config.weight_decay, config.seed)
    for name in config.backbones:
        path = config.weights_dir / f"{name}.safetensors"
        if pretraining.is_finished(path, recipe, fingerprint):
            print(f"{name}: already pretrained by this recipe: {path}")
            continue

        # Model and training
        model, history = pretraining.train(name, source.parts["train"], recipe, fingerprint, path)

        # Save, and test what was saved
        accuracy = pretraining.save(name, model, history, source.parts["test"], recipe, fingerprint, path)
        print(f"{name}: test accuracy {accuracy:.4f}; wrote {path} and .json", flush=True)


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
