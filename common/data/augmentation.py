"""The published training augmentation, drawn for each image by itself.

torchvision's v2 transforms draw once for a whole batch; here the draw is keyed by (seed, epoch, image index): an image
gets the same augmentation whatever its batch, the number of workers, or where a run was resumed.
"""

import torch

from common.runtime.seeding import numpy_generator


def light(image: torch.Tensor, *, seed: int, epoch: int, index: int) -> torch.Tensor:
    """Return one augmented image, (C, S, S) uint8 in and out.

    Each with its own probability: horizontal flip 0.5; affine 0.5 (rotation up to 10 degrees, translation up to 5 %,
    scale 0.9 to 1.1); brightness and contrast 0.5 (factors 0.8 to 1.2); Gaussian blur 0.3 (kernel 3, 5 or 7,
    sigma 0.1 to 2).
    """
    from torchvision.transforms.v2 import functional  # imports PyTorch's compiler: more than a second

    rng = numpy_generator(seed, "augment", epoch=epoch, step=index)
    # Everything is drawn, used or not, so that no draw moves the ones after it.
    flip, affine, colour, blur = rng.random(4) < (0.5, 0.5, 0.5, 0.3)
    angle, (shift_x, shift_y), scale = rng.uniform(-10, 10), rng.uniform(-0.05, 0.05, 2), rng.uniform(0.9, 1.1)
    brightness, contrast = rng.uniform(0.8, 1.2, 2)
    kernel, sigma = int(rng.choice([3, 5, 7])), rng.uniform(0.1, 2.0)
    side = image.shape[-1]
    if flip:
        image = functional.horizontal_flip(image)
    if affine:
        image = functional.affine(
            image,
            angle=angle,
            translate=[round(shift_x * side), round(shift_y * side)],
            scale=scale,
            shear=[0.0, 0.0],
            interpolation=functional.InterpolationMode.BILINEAR,
        )
    if colour:
        image = functional.adjust_contrast(functional.adjust_brightness(image, brightness), contrast)
    if blur:
        image = functional.gaussian_blur(image, [kernel, kernel], [sigma, sigma])
    return image
