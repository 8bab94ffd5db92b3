"""The blocks of a timm Vision Transformer as they are trained here: the values of timm and PEFT, at fewer operations.

What is saved: the concatenation of query, key and value, a cast for each of them, PEFT's separate scaling and addition,
the slow masks of dropout on the CPU, and in the last block all tokens but the class token.
"""

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.nn import functional


class SplitQKV(nn.Module):
    """timm's fused ``qkv`` Linear (3 D outputs) as three Linears, so that PEFT can adapt each."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        weights = fused.weight.detach().chunk(3)  # 3 x (D, D): query, key, value
        biases = (None,) * 3 if fused.bias is None else fused.bias.detach().chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)

    def forward(self, tokens: torch.Tensor, queries: int | None = None) -> tuple[torch.Tensor, ...]:
        """Return query, key and value, (B, N, D) each; the query of the first ``queries`` tokens alone (None: of all).

        ``tokens``: (B, N, D).
        """
        if torch.is_autocast_enabled(tokens.device.type):  # here once, and not in each of five projections
            tokens = tokens.to(torch.get_autocast_dtype(tokens.device.type))
        query = _project(self.q_proj, tokens[:, :queries])
        return query, _project(self.k_proj, tokens), _project(self.v_proj, tokens)

    def fused(self) -> nn.Linear:
        """Return the three as timm's one Linear again; adapters must have been merged."""
        parts = (self.q_proj, self.k_proj, self.v_proj)
        bias = None if self.q_proj.bias is None else torch.cat([part.bias.detach() for part in parts])
        return _linear(torch.cat([part.weight.detach() for part in parts]), bias)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer


def _project(layer: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return ``layer(tokens)``, (B, N, D); of a plain LoRA Linear the scaling on rank and not on width, the sum in one.

    W x + b + B ((alpha / r) A dropout(x)), where PEFT computes (W x + b) + (alpha / r) (B (A dropout(x))).
    """
    adapter = _plain_adapter(layer)
    if adapter is None:
        return layer(tokens)
    base = layer.base_layer(tokens)
    low = layer.lora_A[adapter](layer.lora_dropout[adapter](tokens)) * layer.scaling[adapter]  # (B, N, r)
    up = layer.lora_B[adapter].weight
    return torch.addmm(base.flatten(0, 1), low.flatten(0, 1), up.T).view_as(base)


def _plain_adapter(layer: nn.Module) -> str | None:
    """Return the name of the one active adapter of a layer that computes plain LoRA, None for any other layer.

    Whatever PEFT computes otherwise is PEFT's to compute: a variant such as DoRA, a bias of LoRA's own, several
    adapters, adapters that are merged or switched off, a layer of a kind that is not ``peft.tuners.lora.Linear``.
    """
    if isinstance(layer, nn.Linear):  # no adapter at all: PEFT need not even be loaded
        return None
    from peft.tuners.lora import Linear

    if type(layer) is not Linear or layer.merged or layer.disable_adapters or len(layer.active_adapters) != 1:
        return None
    (name,) = layer.active_adapters
    is_plain = name in layer.lora_A and name not in layer.lora_variant and layer.lora_B[name].bias is None
    return name if is_plain else None


class SplitAttention(Attention):
    """timm's attention on a ``SplitQKV``, also of the first ``queries`` tokens alone: (B, N, D) -> (B, queries, D).

    An ``Attention`` becomes one by ``split``; it is never constructed. The backbone's own dropout, which is off in all
    that is done here, is left out.
    """

    def forward(
        self,
        x: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        is_causal: bool = False,
        queries: int | None = None,
    ) -> torch.Tensor:
        if attn_mask is not None or is_causal:
            raise NotImplementedError("image classification masks no token")
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)
            for part in self.qkv(x, queries)
        )
        query, key = self.q_norm(query), self.k_norm(key)
        if self.fused_attn:
            attended = functional.scaled_dot_product_attention(query, key, value)
        else:
            attended = (query * self.scale @ key.transpose(-2, -1)).softmax(dim=-1) @ value
        attended = self.norm(attended.transpose(1, 2).flatten(2))  # (B, queries, D)
        if getattr(self, "gate", None) is not None:
            attended = attended * self.gate(x[:, :queries]).sigmoid()
        return _project(self.proj, attended)


class ClassTokenBlock(Block):
    """timm's block, for the class token alone: (B, N, D) -> (B, 1, D). A ``Block`` becomes one by ``shorten``."""

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        attended = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal, queries=1)
        x = x[:, :1] + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def split(attention: Attention) -> None:
    """Take timm's fused ``qkv`` apart, in place; where the weights are and how they are called else stays as it was."""
    if isinstance(attention, SplitAttention):
        return
    attention.qkv = SplitQKV(attention.qkv)
    attention.__class__ = SplitAttention


def shorten(vit: nn.Module) -> None:
    """Let the last block compute the class token alone, in place, where the classifier reads nothing else.

    Exact: no other token of the last block goes anywhere. In ViT-B/16 at 224 it saves 6.9 % of the operations. Models
    that pool over all tokens, or with another kind of block, are left as they are.
    """
    reads_class_token = vit.global_pool == "token" and vit.attn_pool is None
    last = vit.blocks[-1]
    if reads_class_token and type(last) is Block and type(last.attn) in (Attention, SplitAttention):
        split(last.attn)
        last.__class__ = ClassTokenBlock


def restore(vit: nn.Module) -> None:
    """Make a merged ViT timm's own again, in place: undoes ``split`` and ``shorten``."""
    for block in vit.blocks:
        if isinstance(block, ClassTokenBlock):
            block.__class__ = Block
        if isinstance(block.attn, SplitAttention):
            block.attn.qkv = block.attn.qkv.fused()
            block.attn.__class__ = Attention


def is_plain_vit(module: nn.Module) -> bool:
    """Whether this is timm's VisionTransformer itself: a subclass may compute something else."""
    return type(module) is VisionTransformer


def attention_kinds(module: VisionTransformer) -> set[type]:
    """Return the classes of the attention of its blocks; ``SplitAttention`` needs timm's ``Attention`` in all."""
    return {type(getattr(block, "attn", None)) for block in module.blocks}


class CpuDropout(nn.Dropout):
    """Dropout whose masks come four to a 64-bit random number: a quarter of the time of PyTorch's on the CPU.

    ``p`` is rounded to a multiple of 2**-16 below 1, and the values that stay are scaled by exactly that.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        dropped = min(round(self.p * 2**16), 2**16 - 1)
        if not self.training or dropped == 0:
            return input
        words = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
        draws = words.view(torch.int16)[: input.numel()].view(input.shape)  # uniform in -2**15 .. 2**15 - 1
        return input.masked_fill(draws < dropped - 2**15, 0) * (2**16 / (2**16 - dropped))
