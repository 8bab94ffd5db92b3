"""What a start costs is what it imports: a head on kept features needs neither PyTorch's compiler nor scikit-learn."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import formats
from common.evaluation.scores import Scores, auc
from common.training.loop import AdamW

REPOSITORY = Path(__file__).resolve().parent.parent
# Each of these takes from a tenth of a second to two.
COMPILER = ("torch._dynamo", "torch._inductor", "sympy")
TABLES = ("pandas", "scipy.stats", "sklearn.base")
OTHERS = ("peft", "transformers", "matplotlib", "seaborn", "torch.distributed.tensor")
RUN = """
import json, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, ".")
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as done:
    print(json.dumps([done.code, list(sys.modules)]))
"""


def _imported(*words: object) -> set[str]:
    command = [sys.executable, "-c", RUN, *map(str, words)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stdout + done.stderr
    return set(modules)


def test_a_head_on_kept_features_and_its_evaluation_import_what_they_use(tmp_path):
    words = ("--dataset", "digits", "--backbone", "demo_resnet", "--weights", "random", "--train-limit", 100)
    folders = ("--cache-dir", tmp_path / "cache", "--results-dir", tmp_path / "results")
    _imported("train_cnn_head.py", *words, *folders)
    head = _imported("train_cnn_head.py", *words, *folders, "--overwrite")
    run = next((tmp_path / "results").glob("*/*/seed0"))
    again = _imported("evaluate.py", run)
    probe = _imported("train_cnn_head.py", *words, *folders, "--head", "probe")
    assert not head & {*COMPILER, *TABLES, *OTHERS}
    assert not again & {*COMPILER, *TABLES, *OTHERS}
    assert not probe & {*COMPILER, *OTHERS} and "sklearn.linear_model" in probe


def test_the_compiler_is_there_when_it_is_asked_for():
    code = """
import sys
import common.models.backbones
assert "timm" in sys.modules and "torch._dynamo" not in sys.modules
from torchvision.ops.roi_align import is_compile_supported
from timm.models.naflexvit import NaFlexRopeIterator
import torch
assert is_compile_supported("cpu") and "torch._dynamo" in sys.modules
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2, 2]
print(torch._dynamo.disable is sys.modules["torch._dynamo"].disable)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_a_version_that_needs_more_of_the_compiler_imports_it(tmp_path):
    (tmp_path / "later.py").write_text("import torch._dynamo.exc\nfrom torch._dynamo import disable\n")
    code = """
import sys
import torch
from common.models.compiler_later import import_without_compiler
import_without_compiler("later")
print(sys.modules["later"].disable is torch._dynamo.disable)
"""
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("sizes", [[3], [5, 2]])
def test_the_optimiser_steps_as_pytorchs_own(sizes):
    def trained(kind):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(size)) for size in sizes]
        optimizer = kind(weights, lr=0.1, weight_decay=0.1)
        for _ in range(5):
            optimizer.zero_grad(set_to_none=True)
            sum((weight**3).sum() for weight in weights).backward()
            optimizer.step()
        assert torch.is_grad_enabled()
        return weights + [value for state in optimizer.state.values() for value in state.values()]

    for ours, theirs in zip(trained(AdamW), trained(torch.optim.AdamW), strict=True):
        assert torch.equal(ours, theirs)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 5), st.integers(2, 60), st.integers(1, 4), st.integers(0, 2**31))
def test_scores_are_those_of_scikit_learn(classes, count, levels, seed):
    """Precision, recall and F1 bit for bit, an AUC within 1e-12; few levels of logits make ties."""
    from sklearn import metrics

    rng = np.random.default_rng(seed)
    logits, labels = rng.integers(0, levels, (count, classes)).astype(np.float32), rng.integers(classes, size=count)
    scores = Scores(logits, labels, [str(number) for number in range(classes)])
    assert (scores.confusion_matrix == metrics.confusion_matrix(labels, scores.predicted, labels=range(classes))).all()
    expected = metrics.precision_recall_fscore_support(labels, scores.predicted, labels=range(classes), zero_division=0)
    for index, row in enumerate(scores.per_class):
        theirs = [column[index] for column in expected]
        assert row["support"] == theirs[3]
        if row["support"]:
            assert [row["precision"], row["recall"], row["f1"]] == theirs[:3]
        positive = labels == index
        area = auc(positive, scores.probabilities[:, index])
        if positive.all() or not positive.any():
            assert area is None
        else:
            assert area == pytest.approx(metrics.roc_auc_score(positive, scores.probabilities[:, index]), abs=1e-12)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    bunch, parts = load_digits(), formats.read_digits()
    pixels, labels = np.empty((1_797, 8, 8), np.uint8), np.empty(1_797, np.int64)
    for part in parts.values():
        pixels[part.indices], labels[part.indices] = part.pixels, part.labels
    assert (pixels == np.rint(bunch.images * (255 / 16))).all() and (labels == bunch.target).all()
