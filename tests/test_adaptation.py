"""What is true of every method that changes a backbone: where it starts, what moves, what is kept, what is exported."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from finished import FINE, TINY, left
from peft import PeftModel
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

import train_cnn_lora
import train_full
from common.data.dataset import load_dataset
from common.evaluation.labels import friendly_name
from common.grid.grid import Arm, job_for
from common.models import backbones, cnn_lora, complexity, finetuning
from common.models.lora import LoraModel, adapter_files
from common.runs.result import read_result
from common.runtime.errors import UserError
from common.runtime.seeding import numpy_generator, torch_seed
from common.training import cost, loop
from common.training.checkpoint import Checkpoint
from common.training.loaders import ImageLoader
from common.training.loop import OptimizerConfig
from common.training.methods import new_method

CPU = torch.device("cpu")
SIZE = 32
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
VIT, RESNET, EFFICIENTNET = "test_vit.r160_in1k", "test_resnet.r160_in1k", "test_efficientnet.r160_in1k"
CASES = {
    "vit_lora": ("lora", VIT, LORA | {"targets": "qv", "also_train": "nothing"}),
    "resnet_lora": ("cnn_lora", RESNET, LORA | {"targets": "pointwise"}),
    "resnet_lora_all": ("cnn_lora", RESNET, LORA | {"targets": "all-convs"}),
    "efficientnet_lora": ("cnn_lora", EFFICIENTNET, LORA | {"targets": "pointwise"}),
    "efficientnet_lora_all": ("cnn_lora", EFFICIENTNET, LORA | {"targets": "all-convs"}),
    "dpn_lora": ("cnn_lora", "dpn48b", LORA | {"targets": "pointwise"}),  # its classifier is a convolution
    "vit_norms": ("norms_and_biases", VIT, {"batchnorm": "train"}),
    "resnet_norms": ("norms_and_biases", RESNET, {"batchnorm": "train"}),
    "resnet_norms_frozen": ("norms_and_biases", RESNET, {"batchnorm": "frozen"}),
    "vit_full": ("full", VIT, {"batchnorm": "train"}),
    "resnet_full": ("full", RESNET, {"batchnorm": "train"}),
    "efficientnet_full_frozen": ("full", EFFICIENTNET, {"batchnorm": "frozen"}),
}


@dataclass(frozen=True)
class Trained:
    """A model after two steps; ``start`` is its state before them, ``gradients`` those of the last one."""

    method: Any
    settings: dict[str, Any]
    backbone: backbones.Backbone
    model: nn.Module
    base_difference: float  # relative
    start: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor | None]

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The state after the steps."""
        return self.model.state_dict()


@pytest.fixture(scope="module", params=CASES)
def trained(request) -> Trained:
    """A model of each method, on backbones of each kind."""
    name, tag, settings = CASES[request.param]
    method, backbone, model = _built(name, tag, settings)
    with torch.no_grad():
        features = [backbones.pooled_features(module, _images()) for module in (_base(tag).module, model.module)]
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    difference = (torch.sub(*features).abs().max() / features[0].abs().max()).item()
    return Trained(method, settings, backbone, model, difference, start, _two_steps(model))


def _base(tag: str) -> backbones.Backbone:
    """Return a random backbone whose residual branches count: timm starts the last norm of some at zero."""
    backbone = backbones.load(tag, weights="random", image_size=SIZE)
    for norm in (layer for layer in backbone.module.modules() if isinstance(layer, _BatchNorm)):
        nn.init.ones_(norm.weight)
    return backbone


def _built(name: str, tag: str, settings: dict[str, Any], *, classes: int = 5, seed: int = 0):
    method, backbone = new_method(name, settings), _base(tag)
    return method, backbone, method.build(backbone, classes, seed=seed, precision="fp32", device=CPU)


def _images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def _two_steps(model: nn.Module) -> dict[str, torch.Tensor | None]:
    """Train two AdamW steps; returns the gradients of the last one."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-3)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(model(_images()), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    model.eval()
    return {name: p.grad for name, p in trainable.items()}


def _is_declared(trained: Trained, name: str) -> bool:
    """Whether a parameter or buffer of this name is to change, said independently of the code."""
    if ".original_module." in name:
        return False
    layer, _, what = name.rpartition(".")
    kind = trained.model.get_submodule(layer) if layer else trained.model
    if what in ("running_mean", "running_var", "num_batches_tracked"):
        return trained.settings.get("batchnorm") == "train"
    if ".lora_" in name or f".{trained.backbone.classifier}." in name:
        return True
    if type(trained.method).__name__ != "Full":
        return False
    return trained.method.parts == "all" or what == "bias" or isinstance(kind, nn.LayerNorm | _BatchNorm)


def test_before_the_first_step_the_model_is_its_base(trained):
    # A ViT's one matrix product became three; convolutions round otherwise in another memory format.
    assert trained.base_difference < 5e-6


def test_what_is_declared_moves_and_all_else_is_bitwise_frozen(trained):
    moved = {name for name, tensor in trained.state.items() if not torch.equal(tensor, trained.start[name])}
    declared = {name for name in trained.state if _is_declared(trained, name)}
    assert moved == declared
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in trained.gradients.values())
    assert moved >= trained.gradients.keys()


def test_only_what_training_needs_leaves_eval_mode(trained):
    active = {name for name, layer in trained.model.train().named_modules() if layer.training} - {""}
    trained.model.eval()
    moves = trained.settings.get("batchnorm") == "train"
    norms = {name for name, layer in trained.model.named_modules() if isinstance(layer, _BatchNorm)}
    assert active - {name for name in active if "lora_dropout" in name} == (norms if moves else set())
    assert not any(layer.training for layer in trained.model.modules())


def test_exported_it_is_a_plain_timm_model_with_the_same_logits(trained, tmp_path):
    from safetensors.torch import save_file

    state = trained.method.timm_state(trained.backbone, trained.model)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    size = {"img_size": SIZE} if "vit" in trained.backbone.tag else {}
    path = str(tmp_path / "model.safetensors")
    plain = timm.create_model(trained.backbone.tag, num_classes=5, checkpoint_path=path, **size).eval()
    with torch.no_grad():
        expected = trained.model(_images())
        for other in (plain, trained.method.plain(trained.backbone, trained.model)):
            torch.testing.assert_close(other(_images()), expected, rtol=1e-4, atol=1e-4)


def test_what_is_saved_makes_the_same_model_again(trained, tmp_path):
    for name, content in trained.method.files(trained.model).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    other = trained.method.build(_base(trained.backbone.tag), 5, seed=1, precision="fp32", device=CPU)
    trained.method.load(other, tmp_path)
    with torch.no_grad():
        assert torch.equal(other(_images()), trained.model(_images()))


# LoRA on a CNN


def _cnn_model(targets: str = "all-convs") -> LoraModel:
    model = _built("cnn_lora", RESNET, LORA | {"targets": targets})[2]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero until it is trained
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("targets", cnn_lora.TARGETS)
def test_a_merged_kernel_is_the_product_of_the_matrices_by_hand(targets):
    model = _cnn_model(targets=targets)
    plain = new_method("cnn_lora", LORA | {"targets": targets}).plain(None, model)
    layers = {name: layer for name, layer in model.module.named_modules() if hasattr(layer, "lora_A")}
    kernels = set()
    for name, layer in layers.items():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight[:, :, 0, 0]
        expected = layer.base_layer.weight + 2.0 * torch.einsum("or,rikl->oikl", up, down)  # alpha / rank is 2
        torch.testing.assert_close(plain.get_submodule(name).weight, expected.detach(), rtol=1e-5, atol=1e-6)
        kernels.add(layer.base_layer.kernel_size)
    assert kernels == ({(1, 1)} if targets == "pointwise" else {(1, 1), (3, 3)})


def test_peft_itself_computes_the_same_unmerged_and_reads_a_saved_adapter_whole(tmp_path):
    model = _cnn_model()
    with torch.no_grad():
        expected = model(_images())
        torch.testing.assert_close(model.peft_model(_images()), expected, rtol=1e-5, atol=1e-5)
    for name, content in adapter_files(model).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    plain = _base(RESNET).module
    plain.reset_classifier(5)
    read = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(read(_images()), expected, rtol=1e-5, atol=1e-5)


def _unloaded(tag: str) -> backbones.Backbone:
    """Return a backbone of which only the shapes exist."""
    with torch.device("meta"):
        module = timm.create_model(tag, num_classes=0).requires_grad_(False).eval()
    half = (0.5, 0.5, 0.5)
    return backbones.Backbone(
        module, tag, "random", "", 224, half, half, "bicubic", 0.9, timm.get_pretrained_cfg(tag).classifier
    )


# A pointwise convolution of (in, out) has rank x (in + out) parameters beside it, the new classifier 10 x (width + 1).
@pytest.mark.parametrize(
    ("tag", "targets", "layers", "trained"),
    [
        ("resnet50.tv2_in1k", "pointwise", 36, 684_042),
        ("resnet50.tv2_in1k", "all-convs", 53, 1_291_578),
        ("efficientnet_b0.ra_in1k", "pointwise", 32, 377_354),
        ("efficientnet_b0.ra_in1k", "all-convs", 65, 677_178),
    ],
)
def test_which_convolutions_of_the_study_s_cnns_are_adapted(tag, targets, layers, trained):
    base = _unloaded(tag)
    convolutions = {name: m for name, m in base.module.named_modules() if isinstance(m, nn.Conv2d)}
    names = cnn_lora.require_targets(base, targets)
    assert len(names) == layers and all(convolutions[name].groups == 1 for name in names)
    if targets == "pointwise":
        assert {convolutions[name].kernel_size for name in names} == {(1, 1)}
        assert not any(".se." in name for name in names)
    else:
        assert set(names) == {name for name, layer in convolutions.items() if layer.groups == 1}
    with torch.device("meta"):
        options = {"rank": 16, "alpha": 32.0, "dropout": 0.1, "targets": targets, "device": "meta"}
        model = cnn_lora.attach(base, classes=10, seed=0, precision="fp32", **options)
    assert complexity.count_parameters(model)["trainable_params"] == trained
    adapted = {name for name, layer in model.module.named_modules() if hasattr(layer, "lora_A")}
    assert adapted == set(names)


@pytest.mark.parametrize("tag", ["regnety_002.pycls_in1k", "ese_vovnet19b_dw.ra_in1k"])
def test_squeeze_and_excite_is_known_by_each_of_its_names(tag):
    base = _unloaded(tag)
    gates = {
        name
        for name, m in base.module.named_modules()
        if isinstance(m, nn.Conv2d) and re.search(r"\.(se|attn)\.", name)
    }
    assert gates and not gates & set(cnn_lora.require_targets(base, "pointwise"))
    assert gates < set(cnn_lora.require_targets(base, "all-convs"))


@pytest.mark.parametrize(
    ("tag", "targets", "said"),
    [
        (VIT, "pointwise", "not a convolutional network; for a Vision Transformer use train_vit_lora"),
        ("dla46x_c.in1k", "pointwise", "a part named base_layer"),
        ("resnetv2_50x1_bit.goog_in21k", "all-convs", "has no such convolution"),  # its weights are standardised
    ],
)
def test_what_has_no_convolution_to_adapt_is_refused(tag, targets, said):
    with pytest.raises(UserError, match=said):
        cnn_lora.require_targets(_unloaded(tag), targets)


# Full fine-tuning


@pytest.mark.parametrize(
    ("tag", "parts", "trained"),
    [
        ("vit_base_patch16_224.augreg_in1k", "all", 85_806_346),
        ("vit_base_patch16_224.augreg_in1k", "norms-and-biases", 129_802),
        ("resnet50.tv2_in1k", "all", 23_528_522),
        ("resnet50.tv2_in1k", "norms-and-biases", 73_610),
        ("efficientnet_b0.ra_in1k", "all", 4_020_358),
        ("efficientnet_b0.ra_in1k", "norms-and-biases", 64_166),
    ],
)
def test_how_many_parameters_are_trained(tag, parts, trained):
    base = _unloaded(tag)
    options = {"parts": parts, "batchnorm": "train", "precision": "fp32", "device": "meta"}
    with torch.device("meta"):
        model = finetuning.unfreeze(base, classes=10, seed=0, **options)
    assert complexity.count_parameters(model)["trainable_params"] == trained


@pytest.mark.parametrize("tag", [VIT, RESNET])
def test_full_fine_tuning_is_bitwise_a_plain_loop(tag, tmp_path):
    digits = load_dataset("digits", data_dir=Path("data"), train_limit=50, test_limit=20)
    config = OptimizerConfig(1e-3, 2, 16, 0.01, 0, decays_vectors=False)
    _, backbone, model = _built("full", tag, {"batchnorm": "train"}, classes=10)
    images = ImageLoader(digits.train, backbone.transform("squash"), CPU, 0)
    ours = loop._Loop(model, images, images, config, Checkpoint(tmp_path / "checkpoint", {}))
    for _ in range(2):
        ours.train_epoch(0)
        ours.end_epoch()

    plain = _base(tag).module.requires_grad_(True).to(memory_format=model.memory_format)
    torch.manual_seed(torch_seed(0, "init"))
    plain.reset_classifier(10)
    groups = {decay: [p for p in plain.parameters() if (p.ndim > 1) == (decay > 0)] for decay in (0.01, 0.0)}
    optimizer = torch.optim.AdamW([{"params": p, "weight_decay": d} for d, p in groups.items()], lr=1e-3)
    for epoch in range(2):
        batches = numpy_generator(0, "order", epoch=epoch).permutation(50)
        batches = [batches[start : start + 16] for start in range(0, 50, 16)]
        plain.train()
        for inputs, batch in zip(images.batches(batches, epoch=epoch), batches, strict=True):
            logits = plain(inputs.contiguous(memory_format=model.memory_format))
            optimizer.zero_grad()
            functional.cross_entropy(logits, torch.from_numpy(digits.train.labels[batch])).backward()
            optimizer.step()
    expected = plain.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.module.state_dict().items())


def test_weight_decay_spares_what_has_one_dimension():
    parameters = {name: nn.Parameter(torch.ones(shape)) for name, shape in {"w": (2, 2), "bias": (2,)}.items()}
    for decays_vectors, expected in ((True, {"w": 0.5, "bias": 0.5}), (False, {"w": 0.5, "bias": 0.0})):
        config = OptimizerConfig(1e-3, 1, 1, 0.5, 0, decays_vectors=decays_vectors)
        groups = config.parameter_groups(parameters.values())
        found = {name: group["weight_decay"] for group in groups for name, p in parameters.items()
                 if any(p is other for other in group["params"])}  # fmt: skip
        assert found == expected


def test_dropout_and_stochastic_depth_of_the_backbone_stay_off():
    module = timm.create_model("test_vit", num_classes=0, proj_drop_rate=0.5, drop_path_rate=0.5, img_size=SIZE)
    base = dataclasses.replace(_base(VIT), module=module)
    model = new_method("full", {"batchnorm": "train"}).build(base, 5, seed=0, precision="fp32", device=CPU).train()
    assert torch.equal(model(_images()), model(_images()))


@pytest.mark.parametrize(
    ("tag", "batchnorm", "said"),
    [(VIT, "frozen", "has no BatchNorm"), ("levit_128s.fb_dist_in1k", "train", "another classifier than one layer")],
)
def test_what_cannot_be_fine_tuned_so_is_refused(tag, batchnorm, said):
    with pytest.raises(UserError, match=said):
        finetuning.require_trainable(_unloaded(tag), batchnorm)


# The scripts


RUNS = {
    "full": ("train_full", ["--backbone=test_resnet"]),
    "norms_and_biases": ("train_full", ["--backbone=test_resnet", "--parts=norms-and-biases", "--batchnorm=frozen"]),
    "cnn_lora": ("train_cnn_lora", ["--backbone=test_efficientnet", "--rank=2", "--targets=all-convs"]),
}
NAMES = {  # in the folder, and in figures
    "full": ("full-", "test_resnet (full fine-tuning)"),
    "norms_and_biases": ("norms_and_biases-", "test_resnet (norms and biases, BatchNorm frozen)"),
    "cnn_lora": ("lora_r2-", "test_efficientnet + LoRA (r=2, all-convs)"),
}

# The compiler folds weights into its code as constants ("freezing"): right for features, wrong for all that trains.
NO_COMPILER = {
    "common.models.compile.COMPILING_PAYS_AFTER": {"cpu": 0, "cuda": 0, "mps": 0},
    "common.training.features.compiled": None,
}


def test_features_are_compiled_where_that_pays(fork_server, tmp_path):
    """The control of the next test: here the compiler that is not there is called."""
    argv = [*TINY, "--backbone=test_resnet", "--no-feature-cache", "--results-dir", tmp_path]
    assert "NoneType" in fork_server.run("train_cnn_head", argv, patch=NO_COMPILER).err


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_killed_resumed_scored_and_exported_by_other_processes(fork_server, name, tmp_path):
    script, own = RUNS[name]
    argv = [*TINY, *own, "--lr", "1e-2", "3e-2", "--results-dir"]
    assert fork_server.run(script, [*argv, tmp_path / "whole"], patch=FINE | NO_COMPILER).code == 0
    assert fork_server.run(script, [*argv, tmp_path / "killed"], step=3, action="kill", patch=FINE).code is None
    again = fork_server.run(script, [*argv, tmp_path / "killed"])
    assert again.code == 0 and "resuming after" in again.out, again.err
    assert left(tmp_path / "killed") == left(tmp_path / "whole")
    (run,) = (tmp_path / "whole").glob("*/*/seed0")
    result = read_result(run / "result.json")
    suffix, label = NAMES[name]
    assert result.method == name and friendly_name(result) == label
    assert f".random-{suffix}" in run.parent.name
    assert run.parent.name.endswith({"norms_and_biases": "bn-frozen", "cnn_lora": "all-convs"}.get(name, "fp32"))
    scored = fork_server.run("evaluate", [run])
    assert scored.code == 0 and "equals the stored predictions: identical" in scored.out
    assert fork_server.run("evaluate", [run, "--export", tmp_path / "model.pt2"]).code == 0


ARMS = {
    "full": Arm(train_full, RESNET, {}),
    "norms_and_biases": Arm(train_full, RESNET, {"parts": "norms-and-biases"}),
    "cnn_lora": Arm(train_cnn_lora, EFFICIENTNET, {"rank": 2}),
}


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_of_a_grid_has_a_command_and_a_cost(name):
    arm = ARMS[name]
    config = arm.script.Config(dataset="digits", backbone=arm.backbone, image_size=SIZE, batch_size=4, **arm.recipe)
    assert arm.method == name
    assert job_for(config).command[1] == f"{arm.script.__name__}.py"
    assert cost.measure(config).train_seconds > 0


def test_a_base_of_other_weights_is_refused(fork_server, tmp_path):
    from safetensors.torch import save_file

    save_file(timm.create_model("test_efficientnet", num_classes=0).state_dict(), tmp_path / "other.safetensors")
    script, own = RUNS["cnn_lora"]
    assert fork_server.run(script, [*TINY, *own, "--results-dir", tmp_path / "runs"]).code == 0
    (run,) = (tmp_path / "runs").glob("*/*/seed0")
    ended = fork_server.run("evaluate", [run, "--weights", tmp_path / "other.safetensors"])
    assert ended.code == 2 and "was trained on other weights" in ended.err


def test_one_image_in_the_last_batch_has_no_statistics_and_that_is_said_at_once(fork_server, tmp_path):
    argv = [*TINY, "--backbone=test_resnet", "--train-limit=61", "--batch-size=30", "--results-dir", tmp_path]
    ended = fork_server.run("train_full", argv)
    assert ended.code == 2 and ended.err.count("\n") == 1 and "epoch 1" not in ended.out
    assert "the last batch has one image" in ended.err and "--batchnorm frozen" in ended.err
