"""The one resize agrees with PIL, and a batch has the same bits whoever prepares it."""

import multiprocessing
import os
import signal
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from common.data import augmentation, loader, transforms
from common.data.images import LabelledImages, decode_bytes
from common.data.loader import ResizedBatches
from common.data.transforms import Transform, channels_first, normalise
from common.runtime.errors import UserError

CPU = torch.device("cpu")
PIL_MODES = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def _transform(size: int = 32, **options) -> Transform:
    options = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "interpolation": "bicubic", **options}
    return Transform(size, **options)


def _photo(height: int, width: int) -> np.ndarray:
    """A smooth random colour image with some noise, as a photograph has."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    return np.clip(smooth + rng.normal(scale=5, size=smooth.shape), 0, 255).astype(np.uint8)


def _batch(pixels: np.ndarray) -> torch.Tensor:
    return channels_first(pixels[None])


def _levels_from_pil(pixels: np.ndarray, size: int, interpolation: str) -> int:
    ours = transforms.resize(_batch(pixels), _transform(size, interpolation=interpolation))[0]
    theirs = np.asarray(Image.fromarray(pixels).resize((size, size), PIL_MODES[interpolation]), dtype=int)
    ours = ours.permute(1, 2, 0).numpy() if pixels.ndim == 3 else ours[0].numpy()
    return int(np.abs(ours.astype(int) - theirs).max())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 32, 224, 900])
def test_resize_is_within_two_levels_of_pil(size, interpolation):
    noise = np.random.default_rng(1).integers(0, 256, (28, 28), dtype=np.uint8)
    for pixels in (_photo(480, 640), _photo(32, 32), noise):
        assert _levels_from_pil(pixels, size, interpolation) <= 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_of_real_images_is_within_two_levels_of_pil(real_data, interpolation):
    raw = (real_data / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()
    samples = list(np.frombuffer(raw, np.uint8, 8 * 784, offset=16).reshape(8, 28, 28).copy())
    with tarfile.open(real_data / "cifar10-jpeg.tar.gz") as archive:
        files = (archive.extractfile(member) for member in archive if member.name.endswith(".jpg"))
        samples += [decode_bytes(next(files).read()) for _ in range(8)]
    assert {image.ndim for image in samples} == {2, 3}
    for pixels in samples:
        assert _levels_from_pil(pixels, 224, interpolation) <= 2
        assert _levels_from_pil(pixels, 16, interpolation) <= 2


@pytest.mark.parametrize("shape", [(480, 640), (641, 480), (333, 333), (40, 201), (57, 40), (100, 700)])
def test_crop_is_within_two_levels_of_torchvision(shape):
    pixels = _photo(*shape)
    transform = _transform(64, resize="crop", crop_pct=0.875)
    ours = transforms.resize(_batch(pixels), transform)[0].permute(1, 2, 0).numpy()
    bicubic = v2.InterpolationMode.BICUBIC
    reference = v2.Compose([v2.Resize(73, interpolation=bicubic), v2.CenterCrop(64)])(Image.fromarray(pixels))
    assert np.abs(ours.astype(int) - np.asarray(reference, dtype=int)).max() <= 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1)])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_extreme_shapes_become_squares(shape, resize):
    pixels = np.full(shape, 7, np.uint8)
    resized = transforms.resize(_batch(pixels), _transform(64, resize=resize))
    assert resized.shape == (1, 1, 64, 64) and (resized == 7).all()


def test_normalise_uses_each_channels_own_numbers():
    pixels = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    transform = _transform()
    expected = torch.stack([v2.functional.normalize(image / 255, transform.mean, transform.std) for image in pixels])
    torch.testing.assert_close(normalise(pixels, transform), expected, rtol=1e-5, atol=1e-6)


def test_grey_equals_the_same_image_as_rgb():
    grey = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    transform = _transform(60)
    one, three = (
        normalise(transforms.resize(channels_first(pixels), transform), transform)
        for pixels in (grey, np.repeat(grey[..., None], 3, axis=-1))
    )
    assert one.shape == (3, 3, 60, 60) and torch.equal(one, three)


def _files(folder) -> LabelledImages:
    """Eight files of different sizes, every other one grey."""
    files = []
    for i in range(8):
        pixels = _photo(20 + i, 30)
        Image.fromarray(pixels if i % 2 else pixels[..., 0]).save(folder / f"{i}.png")
        files.append(folder / f"{i}.png")
    return LabelledImages(np.zeros(8, np.int64), np.arange(8) * 10, files=tuple(files))


BATCHES = [np.array([0, 2]), np.array([1, 3, 5]), np.array([7, 6, 4])]


def _bits(images: LabelledImages, batches, *, workers: int = 0, epoch: int = 0, **options) -> list[torch.Tensor]:
    transform = _transform(**{"augment": "light", **options})
    resized = ResizedBatches(images, transform, device=CPU, workers=workers, persistent=False)
    return [normalise(pixels, transform) for pixels in resized.of(batches, augment_key=(3, epoch))]


@pytest.mark.parametrize("augment", ["none", "light"])
def test_workers_do_not_change_a_bit(tmp_path, augment):
    images = _files(tmp_path)
    alone, helped = (_bits(images, BATCHES, workers=workers, augment=augment) for workers in (0, 2))
    assert [len(batch) for batch in alone] == [2, 3, 3]
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_workers_live_through_all_epochs_and_draw_each_anew(tmp_path):
    images, transform = _files(tmp_path), _transform(augment="light")
    kept = ResizedBatches(images, transform, device=CPU, workers=2)
    others, seen = set(multiprocessing.active_children()), []
    for epoch in (0, 1, 2):
        pixels = list(kept.of(BATCHES, augment_key=(3, epoch)))
        seen.append(set(multiprocessing.active_children()) - others)
        expected = _bits(images, BATCHES, epoch=epoch)
        assert all(torch.equal(normalise(a, transform), b) for a, b in zip(pixels, expected, strict=True))
        next(kept.of(BATCHES, augment_key=(3, epoch)))  # one that is not read to its end disturbs no later one
    assert len(seen[0]) == 2 and seen[0] == seen[1] == seen[2]


def test_grey_and_colour_share_a_batch(tmp_path):
    images = _files(tmp_path)
    mixed = _bits(images, [np.array([0, 1])], augment="none")[0]
    apart = _bits(images, [np.array([0]), np.array([1])], augment="none")
    assert torch.equal(mixed, torch.cat(apart))


def test_augmentation_belongs_to_the_image_and_the_epoch():
    noise = np.random.default_rng(0).integers(0, 256, (6, 28, 28, 3), dtype=np.uint8)
    images = LabelledImages(np.zeros(6, np.int64), np.arange(6) + 100, noise)
    together = _bits(images, [np.arange(6)])[0]
    order = np.array([4, 0, 5, 2, 1, 3])
    apart = torch.cat(_bits(images, [order[:1], order[1:4], order[4:]]))
    assert torch.equal(together[order], apart)
    subset = images.subset(order[:2])  # an image keeps its draws in any subset of the data
    assert torch.equal(_bits(subset, [np.arange(2)])[0], together[order[:2]])
    assert not torch.equal(_bits(images, [np.arange(6)], epoch=1)[0], together)
    assert torch.equal(_bits(images, [np.arange(6)])[0], together)


def test_augmentation_draws_at_the_published_rates(monkeypatch):
    counts = dict.fromkeys(("horizontal_flip", "affine", "adjust_brightness", "adjust_contrast", "gaussian_blur"), 0)
    for name in counts:

        def count(image, *args, name=name, **options):
            counts[name] += 1
            return image

        monkeypatch.setattr(v2.functional, name, count)
    image = torch.zeros(1, 4, 4, dtype=torch.uint8)
    for index in range(2000):
        augmentation.light(image, seed=0, epoch=0, index=index)
    rates = {name: count / 2000 for name, count in counts.items()}
    expected = dict.fromkeys(counts, 0.5) | {"gaussian_blur": 0.3}
    assert rates == pytest.approx(expected, abs=0.045)  # four standard errors
    assert counts["adjust_brightness"] == counts["adjust_contrast"]


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_keeps_shape_and_type(channels):
    image = torch.randint(0, 256, (channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    drawn = [augmentation.light(image, seed=0, epoch=0, index=i) for i in range(20)]
    assert all(one.shape == image.shape and one.dtype == torch.uint8 for one in drawn)
    assert sum(torch.equal(one, image) for one in drawn) < 10


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanished_is_named(tmp_path, workers):
    images = _files(tmp_path)
    images.files[5].unlink()
    with pytest.raises(UserError, match=r"5\.png.*No such file") as caught:
        _bits(images, BATCHES, workers=workers)
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_worker_is_a_user_error(monkeypatch):
    def die(self, number):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(loader._Prepared, "__getitem__", die)
    with pytest.raises(UserError, match="`workers`"):
        _bits(LabelledImages(np.zeros(2), np.arange(2), np.zeros((2, 8, 8), np.uint8)), [np.arange(2)], workers=1)
