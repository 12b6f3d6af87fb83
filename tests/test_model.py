"""The model: uint8 in, logits out, normalised in the graph."""

import copy

import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional

from hemafast.errors import HemafastError
from hemafast.model import Classifier, build_model
from hemafast.pixel_constants import LEVELS

SIZE = 64


def _images(count=2, size=SIZE):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return images.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.0,) * 3, (1.0,) * 3)],
)
def test_pixels_are_normalised_as_torchvision_does(mean, std):
    images = _images()
    found = Classifier(nn.Identity(), mean, std)(images)
    expected = functional.normalize(functional.to_dtype(images, torch.float32, scale=True), mean, std)
    assert (found - expected).abs().max() < 1e-5


def test_a_network_that_standardises_sees_no_other_camera_but_in_training():
    """There, the input graph does it, before it changes colours on purpose."""
    model = Classifier(nn.Identity(), (0.0,) * 3, (1.0,) * 3, standardize=True)
    images = torch.randint(60, 120, (2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).float()
    gain, shift = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.5, 1.5, 2.0), (30.0, -40.0, 10.0)))
    torch.testing.assert_close(model(images), images / 255)
    model.eval()
    seen = model(images)
    # Not exactly, because bright pixels are cut off.
    torch.testing.assert_close(255 * seen.mean((0, 2, 3)), torch.tensor(LEVELS), atol=3, rtol=0)
    assert (255 * (model(images * gain + shift) - seen)).abs().mean() < 4


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_network_of_quarter_turns_answers_the_same_for_a_turned_image(turns):
    model = build_model("test_resnet", 3, SIZE).eval()
    images = _images()
    once = model(images)

    model.quarter_turns = True
    logits, features = model.answers(images)
    turned = model.answers(torch.rot90(images, turns, (2, 3)))

    torch.testing.assert_close(turned, (logits, features), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(images), logits, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits, once, atol=1e-3)


def test_quarter_turns_wait_until_training_ends():
    model = build_model("test_resnet", 3, SIZE).train()
    passes = []
    model.backbone.register_forward_pre_hook(lambda *_: passes.append(1))

    model.quarter_turns = True
    model(_images())

    assert len(passes) == 1


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_the_backbone_sees_the_normalisation_it_was_made_for(name):
    model = build_model(name, 5, SIZE).eval()
    images = _images()
    cfg = model.backbone.pretrained_cfg
    assert (model.mean, model.std) == (tuple(cfg["mean"]), tuple(cfg["std"]))
    by_hand = functional.normalize(images.float() / 255, cfg["mean"], cfg["std"])
    with torch.no_grad():
        torch.testing.assert_close(model(images), model.backbone(by_hand), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
@pytest.mark.parametrize("size", [64, 96])
def test_models_of_every_kind_take_the_image_size_and_learn(name, size):
    model = build_model(name, 5, size)
    logits = model(_images(3, size))
    assert logits.shape == (3, 5)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_images_reach_the_backbone_in_channels_last():
    seen = []

    class Looking(nn.Module):
        def forward(self, images):
            seen.append(images)
            return images

    Classifier(Looking(), (0.5,) * 3, (0.5,) * 3)(_images())
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert seen[0].dtype == torch.float32


def test_weights_are_in_channels_last():
    kernels = [p for p in build_model("test_resnet", 5, SIZE).parameters() if p.ndim == 4 and p.shape[2] > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_images_are_not_divided_by_nothing():
    with pytest.raises(ValueError, match="deviations"):
        build_model("test_resnet", 5, SIZE).normalise_by((0.5,) * 3, (0.2, float("nan"), 0.2))


def test_normalisation_is_no_part_of_the_weights():
    state = build_model("test_resnet", 5, SIZE).state_dict()
    assert all(name.startswith("backbone.") for name in state)


@pytest.mark.parametrize(("name", "near"), [("resnet_18", "resnet18"), ("efficientnet_b00", "efficientnet_b0")])
def test_an_unknown_model_is_refused_and_near_ones_are_named(name, near):
    with pytest.raises(HemafastError, match=name) as caught:
        build_model(name, 5, SIZE)
    assert near in caught.value.remedy


def test_a_model_like_no_other_is_refused_too():
    with pytest.raises(HemafastError, match="qqqqqq") as caught:
        build_model("qqqqqq", 5, SIZE)
    assert "list_models" in caught.value.remedy


def test_an_unknown_tag_of_a_known_model_is_refused():
    with pytest.raises(HemafastError, match="nonsense"):
        build_model("test_resnet.nonsense", 5, SIZE)


def test_an_image_size_that_does_not_fit_is_refused_when_the_network_is_built():
    with pytest.raises(HemafastError, match="72") as caught:
        build_model("test_vit", 5, 72)
    assert "--image-size" in caught.value.remedy


def test_a_new_model_is_ready_to_learn():
    model = build_model("test_resnet", 5, SIZE)
    assert all(module.training for module in model.modules())
    assert not any(parameter.is_inference() for parameter in model.parameters())
    assert all(int(norm.num_batches_tracked) == 0 for norm in _norms(model))


def test_the_same_seed_gives_the_same_weights():
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build_model("test_efficientnet", 5, SIZE).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


# Dropout


def test_dropout_is_the_model_s_own_unless_asked_for():
    assert build_model("test_vit", 5, SIZE).backbone.head_drop.p == 0
    assert build_model("test_vit", 5, SIZE, dropout=0.3).backbone.head_drop.p == 0.3
    assert build_model("test_resnet", 5, SIZE, dropout=0.3).backbone.drop_rate == 0.3


def test_drop_path_rises_with_depth_to_the_rate_asked_for():
    blocks = build_model("test_vit", 5, SIZE, drop_path=0.2).backbone.blocks
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates[-1] == pytest.approx(0.2)
    assert rates == sorted(set(rates))


def test_a_rate_that_a_model_does_not_know_is_refused():
    with pytest.raises(HemafastError, match="drop_path_rate") as caught:
        build_model("vgg11", 5, SIZE, drop_path=0.1)
    assert "--drop-path" in caught.value.remedy


# Freezing


def _norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def _step(model):
    """Train a little, over batches that would move running statistics far, and return the names of what has changed."""
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for _ in range(3):
        model.train()
        optimizer.zero_grad()
        model(_images(4) // 2).square().mean().backward()
        optimizer.step()
        model.eval()(_images(4))
    return {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}


def test_without_freezing_statistics_and_weights_move():
    moved = _step(build_model("test_resnet", 5, SIZE))
    assert {"backbone.bn1.running_mean", "backbone.bn1.weight", "backbone.conv1.0.weight"} <= moved


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_frozen_norms_are_bit_for_bit_what_they_were_and_the_rest_learns(name):
    model = build_model(name, 5, SIZE)
    model.freeze(norm=True)
    of_norms = {
        f"{prefix}.{part}"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for part in module.state_dict()
    }
    moved = _step(model)
    assert of_norms
    assert not moved & of_norms
    assert moved
    assert model.train().training
    assert not any(norm.training for norm in _norms(model))


@pytest.mark.parametrize(
    ("name", "stages", "frozen"),
    [
        ("test_resnet", 1, ("conv1", "bn1")),
        ("test_resnet", 3, ("conv1", "bn1", "layer1", "layer2")),
        ("test_efficientnet", 2, ("conv_stem", "bn1", "blocks.0")),
        ("test_vit", 1, ("patch_embed", "pos_embed", "cls_token", "reg_token")),
    ],
)
def test_frozen_stages_are_bit_for_bit_what_they_were_and_the_rest_learns(name, stages, frozen):
    model = build_model(name, 5, SIZE)
    model.freeze(stages=stages)
    held = {
        key for key in model.state_dict() if key.removeprefix("backbone.").startswith(tuple(f"{f}" for f in frozen))
    }
    assert held
    moved = _step(model)
    assert not moved & held
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning.isdisjoint(held)
    assert learning == {name for name, _ in model.named_parameters()} - held
    assert {key for key in moved if "running_mean" in key} == {
        key for key in model.state_dict() if "running_mean" in key and key not in held
    }


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_freezing_may_leave_the_classifier_and_no_less(name):
    model = build_model(name, 5, SIZE)
    with pytest.raises(HemafastError, match="freeze_stages = 99") as caught:
        model.freeze(stages=99)
    most = int(caught.value.problem.split("has ")[1].split()[0])
    model.freeze(stages=most)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.rpartition(".")[2] for name in learning} == {"weight", "bias"}
    assert len(learning) == 2
    with pytest.raises(HemafastError, match=f"this model has {most}"):
        build_model(name, 5, SIZE).freeze(stages=most + 1)


def test_levels_are_the_features_and_mean_and_spread_of_every_level():
    model = build_model("test_efficientnet", 3, 64).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        found, features = model.levels(images), model.features(images)
        maps = model.backbone.forward_intermediates(images * model.scale + model.shift, intermediates_only=True)
    width = features.shape[1]
    torch.testing.assert_close(found[:, :width], features)
    means = torch.cat([part for one in maps for part in (one.mean((2, 3)), one.std((2, 3)))], dim=1)
    torch.testing.assert_close(found[:, width:], means)
