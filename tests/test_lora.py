"""LoRA is where the study says it is, and computes what an independent implementation computes."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
from finished import ARMS, FINE, left
from peft import PeftModel
from torch import nn
from torch.nn import functional

from common.models import backbones, complexity, lora, split_attention
from common.runtime.errors import UserError

SIZE = 32


PEFT_NAME = "peft_model.base_model.model"
PROJECTIONS = {  # what each choice of targets adapts in a block
    "qv": ("attn.qkv.q_proj", "attn.qkv.v_proj"),
    "attention": ("attn.qkv.q_proj", "attn.qkv.k_proj", "attn.qkv.v_proj", "attn.proj"),
    "all-linear": (
        *("attn.qkv.q_proj", "attn.qkv.k_proj", "attn.qkv.v_proj", "attn.proj"),
        *("mlp.fc1", "mlp.fc2"),
    ),
}
CHOICES = [{"targets": targets, "also_train": also_train} for targets in PROJECTIONS for also_train in lora.ALSO_TRAIN]


@dataclass(frozen=True)
class Trained:
    """A model after two steps; ``start`` is its state before them, ``gradients`` those of the last one."""

    choice: dict[str, str]
    model: lora.LoraViT
    start: dict[str, torch.Tensor]
    base_difference: float
    gradients: dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=CHOICES, ids=lambda choice: "-".join(choice.values()))
def trained(request) -> Trained:
    """A model of each choice of targets and what else is trained."""
    base, model = _base(), _model(**request.param)
    with torch.no_grad():
        features = (backbones.pooled_features(vit, _images()) for vit in (base.module, model.module))
        difference = torch.sub(*features).abs().max().item()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return Trained(request.param, model, start, difference, _two_steps(model))


def _model(
    backbone: str = "test_vit", *, seed: int = 0, rank: int = 4, dropout: float = 0.0, **choice: str
) -> lora.LoraViT:
    base = _base(backbone)
    return lora.attach(base, classes=5, rank=rank, alpha=8.0, dropout=dropout, seed=seed, precision="fp32", **choice)


def _base(backbone: str = "test_vit") -> backbones.Backbone:
    return backbones.load(backbones.resolve_tag(backbone), weights="random", image_size=SIZE)


def _unloaded(name: str, classifier: object = "head") -> backbones.Backbone:
    """Return a backbone of which only the shapes exist."""
    with torch.device("meta"):
        module = timm.create_model(name, num_classes=0).requires_grad_(False)
    half = (0.5, 0.5, 0.5)
    return backbones.Backbone(module, name, "random", "", 224, half, half, "bicubic", 0.9, classifier)


def _images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def _two_steps(model: lora.LoraViT) -> dict[str, torch.Tensor]:
    """Train two AdamW steps; returns the gradients of the last one."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(model(_images()), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    model.eval()
    return {name: p.grad for name, p in trainable.items()}


def _written(model: lora.LoraViT, folder: Path) -> Path:
    """Write the adapter's files below ``folder``; returns their own folder."""
    for name, content in lora.adapter_files(model).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / "adapter"


def _declared(vit: nn.Module, targets: str, also_train: str) -> set[str]:
    """Return the names of all that is to be trained."""
    lora_layers = [f"blocks.{block}.{layer}" for block in range(len(vit.blocks)) for layer in PROJECTIONS[targets]]
    names = {f"{layer}.lora_{matrix}.default.weight" for layer in lora_layers for matrix in "AB"}
    modules = ["head"]
    if also_train != "nothing":
        modules += ["norm", *(f"blocks.{block}.norm{n}" for block in range(len(vit.blocks)) for n in (1, 2))]
    if also_train == "norms-and-embeddings":
        modules.append("patch_embed.proj")
        names |= {"cls_token", "pos_embed"}
    names |= {f"{module}.modules_to_save.default.{part}" for module in modules for part in ("weight", "bias")}
    return {f"{PEFT_NAME}.{name}" for name in names}


def test_before_the_first_step_the_adapted_vit_is_the_base(trained):
    assert trained.base_difference < 1e-6  # one matrix product became three


def test_what_is_declared_is_trained_and_all_else_is_bitwise_frozen(trained):
    state = trained.model.state_dict()
    changed = {name for name, tensor in state.items() if not torch.equal(tensor, trained.start[name])}
    assert changed == trained.gradients.keys() == _declared(trained.model.module, **trained.choice)
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in trained.gradients.values())


# LoRA on a Linear of (in, out) has rank x (in + out) parameters; a norm has 2 x 768, the embeddings
# 768 x (16 x 16 x 3 + 1) + 768 x 197 + 768.
@pytest.mark.parametrize(
    ("targets", "also_train", "trained"),
    [
        ("qv", "nothing", 597_514),
        ("qv", "norms", 635_914),
        ("qv", "norms-and-embeddings", 1_378_570),
        ("attention", "nothing", 1_187_338),
        ("attention", "norms", 1_225_738),
        ("attention", "norms-and-embeddings", 1_968_394),
        ("all-linear", "nothing", 2_661_898),
        ("all-linear", "norms", 2_700_298),
        ("all-linear", "norms-and-embeddings", 3_442_954),
    ],
)
def test_how_many_parameters_of_vit_b_16_are_trained(targets, also_train, trained):
    base = _unloaded("vit_base_patch16_224.augreg_in1k")
    own = sum(parameter.numel() for parameter in base.module.parameters())
    settings = {"classes": 10, "rank": 16, "alpha": 32.0, "dropout": 0.1, "seed": 0, "precision": "fp32"}
    with torch.device("meta"):
        model = lora.attach(base, **settings, device="meta", targets=targets, also_train=also_train)
    counted = complexity.count_parameters(model)
    assert counted["trainable_params"] == trained
    matrices = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert counted["total_params"] == own + matrices + 7_690
    if (targets, also_train) == ("qv", "nothing"):
        assert counted["total_params"] == 86_396_170 and round(counted["trainable_percent"], 2) == 0.69


def test_dropout_is_on_in_the_adapters_and_off_in_the_backbone():
    module = timm.create_model("test_vit", num_classes=0, proj_drop_rate=0.5, drop_path_rate=0.5, img_size=SIZE)
    base = backbones.load("test_vit.r160_in1k", weights="random", image_size=SIZE)
    base = backbones.Backbone(**{**vars(base), "module": module.requires_grad_(False)})
    model = lora.attach(base, classes=5, rank=4, alpha=8.0, dropout=0.5, seed=0, precision="fp32").train()
    active = [name for name, m in model.named_modules() if isinstance(m, nn.Dropout) and m.training]
    assert len(active) == 2 * len(model.module.blocks)
    assert all("lora_dropout" in name for name in active)
    assert not any(m.training for m in model.modules() if type(m).__name__ == "DropPath")


def test_merged_it_is_a_plain_timm_model_that_equals_the_unmerged_one(trained):
    plain = timm.create_model("test_vit", num_classes=5, img_size=SIZE).eval()
    plain.load_state_dict(lora.merged(trained.model).state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain(_images()), trained.model(_images()), rtol=0, atol=1e-4)


# Of the second step's gradients; in bfloat16 either kernel's are up to 0.09 away from those in float32.
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.15)])
def test_plain_attention_gives_the_logits_and_the_gradients_of_the_fused_kernel(precision, tolerance):
    fused, plain = _model(), _model()
    fused.precision = plain.precision = precision
    for ours, other in zip(plain.module.blocks, fused.module.blocks, strict=True):
        ours.attn.fused_attn, other.attn.fused_attn = False, True
    with torch.no_grad():
        torch.testing.assert_close(plain(_images()), fused(_images()), rtol=0, atol=tolerance)
    expected = _two_steps(fused)
    for name, gradient in _two_steps(plain).items():
        assert (gradient - expected[name]).norm() <= tolerance * expected[name].norm()


def test_on_the_cpu_attention_is_fused_in_float32_and_plain_in_bfloat16():
    for precision, expected in (("fp32", True), ("bf16", False)):
        base = backbones.load("test_vit.r160_in1k", weights="random", image_size=SIZE)
        model = lora.attach(base, classes=5, rank=4, alpha=8.0, dropout=0.1, seed=0, precision=precision)
        assert {block.attn.fused_attn for block in model.module.blocks} == {expected}


def test_in_bfloat16_the_backbone_alone_is_rounded():
    exact, rounded = _model(), _model()
    rounded.precision = "bf16"
    seen = []
    rounded.module.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.no_grad():
        expected, logits = exact(_images()), rounded(_images())
    assert logits.dtype == torch.float32 and seen == [torch.float32]
    assert not torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.05)
    assert {p.dtype for p in rounded.parameters()} == {torch.float32}


def test_a_saved_adapter_gives_the_same_logits_in_another_model(trained, tmp_path):
    other = _model(seed=1, **trained.choice)
    lora.load_adapter(other, _written(trained.model, tmp_path))
    with torch.no_grad():
        assert torch.equal(other(_images()), trained.model(_images()))


def test_peft_itself_reads_a_saved_adapter_whole(trained, tmp_path):
    vit = _base().module
    for block in vit.blocks:
        split_attention.split(block.attn)
    vit.reset_classifier(5)
    read = PeftModel.from_pretrained(vit, _written(trained.model, tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(read(_images()), trained.model(_images()), rtol=0, atol=1e-5)


def test_an_adapter_of_another_base_or_rank_or_choice_is_refused(tmp_path):
    folder = _written(_model(), tmp_path)
    with pytest.raises(UserError, match="adapts 'test_vit"):
        lora.load_adapter(_model("test_vit2"), folder)
    for other in ({"rank": 2}, {"targets": "attention"}, {"also_train": "norms"}):
        with pytest.raises(UserError, match="does not fit"):
            lora.load_adapter(_model(**other), folder)


@pytest.mark.parametrize("also_train", ["norms", "norms-and-embeddings"])
def test_trained_norms_and_embeddings_are_refused_where_they_were_frozen(also_train, tmp_path):
    model = _model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match="missing or left over"):
        lora.load_adapter(model, _written(_model(also_train=also_train), tmp_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_norms_are_found_by_what_they_are_and_the_pool_s_mlp_belongs_to_no_block():
    model = _model("test_vit3", targets="all-linear", also_train="norms")  # pools by attention, LayerScale, registers
    trained = {name.removeprefix(f"{PEFT_NAME}.") for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".lora_")[0] for name in trained if "lora_" in name} == {
        f"blocks.{block}.{layer}" for block in range(9) for layer in PROJECTIONS["all-linear"]
    }
    others = {name.partition(".modules_to_save")[0] for name in trained if "lora_" not in name}
    assert others == {
        "head", "norm", "attn_pool.norm", *(f"blocks.{block}.norm{n}" for block in range(9) for n in (1, 2))
    }  # fmt: skip
    rms = _model("test_vit4", also_train="norms-and-embeddings")
    trained = {name.removeprefix(f"{PEFT_NAME}.") for name, p in rms.named_parameters() if p.requires_grad}
    assert {"blocks.0.norm1.modules_to_save.default.weight", "pos_embed", "reg_token"} < trained
    assert not any(".ls1." in name for name in trained)


def test_an_mlp_of_other_layers_is_refused_before_its_first_layer_would_be_passed_over():
    base = _unloaded("aimv2_large_patch14_224")
    lora.require_plain_vit(base, "attention")
    with pytest.raises(UserError, match=r"MLP of kind SwiGLU.*all-linear"):
        lora.require_plain_vit(base, "all-linear")


@pytest.mark.parametrize("choice", ["attention-also-norms", "all-linear-also-norms-and-embeddings"])
def test_a_choice_is_trained_resumed_and_reproduced_by_other_processes(fork_server, choice, tmp_path):
    targets, also_train = choice.split("-also-")
    script, argv = ARMS["lora"]
    argv = [*argv, f"--targets={targets}", f"--also-train={also_train}", "--results-dir"]
    assert fork_server.run(script, [*argv, tmp_path / "whole"]).code == 0
    assert fork_server.run(script, [*argv, tmp_path / "killed"], step=3, action="kill", patch=FINE).code is None
    again = fork_server.run(script, [*argv, tmp_path / "killed"])
    assert again.code == 0 and "resuming after" in again.out
    assert left(tmp_path / "killed") == left(tmp_path / "whole")
    (run,) = (tmp_path / "whole").glob("*/*/seed0")
    assert run.parent.name.endswith(choice)
    record = json.loads((run / "result.json").read_text())["model"]
    assert record["lora"]["target_modules"] == list(lora.TARGETS[targets])
    assert record["method_settings"]["also_train"] == also_train
    scored = fork_server.run("evaluate", [run])
    assert scored.code == 0 and "equals the stored predictions: identical" in scored.out


@pytest.mark.parametrize("fault", ["missing", "left over"])
def test_an_adapter_must_fit_tensor_for_tensor(fault, tmp_path):
    from safetensors.torch import load, save

    files = lora.adapter_files(_model())
    (name,) = (name for name in files if name.endswith(".safetensors"))
    tensors = load(files[name])
    first = next(key for key in sorted(tensors) if "lora_B" in key)
    if fault == "missing":
        del tensors[first]
    else:
        tensors[first.replace("blocks.0", "blocks.99")] = tensors[first].clone()
    _written(_model(), tmp_path)
    (tmp_path / name).write_bytes(save(tensors))
    with pytest.raises(UserError, match=r"does not fit 'test_vit.*lora_B"):
        lora.load_adapter(_model(), tmp_path / "adapter")


# The last one is a VisionTransformer, but its blocks hold two attentions side by side.
@pytest.mark.parametrize(
    "name",
    ["beit_base_patch16_224", "swin_tiny_patch4_window7_224", "test_resnet", "vit_small_patch16_18x2_224"],
)
def test_what_is_no_plain_vit_is_refused_by_name(name):
    base = _unloaded(name)
    with pytest.raises(UserError, match=name):
        lora.require_plain_vit(base)


def test_a_subclass_of_the_vit_is_refused_since_it_may_compute_something_else():
    class OtherViT(timm.models.VisionTransformer):
        pass

    base = backbones.load("test_vit.r160_in1k", weights="random", image_size=SIZE)
    lora.require_plain_vit(base)
    base.module.__class__ = OtherViT
    with pytest.raises(UserError, match="is a OtherViT"):
        lora.require_plain_vit(base)


def test_a_distilled_deit_with_its_second_head_is_refused():
    base = _unloaded("deit_tiny_distilled_patch16_224", ("head", "head_dist"))
    with pytest.raises(UserError, match="VisionTransformerDistilled"):
        lora.require_plain_vit(base)


def _hugging_face_twin(model: lora.LoraViT) -> tuple[nn.Module, dict[str, str]]:
    """Return transformers' ViT + PEFT with the weights of ``model``, and {its trainable name: ours}."""
    from peft import LoraConfig, get_peft_model
    from transformers import ViTConfig, ViTForImageClassification

    vit = model.module
    width, patch = vit.embed_dim, vit.patch_embed.patch_size[0]
    twin = ViTForImageClassification(
        ViTConfig(
            hidden_size=width,
            num_hidden_layers=len(vit.blocks),
            num_attention_heads=vit.blocks[0].attn.num_heads,
            intermediate_size=vit.blocks[0].mlp.fc1.out_features,
            image_size=SIZE,
            patch_size=patch,
            layer_norm_eps=1e-6,
            num_labels=5,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    names = {name for name, _ in twin.named_modules()}
    targets = ["q_proj", "v_proj"] if any(name.endswith("q_proj") for name in names) else ["query", "value"]
    config = LoraConfig(r=4, lora_alpha=8.0, target_modules=targets, modules_to_save=["classifier"])
    twin = get_peft_model(twin, config)
    pairs = _pairs(twin, model)
    source = dict(model.named_parameters())
    with torch.no_grad():
        for theirs, parameter in twin.named_parameters():
            if theirs in pairs:
                parameter.copy_(source[pairs[theirs]].reshape(parameter.shape))
    missed = {name for name, _ in twin.named_parameters()} - set(pairs)
    assert all("original_module" in name for name in missed), missed
    return twin, {theirs: ours for theirs, ours in pairs.items() if "lora" in theirs or "modules_to_save" in theirs}


# transformers' name of a piece -> timm's; both generations of transformers' ViT.
_RENAMED = [
    ("base_model.model.vit.embeddings.cls_token", "cls_token"),
    ("base_model.model.vit.embeddings.position_embeddings", "pos_embed"),
    ("base_model.model.vit.embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("base_model.model.vit.encoder.layer.", "blocks."),
    ("base_model.model.vit.layers.", "blocks."),
    ("base_model.model.vit.layernorm.", "norm."),
    ("base_model.model.classifier.", "head."),
    ("attention.attention.", "attn.qkv."),
    ("attention.output.dense.", "attn.proj."),
    ("attention.o_proj.", "attn.proj."),
    ("attention.q_proj", "attn.qkv.q_proj"),
    ("attention.k_proj", "attn.qkv.k_proj"),
    ("attention.v_proj", "attn.qkv.v_proj"),
    ("qkv.query", "qkv.q_proj"),
    ("qkv.key", "qkv.k_proj"),
    ("qkv.value", "qkv.v_proj"),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
]


def _pairs(twin: nn.Module, model: lora.LoraViT) -> dict[str, str]:
    ours = {name for name, _ in model.named_parameters()}
    pairs = {}
    for theirs, _ in twin.named_parameters():
        name = theirs
        for old, new in _RENAMED:
            name = name.replace(old, new)
        name = f"peft_model.base_model.model.{name}"
        if "original_module" not in theirs:
            assert name in ours, (theirs, name)
            pairs[theirs] = name
    return pairs


# PEFT asks transformers for a property that transformers 5 has renamed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_transformers_and_peft_give_the_same_logits_and_gradients():
    model = _model()
    _two_steps(model)  # B is no longer zero: every LoRA matrix now has a gradient
    twin, trained = _hugging_face_twin(model)
    model.eval(), twin.eval()
    labels = torch.tensor([0, 1, 2, 3])
    ours, theirs = model(_images()), twin(_images()).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    model.zero_grad(), twin.zero_grad()
    functional.cross_entropy(ours, labels).backward()
    functional.cross_entropy(theirs, labels).backward()
    own = dict(model.named_parameters())
    compared = 0
    for name, parameter in twin.named_parameters():
        if name in trained:
            scale = parameter.grad.abs().max()
            torch.testing.assert_close(own[trained[name]].grad / scale, parameter.grad / scale, rtol=1e-4, atol=1e-4)
            compared += 1
    assert compared == 4 * len(model.module.blocks) + 2
