"""Draw every figure and the summary table from the results on disk; nothing is trained, no model is loaded.

    python plot_results.py                                  # everything under results/
    python plot_results.py --runs "cifar10/*"               # one data set
    python plot_results.py --labels "resnet50.tv2_in1k-head_mlp=ResNet-50"
    python plot_results.py --report report.html             # all of it, and every test image, in one file

Expected: for each data set five figures in figures/ as PNG and PDF, three figures across data sets, and
results/summary.csv (a row a seed), .md and .tex (a row a model); with --report, one HTML file that needs no network.
The same results give the same bytes.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from common import cli, comparison, results
from common.comparison import Comparison
from common.errors import UserError


@dataclass(frozen=True)
class Config:
    results_dir: Path = Path("results")
    """Where the runs are: RESULTS_DIR/DATASET/RUN/seedN/result.json."""
    figures_dir: Path = Path("figures")
    """Where the figures go."""
    runs: str = "*"
    """Draw the runs whose RUN or DATASET/RUN matches this pattern (*, ?, [abc])."""
    labels: tuple[str, ...] = ()
    """Names to show instead of the automatic ones, each as RUN=LABEL or DATASET/RUN=LABEL."""
    report: Path | None = None
    """Also write this HTML file: figures, tables, and the test images behind each number, to click through."""
    data_dir: Path | None = None
    """Where the named data sets lie now, for the report's images (default: where the runs found them)."""

    def __post_init__(self) -> None:
        for pair in self.labels:
            run, equals, label = pair.partition("=")
            cli.require(bool(run and equals and label.strip()), "labels", pair, "RUN=LABEL")


def main(config: Config) -> None:
    from common import report, style, tables  # matplotlib takes a second to import, --help does not wait for it

    if config.report:
        report.jinja2()  # missing: said before the figures are drawn, not after
    # Data: the finished runs, those tested on the same images together
    runs, problems = results.find(config.results_dir, config.runs)
    compared, remarks = comparison.compare(runs, dict(pair.split("=", 1) for pair in config.labels))
    lines = [f"left out: {problem}" for problem in problems] + remarks
    lines += [f"unfinished: {str(folder)!r}" for folder in comparison.unfinished(config.results_dir)]
    print(*lines, sep="\n", end="\n" * bool(lines))
    if not compared:
        raise UserError(
            f"no finished run matches {config.runs!r} in {str(config.results_dir)!r} (DATASET/RUN/seedN/result.json); "
            "make one, for example with: python train_cnn_head.py --dataset digits"
        )

    # Figures
    with style.context():
        letters = style.missing_letters(_names(compared))
    if letters:
        print(f"note: the font has no {letters[:20]!r}; set font.family in a matplotlibrc file to one that has")
    figures = {one.dataset: [] for one in compared} | {"": []}
    drawn = list(_figures(compared))
    files = _in_parallel(_draw, [(config.figures_dir / stem, *figure) for stem, *figure in drawn])
    for (_, _, subject), paths in zip(drawn, files, strict=True):
        print(*paths, sep="\n", flush=True)
        figures[subject.dataset if isinstance(subject, Comparison) else ""] += paths

    # Table
    print(*tables.write_summary(compared, config.results_dir), sep="\n")

    # Report
    if config.report:
        statements = report.Statements()  # intervals and verdicts come in here
        shown = {"figures": figures, "statements": statements, "data_dir": config.data_dir}
        print(*report.write(config.report, compared, **shown), config.report, sep="\n")


def _figures(compared: list[Comparison]) -> Iterator[tuple[str, Callable, object]]:
    """Yield a file's stem, the function that draws its figure, and the function's argument."""
    from common import dotplots, panels, plots

    for one in compared:
        benchmark = "cifar_10" if one.dataset == "cifar10" else one.dataset  # the study's own name for this file
        yield f"{benchmark}_final_benchmark_comparison", plots.final_benchmark_comparison, one
        for draw in (plots.learning_curves, panels.confusion_matrices, panels.roc_curves, dotplots.per_class_f1):
            yield f"{one.dataset}_{draw.__name__}", draw, one
    for draw in (plots.overview, dotplots.accuracy_vs_parameters, dotplots.accuracy_vs_time):
        yield draw.__name__, draw, compared


def _draw(figure: tuple[Path, Callable, object]) -> list[Path]:
    """Draw and save one figure; return the paths written."""
    from common import style

    stem, draw, argument = figure
    with style.context():
        return style.save(draw(argument), stem)


def _in_parallel(function: Callable, items: list) -> Iterator:
    """Map ``function`` over ``items`` in up to four processes; half of a figure's second is embedding its fonts."""
    ignore_interrupt = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}  # main's to report
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1), spawn, **ignore_interrupt) as pool:
        yield from pool.map(function, items)


def _names(compared: list[Comparison]) -> list[str]:
    """Return every name that a figure shows."""
    labels = [series.label for one in compared for series in one.series]
    return labels + [name for one in compared for name in (one.dataset, *one.data["classes"])]


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
