"""The record of a run: what is written comes back, and nothing else is accepted."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fake_results import fake_run

from common.runs.predictions import npz_bytes, read_predictions
from common.runs.record import FileRecord
from common.runs.result import encode_record, find_runs, read_result, write_result
from common.runs.schema import as_json
from common.runtime.errors import UserError
from common.runtime.files import sha256


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fake_run(tmp_path_factory.mktemp("results"), num_test=40)


@pytest.fixture
def path(run, tmp_path):
    """A file to damage, as a copy of a good ``result.json``."""
    copy = tmp_path / "result.json"
    copy.write_bytes((run.folder / "result.json").read_bytes())
    return copy


def rehashed(path, **changes):
    """Write a copy whose hash is right but whose content is not what a run writes."""
    result = {**json.loads(path.read_bytes()), **changes}
    path.write_bytes(encode_record({key: value for key, value in result.items() if value != "REMOVED"}))
    return path


def test_round_trip(run, tmp_path):
    write_result(tmp_path, run.result)
    assert read_result(tmp_path / "result.json") == run.result
    assert (tmp_path / "result.json").read_bytes() == (run.folder / "result.json").read_bytes()


def test_the_layout_is_for_people_and_the_hash_is_not_of_it(path):
    lines = path.read_text().splitlines()
    assert len(lines) < 150 and max(map(len, lines)) <= 220
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
    read_result(path)


def test_names_of_any_kind_survive(run, tmp_path):
    notes = ["新 $x_1$ & 100 %\n\t", "undecodable \udc80 byte", '"quoted" \\']
    write_result(tmp_path, replace(run.result, notes=notes))
    assert read_result(tmp_path / "result.json").notes == notes


def test_values_that_json_changes_are_hashed_as_they_will_be_read(run, tmp_path):
    write_result(tmp_path, replace(run.result, config={10: (1, 2), 9: None}))
    assert read_result(tmp_path / "result.json").config == {"10": [1, 2], "9": None}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_never_written(run, tmp_path, bad):
    with pytest.raises(ValueError, match="JSON"):
        write_result(tmp_path, replace(run.result, config={"value": bad}))
    assert not list(tmp_path.iterdir())


def test_any_flipped_byte_is_refused_or_changes_nothing(run, path):
    content = path.read_bytes()
    for position in range(0, len(content), 37):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            assert read_result(path) == run.result  # white space between fields says nothing
        except UserError as error:
            assert repr(str(path)) in str(error) and "\n" not in str(error)
        else:
            assert chr(content[position]).isspace()


def test_any_truncation_is_refused(path):
    content = path.read_bytes().rstrip()
    for length in range(0, len(content), 101):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="not valid JSON"):
            read_result(path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[" * 100_000, b"[]", b"3", b"null", b"{}", b'{"a": NaN}', b"NaN"]
)
def test_foreign_files_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"result\.json"):
        read_result(path)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "1.5000001"])
def test_a_number_that_was_edited_is_refused(run, path, number):
    write_result(path.parent, replace(run.result, config={"lr": 1.5}))
    path.write_text(path.read_text().replace('{"lr": 1.5}', f'{{"lr": {number}}}'))
    with pytest.raises(UserError, match="was changed"):
        read_result(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_result(tmp_path / "result.json")


def test_another_version_is_refused(path):
    with pytest.raises(UserError, match="schema_version 2"):
        read_result(rehashed(path, schema_version=2))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"test": "REMOVED"}, "test is missing"),
        ({"test": {"accuracy": 1.0}}, r"test\.per_class is missing"),
        ({"seed": True}, "seed should be a whole number"),
        ({"seed": -1}, "seed should lie in"),
        ({"data": []}, "data is list"),
        ({"history": []}, "best_epoch is not in the history"),
        ({"method": "magic"}, "method is 'magic', and this code knows lora, head_mlp, head_linear"),
        ({"notes": [1]}, r"notes\[0\] is int"),
        ({"files": {"x": 1}}, r"files\.x"),
    ],
)
def test_wrong_fields_are_named(path, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        read_result(rehashed(path, **changes))


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("accuracy", 0.5, "accuracy is not that of confusion_matrix"),
        ("accuracy", None, "accuracy is not that of confusion_matrix"),
        ("f1_macro", [1.0], "f1_macro should be a number"),
        ("accuracy", "high", "accuracy should be a number"),
        ("confusion_matrix", [[40]], "not 10 x 10"),
        ("per_class", [], "does not list data.classes"),
    ],
)
def test_contradictions_in_the_metrics_are_named(run, path, field, value, complaint):
    with pytest.raises(UserError, match=complaint):
        read_result(rehashed(path, test={**as_json(run.result.test), field: value}))


def test_auc_may_be_null(run, path):
    rehashed(path, test={**as_json(run.result.test), "auc_macro": None})
    assert read_result(path).test.scores["auc_macro"] is None


def test_find_reads_exactly_the_documented_places_in_natural_order(tmp_path):
    for seed in (10, 2, 0):
        fake_run(tmp_path, seed=seed, num_test=20)
    fake_run(tmp_path, dataset="mnist", num_test=20)
    fake_run(tmp_path / "nested" / "deeper", num_test=20)
    (tmp_path / "mnist" / "unfinished" / "seed0").mkdir(parents=True)
    runs, problems = find_runs(tmp_path)
    assert problems == []
    assert [(run.dataset, run.seed) for run in runs] == [("cifar10", 0), ("cifar10", 2), ("cifar10", 10), ("mnist", 0)]
    assert {run.name for run in runs} == {"resnet50.tv2_in1k-head_mlp"}
    assert len(find_runs(tmp_path, "mnist/*")[0]) == 1
    assert len(find_runs(tmp_path, "resnet50*")[0]) == 4
    assert find_runs(tmp_path, "vit*") == ([], [])
    assert find_runs(tmp_path / "absent") == ([], [])


def test_one_damaged_record_does_not_hide_the_others(tmp_path):
    good, bad = (fake_run(tmp_path, seed=seed, num_test=20) for seed in (0, 1))
    (bad.folder / "result.json").write_bytes(b"{")
    runs, (problem,) = find_runs(tmp_path)
    assert [run.folder for run in runs] == [good.folder]
    assert repr(str(bad.folder / "result.json")) in problem


def test_a_copy_of_a_seed_is_not_a_second_seed(tmp_path):
    run = fake_run(tmp_path, num_test=20)
    run.folder.rename(run.folder.with_name("seed7"))
    runs, (problem,) = find_runs(tmp_path)
    assert runs == [] and "seed 0" in problem


def test_predictions_round_trip(run):
    predictions = read_predictions(run.folder, run.result)
    assert predictions.logits.dtype == np.float32 and predictions.logits.shape == (40, 10)
    assert predictions.val_labels.dtype == np.int64 and predictions.val_labels.shape == (20,)
    accuracy = (predictions.logits.argmax(1) == predictions.labels).mean()
    assert accuracy == run.result.test.scores["accuracy"]


def test_the_same_arrays_are_the_same_bytes_and_numpy_reads_them(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([], dtype=np.int64)}
    content = npz_bytes(**arrays)
    assert content == npz_bytes(**arrays)
    (tmp_path / "a.npz").write_bytes(content)
    with np.load(tmp_path / "a.npz") as read:
        assert all((read[name] == array).all() and read[name].dtype == array.dtype for name, array in arrays.items())


def test_predictions_are_deflated_and_those_that_are_not_are_read_too(run, tmp_path):
    predictions = read_predictions(run.folder, run.result)
    with open(tmp_path / "predictions.npz", "wb") as file:
        np.savez(file, **vars(predictions))
    stored = (tmp_path / "predictions.npz").read_bytes()
    assert len(npz_bytes(**vars(predictions))) < 0.9 * len(stored)
    files = {"predictions.npz": FileRecord(sha256=sha256(stored), bytes=len(stored))}
    again = read_predictions(tmp_path, replace(run.result, files=files))
    assert all((vars(again)[name] == array).all() for name, array in vars(predictions).items())


def test_objects_are_never_pickled():
    with pytest.raises(ValueError, match="allow_pickle"):
        npz_bytes(a=np.array([{}], dtype=object))


def test_any_damage_to_the_predictions_is_refused(run, tmp_path):
    content = (run.folder / "predictions.npz").read_bytes()
    flipped = (content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in range(0, len(content), 211))
    for other in (content[:-1], b"", content + b"\0", *flipped):
        (tmp_path / "predictions.npz").write_bytes(other)
        with pytest.raises(UserError, match="SHA-256"):
            read_predictions(tmp_path, run.result)
    with pytest.raises(UserError, match="cannot read"):
        read_predictions(tmp_path / "absent", run.result)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"logits": np.zeros((40, 9), np.float32)}, "logits is"),
        ({"logits": np.zeros((40, 10))}, "logits is float64"),
        ({"logits": np.full((40, 10), np.nan, np.float32)}, "not a number"),
        ({"labels": np.full(40, 10)}, "labels lie in"),
        ({"indices": np.zeros(40, np.int64)}, "repeated"),
        ({"val_labels": np.zeros(3, np.int64)}, "val_labels is"),
    ],
)
def test_predictions_that_do_not_fit_the_record_are_refused(run, tmp_path, changes, complaint):
    predictions = read_predictions(run.folder, run.result)
    content = npz_bytes(**{**vars(predictions), **changes})
    (tmp_path / "predictions.npz").write_bytes(content)
    files = {"predictions.npz": FileRecord(sha256=sha256(content), bytes=len(content))}
    with pytest.raises(UserError, match=complaint):
        read_predictions(tmp_path, replace(run.result, files=files))


DEFLATED = npz_bytes(logits=np.zeros(30))
CUT = DEFLATED[:60] + b"\xff" * 8 + DEFLATED[68:]  # within the deflated bytes


@pytest.mark.parametrize("content", [b"no zip", npz_bytes(logits=np.zeros(3)), b"PK\x03\x04", CUT])
def test_other_files_with_the_right_hash_are_refused(run, tmp_path, content):
    (tmp_path / "predictions.npz").write_bytes(content)
    files = {"predictions.npz": FileRecord(sha256=sha256(content), bytes=len(content))}
    with pytest.raises(UserError, match="not a file of predictions"):
        read_predictions(tmp_path, replace(run.result, files=files))
