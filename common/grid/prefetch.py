"""What a grid of runs reads from the internet: how large it is, and fetching it before any run needs it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.data import registry
from common.data.registry import DATASETS
from common.runtime.errors import UserError

# Of the profiles' backbones, to say before they start.
WEIGHTS_BYTES = {
    "vit_base_patch16_224.augreg_in1k": 346_000_000,
    "resnet50.tv2_in1k": 102_000_000,
    "resnet50.tv_in1k": 102_000_000,
    "efficientnet_b0.ra_in1k": 21_400_000,
    "tf_efficientnet_lite0.in1k": 18_800_000,
}


def wanted(configs: Sequence[Any]) -> list[str]:
    """Return the data sets and backbones of training ``configs`` that neither a package nor this repository brings."""
    remote = [config.dataset for config in configs if config.dataset in DATASETS and DATASETS[config.dataset].download]
    pretrained = [config.backbone for config in configs if config.weights == "pretrained"]
    return list(dict.fromkeys([*remote, *(tag for tag in pretrained if not tag.startswith("demo_"))]))


def download_bytes(name: str) -> int:
    """Return how large the download of a data set or backbone is, 0 where that is not known."""
    return DATASETS[name].download_bytes if name in DATASETS else WEIGHTS_BYTES.get(name, 0)


def fetch(names: Iterable[str], data_dir: Path, *, source: str = "auto") -> dict[str, str]:
    """Find or download what ``wanted`` named, data sets below ``data_dir``; return why each that is absent is.

    ``source`` is what the data sets are read from (``data.registry.read``).

    One after the other: processes side by side would download the same file over each other.
    """
    absent = {}
    for name in names:
        size = download_bytes(name)
        print(f"looking for {name}" + f" ({size / 1e6:,.0f} MB where it must be downloaded)" * bool(size), flush=True)
        try:
            _fetch(name, data_dir, source)
        except UserError as error:
            absent[name] = str(error)
    return absent


def _fetch(name: str, data_dir: Path, source: str) -> None:
    if name in DATASETS:
        registry.read(name, data_dir, source=source)
    else:
        from common.models import weights  # loads PyTorch, which the demo's parent process does without

        weights.download(name)
