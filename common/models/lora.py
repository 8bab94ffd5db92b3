"""LoRA on the query and value projections of a timm Vision Transformer, through PEFT.

LoRA: Hu et al. 2022, arXiv:2106.09685: W x + (alpha / r) B A x, with A (r, in) random and B (out, r) zero at the start.
"""

import copy
import json
import warnings
from pathlib import Path

import torch
from torch import nn

from common.models import split_attention
from common.models.backbones import Backbone, pooled_features, unfuse_attention
from common.models.split_attention import CpuDropout
from common.runtime.device import autocast
from common.runtime.errors import UserError
from common.runtime.seeding import torch_seed

ADAPTED = ("q_proj", "v_proj")


class LoraViT(nn.Module):
    """A frozen ViT with trainable LoRA matrices and a trainable classifier: images (B, 3, S, S) -> logits (B, C).

    The backbone computes in ``precision``, the classifier always in float32. ``train()`` switches on the dropout of
    the adapters and nothing else: the backbone stays in eval mode, whatever dropout it was built with.
    """

    def __init__(self, peft_model: nn.Module, precision: str) -> None:
        super().__init__()
        self.peft_model = peft_model
        self.precision = precision

    @property
    def vit(self) -> nn.Module:
        """The timm model inside, its adapted layers and its classifier in place."""
        return self.peft_model.get_base_model()

    def train(self, mode: bool = True) -> "LoraViT":
        """Switch the dropout of the adapters on or off; all else stays in eval mode."""
        super().train(False)
        for name, module in self.named_modules():
            if "lora_dropout" in name:
                module.train(mode)
        self.training = mode
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, C) float32 of normalised images (B, 3, S, S)."""
        with autocast(images.device, self.precision):
            features = pooled_features(self.vit, images)  # (B, D)
        return self.vit.head(features.float())


def attach(
    backbone: Backbone,
    *,
    classes: int,
    rank: int,
    alpha: float,
    dropout: float,
    seed: int,
    precision: str,
    device: torch.device | str = "cpu",
) -> LoraViT:
    """Adapt query and value of every block with LoRA of the given rank, and add a new classifier.

    Matrix A and the classifier are drawn from ``seed``; B is zero, so the adapted backbone starts as the base.
    The backbone's module is changed in place, becomes a part of the model, and goes to ``device``.

    Raises:
        UserError: the backbone is not a plain timm VisionTransformer.
    """
    from peft import LoraConfig, get_peft_model

    require_plain_vit(backbone)
    vit = backbone.module
    for block in vit.blocks:
        split_attention.split(block.attn)
    split_attention.shorten(vit)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(ADAPTED), modules_to_save=["head"]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "init"))
        vit.reset_classifier(classes)
        peft_model = get_peft_model(vit, config)
    # PEFT would write no base model for a timm model, and then load onto any other without a word (peft#1337).
    peft_model.peft_config["default"].base_model_name_or_path = backbone.tag
    if torch.device(device).type == "cpu":
        _suit_cpu(peft_model, precision)
    return LoraViT(peft_model, precision).to(device).train(False)


def _suit_cpu(peft_model: nn.Module, precision: str) -> None:
    """Exchange, in place, what is slow on the CPU: masks of dropout, and in bfloat16 the fused attention."""
    if precision == "bf16":
        unfuse_attention(peft_model)
    for module in peft_model.modules():
        if hasattr(module, "lora_dropout"):
            for name, dropout in module.lora_dropout.items():
                module.lora_dropout[name] = CpuDropout(dropout.p) if isinstance(dropout, nn.Dropout) else dropout


def require_plain_vit(backbone: Backbone) -> None:
    """Refuse whatever is not timm's VisionTransformer with ``timm.layers.Attention`` and the one classifier ``head``.

    Raises:
        UserError: naming what the model is instead.
    """
    from timm.layers import Attention

    module, tag = backbone.module, backbone.tag
    if not split_attention.is_plain_vit(module) or backbone.classifier != "head":
        raise UserError(
            f"`backbone` {tag!r} is a {type(module).__name__}; LoRA on query and value needs timm's plain "
            "VisionTransformer with one classifier, such as vit_base_patch16_224, deit_small_patch16_224 or "
            "vit_base_patch14_dinov2 (for a CNN use train_cnn_head.py)"
        )
    kinds = {type(getattr(block, "attn", None)) for block in module.blocks}
    if kinds != {Attention}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(f"`backbone` {tag!r} has attention of kind {names}; only timm's Attention can be split")


def merged(model: LoraViT) -> nn.Module:
    """Return a plain timm ViT (a copy) with the adapters added into query and value and ``qkv`` fused again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT remarks on merging a copy of a model that stays adapted
        vit = copy.deepcopy(model.peft_model).merge_and_unload()
    split_attention.restore(vit)
    return vit.eval().requires_grad_(False)


def adapter_files(model: LoraViT) -> dict[str, bytes]:
    """Return the adapter in PEFT's own format: adapter_config.json and adapter_model.safetensors, as bytes."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    config = model.peft_model.peft_config["default"].to_dict()
    plain = {k: sorted(v) if isinstance(v, set) else getattr(v, "value", v) for k, v in config.items()}
    plain["inference_mode"] = True
    state = get_peft_model_state_dict(model.peft_model, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return {
        "adapter/adapter_config.json": (json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n").encode(),
        "adapter/adapter_model.safetensors": save(tensors, metadata={"format": "pt"}),
    }


def load_adapter(model: LoraViT, folder: Path) -> None:
    """Load a saved ``adapter/`` into a model made by ``attach`` with the same settings.

    Raises:
        UserError: a file is missing, the adapter is for another base, or a tensor is missing, left over or misshapen.
    """
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{str(folder)!r} holds no whole adapter: {error}") from error
    base = model.peft_model.peft_config["default"].base_model_name_or_path
    adapted = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if adapted != base:
        raise UserError(f"{str(folder)!r} adapts {adapted!r}, not {base!r}")
    try:
        outcome = set_peft_model_state_dict(model.peft_model, tensors)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{str(folder)!r} does not fit {base!r}: {error}") from error
    absent = [name for name in outcome.missing_keys if "lora_" in name or "modules_to_save" in name]
    if absent or outcome.unexpected_keys:
        raise UserError(f"{str(folder)!r} does not fit {base!r}: {(absent + list(outcome.unexpected_keys))[0]!r}")
