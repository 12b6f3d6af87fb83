"""Settings: presets, and refusals that name the field."""

import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from hemafast.config import PRESETS, PrepareConfig, TrainConfig, checked, to_json, to_plain, train_config
from hemafast.errors import HemafastError


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_fields_and_the_defaults(preset):
    config = train_config(preset)
    for name, value in PRESETS[preset].items():
        assert getattr(config, name) == value
    for name in {field.name for field in fields(TrainConfig)} - PRESETS[preset].keys() - {"preset"}:
        assert getattr(config, name) == getattr(TrainConfig(), name)
    assert config.preset == preset


def test_the_seed_preset_is_the_reference():
    config = train_config("seed")
    assert config == TrainConfig()
    assert (config.model, config.epochs, config.batch_size, config.image_size) == ("resnet18", 30, 32, 224)
    assert (config.lr, config.weight_decay, config.onecycle, config.label_smoothing) == (1e-4, 0.01, False, 0.0)


def test_what_is_asked_for_goes_before_the_preset():
    config = train_config("quick", epochs=2, model="resnet18", onecycle=False)
    assert (config.epochs, config.model, config.onecycle) == (2, "resnet18", False)
    assert config.lr == PRESETS["quick"]["lr"]


def test_what_is_not_asked_for_stays_with_the_preset():
    assert train_config("quick", epochs=None, lr=None) == train_config("quick")


def test_an_unknown_preset_is_refused_and_the_known_ones_are_named():
    with pytest.raises(HemafastError, match="'fast'") as caught:
        train_config("fast")
    assert all(preset in caught.value.remedy for preset in PRESETS)


REFUSED = [
    ("unheard_of", 1),
    ("epochs", 0),
    ("epochs", "many"),
    ("epochs", 2.5),
    ("batch_size", 1),
    ("image_size", 31),
    ("image_size", 1025),
    ("lr", 0),
    ("lr", -1e-4),
    ("lr", float("nan")),
    ("lr", float("inf")),
    ("weight_decay", -0.1),
    ("weight_decay", float("inf")),
    ("label_smoothing", 1.0),
    ("label_smoothing", -0.1),
    ("label_smoothing", float("nan")),
    ("policy", "wild"),
    ("amp", "int8"),
    ("device", "tpu"),
    ("threads", 0),
    ("seed", -1),
]


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_a_value_out_of_range_is_refused_and_its_field_named(field, value):
    with pytest.raises(HemafastError) as caught:
        train_config("seed", **{field: value})
    assert caught.value.problem.startswith(f"{field} = {value!r}")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("val_fraction", 1),
        ("val_fraction", float("nan")),
        ("folds", 1),
        ("folds", 101),
        ("max_quarantined", -0.1),
        ("max_quarantined", 1.1),
        ("strict", "maybe"),
        ("format", "tar"),
        ("shards", 0),
        ("shards", 10000),
        ("seed", -1),
        ("classes", "mine"),
        ("sauce", "Source"),
    ],
)
def test_preparing_is_checked_too(field, value):
    with pytest.raises(HemafastError) as caught:
        checked(PrepareConfig, {field: value})
    assert caught.value.problem.startswith(f"{field} = {value!r}")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"pack_sizes": ()}, "pack_sizes"),
        ({"pack_sizes": (31,)}, "pack_sizes.0"),
        ({"pack_sizes": (64, 1025)}, "pack_sizes.1"),
        ({"field_of_view": 0}, "field_of_view"),
        ({"field_of_view": float("inf")}, "field_of_view"),
        ({"field_of_view": "wide"}, "field_of_view"),
        ({"um_per_pixel": {"A": 0}}, "um_per_pixel.A"),
        ({"um_per_pixel": {"A": "wide"}}, "um_per_pixel.A"),
        ({"val_fraction": 0}, "val_fraction = 0"),
        ({"folds": 5, "holdout_domain": "A"}, "folds and holdout_domain"),
        ({"folds": 5, "split_file": "a.csv"}, "folds and split_file"),
        ({"holdout_domain": "A", "split_file": "a.csv"}, "holdout_domain and split_file"),
        ({"groups": "g.csv", "split_file": "a.csv"}, "groups"),
        ({"group_pattern": "(.)", "split_file": "a.csv"}, "groups"),
        ({"group_pattern": "(.)", "groups": "g.csv"}, "groups and group_pattern"),
        ({"group_pattern": "(."}, "group_pattern"),
        ({"group_pattern": "[0-9]+"}, "group_pattern = '[0-9]+' captures nothing"),
    ],
)
def test_settings_that_cannot_be_are_named(fields, named):
    with pytest.raises(HemafastError) as caught:
        checked(PrepareConfig, fields)
    assert caught.value.problem.startswith(named)
    assert caught.value.remedy


@pytest.mark.parametrize("config", [TrainConfig(), PrepareConfig()])
def test_settings_are_frozen(config):
    with pytest.raises(FrozenInstanceError):
        config.seed = 1


@pytest.mark.parametrize(
    "config",
    [
        train_config("quick", weights=Path("a.pth"), threads=3, data=Path("elsewhere")),
        train_config("seed"),
        PrepareConfig(source=Path("a"), output=Path("b"), classes="from-data"),
        PrepareConfig(pack_sizes=(256, 128), um_per_pixel={"A": 0.1}, groups=Path("g.csv"), holdout_domain="A"),
    ],
)
def test_settings_come_back_from_json_as_they_were(config):
    assert checked(type(config), json.loads(to_json(config))) == config
    assert checked(type(config), to_plain(config)) == config
