"""Frozen timm backbones: found by name, loaded strictly, identified by a hash, without a classifier."""

from dataclasses import dataclass

import torch
from torch import nn

import common.models.demo_backbones  # noqa: F401, registers them with timm
from common.data.transforms import Transform
from common.models.weights import build_from_file, build_random, hash_weights
from common.runtime.errors import UserError, suggestion

STUDY_IMAGE_SIZE = 224


@dataclass(frozen=True)
class Backbone:
    """A feature extractor as it was loaded, and what must be known to rebuild and feed it.

    A method takes ``module`` over and may change it in place (``training.methods.base.Method.build``); all else goes on
    saying what was loaded.
    """

    module: nn.Module
    """In eval mode, without gradients and without a classifier; images (B, 3, S, S) -> pooled features (B, width)
    by ``pooled_features``."""
    tag: str
    """timm's full name, with the tag of its pretrained weights."""
    source: str
    """Where the weights came from: ``pretrained``, ``random``, or a file's path."""
    sha256: str
    """Over names, types, shapes and bytes of all tensors as they were loaded, without the classifier."""
    image_size: int
    """Side S of the square input in pixels."""
    mean: tuple[float, ...]
    """Subtracted from channel values in 0..1."""
    std: tuple[float, ...]
    """What these are divided by after that."""
    interpolation: str
    """``bilinear`` or ``bicubic``, for resizing."""
    crop_pct: float
    """Share of the resized shorter side that the centre crop keeps, where images are cropped."""
    classifier: str
    """Name of the submodule where timm's own model has its classifier."""

    @property
    def width(self) -> int:
        """Number of pooled features."""
        return self.module.head_hidden_size

    def transform(self, resize: str) -> Transform:
        """Return how images are prepared for it, without augmentation; ``resize`` is ``squash`` or ``crop``."""
        return Transform(
            size=self.image_size,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            resize=resize,
            crop_pct=self.crop_pct,
        )


def resolve_tag(name: str) -> str:
    """Return the full timm name with its weight tag: ``resnet50`` -> ``resnet50.a1_in1k``.

    Raises:
        UserError: timm has no such model, or the model no such tag.
    """
    import timm

    if not timm.is_model(name):
        raise UserError(f"backbone {name!r}: timm has no such model{suggestion(name, timm.list_models())}")
    try:
        tag = timm.get_pretrained_cfg(name, allow_unregistered=False).tag
    except RuntimeError:
        architecture = name.split(".")[0]
        known = timm.list_models(f"{architecture}.*", pretrained=True)
        raise UserError(f"backbone {name!r}: timm has no such weights; it has {', '.join(known)}") from None
    return name if "." in name or not tag else f"{name}.{tag}"


def resolve_image_size(tag: str, requested: int | None) -> int:
    """Return the side of the input in pixels: as requested, else 224 where the backbone names it, else its own."""
    import timm

    if requested is not None:
        return requested
    cfg = timm.get_pretrained_cfg(tag)
    named = {size[-1] for size in (cfg.input_size, cfg.test_input_size) if size}
    return STUDY_IMAGE_SIZE if STUDY_IMAGE_SIZE in named else cfg.input_size[-1]


def load(tag: str, *, weights: str, image_size: int) -> Backbone:
    """Build a timm model with its weights, take its classifier off and freeze it.

    Args:
        tag: full timm name, from ``resolve_tag``.
        weights: ``pretrained`` (timm's download), ``random`` (one fixed seed), or a .safetensors file in timm's naming.
        image_size: side of the square input in pixels; the position embedding of a ViT is resampled to it.

    Raises:
        UserError: the weights are missing, damaged, not finite, or of another architecture.
    """
    import timm
    from timm.data import resolve_data_config

    cfg = timm.get_pretrained_cfg(tag)
    module = build_random(tag) if weights == "random" else build_from_file(tag, weights)
    module.reset_classifier(0)
    sha256 = hash_weights(module)
    _set_image_size(module, tag, image_size)
    at_test_size = bool(cfg.test_input_size) and cfg.test_input_size[-1] == image_size
    data_config = resolve_data_config(model=module, use_test_size=at_test_size)
    module.eval().requires_grad_(False)
    return Backbone(
        module=module,
        tag=tag,
        source=weights,
        sha256=sha256,
        image_size=image_size,
        mean=tuple(data_config["mean"]),
        std=tuple(data_config["std"]),
        interpolation=_supported(data_config["interpolation"]),
        crop_pct=data_config["crop_pct"],
        classifier=cfg.classifier,
    )


def _supported(interpolation: str) -> str:
    """Return the interpolation that is used, and recorded: PyTorch has no uint8 kernel for lanczos and the like."""
    return interpolation if interpolation in ("bilinear", "bicubic") else "bicubic"


def pooled_features(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return what the backbone's own classifier would read: (B, 3, S, S) -> (B, width)."""
    return module.forward_head(module.forward_features(images), pre_logits=True)


def own_classifier(backbone: Backbone) -> nn.Module:
    """Return the classifier of timm's own model with two classes: its kind and shape, without values (meta device)."""
    import timm

    with torch.device("meta"):
        return timm.create_model(backbone.tag, num_classes=2).get_submodule(backbone.classifier)


def kind_of(tag: str) -> str:
    """Return ``vit`` (timm's plain one), ``cnn`` or ``other``: which scripts train it. No weights are made or read."""
    import timm
    from timm.layers import Attention

    from common.models import split_attention

    with torch.device("meta"):
        module = timm.create_model(tag, pretrained=False, num_classes=0)
    if split_attention.is_plain_vit(module):
        return "vit" if split_attention.attention_kinds(module) == {Attention} else "other"
    return "cnn" if is_cnn(module) else "other"


def unfuse_attention(module: nn.Module) -> list[nn.Module]:
    """Let timm's attention compute by plain matrix products; return the layers that used the fused kernel until now.

    The same values within rounding. On the CPU the fused kernel's backward pass in bfloat16 takes half of a training
    step; on a GPU it is the faster one. FLOP counters see only the plain form.
    """
    fused = [layer for layer in module.modules() if getattr(layer, "fused_attn", False)]
    for layer in fused:
        layer.fused_attn = False
    return fused


def is_cnn(module: nn.Module) -> bool:
    """Whether a timm model is a convolutional network: several convolutions, and no attention."""
    kinds = [type(layer) for layer in module.modules()]
    attends = any("Attention" in kind.__name__ for kind in kinds)
    return not attends and sum(issubclass(kind, nn.Conv2d) for kind in kinds) >= 2


def require_cnn(backbone: Backbone) -> None:
    """Refuse a transformer or an MLP where a convolutional network is meant.

    Raises:
        UserError: with the script to use instead.
    """
    if not is_cnn(backbone.module):
        what = type(backbone.module).__name__
        raise UserError(
            f"`backbone` {backbone.tag!r} is a {what}, not a convolutional network; "
            "for a Vision Transformer use train_vit_lora.py (`rank` 0 trains the head alone)"
        )


def _set_image_size(module: nn.Module, tag: str, image_size: int) -> None:
    from timm.models import VisionTransformer

    if not isinstance(module, VisionTransformer):
        return
    patch = module.patch_embed.patch_size[0]
    if image_size % patch:
        raise UserError(f"`image_size` {image_size}: {tag!r} needs a multiple of its patch size, {patch}")
    if module.patch_embed.img_size != (image_size, image_size):
        module.set_input_size(img_size=(image_size, image_size))
