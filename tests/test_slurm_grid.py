"""What a grid on Slurm submits, says and does, with stand-ins for Slurm's commands; ``tests/slurm`` has a real one."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import profiles
import reproduce
from common import cli
from common.data import image_folder, scan
from common.data.dataset import load_dataset
from common.grid import slurm, slurm_queue, slurm_task
from common.grid.scheduler import Job
from common.grid.slurm import batches, parse_settings
from common.grid.slurm_queue import Submissions
from common.grid.stages import PlannedRun, planned_runs
from common.runs.folder import lock_file
from common.runs.result import RESULT_FILE
from common.runtime.errors import UserError
from common.runtime.files import write_atomically

REPOSITORY = Path(__file__).resolve().parent.parent
SBATCH = """#!/bin/sh
echo x >> "$SLURM_FAKE/sent"
cp "$1" "$SLURM_FAKE/script$(wc -l < "$SLURM_FAKE/sent")"
echo "Submitted batch job $((70 + $(wc -l < "$SLURM_FAKE/sent")))"
"""
COMMANDS = {
    "sbatch": SBATCH,
    "srun": "#!/bin/sh\n",
    "squeue": '#!/bin/sh\ncat "$SLURM_FAKE/queue"\n',
    "scontrol": '#!/bin/sh\necho "$@" >> "$SLURM_FAKE/asked"\n',
}


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """Put stand-ins for Slurm's commands first in PATH; in the folder lie what they were given, and the ``queue``."""
    folder = tmp_path / "fake"
    folder.mkdir()
    for name, text in COMMANDS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "queue").touch()
    monkeypatch.setenv("SLURM_FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def _runs(profile: str, tmp_path: Path) -> list[PlannedRun]:
    folders = {"data_dir": Path("data"), "results_dir": tmp_path / "results"}
    return [run for grid in reproduce._grids(reproduce.Config(profile)) for run in planned_runs(grid, **folders)]


def _command(tmp_path: Path, name: str, code: str) -> PlannedRun:
    log = tmp_path / "logs" / f"{name}.log"
    return PlannedRun(name, Job(name, ("python", "-c", code), tmp_path / name, log, None))


def test_settings_are_submitits_and_values_are_numbers_or_texts():
    settings = parse_settings(["partition=gpu", "time=120", "mem_gb=32.5", 'setup=["module load cuda"]', "qos=a=b"])
    assert settings == {
        "partition": "gpu",
        "time": 120,
        "mem_gb": 32.5,
        "setup": ["module load cuda"],
        "qos": "a=b",
    }
    assert parse_settings(["time=5", "setup=module load cuda"])["setup"] == ["module load cuda"]
    assert slurm.threads_of_a_run({"cpus_per_task": 16, "gpus_per_node": 8}) == 2
    assert slurm.threads_of_a_run({}) == 1 and slurm.runs_at_once({"gpus_per_node": "a100:8"}) == 8


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["time"], "not of the form KEY=VALUE"),
        (["partition=gpu"], "needs the tasks' time limit"),
        (["time=5", "nodes=2"], "a run is one process on one node"),
        (["time=2"], "told 90 s before its end"),
        (["time=5", "gpus_per_node=many"], "must be a whole number"),
        (["time=5", "signal_delay_s=soon"], "`slurm` signal_delay_s=soon: it must be a whole number"),
        (["time=5", "array_parallelism=[8]"], "must be a whole number"),
        (["time=5", "setup=5"], "`slurm` setup=5: it must be a text, or a JSON list of texts"),
        (["time=5", "setup=[5]"], "a JSON list of texts"),
        (["time=5", "additional_parameters=qos"], "additional_parameters=qos: it must be a JSON object, such as"),
    ],
)
def test_settings_that_no_run_allows_are_refused(pairs, words, fake):
    with pytest.raises(UserError, match=words):
        slurm.check(pairs)


def test_an_unknown_setting_is_refused_with_the_list_before_any_work(fake, capsys):
    argv = ["mini", "--executor", "slurm", "--slurm", "time=5", "partitoin=gpu"]
    assert cli.run(reproduce.main, reproduce.Config, argv) == 2
    printed = capsys.readouterr()
    assert not printed.out and printed.err.count("\n") == 1
    assert "--slurm partitoin: submitit has no such parameter (did you mean 'partition'?)" in printed.err
    assert "; it has account, " in printed.err and "mem_gb" in printed.err


def test_what_is_not_installed_is_said_in_a_line(fake, monkeypatch, capsys):
    argv = ["demo", "--executor", "slurm", "--slurm", "time=5"]
    monkeypatch.setenv("PATH", "")
    assert cli.run(reproduce.main, reproduce.Config, argv) == 2
    assert "there is no Slurm on this machine (srun is not found)" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert cli.run(reproduce.main, reproduce.Config, argv) == 2
    assert "pip install -r requirements-slurm.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"slurm": ("time=5",)}, "given with `executor` slurm only"),
        ({"wait": True}, "given with `executor` slurm only"),
        ({"executor": "slurm", "jobs": 2}, "left out with `executor` slurm"),
        ({"executor": "slurm", "profile": "defects"}, "local for defects"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, words):
    with pytest.raises(UserError, match=words):
        reproduce.Config(**flags)


def test_runs_that_read_the_same_features_are_one_batch_in_their_order(tmp_path):
    made = batches(_runs("mini", tmp_path))
    for batch in made:
        configs = [run.job.config for run in batch]
        assert len({(config.dataset, config.backbone) for config in configs}) == 1
        assert len(batch) == 1 or all(config.method != "lora" for config in configs)
    sizes = sorted(map(len, made))
    # A run of LoRA or full fine-tuning is a batch: of each data set six arms with the choice, its check and four seeds.
    # A CNN's batch holds its probe, the head's choice, its check and four seeds; the ViT's its probe.
    assert sizes == [1] * (3 * (6 * 6 + 1)) + [7] * (3 * 2)
    assert sorted(run.key for batch in made for run in batch) == sorted(run.key for run in _runs("mini", tmp_path))


def test_a_grid_is_submitted_in_arrays_no_longer_than_slurm_allows_and_the_followers_wait(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "MOST_TASKS", 5)
    submissions, studied = Submissions(tmp_path / "slurm"), ("lora", "head_mlp", "head_probe")
    runs = [run for run in _runs("mini", tmp_path) if run.job.config.method in studied]
    settings = parse_settings(["time=60", "partition=gpu", "mem_gb=4", "cpus_per_task=2", "array_parallelism=3"])
    assert slurm.submit(runs, settings, submissions) == ["71", "72", "73", "74", "75", "76"]
    scripts = [(fake / f"script{number}").read_text() for number in range(1, 7)]
    arrays = [next(line for line in script.splitlines() if "--array" in line) for script in scripts]
    # 3 x (2 CNNs, the ViT's probe, LoRA's choice) first, then 3 x (LoRA's check and four seeds)
    assert [array.split("=")[1] for array in arrays] == ["0-4%3", "0-4%3", "0-1%2", "0-4%3", "0-4%3", "0-4%3"]
    for script in scripts:
        assert "--partition=gpu" in script and "--mem=4GB" in script and "--time=60" in script
        assert "--signal=TERM@90" in script and "#SBATCH --requeue" in script
        assert "HF_HUB_OFFLINE=1" in script and f"PYTHONPATH={REPOSITORY}" in script
    waits = ["--dependency=afterany:" in script for script in scripts]
    assert waits == [False] * 3 + [True] * 3
    tasks = next(line for line in scripts[3].splitlines() if "--dependency" in line).split(":")[1:]
    lora = [run.key for run in runs if run.job.config.method == "lora" and not run.needs]
    assert sorted(tasks) == sorted(submissions.task_of[key] for key in lora)
    assert Submissions(tmp_path / "slurm").task_of == submissions.task_of and len(submissions.task_of) == len(runs)


def test_a_refusal_of_slurm_is_a_line(fake, tmp_path):
    (fake / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2; exit 1\n")
    with pytest.raises(UserError, match=r"Slurm refuses the grid: .*invalid partition specified: gpu"):
        slurm.submit(_runs("demo", tmp_path), parse_settings(["time=5"]), Submissions(tmp_path / "slurm"))


def test_a_run_is_pending_running_finished_or_failed_by_the_queue_and_its_folder(tmp_path):
    submissions = Submissions(tmp_path / "slurm")
    runs = [_command(tmp_path, name, "") for name in ("done", "later", "busy", "behind", "lost", "quiet", "new")]
    submissions.add({f"7_{number}": [run.key] for number, run in enumerate(runs[:-1])})
    write_atomically(tmp_path / "done" / RESULT_FILE, b"{}")
    lock_file(tmp_path / "busy").touch()
    write_atomically(tmp_path / "logs" / "lost.log", b"epoch 1\nerror: no room left\n\n")
    write_atomically(submissions.log("7_5"), b"slurmstepd: error: oom-kill\n")
    queue = {"7_1": ("PENDING", ""), "7_2": ("RUNNING", "node4"), "7_3": ("RUNNING", "node5")}
    states = [submissions.state(run, queue) for run in runs]
    assert [state.word for state in states] == [
        *("finished", "pending", "running", "pending", "failed", "failed", "missing"),
    ]
    assert states[2].about == "job 7_2 on node4" and states[3].about == "job 7_3, which is running on node5"
    assert states[4].about == "no room left" and "job 7_5 ended: slurmstepd: error: oom-kill" in states[5].about


def test_only_what_is_missing_is_submitted_and_what_to_type_is_said(fake, tmp_path, capsys):
    folders = {"data_dir": Path("data"), "results_dir": tmp_path / "results"}
    grids, settings = profiles.PROFILES["demo"], parse_settings(["time=5"])
    absent = {"demo_vit.cifar10": "its file is gone"}
    failures, is_over = slurm.make_grids(grids, folders, settings, absent, wait=None)
    assert not is_over and set(failures.values()) == {"its file is gone"} and len(failures) == 4
    said = capsys.readouterr().out
    assert "12 runs: 12 missing" in said and "submitted 2 tasks, as the arrays 71" in said
    assert "squeue --jobs 71" in said and "--list" in said and "--wait" in said and "scancel 71" in said
    (fake / "queue").write_text("71_0|RUNNING|node1\n71_1|PENDING|\n")
    failures, is_over = slurm.make_grids(grids, folders, settings, absent, wait=None)
    assert not is_over and (fake / "sent").read_text() == "x\n"
    (fake / "queue").write_text("71_0|RUNNING|node1\n")
    slurm.make_grids(grids, folders, settings, absent, wait=None)
    assert (fake / "sent").read_text() == "x\nx\n" and "--array" not in (fake / "script2").read_text()


def test_an_image_folder_is_read_once_and_its_index_is_handed_to_the_tasks(fake, tmp_path, monkeypatch, capsys):
    rng, reads, read = np.random.default_rng(0), [], image_folder.read
    monkeypatch.setattr(image_folder, "read", lambda *args, **options: reads.append(args) or read(*args, **options))
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{number}.png")
    argv = ["compare", f"--dataset={tmp_path / 'pets'}", "--backbones=demo_resnet", "--methods=probe"]
    argv += [f"--results-dir={tmp_path / 'results'}", "--executor=slurm", "--slurm=time=5"]
    argv += [f"--cache-dir={tmp_path / 'cache'}"]
    monkeypatch.setattr(scan, "MANY_FILES", 0)  # so that what they hold is kept
    assert cli.run(reproduce.main, reproduce.Config, argv) == 0
    assert [path.suffix for path in (tmp_path / "cache" / "folders").iterdir()] == [".npz"]
    assert len(reads) == 1 and "submitted 1 tasks" in capsys.readouterr().out
    (pickled,) = (tmp_path / "results").rglob("*_submitted.pkl")
    ((batch,),) = pickle.loads(pickled.read_bytes()).args
    index = batch[0].job.config.data_index
    assert f"--data-index {index}" in batch[0].job.shell_line
    found = load_dataset(str(tmp_path / "pets"), data_dir=tmp_path, index=index)
    assert len(found.train) + len(found.val) + len(found.test) == 40 and len(reads) == 1


def test_a_task_that_left_the_queue_without_a_word_is_not_waited_for(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_queue, "POLL_SECONDS", 0.01)
    submissions, runs = Submissions(tmp_path / "slurm"), [_command(tmp_path, name, "") for name in ("a", "b")]
    submissions.add({"7": ["a"], "8": ["b"]})
    write_atomically(tmp_path / "a" / RESULT_FILE, b"{}")
    assert slurm_queue.follow(runs, submissions, lambda job: "done") == {
        runs[1].job: f"job 8 ended: nothing was printed (see {str(submissions.log('8'))!r})"
    }


def test_ctrl_c_of_the_waiting_says_that_the_jobs_go_on(fake, tmp_path, monkeypatch, capsys):
    submissions, run = Submissions(tmp_path / "slurm"), _command(tmp_path, "a", "")
    submissions.add({"7_0": ["a"]})

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm_queue, "read_queue", interrupted)
    with pytest.raises(KeyboardInterrupt):
        slurm_queue.follow([run], submissions, lambda job: "done")
    said = capsys.readouterr().err
    assert "the jobs go on, nothing was cancelled" in said and "scancel 7 ends them" in said
    assert not (fake / "asked").exists()


def test_a_controller_that_does_not_answer_for_a_moment_is_asked_again(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(slurm_queue, "POLL_SECONDS", 0.01)
    squeue = fake / "squeue"
    squeue.write_text(f"#!/bin/sh\ncp {squeue}.later {squeue}; echo 'Unable to contact slurm controller' >&2; exit 1\n")
    (fake / "squeue.later").write_text(COMMANDS["squeue"])
    submissions, run = Submissions(tmp_path / "slurm"), _command(tmp_path, "a", "")
    submissions.add({"7_0": ["a"]})
    write_atomically(tmp_path / "a" / RESULT_FILE, b"{}")
    assert slurm_queue.follow([run], submissions, lambda job: "done") == {}
    assert "squeue does not answer: Unable to contact slurm controller; asking again" in capsys.readouterr().err


# One task


def test_a_task_makes_its_batches_side_by_side_each_in_order_on_a_gpu_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    code = "import os, sys, time; time.sleep(0.2); print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.exit(%d)"
    names = [["a1", "a2", "a3"], ["b1", "b2"]]
    planned = [[_command(tmp_path, name, code % (name == "a1")) for name in batch] for batch in names]
    write_atomically(tmp_path / "a2" / RESULT_FILE, b"{}")
    with pytest.raises(SystemExit) as ended:
        slurm_task.make_runs(planned)
    assert ended.value.code == 1
    gpus = {path.stem: path.read_text().split()[0] for path in (tmp_path / "logs").glob("*.log")}
    assert set(gpus) == {"a1", "a3", "b1", "b2"}
    assert gpus["a1"] == gpus["a3"] != gpus["b1"] == gpus["b2"]  # a run that fails frees its GPU
    assert "a2: already finished" in capsys.readouterr().out


TASK = """
import sys
from pathlib import Path
from common.grid import scheduler
from common.grid.slurm_task import make_runs
from common.grid.stages import PlannedRun
child = '''
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1], "started").touch()
time.sleep(60)
'''
folder = Path(sys.argv[1])
scheduler.prepare_forks = lambda: False  # the command is no script
job = scheduler.Job("job", ("python", "-c", child, str(folder)), folder / "run", folder / "log", None)
make_runs([[PlannedRun("job", job)]])
"""


@pytest.mark.parametrize(
    ("number", "state", "array", "asked"),
    [
        (signal.SIGTERM, "RUNNING", {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "requeue 7_3\n"),
        (signal.SIGUSR1, "RUNNING", {}, "requeue 12\n"),
        (signal.SIGTERM, "COMPLETING", {}, None),  # cancelled, or queued again by Slurm itself
    ],
)
def test_a_task_that_is_ended_saves_its_runs_and_is_queued_again(number, state, array, asked, fake, tmp_path):
    (fake / "queue").write_text(f"{state}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_ARRAY")}
    environment |= {"SLURM_JOB_ID": "12", "PYTHONPATH": str(REPOSITORY)} | array
    task = subprocess.Popen([sys.executable, "-c", TASK, str(tmp_path)], env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    for _ in range(2):  # Slurm signals a process, and its parent passes the signal on
        task.send_signal(number)
    assert task.wait(60) == 143
    assert (tmp_path / "saved").exists()
    sent = fake / "asked"
    assert (sent.read_text() if sent.exists() else None) == asked
