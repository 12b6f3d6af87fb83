"""The timm model that a file belongs to is found by names and shapes, within seconds."""

import pytest
import timm
import torch

from hemafast import nearest_model as module
from hemafast.nearest_model import body_of, nearest_model


def _shapes(name, **options):
    return {key: tuple(tensor.shape) for key, tensor in body_of(timm.create_model(name, **options)).items()}


HEAD = {"projection_head.0.weight": (64, 64)}


@pytest.mark.parametrize(
    ("name", "beside", "options"),
    [
        ("resnet18", "resnet50", {}),
        ("test_vit", "test_resnet", {}),
        ("test_vit", "resnet18", {"img_size": 64}),
    ],
)
def test_a_model_is_known_by_its_shapes(name, beside, options):
    found = nearest_model([{"x": (3,)}, _shapes(name, **options) | HEAD], [], beside)
    assert (found.name, found.share) == (name, 1.0)


@pytest.mark.parametrize("word", ["test_byobnet", "test"])
def test_a_model_that_the_file_names_comes_first(monkeypatch, word):
    tried = []
    shapes = module._shapes
    monkeypatch.setattr(module, "_shapes", lambda name: tried.append(name) or shapes(name))
    found = nearest_model([_shapes("test_byobnet")], ["hello", word], "resnet18")
    assert found.name == "test_byobnet"
    assert tried == ["resnet18", "test_byobnet"]


def test_the_model_with_most_in_common_wins_over_one_that_is_part_of_the_file():
    """Every tensor of resnet18 is in a file of resnet34."""
    assert nearest_model([_shapes("resnet34")], [], "resnet18").name == "resnet34"


@pytest.mark.parametrize("places", [[], [{}], [{"x": (3,)}]])
def test_nothing_alike_is_none(monkeypatch, places):
    monkeypatch.setattr(module, "_LARGEST_FAMILIES", 2)
    assert nearest_model(places, [], "test_resnet") is None


def test_the_search_ends_in_time(monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    assert nearest_model([_shapes("resnet18")], [], "resnet50") is None


def test_the_search_draws_no_random_numbers():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    nearest_model([{"blocks.0.norm1.weight": (64,)}], ["test_vit", "test_resnet"], "test_efficientnet")
    assert torch.equal(torch.get_rng_state(), before)
