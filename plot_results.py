"""Draw every figure and the summary table from the results on disk; nothing is trained, no model is loaded.

    python plot_results.py                                  # everything under results/
    python plot_results.py --runs "cifar10/*"               # one data set
    python plot_results.py --labels "resnet50.tv2_in1k-head_mlp=ResNet-50"
    python plot_results.py --width one --published          # for a paper's column, the study's numbers beside
    python plot_results.py --report report.html             # all of it, and every test image, in one file
    python plot_results.py --margin 0.5                     # what counts as equal, in points
    python plot_results.py --contrast "*lora*" "*probe" --contrast "*lora*" "*head_mlp*"    # what is compared

Expected: for each data set up to ten figures in figures/ as PNG and PDF, up to nine across data sets (findings: what
was asked and what came out), results/summary.csv (a row a seed), .md and .tex (a row a model), results/verdicts.csv
(pairs of models), .md and .tex (the declared pairs), and a sentence on each declared pair (docs/statistics.md); where
the same methods were applied to several backbones also results/effects.csv, .md and .tex; with --report, one HTML file
that needs no network. The first time takes a few tenths of a second a run of 10,000 images for the intervals, which are
kept beside the runs. The same results give the same bytes.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from common import cli
from common.config import check_folder, require
from common.evaluation.comparison import Comparison, compare, missing_predictions
from common.runs.result import find_runs, unfinished_runs
from common.runtime.errors import UserError
from common.runtime.parallel import import_ahead


@dataclass(frozen=True)
class Config:
    """Which runs to draw, how, and where everything goes."""

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
    """Where the named data sets lie, for the report's images (default: the folder given to training; a relative one is
    looked for from here)."""

    contrast: tyro.conf.UseAppendAction[tuple[tuple[str, str], ...]] = ()
    """Two models to compare, each a RUN or a label or a pattern of one; may be repeated. Only the pairs that are
    declared, so or by reproduce.py, are called better (default: up to six pairs, or those with the best model)."""
    margin: float | None = None
    """Differences in accuracy and F1 below this many points count as none (default: reproduce.py's, which is 1)."""
    published: bool = False
    """Also draw what the published study reports for the same models, as hollow marks in the bar charts."""

    folds: int | None = None
    """Only runs with this many folds; 1: a single split (default: the most common number in each data set)."""
    width: Literal["one", "two"] = "two"
    """Columns of a journal page that figures are made for: one (3.5 inches) or two (7.2)."""

    def __post_init__(self) -> None:
        check_folder("figures_dir", self.figures_dir)
        is_page = self.report is None or (self.report.suffix == ".html" and not self.report.is_dir())
        require(is_page, "report", str(self.report), "FILE.html, and no folder")
        for pair in self.labels:
            run, equals, label = pair.partition("=")
            require(bool(run and equals and label.strip()), "labels", pair, "RUN=LABEL")
        require(self.margin is None or 0 < self.margin < 100, "margin", self.margin, "above 0 and below 100 points")


def main(config: Config) -> None:
    """Load the runs, compute their uncertainty, draw, and write the tables and the report; print each file's path."""
    # A server imports what its forks draw and resample with, once and while this process reads
    import_ahead("common.figures", "scipy.sparse", "scipy.optimize")
    from common.evaluation.frames import frames_of
    from common.evaluation.plan import matching_contrasts
    from common.evaluation.robustness import corrupted_pairs
    from common.evaluation.uncertainty import compute_uncertainty
    from common.figures import draw_all
    from common.report.effects import effect_sentences
    from common.report.sentences import families_sentence, named_pairs, verdict_sentences
    from common.report.tables import write_corruptions, write_effects, write_summary, write_verdicts
    from common.runs.convergence import gains

    # Data: the finished runs, those tested on the same images together, as tables
    comparisons = _load(config)
    runs = [run for comparison in comparisons for series in comparison.series for run in series.runs]
    frames = frames_of(comparisons, gains(runs, config.results_dir))
    contrasts = matching_contrasts(comparisons, config.contrast)
    uncertainty = compute_uncertainty(comparisons, contrasts=contrasts, margin=config.margin)

    # Figures
    _note_missing_letters(comparisons)
    figures = {comparison.dataset: [] for comparison in comparisons} | {"": []}
    for dataset, files in draw_all(comparisons, frames, uncertainty, config.figures_dir, config.width):
        print(*files, sep="\n", flush=True)
        figures[dataset] += files

    # Tables and verdicts
    print(*write_summary(frames, uncertainty, config.results_dir), sep="\n")
    print(*write_effects(uncertainty, config.results_dir), sep="\n", end="\n" * (not uncertainty.effects.empty))
    print(*write_verdicts(frames, uncertainty, config.results_dir), "", sep="\n")
    pairs = named_pairs(frames, uncertainty)
    if families := families_sentence(pairs):
        print(families)
    for comparison in comparisons:
        lines = verdict_sentences(comparison, pairs) + effect_sentences(comparison.dataset, uncertainty.effects)
        print(*(f"{comparison.dataset}: {line}" for line in lines), sep="\n")

    # Corrupted test images, where evaluate.py scored runs on them
    if len(frames.corruptions):
        print(*write_corruptions(frames, config.results_dir), sep="\n")
        pairs = corrupted_pairs(comparisons, contrasts=contrasts, margin=config.margin)
        pairs = named_pairs(frames, replace(uncertainty, pairs=pairs))
        for comparison in comparisons:
            lines = verdict_sentences(comparison, pairs) if comparison.dataset in set(pairs.dataset) else []
            print(*(f"{comparison.dataset}, corrupted images: {line}" for line in lines), sep="\n")

    # Report
    if config.report:
        from common.report.html import write_report

        notes = write_report(config.report, comparisons, frames, uncertainty, figures=figures, data_dir=config.data_dir)
        print(*notes, config.report, sep="\n")


def _load(config: Config) -> list[Comparison]:
    """Return the runs that were asked for, compared where they can be, and print what was left out or must be known."""
    found, problems = find_runs(config.results_dir, config.runs)
    runs = [run for run in found if config.folds in (None, run.folds)]
    if found and not runs:
        known = " or ".join(map(str, sorted({run.folds for run in found})))
        raise UserError(f"`folds` {config.folds}: the runs that match {config.runs!r} have {known}")
    comparisons, remarks = compare(runs, dict(pair.split("=", 1) for pair in config.labels))
    lines = [f"left out: {problem}" for problem in problems] + remarks
    lines += [f"unfinished: {str(folder)!r}" for folder in unfinished_runs(config.results_dir)]
    for comparison in comparisons:
        if missing := missing_predictions(comparison):
            lines.append(f"note: {comparison.dataset!r}: no ROC curves are drawn: {missing}")
        lines.append(f"{comparison.dataset}: {sum(len(series.runs) for series in comparison.series)} runs, intervals")
    print(*map(cli.with_flags, lines), sep="\n", end="\n" * bool(lines), flush=True)
    if not comparisons:
        raise UserError(
            f"no finished run matches {config.runs!r} in {str(config.results_dir)!r} (DATASET/RUN/seedN/result.json); "
            "make one, for example with: python train_cnn_head.py --dataset digits"
        )
    return [replace(comparison, with_published=config.published) for comparison in comparisons]


def _note_missing_letters(comparisons: Sequence[Comparison]) -> None:
    """Print which letters of the names that figures show the font lacks."""
    from common.figures import style

    names = [series.label for comparison in comparisons for series in comparison.series]
    names += [name for comparison in comparisons for name in (comparison.dataset, *comparison.data.classes)]
    with style.context():
        letters = style.missing_letters(names)
    if letters:
        print(f"note: the font has no {letters[:20]!r}; set font.family in a matplotlibrc file to one that has")


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
