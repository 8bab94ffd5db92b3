"""A data set is one entry of ``DATASETS``: what the entry says is so, and every script takes it from there."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_cifar import publish_cifar, write_cifar

import evaluate
import train_cnn_head
from common import cli
from common.data import registry
from common.data.dataset import load_dataset
from common.data.registry import DATASETS
from common.evaluation.comparison import compare
from common.grid import prefetch
from common.runs.result import find_runs
from common.runtime.errors import UserError


@pytest.mark.parametrize("name", DATASETS)
def test_the_classes_of_an_entry_can_be_told_apart_in_an_image_folder(name):
    classes = DATASETS[name].classes
    known = [{registry._plain(label), str(number)} for number, label in enumerate(classes)]
    assert len(set.union(*known)) == sum(map(len, known))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifars_labels_number_the_classes_alphabetically(name):
    assert list(DATASETS[name].classes) == sorted(DATASETS[name].classes)


@pytest.mark.parametrize("name", [name for name, spec in DATASETS.items() if spec.torchvision])
def test_an_entry_has_torchvisions_files_and_sums(name):
    from torchvision import datasets

    spec = DATASETS[name]
    kind = getattr(datasets, spec.torchvision)
    if hasattr(kind, "base_folder"):
        assert (spec.folder, spec.archive) == (kind.base_folder, kind.filename)
        assert dict(spec.files) == dict(map(tuple, [*kind.train_list, *kind.test_list]))
    else:
        assert spec.folder == f"{kind.__name__}/raw"
        assert list(spec.files) == [archive.removesuffix(".gz") for archive, _ in kind.resources]
    assert prefetch.download_bytes(name) > 10e6


def test_digits_have_the_sizes_of_their_entry():
    digits = load_dataset("digits", data_dir=Path("absent"))
    sizes = len(digits.train) + len(digits.val), len(digits.test)
    assert sizes == (DATASETS["digits"].num_train, DATASETS["digits"].num_test)


def test_what_has_no_download_is_neither_fetched_nor_looked_for_on_the_internet(tmp_path, monkeypatch):
    own = replace(DATASETS["mnist"], torchvision=None, hub=None, download=None)
    monkeypatch.setitem(DATASETS, "own", own)
    configs = [train_cnn_head.Config(dataset=name, weights="random") for name in ("digits", "own", "mnist")]
    assert prefetch.wanted(configs) == ["mnist"]
    with pytest.raises(UserError, match="own is not under"):
        load_dataset("own", data_dir=tmp_path)


def test_cifar100_is_trained_on_scored_and_named_like_any_other_data_set(tmp_path, monkeypatch, capsys):
    data_dir, results = tmp_path / "data", tmp_path / "results"
    write_cifar(data_dir, "cifar100")
    publish_cifar(data_dir, "cifar100", monkeypatch)
    folders = [f"--data-dir={data_dir}", "--dataset=cifar100"]
    argv = ["--backbone=test_resnet", "--weights=random", "--image-size=32", "--epochs=1", "--val-fraction=0.34"]
    argv += [f"--results-dir={results}", "--no-feature-cache"]
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, argv + folders) == 0, capsys.readouterr().err

    (run,), problems = find_runs(results)
    record = json.loads((run.folder / "result.json").read_text())
    assert not problems and run.folder.parent.parent.name == "cifar100"
    assert record["data"]["classes"] == list(DATASETS["cifar100"].classes)
    assert record["data"]["num_test"] == 300 and len(record["test"]["confusion_matrix"]) == 100

    scores = tmp_path / "scores.json"
    argv = [str(run.folder), *folders, f"--out={scores}"]
    assert cli.run(evaluate.main, evaluate.Config, argv) == 0, capsys.readouterr().err
    assert json.loads(scores.read_text())["scores"]["accuracy"] == record["test"]["accuracy"]

    ((comparison,), _) = compare([run], {})
    assert comparison.title == "CIFAR-100"


def test_cifar100_as_an_image_folder_has_the_published_numbers_of_its_classes(tmp_path):
    classes = DATASETS["cifar100"].classes
    for part, count in (("train", 2), ("test", 1)):
        for number, label in enumerate(classes):
            folder = tmp_path / "cifar100" / part / (label if number % 2 else label.replace("_", " ").title())
            folder.mkdir(parents=True)
            for image in range(count):
                Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(folder / f"{image}.png")
    loaded = load_dataset("cifar100", data_dir=tmp_path, val_fraction=0.5)
    assert loaded.classes == classes
    np.testing.assert_array_equal(loaded.test.labels, loaded.test.pixels[:, 0, 0, 0])
