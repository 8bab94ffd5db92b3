"""LoRA on the projections of a timm Vision Transformer, through PEFT; query and value are the study's.

What LoRA of any timm model needs is here as well; ``cnn_lora`` has that of CNNs.

LoRA: Hu et al. 2022, arXiv:2106.09685: W x + (alpha / r) B A x, with A (r, in) random and B (out, r) zero at the start.
"""

import copy
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from common.models import split_attention
from common.models.backbones import Backbone, unfuse_attention
from common.models.classifier import TimmClassifier
from common.models.split_attention import CpuDropout
from common.runtime.errors import UserError
from common.runtime.seeding import torch_seed

if TYPE_CHECKING:
    from peft import LoraConfig

TARGETS = {
    "qv": ("q_proj", "v_proj"),
    "attention": ("q_proj", "k_proj", "v_proj", "attn.proj"),
    "all-linear": ("q_proj", "k_proj", "v_proj", "attn.proj", "mlp.fc1", "mlp.fc2"),
}
"""The Linears of every block that LoRA adapts, as PEFT finds them: by how their names end."""

ALSO_TRAIN = ("nothing", "norms", "norms-and-embeddings")
"""What else than LoRA and the classifier is trained: weight and bias of every LayerNorm (or RMSNorm), LayerScale not
among them; with these the patch projection, the position embedding, and the class and register tokens."""


class LoraModel(TimmClassifier):
    """A frozen timm model with LoRA matrices and a classifier: normalised images (B, 3, S, S) -> logits (B, C) float32.

    Matrices and classifier require a gradient, and what it was told to train as well; nothing else does.
    """

    def __init__(self, peft_model: nn.Module, **options: Any) -> None:
        super().__init__(**options)
        self.peft_model = peft_model

    @property
    def module(self) -> nn.Module:
        """The timm model inside, its adapted layers and its classifier in place."""
        return self.peft_model.get_base_model()

    def learns_by(self, name: str, layer: nn.Module) -> bool:
        """Whether ``layer`` is the dropout of an adapter; the backbone stays in eval mode, BatchNorm included."""
        return "lora_dropout" in name


class LoraViT(LoraModel):
    """The same of a Vision Transformer, whose attention is split while it is adapted."""


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
    targets: str = "qv",
    also_train: str = "nothing",
) -> LoraViT:
    """Adapt ``TARGETS[targets]`` of every block with LoRA of the given rank, and add a new classifier.

    Matrix A and the classifier are drawn from ``seed``; B is zero, so the adapted backbone starts as the base.
    The backbone's module is changed in place, becomes a part of the model, and goes to ``device``.

    Args:
        also_train: which of ``ALSO_TRAIN`` is fully trained, from its pretrained values.

    Raises:
        UserError: the backbone is not a plain timm VisionTransformer, or has no such layers.
    """
    from peft import LoraConfig

    require_plain_vit(backbone, targets)
    vit = backbone.module
    for block in vit.blocks:
        split_attention.split(block.attn)
    split_attention.shorten(vit)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(TARGETS[targets]),
        exclude_modules=r"attn_pool\..*",  # in no block, although it has an MLP
        modules_to_save=_fully_trained(vit, also_train),
    )
    peft_model = adapt(backbone, config, classes=classes, seed=seed)
    if also_train == "norms-and-embeddings":
        for _, parameter in vit.named_parameters(recurse=False):
            parameter.requires_grad_(True)
    if torch.device(device).type == "cpu":
        suit_cpu(peft_model, precision)
    options = {"classifier": "head", "precision": precision, "memory_format": torch.contiguous_format}
    return LoraViT(peft_model, **options).to(device).train(False)


def adapt(backbone: Backbone, config: "LoraConfig", *, classes: int, seed: int) -> nn.Module:
    """Return PEFT's model of the backbone's module, changed in place, with a new classifier; drawn from ``seed``."""
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "init"))
        backbone.module.reset_classifier(classes)
        peft_model = get_peft_model(backbone.module, config)
    # PEFT would write no base model for a timm model, and then load onto any other without a word (peft#1337).
    peft_model.peft_config["default"].base_model_name_or_path = backbone.tag
    return peft_model


def _fully_trained(vit: nn.Module, also_train: str) -> list[str]:
    """Return how the names of the modules end that are trained without LoRA, the classifier among them.

    The position embedding and the tokens are in no module but the ViT itself, where PEFT has no way to train them.
    """
    from timm.layers import RmsNorm

    modules = ["head"]
    if also_train != "nothing":
        kinds = (nn.LayerNorm, nn.RMSNorm, RmsNorm)
        norms = {name.rpartition(".")[2] for name, module in vit.named_modules() if isinstance(module, kinds)}
        modules += sorted(norms)
    if also_train == "norms-and-embeddings":
        modules.append("patch_embed.proj")
    return modules


def suit_cpu(peft_model: nn.Module, precision: str) -> None:
    """Exchange, in place, what is slow on the CPU: masks of dropout, and in bfloat16 the fused attention."""
    if precision == "bf16":
        unfuse_attention(peft_model)
    for module in peft_model.modules():
        if hasattr(module, "lora_dropout"):
            for name, dropout in module.lora_dropout.items():
                module.lora_dropout[name] = CpuDropout(dropout.p) if isinstance(dropout, nn.Dropout) else dropout


def require_plain_vit(backbone: Backbone, targets: str = "qv") -> None:
    """Refuse whatever is not timm's VisionTransformer with ``timm.layers.Attention`` and the one classifier ``head``.

    ``targets`` all-linear needs an MLP of ``fc1`` and ``fc2``, too: not AIMv2's, which has three Linears.

    Raises:
        UserError: naming what the model is instead.
    """
    from timm.layers import Attention

    module, tag = backbone.module, backbone.tag
    if not split_attention.is_plain_vit(module) or backbone.classifier != "head":
        raise UserError(
            f"`backbone` {tag!r} is a {type(module).__name__}; LoRA needs timm's plain "
            "VisionTransformer with one classifier, such as vit_base_patch16_224, deit_small_patch16_224 or "
            "vit_base_patch14_dinov2 (for a CNN use train_cnn_head.py or train_cnn_lora.py)"
        )
    kinds = split_attention.attention_kinds(module)
    if kinds != {Attention}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(f"`backbone` {tag!r} has attention of kind {names}; only timm's Attention can be split")
    if targets == "all-linear" and not all(hasattr(block.mlp, "fc1") for block in module.blocks):
        raise UserError(
            f"`backbone` {tag!r} has an MLP of kind {type(module.blocks[0].mlp).__name__}; `targets` all-linear needs "
            "one of two layers, fc1 and fc2 (attention does without)"
        )


def merged(model: LoraModel) -> nn.Module:
    """Return a plain timm model (a copy) with the adapters added into their layers, and a ViT's ``qkv`` fused again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT remarks on merging a copy of a model that stays adapted
        module = copy.deepcopy(model.peft_model).merge_and_unload()
    if isinstance(model, LoraViT):
        split_attention.restore(module)
    return module.eval().requires_grad_(False)


def adapter_files(model: LoraModel) -> dict[str, bytes]:
    """Return the adapter in PEFT's own format: adapter_config.json and adapter_model.safetensors, as bytes."""
    from safetensors.torch import save

    config = model.peft_model.peft_config["default"].to_dict()
    plain = {k: sorted(v) if isinstance(v, set) else getattr(v, "value", v) for k, v in config.items()}
    plain["inference_mode"] = True
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _trained_state(model).items()}
    return {
        "adapter/adapter_config.json": (json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n").encode(),
        "adapter/adapter_model.safetensors": save(tensors, metadata={"format": "pt"}),
    }


def _trained_state(model: LoraModel) -> dict[str, torch.Tensor]:
    """Return all that is trained, by its name in PEFT's file.

    Where the position embedding and the tokens are trained they are in it under the base's own names, as PEFT keeps
    the embeddings of language models: whatever reads the file by PEFT puts them where they belong.
    """
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model.peft_model, save_embedding_layers=False)
    own = {
        name: parameter for name, parameter in model.module.named_parameters(recurse=False) if parameter.requires_grad
    }
    return state | {f"base_model.model.{name}": parameter for name, parameter in own.items()}


def load_adapter(model: LoraModel, folder: Path) -> None:
    """Load a saved ``adapter/`` into a model that was adapted with the same settings.

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
    if different := _trained_state(model).keys() ^ tensors.keys():
        raise UserError(f"{str(folder)!r} does not fit {base!r}: {min(different)!r} is missing or left over")
    try:
        set_peft_model_state_dict(model.peft_model, tensors)
    except RuntimeError as error:
        raise UserError(f"{str(folder)!r} does not fit {base!r}: {error}") from error
