"""Keep the results of finished profiles as the reference results of this repository.

    python reproduce.py demo && python reproduce.py mini && python demo/keep_reference.py demo mini
    python reproduce.py defects && python demo/keep_reference.py defects --figures defects

Replaces results/reference/PROFILE and figures/reference/PROFILE by what is committed of them: figures (PNG), tables,
and of every run ``result.json`` and ``intervals.json``; of runs on at most 1,000 test images also ``predictions.npz``
(docs/statistics.md, "Results without predictions"). All runs must come from one commit without changes. Records name a
file of weights without its folder on the machine that trained.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import cli  # noqa: E402, found once its folder is on the path
from common.config import require  # noqa: E402
from common.evaluation.kept_statistics import INTERVALS, read_run_statistics  # noqa: E402
from common.evaluation.plan import PLAN_FILE  # noqa: E402
from common.evaluation.timings import TIMING_FILE  # noqa: E402
from common.evaluation.uncertainty import DIFFERENCES  # noqa: E402
from common.runs.convergence import TUNING  # noqa: E402
from common.runs.predictions import PREDICTIONS_FILE  # noqa: E402
from common.runs.result import RESULT_FILE, Run, encode_record, find_runs  # noqa: E402
from common.runtime.errors import UserError  # noqa: E402
from common.runtime.files import temporary_path  # noqa: E402

FEW_TEST_IMAGES = 1_000  # whose predictions take little room


@dataclass(frozen=True)
class Config:
    profiles: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Which profiles of reproduce.py, all of whose runs are finished and drawn."""
    results_dir: Path = Path("results")
    """Where reproduce.py left RESULTS_DIR/PROFILE/."""
    figures_dir: Path = Path("figures")
    """Where it left FIGURES_DIR/PROFILE/."""
    figures: str = "*"
    """Keep the figures whose name, without suffix, matches this pattern (*, ?, [abc])."""

    def __post_init__(self) -> None:
        require(bool(self.profiles), "profiles", self.profiles, "at least one")
        for name in ("results", "figures"):
            folder = getattr(self, f"{name}_dir")
            is_reference = folder.resolve() == ROOT / name / "reference"
            require(not is_reference, f"{name}_dir", folder, "another folder than the reference's own")


def main(config: Config) -> None:
    """Replace the reference results of each profile by its runs and figures; refuses what ``_runs`` does."""
    for profile in config.profiles:
        results, figures = config.results_dir / profile, config.figures_dir / profile
        runs, pictures = _runs(results), sorted(figures.glob(f"{config.figures}.png"))
        if not pictures:
            wanted = f"no figure {config.figures + '.png'!r} in {str(figures)!r}"
            raise UserError(f"{wanted}: draw them, with: python reproduce.py {profile}")
        files = [*_files_of_results(results, runs), *pictures]
        for folder, kept in ((results, ROOT / "results"), (figures, ROOT / "figures")):
            _replace(kept / "reference" / profile, folder, [path for path in files if path.is_relative_to(folder)])
        size = sum(path.stat().st_size for path in files)
        print(f"{profile}: {len(runs)} runs, {len(files)} files, {size / 1e6:.1f} MB")


def _replace(target: Path, folder: Path, files: list[Path]) -> None:
    """Replace the folder ``target`` by copies of the ``files`` below ``folder``, once all of them are made."""
    new = temporary_path(target, "new")
    try:
        for path in files:
            copy = new / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(_content(path))
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _content(path: Path) -> bytes:
    """Return what a file holds; of a record whose backbone came from a file elsewhere, that file's name alone."""
    content = path.read_bytes()
    if path.name != RESULT_FILE:
        return content
    record = json.loads(content)
    for names, key in ((record["config"], "weights"), (record["model"]["weights"], "source")):
        if Path(names.get(key) or "").is_absolute():
            names[key] = Path(names[key]).name
            content = encode_record(record)
    return content


def _runs(results: Path) -> list[Run]:
    """Return the runs of a profile.

    Raises:
        UserError: one is damaged or was never drawn, there is none, or with those that no figure shows by themselves
            (that chose, checked or have a deliberate defect) they are not of one commit without changes.
    """
    (runs, problems), (_, more) = find_runs(results), find_runs(results / TUNING)
    if problems or more or not runs:
        raise UserError((*problems, *more, f"no finished run in {str(results)!r}")[0])
    environments = [json.loads(path.read_bytes())["environment"] for path in results.rglob(RESULT_FILE)]
    commits = {None if its.get("git_dirty") else its.get("git_commit") for its in environments}
    if undrawn := [run.folder for run in runs if not read_run_statistics(run)]:
        raise UserError(f"nothing is kept of the predictions in {str(undrawn[0])!r}: draw the figures first")
    if len(commits) > 1 or None in commits:
        raise UserError(f"the runs in {str(results)!r} are not of one commit without changes: make them again")
    return runs


def _files_of_results(results: Path, runs: list[Run]) -> Iterator[Path]:
    """Yield what is kept of the results of a profile: tables, records, and the predictions of small test splits."""
    yield from (path for path in sorted(results.iterdir()) if path.is_file())
    for name in (PLAN_FILE, DIFFERENCES, RESULT_FILE, INTERVALS, TIMING_FILE):
        yield from sorted(results.rglob(name))
    yield from (run.folder / PREDICTIONS_FILE for run in runs if run.result.data.num_test <= FEW_TEST_IMAGES)


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
