"""The report: the numbers of the records, the right images, nothing that a name could inject, nothing loaded."""

import base64
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from digit_runs import SETTINGS, digit_runs
from fake_results import MODELS, fake_run
from PIL import Image

import plot_results
from common import cli, figures
from common.data.images import LabelledImages
from common.evaluation import comparison
from common.evaluation.formatting import mean_sd
from common.evaluation.frames import frames_of
from common.evaluation.metrics import METRICS
from common.evaluation.uncertainty import compute_uncertainty
from common.report import explorer, provenance, thumbnails
from common.report.html import SUMMARY, model_rows, write_report
from common.report.sentences import named_pairs, verdict_sentences
from common.runs.predictions import PREDICTIONS_FILE
from common.runs.result import find_runs

LORA, RESNET, EFFICIENTNET, *_ = MODELS
ROOT = Path(__file__).parents[1]
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "\"'><img src=x onerror=alert(3)>",
    "\u202eright to left\u2028<!--",
    "{{ 7 * 7 }} &amp; \udc80 \x00",
)


def compare(folder: Path, **labels: str) -> list:
    runs, problems = find_runs(folder)
    assert problems == []
    return comparison.compare(runs, labels)[0]


def write(path: Path, comparisons: list, figures: dict | None = None) -> list[str]:
    """Write the report of ``comparisons`` without looking elsewhere for their images; return its notes."""
    files = {comparison.dataset: [] for comparison in comparisons} | {"": []} | (figures or {})
    statistics = frames_of(comparisons), compute_uncertainty(comparisons)
    return write_report(path, comparisons, *statistics, figures=files, data_dir=None)


def data_of(page: str) -> dict:
    """Return the JSON inside a page, as a browser cuts it out."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def unpacked(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def seen(labels: list[int], *runs: tuple[list[int], list[float]]) -> explorer.TestPredictions:
    predicted, confidence = zip(*runs, strict=True)
    scaled = np.rint(np.array(confidence) * explorer.FULL_CONFIDENCE).astype(np.uint16)
    return explorer.TestPredictions(np.array(labels), np.arange(len(labels)), np.array(predicted), scaled)


class Names(HTMLParser):
    """What a browser would make of a page: its elements, and the text of each <bdi>."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements, self.names = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.names += [""] if tag == "bdi" else []

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "bdi":
            self.names[-1] += data

    def handle_endtag(self, tag):
        self.elements.append((f"/{tag}", {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three models of two seeds on the real digits."""
    path = tmp_path_factory.mktemp("results")
    digit_runs(path)
    return path


# What goes in


def test_suspects_are_agreed_confident_and_against_the_label():
    tested = seen(
        [0, 0, 0, 0, 1],
        ([1, 1, 1, 0, 2], [0.99, 0.95, 0.99, 0.99, 0.90]),
        ([1, 2, 1, 0, 2], [0.97, 0.99, 0.70, 0.99, 0.92]),
    )
    found = explorer.suspects(tested)  # 1 is not agreed, 2 not confident, 3 right
    assert [(one["position"], one["predicted"]) for one in found] == [(0, 1), (4, 2)]
    assert found[0]["mean"] == pytest.approx(0.98, abs=1e-4) and found[0]["lowest"] == pytest.approx(0.97, abs=1e-4)


def test_thumbnails_go_to_mistakes_before_correct_images_and_to_the_first_of_a_cell(monkeypatch):
    monkeypatch.setattr(explorer, "SHOWN_AT_ONCE", 2)
    labels = [0] * 8
    predicted = [1, 1, 1, 0, 0, 0, 2, 0]
    tested = seen(labels, (predicted, [0.5, 0.8, 0.7, 0.9, 0.6, 0.8, 0.4, 0.1]))
    assert explorer.choose_thumbnails(tested, 4).tolist() == [1, 2, 3, 6]
    assert explorer.choose_thumbnails(tested, 8).tolist() == list(range(8))
    assert explorer.choose_thumbnails(tested, 7).tolist() == [1, 2, 3, 5, 6]


def test_disagreements_get_thumbnails_before_correct_images():
    tested = seen([0, 0, 1, 1], ([0, 0, 1, 1], [0.9] * 4), ([0, 1, 1, 0], [0.9, 0.6, 0.9, 0.7]))
    assert explorer.choose_thumbnails(tested, 2).tolist() == [1, 3]


def test_the_record_holds_what_the_runs_predicted(folder):
    (compared,) = compare(folder)
    tested = explorer.read_test_predictions(compared)
    record = explorer.explorer_record(compared, tested, None, "none here")
    packs = [
        trained | tested
        for model in record["models"]
        for trained, tested in zip(model["runs"], model["tested"], strict=True)
    ]
    runs = [run for series in compared.series for run in series.runs]
    for run, packed in zip(runs, packs, strict=True):
        arrays = np.load(run.folder / PREDICTIONS_FILE)
        exponents = np.exp(arrays["logits"].astype(float))
        assert np.array_equal(unpacked(packed["predicted"], "<u2"), arrays["logits"].argmax(axis=1))
        np.testing.assert_allclose(
            unpacked(packed["confidence"], "<u2") / explorer.FULL_CONFIDENCE,
            (exponents / exponents.sum(axis=1, keepdims=True)).max(axis=1),
            atol=1e-5,
        )
        assert packed["seed"] == run.seed and packed["name"] == f"seed {run.seed}"
        assert packed["val_loss"] == [row.val_loss for row in run.result.history]
    assert np.array_equal(unpacked(record["labels"], "<u2"), arrays["labels"])
    assert np.array_equal(unpacked(record["indices"], "<u4"), arrays["indices"])
    assert (record["sheet"], record["remark"]) == (None, "none here")


def test_the_summary_has_the_numbers_and_texts_of_the_tables(folder):
    comparisons = compare(folder)
    runs, uncertainty = frames_of(comparisons).runs, compute_uncertainty(comparisons)
    row = model_rows(comparisons, runs, SUMMARY, uncertainty)[1]
    accuracy = [run.test.scores["accuracy"] for run in row["series"].runs]
    mean = uncertainty.means.query(f"run == '{row['series'].name}' and metric == 'accuracy'").iloc[0]
    assert row["cells"]["Accuracy"]["value"] == pytest.approx(np.mean(accuracy))
    assert row["cells"]["Accuracy"]["text"] == f"{mean_sd(accuracy)} [{mean.low:.3f}, {mean.high:.3f}]"
    assert row["cells"]["Forward (GFLOPs)"]["text"] == "10.25"  # the same for every seed: no spread


def test_intervals_verdicts_and_all_metrics_are_on_the_page(folder, tmp_path):
    comparisons = compare(folder)
    write(tmp_path / "report.html", comparisons)
    page = Names((tmp_path / "report.html").read_text())
    verdicts = verdict_sentences(comparisons[0], named_pairs(frames_of(comparisons), compute_uncertainty(comparisons)))
    assert len(verdicts) == 3 and set(verdicts) <= set(page.names)
    text = (tmp_path / "report.html").read_text()
    for heading in (*(metric.label for metric in METRICS.values()), "Training with features (s)"):
        assert f"<button>{heading}</button>" in text
    intervals = re.findall(
        r">\d\.\d{3} ± \d\.\d{3}<br><span class=\"quiet\">\[\d\.\d{3}, \d\.\d{3}\]</span></td>", text
    )
    assert len(intervals) == 3 * 2  # of the accuracy and the F1 of each model


def test_what_all_seeds_share_is_said_once(folder):
    (compared,) = compare(folder)
    runs = compared.series[0].runs
    origin = provenance.provenance_of(runs)
    shared = dict(origin["shared"])
    assert shared["Data fingerprint"] == runs[0].result.data.fingerprint
    assert shared["Weights' SHA-256"] == "0" * 64
    for run, own in zip(runs, origin["runs"], strict=True):
        assert own["seed"] == run.seed and own["command"] == run.result.command
        assert dict(own["rows"])["Record's SHA-256"] == run.result.sha256
        assert not set(shared) & {name for name, _ in own["rows"]}
    assert provenance.provenance_of(runs[:1])["shared"] == []


def test_uncommitted_changes_and_tried_rates_are_said(folder):
    run = compare(folder)[0].series[0].runs[0]
    environment = {**run.result.environment, "git_commit": "abc", "git_dirty": True, "torch": "2.9"}
    trials = [{"lr": 1e-4}, {"lr": 1e-3}]
    rows = dict(
        provenance.provenance_of([replace(run, result=replace(run.result, environment=environment, trials=trials))])[
            "runs"
        ][0]["rows"]
    )
    assert rows["Code"] == "abc, with uncommitted changes" and rows["Versions"] == "torch 2.9"
    assert "learning rate 0.0001 of 0.0001, 0.001" in rows["Kept"]


# Images


def test_thumbnails_are_the_images_the_run_was_tested_on(tmp_path):
    digits = digit_runs(tmp_path, models=1, seeds=1, test_limit=100)
    (comparison,) = compare(tmp_path)
    tested = explorer.read_test_predictions(comparison)
    images, remark = thumbnails.test_images(comparison.series[0].runs[0], tested.labels, tested.indices, None)
    positions = np.array([3, 50, 99])
    sheet = thumbnails.draw_sheet(images, positions)
    assert remark == "" and sheet.side == 8
    tiles = np.asarray(Image.open(BytesIO(sheet.content)).convert("L"))
    for tile, position in enumerate(positions):
        assert np.array_equal(tiles[:, 8 * tile : 8 * tile + 8], digits.test.pixels[position])


def test_large_colour_images_are_made_small_and_stay_in_their_tile():
    pixels = [np.full(shape, 200, np.uint8) for shape in ((100, 300, 3), (20, 10), (64, 64, 3))]
    small = [thumbnails._small(image) for image in pixels]
    assert [image.size for image in small] == [(64, 21), (10, 20), (64, 64)]
    images = replace(_images(70), pixels=np.random.default_rng(0).integers(0, 256, (70, 40, 40, 3)).astype(np.uint8))
    sheet = thumbnails.draw_sheet(images, np.arange(70))
    assert thumbnails.sheet_capacity(images) == 3_200 and thumbnails.sheet_capacity(_images(3)) == 1_250
    assert sheet.side == 48 and Image.open(BytesIO(sheet.content)).size == (64 * 48, 2 * 48)


def _images(count: int) -> LabelledImages:
    return LabelledImages(np.zeros(count, int), np.arange(count))


def test_without_its_images_a_report_is_made_and_says_so(folder, tmp_path):
    for change, reason in (
        ({"config": {**SETTINGS, "dataset": "mnist", "data_dir": str(tmp_path)}}, "mnist is not under"),
        ({"config": {**SETTINGS, "split_seed": 1, "test_limit": 50}}, "another order or choice"),
        ({"config": {}}, "'dataset' is missing"),
        ({"fingerprint": "f" * 64}, "another fingerprint"),
    ):
        (compared,) = compare(folder)
        run = compared.series[0].runs[0]
        data = replace(run.result.data, fingerprint=change.pop("fingerprint", run.result.data.fingerprint))
        changed = replace(run.result, data=data, **change)
        series = replace(compared.series[0], runs=(replace(run, result=changed), *compared.series[0].runs[1:]))
        (line,) = write(tmp_path / "report.html", [replace(compared, series=(series, *compared.series[1:]))])
        assert "no test images" in line and reason in line
        (record,) = data_of((tmp_path / "report.html").read_text())["datasets"]
        assert record["sheet"] is None and reason in record["remark"]


# The file


def test_the_same_results_give_the_same_bytes(folder, tmp_path):
    for name in ("one", "two"):
        assert write(tmp_path / name, compare(folder)) == []
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_hostile_names_stay_text(tmp_path):
    for name in (LORA, RESNET):
        fake_run(tmp_path, name, dataset="a<b>", classes=HOSTILE, num_test=50, epochs=1)
    compared = compare(tmp_path, **{LORA: HOSTILE[1], RESNET: HOSTILE[2]})
    write(tmp_path / "report.html", compared)
    page = (tmp_path / "report.html").read_bytes().decode()
    parsed = Names(page)
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("script") == tags.count("/script") == 2 and "img" not in tags
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)
    assert {HOSTILE[1], HOSTILE[2], "a<b>"} <= set(parsed.names)
    (record,) = data_of(page)["datasets"]
    assert record["classes"] == list(HOSTILE)
    inside = page[page.index('id="data">') : page.index("</script>", page.index('id="data">'))]
    assert not set("<>&'\u2028\u2029") & set(inside.removeprefix('id="data">'))


def test_nothing_outside_the_file_may_be_loaded(folder, tmp_path):
    picture = tmp_path / "overview.png"
    Image.new("RGB", (30, 20)).save(picture)
    write(tmp_path / "report.html", compare(folder), figures={"": [picture, tmp_path / "overview.pdf"]})
    page = (tmp_path / "report.html").read_text()
    (policy,) = (a["content"] for tag, a in Names(page).elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and "unsafe" not in policy
    addresses = [a[key] for _, a in Names(page).elements for key in ("src", "href") if key in a]
    assert all(address.startswith(("data:", "#")) for address in addresses) and len(addresses) == 7
    assert 'width="30" height="20"' in page and "http://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_script_writes_the_report_without_torch(folder, tmp_path):
    arguments = ["--results-dir", str(folder), "--figures-dir", str(tmp_path / "figures")]
    arguments += ["--report", str(tmp_path / "report.html")]
    code = (
        "import sys, plot_results; from common import cli, figures\n"
        "few = ('final_benchmark_comparison', 'accuracy_vs_parameters')\n"  # each takes seconds to draw
        "for name in figures.FIGURES.keys() - few: del figures.FIGURES[name]\n"
        f"code = cli.run(plot_results.main, plot_results.Config, {arguments!r})\n"
        "print(code, sorted({'torch', 'timm', 'peft', 'torchvision'} & set(sys.modules)))"
    )
    command = [sys.executable, "-W", "error", "-c", f"if __name__ == '__main__':\n{code}".replace("\n", "\n    ")]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert finished.stderr == ""
    assert finished.stdout.splitlines()[-2:] == [str(tmp_path / "report.html"), "0 []"]
    page = (tmp_path / "report.html").read_text()
    stems = [path.stem for path in (tmp_path / "figures").glob("*.png")]
    assert sorted(stems) == ["accuracy_vs_parameters", "digits_final_benchmark_comparison"]
    assert all(f"({stem})" in page for stem in stems)


def test_an_unwritable_path_is_one_line(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(figures, "FIGURES", {})
    arguments = ["--results-dir", str(folder), "--report", str(tmp_path / "file" / "report.html")]
    assert cli.run(plot_results.main, plot_results.Config, arguments) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "report.html" in error
