"""The model: uint8 in, logits out, normalised in the graph."""

import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional

from hemafast.errors import HemafastError
from hemafast.model import Classifier, build_initial_model, build_model

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


def test_an_image_size_that_the_patches_do_not_divide_is_refused():
    with pytest.raises(HemafastError, match="72"):
        build_model("test_vit", 5, 72)(_images(1, 72))


def test_the_same_seed_gives_the_same_weights():
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build_model("test_efficientnet", 5, SIZE).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_the_first_model_says_where_its_weights_came_from():
    model, origin = build_initial_model("test_resnet", 7, SIZE, pretrained="no", weights=None)
    assert origin.kind == "random"
    assert model(_images()).shape == (2, 7)
