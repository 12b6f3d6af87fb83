"""Which parameters learn, how fast, and which of them decay."""

import copy

import pytest
import torch
from steps import CPU, batch_of, changed, network, train_on
from timm.optim import param_groups_weight_decay
from torch import nn

from hemafast.engine.optimizer import _groups, build_optimizer, load_optimizer, set_rate
from hemafast.engine.step import TrainStep
from hemafast.objective import CrossEntropy

MODELS = ["test_resnet", "test_efficientnet", "test_vit"]


def of_each(model, optimizer, field):
    """The field of its group for every parameter of the backbone, by name."""
    names = {id(parameter): name for name, parameter in model.backbone.named_parameters()}
    return {names[id(p)]: group[field] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("layer_decay", [None, 0.7])
@pytest.mark.parametrize("name", MODELS)
def test_norms_and_biases_do_not_decay_and_weights_do(name, layer_decay):
    model = network(name)
    decay = of_each(model, build_optimizer(model, weight_decay=0.05, layer_decay=layer_decay), "weight_decay")
    assert decay.keys() == {name for name, _ in model.backbone.named_parameters()}  # each once, none left out
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d | nn.LayerNorm)]
    of_norms = {id(parameter) for module in norms for parameter in module.parameters()}
    assert of_norms
    for name, parameter in model.backbone.named_parameters():
        if id(parameter) in of_norms or name.endswith("bias"):
            assert decay[name] == 0, name
        elif parameter.ndim > 1 and "token" not in name and "embed" not in name:
            assert decay[name] == 0.05, name


@pytest.mark.parametrize("decay", [0.05, 0.0])
@pytest.mark.parametrize("name", MODELS)
def test_groups_without_layer_decay_are_those_of_timm(name, decay):
    backbone = network(name).backbone
    next(backbone.parameters()).requires_grad_(False)
    plain = backbone.no_weight_decay() if name == "test_vit" else ()
    theirs = param_groups_weight_decay(backbone, decay, no_weight_decay_list=plain)
    ours = _groups(backbone, decay, None)
    assert [group["weight_decay"] for group in ours] == [group["weight_decay"] for group in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert [id(parameter) for parameter in mine["params"]] == [id(parameter) for parameter in other["params"]]


def test_embeddings_that_the_network_exempts_do_not_decay():
    model = network("test_vit")
    exempt = model.backbone.no_weight_decay()
    decay = of_each(model, build_optimizer(model, weight_decay=0.05), "weight_decay")
    present = exempt & decay.keys()
    assert present
    assert not any(decay[name] for name in present)


def test_decay_takes_its_share_of_a_weight_and_nothing_of_a_norm():
    model = network()
    optimizer = build_optimizer(model, weight_decay=0.5)
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_rate(optimizer, 0.1)
    optimizer.step()
    state = model.state_dict()
    torch.testing.assert_close(state["backbone.fc.weight"], before["backbone.fc.weight"] * (1 - 0.1 * 0.5))
    assert changed(before, model).isdisjoint({"backbone.fc.bias", "backbone.bn1.weight", "backbone.bn1.bias"})


@pytest.mark.parametrize("name", MODELS)
def test_a_layer_learns_at_its_share_of_the_rate_above_it_and_the_head_at_the_full_rate(name):
    model = network(name)
    optimizer = build_optimizer(model, weight_decay=0.05, layer_decay=0.5)
    set_rate(optimizer, 0.1)
    rates = {key: rate.item() for key, rate in of_each(model, optimizer, "lr").items()}
    head = "fc" if name == "test_resnet" else "classifier" if name == "test_efficientnet" else "head"
    assert rates[f"{head}.weight"] == rates[f"{head}.bias"] == pytest.approx(0.1)
    layers = sorted(set(rates.values()), reverse=True)
    assert len(layers) > 2
    assert all(rate == pytest.approx(0.1 * 0.5**power) for rate in layers for power in [round_power(rate)])
    first = {"test_resnet": "conv1.0.weight", "test_efficientnet": "conv_stem.weight"}.get(
        name, "patch_embed.proj.weight"
    )
    assert rates[first] == layers[-1]  # depth sets the rate
    depths = {"test_resnet": "layer{}.0.conv1.weight", "test_vit": "blocks.{}.norm1.weight"}.get(name)
    if depths:
        numbers = (1, 2, 3, 4) if name == "test_resnet" else range(len(model.backbone.blocks))
        rising = [rates[depths.format(number)] for number in numbers]
        assert rising == sorted(set(rising))


def round_power(rate: float) -> int:
    """Which power of 1/2 times 0.1 the rate is next to."""
    return round(-torch.tensor(rate / 0.1).log2().item())


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_the_rate_is_set_in_place_so_that_a_captured_graph_sees_it(layer_decay):
    optimizer = build_optimizer(network(), weight_decay=0.05, layer_decay=layer_decay)
    places = [group["lr"].data_ptr() for group in optimizer.param_groups]
    for rate in (0.1, 0.02):
        set_rate(optimizer, rate)
        found = [group["lr"].item() / group.get("lr_scale", 1.0) for group in optimizer.param_groups]
        assert found == pytest.approx([rate] * len(found))
    assert [group["lr"].data_ptr() for group in optimizer.param_groups] == places
    assert len(set(places)) == len(places)


def test_an_update_is_the_one_of_plain_adamw():
    ours, theirs = network("test_vit"), network("test_vit")
    train_on(TrainStep(ours, CrossEntropy(), build_optimizer(ours, weight_decay=0.0), CPU), batch_of(8), lr=1e-3)
    CrossEntropy()(theirs(batch_of(8).images), batch_of(8).labels).backward()
    torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.0, fused=False).step()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


def test_what_is_frozen_is_no_part_of_the_optimizer():
    model = network()
    model.freeze(stages=2, norm=True)
    optimizer = build_optimizer(model, weight_decay=0.05)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(held) < len(list(model.parameters()))


def test_moments_are_taken_over_and_settings_are_those_of_now():
    model, again = network(), network(seed=1)
    optimizer = build_optimizer(model, weight_decay=0.05)
    train_on(TrainStep(model, CrossEntropy(), optimizer, CPU), batch_of(8), batch_of(8, 1), lr=1e-2)
    other = build_optimizer(again, weight_decay=0.2)
    load_optimizer(other, copy.deepcopy(optimizer.state_dict()))
    for old, new in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in ("step", "exp_avg", "exp_avg_sq"))
    assert {group["weight_decay"] for group in other.param_groups} == {0.0, 0.2}
    rates = [group["lr"] for group in other.param_groups]
    set_rate(other, 0.5)
    assert all(rate.item() == 0.5 for rate in rates)


def test_a_state_of_another_network_is_refused():
    state = build_optimizer(network("test_vit"), weight_decay=0.05).state_dict()
    with pytest.raises((ValueError, KeyError)):
        load_optimizer(build_optimizer(network(), weight_decay=0.05), state)
