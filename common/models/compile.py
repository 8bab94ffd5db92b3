"""torch.compile for a frozen backbone: when it pays, and without a C++ compiler the plain way."""

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch

# Operations of a frozen backbone's forward passes that repay the compiler. Measured on two CPU cores with BatchNorm
# folded: it takes 5 to 17 s, after which ResNet50 makes 45 instead of 38 images a second in bfloat16, 23 instead of 21
# in float32, EfficientNet-B0 185 instead of 149 and 110 instead of 104: break-even at 10 to 22 T operations. On a GPU
# not measured: half a minute of 100 T operations a second.
COMPILING_PAYS_AFTER = {"cpu": 20e12, "cuda": 3e15, "mps": 3e15}


def compiling_pays(operations: float, device: torch.device) -> bool:
    """Whether so many operations repay the compiler: by their number alone, never by a stopwatch.

    So a repeated run computes the same thing.
    """
    return operations >= COMPILING_PAYS_AFTER[device.type]


def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``forward`` compiled for inference with frozen weights, or as it is where no C++ compiler is found."""
    if _cpp_compiler() is None:
        print("no C++ compiler: the backbone runs uncompiled (the same features, slower)")
        return forward
    from torch._inductor import config as inductor

    inductor.freezing = True  # folds BatchNorm into the convolutions; right only because nothing here trains
    return torch.compile(forward, dynamic=False)


def _cpp_compiler() -> str | None:
    """Return the path of the compiler that torch.compile calls, which CXX may name, or None."""
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    return shutil.which(os.environ.get("CXX", usual))
