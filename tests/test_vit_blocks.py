"""The ViT's faster blocks compute what timm's blocks with PEFT's LoRA layers compute."""

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType

import pytest
import torch
from peft import LoraConfig, get_peft_model
from timm.models import VisionTransformer
from torch import nn
from torch.nn import functional

from common.models import split_attention
from common.models.backbones import pooled_features
from common.models.lora import TARGETS
from common.runtime.device import autocast

SIZE, WIDTH = 32, 48
VARIANTS = {
    "plain": {},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
    "layer scale": {"init_values": 0.5},
    "normalised queries and keys": {"qk_norm": True},
    "normalised attention": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "without bias": {"qkv_bias": False},
    "norm before": {"pre_norm": True},
    "gated attention": {"gated": True},
    "average pooling": {"global_pool": "avg"},
    "attention pooling": {"global_pool": "map", "class_token": False},
}
SHORTENED = [name for name in VARIANTS if "pooling" not in name]


class _Concatenated(split_attention.SplitQKV):
    """Query, key and value apart for PEFT, but by PEFT's own forward, and handed to timm's own attention as one."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.q_proj(tokens), self.k_proj(tokens), self.v_proj(tokens)), dim=-1)


def small_vit(*, gated: bool = False, **variant: object) -> VisionTransformer:
    """Return a frozen ViT of three blocks for images of ``SIZE`` x ``SIZE``."""
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=SIZE, patch_size=8, embed_dim=WIDTH, depth=3, num_heads=3, num_classes=0, **variant
    )
    for block in vit.blocks if gated else ():
        block.attn.gate = nn.Linear(WIDTH, WIDTH)
    for parameter in vit.parameters():  # timm starts biases and some tokens at zero, where a fault would not be seen
        nn.init.normal_(parameter, std=0.2)
    return vit.eval().requires_grad_(False)


def _adapted(vit: VisionTransformer, **settings: object) -> nn.Module:
    settings = {"target_modules": ["q_proj", "v_proj"]} | settings
    config = LoraConfig(r=4, lora_alpha=6.0, lora_dropout=0.0, **settings)
    torch.manual_seed(1)
    model = get_peft_model(vit, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)  # zero at the start, and then A has no gradient
    return model


def _pair(lora: Mapping[str, object] = MappingProxyType({}), **variant: object) -> tuple[nn.Module, nn.Module]:
    """Return timm's blocks with PEFT's layers, and ours, with the same weights; ``lora``: settings of LoRA."""
    reference, ours = small_vit(**variant), small_vit(**variant)
    for block in reference.blocks:
        block.attn.qkv = _Concatenated(block.attn.qkv)
    for block in ours.blocks:
        split_attention.split(block.attn)
    split_attention.shorten(ours)
    return _adapted(reference, **lora), _adapted(ours, **lora)


def _features_and_gradients(model: nn.Module, precision: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    images = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    weights = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(3))
    with autocast(images.device, precision):
        features = pooled_features(model.get_base_model(), images)
    if features.requires_grad:  # merged adapters, and adapters that are switched off, have no gradient
        (features.float() * weights).sum().backward()
    return features.detach().float(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_features_and_gradients_are_those_of_timm_and_peft(variant, fused):
    reference, ours = _pair(**VARIANTS[variant])
    for model in (reference, ours):
        for block in model.get_base_model().blocks:
            block.attn.fused_attn = fused
    expected, expected_gradients = _features_and_gradients(reference, "fp32")
    actual, gradients = _features_and_gradients(ours, "fp32")
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys() and len(gradients) == 3 * 4
    for name, gradient in gradients.items():
        scale = expected_gradients[name].abs().max()
        assert scale > 0
        torch.testing.assert_close(gradient / scale, expected_gradients[name] / scale, rtol=1e-4, atol=1e-4)


NORMS, TOKENS = ["norm", "norm1", "norm2", "q_norm", "k_norm"], ["cls_token", "reg_token", "pos_embed"]


@pytest.mark.parametrize(
    ("variant", "modules", "tokens"),
    [
        ("plain", [], []),
        ("normalised queries and keys", NORMS, []),
        ("registers", ["patch_embed.proj"], TOKENS),
        ("average pooling", [*NORMS, "patch_embed.proj"], TOKENS),
    ],
)
@pytest.mark.parametrize("targets", TARGETS)
def test_other_targets_and_trained_norms_and_embeddings_are_computed_as_timm_and_peft_do(
    targets, variant, modules, tokens
):
    settings = {"target_modules": list(TARGETS[targets]), "modules_to_save": modules}
    reference, ours = _pair(settings, **VARIANTS[variant])
    for model in (reference, ours):
        for name, parameter in model.get_base_model().named_parameters(recurse=False):
            parameter.requires_grad_(name in tokens)
    expected, expected_gradients = _features_and_gradients(reference, "fp32")
    actual, gradients = _features_and_gradients(ours, "fp32")
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    assert sum("lora_" in name for name in gradients) == 2 * 3 * len(TARGETS[targets])
    for name, gradient in gradients.items():
        if "k_norm" in name and name.endswith("bias"):
            continue  # zero but for rounding: the softmax does not see what is added to all keys
        scale = expected_gradients[name].abs().max()
        assert scale > 0
        torch.testing.assert_close(gradient / scale, expected_gradients[name] / scale, rtol=1e-4, atol=1e-4)


def _with_second_adapter(model: nn.Module) -> None:
    torch.manual_seed(4)
    model.add_adapter("second", LoraConfig(r=2, lora_alpha=5.0, target_modules=["q_proj"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])


def _as_it_is(model: nn.Module) -> None:
    pass


# What PEFT can make of its LoRA layers, and whether the fast path computes it; what it does not, PEFT computes.
LORA_VARIANTS: dict[str, tuple[dict[str, object], Callable[[nn.Module], None], bool]] = {
    "plain": ({}, _as_it_is, True),
    "scaled by the root of the rank": ({"use_rslora": True}, _as_it_is, True),
    "another rank in some layers": ({"rank_pattern": {"v_proj": 2}}, _as_it_is, True),
    "another scale in some layers": ({"alpha_pattern": {"v_proj": 20}}, _as_it_is, True),
    "DoRA": ({"use_dora": True}, _as_it_is, False),
    "a bias of its own": ({"lora_bias": True}, _as_it_is, False),
    "merged": ({}, lambda model: model.merge_adapter(), False),
    "switched off": ({}, lambda model: model.base_model.disable_adapter_layers(), False),
    "two adapters": ({}, _with_second_adapter, False),
    "another adapter alone": ({}, lambda m: (_with_second_adapter(m), m.base_model.set_adapter("second")), True),
}


@pytest.mark.parametrize("variant", LORA_VARIANTS)
def test_every_variant_of_lora_is_computed_as_peft_computes_it(variant):
    lora, prepare, fast = LORA_VARIANTS[variant]
    reference, ours = _pair(lora)
    for model in (reference, ours):
        prepare(model)
        for name, parameter in model.named_parameters():
            if "lora_B" in name and name.endswith("bias"):
                nn.init.constant_(parameter, 0.1)
            if "magnitude" in name:
                with torch.no_grad():
                    parameter.mul_(1.5)
    query = ours.get_base_model().blocks[0].attn.qkv.q_proj
    assert (split_attention._plain_adapter(query) is not None) == fast
    expected, expected_gradients = _features_and_gradients(reference, "fp32")
    actual, gradients = _features_and_gradients(ours, "fp32")
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        if (wanted := expected_gradients[name]) is None:
            assert gradient is None
        else:
            scale = wanted.abs().max() or 1.0
            torch.testing.assert_close(gradient / scale, wanted / scale, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_ours_is_as_near_to_float32_as_timm_and_peft_are():
    exact, _ = _features_and_gradients(_pair()[0], "fp32")
    reference, ours = (_features_and_gradients(model, "bf16")[0] for model in _pair())
    error, expected_error = (ours - exact).norm() / exact.norm(), (reference - exact).norm() / exact.norm()
    assert 0 < error < 1.5 * expected_error < 0.05


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_last_block_computes_the_class_token_alone_where_that_is_all_that_is_read(variant):
    vit = small_vit(**VARIANTS[variant])
    images = torch.zeros(2, 3, SIZE, SIZE)
    tokens = vit.forward_features(images).shape[1]
    split_attention.shorten(vit)
    assert vit.forward_features(images).shape[1] == (1 if variant in SHORTENED else tokens)


def test_a_restored_vit_is_timm_s_own_bit_for_bit():
    vit = small_vit()
    expected, kinds = copy.deepcopy(vit.state_dict()), [type(module) for module in vit.modules()]
    for block in vit.blocks:
        split_attention.split(block.attn)
    split_attention.shorten(vit)
    assert [type(module) for module in vit.modules()] != kinds
    split_attention.restore(vit)
    assert [type(module) for module in vit.modules()] == kinds
    assert vit.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in vit.state_dict().items())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_cpu_dropout_drops_its_share_and_keeps_the_mean(share):
    dropout, values = split_attention.CpuDropout(share), torch.ones(1000, 1001)  # no multiple of four
    torch.manual_seed(0)
    out = dropout(values)
    dropped = (out == 0).double().mean().item()
    count = values.numel()
    assert abs(dropped - share) < 5 * (share * (1 - share) / count) ** 0.5 + 2**-16
    kept = out[out != 0]
    assert kept.unique().numel() == 1
    assert kept[0].item() == pytest.approx(1 / (1 - share), rel=0.01)
    rows, columns = (out == 0).double().mean(0), (out == 0).double().mean(1)
    for part in (rows, columns):  # no row, no column, no place within a random number is special
        assert (part - share).abs().max() < 6 * (share * (1 - share) / 1000) ** 0.5


def test_cpu_dropout_masks_the_gradient_and_follows_the_seed():
    dropout = split_attention.CpuDropout(0.25)
    values = torch.randn(7, 33, requires_grad=True)

    def dropped(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return dropout(values)

    out = dropped(0)
    out.sum().backward()
    torch.testing.assert_close(values.grad, torch.where(out == 0, 0.0, 4 / 3))
    torch.testing.assert_close(out, values * values.grad)
    assert torch.equal(dropped(0), out) and not torch.equal(dropped(1), out)
    assert dropout.eval()(values) is values


def test_cpu_dropout_agrees_with_pytorch_s_on_what_it_does_to_a_product():
    """The mean and the variance of a sum over dropped values, against nn.Dropout's."""
    values = torch.rand(400, 300, generator=torch.Generator().manual_seed(0))
    sums = []
    for kind in (split_attention.CpuDropout, nn.Dropout):
        torch.manual_seed(1)
        sums.append(torch.stack([functional.linear(kind(0.3)(values), torch.ones(1, 300)) for _ in range(50)]))
    ours, theirs = sums
    assert abs(ours.mean() - theirs.mean()) < 0.2
    assert ours.std(0).mean() == pytest.approx(theirs.std(0).mean().item(), rel=0.03)
