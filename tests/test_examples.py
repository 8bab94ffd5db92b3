"""Images kept on the device are, batch for batch, the bits of images read anew."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.images import LabelledImages
from common.data.transforms import Transform
from common.training import loaders
from common.training.loaders import ImageLoader, ResidentImageLoader, resident

CPU = torch.device("cpu")
TRANSFORM = Transform(16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), interpolation="bicubic")
COUNT = 11


def _images(kind: str, folder) -> LabelledImages:
    rng = np.random.default_rng(0)
    labels, indices = np.arange(COUNT) % 3, np.arange(COUNT)
    if kind == "grey":
        return LabelledImages(labels, indices, rng.integers(0, 256, (COUNT, 9, 9), dtype=np.uint8))
    if kind == "colour":
        return LabelledImages(labels, indices, rng.integers(0, 256, (COUNT, 9, 9, 3), dtype=np.uint8))
    files = tuple(folder / f"{number}.png" for number in range(COUNT))  # grey and colour in turn, of several sizes
    for number, file in enumerate(files):
        shape = (8 + number, 9) if number % 2 else (8 + number, 9, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(file)
    return LabelledImages(labels, indices, files=files)


def _order(seed: int) -> list[np.ndarray]:
    return np.array_split(np.random.default_rng(seed).permutation(COUNT), 3)


@pytest.mark.parametrize("kind", ["grey", "colour", "files"])
def test_resident_images_are_the_bits_of_images_read_anew_and_are_read_once(kind, tmp_path):
    plain = ImageLoader(_images(kind, tmp_path), TRANSFORM, CPU, workers=0)
    kept = ResidentImageLoader(plain)
    assert kept.labels is plain.labels
    expected = [list(plain.batches(_order(seed), epoch=seed)) for seed in range(3)]
    next(kept.batches(_order(0), epoch=0))  # an epoch that is left after its first batch
    for seed in range(3):
        for actual, wanted in zip(kept.batches(_order(seed), epoch=seed), expected[seed], strict=True):
            assert torch.equal(actual, wanted)
        for file in tmp_path.iterdir():  # after the first epoch nothing is read
            file.unlink()


@pytest.mark.parametrize(
    ("device", "augment", "free", "stays"),
    [
        ("cuda", "none", 4 * COUNT * 16 * 16, True),
        ("cuda", "none", 4 * COUNT * 16 * 16 - 1, False),
        ("cuda", "light", 10**9, False),
        ("cpu", "none", 10**9, False),
    ],
)
def test_images_stay_on_a_gpu_where_a_quarter_of_its_free_memory_holds_them(
    device, augment, free, stays, monkeypatch, tmp_path
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    monkeypatch.setattr(loaders, "ResidentImageLoader", lambda plain: "resident")  # there is no GPU to keep them on
    transform = replace(TRANSFORM, augment=augment)
    plain = ImageLoader(_images("grey", tmp_path), transform, torch.device(device), workers=0)
    assert resident(plain) == ("resident" if stays else plain)
