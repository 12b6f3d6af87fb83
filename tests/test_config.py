"""Settings: where each comes from, and refusals that name the field."""

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from hemafast.config import READ, PrepareConfig, TrainConfig, checked, located, to_json, to_plain, train_config
from hemafast.errors import HemafastError
from hemafast.presets import PRESETS

TOML = """
preset = "quick"
epochs = 7
data = "elsewhere"
crop_area = [0.5, 1.0]
track = ["wandb", "mlflow"]
freeze_norm = true
batch_size = "auto"
"""


@pytest.fixture
def write(tmp_path):
    """`write(text, name="settings.toml")`: the file."""

    def make(text: str, name: str = "settings.toml") -> Path:
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return file

    return make


def test_the_defaults_are_the_reference():
    config = TrainConfig()
    assert config == train_config() == train_config("baseline")
    assert (config.model, config.epochs, config.batch_size, config.image_size) == ("resnet18", 30, 32, 224)
    assert (config.lr, config.weight_decay, config.schedule, config.label_smoothing) == (1e-4, 0.01, "constant", 0.0)
    assert (config.loss, config.policy, config.sampler) == ("cross-entropy", "seed", "natural")


def test_what_is_asked_for_goes_before_the_preset():
    config = train_config("quick", epochs=2, model="resnet18", schedule="constant", label_smoothing=0)
    assert (config.epochs, config.model, config.schedule, config.label_smoothing) == (2, "resnet18", "constant", 0)
    assert config.lr == PRESETS["quick"]()["lr"]


def test_what_is_not_asked_for_stays_with_the_preset():
    assert train_config("quick", epochs=None, lr=None) == train_config("quick")


def test_an_unknown_preset_is_refused_and_the_known_ones_are_named():
    with pytest.raises(HemafastError, match="'fasst'") as caught:
        train_config("fasst")
    assert all(preset in caught.value.remedy for preset in PRESETS)


def test_a_file_stands_between_the_preset_and_what_is_asked_for(write):
    """Each of the four layers says the epochs; the last that says something has it."""
    empty, file = write("", "empty.toml"), write("epochs = 7\nlr = 0.5\n")
    assert train_config("baseline", empty).epochs == 30
    assert train_config("quick", empty).epochs == 5
    assert train_config("quick", file).epochs == 7
    assert train_config("quick", file, epochs=9).epochs == 9
    assert train_config("quick", file, epochs=9) == replace(train_config("quick"), epochs=9, lr=0.5)


def test_the_preset_that_a_file_names_is_where_it_starts(write):
    file = write('preset = "quick"\nepochs = 7\n')
    assert train_config(file=file) == replace(train_config("quick"), epochs=7)
    assert train_config("best", file) == replace(train_config("best"), epochs=7)


def test_toml_and_json_say_the_same(write):
    plain = {
        "preset": "quick",
        "epochs": 7,
        "data": "elsewhere",
        "crop_area": [0.5, 1.0],
        "track": ["wandb", "mlflow"],
        "freeze_norm": True,
        "batch_size": "auto",
    }
    config = train_config(file=write(TOML))
    assert config == train_config(file=write(json.dumps(plain), "settings.json"))
    assert (config.data, config.crop_area, config.track) == (Path("elsewhere"), (0.5, 1.0), ("wandb", "mlflow"))
    assert (config.freeze_norm, config.batch_size, config.lr) == (True, "auto", PRESETS["quick"]()["lr"])


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        train_config("best", drop_path=0.3, crop_area=(0.2, 0.9), track=("wandb", "trackio"), fold=2),
        replace(train_config("best"), drop_path=None, ema=None),  # what was taken away from the preset stays away
        train_config("quick", weights=Path("a b.pth"), data=Path("/elsewhere"), batch_size="auto", save_every=0.5),
    ],
)
def test_the_file_of_a_run_gives_its_very_settings(write, config):
    assert train_config(file=write(to_json(config), "config.json")) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rate = 0.1", ["learning_rate"]),
        ("batch-size = 8", ["batch-size", "batch_size?"]),
        ("epoch = 8", ["epoch ", "epochs?"]),
        ("[train]\nepochs = 3", ["train "]),
        ("epochs = 0", ["epochs = 0", "greater than or equal to 1"]),
        ('lr = "fast"', ["lr = 'fast'", "number"]),
        ('sampler = "odd"', ["'odd'", "mixed:0.66"]),
        ("crop_area = [1.0, 0.5]", ["crop_area = (1.0, 0.5)"]),
        ("preset = 3", ["preset = 3"]),
        ('track = ["tensorbored"]', ["track.0 = 'tensorbored'", "mlflow"]),
        ("lr = nan", ["lr = nan"]),
        ("epochs = 3\nepochs = 4", ["cannot be read"]),
        ("epochs: 3", ["cannot be read", "JSON, or TOML"]),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_its_name_and_the_setting(write, text, words):
    file = write(text)
    with pytest.raises(HemafastError) as caught:
        train_config(file=file)
    assert str(file) in caught.value.problem
    assert all(word in str(caught.value) for word in words), caught.value
    assert caught.value.remedy


def test_an_unknown_preset_in_a_file_is_refused(write):
    with pytest.raises(HemafastError, match="'fasst'"):
        train_config(file=write('preset = "fasst"'))


@pytest.mark.parametrize("text", ["[1, 2]", "3", '"epochs"', "null", "", "epochs = 3", "# no table", "{"])
def test_a_file_without_a_json_table_is_refused(write, text):
    file = write(text, "settings.json")
    with pytest.raises(HemafastError, match=r"settings\.json"):
        train_config(file=file)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("none.toml", "binary.toml", "."):
        with pytest.raises(HemafastError, match="cannot be read"):
            train_config(file=tmp_path / name)


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
    ("batch_size", "many"),
    ("accumulate", 0),
    ("dropout", 1.0),
    ("drop_path", -0.1),
    ("freeze_stages", -1),
    ("mixup", -0.1),
    ("cutmix", 11),
    ("schedule", "steps"),
    ("warmup", 1.0),
    ("layer_decay", 0),
    ("clip_grad", 0),
    ("ema", 1.0),
    ("loss", "hinge"),
    ("focal_gamma", -1),
    ("logit_tau", 6),
    ("lineage_weight", -0.1),
    ("lineage_weight", 11),
    ("stage_temperature", -0.1),
    ("stage_temperature", float("inf")),
    ("compile_mode", "fast"),
    ("save_every", 0),
    ("keep", 0),
    ("on_nonfinite", "ignore"),
    ("nonfinite_budget", -1),
    ("track", "wandb"),
    ("fold", -1),
]


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_a_value_out_of_range_is_refused_and_its_field_named(field, value):
    with pytest.raises(HemafastError) as caught:
        train_config("baseline", **{field: value})
    assert caught.value.problem.startswith(f"{field} = {value!r}")
    assert caught.value.remedy


def test_a_value_of_no_allowed_type_is_told_all_of_them():
    with pytest.raises(HemafastError, match="should be a valid integer or 'auto'"):
        checked(TrainConfig, {"batch_size": "many"})
    with pytest.raises(HemafastError, match="should be a valid number or 'auto' or 'whole'"):
        checked(PrepareConfig, {"field_of_view": "wide"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("val_fraction", 1),
        ("val_fraction", float("nan")),
        ("test_fraction", 1),
        ("test_fraction", -0.1),
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
        ({"test_fraction": 0.2, "split_file": "a.csv"}, "test_fraction"),
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
        train_config("baseline"),
        train_config("best", crop_area=(0.5, 1.0), track=("mlflow",), batch_size="auto"),
        PrepareConfig(source=Path("a"), output=Path("b"), classes="from-data"),
        PrepareConfig(pack_sizes=(256, 128), um_per_pixel={"A": 0.1}, groups=Path("g.csv"), holdout_domain="A"),
    ],
)
def test_settings_come_back_from_json_as_they_were(config):
    assert checked(type(config), json.loads(to_json(config))) == config
    assert checked(type(config), to_plain(config)) == config


def test_every_path_that_is_read_is_known_so_that_a_run_keeps_it_absolute():
    hints = get_type_hints(TrainConfig)
    assert {name for name, hint in hints.items() if Path in (hint, *get_args(hint))} == {*READ, "output"}
    kept = located(to_plain(train_config("quick", data=Path("d"), weights=Path("/w"))))
    assert (kept["data"], kept["weights"], kept["teacher"]) == (Path.cwd() / "d", Path("/w"), None)
