"""An unfinished run's state in one file that is either whole or recognised as damaged."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from common.runtime.errors import UserError
from common.runtime.files import sha256_of_tensors, write_atomically

VERSION = 2  # raise it where the saved state changes: what older code saved is then not misread


@dataclass(frozen=True)
class Checkpoint:
    """Where a run's state is kept, and whose state it is.

    ``identity`` (settings, data, weights; JSON-able) must be equal for a state to be taken up again; ``absent`` has
    what a checkpoint means that was written before one of these settings was there.
    """

    path: Path
    identity: dict[str, Any]
    absent: Mapping[str, Any] = field(default_factory=dict)

    def save(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Write JSON-able ``state`` and CPU ``tensors``, atomically, with a digest over both."""
        record = {"version": VERSION, "identity": self.identity, "state": state, "threads": torch.get_num_threads()}
        text = json.dumps(record, allow_nan=False)
        content = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
        metadata = {"record": text, "sha256": sha256_of_tensors(content, text=text)}
        write_atomically(self.path, save(content, metadata=metadata))

    def load(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """Return (state, tensors), or None where there is no checkpoint that can be used (said in a printed line).

        Raises:
            UserError: the checkpoint belongs to other settings, data or weights, or may not be read.
        """
        if not self.path.exists():
            return None
        try:
            self.path.open("rb").close()  # what may not be read is not damaged, and not to be overwritten
        except OSError as error:
            raise UserError(f"cannot read the checkpoint {str(self.path)!r}: {error.strerror or error}") from error
        found = _read(self.path)
        if found is None:
            print(f"the checkpoint {str(self.path)!r} is damaged and not used; the run starts from the beginning")
            return None
        record, tensors = found
        if record.get("version") != VERSION:
            print("the checkpoint is of another version of this code and not used; the run starts from the beginning")
            return None
        self._check_identity(record["identity"])
        _go_on_with(record.get("threads"))
        return record["state"], tensors

    def _check_identity(self, stored: dict[str, Any]) -> None:
        asked = json.loads(json.dumps(self.identity))  # tuples become lists, as in the stored one
        stored = {key: value for key, value in self.absent.items() if key in asked} | stored
        different = [f"{key} {stored.get(key)!r} there, {asked.get(key)!r} now" for key in asked | stored
                     if stored.get(key) != asked.get(key)]  # fmt: skip
        if different:
            raise UserError(
                f"{str(self.path)!r} is of an unfinished run with other settings ({'; '.join(different)}); remove that "
                "file, and the run starts from the beginning (or train under another `run_name`)"
            )


def _go_on_with(threads: int | None) -> None:
    """Compute with as many threads as before: another number would round otherwise."""
    if threads and threads != torch.get_num_threads():
        print(f"going on with {threads} CPU threads, as the run began", flush=True)
        torch.set_num_threads(threads)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """Return (record, tensors) of a whole checkpoint file, None for any other."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        whole = metadata["sha256"] == sha256_of_tensors(tensors, text=metadata["record"])
        return (json.loads(metadata["record"]), tensors) if whole else None
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RuntimeError):  # also of unknown types
        return None


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]) -> dict:
    """Return the optimiser's state of the named ``parameters`` as CPU tensors, each under ``<what>/<parameter>``."""
    return {
        f"{what}/{name}": value.detach().cpu()
        for name, parameter in parameters.items()
        for what, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)  # timm's Muon keeps a flag too, which it finds again
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put what ``optimizer_tensors`` returned back into a new optimiser of the same kind and ``parameters``."""
    for path, value in tensors.items():
        what, name = path.split("/", 1)
        parameter = parameters[name]
        # AdamW keeps its step count on the CPU, its moments beside the weights and in their memory format.
        optimizer.state[parameter][what] = value if what == "step" else torch.empty_like(parameter).copy_(value)


def strip_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors whose names start with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
