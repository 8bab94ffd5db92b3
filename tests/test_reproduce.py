"""The grid of runs: what is planned, run, resumed, and said of it."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tyro
from fake_results import fake_run

import profiles
import reproduce
import train_cnn_head
import train_vit_lora
from common.config import as_flags
from common.data.dataset import load_dataset
from common.evaluation.plan import read_plan
from common.grid import prefetch, scheduler
from common.grid.grid import Arm, Grid, grid_configs, job_for
from common.grid.scheduler import Job
from common.grid.stages import Stage
from common.runs.convergence import TUNING, gains
from common.runs.folder import CHECKPOINT_FILE, lock_file
from common.runs.methods import METHODS
from common.runs.result import RESULT_FILE, find_runs, write_result
from common.runtime import locks
from common.runtime.errors import UserError
from common.runtime.files import temporary_path, write_atomically
from common.training.cost import Cost
from reproduce import Config

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = {"train_limit": 60, "test_limit": 20, "image_size": 32}
FEW = {"epochs": 1, "batch_size": 32, "lr": (1e-3,)}


@pytest.fixture
def tiny(monkeypatch):
    """Make the demo a grid of two arms on 60 digits, with timm's smallest models and random weights."""
    arms = (
        Arm(train_vit_lora, "test_vit.r160_in1k", profiles.LORA | FEW | {"weights": "random"}),
        Arm(train_cnn_head, "test_resnet.r160_in1k", profiles.HEAD | FEW | {"weights": "random"}),
    )
    monkeypatch.setitem(profiles.PROFILES, "demo", (Grid(arms, {"digits": TINY}, seeds=(0, 1)),))


def _jobs(profile: str, **changed) -> list[Job]:
    config = Config(profile=profile, **changed)
    return reproduce._jobs(config, reproduce._grids(config))


@pytest.fixture
def tuned(monkeypatch):
    """Make mini a tuned grid of a probe, a head, and LoRA with two variants, on 60 digits with random weights.

    Its runs are made in this process, no figures are drawn, and nothing is measured.
    """

    def run_all(jobs, devices, done):
        failures = {}
        for job in jobs:
            try:
                sys.modules[type(job.config).__module__].main(job.config)
                done(job)
            except UserError as error:
                failures[job] = str(error)
        return failures

    monkeypatch.setattr(scheduler, "run_all", run_all)
    monkeypatch.setattr(reproduce.plot_results, "main", lambda config: None)
    monkeypatch.setattr(reproduce, "_announce_time", lambda config, grids, at_once: grids)
    rates = FEW | profiles.TUNED | {"lr": (1e-3, 3e-3), "extend": 1, "weights": "random"}
    arms = (
        Arm(train_cnn_head, "test_resnet.r160_in1k", profiles.CNN_PROBE | {"weights": "random"}),
        Arm(train_cnn_head, "test_resnet.r160_in1k", profiles.HEAD | rates),
        Arm(train_vit_lora, "test_vit.r160_in1k", profiles.LORA | rates, ({"targets": "qv"}, {"rank": 2})),
    )
    grid = Grid(arms, {"digits": TINY}, seeds=(0, 1), tuned=True)
    monkeypatch.setitem(profiles.PROFILES, "mini", (grid,))
    return grid


def _job(folder: Path, code: str, name: str = "job") -> Job:
    return Job(name, ("python", "-c", code), folder / name, folder / "logs" / f"{name}.log", None)


@pytest.fixture
def any_command(monkeypatch):
    """Let a job have another command than a training script's, which alone can be forked."""
    monkeypatch.setattr(scheduler, "prepare_forks", lambda: False)


@pytest.mark.parametrize(("profile", "count"), [("demo", 12), ("mini", 153), ("paper", 48), ("lite0", 15)])
def test_each_run_of_a_grid_is_named_once_and_passes_every_hyper_parameter(profile, count):
    planned = _jobs(profile)
    assert len({job.folder for job in planned}) == len({job.log for job in planned}) == len(planned) == count
    for job in planned:
        config = job.config
        own = {f"--{field.replace('_', '-')}" for field in type(config).__annotations__}
        assert own <= set(job.command)
        assert tyro.cli(type(config), args=job.command[2:]) == config
        assert job.command[1] == f"{type(config).__module__}.py"


def test_a_run_lies_where_the_script_itself_would_put_it(tiny, tmp_path):
    for one in grid_configs(profiles.PROFILES["demo"][0], data_dir=Path("data"), results_dir=tmp_path):
        if one.seed == 1:
            sys.modules[type(one).__module__].main(one)
            assert (job_for(one).folder / RESULT_FILE).exists()


@pytest.mark.parametrize("value", [True, False])
def test_flags_give_the_same_configuration_back(value):
    config = train_cnn_head.Config(lr=(1e-4, 0.5), skip_damaged=value, feature_cache=value, train_limit=7)
    assert tyro.cli(train_cnn_head.Config, args=as_flags(config)) == config


def test_a_run_is_missing_then_running_unfinished_or_finished(tmp_path):
    job = _job(tmp_path / "digits" / "run", "", "seed0")
    assert scheduler.job_state(job) == "missing"
    with locks.locked(lock_file(job.folder), what="it", wait=False):
        # The lock belongs to the process: another one has to ask.
        code = "import sys; from pathlib import Path; from common.runtime.locks import lock_holder\n"
        code += "print(lock_holder(Path(sys.argv[1])))"
        asked = subprocess.run(
            [sys.executable, "-c", code, lock_file(job.folder)], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert f"process {os.getpid()} on" in asked.stdout
    write_atomically(job.folder / CHECKPOINT_FILE, b"state")
    assert scheduler.job_state(job) == "unfinished"
    write_atomically(job.folder / RESULT_FILE, b"{}")
    assert scheduler.job_state(job) == "finished"


def test_the_list_and_the_commands_are_printed_and_nothing_is_run(tiny, tmp_path, capsys):
    reproduce.main(Config(show_list=True, results_dir=tmp_path))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["missing"] * 4
    reproduce.main(Config(print_commands=True, results_dir=tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("python train_") for line in lines)
    assert not list(tmp_path.iterdir())


def test_a_grid_is_run_once_drawn_and_summed_up(tiny, tmp_path, capsys):
    config = Config(results_dir=tmp_path / "results", figures_dir=tmp_path / "figures")
    reproduce.main(config)
    said = capsys.readouterr().out
    assert "demo, all runs: 4 runs: 0 finished, 0 running, 0 unfinished, 4 missing" in said
    assert "digits/test_vit.random-lora_r16" in said
    assert "one run of each arm by itself, to edit and run again:\n  python train_vit_lora.py" in said
    assert len(said.partition("run again:\n")[2].splitlines()) == 2
    assert (tmp_path / "figures" / "demo" / "digits_final_benchmark_comparison.png").exists()
    assert (tmp_path / "results" / "demo" / "summary.csv").exists()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(before) == 4
    reproduce.main(config)
    assert "4 finished, 0 running, 0 unfinished, 0 missing" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}


def test_a_run_that_fails_is_named_and_the_others_go_on(tiny, tmp_path, capsys, monkeypatch):
    good = profiles.PROFILES["demo"][0].arms[1]
    bad = Arm(train_cnn_head, "test_vit.r160_in1k", good.recipe)
    monkeypatch.setitem(profiles.PROFILES, "demo", (Grid((bad, good), {"digits": TINY}, seeds=(0,)),))
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(Config(results_dir=tmp_path / "results", figures_dir=tmp_path / "figures"))
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert "failed: digits/test_vit.random-head_mlp" in printed.err
    assert "not a convolutional network" in printed.err
    assert "1 failed; the same command tries them again" in printed.err
    assert len(list(tmp_path.rglob("result.json"))) == 1


def test_what_cannot_be_fetched_is_said_for_each_and_ends_with_1(monkeypatch, capsys, tmp_path):
    asked = []

    def fetch(name: str, data_dir: Path, source: str) -> None:
        asked.append(name)
        if name.startswith("resnet50"):
            raise UserError("no pretrained weights: bring the file")

    monkeypatch.setattr(prefetch, "_fetch", fetch)
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(Config(profile="paper", download_only=True, results_dir=tmp_path))
    assert stopped.value.code == 1
    assert asked == ["mnist", "fashion_mnist", "cifar10", *profiles.STUDY, "resnet50.tv_in1k"]
    printed = capsys.readouterr()
    assert "looking for mnist (12 MB where it must be downloaded)" in printed.out
    assert all(f"looking for resnet50.{tag}_in1k (102 MB where" in printed.out for tag in ("tv", "tv2"))
    assert "failed: resnet50.tv2_in1k and 1 more: no pretrained weights: bring the file" in printed.err
    reproduce.main(Config(profile="demo", download_only=True, results_dir=tmp_path))
    assert "all data and weights are in place" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_tuned_arm_has_three_rates_a_factor_of_about_three_apart_and_one_recipe():
    for profile, more in (("mini", {}), ("paper", {"tune": True}), ("lite0", {})):
        for job in _jobs(profile, **more):
            low, middle, high = job.config.lr if len(job.config.lr) > 1 else (1, 3, 9)  # a probe, or a check
            assert 2.9 < middle / low < 3.5 and 2.9 < high / middle < 3.5
            if job.config.method != "head_probe":
                assert (job.config.schedule, job.config.warmup) == ("cosine", 0.1)
    assert {job.config.schedule for job in _jobs("paper")} == {"constant"}
    assert {job.config.schedule for job in _jobs("demo") if job.config.method != "head_probe"} == {"cosine"}


@pytest.mark.parametrize(("profile", "seeds"), [("mini", 5), ("paper", 3), ("demo", 3)])
def test_every_arm_has_as_many_seeds_and_what_draws_nothing_has_one(profile, seeds):
    made = {}
    for job in _jobs(profile):
        if not job.name.startswith("tuning/"):
            made.setdefault(job.folder.parent, []).append(job)
    for jobs in made.values():
        expected = 1 if jobs[0].config.method == "head_probe" else seeds
        assert [job.config.seed for job in jobs] == list(range(expected))
        assert all(job.config.tuned_on == (0 if profile == "mini" else None) for job in jobs[1:])


def test_the_methods_asked_for_are_run_alone():
    for methods in (("probe",), ("lora", "head")):
        for profile in ("mini", "paper"):
            assert {METHODS[job.config.method].kind for job in _jobs(profile, methods=methods)} == set(methods)
    for profile, methods in (("curve", ("full",)), ("mini", ("norms-and-biases",))):
        with pytest.raises(UserError, match="such as the backbones have"):
            _jobs(profile, methods=methods)


def test_lite0_trains_four_methods_on_one_cnn_with_more_seeds_and_epochs_where_features_are_kept():
    planned = {}
    for config in (job.config for job in _jobs("lite0")):
        assert (config.backbone, config.weights) == ("tf_efficientnet_lite0.in1k", "pretrained")
        assert (config.dataset, config.dataset_name) == ("cifar10", None)
        assert (config.train_limit, config.test_limit) == (2_000, 5_000)
        if config.method != "head_probe":
            assert (config.batch_size, config.schedule, config.warmup, config.extend) == (32, "cosine", 0.1, 0)
        runs = planned.setdefault(config.method, {"choice": [], "seeds": [], "twice": []})
        kind = "seeds" if config.tuned_on == 0 else "choice" if config.results_dir.name == "lite0" else "twice"
        runs[kind].append((config.seed, config.epochs, len(config.lr)))
    assert planned["head_probe"] == {"choice": [(0, 5, 1)], "seeds": [], "twice": []}
    assert planned["head_mlp"] == {
        "choice": [(0, 30, 3)],
        "seeds": [(seed, 30, 3) for seed in (1, 2, 3, 4)],  # all three name the run, ``tuned_on`` takes one of them
        "twice": [(0, 60, 1)],
    }
    for method in ("cnn_lora", "norms_and_biases"):
        assert planned[method] == {"choice": [(0, 3, 3)], "seeds": [(1, 3, 3), (2, 3, 3)], "twice": [(0, 6, 1)]}
    assert {job.config.targets for job in _jobs("lite0", methods=("lora",))} == {"pointwise"}
    partly = [job.config for job in _jobs("lite0", methods=("norms-and-biases",))]
    assert {(config.parts, config.batchnorm) for config in partly} == {("norms-and-biases", "frozen")}


def test_the_weights_of_lite0_are_a_file_or_downloaded(tmp_path):
    weights = tmp_path / "lite0.safetensors"
    with pytest.raises(UserError, match="a file that exists"):
        Config(profile="lite0", lite0_weights=weights)
    weights.touch()
    jobs = _jobs("lite0", lite0_weights=weights)
    assert {job.config.weights for job in jobs} == {str(weights)}
    assert prefetch.wanted([job.config for job in jobs]) == ["cifar10"]
    assert prefetch.wanted([job.config for job in _jobs("lite0")]) == ["cifar10", "tf_efficientnet_lite0.in1k"]


def test_cifar10_is_called_a_copy_where_it_is_a_folder_of_images(tmp_path):
    (tmp_path / "cifar10" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "cifar10" / "train" / "cat" / "0.jpg").touch()
    names = [{job.config.dataset_name for job in _jobs("lite0", data_dir=folder)} for folder in (tmp_path, Path("no"))]
    assert names == [{"cifar10_jpeg"}, {None}]


def test_the_plan_of_lite0_has_the_seeds_of_both_its_grids(tmp_path):
    config = Config(profile="lite0", results_dir=tmp_path)
    frozen, adapted = reproduce._whole_grids(config)
    reproduce._write_plans(config, [adapted, frozen])
    plan = read_plan(tmp_path / "lite0" / "cifar10")
    assert sorted(plan.seeds) == [0, 1, 2, 3, 4]
    methods = [[name.split("in1k-")[1].partition("-")[0] for name in pair] for pair in plan.contrasts]
    assert methods == [
        ["lora_r16", "head_probe"],
        ["lora_r16", "head_mlp"],
        ["norms_and_biases", "head_probe"],
        ["lora_r16", "norms_and_biases"],
    ]


def test_a_comparison_begins_with_probes_and_gives_small_data_enough_steps():
    config = Config(profile="compare", dataset="digits", backbones=("demo_vit", "demo_resnet"))
    grids = reproduce._grids(config)
    assert [[arm.method for arm in grid.arms] for grid in grids] == [
        ["head_probe", "head_probe"],
        ["head_linear", "head_mlp"],
        ["lora"],
    ]
    configs = [job.config for job in reproduce._jobs(config, grids)]
    trained = [config for config in configs if config.method != "head_probe"]
    assert {(config.epochs, config.batch_size) for config in trained} == {(25, 32), (50, 32)}  # 41 steps an epoch
    assert {config.targets for config in configs if config.method == "lora"} == {"qv", "all-linear"}
    with pytest.raises(UserError, match="was pretrained on the training images"):
        reproduce._grids(Config(profile="compare", dataset="cifar10", backbones=("demo_vit",)))


@pytest.mark.parametrize("place", [".", TUNING])
def test_a_comparison_does_not_take_runs_on_other_images_for_its_own(place, tmp_path):
    config = Config(profile="compare", dataset="digits", backbones=("demo_resnet",), results_dir=tmp_path)
    run = fake_run(tmp_path / "compare" / place, dataset="digits", num_test=20)
    with pytest.raises(UserError, match=f"{str(run.folder)!r} was made from other images than 'digits' holds now"):
        reproduce._grids(config)
    fingerprint = load_dataset("digits", data_dir=tmp_path).fingerprint
    write_result(run.folder, replace(run.result, data=replace(run.result.data, fingerprint=fingerprint)))
    assert reproduce._grids(config)


def test_what_is_no_plain_vit_and_no_cnn_is_compared_by_full_fine_tuning_alone():
    backbones = ("demo_resnet", "swin_tiny_patch4_window7_224")
    jobs = _jobs("compare", dataset="digits", backbones=backbones, methods=("probe", "full"), seeds=(0,))
    methods = {(job.config.backbone.split("_")[0], job.config.method) for job in jobs}
    assert methods == {("demo", "head_probe"), ("demo", "full"), ("swin", "full")}
    with pytest.raises(UserError, match=r"'swin_tiny_patch4_window7_224\.ms_in1k' is not possible"):
        _jobs("compare", dataset="digits", backbones=backbones)


def test_a_backbone_or_a_seed_that_is_named_twice_is_run_once():
    once = _jobs("compare", dataset="digits", backbones=("demo_resnet",), seeds=(0, 1))
    backbones = ("demo_resnet", "demo_resnet.cifar10", "demo_resnet")
    again = _jobs("compare", dataset="digits", backbones=backbones, seeds=(0, 1, 1, 0))
    assert [job.name for job in again] == [job.name for job in once]


def _folders(tmp_path):
    return {"results_dir": tmp_path / "results", "figures_dir": tmp_path / "figures"}


def test_a_tuned_grid_chooses_once_and_the_other_seeds_take_the_choice(tuned, tmp_path, capsys):
    config = Config(profile="mini", **_folders(tmp_path))
    reproduce.main(config)
    said = capsys.readouterr().out
    assert "mini: the tuned recipe: a cosine schedule" in said
    assert "mini, choices of seed 0: 4 runs: 0 finished, 0 running, 0 unfinished, 4 missing" in said
    assert "mini, other seeds, and twice the epochs: 4 runs: 0 finished, 0 running, 0 unfinished, 4 missing" in said
    assert "converged: twice the epochs add" in said
    shown = {(run.name, run.seed): run.result for run in find_runs(tmp_path / "results" / "mini")[0]}
    assert len(shown) == 5  # a probe, two seeds of a head and of the better LoRA
    for (name, seed), result in shown.items():
        if seed:
            first = shown[name, 0]
            assert [trial["lr"] for trial in result.trials] == [first.history[0].lr]
            assert len(first.trials) == 3 and result.config["tuned_on"] == 0
    hidden = find_runs(tmp_path / "results" / "mini" / "tuning")[0]
    variants = [run.result for run in hidden if len(run.result.trials) > 1]
    checks = [run.result for run in hidden if len(run.result.trials) == 1]
    assert {result.config["rank"] for result in variants} == {2, 16} and len(checks) == 2
    best = max(variants, key=lambda result: result.val.scores["accuracy"])
    (lora,) = {result.config["rank"] for result in shown.values() if result.method == "lora"}
    assert lora == best.config["rank"]
    assert {result.config["epochs"] for result in checks} == {2}
    assert len(gains(find_runs(tmp_path / "results" / "mini")[0], tmp_path / "results" / "mini")) == 2

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    reproduce.main(config)
    assert "4 finished, 0 running, 0 unfinished, 0 missing" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}


def test_commands_and_list_of_a_tuned_grid_name_what_is_known_and_count_the_rest(tuned, tmp_path, capsys):
    config = Config(profile="mini", print_commands=True, **_folders(tmp_path))
    reproduce.main(config)
    printed = capsys.readouterr()
    first, second = printed.out.splitlines()[:4], printed.out.splitlines()[4:]
    assert len(second) == 1 and "--tuned-on 0" in second[0] and "--tuned-on" not in "".join(first)
    assert "lines to 4: choices of seed 0\n" in printed.err
    assert "lines to 5: other seeds, and twice the epochs, once the lines before are run; 3 more are" in printed.err
    reproduce.main(Config(profile="mini", show_list=True, **_folders(tmp_path)))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["missing"] * 5 + ["3"]
    assert not list(tmp_path.iterdir())


def test_where_the_choice_fails_the_seeds_that_wait_for_it_say_so(tuned, tmp_path, capsys, monkeypatch):
    head = replace(tuned.arms[1], backbone="test_vit.r160_in1k")  # no convolutional network
    monkeypatch.setitem(profiles.PROFILES, "mini", (replace(tuned, arms=(tuned.arms[0], head)),))
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(Config(profile="mini", **_folders(tmp_path)))
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert "not a convolutional network" in said
    assert "seed 0, whose learning rate it takes, is not finished" in said and "2 failed" in said


@pytest.fixture
def comparison(tuned, monkeypatch):
    """Make compare on digits a grid of a probe and one of a head; return the runs shown by each drawing."""
    grids = [replace(tuned, arms=(arm,)) for arm in tuned.arms[:2]]
    monkeypatch.setattr(reproduce, "_comparison_grids", lambda config: grids)
    drawn = []
    monkeypatch.setattr(
        reproduce.plot_results, "main", lambda config: drawn.append(len(find_runs(config.results_dir, config.runs)[0]))
    )
    return drawn


def test_a_comparison_draws_after_each_grid_and_ends_with_the_model_to_use(comparison, tmp_path, capsys):
    reproduce.main(Config(profile="compare", dataset="digits", **_folders(tmp_path)))
    assert comparison == [1, 3]
    first, _, rest = capsys.readouterr().out.partition("so far; figures in")
    assert "(probe)" in first and "(head)" not in first
    runs, _ = find_runs(tmp_path / "results" / "compare")
    probe, head = ([run for run in runs if run.result.method == method] for method in ("head_probe", "head_mlp"))
    accuracies = [sum(run.result.val.scores["accuracy"] for run in group) / len(group) for group in (probe, head)]
    best = probe if accuracies[0] >= accuracies[1] else head
    word = "one run" if best is probe else "the mean of 2 seeds"
    assert f"the best on validation images, accuracy {max(accuracies):.4f} ({word})" in rest
    labelling = next(line for line in rest.splitlines() if "--predict" in line)
    assert any(
        labelling == f"  python evaluate.py {run.folder} --predict path/to/new/images --out labels.csv" for run in best
    )
    assert reproduce.COMPARE_LIMITS in rest and rest.count("  python train_cnn_head.py") == 2


def test_a_comparison_that_is_interrupted_draws_what_is_finished(comparison, tmp_path, capsys, monkeypatch):
    run_all = scheduler.run_all

    def interrupted(jobs, devices, done):
        if jobs[0].config.method == "head_mlp":
            raise KeyboardInterrupt
        return run_all(jobs, devices, done)

    monkeypatch.setattr(scheduler, "run_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce.main(Config(profile="compare", dataset="digits", **_folders(tmp_path)))
    assert comparison == [1, 1]
    assert "interrupted: drawing what is finished" in capsys.readouterr().err


def test_a_chosen_run_is_copied_whole_or_not_at_all(tmp_path):
    (tmp_path / "tuning" / "seed0").mkdir(parents=True)
    (tmp_path / "tuning" / "seed0" / "result.json").write_text("{}")
    temporary_path(tmp_path / "run" / "seed0", "copy").mkdir(parents=True)  # what a killed one left
    stage = Stage("", [], copies=[(tmp_path / "tuning" / "seed0", tmp_path / "run" / "seed0")])
    for _ in range(2):
        stage.take_over()
        assert [path.name for path in (tmp_path / "run").rglob("*")] == ["seed0", "result.json"]


def test_a_chosen_run_replaces_an_interrupted_one(tmp_path):
    for name, file in (("tuning", "result.json"), ("run", "checkpoint")):
        (tmp_path / name / "seed0").mkdir(parents=True)
        (tmp_path / name / "seed0" / file).write_text("{}")
    Stage("", [], copies=[(tmp_path / "tuning" / "seed0", tmp_path / "run" / "seed0")]).take_over()
    assert [path.name for path in (tmp_path / "run" / "seed0").iterdir()] == ["result.json"]


def test_a_comparison_that_cannot_be_drawn_on_the_way_goes_on(tmp_path, capsys, monkeypatch):
    def no_space(*_, **__):
        raise UserError("no space left")

    monkeypatch.setattr(reproduce, "_draw", no_space)
    reproduce._draw_so_far(Config(profile="compare", dataset="digits", **_folders(tmp_path)))
    assert capsys.readouterr().err == "not drawn: no space left\n"


@pytest.mark.parametrize(
    ("day", "seeds", "made"), [(1e9, (), range(5)), (1.0, (), range(3)), (1.0, (0, 1, 2, 3), range(4))]
)
def test_the_announcement_names_each_arms_time_and_leaves_two_seeds_out_of_a_long_grid(
    day, seeds, made, monkeypatch, capsys, tmp_path
):
    from common.grid import estimate

    monkeypatch.setattr(reproduce, "DAY", day)
    monkeypatch.setattr(estimate, "measure", lambda config: Cost(0.01, 0.01, 8))
    monkeypatch.setattr(scheduler, "are_forked", lambda: False)
    monkeypatch.setattr(estimate, "measure_start", lambda: 2.0)
    backbones = {"backbones": ("demo_vit", "demo_resnet"), "dataset": "digits"}
    config = Config(profile="compare", seeds=seeds, **backbones, **_folders(tmp_path))
    grids = reproduce._announce_time(config, reproduce._grids(config), at_once=2)
    assert {job.config.seed for job in reproduce._jobs(config, grids)} == set(made)
    said = capsys.readouterr().out
    assert ("five seeds take" in said) == (day == 1.0 and not seeds)
    assert "demo_vit.cifar10 head_probe" in said and "demo_vit.cifar10 lora" in said
    assert "shorter: --methods probe" not in said
    monkeypatch.setattr(reproduce, "LONG_SECONDS", 10)
    reproduce._announce_time(config, grids, at_once=2)
    assert "shorter: --methods probe" in capsys.readouterr().out


def test_small_backbones_take_a_thread_each_and_others_share_the_cores(monkeypatch):
    monkeypatch.setattr(scheduler, "visible_gpus", lambda: [])
    monkeypatch.setattr(reproduce, "cores", lambda: 8)

    def threads(config):
        grids = reproduce._grids(config)
        devices = reproduce._devices(config, grids)
        jobs = reproduce._jobs(config, [reproduce._with_threads(grid, len(devices)) for grid in grids])
        return len(devices), {job.config.threads for job in jobs}

    assert threads(Config(profile="demo")) == (8, {1})
    assert threads(Config(profile="demo", jobs=2)) == (2, {1})
    assert threads(Config(profile="mini")) == (8, {1})
    assert threads(Config(profile="lite0")) == (8, {1})
    assert threads(Config(profile="lite0", jobs=1)) == (1, {1})
    assert threads(Config(profile="paper")) == (1, {None})
    assert threads(Config(profile="paper", jobs=3)) == (3, {2})


def test_jobs_side_by_side_have_a_gpu_each(any_command, tmp_path):
    code = "import os, time; time.sleep(0.3); print(os.environ['CUDA_VISIBLE_DEVICES'])"
    planned = [_job(tmp_path, code, f"job{number}") for number in range(4)]
    assert scheduler.run_all(planned, ["2", "5"], lambda job: "done") == {}
    seen = [job.log.read_text().strip() for job in planned]
    assert sorted(seen) == ["2", "2", "5", "5"]


def test_a_run_that_fails_frees_its_gpu(any_command, tmp_path):
    code = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.exit(3)"
    planned = [_job(tmp_path, code, f"job{number}") for number in range(3)]
    assert set(scheduler.run_all(planned, ["5"], lambda job: "done")) == set(planned)
    assert [job.log.read_text().split()[0] for job in planned] == ["5"] * 3


def test_the_gpus_are_those_that_the_user_left_visible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert scheduler.job_devices(None) == ["3", "1"]
    assert scheduler.job_devices(3) == ["3", "1", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert scheduler.job_devices(None) == [None]
    assert scheduler.job_devices(2) == [None, None]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; print('error: no room', file=sys.stderr); sys.exit(2)", "no room"),
        ("raise ValueError('odd')", "exit 1: ValueError: odd"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL, mostly for memory"),
    ],
)
def test_the_reason_of_a_failure_is_the_childs_own_word(code, reason, any_command, tmp_path):
    jobs_planned = [_job(tmp_path, code, "bad"), _job(tmp_path, "print('fine')", "good")]
    failures = scheduler.run_all(jobs_planned, [None], lambda job: "done")
    assert [job.name for job in failures] == ["bad"]
    assert reason in failures[jobs_planned[0]]
    assert jobs_planned[1].log.read_text() == "fine\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_children_once_and_waits_for_them(number, code, tmp_path):
    child = """
import pathlib, signal, sys, time
count = 0
def note(*_):
    global count
    count += 1
signal.signal(signal.SIGTERM, note)
pathlib.Path(sys.argv[1], "started").touch()
while not count:
    time.sleep(0.05)
time.sleep(1)
pathlib.Path(sys.argv[1], "stopped").write_text(str(count))
"""
    parent = f"""
import pathlib, sys
from common import cli
from common.grid import scheduler
folder = pathlib.Path(sys.argv[1])
def main(config):
    scheduler.prepare_forks = lambda: False  # the command is no script
    job = scheduler.Job("job", ("python", "-c", {child!r}, str(folder)), folder / "job", folder / "log", None)
    scheduler.run_all([job], [None], str)
class Config: pass
import tyro
tyro.cli = lambda *a, **k: None
sys.exit(cli.run(main, Config))
"""
    process = subprocess.Popen([sys.executable, "-c", parent, str(tmp_path)], cwd=REPOSITORY, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert (tmp_path / "stopped").read_text() == "1"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"datasets": ("cifar10",)}, "among digits"),
        ({"seeds": (-1,)}, "0 or more"),
        ({"jobs": 0}, "1 to 256"),
        ({"profile": "compare"}, "given for compare, and only there"),
        ({"dataset": "digits"}, "given for compare, and only there"),
        ({"profile": "mini", "backbones": ("demo_vit",)}, "given for compare only"),
        ({"profile": "mini", "tune": True}, "given for paper only"),
        ({"methods": ("probe",)}, "left out for demo"),
        ({"profile": "compare", "dataset": "digits", "backbones": ()}, "one or more timm model names"),
    ],
)
def test_wrong_values_are_refused_by_name(flags, words):
    with pytest.raises(UserError, match=words):
        Config(**flags)


def test_each_profile_declares_at_most_six_pairs_of_arms_that_it_has():
    for profile, contrasts in profiles.CONTRASTS.items():
        arms = {(arm.backbone, arm.method) for grid in profiles.PROFILES[profile] for arm in grid.arms}
        assert 0 < len(contrasts) <= profiles.MOST_CONTRASTS
        assert {arm for pair in contrasts for arm in pair} <= arms and len(
            {frozenset(pair) for pair in contrasts}
        ) == len(contrasts)


def test_the_plan_of_a_curve_pairs_runs_on_as_many_training_images(tmp_path):
    config = Config(profile="curve", results_dir=tmp_path)
    reproduce._write_plans(config, reproduce._whole_grids(config))
    for dataset, sizes in (("fashion_mnist", 5), ("digits", 3)):
        pairs = read_plan(tmp_path / "curve" / dataset).contrasts
        assert len(pairs) == len(set(pairs)) == 3 * sizes
        assert all(len({name.rpartition("-n")[2].partition("-")[0] for name in pair}) == 1 for pair in pairs)


def test_the_plan_names_the_runs_of_the_grid_whatever_part_of_it_is_asked_for(tmp_path):
    config = Config(profile="mini", methods=("probe",), seeds=(0, 7), results_dir=tmp_path, margin=0.5)
    whole = reproduce._whole_grids(config)
    reproduce._write_plans(config, whole)
    runs = {job.folder.parent.relative_to(tmp_path / "mini") for job in reproduce._jobs(config, whole)}
    for dataset in ("digits", "mnist", "fashion_mnist"):
        plan = read_plan(tmp_path / "mini" / dataset)
        assert (plan.seeds, plan.margin, len(plan.contrasts)) == ((0, 1, 2, 3, 4), 0.5, 6)
        assert {Path(dataset, name) for pair in plan.contrasts for name in pair} <= runs
