"""A label file beside images says what they are; where it and the images do not fit, one line counts everything."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
import reproduce
import train_cnn_head
from common import cli
from common.data.dataset import DatasetSplits, load_dataset, load_labelled
from common.runtime.errors import UserError


def _images(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def _table(
    folder: Path, rows: list[tuple[str, ...]], *, name: str = "labels.csv", header: str = "file_name,label"
) -> None:
    (folder / name).write_text("\n".join([header, *map(",".join, rows)]) + "\n", encoding="utf-8")


def _folder(folder: Path, labels: Mapping[str, str], **options) -> Path:
    """Write an image for each file name in ``labels`` and the table that gives its label (``label,split``)."""
    _images(folder, list(labels))
    _table(folder, [(name, label) for name, label in labels.items()], **options)
    return folder


PETS = {f"{number:03}.png": "cat" if number % 2 else "dog" for number in range(20)}
SPLIT = "file_name,label,split"


def _load(folder: Path, **options) -> DatasetSplits:
    return load_dataset(str(folder), **{"data_dir": Path("absent"), "val_fraction": 0.25, **options})


def _labels(images) -> dict[str, int]:
    return {file.name: label for file, label in zip(images.files, images.labels.tolist(), strict=True)}


def _refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        _load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Layouts


@pytest.mark.parametrize("name", ["labels.csv", "metadata.csv"])
def test_a_flat_folder_without_splits_is_split_80_20(tmp_path, name):
    found = _load(_folder(tmp_path / "pets", PETS, name=name))
    assert (len(found.train), len(found.val), len(found.test)) == (12, 4, 4) and found.classes == ("cat", "dog")
    for images in (found.train, found.val, found.test):
        assert all(found.classes[label] == PETS[file] for file, label in _labels(images).items())
    assert found.read_from == f"label file {name}" and "20 % of each class" in " ".join(found.notes)
    assert found.name == "pets"


def test_the_split_column_says_what_is_trained_on_and_what_is_tested(tmp_path):
    parts = ["train"] * 12 + ["Valid"] * 4 + ["test"] * 4
    rows = {name: f"{label},{part}" for (name, label), part in zip(PETS.items(), parts, strict=True)}
    found = _load(_folder(tmp_path, rows, header=SPLIT))
    names = sorted(PETS)
    assert [sorted(_labels(images)) for images in (found.train, found.val, found.test)] == [
        names[:12],
        names[12:16],
        names[16:],
    ]
    instead = _load(_folder(tmp_path / "no_test", {n: r for n, r in rows.items() if "test" not in r}, header=SPLIT))
    assert sorted(_labels(instead.test)) == names[12:16] and "'val' serves as the test split" in " ".join(instead.notes)


def test_a_nested_folder_and_what_spreadsheets_write(tmp_path):
    """A byte order mark, further columns, spaces, quotes, backslashes, links and hidden files."""
    names = [f"camera {n % 3}/day{n % 2}/{n}, left.PNG" for n in range(20)]
    _images(tmp_path, names)
    rows = [f'"{name}", {"Ärger" if n % 2 else "犬"} ,note,{n}'.replace("/", "\\") for n, name in enumerate(names)]
    text = "\r\n".join(["file_name,label,remark,id", *rows, ""])
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8-sig", newline="")
    _images(tmp_path / ".thumbnails", ["1.png"])
    (tmp_path / "camera 0" / "._0.png").touch()
    found = _load(tmp_path)
    assert found.classes == ("Ärger", "犬") and len(found.train) + len(found.val) + len(found.test) == 20
    assert all(label == 1 - int(file.split(",")[0]) % 2 for file, label in _labels(found.train).items())

    (tmp_path / "linked").symlink_to(tmp_path / "camera 1", target_is_directory=True)
    shutil.move(tmp_path / "camera 1", tmp_path.parent / "elsewhere")
    (tmp_path / "linked").unlink()
    (tmp_path / "camera 1").symlink_to(tmp_path.parent / "elsewhere", target_is_directory=True)
    assert _load(tmp_path).fingerprint == found.fingerprint


def _class_folders(folder: Path) -> dict[str, str]:
    """Write train/<class> and test/<class> and return what a label file would say."""
    labels = {f"train/{label}/{n}.png": label for label in ("cat", "dog") for n in range(8)}
    labels |= {f"test/{label}/{n}.png": label for label in ("cat", "dog") for n in range(2)}
    _images(folder, list(labels))
    return labels


@pytest.mark.parametrize("header", ["file_name,label", SPLIT])
def test_beside_class_folders_it_must_agree_with_them_and_then_changes_nothing(tmp_path, header):
    labels = _class_folders(tmp_path)
    before = _load(tmp_path)
    split = header == SPLIT
    rows = [(name, label, *([name.split("/")[0]] if split else [])) for name, label in sorted(labels.items())]
    _table(tmp_path, rows[::-1], header=header)
    after = _load(tmp_path)
    assert after.fingerprint == before.fingerprint and after.train.files == before.train.files
    np.testing.assert_array_equal(after.test.labels, before.test.labels)
    assert (before.read_from, after.read_from) == ("class folders", "label file labels.csv")

    wrong = [(name, "cat" if "7" in name else label, *rest) for name, label, *rest in rows]
    _table(tmp_path, wrong, header=header)
    assert "1 images in the folder of another class ('train/dog/7.png: cat')" in _refusal(tmp_path)
    if split:
        _table(tmp_path, [(name, label, "train") for name, label in labels.items()], header=header)
        assert "4 images in the folder of another split ('test/cat/0.png: train'" in _refusal(tmp_path)


def test_another_table_beside_class_folders_is_ignored_and_noted(tmp_path):
    _class_folders(tmp_path)
    before = _load(tmp_path)
    for content in ("image,caption\n1.png,a cat\n", "", "\xff\xfe", "file_name;label\n1.png;cat\n"):
        (tmp_path / "metadata.csv").write_bytes(content.encode("latin1"))
        after = _load(tmp_path)
        assert after.fingerprint == before.fingerprint and after.read_from == "class folders"
        assert "ignored 'metadata.csv': its first line is not file_name,label" in " ".join(after.notes)
    rows = sorted(_class_folders(tmp_path).items())
    _table(tmp_path, rows)
    assert _load(tmp_path).read_from == "label file labels.csv"  # the one that is meant


# What does not fit


def test_everything_that_does_not_fit_is_counted_in_one_line(tmp_path):
    rows = {name: f"{label},train" for name, label in PETS.items()}
    rows |= {"018.png": "dog,holdout", "019.png": ",test"}
    _folder(tmp_path, rows, header=SPLIT)
    _images(tmp_path, [f"new/{n}.png" for n in range(7)])
    _images(tmp_path.parent, ["outside.png"])
    with open(tmp_path / "labels.csv", "a") as file:
        file.write("absent.png,cat,test\n../outside.png,cat,test\nlabels.csv,cat,test\n./001.png,dog,train\n")
    message = _refusal(tmp_path)
    for part in (
        repr(str(tmp_path / "labels.csv")),
        "1 rows without a label ('019.png')",
        "1 repeated rows ('001.png')",
        "3 files that are not there ('absent.png', '../outside.png', 'labels.csv')",
        "7 images that it does not list ('new/0.png', 'new/1.png', 'new/2.png', 'new/3.png', 'new/4.png', ...)",
        "1 splits other than train, test, val, valid, validation ('018.png: holdout')",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("header", "rows", "said"),
    [
        ("filename,label", [], "the first line of"),
        ("file_name;label", [], "is 'file_name;label', but must be file_name,label or file_name,label,split"),
        ("", [], "is '', but must be"),
        ("file_name,label", [(name, "cat") for name in PETS], "has 1 labels: at least two are needed"),
        ("file_name,label", [(name,) for name in PETS], "20 rows without a label"),
        ("file_name,label", [("000.png", "dog", " black")], "line 2 of"),
        (SPLIT, [(*row, "test") for row in PETS.items()], "has the split test but needs train with test (or val)"),
        (SPLIT, [(*row, "train") for row in PETS.items()], "has the split train but needs"),
        (SPLIT, list(PETS.items()), "20 splits other than"),
        (SPLIT, [(n, label + "x" * (p == "test"), p) for n, label, p in
                 [(*row, "test" if i > 15 else "train") for i, row in enumerate(PETS.items())]],
         "test has classes that train lacks: 'catx', 'dogx'"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_used_are_refused(tmp_path, header, rows, said):
    _images(tmp_path, list(PETS))
    _table(tmp_path, rows, header=header)
    assert said in _refusal(tmp_path)


def test_two_tables_and_a_table_that_is_no_text_are_refused(tmp_path):
    _folder(tmp_path, PETS)
    _folder(tmp_path, PETS, name="metadata.csv")
    assert "has two label files, metadata.csv and labels.csv" in _refusal(tmp_path)
    (tmp_path / "metadata.csv").unlink()
    with open(tmp_path / "labels.csv", "ab") as file:
        file.write(b"\xff\xfe\n")
    assert "is no CSV file in UTF-8" in _refusal(tmp_path)


def test_damaged_images_are_listed_or_left_out(tmp_path):
    _folder(tmp_path, PETS)
    (tmp_path / "004.png").write_bytes(b"")
    assert "'004.png' (it has 0 bytes)" in _refusal(tmp_path)
    assert _load(tmp_path, skip_damaged=True).skipped == ("004.png",)


# In the scripts


def test_it_is_trained_on_compared_and_scored(tmp_path, capsys):
    rows = {name: f"{label},{'test' if number > 13 else 'train'}" for number, (name, label) in enumerate(PETS.items())}
    pets = _folder(tmp_path / "pets", rows, header=SPLIT)
    argv = [f"--dataset={pets}", "--backbone=test_resnet", "--weights=random", "--image-size=32", "--epochs=1"]
    argv += ["--val-fraction=0.3", f"--results-dir={tmp_path / 'results'}", "--no-feature-cache", "--workers=0"]
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, argv) == 0, capsys.readouterr().err
    (file,) = (tmp_path / "results").rglob("result.json")
    record = json.loads(file.read_text())
    assert record["data"]["read_from"] == "label file labels.csv" and record["data"]["num_test"] == 6

    scores = tmp_path / "scores.json"
    argv = [str(file.parent), f"--dataset={pets}", f"--out={scores}"]
    assert cli.run(evaluate.main, evaluate.Config, argv) == 0, capsys.readouterr().err
    assert json.loads(scores.read_text())["scores"]["accuracy"] == record["test"]["accuracy"]
    more = _folder(tmp_path / "more", {f"{n}.png": "cat" if n % 3 else "dog" for n in range(40)})
    assert len(load_labelled(str(more), tmp_path)[0]) == 40  # all of them, where there is no test split

    capsys.readouterr()
    argv = ["compare", f"--dataset={more}", "--backbones", "demo_resnet", "--methods", "probe", "--list"]
    assert cli.run(reproduce.main, reproduce.Config, [*argv, f"--results-dir={tmp_path / 'other'}"]) == 0
    assert "missing    more/demo_resnet.cifar10-head_probe" in capsys.readouterr().out
