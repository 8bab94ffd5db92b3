"""How every figure looks, how names are made safe to print, and files that redraw to the same bytes."""

import contextlib
import io
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import seaborn as sns
from fontTools import subset
from fontTools.ttLib import TTFont
from matplotlib import font_manager, rcParams, style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure

from common.runtime.files import write_atomically

# Inches: one and two columns of a journal page; a figure is wider only if its panels would not be readable.
WIDTHS = {"one": 3.5, "two": 7.2}
GREY = "#595959"
PNG_DPI = 200
_TICKS = {"color": GREY, "labelcolor": "black", "major.size": 2.5, "major.width": 0.6, "minor.size": 1.5}
_SETTINGS = {
    **sns.axes_style("ticks"),
    **sns.plotting_context("paper", font_scale=5 / 6),  # 8 points; 7.3 for legends and ticks
    "axes.edgecolor": GREY,
    "axes.labelcolor": "black",
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.formatter.useoffset": False,
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib's own, the same on every machine
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.5,
    "hatch.color": "white",
    "hatch.linewidth": 0.8,
    "legend.borderaxespad": 0.0,
    "legend.borderpad": 0.1,
    "legend.columnspacing": 1.4,
    "legend.frameon": False,
    "legend.handletextpad": 0.5,
    "lines.solid_capstyle": "projecting",
    "pdf.fonttype": 42,  # TrueType: Type 3 is refused by many publishers, and cannot be edited
    "text.color": "black",
    "text.parse_math": False,  # a class may be called "$5_note$"
    **{f"{axis}tick.{name}": value for axis in "xy" for name, value in _TICKS.items()},
}


@contextlib.contextmanager
def context(columns: str = "two") -> Iterator[None]:
    """Draw and save inside this: matplotlib's defaults, seaborn's and our style, whatever the user's matplotlibrc.

    ``columns`` of a page, one of ``WIDTHS``, are how wide figures are made.
    Only ``font.family`` stays the user's, for names in scripts that DejaVu Sans lacks (see ``missing_letters``).
    """
    own = {"font.family": list(rcParams["font.family"]), "figure.figsize": [WIDTHS[columns]] * 2}
    with style.context(_SETTINGS | own, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # ``missing_letters`` says it once
        yield


def page_width() -> float:
    """Return how many inches wide figures are within the present ``context``."""
    return rcParams["figure.figsize"][0]


@contextlib.contextmanager
def _letter_shapes_alone() -> Iterator[None]:
    """Let Matplotlib, which has no setting for it, embed fonts without the tables that place text within this block.

    The text is placed already, and reading and cutting these tables takes more than half the time of a font.
    """
    load_font = subset.load_font

    def load_shapes(*arguments: Any, **options: Any) -> TTFont:
        font = load_font(*arguments, **options)
        for table in {"GDEF", "GPOS", "GSUB", "kern"} & {*font.keys()}:
            del font[table]
        return font

    subset.load_font = load_shapes
    try:
        yield
    finally:
        subset.load_font = load_font


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem``.png and ``stem``.pdf atomically, without dates, and return their paths."""
    figure.set_dpi(PNG_DPI)
    contents = {"png": io.BytesIO(), "pdf": io.BytesIO()}
    # Each format's own canvas draws once; ``Figure.savefig`` draws everything before to find the layout.
    FigureCanvasAgg(figure).print_png(contents["png"], metadata={"Software": None})
    figure.set_layout_engine("none")  # the layout stays, finding it once more takes as long as drawing
    with _letter_shapes_alone():
        FigureCanvasPdf(figure).print_pdf(contents["pdf"], metadata={"CreationDate": None})
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_atomically(path, content.getvalue())
    return paths


def printable(name: str, width: int = 24) -> str:
    """Return ``name`` on one line of at most ``width`` letters; what has no letter shape becomes a question mark."""
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(name.split()))
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def wrapped(label: str, width: int) -> str:
    """Return ``label`` printable, on as many lines of ``width`` letters as it needs.

    What stands in brackets, such as "[random weights]", stays on one line where it fits on one.
    """

    def joined(match: re.Match) -> str:
        return match[0].replace(" ", "\xa0") if len(match[0]) <= width else match[0]  # textwrap breaks at ASCII only

    text = re.sub(r"\[[^]]*\]|\([^)]*\)", joined, printable(label, max(72, 3 * width)))
    return textwrap.fill(text, width, break_on_hyphens=False).replace("\xa0", " ")


def missing_letters(names: Iterable[str]) -> str:
    """Return the letters of ``names`` that no font of ``font.family`` has: they are drawn as boxes."""
    known = set()
    for family in rcParams["font.family"]:
        with contextlib.suppress(ValueError):  # not installed
            path = font_manager.findfont(font_manager.FontProperties(family=[family]), fallback_to_default=False)
            known |= set(font_manager.get_font(path).get_charmap())
    return "".join(sorted({letter for name in names for letter in printable(name) if ord(letter) not in known}))
