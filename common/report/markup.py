"""A table of texts as CSV, as GitHub's Markdown, and as LaTeX."""

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from common.runtime.files import write_atomically

TEX_ESCAPES = str.maketrans(
    {letter: f"\\{letter}" for letter in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"—": "---", "±": r"\(\pm\)", "<": r"\textless{}", ">": r"\textgreater{}", "\n": " "}
)


def write_tables(
    stem: Path,
    fields: Sequence[str],
    records: Sequence[Mapping],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    words: Collection[str],
) -> list[Path]:
    """Write ``records`` to ``stem``.csv and ``rows`` of cells to ``stem``.md and ``stem``.tex; return the paths."""
    contents = {
        "csv": as_csv(fields, records),
        "md": as_markdown(header, rows, words=words),
        "tex": as_latex(header, rows, words=words),
    }
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in contents]
    for path, text in zip(paths, contents.values(), strict=True):
        write_atomically(path, text.encode("utf-8", "backslashreplace"))
    return paths


def known(value: float) -> float | None:
    """Return ``value``, or None, which is an empty field, where it is NaN."""
    return None if math.isnan(value) else value


def as_csv(fields: Sequence[str], records: Sequence[Mapping]) -> str:
    """Return a header of ``fields`` and a line a record; None is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: Collection[str]) -> str:
    """Return a table of GitHub's Markdown; numbers, which are all columns but ``words``, are aligned to the right."""
    rule = ["---" if name in words else "---:" for name in header]
    cells = [header, rule, *([" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def as_latex(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: Collection[str]) -> str:
    r"""Return a ``tabular`` with rules of the booktabs package; ``\input`` it into a document."""
    lines = [" & ".join(cell.translate(TEX_ESCAPES) for cell in row) + r" \\" for row in (header, *rows)]
    columns = "".join("l" if name in words else "r" for name in header)
    start = [r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*start, *lines[1:], r"\bottomrule", r"\end{tabular}", ""])
