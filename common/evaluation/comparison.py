"""Which runs are compared with one another, in what order, and how each is named."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.data.registry import DATASETS
from common.evaluation.kept_statistics import hash_of_test_images
from common.evaluation.labels import FAMILIES, family_of, has_random_weights, run_labels
from common.runs.methods import METHODS
from common.runs.predictions import PREDICTIONS_FILE, has_predictions
from common.runs.record import DataRecord
from common.runs.result import Run, natural_order
from common.runtime.errors import UserError
from common.runtime.files import sha256

TITLES = {name: spec.title for name, spec in DATASETS.items()} | {"cifar10_jpeg": "CIFAR-10 (JPEG)"}
COMPUTED_WITH = {  # fields of a record's environment: another value gives other digits
    **{"threads": "CPU threads", "precision": "precision", "features_compiled": "compilation", "device": "device"},
    **{name: name for name in ("torch", "timm", "peft", "numpy", "scikit-learn")},
}


@dataclass(frozen=True)
class Series:
    """One model on one data set: the seeds of a run (or its folds), its label, and what kind of model it is."""

    name: str
    label: str
    family: str  # one of ``labels.FAMILIES``
    method: str
    runs: tuple[Run, ...]
    has_draws: bool = False
    """Whether its seeds drew their training images, too, each by a ``split_seed`` of its own."""

    @property
    def num_train(self) -> int:
        """The number of training images, of the seed that has most."""
        return max(run.result.data.num_train for run in self.runs)

    @property
    def folds(self) -> int:
        """Into how many folds the images were cut, of which each run was tested on another; 1: a single split."""
        return self.runs[0].folds

    @property
    def spans_folds(self) -> bool:
        """Whether its runs are several folds, each tested on other images."""
        return self.folds > 1 and len(self.runs) > 1

    @property
    def repeat(self) -> str:
        """What a person calls one of its runs: "fold", "draw" or "seed"."""
        return "fold" if self.folds > 1 else "draw" if self.has_draws else "seed"

    @property
    def num_test(self) -> int:
        """The number of test images, of all its folds together."""
        return _num_test(self.runs)

    @property
    def is_deterministic(self) -> bool:
        """Whether one run is all there is to know: each seed has the same images and result, and there are no folds."""
        return METHODS[self.method].is_deterministic and self.folds == 1 and not self.has_draws

    @property
    def is_one_seed(self) -> bool:
        """Whether the spread of its seeds (or folds) is unknown: one is there, another would give another result."""
        return len(self.runs) == 1 and not self.is_deterministic


@dataclass(frozen=True)
class Comparison:
    """The models of one data set that were tested on the same images, as a whole or fold by fold."""

    dataset: str
    series: tuple[Series, ...]
    notes: tuple[str, ...]  # what a reader of its figures must know
    with_published: bool = False  # whether figures show the published study's numbers beside

    @property
    def folder(self) -> Path:
        """The folder of the data set, in which a folder a run lies."""
        return self.series[0].runs[0].folder.parent.parent

    @property
    def title(self) -> str:
        """The data set's name in figures, short enough to leave room for what the figure shows."""
        name = TITLES.get(self.dataset, self.dataset)
        return name if len(name) <= 24 else f"{name[:23]}…"

    @property
    def data(self) -> DataRecord:
        """The ``data`` record of one of its runs: the classes are the same in all."""
        return self.series[0].runs[0].result.data

    @property
    def folds(self) -> int:
        """Into how many folds the images were cut; 1: all runs were tested on the same images."""
        return self.series[0].folds

    @property
    def num_test(self) -> int:
        """The number of test images, of all folds together."""
        return _num_test(run for series in self.series for run in series.runs)


def _num_test(runs: Iterable[Run]) -> int:
    return sum({run.fold: run.result.data.num_test for run in runs}.values())


def compare(runs: Sequence[Run], labels: Mapping[str, str]) -> tuple[list[Comparison], list[str]]:
    """Group ``runs`` by data set and model, leaving out what was tested on other images.

    ``labels`` replaces the label of a run named ``<run>`` or ``<dataset>/<run>``. Returns the comparisons in the order
    of the data sets' names, and the lines that say what was left out or must be known.

    Raises:
        UserError: a name among ``labels`` is no run's.
    """
    unknown = set(labels) - {name for run in runs for name in (run.model_name, f"{run.dataset}/{run.model_name}")}
    if unknown:
        raise UserError(f"`labels` names {sorted(unknown)[0]!r}, which is not a run among those found")
    runs, lines = _one_a_fold(runs)
    comparisons = []
    for dataset in sorted({run.dataset for run in runs}, key=natural_order):
        same, left_out = _same_test_images([run for run in runs if run.dataset == dataset])
        comparisons += [_comparison(same, labels)] if same else []
        lines += left_out
    notes = [f"note: {each.dataset!r}: {note}" for each in comparisons for note in each.notes]
    return comparisons, lines + notes


def missing_predictions(comparison: Comparison) -> str:
    """Say how many runs have no logits, without which some figures cannot be drawn, or return ""."""
    runs = [run for series in comparison.series for run in series.runs]
    missing = sum(not has_predictions(run.folder) for run in runs)
    return f"{missing} of {len(runs)} runs have no {PREDICTIONS_FILE}" if missing else ""


def _comparison(runs: list[Run], labels: Mapping[str, str]) -> Comparison:
    """Make the series of one data set, and note where training sets differ or random weights stand among others."""
    names, by_name, notes = run_labels(runs, labels), defaultdict(list), []
    for run in sorted(runs, key=lambda run: run.fold):
        by_name[run.model_name].append(run)
    series = [
        Series(name, names[name], family_of(group[0].result), group[0].result.method, tuple(group), _are_draws(group))
        for name, group in by_name.items()
    ]
    series.sort(key=lambda each: (FAMILIES.index(each.family), natural_order(each.name)))
    if len({each.num_train for each in series}) > 1:
        notes.append("the models were trained on different numbers of images (n)")
    if len({has_random_weights(run) for run in runs}) > 1:
        notes.append("backbones with random weights stand beside pretrained ones")
    if any(each.has_draws for each in series):
        notes.append("each draw has training images and a training seed of its own")
    unlike = defaultdict(list)
    for each in series:
        unlike[each.repeat, _unlike_seeds(each)].append(each.label)
    for (repeat, differences), its in unlike.items():
        models = "each model" if len(its) == len(series) > 1 else ", ".join(its)
        notes += [f"the {repeat}s of {models} differ in {differences}"] if differences else []
    return Comparison(runs[0].dataset, tuple(series), tuple(notes))


def _are_draws(runs: Sequence[Run]) -> bool:
    return len({run.result.config.get("split_seed", 0) for run in runs}) > 1


def _unlike_seeds(series: Series) -> str:
    """Say in what the runs of a model differ that rounds otherwise or computes something else, or return ""."""
    environments = [run.result.environment for run in series.runs]
    code = "code_sha256" if all("code_sha256" in each for each in environments) else "git_commit"
    names = COMPUTED_WITH | {code: "code"}
    return ", ".join(name for key, name in names.items() if len({str(each.get(key)) for each in environments}) > 1)


def _one_a_fold(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Return the runs that have a test score, of several seeds on one fold the first alone, and lines on the rest."""
    kept, lines, seen = [], [], set()
    for run in runs:
        place = (run.dataset, run.model_name, run.result.config.get("split_seed"), run.folds, run.fold)
        if run.test is None:
            lines.append(f"left out: {str(run.folder)!r} was trained on all images and has no test score")
        elif run.folds > 1 and place in seen:
            lines.append(f"left out: {str(run.folder)!r} is a further seed on its fold; folds have one seed each")
        else:
            kept.append(run)
        seen.add(place)
    return kept, lines


def _same_test_images(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Return the largest group of ``runs`` with the same test images (of equals the latest), and lines on the rest."""
    groups, lines = defaultdict(list), []
    for run in runs:
        try:
            groups[_test_images(run)].append(run)
        except UserError as error:
            lines.append(f"left out: {error}")
    order = sorted(
        groups.values(), key=lambda group: (len(group), max(run.result.environment["created"] for run in group))
    )
    lines += [
        f"left out: {str(run.folder)!r} was tested on other images than the {len(order[-1])} runs of {run.dataset!r} "
        "that are drawn; plot_results.py chooses others with `runs` or `folds`"
        for group in order[:-1]
        for run in group
    ]
    return (order[-1] if order else []), lines


def _test_images(run: Run) -> str:
    """Return a hash of the test split: data fingerprint, classes, and which images with which labels in what order.

    Of folds it is a hash of what draws them, the same for all folds of one cut.
    """
    data, tested = run.result.data, [run.result.data.num_test, hash_of_test_images(run)]
    if run.folds > 1:
        tested = [run.result.config.get(name) for name in ("folds", "split_seed", "test_limit")]
    return sha256(repr((data.fingerprint, data.classes, tested)).encode("utf-8", "backslashreplace"))
