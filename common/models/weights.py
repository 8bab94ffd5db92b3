"""A backbone's weights: found or downloaded, loaded strictly, identified by a hash."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

import common.models.demo_backbones  # noqa: F401, registers them with timm
from common.runtime.errors import UserError
from common.runtime.files import sha256_of_tensors
from common.runtime.seeding import torch_seed

# One seed for all: the same random backbone serves every run, whatever its ``seed``.
RANDOM_WEIGHTS_SEED = 0


def hash_weights(module: nn.Module) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of all parameters and buffers of ``module``."""
    return sha256_of_tensors(module.state_dict())


def state_file(state: Mapping[str, torch.Tensor]) -> bytes:
    """Return a model's state as a safetensors file."""
    from safetensors.torch import save

    return save({name: tensor.cpu().contiguous() for name, tensor in state.items()}, metadata={"format": "pt"})


def load_state(module: nn.Module, path: Path, *, what: str) -> None:
    """Load a file of ``state_file`` strictly into a module of the same shape; ``what`` it is, for the message.

    Raises:
        UserError: the file is missing or damaged, or a tensor is missing, left over or misshapen.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{str(path)!r} does not hold this run's {what}: {error}") from error


def build_random(tag: str) -> nn.Module:
    """Return the backbone without a classifier, with the same random weights each time; no generator moves on."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(RANDOM_WEIGHTS_SEED, "backbone"))
        return timm.create_model(tag, pretrained=False, num_classes=0)


def build_from_file(tag: str, weights: str) -> nn.Module:
    """Load strictly, with the class count of the file itself: timm drops what does not fit where the counts differ."""
    import timm

    cfg = timm.get_pretrained_cfg(tag)
    path = download(tag) if weights == "pretrained" else Path(weights)
    if weights != "pretrained" and path.suffix != ".safetensors":
        raise UserError(f"{str(path)!r} is no .safetensors file, and no other kind is opened")
    shapes = _read_shapes(path)
    classifier = shapes.get(f"{cfg.classifier}.weight")
    classes = classifier[0] if classifier else 0
    overlay = {"file": str(path), "num_classes": classes, "custom_load": False}
    try:
        module = timm.create_model(tag, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError, ValueError, AttributeError, TypeError, IndexError) as error:
        raise UserError(f"{str(path)!r} does not hold weights of {tag!r}: {_shorten(error)}") from error
    broken = [name for name, tensor in module.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(f"{str(path)!r} holds values that are not finite, first in {broken[0]!r}; get the file again")
    return module


def _read_shapes(path: Path) -> dict[str, list[int]]:
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":  # a few timm models have only a .bin, which timm opens with weights_only=True
        return {}
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, OSError) as error:
        raise UserError(f"{str(path)!r} is not a whole safetensors file: {error}; get the file again") from error


def _shorten(error: Exception, limit: int = 300) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[:limit] + " ..."


def download(tag: str) -> Path:
    """Return the local file of timm's pretrained weights, downloaded from the Hugging Face hub on first use.

    Raises:
        UserError: the model has no published weights, or the hub cannot be reached and the file is not in its cache.
    """
    import timm
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    cfg = timm.get_pretrained_cfg(tag)
    if cfg.file:
        return Path(cfg.file)
    if not cfg.hf_hub_id:
        raise UserError(f"timm publishes no weights for {tag!r}; give a file: `weights` FILE.safetensors")
    repository, name = cfg.hf_hub_id, cfg.hf_hub_filename or "model.safetensors"
    url = f"https://huggingface.co/{repository}/resolve/main/{name}"
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are told once, below
    print(f"weights: {repository} from {constants.HF_HUB_CACHE} or the Hugging Face hub", flush=True)
    try:
        return Path(hf_hub_download(repository, name))
    except LocalEntryNotFoundError:
        reason = "it is not in the cache and the hub cannot be reached"
    except (EntryNotFoundError, OSError, ValueError) as error:
        reason = _shorten(error, 200)
    raise UserError(
        f"no pretrained weights for {tag!r}: {reason}. On a machine with internet download {url}, "
        "bring the file here and add `weights` FILE.safetensors to the command of a training script or evaluate.py "
        "(`weights` random only to try the code out), or bring that machine's whole cache"
    )
