"""What a model costs: parameters and floating-point operations."""

import torch
from torch import nn

from common.models.backbones import unfuse_attention
from common.models.compiler_later import without_compiler


def count_parameters(*modules: nn.Module) -> dict[str, float]:
    """Return total_params, trainable_params and trainable_percent of the modules together, each tensor counted once.

    PEFT keeps the classifier that it replaced under ``original_module``; nothing computes with it, so it is left out.
    """
    parameters = {
        id(parameter): parameter
        for module in modules
        for name, parameter in module.named_parameters()
        if ".original_module." not in name
    }
    total = sum(parameter.numel() for parameter in parameters.values())
    trainable = sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
    return {
        "total_params": total,
        "trainable_params": trainable,
        "trainable_percent": 100 * trainable / total,
    }


def forward_flops(module: nn.Module, image_size: int) -> int:
    """Return the operations of one image through ``module``; a multiply-add is 2 (torch.utils.flop_counter).

    Adapters must be merged. Fused attention is switched off for the count, because the counter does not see it on
    the CPU.
    """
    from torch.utils.flop_counter import FlopCounterMode

    device = next(module.parameters()).device
    image = torch.zeros(1, 3, image_size, image_size, device=device)
    fused = unfuse_attention(module)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            without_compiler(type(counter.mode), "__torch_dispatch__")
            module(image)
    finally:
        for layer in fused:
            layer.fused_attn = True
    return counter.get_total_flops()
