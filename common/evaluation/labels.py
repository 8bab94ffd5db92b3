"""How a model is named, the same in every figure and table."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from common.runs.methods import METHODS
from common.runs.record import RunResult
from common.runs.result import Run

FAMILIES = ("lora", "vit", "resnet", "efficientnet", "other")  # in the order of models in every figure and table
VIT_SIZES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g"}


def run_labels(runs: Sequence[Run], labels: Mapping[str, str]) -> dict[str, str]:
    """Return the label of each model of one data set by its name: the user's, or a friendly one and what sets it apart.

    The name is that of its runs, without a fold. ``labels`` is the user's choice, by ``<run>`` or ``<dataset>/<run>``.
    Where models were trained on different numbers of images, each label ends in its own.
    """
    models, num_train = {run.model_name: run for run in runs}, defaultdict(int)
    for run in runs:
        num_train[run.model_name] = max(num_train[run.model_name], run.result.data.num_train)
    differ = len(set(num_train.values())) > 1
    friendly = {name: friendly_name(run.result) for name, run in models.items()}
    names = {}
    for name, run in models.items():
        label = friendly[name]
        alike = [each for each, other in friendly.items() if other == label]
        chosen = labels.get(f"{run.dataset}/{name}") or labels.get(name)
        names[name] = chosen or label + _distinction(name, alike, say_limit=not differ)
        names[name] += " [random weights]" if has_random_weights(run) else ""
        names[name] += f" (n={num_train[name]:,})" if differ else ""
    shown = Counter(names.values())  # a legend has one entry a label: what is still alike shows its folder
    return {name: label if shown[label] == 1 else f"{label} [{name}]" for name, label in names.items()}


def friendly_name(result: RunResult) -> str:
    """Return a label such as "ViT-B/16 + LoRA (r=16)" or "ResNet50 (probe)": the backbone's name, and the method's."""
    spec, recorded = METHODS[result.method], result.method_settings
    unusual = [recorded[name] for name, usual in spec.usual.items() if recorded.get(name, usual) != usual]
    variant = "".join(f", {spec.words.get(value, value)}" for value in unusual)
    settings = defaultdict(lambda: "?", recorded, variant=variant)  # an older or foreign record may lack one
    return f"{backbone_name(result.backbone)} {spec.label.format_map(settings)}"


def backbone_name(backbone: str) -> str:
    """Return how a timm name is written: "ViT-B/16" for "vit_base_patch16_224.augreg_in1k"."""
    backbone = backbone.partition(".")[0]
    if match := re.match(r"(vit|deit3?)_(tiny|small|base|large|huge|giant)_patch(\d+)", backbone):
        kind = {"vit": "ViT", "deit": "DeiT", "deit3": "DeiT-III"}[match[1]]
        return f"{kind}-{VIT_SIZES[match[2]]}/{match[3]}"
    if match := re.match(r"(?:tf_)?efficientnet(v2)?_(\w+)$", backbone):
        return f"EfficientNet{(match[1] or '').upper()}-{match[2].capitalize()}"
    if match := re.match(r"resnet(\w+)$", backbone):
        return f"ResNet{match[1]}"
    if backbone.startswith("demo_"):
        kinds = {"demo_vit": "ViT", "demo_resnet": "ResNet", "demo_efficientnet": "EfficientNet"}
        return f"Demo {kinds.get(backbone, backbone)}"
    return backbone


def backbone_names(backbones: Iterable[str]) -> dict[str, str]:
    """Return how each timm name is written; where only their weights tell them apart, with the weight tag."""
    names = {backbone: backbone_name(backbone) for backbone in backbones}
    shown = Counter(names.values())
    return {
        backbone: name if shown[name] == 1 else f"{name} [{backbone.partition('.')[2]}]"
        for backbone, name in names.items()
    }


def _distinction(name: str, alike: Sequence[str], *, say_limit: bool) -> str:
    """Return the settings in a run's folder name that runs of the same label do not all share, in brackets.

    ``say_limit``: the limit of training images among them.
    """
    parts = {other: re.split("-(?=[a-zA-Z])", other) for other in alike}  # "lr1e-3" is one part
    shared = set.intersection(*map(set, parts.values()))
    own = [part.removeprefix("head_") for part in parts[name] if part not in shared]
    own = [part for part in own if say_limit or not re.fullmatch(r"n\d+", part)]
    return f" [{', '.join(own)}]" if own else ""


def family_of(result: RunResult) -> str:
    """Return which of ``FAMILIES`` a model belongs to: its method's where that has one, else its backbone's."""
    return METHODS[result.method].family or family_of_backbone(result.backbone)


def family_of_backbone(backbone: str) -> str:
    """Return which of ``FAMILIES`` a timm name belongs to."""
    families = {"vit": r"vit_|deit|demo_vit", "resnet": "(demo_)?resnet", "efficientnet": "(tf_|demo_)?efficientnet"}
    return next((family for family, pattern in families.items() if re.match(pattern, backbone)), "other")


def has_random_weights(run: Run) -> bool:
    """Say whether the backbone was never trained."""
    return run.result.model.weights.source == "random"
