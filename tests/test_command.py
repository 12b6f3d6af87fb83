"""The commands that repeat a run or prepare a data set again, parsed back by the command line."""

import json
import shlex

import pytest
from command import asked_of_training

from hemafast.command import prepare_command, train_command
from hemafast.config import PrepareConfig, TrainConfig, checked, to_json, to_plain, train_config
from hemafast.presets import PRESETS


def assert_repeats(config):
    """The command for `config` is one line, and the command line makes the same settings of it."""
    command = train_command(config)
    assert "\n" not in command
    words = shlex.split(command)
    assert words[:2] == ["hemafast", "train"]
    assert to_plain(asked_of_training(*words[2:])) == to_plain(config)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"preset": "quick", "model": "tf_efficientnet_lite0", "epochs": 7, "image_size": 96},
        {"freeze_norm": True, "sync_norm": True, "ema": 0.99, "lr": 1e-5},
        {"loss": "focal", "focal_gamma": 1.5, "sampler": "mixed:0.5", "fold": 2},
        {"domains": ("My Lab", "$x", "it's", "größe")},
        {"crop_area": (0.5, 0.75), "symmetry": "none", "rotation": 0.0},
        {"growing_from": (128, 160)},
        {"preset": "best", "image_size": 96, "growing_from": ()},
        {"track": ()},
        {"track": ("wandb", "tensorboard")},
        {"time_budget": 5400.5, "batch_size": "auto", "device": "cpu", "threads": 3, "save_every": 2.5, "keep": 5},
        {"data": "/data/my lab/prepared", "output": "runs/a b", "weights": "/w/a;b.pth", "on_nonfinite": "skip"},
        {"preset": "a preset of an older version", "epochs": 3},
    ],
)
def test_the_command_of_a_run_asks_for_the_same_training(changes):
    config = train_config(changes.get("preset") if changes.get("preset") in PRESETS else None)
    config = checked(TrainConfig, {**to_plain(config), **changes})
    if config.preset not in PRESETS:
        command = train_command(config)
        assert command == "hemafast train --preset baseline --epochs 3"
    else:
        assert_repeats(config)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_of_a_preset_is_its_name(preset):
    config = train_config(preset)
    assert train_command(config) == f"hemafast {'pretrain' if config.method else 'train'} --preset {preset}"


def test_a_setting_that_a_file_takes_from_its_preset_is_not_in_the_command(tmp_path):
    config = train_config("best")
    assert config.ema is not None
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(json.loads(to_json(config)) | {"ema": None}), encoding="utf-8")
    config = train_config(None, file)
    words = shlex.split(train_command(config))
    asked = to_plain(asked_of_training(*words[2:]))
    assert asked == to_plain(config) | {"preset": "baseline"}
    assert asked["ema"] is None


def test_the_command_of_a_data_set_has_what_is_not_at_its_default():
    config = PrepareConfig(seed=7, um_per_pixel={"My Lab": 0.2}, pack_sizes=(128, 64), group_pattern=r"^(\d+)_")
    command = prepare_command({**to_plain(config), "groups": "ab" * 32})
    assert "--seed 7" in command
    assert "--um-per-pixel 'My Lab=0.2'" in command
    assert "--pack-size 128 --pack-size 64" in command
    assert r"--group-pattern '^(\d+)_'" in command
    assert "--groups FILE" in command
    assert "abab" not in command
    assert prepare_command(to_plain(PrepareConfig())) == "hemafast prepare"
