"""Draw every figure and the summary table from the results on disk; nothing is trained, no model is loaded.

    python plot_results.py                                  # everything under results/
    python plot_results.py --runs "cifar10/*"               # one data set
    python plot_results.py --labels "resnet50.tv2_in1k-head_mlp=ResNet-50"
    python plot_results.py --width one --published          # for a paper's column, the study's numbers beside
    python plot_results.py --report report.html             # all of it, and every test image, in one file

Expected: for each data set up to eight figures in figures/ as PNG and PDF, five figures across data sets,
results/summary.csv (a row a seed), .md and .tex (a row a model), results/verdicts.csv, .md and .tex (pairs of models),
and a sentence on each pair; with --report, one HTML file that needs no network. The first time takes about a second a
run of 10,000 images for the intervals, which are kept beside the runs. The same results give the same bytes.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from common import cli
from common.config import check_folder, require
from common.evaluation.comparison import Comparison, compare
from common.runs.result import find_runs, unfinished_runs
from common.runtime.errors import UserError
from common.runtime.parallel import parallel_map


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

    published: bool = False
    """Also draw what the published study reports for the same models, as hollow marks in the bar charts."""

    width: Literal["one", "two"] = "two"
    """Columns of a journal page that figures are made for: one (3.5 inches) or two (7.2)."""

    def __post_init__(self) -> None:
        check_folder("figures_dir", self.figures_dir)
        for pair in self.labels:
            run, equals, label = pair.partition("=")
            require(bool(run and equals and label.strip()), "labels", pair, "RUN=LABEL")


def main(config: Config) -> None:
    from common.figures import style
    from common.report import tables
    from common.report.html import require_jinja2, write_report
    from common.report.sentences import verdict_sentences
    from common.report.verdict_tables import write_verdicts  # matplotlib takes a second, --help does not wait

    if config.report:
        require_jinja2()  # missing: said before the figures are drawn, not after
    # Data: the finished runs, those tested on the same images together
    runs, problems = find_runs(config.results_dir, config.runs)
    compared, remarks = compare(runs, dict(pair.split("=", 1) for pair in config.labels))
    compared = [replace(one, with_published=config.published) for one in compared]
    lines = [f"left out: {problem}" for problem in problems] + remarks
    lines += [f"unfinished: {str(folder)!r}" for folder in unfinished_runs(config.results_dir)]
    print(*lines, sep="\n", end="\n" * bool(lines))
    if not compared:
        raise UserError(
            f"no finished run matches {config.runs!r} in {str(config.results_dir)!r} (DATASET/RUN/seedN/result.json); "
            "make one, for example with: python train_cnn_head.py --dataset digits"
        )

    # Evidence: kept beside the runs, so that only new predictions cost time
    for one in compared:
        print(f"{one.dataset}: {sum(len(series.runs) for series in one.series)} runs, intervals", flush=True)
        _ = one.evidence

    # Figures
    with style.context():
        letters = style.missing_letters(_names(compared))
    if letters:
        print(f"note: the font has no {letters[:20]!r}; set font.family in a matplotlibrc file to one that has")
    figures = {one.dataset: [] for one in compared} | {"": []}
    drawn = list(_figures(compared))
    files = parallel_map(_draw, [(config.figures_dir / stem, config.width, *figure) for stem, *figure in drawn])
    for (_, _, subject), paths in zip(drawn, files, strict=True):
        print(*paths, sep="\n", flush=True)
        figures[subject.dataset if isinstance(subject, Comparison) else ""] += paths

    # Tables and verdicts
    print(*tables.write_summary(compared, config.results_dir), sep="\n")
    print(*write_verdicts(compared, config.results_dir), sep="\n")
    print("", *verdict_sentences(compared), sep="\n")

    # Report
    if config.report:
        shown = {"figures": figures, "statements": _statements(compared), "data_dir": config.data_dir}
        print(*write_report(config.report, compared, **shown), config.report, sep="\n")


def _figures(compared: list[Comparison]) -> Iterator[tuple[str, Callable, object]]:
    """Yield a file's stem, the function that draws its figure, and the function's argument."""
    from common.figures.bars import final_benchmark_comparison, overview
    from common.figures.confusion import confusion_matrices
    from common.figures.differences import differences
    from common.figures.few_shot import few_shot, few_shot_curves
    from common.figures.learning_curves import learning_curves
    from common.figures.per_class import per_class_f1
    from common.figures.reliability import reliability
    from common.figures.roc import roc_curves
    from common.figures.trade_offs import (
        accuracy_vs_flops,
        accuracy_vs_parameters,
        accuracy_vs_saved_bytes,
        accuracy_vs_time,
    )

    for one in compared:
        benchmark = "cifar_10" if one.dataset == "cifar10" else one.dataset  # the study's own name for this file
        yield f"{benchmark}_final_benchmark_comparison", final_benchmark_comparison, one
        of_one = [learning_curves, confusion_matrices, roc_curves, per_class_f1]
        of_one += [reliability]
        of_one += [differences] * bool(one.evidence.differences)
        of_one += [few_shot] * bool(few_shot_curves(one))
        for draw in of_one:
            yield f"{one.dataset}_{draw.__name__}", draw, one
    of_all = (accuracy_vs_parameters, accuracy_vs_time, accuracy_vs_flops)
    for draw in (overview, *of_all, accuracy_vs_saved_bytes):
        yield draw.__name__, draw, compared


def _statements(compared: list[Comparison]):
    """Return what the intervals say, in the words of the report."""
    from common.report.html import Statements
    from common.report.sentences import verdict_sentences

    means = {(one.dataset, name): mean["accuracy"] for one in compared for name, mean in one.evidence.means.items()}
    return Statements(
        intervals={key: f"{mean.low:.3f} to {mean.high:.3f}" for key, mean in means.items()},
        verdicts={
            one.dataset: [line.removeprefix(f"{one.dataset}: ") for line in verdict_sentences([one])]
            for one in compared
        },
    )


def _draw(figure: tuple[Path, str, Callable, object]) -> list[Path]:
    """Draw and save one figure; return the paths written."""
    from common.figures import style

    stem, columns, draw, argument = figure
    with style.context(columns):
        return style.save(draw(argument), stem)


def _names(compared: list[Comparison]) -> list[str]:
    """Return every name that a figure shows."""
    labels = [series.label for one in compared for series in one.series]
    return labels + [name for one in compared for name in (one.dataset, *one.data["classes"])]


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
