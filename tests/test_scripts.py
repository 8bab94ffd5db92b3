"""The scripts as a user runs them: from a shell, with right and with wrong arguments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import train_cnn_head
import train_cnn_lora
import train_vit_lora
from common import cli

REPOSITORY = Path(__file__).resolve().parent.parent
TRAINERS = ["train_vit_lora.py", "train_cnn_head.py", "train_cnn_lora.py", "train_full.py"]
SCRIPTS = [*TRAINERS, "evaluate.py", "plot_results.py"]
TINY = [
    *("--dataset=digits", "--weights=random", "--image-size=32", "--epochs=1"),
    *("--train-limit=60", "--test-limit=20", "--no-feature-cache"),
]


def _shell(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, words)], cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_flag_and_loads_nothing_heavy(script):
    done = _shell("-X", "importtime", script, "--help")
    assert done.returncode == 0, done.stderr
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "timm", "peft", "sklearn", "pandas", "matplotlib"}
    assert "python " + script in done.stdout


@pytest.mark.parametrize(
    ("script", "backbone", "weights"),
    [
        ("train_vit_lora.py", "test_vit", "adapter/adapter_model.safetensors"),
        ("train_cnn_head.py", "test_resnet", "head.safetensors"),
    ],
)
def test_a_script_trains_tests_saves_and_says_so(script, backbone, weights, tmp_path):
    done = _shell(script, *TINY, f"--backbone={backbone}", "--results-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("digits/*/seed0/result.json")
    record = json.loads(result.read_text())
    assert f"test accuracy {record['test']['accuracy']:.4f}" in done.stdout
    assert f"{record['model']['trainable_params']:,} of" in done.stdout
    for name in (weights, "predictions.npz", "result.json"):
        assert f"wrote {result.parent / name}" in done.stdout
        assert (result.parent / name).exists()
    assert record["command"].endswith(f"--results-dir {tmp_path}")
    assert script in record["command"]


WRONG = [
    (["--dataset=cifer10"], "did you mean 'cifar10'"),
    (["--dataset=/no/such/folder"], "no data set"),
    (["--dataset="], "a data set's name"),
    (["--backbone=resnet5000"], "timm has no such model"),
    (["--backbone=resnet50.nothing"], "no such weights"),
    (["--backbone="], "a timm model name"),
    (["--weights=missing.safetensors"], "a file that exists"),
    (["--weights=model.bin"], "a .safetensors file"),
    (["--lr=nan"], "positive and finite"),
    (["--lr=-1"], "positive and finite"),
    (["--lr=0"], "positive and finite"),
    (["--lr", "1e-3", "1e-3"], "free of repeated values"),
    (["--lr"], "one or more learning rates"),
    (["--weight-decay=inf"], "0 or more, and finite"),
    (["--weight-decay=-0.1"], "0 or more, and finite"),
    (["--epochs=0"], "at least 1"),
    (["--batch-size=0"], "at least 1"),
    (["--seed=-1"], "0 or more"),
    (["--split-seed=-1"], "0 or more"),
    (["--val-fraction=0"], "between 0 and 1"),
    (["--val-fraction=1"], "between 0 and 1"),
    (["--val-fraction=nan"], "between 0 and 1"),
    (["--train-limit=0"], "at least 1"),
    (["--train-limit=5"], "--train-limit"),
    (["--train-limit=5000"], "--train-limit"),
    (["--test-limit=3"], "--test-limit"),
    (["--image-size=3"], "16 to 4096"),
    (["--device=tpu"], "auto, cpu, cuda"),
    (["--device=cuda:99"], "CUDA devices here"),
    (["--workers=-1"], "0 to 1024"),
    (["--run-name=../x"], "one plain folder name"),
    (["--run-name="], "one plain folder name"),
    (["--dataset-name=a/b"], "one plain folder name"),
]


@pytest.mark.parametrize("script", [train_cnn_head, train_vit_lora])
@pytest.mark.parametrize(("flags", "said"), WRONG, ids=[" ".join(flags) for flags, _ in WRONG])
def test_a_wrong_value_is_one_line_and_leaves_nothing(script, flags, said, tmp_path, capsys):
    backbone = "test_resnet" if script is train_cnn_head else "test_vit"
    argv = ["--dataset=digits", "--weights=random", "--image-size=32", f"--backbone={backbone}"]
    argv = [word for word in argv if word.split("=")[0] not in {flag.split("=")[0] for flag in flags}]
    assert cli.run(script.main, script.Config, [*argv, "--results-dir", str(tmp_path), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert flags[0].split("=")[0] in error or error.startswith(("error: no data set ", "error: backbone "))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("flag", ["--rank=-1", "--alpha=0", "--alpha=nan", "--dropout=1", "--image-size=33"])
def test_a_wrong_lora_setting_is_one_line(flag, tmp_path, capsys):
    argv = ["--dataset=digits", "--weights=random", "--backbone=test_vit", "--results-dir", str(tmp_path), flag]
    assert cli.run(train_vit_lora.main, train_vit_lora.Config, argv) == 2
    assert capsys.readouterr().err.startswith(f"error: {flag.split('=')[0]}")


@pytest.mark.parametrize("flag", ["--targets=attention", "--also-train=norms"])
def test_what_lora_adapts_is_refused_where_there_is_no_lora(flag, tmp_path, capsys):
    argv = [*TINY, "--backbone=test_vit", "--rank=0", flag, "--results-dir", str(tmp_path)]
    assert cli.run(train_vit_lora.main, train_vit_lora.Config, argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {flag.split('=')[0]} ") and "no LoRA (--rank 0)" in error


@pytest.mark.parametrize(
    ("script", "flags", "backbone", "said"),
    [
        (train_vit_lora, [], "test_resnet", "use train_cnn_head.py"),
        (train_vit_lora, ["--rank=0"], "test_resnet", "use train_cnn_head.py"),
        (train_vit_lora, [], "deit_tiny_distilled_patch16_224", "VisionTransformerDistilled"),
        (train_cnn_head, [], "test_vit", "use train_vit_lora.py"),
        (train_cnn_lora, [], "test_vit", "use train_vit_lora.py"),
    ],
)
def test_each_script_refuses_the_others_backbones(script, flags, backbone, said, tmp_path, capsys):
    argv = [*TINY, *flags, f"--backbone={backbone}", "--results-dir", str(tmp_path)]
    assert cli.run(script.main, script.Config, argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --backbone '{backbone}") and error.count("\n") == 1
    assert said in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("script", [train_cnn_head, train_vit_lora])
def test_without_weights_and_network_nothing_is_left_but_one_line(script, tmp_path, monkeypatch, capsys):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    argv = ["--dataset=digits", "--results-dir", str(tmp_path / "results")]
    assert cli.run(script.main, script.Config, argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no pretrained weights for") and error.count("\n") == 1
    assert "the hub cannot be reached" in error and "--weights FILE.safetensors" in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("flags", [["--epochs=five"], ["--nonsense"], ["--precision=fp8"], ["--resize=pad"]])
def test_what_does_not_parse_is_tyros_own_message(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.run(train_cnn_head.main, train_cnn_head.Config, flags)
    assert stopped.value.code == 2
    assert flags[0].split("=")[0] in capsys.readouterr().err


def test_a_results_folder_that_is_a_file_is_named(tmp_path, capsys):
    (tmp_path / "results").write_text("")
    argv = [*TINY, "--backbone=test_resnet", "--results-dir", str(tmp_path / "results")]
    assert cli.run(train_cnn_head.main, train_cnn_head.Config, argv) == 2
    assert "results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chosen", "spins"),
    [({}, f"'{cli.SPIN_COUNT}'"), ({"GOMP_SPINCOUNT": "7"}, "'7'"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "'0'")],
)
def test_threads_wait_in_a_short_spin_unless_the_user_chose_another(chosen, spins):
    """Of a real script, by what libgomp itself says it was told when PyTorch loaded it."""
    told = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    told |= {"OMP_DISPLAY_ENV": "verbose"} | chosen
    code = "import evaluate; from common import cli; cli.run(lambda config: __import__('torch'), evaluate.Config)"
    words = [sys.executable, "-c", code, "a/run"]
    done = subprocess.run(words, cwd=REPOSITORY, env=told, capture_output=True, text=True)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("PyTorch's OpenMP runtime here is not libgomp")
    assert f"GOMP_SPINCOUNT = {spins}" in done.stderr
