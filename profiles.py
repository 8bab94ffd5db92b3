"""What each profile of ``reproduce.py`` runs: hyper-parameters, arms, data sets, seeds, and what is declared of them.

Edit here; a changed hyper-parameter is a new run, beside the old ones. An arm is a method on a backbone; a grid trains
each of its arms on each data set with each seed; a profile is one grid or several. docs/recipes.md has the reasons.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import train_cnn_head
import train_cnn_lora
import train_full
import train_vit_lora
from common.data.registry import DATASETS
from common.grid.grid import Arm, Grid
from common.runs.methods import METHODS

Contrast = tuple[tuple[str, str], tuple[str, str]]  # two arms, each by backbone and method

STUDY = VIT, RESNET, EFFICIENTNET = "vit_base_patch16_224.augreg_in1k", "resnet50.tv2_in1k", "efficientnet_b0.ra_in1k"
DEMO_VIT, *DEMO_CNNS = "demo_vit.cifar10", "demo_resnet.cifar10", "demo_efficientnet.cifar10"
LITE0 = "tf_efficientnet_lite0.in1k"  # small enough for a CPU at 224x224
SMALL_BACKBONES = ("demo_", LITE0)  # by how their names begin: their runs take one thread

# Recipes: what is trained, and how it is regularised
SHARED = {"weight_decay": 0.01, "augment": "none"}
LORA = {"rank": 16, "alpha": 32.0, "dropout": 0.1} | SHARED
HEAD = {"head": "mlp", "head_dropout": 0.5} | SHARED
FROZEN = {"rank": 0, "head": "linear"} | SHARED  # the ViT, with a head of one layer
FULL = {"parts": "all"} | SHARED
CNN_PROBE, VIT_PROBE = {"head": "probe"}, {"rank": 0, "head": "probe"}  # without any setting of optimiser steps

# The published recipe has a constant rate and five epochs, the tuned one a schedule and three rates to choose from,
# beyond which up to two further ones follow where the best is at an end.
PUBLISHED = {"epochs": 5, "batch_size": 64}
TUNED = {"schedule": "cosine", "warmup": 0.1}
RATES = {
    "head": {"lr": (3e-4, 1e-3, 3e-3), "extend": 2},
    "lora": {"lr": (1e-4, 3e-4, 1e-3), "extend": 2},
    "full": {"lr": (3e-5, 1e-4, 3e-4), "extend": 2},
}
# LoRA gets no rate above: at 1e-2 that of the ResNet fell to chance in two of five seeds on the digits, and the one
# seed that chooses was not among them.
DEMO_RATES = {
    "head": {"lr": (1e-3, 3e-3, 1e-2), "extend": 2},
    "lora": {"lr": (3e-4, 1e-3, 3e-3)},
    "full": {"lr": (3e-4, 1e-3, 3e-3), "extend": 2},
}
# LoRA chooses between them as among rates
VIT_TARGETS = ({"targets": "qv"}, {"targets": "all-linear"})
CNN_TARGETS = ({"targets": "pointwise"}, {"targets": "all-convs"})

# The demo backbones
SMALL = {"batch_size": 32} | TUNED
CONSTANT = {"schedule": "constant", "warmup": 0.0}
DEMO_PROBES = (
    Arm(train_vit_lora, DEMO_VIT, VIT_PROBE),
    *(Arm(train_cnn_head, cnn, CNN_PROBE) for cnn in DEMO_CNNS),
)


def _study_arms(lora: dict[str, Any], *heads: dict[str, Any]) -> tuple[Arm, ...]:
    """Return the study's three arms on the demo backbones: LoRA on the ViT, the published head on each CNN."""
    cnns = (Arm(train_cnn_head, cnn, HEAD | SMALL | head) for cnn, head in zip(DEMO_CNNS, heads, strict=True))
    return Arm(train_vit_lora, DEMO_VIT, LORA | SMALL | lora), *cnns


# LoRA has the highest of its rates above; the heads' were chosen once, by validation accuracy at seed 0, among 1e-3,
# 3e-3, 1e-2 and 3e-2.
DEMO = Grid(
    (
        *DEMO_PROBES,
        *_study_arms({"epochs": 5, "lr": (3e-3,)}, {"epochs": 60, "lr": (1e-2,)}, {"epochs": 60, "lr": (3e-2,)}),
    ),
    datasets={"digits": {}},
)


def _mini_arms(epochs: int, head_epochs: int) -> tuple[Arm, ...]:
    """Return probe, LoRA and full fine-tuning on every demo backbone, and the published head on the CNNs.

    LoRA has one set of targets on each: the study's query and value, on a CNN all convolutions that PEFT can merge. A
    head on the ViT is no arm of the study's: it is made where heads are asked for on every backbone.
    """
    lora, full = ({"epochs": epochs} | DEMO_RATES[kind] for kind in ("lora", "full"))
    head = {"epochs": head_epochs} | DEMO_RATES["head"]
    return (
        *DEMO_PROBES,
        *_study_arms(lora, head, head),
        *(Arm(train_cnn_lora, cnn, LORA | SMALL | lora | {"targets": "all-convs"}) for cnn in DEMO_CNNS),
        *(Arm(train_full, backbone, FULL | SMALL | full) for backbone in (DEMO_VIT, *DEMO_CNNS)),
        Arm(train_vit_lora, DEMO_VIT, FROZEN | SMALL | head, crossed=True),
    )


MINI = Grid(
    _mini_arms(epochs=6, head_epochs=30),
    datasets={"mnist": {"train_limit": 5_000}, "fashion_mnist": {"train_limit": 5_000}},
    seeds=(0, 1, 2, 3, 4),
    tuned=True,
)
MINI_DIGITS = Grid(_mini_arms(epochs=8, head_epochs=60), datasets={"digits": {}}, seeds=MINI.seeds, tuned=True)

# The study's backbones
PAPER = Grid(
    arms=(
        Arm(train_vit_lora, VIT, VIT_PROBE),
        Arm(train_cnn_head, RESNET, CNN_PROBE),
        Arm(train_cnn_head, EFFICIENTNET, CNN_PROBE),
        Arm(train_cnn_head, "resnet50.tv_in1k", CNN_PROBE),  # torchvision's first weights, as older studies have them
        Arm(train_vit_lora, VIT, LORA | PUBLISHED | {"lr": (3e-5,)}),
        Arm(train_vit_lora, VIT, FROZEN | PUBLISHED | {"lr": (1e-4,)}),
        *(Arm(train_cnn_head, cnn, HEAD | PUBLISHED | {"lr": (1e-4,)}) for cnn in (RESNET, EFFICIENTNET)),
        *(Arm(train_cnn_lora, cnn, LORA | PUBLISHED | {"lr": (3e-5,)}, crossed=True) for cnn in (RESNET, EFFICIENTNET)),
        *(Arm(train_full, backbone, FULL | PUBLISHED | {"lr": (1e-4,)}, crossed=True) for backbone in STUDY),
    ),
    datasets={"mnist": {}, "fashion_mnist": {}, "cifar10": {}},
)


def tuned(grid: Grid) -> Grid:
    """Return a grid of the published recipe by the tuned one."""
    recipes = {"probe": {}} | {kind: TUNED | rates for kind, rates in RATES.items()}
    arms = (arm.with_recipe(**recipes[METHODS[arm.method].kind]) for arm in grid.arms)
    return replace(grid, arms=tuple(arms), tuned=True)


# Images of the user's own
COMPARE = {"batch_size": 32} | TUNED
COMPARE_STEPS = 1_000  # optimiser steps at least, by more epochs where there are few images (5 to 100)


def comparison_arms(
    vits: Sequence[str], cnns: Sequence[str], others: Sequence[str], train_images: int
) -> list[list[Arm]]:
    """Return the arms of each method on the given backbones, the methods that answer first before the others.

    ``others`` are neither plain ViTs nor CNNs, and can only be trained in full.
    """
    steps_per_epoch = math.ceil(train_images / COMPARE["batch_size"])
    steps = COMPARE | {"epochs": min(100, max(5, math.ceil(COMPARE_STEPS / steps_per_epoch)))}

    def recipe(kind: str, backbone: str) -> dict[str, Any]:
        return steps | (DEMO_RATES if backbone.startswith("demo_") else RATES)[kind]

    return [
        [
            *(Arm(train_vit_lora, vit, VIT_PROBE) for vit in vits),
            *(Arm(train_cnn_head, cnn, CNN_PROBE) for cnn in cnns),
        ],
        [
            *(Arm(train_vit_lora, vit, FROZEN | recipe("head", vit)) for vit in vits),
            *(Arm(train_cnn_head, cnn, HEAD | recipe("head", cnn)) for cnn in cnns),
        ],
        [
            *(Arm(train_vit_lora, vit, LORA | recipe("lora", vit), VIT_TARGETS) for vit in vits),
            *(Arm(train_cnn_lora, cnn, LORA | recipe("lora", cnn), CNN_TARGETS, crossed=True) for cnn in cnns),
        ],
        [Arm(train_full, its, FULL | recipe("full", its), crossed=True) for its in (*vits, *cnns, *others)],
    ]


# Accuracy by the number of training images
CURVE_IMAGES_A_CLASS = (10, 30, 100, 300, 1_000)
CURVE_STEPS = 500  # of LoRA at least, by more epochs where there are few images (3 to 100)


def _curve_grid(images_a_class: int) -> Grid:
    """Return the probes and LoRA on so many training images, in five draws; each size chooses its own rate."""
    images = 10 * images_a_class  # all of its data sets have ten classes
    epochs = min(100, max(3, math.ceil(CURVE_STEPS / math.ceil(images / SMALL["batch_size"]))))
    lora = Arm(train_vit_lora, DEMO_VIT, LORA | SMALL | DEMO_RATES["lora"] | {"epochs": epochs})
    large_enough = [name for name in ("fashion_mnist", "mnist", "digits") if images < 0.85 * DATASETS[name].num_train]
    datasets = {name: {"train_limit": images} for name in large_enough}
    return Grid((*DEMO_PROBES, lora), datasets, seeds=(0, 1, 2, 3, 4), tuned=True, draws=True)


CURVE = tuple(map(_curve_grid, CURVE_IMAGES_A_CLASS))


# The sound runs that each defect of the published code is put into, at a constant rate
def _defects_arms(lora_epochs: int, head_epochs: int) -> tuple[Arm, ...]:
    lora, head = ({"epochs": epochs, "lr": (3e-3,)} | CONSTANT for epochs in (lora_epochs, head_epochs))
    return _study_arms(lora, head, head)


DEFECTS = Grid(_defects_arms(lora_epochs=3, head_epochs=5), datasets=MINI.datasets)
DEFECTS_DIGITS = Grid(_defects_arms(lora_epochs=5, head_epochs=20), datasets={"digits": {}})
DEFECTS_LITE0 = Grid(  # with --lite0-weights
    (Arm(train_cnn_head, LITE0, HEAD | SMALL | CONSTANT | {"epochs": 5, "lr": (1e-3,)}),),
    datasets={"cifar10": {"train_limit": 2_000, "test_limit": 2_000}},
)

# One CNN with ImageNet weights. The probe's and the head's features are kept, so that each image passes through it
# once: hence the head's many epochs, and more seeds than where it passes in every epoch.
LITE0_STEPS = SMALL | {"lr": (3e-4, 1e-3, 3e-3)}
LITE0_FROZEN = Grid(
    (Arm(train_cnn_head, LITE0, CNN_PROBE), Arm(train_cnn_head, LITE0, HEAD | LITE0_STEPS | {"epochs": 30})),
    datasets={"cifar10": {"train_limit": 2_000, "test_limit": 5_000}},
    seeds=(0, 1, 2, 3, 4),
    tuned=True,
)
LITE0_ADAPTED = replace(
    LITE0_FROZEN,
    arms=(
        Arm(train_cnn_lora, LITE0, LORA | LITE0_STEPS | {"epochs": 3}),
        Arm(train_full, LITE0, FULL | LITE0_STEPS | {"parts": "norms-and-biases", "batchnorm": "frozen", "epochs": 3}),
    ),
    seeds=(0, 1, 2),
)

PROFILES = {
    "demo": (DEMO,),
    "mini": (MINI_DIGITS, MINI),
    "paper": (PAPER,),
    "defects": (DEFECTS, DEFECTS_DIGITS),
    "curve": CURVE,
    "lite0": (LITE0_FROZEN, LITE0_ADAPTED),
}
USUAL_DATASETS = {"curve": ("fashion_mnist",)}  # where not all of the profile


# What is claimed of each data set, declared before it is seen: pairs of arms, the first MOST_CONTRASTS. Only these are
# tested, and corrected for their number; the fewer they are the more each can show.
def _lora_against(vit: str, others: Iterable[tuple[str, str]]) -> tuple[Contrast, ...]:
    return tuple(((vit, "lora"), other) for other in others)


def usual_contrasts(vits: Sequence[str], cnns: Sequence[str]) -> tuple[Contrast, ...]:
    """LoRA against the probe of its ViT, LoRA against each CNN's probe, each CNN's probe against its published head."""
    return (
        *(((vit, "lora"), (vit, "head_probe")) for vit in vits),
        *(((vit, "lora"), (cnn, "head_probe")) for vit in vits for cnn in cnns),
        *(((cnn, "head_probe"), (cnn, "head_mlp")) for cnn in cnns),
    )


MOST_CONTRASTS = 6
DEMO_HEADS = [(cnn, "head_mlp") for cnn in DEMO_CNNS]  # with LoRA on the ViT the study's own two contrasts
EACH_DEMO_PROBE = [(arm.backbone, "head_probe") for arm in DEMO_PROBES]
CONTRASTS = {
    "demo": _lora_against(DEMO_VIT, [*DEMO_HEADS, (DEMO_VIT, "head_probe")]),
    "mini": _lora_against(DEMO_VIT, [*DEMO_HEADS, *EACH_DEMO_PROBE, (DEMO_VIT, "full")]),
    "defects": _lora_against(DEMO_VIT, DEMO_HEADS),
    "curve": _lora_against(DEMO_VIT, EACH_DEMO_PROBE),
    "lite0": (
        ((LITE0, "cnn_lora"), (LITE0, "head_probe")),
        ((LITE0, "cnn_lora"), (LITE0, "head_mlp")),
        ((LITE0, "norms_and_biases"), (LITE0, "head_probe")),
        ((LITE0, "cnn_lora"), (LITE0, "norms_and_biases")),
    ),
    "paper": _lora_against(
        VIT,
        [
            *((cnn, "head_mlp") for cnn in (RESNET, EFFICIENTNET)),  # the study's own two
            *((backbone, "head_probe") for backbone in STUDY),
        ],
    ),
}
