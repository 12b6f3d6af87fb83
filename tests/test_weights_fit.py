"""Weights of any origin reach the network they belong to, and what was done with the file is said."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import nn

from hemafast import nearest_model
from hemafast.errors import HemafastError
from hemafast.nearest_model import is_counter
from hemafast.weights_file import read_weights
from hemafast.weights_fit import fit_weights

RESNET, EFFICIENTNET, VIT = "test_resnet", "test_efficientnet", "test_vit"
SMALL: dict[str, dict[str, Any]] = {RESNET: {}, EFFICIENTNET: {}, VIT: {"img_size": 64}}


def _network(name, classes=4, seed=0, **options):
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=classes, **{**SMALL.get(name, {}), **options})


def _state(name, seed=1, classes=10, **options):
    """The state dict of a trained network: no value in it is one that a new network has."""
    state = _network(name, classes, seed, **options).state_dict()
    torch.manual_seed(seed + 100)
    return {key: one if is_counter(key) else one + torch.rand_like(one) for key, one in state.items()}


def _under(prefix, state):
    return {f"{prefix}.{key}": tensor for key, tensor in state.items()}


def _load(network, name, content, tmp_path):
    file = tmp_path / "stranger.pth"
    torch.save(content, file)
    return fit_weights(network, name, read_weights(file), str(file))


def _stored(content, tmp_path):
    torch.save(content, tmp_path / "whole.pth")
    return read_weights(tmp_path / "whole.pth")


def _body(network):
    head = network.pretrained_cfg["classifier"]
    return {n: t for n, t in network.state_dict().items() if not n.startswith(f"{head}.") and not is_counter(n)}


def _optimizer(state):
    return {"state": {0: {"exp_avg": torch.ones(7)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@dataclass
class Case:
    """One kind of file, which holds `state` under the network's own names somewhere."""

    wrap: Callable[[dict], Any]
    said: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ("not filled",)
    name: str = RESNET
    saved: Mapping[str, Any] = field(default_factory=dict)


OTHER = 7
"""Seed of the network that is not to be taken."""

CASES = {
    "a state dict": Case(lambda s: s, ("filled 100 %", "left out the head of 10 classes"), ("stripped", "not filled")),
    "efficientnet": Case(lambda s: s, ("filled 100 %",), name=EFFICIENTNET),
    "vit": Case(lambda s: s, ("filled 100 %",), ("resampled", "not filled"), name=VIT),
    "state_dict": Case(lambda s: {"state_dict": s, "epoch": 3, "arch": "x"}, ("stripped state_dict.", "100 %")),
    "model": Case(lambda s: {"model": s, "args": {"lr": 1}}, ("stripped model.",)),
    "model_state_dict": Case(
        lambda s: {"model_state_dict": s, "loss": torch.tensor(1.0)}, ("left out the head of 10 classes, loss",)
    ),
    "a name nobody knows": Case(lambda s: {"x": {"y": {"weights of net": s}}}, ("stripped x.y.weights of net.",)),
    "a list": Case(lambda s: [3, {"net": s}, "done"], ("stripped net.",)),
    "module": Case(lambda s: _under("module", s), ("stripped module.",)),
    "encoder": Case(lambda s: _under("encoder", s), ("stripped encoder.",)),
    "stacked prefixes": Case(
        lambda s: {"state_dict": _under("module._orig_mod.backbone", s)},
        ("stripped state_dict.module._orig_mod.backbone.",),
    ),
    "compiled layers": Case(
        lambda s: {k.replace("layer1.", "layer1._orig_mod."): t for k, t in s.items()}, ("_orig_mod.", "100 %")
    ),
    "an optimizer beside": Case(
        lambda s: {"model": s, "optimizer": _optimizer(s), "scaler": {}}, ("left out the head", "optimizer")
    ),
    "DINO": Case(
        lambda s: {
            "student": _under("module.backbone", _state(RESNET, OTHER)) | {"module.head.weight": torch.ones(9, 9)},
            "teacher": _under("backbone", s) | {"head.mlp.0.weight": torch.ones(9, 9)},
            "dino_loss": {"center": torch.zeros(1, 9)},
        },
        ("stripped teacher.backbone.", "took teacher.backbone, not student.module.backbone", "teacher.head, dino_loss"),
    ),
    "one flat dict of both": Case(
        lambda s: (
            _under("student.backbone", _state(RESNET, OTHER))
            | {"student.head.0.weight": torch.ones(9, 9)}
            | _under("teacher.backbone", s)
        ),
        ("took teacher.backbone, not student.backbone", "left out the head of 10 classes, student"),
    ),
    "averaged weights": Case(
        lambda s: {"state_dict": _state(RESNET, OTHER), "state_dict_ema": s}, ("took state_dict_ema, not state_dict",)
    ),
    "an empty average": Case(lambda s: {"ema": {}, "model": s}, ("stripped model.",)),
    "MoCo": Case(
        lambda s: {
            "state_dict": _under("module.momentum_encoder", _state(RESNET, OTHER))
            | _under("module.base_encoder", s)
            | {"module.queue": torch.ones(128, 5)}
        },
        ("took state_dict.module.base_encoder, not state_dict.module.momentum_encoder", "state_dict.module.queue"),
    ),
    "lightly": Case(
        lambda s: {
            "pytorch-lightning_version": "2.5",
            "state_dict": _under("backbone", s)
            | _under("backbone_momentum", _state(RESNET, OTHER))
            | {"projection_head.layers.0.weight": torch.ones(9, 9)},
            "hyper_parameters": {"lr": 0.1},
        },
        ("stripped state_dict.backbone.", "state_dict.projection_head"),
    ),
    "an older hemafast": Case(
        lambda s: {"format": "hemafast-1", "model": _under("backbone", s), "ema": {}, "optimizer": _optimizer(s)},
        ("stripped model.backbone.", "optimizer"),
    ),
    "normalisation beside": Case(
        lambda s: _under("backbone", s) | {"scale": torch.ones(1, 3, 1, 1), "shift": torch.ones(1, 3, 1, 1)},
        ("stripped backbone.", "left out the head of 10 classes, scale, shift"),
    ),
    "no counters": Case(lambda s: {k: t for k, t in s.items() if not is_counter(k)}, ("filled 100 %",)),
    "no head": Case(lambda s: {k: t for k, t in s.items() if not k.startswith("fc.")}, ("100 %",), ("left out",)),
    "half precision": Case(lambda s: {k: t.half() if t.is_floating_point() else t for k, t in s.items()}, ("100 %",)),
    "bfloat16": Case(lambda s: {k: t.bfloat16() if t.is_floating_point() else t for k, t in s.items()}, ("100 %",)),
    "double": Case(lambda s: {k: t.double() if t.is_floating_point() else t for k, t in s.items()}, ("100 %",)),
    "parameters": Case(lambda s: {k: nn.Parameter(t, t.is_floating_point()) for k, t in s.items()}, ("100 %",)),
    "MAE": Case(
        lambda s: {"model": s | {"mask_token": torch.ones(1, 1, 64), "decoder_embed.weight": torch.ones(8, 64)}},
        ("decoder_embed",),
        name=VIT,
    ),
    "an old ViT": Case(
        lambda s: s | {"pre_logits.fc.weight": torch.ones(64, 64)}, ("filled 100 %", "pre_logits"), name=VIT
    ),
}
LOSSY = {"half precision": torch.half, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("kind", CASES)
def test_the_network_in_a_file_is_found(tmp_path, kind):
    case = CASES[kind]
    state, network = _state(case.name), _network(case.name)
    head = network.pretrained_cfg["classifier"]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    told = _load(network, case.name, case.wrap(dict(state)), tmp_path)
    for name, tensor in _body(network).items():
        wanted = state[name].to(LOSSY[kind]).float() if kind in LOSSY else state[name]
        assert torch.equal(tensor, wanted), name
        assert not torch.equal(tensor, before[name]), name
    assert torch.equal(network.state_dict()[f"{head}.weight"], before[f"{head}.weight"])
    assert not [words for words in case.said if words not in told], told
    assert not [words for words in case.unsaid if words in told], told


def test_a_head_of_the_same_classes_is_taken(tmp_path):
    state, network = _state(RESNET, classes=4), _network(RESNET)
    told = _load(network, RESNET, {"state_dict": state}, tmp_path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert "left out" not in told


def test_counters_of_batch_norm_are_taken_where_they_are(tmp_path):
    state, network = _state(RESNET), _network(RESNET)
    counters = [name for name in state if is_counter(name)]
    state |= {name: torch.tensor(5) for name in counters}
    state[counters[0]] = torch.zeros(2, 2)
    _load(network, RESNET, state, tmp_path)
    assert [int(network.state_dict()[name]) for name in counters] == [0] + [5] * (len(counters) - 1)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (3, 4), (1, 3), (4, 3), (4, 1)])
def test_a_first_convolution_is_adapted_to_other_channels(tmp_path, name, theirs, ours):
    state, network = _state(name, in_chans=theirs), _network(name, in_chans=ours)
    stem = f"{network.pretrained_cfg['first_conv']}.weight"
    told = _load(network, name, state, tmp_path)
    body = _body(network)
    assert torch.equal(body.pop(stem), adapt_input_conv(ours, state[stem], base_chans=theirs))
    assert all(torch.equal(tensor, state[key]) for key, tensor in body.items())
    assert f"{stem} adapted from {theirs} to {ours} input channels" in told
    assert "filled 100 %" in told


@pytest.mark.parametrize(("theirs", "ours"), [(64, 96), (96, 64)])
def test_a_position_embedding_is_resampled_for_another_image_size(tmp_path, theirs, ours):
    state, network = _state(VIT, img_size=theirs), _network(VIT, img_size=ours)
    told = _load(network, VIT, {"model": _under("module", state)}, tmp_path)
    grid = ours // 16
    body = _body(network)
    assert torch.equal(body.pop("pos_embed"), resample_abs_pos_embed(state["pos_embed"], [grid, grid]))
    assert all(torch.equal(tensor, state[key]) for key, tensor in body.items())
    tokens = [(side // 16) ** 2 + 1 for side in (theirs, ours)]
    assert f"pos_embed resampled from 1x{tokens[0]}x64 to 1x{tokens[1]}x64" in told
    assert "filled 100 %" in told


def _clip(state):
    """The names of OpenAI's CLIP."""
    swaps = [("blocks.", "transformer.resblocks."), ("norm_pre", "ln_pre"), ("attn.qkv.", "attn.in_proj_")]
    swaps += [("attn.proj", "attn.out_proj"), ("norm1", "ln_1"), ("norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc")]
    swaps += [("mlp.fc2", "mlp.c_proj"), ("patch_embed.proj", "conv1"), ("norm.", "ln_post.")]
    renamed = {}
    for name, tensor in state.items():
        for ours, theirs in swaps:
            name = name.replace(ours, theirs)  # noqa: PLW2901
        renamed[name] = tensor
    tokens = {"class_embedding": renamed.pop("cls_token")[0, 0], "positional_embedding": renamed.pop("pos_embed")[0]}
    return _under("visual", renamed | tokens) | {"text_projection": torch.ones(5, 5)}


def test_what_timm_can_convert_is_converted(tmp_path):
    state, network = _state(VIT), _network(VIT)
    del state["head.weight"], state["head.bias"]
    told = _load(network, VIT, _clip(state), tmp_path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in _body(network).items())
    assert "filled 100 %" in told


def test_the_registers_of_dinov2_are_converted(tmp_path):
    options = {"img_size": 64, "reg_tokens": 2, "no_embed_class": True}
    state, network = _state(VIT, **options), _network(VIT, **options)
    position = torch.cat([torch.full((1, 1, 64), 0.5), state["pos_embed"]], dim=1)
    theirs = {key: tensor for key, tensor in state.items() if key not in ("reg_token", "pos_embed")}
    theirs |= {"register_tokens": state["reg_token"], "pos_embed": position, "mask_token": torch.ones(1, 64)}
    told = _load(network, VIT, {"teacher": _under("backbone", theirs)}, tmp_path)
    body = _body(network)
    assert torch.equal(body.pop("cls_token"), state["cls_token"] + 0.5)
    assert all(torch.equal(tensor, state[name]) for name, tensor in body.items())
    assert "filled 100 %" in told and "resampled" not in told


def _vision_transformer(image_size=32):
    return torchvision.models.VisionTransformer(image_size, 16, 12, 3, 192, 768, num_classes=4)


TORCHVISION = {
    "resnet18": (torchvision.models.resnet18, "resnet18", {}),
    "efficientnet": (torchvision.models.efficientnet_b0, "efficientnet_b0", {}),
    "mobilenet": (torchvision.models.mobilenet_v3_small, "mobilenetv3_small_100", {}),
    "regnet": (torchvision.models.regnet_y_400mf, "regnety_004", {}),
    "vit": (_vision_transformer, "vit_tiny_patch16_224", {"img_size": 32}),
}


@pytest.mark.parametrize("kind", TORCHVISION)
def test_a_network_of_torchvision_answers_as_before(tmp_path, kind):
    build, name, options = TORCHVISION[kind]
    torch.manual_seed(3)
    theirs = build().eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5) if parameter.ndim == 1 else nn.init.kaiming_normal_(parameter.data)
    classes = theirs(torch.zeros(1, 3, 32, 32)).shape[1]
    network = _network(name, classes, **options).eval()
    told = _load(network, name, theirs.state_dict(), tmp_path)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        answers = theirs(images)
        torch.testing.assert_close(network(images), answers, rtol=1e-3, atol=1e-3 * float(answers.abs().max()))
    assert "filled 100 %" in told
    assert ("by order" in told) == (kind not in ("resnet18", "regnet"))


def test_layers_without_names_are_taken_by_order(tmp_path):
    """As in many scripts of SimCLR: `nn.Sequential(*list(resnet.children())[:-1])`."""
    source = _network(RESNET, seed=1)
    state = _under("backbone", nn.Sequential(*list(source.children())[:-1]).state_dict())
    network = _network(RESNET)
    told = _load(network, RESNET, {"state_dict": state | {"projection_head.0.weight": torch.ones(9, 9)}}, tmp_path)
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in _body(network).items())
    assert "by order" in told
    assert "left out state_dict.projection_head" in told


def test_a_whole_model_that_was_pickled_gives_its_tensors(tmp_path):
    source, network = _network(VIT, seed=1), _network(VIT)
    told = _load(network, VIT, {"model": source}, tmp_path)
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in _body(network).items())
    assert "read tensors only, no timm" in told


def test_what_stays_random_is_said(tmp_path):
    state, network = _state(RESNET), _network(RESNET)
    stem = "conv1.0.weight"
    before = network.state_dict()[stem].clone()
    state[stem] = torch.ones(16, 3, 7, 7)
    del state["conv1.1.bias"]
    told = _load(network, RESNET, state, tmp_path)
    assert torch.equal(network.state_dict()[stem], before)
    assert "filled 99.8 %" in told
    assert "not filled: conv1.0.weight (16x3x7x7, not 16x3x3x3), conv1.1.bias; left out the head of 10 classes" in told
    assert told.endswith("classes")


# Refusals


def _nan(state):
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    return state


def _with(state, name, tensor):
    return {**state, name: tensor}


REFUSED = {
    "another model": (
        lambda s: _state(VIT),
        ["fills only 0 %", "conv1.0.weight", "It fills 100 % of test_vit", "--model test_vit."],
    ),
    "half of it": (
        lambda s: {k: t for k, t in s.items() if not k.startswith("layer4")},
        ["layer4.0.conv1.weight", "and 12 more", "a part of it"],
    ),
    "another width": (
        lambda s: {k: t.repeat_interleave(2, 0) for k, t in s.items() if t.ndim},
        ["fills only 0 %", "conv1.0.weight (32x3x3x3, not 16x3x3x3)", "--model"],
    ),
    "no network at all": (lambda s: {"x": torch.ones(3)}, ["fills only 0 %", "none found that is like it"]),
    "NaN": (_nan, ["layer2.0.conv1.weight", "NaN or infinity (1 of"]),
    "too large": (
        lambda s: _with(s, "conv1.1.bias", torch.full((16,), 1e300, dtype=torch.float64)),
        ["conv1.1.bias", "NaN or infinity (16 of 16"],
    ),
    "integers": (lambda s: {k: t.to(torch.int8) for k, t in s.items()}, ["is int8", "takes float32", "quantised"]),
    "complex": (lambda s: _with(s, "conv1.1.bias", torch.ones(16, dtype=torch.complex64)), ["is complex64"]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(nearest_model, "_SECONDS", 1.0)
    wrap, words = REFUSED[kind]
    network = _network(RESNET)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(HemafastError) as caught:
        _load(network, RESNET, wrap(_state(RESNET)), tmp_path)
    said = str(caught.value)
    assert "stranger.pth" in said
    assert "\n" not in said
    assert not [word for word in words if word not in said], said
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def _in_blocks(state, tensors):
    """A state of a transformer with more in each of its blocks."""
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    return state | {f"blocks.{block}.{name}": tensor for block in blocks for name, tensor in tensors.items()}


OTHER_BLOCKS = {
    "layer scales that the network lacks": (
        VIT,
        lambda: _in_blocks(_state(VIT), {"ls1.gamma": torch.ones(64), "ls2.gamma": torch.ones(64)}),
        "whose blocks have no blocks.0.ls1.gamma, blocks.0.ls2.gamma",
    ),
    "more blocks": (
        VIT,
        lambda: _state(VIT) | {"blocks.6.norm1.weight": torch.ones(64)},
        "whose blocks have no blocks.6.norm1.weight",
    ),
    "low ranks beside the weights": (
        VIT,
        lambda: _in_blocks(_state(VIT), {"attn.qkv.lora_A": torch.ones(4, 64)}),
        "whose blocks have no blocks.0.attn.qkv.lora_A",
    ),
    "no layer scales": (
        "test_vit2",
        lambda: {name: one for name, one in _state("test_vit2").items() if "gamma" not in name},
        "whose blocks have blocks.*.ls1.gamma, blocks.*.ls2.gamma, which it lacks",
    ),
    "squeeze and excitation": (
        RESNET,
        lambda: _state(RESNET) | {"layer1.0.se.fc1.weight": torch.ones(8, 32, 1, 1)},
        "whose blocks have no layer1.0.se.fc1.weight",
    ),
}


@pytest.mark.parametrize("kind", OTHER_BLOCKS)
def test_a_network_with_other_layers_in_its_blocks_is_refused_however_small_they_are(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(nearest_model, "_SECONDS", 0.2)
    name, state, said = OTHER_BLOCKS[kind]
    network = _network(name)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(HemafastError, match=re.escape(said)):
        _load(network, name, state(), tmp_path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_biases_of_another_image_size_stay_random_and_that_is_said(tmp_path):
    state = _state("levit_128s")
    told = _load(_network("levit_128s", img_size=128), "levit_128s", state, tmp_path)
    assert "not filled: stages.0.blocks.0.attn.attention_biases (4x196, not 4x64)" in told


def test_buffers_that_networks_make_themselves_are_passed_over(tmp_path):
    state = _in_blocks(_state(VIT), {"attn_mask": torch.ones(4, 4), "attn.relative_position_index": torch.arange(4)})
    assert "filled 100 %" in _load(_network(VIT), VIT, state, tmp_path)


def test_what_is_not_trained_is_filled_whole_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(nearest_model, "_SECONDS", 0.2)
    state = _state(VIT)
    state["pos_embed"] = torch.ones(1, 19, 64)  # 18 patches are no square
    assert "not filled: pos_embed (1x19x64, not 1x17x64)" in _load(_network(VIT), VIT, state, tmp_path)
    stored = read_weights(tmp_path / "stranger.pth")
    with pytest.raises(HemafastError, match=r"leaves random what is not trained of test_vit: pos_embed \(1x19x64"):
        fit_weights(_network(VIT), VIT, stored, "stranger.pth", whole=True)
    assert "filled 100 %" in fit_weights(_network(RESNET), RESNET, _stored(_state(RESNET), tmp_path), "r", whole=True)


def test_the_remedy_of_a_refusal_works(tmp_path):
    content = {"state_dict": _under("module", _state(VIT))}
    with pytest.raises(HemafastError) as caught:
        _load(_network(RESNET), RESNET, content, tmp_path)
    name = re.search(r"--model (\w+)", caught.value.remedy)[1]
    assert name == VIT
    assert "filled 100 %" in _load(_network(name), name, content, tmp_path)


# Encoders of DINOv2, as published for other images, such as blood cells: no such file is at hand, so these are made up.

DINO, DEPTH = "vit_small_patch14_dinov2", 2


def _dino(side, chunk=None, width=384, gated=None, registers=0):
    """A checkpoint of its structure: a teacher's backbone and head; blocks in chunks of this length, if given.

    With `gated` hidden values, blocks have SwiGLU as those of ViT-G.
    """
    random = torch.Generator().manual_seed(0)

    def values(*shape):
        return torch.randn(shape, generator=random)

    tensors = {
        "cls_token": values(1, 1, width),
        "pos_embed": values(1, 1 + (side // 14) ** 2, width),
        "mask_token": values(1, width),
        "patch_embed.proj.weight": values(width, 3, 14, 14),
        "patch_embed.proj.bias": values(width),
        "norm.weight": values(width),
        "norm.bias": values(width),
    }
    for number in range(DEPTH):
        block = f"blocks.{number}" if chunk is None else f"blocks.{number // chunk}.{number}"
        for layer, shape in {
            **{"norm1": (width,), "norm2": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width)},
            **(
                {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
                if gated is None
                else {"mlp.w12": (2 * gated, width), "mlp.w3": (width, gated)}
            ),
        }.items():
            tensors[f"{block}.{layer}.weight"], tensors[f"{block}.{layer}.bias"] = values(*shape), values(shape[0])
        tensors[f"{block}.ls1.gamma"], tensors[f"{block}.ls2.gamma"] = values(width), values(width)
    if registers:
        tensors["register_tokens"] = values(1, registers, width)
    head = {"dino_head.mlp.0.weight": values(8, width)}
    return {"teacher": {**{f"backbone.{name}": tensor for name, tensor in tensors.items()}, **head}}


@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize(("side", "image_size"), [(224, 224), (518, 224), (224, 98)])
def test_an_encoder_of_dinov2_fills_the_transformer_of_timm(tmp_path, chunk, side, image_size):
    network = _network(DINO, img_size=image_size, depth=DEPTH)
    content = _dino(side, chunk)
    told = _load(network, DINO, content, tmp_path)
    assert "filled 100 % of the network" in told
    assert "dino_head" in told
    assert ("chunks" in told) == (chunk is not None)
    assert ("pos_embed resampled" in told) == (side != image_size)
    theirs, ours = content["teacher"], network.state_dict()
    for number in range(DEPTH):
        place = f"blocks.{number}" if chunk is None else f"blocks.{number // chunk}.{number}"
        for layer in ("attn.qkv.weight", "ls1.gamma", "mlp.fc2.bias"):
            assert torch.equal(ours[f"blocks.{number}.{layer}"], theirs[f"backbone.{place}.{layer}"])
    cells = image_size // 14
    resampled = resample_abs_pos_embed(theirs["backbone.pos_embed"], (cells, cells), num_prefix_tokens=1)
    torch.testing.assert_close(ours["pos_embed"], resampled)
    assert network(torch.zeros(1, 3, image_size, image_size)).shape == (1, 4)


@pytest.mark.parametrize("chunk", [None, 2])
def test_the_gated_blocks_of_the_largest_are_filled_too(tmp_path, chunk):
    name, width, hidden = "vit_giant_patch14_dinov2", 48, 128
    network = _network(name, img_size=224, depth=DEPTH, embed_dim=width, num_heads=4)
    content = _dino(224, chunk, width, gated=hidden)
    assert "filled 100 % of the network" in _load(network, name, content, tmp_path)
    last = f"backbone.blocks.{DEPTH - 1}" if chunk is None else f"backbone.blocks.0.{DEPTH - 1}"
    ours, theirs = network.state_dict(), content["teacher"]
    for our, their in {"fc1": "w12", "fc2": "w3"}.items():
        assert torch.equal(ours[f"blocks.{DEPTH - 1}.mlp.{our}.weight"], theirs[f"{last}.mlp.{their}.weight"])


@pytest.mark.parametrize("prefix", ["module.student.backbone", "model.teacher.backbone._orig_mod", "encoder.0.net"])
def test_an_encoder_of_dinov2_is_found_under_any_prefix(tmp_path, prefix):
    tensors = {name: one for name, one in _dino(224)["teacher"].items() if name.startswith("backbone.")}
    network = _network(DINO, img_size=224, depth=DEPTH)
    content = {name.replace("backbone", prefix, 1): tensor for name, tensor in tensors.items()}
    assert "filled 100 % of the network" in _load(network, DINO, content, tmp_path)
    assert torch.equal(network.state_dict()["blocks.1.norm2.bias"], tensors["backbone.blocks.1.norm2.bias"])


@pytest.mark.parametrize(
    ("name", "registers", "other"),
    [(DINO, 4, "vit_small_patch14_reg4_dinov2"), ("vit_small_patch14_reg4_dinov2", 0, DINO)],
)
def test_another_number_of_registers_is_refused_with_the_model_that_has_it(tmp_path, name, registers, other):
    network, content = _network(name, img_size=224, depth=DEPTH), _dino(224, registers=registers)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    said = f"of a transformer with {registers} registers, and {name} has {4 - registers}. Use --model {other}."
    with pytest.raises(HemafastError, match=re.escape(said)):
        _load(network, name, content, tmp_path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    fitting = _network(other, img_size=224, depth=DEPTH)
    assert "filled 100 %" in _load(fitting, other, content, tmp_path)


def test_the_stages_of_a_convolutional_network_are_no_chunks(tmp_path):
    network = _network(EFFICIENTNET)
    assert "chunks" not in _load(network, EFFICIENTNET, _state(EFFICIENTNET, classes=4), tmp_path)
