"""The fifteen corruptions of Hendrycks and Dietterich 2019, arXiv:1903.12261 (ImageNet-C), at five severities.

They are those of the package imagecorruptions-imaug, whose constants are ImageNet-C's, made for images of 224 pixels:
on smaller ones most are harder. Each image is drawn by itself, from its kind, severity and number alone.
"""

import contextlib
import importlib.metadata
from collections.abc import Iterator

import numpy as np

from common.runtime.errors import UserError

KINDS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST_SIDE = 32  # pixels
PACKAGE = "imagecorruptions-imaug"
_WITH_SEED = ("impulse_noise", "glass_blur")  # these draw from a generator of their own


def prepare(kinds: tuple[str, ...]) -> str:
    """Load the package, compile what it compiles, and return its name and version; once, before processes are forked.

    Raises:
        UserError: it is not installed.
    """
    try:
        import cv2
        import imagecorruptions  # noqa: F401, one and a half seconds
    except ImportError as error:
        raise UserError(f"`corrupt` needs the package {PACKAGE}: pip install {PACKAGE} ({error})") from error
    cv2.setNumThreads(0)  # its threads do not survive a fork
    if "glass_blur" in kinds:
        for severity in (1, 3):  # with a real and with a whole number
            corrupt(np.zeros((SMALLEST_SIDE, SMALLEST_SIDE, 3), np.uint8), "glass_blur", severity, 0)
    return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"


def corrupt(image: np.ndarray, kind: str, severity: int, index: int) -> np.ndarray:
    """Return ``image``, uint8 (H, W, 3) of at least 32 pixels a side, with one of ``KINDS`` at a severity of 1 to 5.

    ``index`` is the image's number in its split; NumPy's global generator is left as it was.
    """
    import imagecorruptions

    seed = int(np.random.SeedSequence([KINDS.index(kind), severity, index]).generate_state(1)[0])
    with _global_seed(seed):
        return imagecorruptions.corrupt(image, severity, kind, **({"seed": seed} if kind in _WITH_SEED else {}))


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    state = np.random.get_state()  # noqa: NPY002, the package draws from it
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
