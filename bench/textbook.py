"""Train a new head on a frozen CNN as transfer-learning tutorials do: the other side of bench/compare.py.

    python bench/textbook.py path/to/images --backbone resnet50.tv2_in1k --epochs 5 --out report.json

After "ConvNet as fixed feature extractor" in PyTorch's tutorial "Transfer Learning for Computer Vision": torchvision's
ImageFolder and transforms through Pillow, a DataLoader with two workers, every image through the frozen backbone in
every epoch, in float32; the head with the best validation accuracy is kept. The head is the study's, of two layers.
The backbone has random weights (nothing is downloaded; its speed does not depend on them), so that the accuracy is
none to quote. It imports nothing of this repository. Expected: a line an epoch, and the report, after
8 minutes on two CPU cores for EfficientNet-B0, 2,500 images and 5 epochs (bench/README.md).
"""

import argparse
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

BATCH_IMAGES = 64
WORKERS = 2
# ImageNet's channel means and deviations, as the tutorial has them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an image folder: train/, val/ and test/, each with <class>/*")
    parser.add_argument("--backbone", required=True, help="a timm model name")
    parser.add_argument("--epochs", type=int, required=True, help="passes over the training images")
    parser.add_argument("--image-size", type=int, default=224, help="side of the square input in pixels")
    parser.add_argument("--lr", type=float, default=1e-4, help="Adam's learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of the head's start and the order of the images")
    parser.add_argument("--out", type=Path, required=True, help="where the report goes, as JSON")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.manual_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    # Data
    train, val, test = (loader(arguments.folder, split, arguments.image_size) for split in ("train", "val", "test"))

    # Model: the frozen backbone, and a new head
    backbone = timm.create_model(arguments.backbone, pretrained=False, num_classes=0).eval().to(device)
    for parameter in backbone.parameters():
        parameter.requires_grad = False
    head = new_head(backbone.head_hidden_size, len(train.dataset.classes)).to(device)
    optimizer = torch.optim.Adam(head.parameters(), lr=arguments.lr)

    # Train
    best_accuracy, best_weights, epoch_seconds = -1.0, None, []
    for epoch in range(arguments.epochs):
        started = time.perf_counter()
        head.train()
        for features, labels in featured(backbone, train, device):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(features), labels).backward()
            optimizer.step()
        val_accuracy = accuracy(backbone, head, val, device)
        if val_accuracy > best_accuracy:
            best_accuracy, best_weights = val_accuracy, copy.deepcopy(head.state_dict())
        epoch_seconds.append(time.perf_counter() - started)
        print(f"epoch {epoch + 1}/{arguments.epochs}  val accuracy {val_accuracy:.4f}  {epoch_seconds[-1]:.1f} s")

    # Test, once
    started = time.perf_counter()
    head.load_state_dict(best_weights)
    test_accuracy = accuracy(backbone, head, test, device)
    print(f"test accuracy {test_accuracy:.4f}")

    # Save
    report = {
        "epoch_seconds": epoch_seconds,
        "test_seconds": time.perf_counter() - started,
        "images": [len(split.dataset) for split in (train, val, test)],
        "val_accuracy": best_accuracy,
        "test_accuracy": test_accuracy,
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def loader(folder: Path, split: str, image_size: int) -> DataLoader:
    """Return batches of (images (B, 3, S, S), labels (B,)) of a split, training images in a new order each time."""
    transform = transforms.Compose(
        [transforms.Resize((image_size, image_size)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    dataset = datasets.ImageFolder(str(folder / split), transform)
    return DataLoader(dataset, batch_size=BATCH_IMAGES, shuffle=split == "train", num_workers=WORKERS)


def new_head(width: int, classes: int) -> nn.Sequential:
    """Return the study's head: features (B, width) -> logits (B, C), hidden width 2048 -> 1024, 1280 -> 512."""
    hidden = 2 ** ((width // 2).bit_length() - 1)  # the largest power of two not above half of the width
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def featured(
    backbone: nn.Module, batches: DataLoader, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the features (B, width) and labels (B,) of each batch."""
    for images, labels in batches:
        with torch.no_grad():
            features = backbone(images.to(device))
        yield features, labels.to(device)


def accuracy(backbone: nn.Module, head: nn.Module, batches: DataLoader, device: torch.device) -> float:
    """Return the share of images that are classified right."""
    head.eval()
    correct = 0
    with torch.no_grad():
        for features, labels in featured(backbone, batches, device):
            correct += int((head(features).argmax(1) == labels).sum())
    return correct / len(batches.dataset)


if __name__ == "__main__":
    main()
