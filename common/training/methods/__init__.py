"""The methods' behaviour: one file a method, found by the name that ``runs.methods.METHODS`` gives it.

A new method is an entry there, a file here, and its line in ``IMPLEMENTATIONS``.
"""

from collections.abc import Mapping
from typing import Any

from common.runs.methods import method_spec
from common.training.methods.base import Method
from common.training.methods.cnn_lora import CnnLora
from common.training.methods.full import Full
from common.training.methods.head import FrozenHead
from common.training.methods.lora import Lora
from common.training.methods.probe import Probe

IMPLEMENTATIONS: dict[str, type[Method]] = {
    "lora": Lora,
    "head_mlp": FrozenHead,
    "head_linear": FrozenHead,
    "head_probe": Probe,
    "full": Full,
    "norms_and_biases": Full,
    "cnn_lora": CnnLora,
}


def new_method(name: str, settings: Mapping[str, Any]) -> Method:
    """Return the method called ``name`` with those of a run's ``settings`` that concern it.

    Raises:
        UserError: there is no such method; the message lists those there are.
    """
    method_spec(name)
    return IMPLEMENTATIONS[name].from_settings(name, settings)
