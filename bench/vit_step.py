"""A LoRA training step of a ViT: this repository against transformers and PEFT, and both against the machine's peak."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bench.measuring import alternate, paired, single, timed
from common.models import backbones, lora
from common.runtime.device import autocast, resolve_device, resolve_precision, synchronize

CLASSES = 10
IMAGE_SIZE = 224
RANK, ALPHA, DROPOUT, LR, WEIGHT_DECAY = 16, 32.0, 0.1, 3e-5, 0.01
WARM_UP_STEPS = 2
PEAK_TRIES = 10
# One 224x224 image through ViT-B/16 and back: 35.2 GFLOP forward (17.6 G multiply-adds, a multiply-add is 2), and as
# many for the gradient with respect to activations. Frozen weights need no gradient of their own; LoRA's is not
# counted, nor that the backward pass of the attention's two small products costs twice their forward pass.
FLOP_PER_IMAGE = 71e9
COUNTED = "vit_base_patch16_224"


def compare(*, tag: str, batch_size: int, repeats: int) -> dict[str, Any]:
    """Time 2 * repeats + 4 steps a side, in turn, in float32 and, where the machine's auto is that, in bfloat16.

    A step is forward, cross-entropy, backward, AdamW, with rank 16, alpha 32, dropout 0.1, on the same random images.
    """
    device = resolve_device("auto")
    precisions = dict.fromkeys(["fp32", resolve_precision("auto", device)])
    comparisons, singles = [], []
    for precision in precisions:
        found = _at_precision(tag, precision, device, batch_size=batch_size, steps=2 * repeats + 4)
        comparisons.append(found[0])
        singles += found[1:]
    return {
        "weights": "random",
        "records": comparisons + singles,
        "notes": [
            "weights are random on both sides: nothing is downloaded, and their values do not change the speed",
            f"{FLOP_PER_IMAGE / 1e9:.0f} GFLOP are counted per image of {COUNTED}: its forward pass and the gradient "
            "with respect to activations; the peak is the best of this ViT's own matrix products by themselves",
        ],
    }


def _at_precision(
    tag: str, precision: str, device: torch.device, *, batch_size: int, steps: int
) -> list[dict[str, Any]]:
    images, labels = examples(batch_size, device)
    base = backbones.load(tag, weights="random", image_size=IMAGE_SIZE)
    blocks, heads = len(base.module.blocks), base.module.blocks[0].attn.num_heads
    twin = new_twin(
        width=base.width,
        depth=blocks,
        heads=heads,
        hidden=base.module.blocks[0].mlp.fc1.out_features,
        patch=base.module.patch_embed.patch_size[0],
    )
    tokens = batch_size * base.module.pos_embed.shape[1]
    ours = adapted(base, precision, device)
    twin = twin.to(device).train()

    def twin_logits(batch: torch.Tensor) -> torch.Tensor:
        with autocast(device, precision):
            return twin(batch).logits

    step, twin_step = new_step(ours, ours, images, labels), new_step(twin, twin_logits, images, labels)
    for _ in range(WARM_UP_STEPS):
        step(), twin_step()
    before = peak_flops(precision, device, tokens=tokens, width=base.width)
    sides = {"here": lambda: timed(step), "transformers + PEFT": lambda: timed(twin_step)}
    found = alternate(sides, steps, desc=f"vit {precision}")
    after = peak_flops(precision, device, tokens=tokens, width=base.width)
    what = f"{tag}, batch {batch_size}, {precision}"
    records = [paired(f"{what}, seconds a step", found)]
    records += [single(f"{side}, {what}", [batch_size / s for s in found[side]], unit="images/s") for side in found]
    records.append(single(f"peak before and after, {precision}", [before / 1e9, after / 1e9], unit="GFLOP/s"))
    if tag.startswith(COUNTED):
        peak = max(before, after)
        shares = {side: [batch_size / s * FLOP_PER_IMAGE / peak for s in found[side]] for side in found}
        records += [single(f"{side}, {what}", shares[side], unit="of the peak") for side in shares]
    return records


def examples(batch_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random images (B, 3, 224, 224) float32 and labels (B,) int64."""
    images = torch.randn(batch_size, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
    return images, torch.arange(batch_size, device=device) % CLASSES


def adapted(base: backbones.Backbone, precision: str, device: torch.device) -> lora.LoraViT:
    """Return the model that train_vit_lora.py trains with its defaults."""
    settings = {"classes": CLASSES, "rank": RANK, "alpha": ALPHA, "dropout": DROPOUT, "seed": 0}
    return lora.attach(base, **settings, precision=precision, device=device).train()


def new_step(
    model: nn.Module, logits: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, labels: torch.Tensor
) -> Callable[[], None]:
    """Return one optimiser step as ``common.training.loop`` makes it, over the parameters that require a gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=WEIGHT_DECAY)

    def step() -> None:
        loss = functional.cross_entropy(logits(images).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        synchronize(images.device)

    return step


def new_twin(*, width: int, depth: int, heads: int, hidden: int, patch: int) -> nn.Module:
    """Return transformers' ViT of this shape with random weights, and PEFT's LoRA on its query and value."""
    from peft import LoraConfig, get_peft_model
    from transformers import ViTConfig, ViTForImageClassification

    shape = ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=hidden,
        image_size=IMAGE_SIZE,
        patch_size=patch,
        num_labels=CLASSES,
    )
    vit = ViTForImageClassification(shape)
    renamed = any(name.endswith("q_proj") for name, _ in vit.named_modules())  # since transformers 5
    targets = ["q_proj", "v_proj"] if renamed else ["query", "value"]
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=targets, modules_to_save=["classifier"]
    )
    with warnings.catch_warnings():
        # PEFT asks transformers for a property that transformers 5 has renamed.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        return get_peft_model(vit, config)


def peak_flops(precision: str, device: torch.device, *, tokens: int, width: int) -> float:
    """Return the most FLOP/s of a ViT's matrix products by themselves: (tokens, a) x (a, b), a and b width or 4 width.

    The best of several tries and of the three shapes; without gradients, weights already in the precision.
    """
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for inputs, outputs in ((width, width), (width, 4 * width), (4 * width, width)):
        activations = torch.randn(tokens, inputs, device=device, dtype=kind)
        weight = torch.randn(outputs, inputs, device=device, dtype=kind)

        def multiply(activations: torch.Tensor = activations, weight: torch.Tensor = weight) -> None:
            functional.linear(activations, weight)
            synchronize(device)

        with torch.inference_mode():
            multiply()
            seconds = min(timed(multiply) for _ in range(PEAK_TRIES))
        best = max(best, 2 * tokens * inputs * outputs / seconds)
    return best
