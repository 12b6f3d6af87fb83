"""Heat maps: where they are warm, in networks of every shape, and how they leave the model."""

import sys

import numpy as np
import pytest
import torch
from exported import CARD, random_model
from torch import nn
from torch.nn import functional

from hemafast.deploy.heat import heat_maps, overlays
from hemafast.errors import HemafastError
from hemafast.model import Classifier, build_model

SIDE, GRID = 64, 8
METHODS = ("gradcam", "gradcam++", "hirescam", "layercam", "eigencam")
RED, GREEN = 0, 1


class Colours(nn.Module):
    """How much red and green there is, by hand; features as "maps", maps with channels "last", or "tokens"."""

    num_features = 2
    num_prefix_tokens = 1

    def __init__(self, form="maps", places=slice(None)):
        super().__init__()
        self.form, self.places = form, places
        self.colour = nn.Conv2d(3, 2, 1)
        self.shape, self.head = nn.Identity(), nn.Linear(2, 2)
        with torch.no_grad():
            self.colour.weight.copy_(torch.tensor([[1.0, -1, -1], [-1, 1, -1]])[:, :, None, None])
            self.colour.bias.zero_()
            self.head.weight.copy_(torch.eye(2))
            self.head.bias.zero_()

    def forward(self, images):
        features = functional.avg_pool2d(self.colour(images).relu(), SIDE // GRID)
        if self.form == "last":
            features = self.shape(features.permute(0, 2, 3, 1))
            return self.head(features[:, self.places, self.places].mean(dim=(1, 2)))
        if self.form == "tokens":
            tokens = features.flatten(2).transpose(1, 2)
            tokens = self.shape(torch.cat([torch.full_like(tokens[:, :1], 9.0), tokens], dim=1))
            return self.head(tokens[:, 1:].mean(dim=1))
        return self.head(self.shape(features)[:, :, self.places, self.places].mean(dim=(2, 3)))


def classifier(backbone):
    """Pixels reach the network as shares of full scale."""
    return Classifier(backbone, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()


def two_spots():
    """A red spot at the top left and a green one at the bottom right, which is the larger: uint8 (1, side, side, 3)."""
    image = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    image[:, 8:24, 8:24, RED] = 255
    image[:, 32:64, 40:64, GREEN] = 255
    return image


def centre_of(heat):
    """Row and column of the centre of mass of a map."""
    rows, columns = np.indices(heat.shape)
    return (heat * rows).sum() / heat.sum(), (heat * columns).sum() / heat.sum()


@pytest.mark.parametrize("form", ["maps", "last", "tokens"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "eigencam"])
def test_the_heat_of_a_class_lies_where_its_colour_is(form, method):
    model = classifier(Colours(form))
    (red,) = heat_maps(model, two_spots(), [RED], method=method)
    (green,) = heat_maps(model, two_spots(), [GREEN], method=method)
    assert centre_of(red) == pytest.approx((15.5, 15.5), abs=1)
    assert centre_of(green) == pytest.approx((47.5, 51.5), abs=1)
    assert red[30:].max() == green[:26].max() == 0


def test_without_classes_the_predicted_one_is_explained():
    model = classifier(Colours())
    np.testing.assert_array_equal(heat_maps(model, two_spots()), heat_maps(model, two_spots(), [GREEN]))


@pytest.mark.parametrize("method", ["hirescam", "layercam"])
@pytest.mark.parametrize("form", ["maps", "last"])
def test_a_network_that_looks_at_one_quadrant_is_warm_there_alone(form, method):
    model = classifier(Colours(form, places=slice(0, GRID // 2)))
    everywhere = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    everywhere[..., RED] = 255
    (heat,) = heat_maps(model, everywhere, [RED], method=method)
    assert centre_of(heat) == pytest.approx((15.5, 15.5), abs=1.5)
    assert heat[40:].max() == heat[:, 40:].max() == 0


def test_an_eigencam_shows_the_strongest_feature_whatever_the_class():
    model = classifier(Colours())
    red, green = (heat_maps(model, two_spots(), [label], method="eigencam") for label in (RED, GREEN))
    np.testing.assert_array_equal(red, green)
    assert centre_of(green[0]) == pytest.approx((47.5, 51.5), abs=4)


def test_an_image_in_which_nothing_speaks_for_the_class_has_no_heat():
    black = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    views = np.concatenate([two_spots(), black])
    heat = heat_maps(classifier(Colours()), views, [RED, RED])
    assert heat[0].max() == pytest.approx(1)
    assert heat[1].max() == 0


def views_of(count, side=SIDE):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def scaled(maps):
    """Each of (n, side, side) from 0 to 1."""
    maps = maps - maps.amin(dim=(1, 2), keepdim=True)
    return maps / maps.amax(dim=(1, 2), keepdim=True)


def as_heat(maps):
    """The positive parts of maps (n, side, side), bilinear at the size of the views."""
    positive = scaled(maps.clamp(min=0))[:, None]
    return scaled(functional.interpolate(positive, size=SIDE, mode="bilinear")[:, 0]).numpy()


def test_on_mean_pooled_features_it_is_the_class_activation_map():
    torch.manual_seed(0)
    model = build_model("test_efficientnet", 3, SIDE).eval()
    views, classes = views_of(4), [2, 0, 1, 1]
    normal = torch.addcmul(model.shift, torch.from_numpy(views).permute(0, 3, 1, 2).float(), model.scale)
    with torch.inference_mode():
        features = model.backbone.forward_features(normal)
        maps = torch.einsum("nchw,nc->nhw", features, model.backbone.get_classifier().weight[classes])
    np.testing.assert_allclose(heat_maps(model, views, classes), as_heat(maps), atol=1e-3)


def test_a_transformer_is_read_before_its_last_attention_without_its_class_token():
    torch.manual_seed(0)
    model = build_model("test_vit", 3, SIDE).eval()
    views, classes = views_of(3), [2, 0, 1]
    kept = []
    hook = model.backbone.blocks[-1].norm1.register_forward_hook(lambda *of: kept.append(of[2]))
    logits = model(torch.from_numpy(views).permute(0, 3, 1, 2))
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[range(3), classes].sum(), kept[0])
    features, weights = kept[0][:, 1:], gradient[:, 1:].mean(dim=1)
    maps = torch.einsum("ntc,nc->nt", features, weights).detach().reshape(3, 4, 4)
    np.testing.assert_allclose(heat_maps(model, views, classes), as_heat(maps), atol=1e-3)


@pytest.mark.parametrize(
    "name",
    ["test_resnet", "test_convnext", "test_mambaout", "test_nfnet", "test_byobnet", "mobilenetv3_small_050"],
)
def test_networks_of_all_kinds_have_a_map_to_read(name):
    torch.manual_seed(0)
    model = build_model(name, 3, SIDE).eval()
    heat = heat_maps(model, views_of(2), method="hirescam")
    assert heat.shape == (2, SIDE, SIDE)
    assert heat.dtype == np.float32
    assert heat.min() >= 0
    assert heat.max() == pytest.approx(1, abs=1e-3)


def test_a_last_map_of_one_place_is_passed_over():
    model = random_model()
    assert model.backbone.forward_features(torch.zeros(1, 3, 32, 32)).shape[2:] == (1, 1)
    heat = heat_maps(model, views_of(8, side=32), method="layercam")
    assert (heat.std(axis=(1, 2)) > 0.01).all()


class Flat(nn.Module):
    num_features = 6

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, images):
        return self.head(self.layer(images.mean(dim=(2, 3))))


def test_a_network_without_a_map_is_refused_and_left_as_it_was():
    model = classifier(Flat())
    with pytest.raises(HemafastError, match=r"no feature map.*64 px"):
        heat_maps(model, views_of(1))
    assert not any(layer._forward_hooks for layer in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_model_is_left_as_it_was_found():
    model = random_model()
    model.freeze(stages=2, norm=True)
    model.train()
    model.backbone.layer3.eval()
    model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).sum().backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learns = [parameter.requires_grad for parameter in model.parameters()]
    grads = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]
    modes = [layer.training for layer in model.modules()]
    assert True in learns and False in learns and None in grads
    heat_maps(model, views_of(3, side=32))
    assert [parameter.requires_grad for parameter in model.parameters()] == learns
    assert [layer.training for layer in model.modules()] == modes
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in model.modules())


def test_a_frozen_network_is_read_all_the_same_and_where_gradients_are_off():
    model = random_model()
    views = views_of(2, side=32)
    expected = heat_maps(model, views)
    model.requires_grad_(False)
    with torch.no_grad():
        np.testing.assert_array_equal(heat_maps(model, views), expected)
        assert not torch.is_grad_enabled()


def test_many_images_are_as_one_by_one():
    model, views = random_model(), views_of(35, side=32)
    together = heat_maps(model, views, method="hirescam")
    one_by_one = np.concatenate([heat_maps(model, view[None], method="hirescam") for view in views])
    np.testing.assert_allclose(together, one_by_one, atol=1e-3)


def test_an_overlay_is_warm_where_the_heat_is_and_keeps_the_image_below():
    views = two_spots()
    (red,) = overlays(classifier(Colours()), views, [RED])
    assert red.shape == (SIDE, SIDE, 3) and red.dtype == np.uint8
    warm, cold = red[12:20, 12:20].mean(axis=(0, 1)), red[:6, 58:].mean(axis=(0, 1))
    assert warm[0] > warm[2]  # from blue to red
    assert cold[2] > cold[0]
    assert red[40:, 48:, 1].mean() > cold[1] + 50  # the green spot shines through


def test_no_images_have_no_overlays():
    assert overlays(random_model(), views_of(0)).shape == (0, SIDE, SIDE, 3)


def test_without_grad_cam_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(HemafastError, match=r"pytorch_grad_cam.*pip install 'hemafast\[explain\]'"):
        overlays(random_model(CARD), views_of(1))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_printed(method, capfd):
    overlays(random_model(), views_of(1, side=32), method=method)
    assert capfd.readouterr() == ("", "")
