"""One HTML file with every number, figure and mistake of the results: it asks nothing of any network."""

import base64
import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from common.evaluation.comparison import Comparison, Series, training_seconds
from common.evaluation.formatting import count_seeds, mean_and_sd
from common.report import explorer, provenance, thumbnails
from common.runtime.errors import UserError
from common.runtime.files import write_atomically

PAGE = Path(__file__).parent / "page"  # the template, its style and its script, in files of one subject each

FIGURES = {  # the end of a figure's file name, and what it shows
    "final_benchmark_comparison": "Accuracy, F1 and AUC",
    "learning_curves": "Learning curves",
    "confusion_matrices": "Confusion matrices",
    "roc_curves": "ROC curves",
    "per_class_f1": "F1 of each class",
    "reliability": "Reliability of the confidences",
    "differences": "Differences between the models",
    "few_shot": "Accuracy and training images",
    "overview": "All data sets",
    "accuracy_vs_parameters": "Accuracy and trained parameters",
    "accuracy_vs_time": "Accuracy and training time",
    "accuracy_vs_flops": "Accuracy and cost of one image",
    "accuracy_vs_saved_bytes": "Accuracy and size of what is saved",
}


@dataclass(frozen=True)
class Statements:
    """What statistics say of the results, in words; the report shows them and computes none."""

    intervals: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(data set, run): the 95 % interval of the accuracy, such as "0.951 to 0.960"."""
    verdicts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Data set: sentences on which model is better, and whether that is certain."""


def require_jinja2() -> ModuleType:
    """Return Jinja2, the one library that only the report needs.

    Raises:
        UserError: it is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise UserError("`report` needs Jinja2: pip install 'jinja2>=3.1', or leave `report` out") from error
    return jinja2


def write_report(
    path: Path,
    compared: Sequence[Comparison],
    *,
    figures: Mapping[str, Sequence[Path]],
    statements: Statements,
    data_dir: Path | None,
) -> list[str]:
    """Write the report of ``compared`` to ``path``; the same results and images give the same bytes.

    ``figures`` are the files of each data set ("" for those of all together), of which PNGs are taken; ``data_dir`` is
    where the named data sets lie, if not where the runs found them. Returns the lines that say which data set is
    without thumbnails, and why.

    Raises:
        UserError: Jinja2 is missing, or ``path`` cannot be written.
    """
    explored, lines = [], []
    for one in compared:
        record, remark = _explored(one, data_dir)
        explored.append(record)
        lines += [f"note: {one.dataset!r}: the report has no thumbnails: {remark}"] if remark else []
    pictures = {
        subject: [_picture(file) for file in files if file.suffix == ".png"] for subject, files in figures.items()
    }
    write_atomically(path, _page(compared, explored, pictures, statements))
    return lines


def summary_rows(compared: Sequence[Comparison], statements: Statements) -> list[dict]:
    """Return a row a model: names, seeds, and cells of a text and the number it is sorted by (None: unknown)."""
    return [
        {
            "dataset": one.title,
            "model": series.label,
            "color": series.look.color,
            "seeds": len(series.runs),
            "interval": statements.intervals.get((one.dataset, series.name), ""),
            "cells": _cells(series),
        }
        for one in compared
        for series in one.series
    ]


def _cells(series: Series) -> dict[str, dict]:
    """Return heading: {text, value}, each mean ± standard deviation over the seeds."""

    def cell(values: np.ndarray, digits: int) -> dict:
        known = not np.isnan(values).any()
        return {"text": mean_and_sd(values, digits), "value": float(values.mean()) if known else None}

    def of(group: str, name: str) -> np.ndarray:
        return series.values(lambda result: result[group][name])

    parameters = float(np.mean(of("model", "trainable_params")))
    return {
        "Accuracy": cell(of("test", "accuracy"), 3),
        "F1 (macro)": cell(of("test", "f1_macro"), 3),
        "AUC (macro)": cell(of("test", "auc_macro"), 4),
        "Trained parameters": {"text": f"{parameters:,.0f}", "value": parameters},
        "Forward (GFLOPs)": cell(of("model", "forward_flops")[:1] / 1e9, 2),  # no seed changes it
        "Training (s)": cell(series.values(training_seconds), 0),
    }


def _explored(compared: Comparison, data_dir: Path | None) -> tuple[dict, str]:
    """Return the record of the page's script for one data set, and why it has no thumbnails ("" if it has)."""
    seen = explorer.tested(compared)
    images, remark = thumbnails.test_images(explorer.runs(compared)[0], data_dir)
    try:
        sheet = thumbnails.sheet(images, explorer.pictured(seen, thumbnails.capacity(images))) if images else None
    except UserError as error:  # a file that was removed since it was checked
        sheet, remark = None, str(error)
    return explorer.record(compared, seen, sheet, remark), remark


def _picture(file: Path) -> dict:
    """Return a PNG as a data URI with its width and height in pixels."""
    content = file.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    title = next((title for end, title in FIGURES.items() if file.stem.endswith(end)), file.stem)
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    return {"stem": file.stem, "title": title, "uri": uri, "width": width, "height": height}


def _page(
    compared: Sequence[Comparison], explored: list[dict], pictures: dict[str, list[dict]], statements: Statements
) -> bytes:
    """Fill the template; every value is escaped, only the style and the script of the folder ``page`` are not."""
    jinja = require_jinja2()
    environment = jinja.Environment(
        loader=jinja.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False, "separators": (",", ":")}
    script = "\n".join(file.read_text("utf-8") for file in sorted(PAGE.glob("*.js")))
    inline = {"style": (PAGE / "report.css").read_text("utf-8"), "script": script}
    text = environment.get_template("report.html.jinja").render(
        compared=compared,
        rows=summary_rows(compared, statements),
        verdicts=[(one.title, statements.verdicts.get(one.dataset, ())) for one in compared],
        seeds=count_seeds(compared),
        pictures=pictures,
        provenance=provenance.provenance_of,
        explored={"shown_at_once": explorer.SHOWN_AT_ONCE, "full": explorer.FULL, "datasets": explored},
        least_suspect=explorer.SUSPECT_CONFIDENCE,
        hashes={name: _hash(content) for name, content in inline.items()},
        inline={name: jinja.utils.markupsafe.Markup(content) for name, content in inline.items()},
    )
    return text.encode("utf-8", "replace")  # a file name's undecodable byte becomes a question mark


def _hash(content: str) -> str:
    """Return how a content security policy names an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
