"""The model card of a run, ``README.md`` beside its weights: what the record says, and how to load the model."""

import math
from pathlib import Path, PurePosixPath

import jinja2
import timm
from torch import nn

from common.data.registry import DATASETS
from common.evaluation.labels import friendly_name
from common.evaluation.metrics import HEADLINE, METRICS
from common.evaluation.spread import Spread, least_image_error
from common.models.backbones import Backbone
from common.models.weights import RANDOM_WEIGHTS_SEED
from common.runs.record import RunResult
from common.runtime.seeding import torch_seed
from common.training.methods.base import Method

TEMPLATE = Path(__file__).with_suffix(".md.jinja")
CARD_FILE = "README.md"  # the name that the Hugging Face hub shows
HUB_METRICS = {"accuracy": "accuracy", "f1_macro": "f1", "auc_macro": "roc_auc", "ece": "ece"}  # as it calls them


def card_file(method: Method) -> str:
    """Return the card's name in a run's folder: it lies beside the weights."""
    return str(PurePosixPath(method.weight_files[0]).with_name(CARD_FILE))


def model_card(result: RunResult, backbone: Backbone, method: Method, model: nn.Module) -> bytes:
    """Return the card of the trained ``model`` on ``backbone``: Markdown below the Hugging Face hub's YAML.

    It holds neither a time nor a path, so that the same command writes the same card. The interval of the accuracy is
    made here, where it costs nothing; those of the other metrics take a second, and are ``plot_results.py``'s.
    """
    cfg = timm.get_pretrained_cfg(backbone.tag)
    is_published = backbone.source == "pretrained" and cfg.hf_hub_id
    licence = cfg.license if is_published and cfg.license != "unknown" else None
    interval = _accuracy_interval(result)
    is_alone = card_file(method) != CARD_FILE  # in a folder of its own
    files = [CARD_FILE, *method.weight_files]
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        result=result,
        front_matter=_front_matter(result, cfg.hf_hub_id if is_published else None, licence, is_alone, interval),
        name=friendly_name(result),
        title=_title(result),
        base=f"[{backbone.tag}](https://huggingface.co/{cfg.hf_hub_id})" if is_published else _unpublished(backbone),
        settings="".join(f", {name} {value}" for name, value in result.model.method_settings.items()),
        kept=_kept(result),
        split=_scored(result)[0],
        images=_scored(result)[1],
        ece=_scored(result)[2]["ece"],
        scores=_scores(result, interval),
        code="\n".join([_base_code(result, backbone, method), method.loading(model), _use_code(result, backbone)]),
        licence=_licence_text(licence),
        include="" if is_alone else "".join(f" --include {name}" for name in files),
    )
    return (text + "\n").encode("utf-8", "backslashreplace")


def _title(result: RunResult) -> str:
    return DATASETS[result.dataset].title if result.dataset in DATASETS else result.dataset


def _scored(result: RunResult) -> tuple[str, int, dict[str, float | None]]:
    """Return the split whose scores the card has, its number of images, and them: the test split, if there is one."""
    if result.test:
        return "test", result.data.num_test, result.test.scores
    return "validation", result.data.num_val, result.val.scores


def _accuracy_interval(result: RunResult) -> tuple[float, float]:
    """Return the ends of the 95 % interval over images, as tables have it; a mean's error needs no resamples."""
    _, images, scores = _scored(result)
    accuracy = scores["accuracy"]
    error = max(math.sqrt(accuracy * (1 - accuracy) / images), least_image_error(images))
    return Spread(accuracy, error, images).estimate.interval(bounds=METRICS["accuracy"].bounds)


def _front_matter(
    result: RunResult, base: str | None, licence: str | None, is_adapter: bool, interval: tuple[float, float]
) -> str:
    """Return the YAML that the hub reads; ``base`` is the backbone's repository there."""
    from huggingface_hub import EvalResult, ModelCardData

    split, images, scores = _scored(result)
    args = {"seed": result.seed, "images": images}
    metrics = [
        EvalResult(
            task_type="image-classification",
            dataset_type=result.dataset,
            dataset_name=_title(result),
            dataset_split=split,
            metric_type=hub_name,
            metric_name=METRICS[name].label,
            metric_value=scores[name],
            metric_args=args | ({"interval_95": list(interval)} if name == "accuracy" else {}),
        )
        for name, hub_name in HUB_METRICS.items()
        if scores.get(name) is not None
    ]
    return ModelCardData(
        base_model=base,
        library_name="peft" if is_adapter else "timm",
        license=licence,
        pipeline_tag="image-classification",
        tags=["image-classification", "timm"],
        model_name=f"{friendly_name(result)} on {_title(result)}",
        eval_results=metrics,
    ).to_yaml()


def _unpublished(backbone: Backbone) -> str:
    origin = {
        "random": "with random weights",
        "pretrained": "with the weights that come with the benchmark",
    }.get(backbone.source, f"with the weights of the file `{Path(backbone.source).name}`")
    return f"`{backbone.tag}` {origin} (SHA-256 of the tensors `{backbone.sha256}`)"


def _kept(result: RunResult) -> str:
    """Say which of the trainings, and which epoch of it, gave the weights."""
    if not result.history:
        return f"of {len(result.trials)} fits the one that is best on validation images was kept"
    config = result.config
    recipe = f"batch size {config['batch_size']}, learning rate {result.history[0].lr:g}"
    if len(result.trials) > 1:
        recipe += f" (the best of {len(result.trials)} on validation images)"
    return f"{recipe}; epoch {result.best_epoch} of {result.history[-1].epoch} was best on validation images"


def _scores(result: RunResult, interval: tuple[float, float]) -> list[tuple[str, str]]:
    """Return label and value of each headline metric, as tables show them."""
    rows = []
    for name in HEADLINE:
        metric, value = METRICS[name], _scored(result)[2].get(name)
        text = "not defined" if value is None else f"{value:.{metric.digits}f}"
        if name == "accuracy":
            text += " [{}]".format(", ".join(f"{end:.{metric.digits}f}" for end in interval))
        rows.append((metric.label, text))
    return rows


def _licence_text(licence: str | None) -> str:
    if licence is None:
        return "timm knows no licence of the base's weights: ask whoever published them before you share these."
    return f"The base's weights have the licence `{licence}`, as timm records it; it applies to what is made from them."


def _base_code(result: RunResult, backbone: Backbone, method: Method) -> str:
    """Return lines that build timm's ``model``, with the base's weights where the run's folder has not all."""
    tag, native = backbone.tag, timm.get_pretrained_cfg(backbone.tag).input_size[-1]
    lines = ["import numpy as np", "import timm", "import torch", "from PIL import Image", ""]
    module = timm.models.model_entrypoint(tag).__module__
    if not module.startswith("timm."):
        lines.insert(3, f"import {module}  # of the benchmark, which has this backbone: run it there")
    if method.saves_backbone:
        arguments = ""
    elif backbone.source == "random":
        lines.append(f"torch.manual_seed({torch_seed(RANDOM_WEIGHTS_SEED, 'backbone')})  # the base has random weights")
        arguments = "num_classes=0"
    elif backbone.source == "pretrained":
        arguments = "pretrained=True"
    else:
        lines.append(f"base = {{'file': {Path(backbone.source).name!r}, 'custom_load': False}}  # bring it here")
        arguments = f"pretrained=True, num_classes={len(result.data.classes)}, pretrained_cfg_overlay=base"
    lines.append(f"model = timm.create_model({', '.join(filter(None, (repr(tag), arguments)))})")
    if hasattr(backbone.module, "set_input_size") and backbone.image_size != native:
        lines.append(f"model.set_input_size(img_size=({backbone.image_size}, {backbone.image_size}))")
    return "\n".join(lines)


def _use_code(result: RunResult, backbone: Backbone) -> str:
    """Return lines that classify one image as the run did, in float32."""
    size, transform = backbone.image_size, backbone.transform(result.config["resize"])
    resized = f"mode={transform.interpolation!r}, antialias=True)"
    lines = [
        "",
        "image = np.array(Image.open('image.png').convert('RGB'))",
        "pixels = torch.from_numpy(image).permute(2, 0, 1)[None]",
    ]
    if transform.resize == "squash":
        lines.append(f"pixels = torch.nn.functional.interpolate(pixels, ({size}, {size}), {resized}")
    else:
        lines += [
            f"sides = [side * {int(size / transform.crop_pct)} // min(image.shape[:2]) for side in image.shape[:2]]",
            f"pixels = torch.nn.functional.interpolate(pixels, sides, {resized}",
            f"top, left = (round((side - {size}) / 2) for side in sides)",
            f"pixels = pixels[..., top : top + {size}, left : left + {size}]",
        ]
    return "\n".join(
        [
            *lines,
            f"mean, std = (torch.tensor(values).view(3, 1, 1) for values in ({transform.mean}, {transform.std}))",
            f"classes = {result.data.classes}",
            "with torch.no_grad():",
            "    logits = model((pixels / 255 - mean) / std)",
            "probability, label = logits.softmax(-1)[0].max(-1)",
            "print(classes[label], float(probability))",
        ]
    )
