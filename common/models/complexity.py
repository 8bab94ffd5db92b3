"""What a model costs: parameters, bytes, and floating-point operations; a multiply-add is 2 operations."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from common.models.backbones import unfuse_attention
from common.models.compiler_later import without_compiler

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


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


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of the module's weights and running statistics, as a file of them holds."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def forward_flops(module: nn.Module, image_size: int) -> int:
    """Return the operations of one image through ``module``; adapters must be merged."""
    device = next(module.parameters()).device
    image = torch.zeros(1, 3, image_size, image_size, device=device)
    with torch.no_grad(), _counted(module) as counter:
        module(image)
    return counter.get_total_flops()


def step_flops(model: nn.Module, inputs: torch.Tensor) -> int:
    """Return the operations of a training step on ``inputs``: forward, and backward to all that requires a gradient.

    Those of the model as it is trained, with adapters beside the layers they adapt. Counted in eval mode, which has the
    same products as training and leaves running statistics alone; no gradient is kept.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.enable_grad(), _counted(model) as counter:
        torch.autograd.grad(model.eval()(inputs).sum(), trained, allow_unused=True)
    return counter.get_total_flops()


@contextmanager
def _counted(module: nn.Module) -> Iterator["FlopCounterMode"]:
    """Count the operations of matrix products and convolutions inside the block (torch.utils.flop_counter).

    Fused attention is switched off for the count, because the counter does not see it on the CPU.
    """
    from torch.utils.flop_counter import FlopCounterMode

    fused, formulas = unfuse_attention(module), {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    try:
        with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            without_compiler(type(counter.mode), "__torch_dispatch__")
            yield counter
    finally:
        for layer in fused:
            layer.fused_attn = True


def _convolution_backward_flops(
    grad_shape, x_shape, w_shape, bias, stride, padding, dilation, transposed, output_padding, groups, mask, **_
) -> int:
    """Return the operations of a convolution's backward pass: those of its forward pass for inputs and for weights.

    ``mask`` says which of these are wanted. PyTorch's own formula counts the weights of grouped convolutions
    ``groups`` times: of EfficientNet-B0, fully trained, 32 instead of 2.3 GFLOPs.
    """
    pixels = math.prod((x_shape if transposed else grad_shape)[2:])
    return 2 * x_shape[0] * pixels * math.prod(w_shape) * (mask[0] + mask[1])
