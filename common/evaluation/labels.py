"""How a model is named and drawn, the same in every figure and table."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.runs.result import Run, natural_order


@dataclass(frozen=True)
class Style:
    """How a model is drawn in every figure; each of the four tells it apart, also in grey print."""

    color: str
    marker: str
    linestyle: str
    hatch: str


# Okabe and Ito's colours, which colour-blind readers tell apart. The order is the order of models in every figure.
STYLES = {
    "lora": Style("#0072B2", "o", "-", ""),
    "vit": Style("#56B4E9", "D", "-.", "\\\\\\\\"),
    "resnet": Style("#D55E00", "s", "--", "////"),
    "efficientnet": Style("#009E73", "^", ":", "...."),
    "other": Style("#CC79A7", "P", (0, (5, 1)), "xxxx"),
}

SHADES = (0.0, -0.5, 0.5, -0.7, 0.7)  # towards white, or black where negative, for further runs of one family

VIT_SIZES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g"}


def run_labels(runs: Sequence[Run], labels: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Return the label of each (data set, run): the user's, or a friendly name with what sets it apart there."""
    friendly = {(run.dataset, run.name): friendly_name(run.result) for run in runs}
    alike = defaultdict(set)
    for (dataset, name), label in friendly.items():
        alike[dataset, label].add(name)
    names = {}
    for run in runs:
        label = friendly[run.dataset, run.name]
        chosen = labels.get(f"{run.dataset}/{run.name}") or labels.get(run.name)
        label = chosen or label + _distinction(run.name, alike[run.dataset, label])
        names[run.dataset, run.name] = label + (" [random weights]" if has_random_weights(run) else "")
    shown = Counter((dataset, label) for (dataset, _), label in names.items())
    return {  # a legend has one entry a label: what is still alike, also by the user's choice, shows its folder
        (dataset, name): label if shown[dataset, label] == 1 else f"{label} [{name}]"
        for (dataset, name), label in names.items()
    }


def friendly_name(result: dict) -> str:
    """Return a label such as "ViT-B/16 + LoRA (r=16)" or "ResNet50 (head)" from a result's backbone and method."""
    backbone = result["backbone"].partition(".")[0]
    if match := re.match(r"(vit|deit3?)_(tiny|small|base|large|huge|giant)_patch(\d+)", backbone):
        kind = {"vit": "ViT", "deit": "DeiT", "deit3": "DeiT-III"}[match[1]]
        backbone = f"{kind}-{VIT_SIZES[match[2]]}/{match[3]}"
    elif match := re.match(r"(?:tf_)?efficientnet(v2)?_(\w+)$", backbone):
        backbone = f"EfficientNet{(match[1] or '').upper()}-{match[2].capitalize()}"
    elif match := re.match(r"resnet(\w+)$", backbone):
        backbone = f"ResNet{match[1]}"
    elif backbone.startswith("demo_"):
        kinds = {"demo_vit": "ViT", "demo_resnet": "ResNet", "demo_efficientnet": "EfficientNet"}
        backbone = f"Demo {kinds.get(backbone, backbone)}"
    lora = result["model"]["lora"]
    return f"{backbone} + LoRA (r={lora.get('rank')})" if lora else f"{backbone} (head)"


def _distinction(name: str, alike: set[str]) -> str:
    """Return the settings in a run's folder name that runs of the same label do not all share, in brackets."""
    parts = {other: re.split("-(?=[a-zA-Z])", other) for other in alike}  # "lr1e-3" is one part
    shared = set.intersection(*map(set, parts.values()))
    own = [part.removeprefix("head_") for part in parts[name] if part not in shared]
    return f" [{', '.join(own)}]" if own else ""


def run_styles(runs: Sequence[Run]) -> dict[str, Style]:
    """Return each run name's look among those of a data set: its family's, in other shades for further ones of it.

    The shortest name, which has the fewest settings of its own, has the family's colour itself.
    """
    families = defaultdict(set)
    for run in runs:
        families[_family(run)].add(run.name)
    looks = {}
    for family, names in families.items():
        for index, name in enumerate(sorted(names, key=lambda name: (len(name), natural_order(name)))):
            look = STYLES[family]
            looks[name] = Style(
                _shade(look.color, SHADES[index % len(SHADES)]), look.marker, look.linestyle, look.hatch
            )
    return looks


def _shade(color: str, amount: float) -> str:
    """Mix a "#rrggbb" colour with white (``amount`` above 0) or black (below 0)."""
    target = 255 if amount > 0 else 0
    channels = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(value + (target - value) * abs(amount)):02x}" for value in channels)


def _family(run: Run) -> str:
    backbone = run.result["backbone"]
    if run.result["model"]["lora"]:
        return "lora"
    families = (
        ("vit", r"vit_|deit|demo_vit"),
        ("resnet", "(demo_)?resnet"),
        ("efficientnet", "(tf_|demo_)?efficientnet"),
    )
    return next((family for family, pattern in families if re.match(pattern, backbone)), "other")


def family_rank(run: Run) -> int:
    """Return a model's place in the order of every figure: that of its family in ``LOOKS``."""
    return list(STYLES).index(_family(run))


def has_random_weights(run: Run) -> bool:
    """Say whether the backbone was never trained."""
    return run.result["model"]["weights"]["source"] == "random"
