"""Run a whole grid of the benchmark with one command, and draw its figures, tables and summary.

    python reproduce.py                      # demo: scikit-learn's digits, small shipped backbones, three seeds
    python reproduce.py mini                 # every method on the same backbones; MNIST, Fashion-MNIST, digits
    python reproduce.py paper                # the study: ViT-B/16 + LoRA, ResNet50, EfficientNet-B0 at 224x224
    python reproduce.py paper --tune         # each arm at its best: its learning rate chosen on validation images
    python reproduce.py mini --list          # which runs are finished, unfinished, running or missing
    python reproduce.py compare --dataset path/to/images --backbones demo_vit demo_resnet demo_efficientnet
    python reproduce.py compare --dataset path/to/images --methods probe       # an answer within minutes
    python reproduce.py compare --dataset path/to/few/images --folds 5         # each image is tested once
    python reproduce.py paper --methods probe head lora full    # method and backbone crossed (docs/factorial.md)
    python reproduce.py defects              # what each defect of the published code is worth (docs/defects.md)
    python reproduce.py curve                # LoRA against probes by the number of training images (docs/curve.md)
    python reproduce.py lite0                # EfficientNet-Lite0's ImageNet weights at 224x224 (docs/lite0.md)
    python reproduce.py paper --executor slurm --slurm partition=gpu time=120 gpus_per_node=1    # docs/cluster.md

Finished runs are kept and unfinished ones resumed, so the same command goes on after Ctrl-C. Expected: demo in a minute
and a half on two CPU cores, with the numbers of results/reference/demo/summary.md; the others say how long they take;
paper not yet measured here.
"""

import contextlib
import io
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

import plot_results
import profiles
from common import cli
from common.config import check_folder, check_weights, require
from common.data.dataset import DatasetSplits, cache_folder, load_dataset, result_name
from common.data.registry import DATASETS, kind_on_disk
from common.evaluation.comparison import Series, compare
from common.evaluation.plan import MARGIN, Plan, validation_accuracy, write_plan
from common.grid import prefetch, scheduler, slurm, slurm_queue
from common.grid.grid import Arm, Grid, job_for, narrow_grid, on_all_images, with_settings
from common.grid.scheduler import Job
from common.grid.stages import Stage, stages
from common.runs.convergence import NOT_CONVERGED, TUNING, gains
from common.runs.methods import METHODS
from common.runs.naming import model_name
from common.runs.result import RESULT_FILE, Run, find_runs
from common.runtime.environment import cores
from common.runtime.errors import UserError
from common.runtime.progress import duration

COMPARE_LIMITS = (
    "what this does not show: how the models do on images of another kind, with other pretraining, at learning rates "
    "that were not tried, or what they cost on other machines; "
)
ONE_SPLIT = "the seeds share one split of the images"
ONE_CHOICE = "the folds share training images, and learning rates chosen on validation images of the first"
LONG_SECONDS = 2 * 3600  # of LoRA, above which compare names shorter commands
DAY, FEWER_SEEDS = 24 * 3600, (0, 1, 2)  # of five seeds so many where they would take more than a day

Profile = Literal["demo", "mini", "paper", "compare", "defects", "curve", "lite0"]
Method = Literal["probe", "head", "lora", "full", "norms-and-biases"]


@dataclass(frozen=True)
class Config:
    """Which grid, and what of it. The hyper-parameters stand in profiles.py."""

    profile: Annotated[Profile, tyro.conf.Positional] = "demo"
    """demo: digits; mini: MNIST, Fashion-MNIST, digits with the demo backbones; paper: the study; compare: your images;
    defects: what those of the published code are worth; curve: accuracy by the number of training images; lite0: one
    CNN with ImageNet weights at 224x224."""
    dataset: str | None = None
    """compare: an image folder, or the name of a data set."""
    backbones: tuple[str, ...] = profiles.STUDY
    """compare: which backbones; for a ViT a probe, a linear head and LoRA are trained, for a CNN a probe and a head."""
    methods: tuple[Method, ...] = ()
    """mini, paper, compare, curve: which methods, each on every backbone that has it; the first four cross method and
    backbone (default for paper and compare: probe, head, and LoRA on the ViT; for mini all but a head on the ViT).
    lite0: which of all but full. Probes alone take minutes."""
    tune: bool = False
    """paper: the tuned recipe, each arm's learning rate chosen on validation images."""
    show_list: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Only show each run as finished, running, unfinished or missing."""
    print_commands: bool = False
    """Only print one shell line a run, for GNU parallel, xargs or a Slurm array."""
    download_only: bool = False
    """Only fetch the data sets and weights: compute nodes often have no network."""
    seeds: tuple[int, ...] = ()
    """Seeds to run (default: the profile's); a tuned profile needs seed 0 beside them, and chooses by it. For curve
    they are the draws of the training images, too."""
    datasets: tuple[str, ...] = ()
    """Data sets to run (default: all of the profile; for curve fashion_mnist)."""
    folds: int | None = None
    """compare: test a folder without a test split in this many folds, one seed each (default: 5 below 1,000 images; 1:
    a single split, five seeds)."""
    lite0_weights: Path | None = None
    """lite0: tf_efficientnet_lite0.safetensors, if it is not to be downloaded; defects: with it the CNN's defects also
    on CIFAR-10."""
    data_dir: Path = Path("data")
    """Where the data sets lie, or are downloaded to."""
    source: Literal["auto", "local", "hub", "torchvision"] = "auto"
    """What the data sets that can be downloaded are read from, as in the training scripts."""
    results_dir: Path = Path("results")
    """Results go to RESULTS_DIR/PROFILE/."""
    figures_dir: Path = Path("figures")
    """Figures go to FIGURES_DIR/PROFILE/."""
    margin: float = MARGIN
    """Differences in accuracy and F1 below this many points count as none; plot_results.py takes it over. It stays once
    a run is finished."""
    jobs: int | None = None
    """Runs at a time, each with a GPU of its own where there are several (default: one a GPU; on a CPU one, for
    small backbones one a core)."""
    cache_dir: Path | None = None
    """Features of frozen backbones are kept in CACHE_DIR/features, what image folders hold in CACHE_DIR/folders
    (default: .cache in this repository)."""
    executor: Literal["local", "slurm"] = "local"
    """local: this machine; slurm: jobs of a Slurm cluster, by submitit (docs/cluster.md)."""
    slurm: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """slurm: what a job asks for by submitit's names: partition=gpu time=120 cpus_per_task=8 mem_gb=32
    gpus_per_node=1 array_parallelism=8; time is in minutes."""
    wait: bool = False
    """slurm: wait for the end of all jobs, and draw; Ctrl-C ends the waiting alone."""

    def __post_init__(self) -> None:
        check_folder("results_dir", self.results_dir)
        check_folder("figures_dir", self.figures_dir)
        is_comparison = self.profile == "compare"
        require(is_comparison == bool(self.dataset), "dataset", self.dataset, "given for compare, and only there")
        require(
            is_comparison or self.backbones == profiles.STUDY, "backbones", self.backbones, "given for compare only"
        )
        require(len(self.backbones) > 0, "backbones", self.backbones, "one or more timm model names")
        require(self.profile != "demo" or not self.methods, "methods", self.methods, "left out for demo")
        require(self.profile == "paper" or not self.tune, "tune", self.tune, "given for paper only")
        if self.lite0_weights is not None:
            takes_it = self.profile in ("lite0", "defects")
            require(takes_it, "lite0_weights", str(self.lite0_weights), "given for lite0 and defects only")
            check_weights(str(self.lite0_weights))
        known = [name for grid in _fixed_grids(self) for name in grid.datasets]
        for name in self.datasets:
            require(name in known, "datasets", name, f"among {', '.join(known) or 'none'} for {self.profile}")
        for seed in self.seeds:
            require(0 <= seed < 2**63, "seeds", seed, "0 or more")
        require(self.folds is None or is_comparison, "folds", self.folds, "given for compare only")
        require(self.folds is None or 1 <= self.folds <= 1_000, "folds", self.folds, "1 to 1000")
        require(
            not self.seeds or self.folds in (None, 1), "seeds", self.seeds, "left out with `folds`: one seed a fold"
        )
        require(0 < self.margin < 100, "margin", self.margin, "above 0 and below 100 points")
        require(self.jobs is None or 1 <= self.jobs <= 256, "jobs", self.jobs, "1 to 256")
        if self.cache_dir is not None:
            check_folder("cache_dir", self.cache_dir)
        is_local = self.executor == "local"
        require(not is_local or not self.slurm, "slurm", self.slurm, "given with `executor` slurm only")
        require(not is_local or not self.wait, "wait", self.wait, "given with `executor` slurm only")
        require(is_local or self.profile != "defects", "executor", self.executor, "local for defects")
        require(is_local or self.jobs is None, "jobs", self.jobs, "left out with `executor` slurm")

    @property
    def folders(self) -> dict[str, Path]:
        """Where the runs read and write."""
        return {"data_dir": self.data_dir, "results_dir": self.results_dir / self.profile}


def main(config: Config) -> None:
    """Train what is not finished of the profile, draw it, and say what came out; exit with 1 where runs failed."""
    # The grids, as one child process a run
    settings = slurm.check(config.slurm) if config.executor == "slurm" else None
    whole = _whole_grids(config)
    grids = _grids(config, whole)
    if config.profile == "compare":
        config = replace(config, folds=grids[0].folds)
    devices = _devices(config, grids)
    threads = None if settings is None else slurm.threads_of_a_run(settings)
    grids = [with_settings(_with_threads(grid, len(devices), threads), cache_dir=config.cache_dir) for grid in grids]
    if config.show_list:
        _show_list(config, grids)
        return
    if config.print_commands:
        _print_commands(config, grids)
        return

    # What the runs read: fetched here, one after the other, never by runs side by side
    print(f"{config.profile}: {_recipe(config)}", flush=True)
    remote = prefetch.wanted([job.config for job in _jobs(config, grids)])
    if config.profile != "demo":
        _announce_downloads(config, remote)
        if not config.download_only and settings is None:
            grids = _announce_time(config, grids, at_once=len(devices))
    absent = prefetch.fetch(remote, config.data_dir, source=config.source)
    if config.download_only:
        print(f"{config.profile}: " + ("not all could be fetched" if absent else "all data and weights are in place"))
        _exit_with_failures(absent)
        return

    # What is to be compared is written before the first result is there
    _write_plans(config, whole)

    # Train, each run in a process of its own, on this machine or as jobs of a cluster
    if settings is None:
        failures = _run_grids(config, grids, absent, devices)
    else:
        done = _outcome if config.wait else None
        cache = cache_folder(config.cache_dir)
        failures, is_over = slurm.make_grids(grids, config.folders, settings, absent, wait=done, cache=cache)
        if not is_over:
            _exit_with_failures({job.name: reason for job, reason in failures.items()})
            return
        for stage in _stages(config, grids):
            stage.take_over()

    # Figures, tables, summary
    _draw(config)
    _conclude(config, grids)
    _exit_with_failures({job.name: reason for job, reason in failures.items()})


def _recipe(config: Config) -> str:
    if config.profile == "paper" and not config.tune:
        return "the published recipe: a constant learning rate, the study's own, for every arm"
    if config.profile == "defects":
        return "a constant learning rate, chosen beforehand, without and with each defect of the published code"
    rates = "chosen beforehand" if config.profile == "demo" else "of each arm chosen on validation images, by one seed"
    return f"the tuned recipe: a cosine schedule with a warm-up over a tenth of the steps; learning rates {rates}"


def _stages(config: Config, grids: Sequence[Grid], *, presume: bool = False) -> Iterator[Stage]:
    """Yield the stages of ``grids``, one grid after the other."""
    for grid in grids:
        yield from stages(grid, **config.folders, presume=presume)
        if config.profile == "defects":
            from bench.defects import defect_jobs

            yield Stage("deliberate defects", defect_jobs(grid, **config.folders))


def _jobs(config: Config, grids: Sequence[Grid]) -> list[Job]:
    """Return all jobs; those that follow from choices not made yet as they may turn out."""
    return [job for stage in _stages(config, grids, presume=True) for job in stage.jobs]


def _whole_grids(config: Config) -> Sequence[Grid]:
    """Return all of the profile's grids."""
    if config.profile == "compare":
        return _comparison_grids(config)
    grids = [profiles.tuned(grid) if config.tune else grid for grid in _fixed_grids(config)]
    return [_with_lite0_files(grid, config) if _is_lite0(grid) else grid for grid in grids]


def _grids(config: Config, whole: Sequence[Grid] | None = None) -> list[Grid]:
    """Return the profile's grids (``whole``, if known), reduced to the methods, seeds and data sets asked for."""
    grids = whole or _whole_grids(config)
    kept = [[arm for arm in grid.arms if _is_wanted(arm, config.methods)] for grid in grids]
    grids = [replace(grid, arms=tuple(arms)) for grid, arms in zip(grids, kept, strict=True) if arms]
    require(bool(grids), "methods", config.methods, "such as the backbones have")
    datasets = config.datasets or profiles.USUAL_DATASETS.get(config.profile, ())
    grids = [narrow_grid(grid, seeds=config.seeds, datasets=datasets) for grid in grids]
    return [_with_source(grid, config.source) for grid in grids if grid.datasets]


def _fixed_grids(config: Config) -> list[Grid]:
    """Return the grids of a profile that depends on no images of the user's."""
    grids = [*profiles.PROFILES.get(config.profile, ())]
    if config.profile == "defects" and config.lite0_weights:
        grids.append(profiles.DEFECTS_LITE0)
    return grids


def _is_lite0(grid: Grid) -> bool:
    return all(arm.backbone == profiles.LITE0 for arm in grid.arms)


def _with_lite0_files(grid: Grid, config: Config) -> Grid:
    """Return ``grid`` with its weights' file, where one is given, and CIFAR-10 named as the copy that a folder is."""
    is_copy = kind_on_disk("cifar10", config.data_dir, config.source) == "folder"
    names = {"dataset_name": "cifar10_jpeg"} if is_copy else {}
    weights = {"weights": str(config.lite0_weights)} if config.lite0_weights else {}
    arms = tuple(arm.with_recipe(**weights) for arm in grid.arms)
    return replace(grid, arms=arms, datasets={name: its | names for name, its in grid.datasets.items()})


def _with_source(grid: Grid, source: str) -> Grid:
    """Return ``grid`` with the data sets that can be downloaded read from ``source``."""
    own = {name: {"source": source} if name in DATASETS and DATASETS[name].download else {} for name in grid.datasets}
    return replace(grid, datasets={name: {**its, **own[name]} for name, its in grid.datasets.items()})


def _is_wanted(arm: Arm, methods: Sequence[str]) -> bool:
    return METHODS[arm.method].kind in methods if methods else not arm.crossed


def _comparison_grids(config: Config) -> list[Grid]:
    """Return the grids on the user's own images: probes, which answer first, heads, and LoRA."""
    from common.models import demo_backbones
    from common.models.backbones import kind_of, resolve_tag

    tags = list(dict.fromkeys(map(resolve_tag, config.backbones)))  # a name and its full tag are one backbone
    kinds = {tag: kind_of(tag) for tag in tags}
    for tag in tags:
        allowed = "a convolutional network, or timm's plain VisionTransformer (with `methods` full also another)"
        require(kinds[tag] != "other" or "full" in config.methods, "backbones", tag, allowed)
        demo_backbones.require_other_data(tag, config.dataset)  # before the images are read
    folds = 1 if config.seeds else config.folds
    trains = not (config.show_list or config.print_commands or config.download_only)
    submits = trains and config.executor == "slurm"
    if trains and not submits:
        scheduler.prepare_forks()  # before the images are read: the first call decides what the one server imports
    slurm_folder = slurm_queue.submission_folder(config.folders["results_dir"])
    cache = cache_folder(config.cache_dir)
    index = slurm.index_setting(config.dataset, config.data_dir, slurm_folder, cache) if submits else {}
    loaded = load_dataset(
        config.dataset,
        data_dir=config.data_dir,
        folds=folds,
        source=config.source,
        index=index.get("data_index"),
        cache=cache,
    )
    _announce_folds(loaded)
    _require_same_images(config, loaded)
    for tag in tags:
        demo_backbones.require_other_data(tag, loaded.name, loaded.classes)
    vits, cnns, others = ([tag for tag in tags if kinds[tag] == kind] for kind in ("vit", "cnn", "other"))
    arms = profiles.comparison_arms(vits, cnns, others, len(loaded.train))
    images = {config.dataset: (len(loaded.train) + len(loaded.val), len(loaded.test))}
    seeds = tuple(range(loaded.folds)) if loaded.folds > 1 else profiles.MINI.seeds
    common = {
        "datasets": {config.dataset: index},
        "images": images,
        "folds": loaded.folds,
        "seeds": seeds,
        "tuned": True,
    }
    return [Grid(tuple(its), **common) for its in arms if its]


def _require_same_images(config: Config, loaded: DatasetSplits) -> None:
    """Refuse a finished run under the name of these images that was made from others: it would count as one of theirs.

    Raises:
        UserError: naming the run, and what to do.
    """
    folder, _, pattern = _drawn(config)
    for run in (*find_runs(folder, pattern)[0], *find_runs(folder / TUNING, pattern)[0]):
        if run.result.data.fingerprint != loaded.fingerprint:
            raise UserError(
                f"the finished run {str(run.folder)!r} was made from other images than {config.dataset!r} holds now: "
                f"give another `results_dir`, or remove {str(run.folder.parent.parent)!r}"
            )


def _announce_folds(loaded: DatasetSplits) -> None:
    """Say on standard error (commands may be printed) where the images are tested in folds."""
    if loaded.folds > 1:
        images = len(loaded.train) + len(loaded.val) + len(loaded.test)
        print(
            f"compare: {images:,} images without a test split: {loaded.folds} stratified folds, one seed each, so that "
            "every image is tested once (--folds 1: a single split, five seeds)",
            file=sys.stderr,
            flush=True,
        )


def _devices(config: Config, grids: list[Grid]) -> list[str | None]:
    """Return the GPU of each run at a time; the small backbones, which take one thread, fill the cores instead."""
    are_small = all(_is_small(arm) for grid in grids for arm in grid.arms)
    return scheduler.job_devices(config.jobs, without_gpu=cores() if are_small else 1)


def _is_small(arm: Arm) -> bool:
    return arm.backbone.startswith(profiles.SMALL_BACKBONES)


def _with_threads(grid: Grid, at_once: int, threads: int | None = None) -> Grid:
    """Return ``grid`` with one thread for small backbones; others take ``threads``, or divide the cores among them.

    A run's numbers depend on its threads. So those of the small backbones depend neither on the cores nor on ``jobs``.
    """
    if threads is None and at_once > 1:
        threads = max(1, cores() // at_once)
    share = {} if threads is None else {"threads": threads}
    arms = [arm.with_recipe(**({"threads": 1} if _is_small(arm) else share)) for arm in grid.arms]
    return replace(grid, arms=tuple(arms))


def _write_plans(config: Config, grids: Sequence[Grid]) -> None:
    """Write beside the runs of each data set which are compared, the seeds that are planned, and the margin."""
    arms = [(arm.backbone, arm.method) for grid in grids for arm in grid.arms]
    vits, cnns = (list(dict.fromkeys(tag for tag, its in arms if its == method)) for method in ("lora", "head_mlp"))
    contrasts = profiles.CONTRASTS.get(config.profile) or profiles.usual_contrasts(vits, cnns)
    for dataset in dict.fromkeys(name for grid in grids for name in grid.datasets):
        own = [narrow_grid(grid, datasets=[dataset]) for grid in grids if dataset in grid.datasets]
        names = defaultdict(dict)  # of the runs of each arm, one a variant and number of training images
        for job in (job for grid in own for job in next(_stages(config, [grid])).jobs):
            name = model_name(job.folder.parent.name)
            names[job.config.backbone, job.config.method][name] = job.config.train_limit
        pairs = [
            (a, b)
            for first, second in contrasts[: profiles.MOST_CONTRASTS]
            for a, images in names[first].items()
            for b, its_images in names[second].items()
            if images == its_images
        ]
        seeds = tuple(dict.fromkeys(seed for grid in own for seed in grid.seeds))
        plan = Plan(tuple(pairs), seeds, config.margin)
        folder = result_name(dataset, own[0].datasets[dataset].get("dataset_name"))
        for line in write_plan(config.results_dir / config.profile / folder, plan):
            print(cli.with_flags(line), flush=True)


def _show_list(config: Config, grids: list[Grid]) -> None:
    if slurm_queue.was_submitted(config.folders["results_dir"]):
        slurm_queue.print_list(grids, config.folders)
        return
    for stage in _stages(config, grids):
        for job in stage.jobs:
            print(f"{scheduler.job_state(job):<10} {job.name}")
        if stage.unknown:
            print(f"{stage.unknown} more runs follow from choices that are not finished")


def _print_commands(config: Config, grids: list[Grid]) -> None:
    """Print a line a run on standard output; of tuned grids on standard error which lines must wait for others."""
    printed = 0
    for stage in _stages(config, grids):
        stage.take_over()
        for job in stage.jobs:
            print(job.shell_line)
        printed += len(stage.jobs)
        if any(grid.tuned for grid in grids):
            lines = f"lines to {printed}" if stage.jobs else "no line yet"
            follows = stage.unknown or any(job.config.tuned_on is not None for job in stage.jobs)
            wait = ", once the lines before are run" * bool(follows)
            more = f"; {stage.unknown} more are known only then: print again" * bool(stage.unknown)
            print(f"{lines}: {stage.name}{wait}{more}", file=sys.stderr)


def _announce_downloads(config: Config, remote: list[str]) -> None:
    size = sum(prefetch.download_bytes(name) for name in remote) / 1e6
    reads = (
        f"reads {', '.join(remote)}: {size:,.0f} MB, downloaded where not here yet" if remote else "downloads nothing"
    )
    print(f"{config.profile} {reads}", flush=True)


def _announce_time(config: Config, grids: list[Grid], *, at_once: int) -> list[Grid]:
    """Print what the unfinished runs of each arm take here, by a measurement of seconds.

    Returns the grids, with three seeds in place of five where these take more than a day and none was begun.
    """
    from common.grid import estimate

    jobs = _jobs(config, grids)
    if all(scheduler.job_state(job) == "finished" for job in jobs):
        return grids
    print("measuring this machine for an estimate of the time", flush=True)
    images = {name: (spec.num_train, spec.num_test) for name, spec in DATASETS.items()}
    images = images | grids[0].images
    start_seconds = 0.0 if scheduler.are_forked() else estimate.measure_start()
    seconds, feature_bytes = estimate.job_seconds(jobs, images, at_once=at_once, start_seconds=start_seconds)
    total = sum(seconds.values())
    begun = any(job.config.seed not in FEWER_SEEDS and job.folder.exists() for job in jobs)
    has_five_seeds = config.profile in ("mini", "compare") and not config.seeds and grids[0].folds == 1
    if has_five_seeds and not begun and total > DAY:
        print(f"five seeds take {duration(total)} here: three in their place (--seeds 0 1 2 3 4 makes five)")
        grids = [narrow_grid(grid, seeds=FEWER_SEEDS) for grid in grids]
        jobs = _jobs(config, grids)
    todo = [job for job in jobs if scheduler.job_state(job) != "finished"]
    of_arm = estimate.arm_seconds(todo, seconds)
    print(f"time here, {at_once} at a time:")
    print(*(f"{duration(its):>9}  {backbone} {method}" for (backbone, method), its in of_arm.items()), sep="\n")
    print(
        f"{duration(sum(of_arm.values())):>9}  all {len(todo)} runs, with {feature_bytes / 1e9:.1f} GB of disk for "
        "features (.cache/features, to be deleted at will); they may be stopped and resumed at any time",
        flush=True,
    )
    if config.profile == "compare":
        _name_shorter_commands(of_arm)
    return grids


def _name_shorter_commands(of_arm: Mapping[tuple[str, str], float]) -> None:
    """Say, where LoRA takes hours, what takes less."""
    of_method = Counter()
    for (_, method), seconds in of_arm.items():
        of_method[method] += seconds
    if (lora := of_method["lora"]) > LONG_SECONDS:
        heads = duration(sum(of_method.values()) - lora)
        print(
            f"LoRA takes {duration(lora)} of it; shorter: --methods probe ({duration(of_method['head_probe'])}), "
            f"--methods probe head ({heads}), one seed (--seeds 0), or a smaller ViT, such as "
            "vit_small_patch16_224.augreg_in1k among --backbones (a quarter of the time)",
            flush=True,
        )


def _run_grids(config: Config, grids: list[Grid], absent: dict[str, str], devices: list[str | None]) -> dict[Job, str]:
    """Make the runs of ``grids``; a comparison shows what is there after each of them. Returns why runs failed."""
    failures = {}
    for grid in grids:
        failures |= _run_grid(config, grid, absent, devices)
        if config.profile == "compare" and grid is not grids[-1]:
            _draw_so_far(config)
    return failures


def _run_grid(config: Config, grid: Grid, absent: dict[str, str], devices: list[str | None]) -> dict[Job, str]:
    """Make the runs of a grid, stage by stage; return why each that is still not finished is not."""
    failures = {}
    try:
        for stage in _stages(config, [grid]):
            stage.take_over()
            failures |= _train(config, stage, absent, devices)
    except KeyboardInterrupt:
        if config.profile == "compare":
            print("interrupted: drawing what is finished; once more stops at once", file=sys.stderr, flush=True)
            _draw_so_far(config)
        raise
    return failures


def _train(config: Config, stage: Stage, absent: dict[str, str], devices: list[str | None]) -> dict[Job, str]:
    """Make the runs that are not finished; return why each that is still not is not."""
    states = {job: scheduler.job_state(job) for job in stage.jobs}
    counts = Counter(states.values())
    numbers = ", ".join(f"{counts[state]} {state}" for state in scheduler.STATES)
    print(f"{config.profile}, {stage.name}: {len(stage.jobs)} runs: {numbers}", flush=True)
    failures = {job: obstacle for job in stage.jobs if (obstacle := scheduler.job_obstacle(job, absent))}
    to_do = [job for job in stage.jobs if job not in failures and states[job] != "finished"]
    return failures | scheduler.run_all(to_do, devices, _outcome)


def _outcome(job: Job) -> str:
    result = job.read(job.folder / RESULT_FILE)
    seconds = result.efficiency.total_train_seconds
    said = f"test accuracy {result.test.scores['accuracy']:.4f}, training with features {seconds:.0f} s"
    if len(result.trials) > 1 and result.history:
        said += f", of it {result.kept_train_seconds:.0f} s at learning rate {result.history[0].lr:g}, which was chosen"
    return said


def _draw_so_far(config: Config) -> None:
    """Draw what is finished; where that fails say why and go on: there is more to train, and all is drawn again."""
    try:
        _draw(config, quiet=True)
    except UserError as error:
        print(f"not drawn: {cli.with_flags(str(error))}", file=sys.stderr, flush=True)


def _draw(config: Config, *, quiet: bool = False) -> None:
    """Draw the profile's figures and tables of what is finished, and print its scores; ``quiet``: the scores alone."""
    from common.evaluation.frames import frames_of
    from common.report import tables  # pandas takes a third of a second, --help does not wait

    folder, figures, pattern = _drawn(config)
    runs = _finished(config)
    if not runs:
        return
    comparisons, remarks = compare(runs, {})
    with contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():
        if config.profile == "curve":
            from common.report.curve import write_curves

            print(*remarks, *write_curves(comparisons, folder, figures), sep="\n")
        else:
            plot_results.main(
                plot_results.Config(results_dir=folder, figures_dir=figures, runs=pattern, folds=config.folds)
            )
        if config.profile == "defects":
            from bench.defects import write_defects

            print(*write_defects(comparisons, folder, figures), sep="\n")
    print("", tables.terminal(comparisons, frames_of(comparisons)), sep="\n")
    print(f"so far; figures in {figures}\n" if quiet else "", end="", flush=True)


def _drawn(config: Config) -> tuple[Path, Path, str]:
    """Return the folders of results and figures, and the pattern of the runs that are shown."""
    shown = f"{result_name(config.dataset)}/*" if config.profile == "compare" else "*"
    return config.results_dir / config.profile, config.figures_dir / config.profile, shown


def _finished(config: Config) -> list[Run]:
    """Return the profile's finished runs, of a comparison those on its images and in as many folds."""
    folder, _, pattern = _drawn(config)
    return [run for run in find_runs(folder, pattern)[0] if run.test and config.folds in (None, run.folds)]


def _conclude(config: Config, grids: list[Grid]) -> None:
    """Print whether training was long enough, which arm to use, and the command of one run of each arm."""
    from common.report.recommendation import recommendation

    runs = _finished(config)
    for (dataset, name), gain in gains(runs, _drawn(config)[0]).items():
        word = "not converged" if gain > NOT_CONVERGED else "converged"
        print(f"{dataset}: {name}: {word}: twice the epochs add {100 * gain:+.1f} points on validation images")
    if runs and config.profile == "compare":
        comparison = compare(runs, {})[0][0]
        last, shared = [], ONE_SPLIT
        if comparison.folds > 1:
            best = max(comparison.series, key=validation_accuracy)
            last, shared = _last_model(config, grids, best), ONE_CHOICE
        print("", *recommendation(comparison), *last, COMPARE_LIMITS + shared, sep="\n")
    firsts = [next(_stages(config, [replace(grid, datasets=dict([*grid.datasets.items()][:1]))])) for grid in grids]
    jobs = reversed([job for stage in firsts for job in stage.jobs])  # of several variants the first
    lines = {(job.config.backbone, job.config.method): job.shell_line for job in jobs}
    print("\none run of each arm by itself, to edit and run again:")
    print(*(f"  {line}" for line in reversed(lines.values())), sep="\n", flush=True)


def _last_model(config: Config, grids: list[Grid], best: Series) -> list[str]:
    """Return the commands that train the chosen arm, as it was set and at the rate it chose, on all images, and use it.

    There are none where the run that is best is not of these grids.
    """
    from common.report.recommendation import labelling_command

    folders, history = [run.folder for run in best.runs], best.runs[0].result.history
    configs = [job.config for stage in _stages(config, grids) for job in stage.jobs if job.folder in folders]
    if not configs:
        return []
    job = job_for(on_all_images(configs[0], seed=grids[0].first_seed, lr=history[0].lr if history else None))
    return [
        "none of these models has seen all images; train one more that has (it has no test score of its own, the mean "
        f"over the folds stands for it):\n  {job.shell_line}",
        labelling_command(job.folder),
    ]


def _exit_with_failures(failures: dict[str, str]) -> None:
    """Say what failed and why, each reason once, and exit with 1; do nothing where nothing failed."""
    for reason in dict.fromkeys(failures.values()):
        names = [name for name, its in failures.items() if its == reason]
        print(
            f"failed: {names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)}: {cli.with_flags(reason)}",
            file=sys.stderr,
        )
    if failures:
        print(f"{len(failures)} failed; the same command tries them again", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
