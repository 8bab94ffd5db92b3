"""Three small backbones, pretrained on CIFAR-10 by ``demo/pretrain.py`` and shipped under ``demo/weights``.

Importing this module registers them with timm, so that ``timm.create_model("demo_vit", pretrained=True)`` and
``backbone=demo_vit`` work offline like any other name. Their sizes, 1.2, 0.34 and 0.14 million parameters, are in the
order of ViT-B/16, ResNet50 and EfficientNet-B0 (86, 25 and 5), the first two in proportion. Their weight tag is the
data they were pretrained on.
"""

from collections.abc import Sequence

from torch import nn

from common.data.registry import DATASETS
from common.models.compiler_later import import_without_compiler
from common.runtime.environment import REPOSITORY
from common.runtime.errors import UserError

import_without_compiler("timm.models")  # this is where a training imports timm, which imports torchvision

from timm.models import (  # noqa: E402
    EfficientNet,
    ResNet,
    VisionTransformer,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
)
from timm.models.resnet import BasicBlock  # noqa: E402

NAMES = ("demo_vit", "demo_resnet", "demo_efficientnet")
PRETRAINED_ON = "cifar10"
WEIGHTS = REPOSITORY / "demo" / "weights"


def _cfg(name: str, *, first_conv: str, classifier: str) -> dict:
    return {
        "file": str(WEIGHTS / f"{name}.safetensors"),
        "num_classes": 0,  # the files hold no classifier
        "input_size": (3, 32, 32),
        "mean": (0.4914, 0.4822, 0.4465),  # of CIFAR-10's training images
        "std": (0.2470, 0.2435, 0.2616),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "first_conv": first_conv,
        "classifier": classifier,
        "license": "mit",
    }


default_cfgs = generate_default_cfgs(
    {
        f"demo_vit.{PRETRAINED_ON}": _cfg("demo_vit", first_conv="patch_embed.proj", classifier="head"),
        f"demo_resnet.{PRETRAINED_ON}": _cfg("demo_resnet", first_conv="conv1", classifier="fc"),
        f"demo_efficientnet.{PRETRAINED_ON}": _cfg(
            "demo_efficientnet", first_conv="conv_stem", classifier="classifier"
        ),
    }
)


class _SmallImageResNet(ResNet):
    """timm's ResNet of basic blocks that keeps 32 x 32 pixels in its stem: He et al. 2016, section 4.2."""

    def __init__(self, **kwargs) -> None:
        super().__init__(BasicBlock, layers=(2, 2, 1, 1), channels=(16, 32, 64, 128), **kwargs)
        self.conv1 = nn.Conv2d(self.conv1.in_channels, self.conv1.out_channels, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()


def require_other_data(tag: str, dataset: str, classes: Sequence[str] = ()) -> None:
    """Refuse a demo backbone on the data it was pretrained on, known by name or by the names of its classes.

    Raises:
        UserError: with the reason; any other backbone or data set passes.
    """
    is_same = dataset == PRETRAINED_ON or sorted(classes) == sorted(DATASETS[PRETRAINED_ON].classes)
    if tag.partition(".")[0] in NAMES and is_same:
        raise UserError(
            f"backbone {tag!r} was pretrained on the training images of {PRETRAINED_ON}, with their labels: a result "
            "there would say nothing about transfer; take another `dataset`, or an ImageNet backbone"
        )


@register_model
def demo_vit(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """Build a ViT for 32 x 32 images: patches of 4 x 4, width 128, six blocks of four heads."""
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}
    return build_model_with_cfg(VisionTransformer, "demo_vit", pretrained, **{**sizes, **kwargs})


@register_model
def demo_resnet(pretrained: bool = False, **kwargs) -> ResNet:
    """Build a residual CNN for 32 x 32 images: six basic blocks of 16 to 128 channels."""
    return build_model_with_cfg(_SmallImageResNet, "demo_resnet", pretrained, **kwargs)


@register_model
def demo_efficientnet(pretrained: bool = False, **kwargs) -> EfficientNet:
    """Build an EfficientNet for 32 x 32 images: seven blocks with squeeze-and-excite, 16 to 56 channels."""
    expanded = {"block_type": "ir", "exp_ratio": 4.0, "se_ratio": 0.25, "act_layer": None}
    stages = [
        [{"block_type": "ds", "out_chs": 16, "stride": 1, "se_ratio": 0.25, "act_layer": None}],
        [expanded | {"out_chs": 24, "stride": 1}],
        [expanded | {"out_chs": 40, "stride": 2} for _ in range(2)],
        [expanded | {"out_chs": 56, "stride": 2} for _ in range(3)],
    ]
    sizes = {"block_args": stages, "stem_size": 16, "num_features": 256, "act_layer": nn.SiLU}
    return build_model_with_cfg(EfficientNet, "demo_efficientnet", pretrained, **{**sizes, **kwargs})
