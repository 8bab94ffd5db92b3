"""CIFAR-10 and CIFAR-100 with a few random images, in the published files' own format."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.data.registry import DATASETS


def write_cifar(data_dir: Path, name: str, *, images_a_class: int = 3) -> type:
    """Write the pickles of data set ``name`` below ``data_dir`` and return torchvision's class for it."""
    from torchvision import datasets

    spec = DATASETS[name]
    kind = getattr(datasets, spec.torchvision)
    folder = data_dir / kind.base_folder
    folder.mkdir(parents=True)
    labels = np.arange(images_a_class * len(spec.classes)) % len(spec.classes)
    key = {"label_names": "labels", "fine_label_names": "fine_labels"}[kind.meta["key"]]
    for seed, (file, _) in enumerate([*kind.train_list, *kind.test_list]):
        pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3 * 32 * 32), dtype=np.uint8)
        batch = {"data": pixels, key: labels.tolist(), "coarse_labels": (labels % 20).tolist(), "filenames": []}
        (folder / file).write_bytes(pickle.dumps(batch))
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: list(spec.classes)}))
    return kind


def publish_cifar(data_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the MD5 sums of what ``write_cifar`` wrote be the published ones, here and in torchvision."""
    from torchvision import datasets

    spec = DATASETS[name]
    kind = getattr(datasets, spec.torchvision)
    sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in (data_dir / kind.base_folder).iterdir()}
    for files in ("train_list", "test_list"):
        monkeypatch.setattr(kind, files, [(file, sums[file]) for file, _ in getattr(kind, files)])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": sums[kind.meta["filename"]]})
    monkeypatch.setitem(DATASETS, name, replace(spec, files={file: sums[file] for file in spec.files}))
