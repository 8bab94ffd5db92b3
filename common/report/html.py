"""One HTML file with every number, figure and mistake of the results: it asks nothing of any network."""

import base64
import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from common.evaluation.comparison import Comparison, missing_predictions
from common.evaluation.formatting import repeats
from common.evaluation.frames import Frames
from common.evaluation.machines import TIMED, machines_note
from common.evaluation.uncertainty import Uncertainty
from common.figures import FIGURES
from common.figures.palette import run_styles
from common.report import explorer, provenance, thumbnails
from common.report.effects import effect_sentences, effect_texts
from common.report.sentences import families_sentence, named_pairs, verdict_sentences
from common.report.tables import COSTS, HEADLINE_SCORES, MODEL, SCORES, known_columns, model_texts, with_statistics
from common.runtime.errors import UserError
from common.runtime.files import write_atomically

PAGE = Path(__file__).parent / "page"  # the template, its style and its script, in files of one subject each
SUMMARY = (  # of the first table
    *(*HEADLINE_SCORES, "trainable_params", "forward_flops", "train_flops", "total_train_seconds"),
    *("deployed_bytes", "latency_seconds"),
)


def write_report(
    path: Path,
    comparisons: Sequence[Comparison],
    frames: Frames,
    uncertainty: Uncertainty,
    *,
    figures: Mapping[str, Sequence[Path]],
    data_dir: Path | None,
) -> list[str]:
    """Write the report of ``comparisons`` to ``path``; the same results and images give the same bytes.

    ``figures`` are the files of each data set ("" for those of all together), of which PNGs are taken; ``data_dir`` is
    where the named data sets lie, if not where the runs found them. Returns the lines that say which data set is
    without test images, and why.

    Raises:
        UserError: ``path`` cannot be written, or the predictions of a run were changed.
    """
    records = [_explorer_of(comparison, data_dir) for comparison in comparisons]
    runs, pairs = with_statistics(frames, uncertainty), named_pairs(frames, uncertainty)
    page = _page(
        comparisons=comparisons,
        summary=model_rows(comparisons, runs, SUMMARY, uncertainty),
        metrics=model_rows(comparisons, runs, SCORES),
        costs=model_rows(comparisons, runs, COSTS),
        machines=[note for column in TIMED if (note := machines_note(frames.runs, column))],
        families=families_sentence(pairs),
        verdicts={comparison.dataset: verdict_sentences(comparison, pairs) for comparison in comparisons},
        effects={comparison.dataset: _effects_of(comparison, uncertainty) for comparison in comparisons},
        repeats=repeats(comparisons),
        pictures={
            subject: [_picture(file) for file in files if file.suffix == ".png"] for subject, files in figures.items()
        },
        provenance=provenance.provenance_of,
        explored={"shown_at_once": explorer.SHOWN_AT_ONCE, "full": explorer.FULL_CONFIDENCE, "datasets": records},
        least_suspect=explorer.SUSPECT_CONFIDENCE,
    )
    write_atomically(path, page)
    return [
        f"note: {comparison.dataset!r}: the report shows no test images: {record['remark']}"
        for comparison, record in zip(comparisons, records, strict=True)
        if record["remark"]
    ]


def _effects_of(comparison: Comparison, uncertainty: Uncertainty) -> dict:
    """Return what the page says of method and backbone crossed: sentences and a table, or empty ones."""
    own = uncertainty.effects[uncertainty.effects.dataset == comparison.dataset]
    texts = effect_texts(own).drop(columns="Data set")
    return {
        "sentences": effect_sentences(comparison.dataset, uncertainty.effects),
        "headings": list(texts),
        "rows": texts.to_numpy().tolist(),
    }


def model_rows(
    comparisons: Sequence[Comparison],
    runs: pd.DataFrame,
    columns: Sequence[str],
    uncertainty: Uncertainty | None = None,
) -> list[dict]:
    """Return a row a model: {comparison, series, color, cells}; a cell has a text and the number it is sorted by.

    The cells are those of ``model_texts``; the number is the mean over the seeds, None where one is unknown.
    """
    texts = model_texts(runs, columns, uncertainty)
    means = runs.groupby(MODEL, sort=False)[known_columns(runs, columns)].agg(lambda values: values.mean(skipna=False))
    rows = []
    for comparison in comparisons:
        styles = run_styles(comparison)
        for series in comparison.series:
            model = (comparison.dataset, series.name)
            numbers = (None if np.isnan(mean) else float(mean) for mean in means.loc[model])
            cells = {
                heading: {"text": text, "value": number}
                for (heading, text), number in zip(texts.loc[model].items(), numbers, strict=True)
            }
            color = styles[series.name].color
            rows.append({"comparison": comparison, "series": series, "color": color, "cells": cells})
    return rows


def _explorer_of(comparison: Comparison, data_dir: Path | None) -> dict:
    """Return the record of the page's script for one data set; its remark says why it has no images, or is ""."""
    if missing := missing_predictions(comparison):
        return explorer.curves_record(comparison, missing)
    predictions = explorer.read_test_predictions(comparison)
    run = comparison.series[0].runs[0]
    images, remark = thumbnails.test_images(run, predictions.labels, predictions.indices, data_dir)
    sheet = None
    if images:
        positions = explorer.choose_thumbnails(predictions, thumbnails.sheet_capacity(images))
        try:
            sheet = thumbnails.draw_sheet(images, positions)
        except UserError as error:  # a file that was removed since it was checked
            remark = str(error)
    return explorer.explorer_record(comparison, predictions, sheet, remark)


def _picture(file: Path) -> dict:
    """Return a PNG as a data URI with its width and height in pixels."""
    content = file.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    title = next((figure.title for name, figure in FIGURES.items() if file.stem.endswith(name)), file.stem)
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    return {"stem": file.stem, "title": title, "uri": uri, "width": width, "height": height}


def _page(**content: Any) -> bytes:
    """Fill the template; every value is escaped, only the style and the script of the folder ``page`` are not."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False, "separators": (",", ":")}
    script = "\n".join(file.read_text("utf-8") for file in sorted(PAGE.glob("*.js")))
    inline = {"style": (PAGE / "report.css").read_text("utf-8"), "script": script}
    text = environment.get_template("report.html.jinja").render(
        **content,
        hashes={name: _hash(code) for name, code in inline.items()},
        inline={name: Markup(code) for name, code in inline.items()},
    )
    return text.encode("utf-8", "replace")  # a file name's undecodable byte becomes a question mark


def _hash(content: str) -> str:
    """Return how a content security policy names an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
