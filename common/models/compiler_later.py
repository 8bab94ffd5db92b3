"""PyTorch's compiler left out of importing timm: a second at each start, for what only a compiled model needs.

Of the compiler torchvision takes a question that its ``roi_align`` may ask, and timm a decorator that keeps functions
from being compiled. Both are given in a form that imports the compiler when they are called.
"""

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

COMPILER = ("torch._dynamo", "torch._dynamo.utils")


def _disable(function: Callable | None = None, recursive: bool = True, *, reason: str | None = None) -> Callable:
    return torch._disable_dynamo(function, recursive)


def _is_compile_supported(device_type: str) -> bool:
    return importlib.import_module("torch._dynamo.utils").is_compile_supported(device_type)


LATER = {"disable": _disable, "is_compile_supported": _is_compile_supported}


class _StandIn(ModuleType):
    """Stands for a module of ``COMPILER``, until it is asked for more than ``LATER``."""

    def __getattr__(self, name: str) -> Any:
        if name in LATER:
            return LATER[name]
        if name.startswith("__"):  # what Python's own import looks for
            raise AttributeError(name)
        _remove_stand_ins()
        return getattr(importlib.import_module(self.__name__), name)


def import_without_compiler(name: str) -> None:
    """Import the module ``name``; with the compiler where a version of it needs more of that than ``LATER``."""
    try:
        with _stand_ins():
            importlib.import_module(name)
    except ImportError:
        importlib.import_module(name)


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    if "torch._dynamo" not in sys.modules:
        sys.modules.update({name: _StandIn(name) for name in COMPILER})
    try:
        yield
    finally:
        _remove_stand_ins()


def without_compiler(kind: type, *methods: str) -> None:
    """Free ``methods`` of a class of PyTorch's from the wrapper that imports the compiler in order not to compile them.

    Of use where nothing is compiled around them, as everywhere here: backbones alone are.
    """
    for method in methods:
        setattr(kind, method, inspect.unwrap(getattr(kind, method)))


def _remove_stand_ins() -> None:
    for name in COMPILER:
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]
