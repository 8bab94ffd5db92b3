"""Backbones are found by name, loaded whole, fed as they were trained; heads and costs are what the study says."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from common.models import backbones, complexity, heads, lora
from common.models.weights import hash_weights
from common.runtime.errors import UserError
from common.training.methods.head import PlainClassifier

STUDY = {
    "vit_base_patch16_224.augreg_in1k": ((0.5, 0.5, 0.5), "bicubic"),
    "resnet50.tv2_in1k": ((0.485, 0.456, 0.406), "bilinear"),
    "efficientnet_b0.ra_in1k": ((0.485, 0.456, 0.406), "bicubic"),
}
TINY = ["test_vit", "test_resnet", "test_efficientnet", "mobilenetv3_small_050"]


def _load(name: str, *, weights: str = "random", image_size: int = 32) -> backbones.Backbone:
    return backbones.load(backbones.resolve_tag(name), weights=weights, image_size=image_size)


def _meta(name: str, **settings: object) -> nn.Module:
    """Return a model of which only the shapes exist."""
    with torch.device("meta"):
        return timm.create_model(name, **settings).eval()


def _images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


# Names and sizes


def test_a_bare_name_gets_timms_default_tag_and_a_full_one_is_kept():
    assert backbones.resolve_tag("resnet50") == "resnet50.a1_in1k"
    for tag in STUDY:
        assert backbones.resolve_tag(tag) == tag


def test_a_misspelt_name_or_tag_is_answered_with_what_there_is():
    with pytest.raises(UserError, match=r"'resnet5O': timm has no such model \(did you mean 'resnet50'\?\)"):
        backbones.resolve_tag("resnet5O")
    with pytest.raises(UserError, match=r"no such weights; it has .*resnet50\.tv2_in1k"):
        backbones.resolve_tag("resnet50.tv3_in1k")


@pytest.mark.parametrize(
    ("tag", "size"),
    [
        *((tag, 224) for tag in STUDY),  # resnet50.tv2_in1k was trained at 176 and tested at 224
        ("resnet50.a1_in1k", 224),  # trained at 224, tested at 288
        ("test_resnet.r160_in1k", 160),
        ("vit_base_patch14_dinov2.lvd142m", 518),
    ],
)
def test_images_are_224_where_the_backbone_was_made_for_it_and_else_its_own_size(tag, size):
    assert backbones.resolve_image_size(tag, None) == size
    assert backbones.resolve_image_size(tag, 96) == 96


# Loading


@pytest.mark.parametrize("tag", STUDY)
def test_each_backbone_is_fed_by_its_own_mean_and_interpolation(tag, monkeypatch):
    # Only the shapes are built: the weights do not matter here.
    monkeypatch.setattr(backbones, "build_random", _meta)
    monkeypatch.setattr(backbones, "hash_weights", lambda module: "")
    backbone = backbones.load(tag, weights="random", image_size=224)
    assert (backbone.mean, backbone.interpolation) == STUDY[tag]


@pytest.mark.parametrize("name", TINY)
def test_features_are_what_the_backbones_own_classifier_reads(name):
    backbone = _load(name)
    with torch.no_grad():
        features = backbones.pooled_features(backbone.module, _images())
        assert features.shape == (2, backbone.width)
        torch.testing.assert_close(features, backbone.module(_images()), rtol=0, atol=0)
        classified = timm.create_model(name, num_classes=7, **({"img_size": 32} if "vit" in name else {})).eval()
        expected = classified(_images())
        classifier = classified.get_classifier()
        read = backbones.pooled_features(classified, _images())
        torch.testing.assert_close(classifier(read), expected, rtol=0, atol=1e-6)


def test_loading_draws_nothing_from_the_global_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    _load("test_resnet")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_hash_covers_weights_and_batchnorm_statistics_but_no_classifier():
    backbone = _load("test_resnet")
    module = backbone.module
    assert not any(name.startswith("fc.") for name in module.state_dict())
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and name.split(".")[-1] in ("weight", "running_mean"):
            kept = tensor.view(-1)[0].item()
            tensor.view(-1)[0] += 1
            assert hash_weights(module) != backbone.sha256, name
            tensor.view(-1)[0] = kept
    assert hash_weights(module) == backbone.sha256


def test_a_vit_keeps_its_hash_at_another_image_size_and_needs_a_multiple_of_its_patch():
    small, large = _load("test_vit", image_size=32), _load("test_vit", image_size=64)
    assert small.sha256 == large.sha256
    assert small.module.pos_embed.shape[1] < large.module.pos_embed.shape[1]
    with torch.no_grad():
        assert backbones.pooled_features(large.module, _images(64)).isfinite().all()
    with pytest.raises(UserError, match=r"`image_size` 40: 'test_vit\.r160_in1k' needs a multiple of .*, 16"):
        _load("test_vit", image_size=40)


@pytest.mark.parametrize("fault", ["missing", "left over", "misshapen"])
def test_a_weights_file_must_fit_tensor_for_tensor(fault, tmp_path):
    state = timm.create_model("test_resnet", num_classes=3).state_dict()
    name = "layer1.0.conv1.weight"
    if fault == "missing":
        del state[name]
    elif fault == "left over":
        state["layer9.weight"] = torch.ones(1)
    else:
        state[name] = state[name][:-1].clone()
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=r"wrong\.safetensors' does not hold weights of 'test_resnet\.r160_in1k'"):
        _load("test_resnet", weights=str(tmp_path / "wrong.safetensors"))


def test_pretrained_weights_come_from_the_hub_under_the_tags_name(tmp_path, monkeypatch):
    import huggingface_hub

    state = timm.create_model("test_resnet", num_classes=1000).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    asked = []

    def hub(repository, name):
        asked.append((repository, name))
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    loaded = _load("test_resnet", weights="pretrained")
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    for name, tensor in loaded.module.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224"])
def test_what_does_not_convolve_is_refused_as_a_cnn(name):
    module = _meta(name)
    backbone = backbones.Backbone(module, name, "random", "", 224, (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "head")
    with pytest.raises(UserError, match=name):
        backbones.require_cnn(backbone)


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "convnext_atto", "mobilenetv3_small_050"])
def test_convolutional_networks_are_taken(name):
    half = (0.5, 0.5, 0.5)
    backbone = backbones.Backbone(_meta(name), name, "random", "", 224, half, half, "bicubic", 0.9, "fc")
    assert backbones.require_cnn(backbone) is None


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("vit", ["vit_tiny_patch16_224", "demo_vit"]),
        ("cnn", ["resnet50", "convnext_atto", "demo_efficientnet"]),
        ("other", ["swin_tiny_patch4_window7_224", "mixer_s32_224", "deit_tiny_distilled_patch16_224"]),
        ("other", ["vit_dwee_patch16_reg1_gap_256", "vit_base_patch16_xp_224"]),  # of another attention
    ],
)
def test_a_backbone_is_a_plain_vit_a_cnn_or_another(kind, names):
    assert {backbones.kind_of(name) for name in names} == {kind}


# Heads


@pytest.mark.parametrize("width", [2, 3, 64, 100, 384, 512, 1280, 2047, 2048])
def test_the_hidden_layer_is_the_largest_power_of_two_not_above_half(width):
    hidden = heads.hidden_width(width)
    assert hidden.bit_count() == 1
    assert hidden <= width / 2 < 2 * hidden


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet50", nn.ReLU),
        ("efficientnet_b0", nn.SiLU),
        ("ese_vovnet19b_dw", nn.ReLU),  # its last module of this sort is the gate of a squeeze-and-excite block
        ("tf_efficientnet_lite0", nn.ReLU6),
        ("mobilenetv3_small_050", nn.Hardswish),
        ("convnext_atto", nn.GELU),
    ],
)
def test_the_head_takes_the_backbones_own_activation(name, kind):
    with torch.device("meta"):
        module = timm.create_model(name, num_classes=0)
    activation = heads.own_activation(module)
    assert isinstance(activation, kind) or type(activation).__name__ == kind.__name__
    values = torch.linspace(-4, 8, 25)
    torch.testing.assert_close(activation(values.clone()), kind()(values.clone()), rtol=1e-5, atol=1e-2)


def test_a_head_is_drawn_from_its_seed_alone():
    def state(seed: int) -> torch.Tensor:
        return heads.new_head(nn.ReLU(), 64, 10, kind="mlp", dropout=0.5, seed=seed).output.weight

    torch.manual_seed(1)
    first = state(0)
    torch.manual_seed(2)
    drawn = torch.get_rng_state()
    assert torch.equal(state(0), first)
    assert not torch.equal(state(1), first)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_the_heads_of_the_study_train_their_published_share():
    head = heads.new_head(nn.ReLU(), 2048, 10, kind="mlp", dropout=0.5, seed=0)
    # 2048 x 1024 + 1024, 1024 x 10 + 10: with ResNet50's 23,508,032 these are the study's 8.231 %.
    counted = complexity.count_parameters(_meta("resnet50", num_classes=0).requires_grad_(False), head)
    assert counted["trainable_params"] == 2_108_426
    assert round(counted["trainable_percent"], 3) == 8.231
    small = heads.new_head(nn.SiLU(), 1280, 10, kind="mlp", dropout=0.5, seed=0)
    counted = complexity.count_parameters(_meta("efficientnet_b0", num_classes=0).requires_grad_(False), small)
    assert round(counted["trainable_percent"], 3) == 14.159


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_head_drops_features_in_training_only_and_comes_back_from_its_file(kind, tmp_path):
    head = heads.new_head(nn.ReLU(), 64, 10, kind=kind, dropout=0.5, seed=0)
    features = torch.ones(4, 64)
    assert not torch.equal(head.train()(features), head(features))
    expected = head.eval()(features)
    assert torch.equal(head(features), expected)
    (content,) = heads.head_file(head.state_dict()).values()
    (tmp_path / "head.safetensors").write_bytes(content)
    other = heads.new_head(nn.ReLU(), 64, 10, kind=kind, dropout=0.5, seed=1).eval()
    heads.load_head(other, tmp_path / "head.safetensors")
    assert torch.equal(other(features), expected)
    for width, classes in ((32, 10), (64, 9)):
        misfit = heads.new_head(nn.ReLU(), width, classes, kind=kind, dropout=0.5, seed=0)
        with pytest.raises(UserError, match=r"head\.safetensors' does not hold this run's head"):
            heads.load_head(misfit, tmp_path / "head.safetensors")


# Costs


class _Tiny(nn.Module):
    """One convolution (3 -> 4 channels, 3 x 3, stride 2), pooled; what timm calls forward_features, forward_head."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return self.convolution(images)

    def forward_head(self, maps: torch.Tensor, *, pre_logits: bool) -> torch.Tensor:
        return maps.mean((2, 3))


def test_the_operations_of_one_convolution_and_one_linear_layer_are_those_counted_by_hand():
    expected = 2 * (8 * 8 * 4) * (3 * 3 * 3) + 2 * 4 * 10  # outputs x multiply-adds each; features x classes
    assert complexity.forward_flops(PlainClassifier(_Tiny(), nn.Linear(4, 10)), 16) == expected


def test_fused_attention_is_counted_and_left_switched_on():
    vit = _load("test_vit").module
    attention = vit.blocks[0].attn
    attention.fused_attn = True
    depth, width, hidden = len(vit.blocks), vit.embed_dim, vit.blocks[0].mlp.fc1.out_features
    tokens = 1 + (32 // 16) ** 2
    block = tokens * width * (3 * width + width + 2 * hidden) + 2 * tokens * tokens * width
    expected = 2 * (4 * 16 * 16 * 3 * width + depth * block + width * 10)
    assert complexity.forward_flops(PlainClassifier(vit, nn.Linear(width, 10)), 32) == expected
    assert attention.fused_attn


@pytest.mark.parametrize(("name", "gmacs"), [("resnet50", 4.09), ("efficientnet_b0", 0.39)])
def test_the_counts_of_known_networks_are_those_that_torchvision_publishes(name, gmacs):
    module = _meta(name, num_classes=0)
    with torch.device("meta"):
        head = nn.Linear(module.num_features, 1000)
    assert round(complexity.forward_flops(PlainClassifier(module, head), 224) / 2e9, 2) == gmacs


def test_a_shared_tensor_and_a_replaced_classifier_are_not_counted_twice():
    shared = nn.Linear(3, 3)
    model = nn.ModuleList([shared, shared, nn.Linear(3, 2).requires_grad_(False)])
    assert complexity.count_parameters(model, shared) == {
        "total_params": 20,
        "trainable_params": 12,
        "trainable_percent": 60.0,
    }
    adapted = lora.attach(_load("test_vit"), classes=5, rank=4, alpha=8.0, dropout=0.0, seed=0, precision="fp32")
    plain = _load("test_vit").module
    width, depth = plain.embed_dim, len(plain.blocks)
    trainable = depth * 2 * (2 * 4 * width) + 5 * width + 5
    assert complexity.count_parameters(adapted)["trainable_params"] == trainable
    base = sum(parameter.numel() for parameter in plain.parameters())
    assert complexity.count_parameters(adapted)["total_params"] == base + trainable
    merged = lora.merged(adapted)
    assert complexity.count_parameters(merged)["total_params"] == base + 5 * width + 5
