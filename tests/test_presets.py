"""Presets: what each sets, and what each says of itself."""

import re
import shlex
from dataclasses import asdict

import pytest
from command import asked_of_training

from hemafast.config import TrainConfig, train_config
from hemafast.errors import HemafastError
from hemafast.presets import PRESETS, named_preset

EXPERIMENTS = {
    "baseline": {},
    "weighted_loss": {"loss": "weighted"},
    "strong_augment": {"policy": "strong"},
    "b0": {"model": "efficientnet_b0"},
    "onecycle": {"model": "efficientnet_b0", "schedule": "onecycle", "lr": 1e-3},
}
"""The five of the reference, and what each has otherwise than the first."""

LARGER_BATCHES = {"gpu": "best", "gpu_fast": "quick"}
"""Presets for a GPU, and those whose learning rate they scale by the square root of the batch size."""

pytestmark = pytest.mark.parametrize("preset", PRESETS)


def said_by(preset: str) -> dict[str, str]:
    """The lines `Name: text` of its docstring; text may go on in the next line."""
    return dict(re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", PRESETS[preset].__doc__, flags=re.MULTILINE))


def differences(config: TrainConfig) -> dict[str, object]:
    plain = asdict(TrainConfig(preset=config.preset))
    return {name: value for name, value in asdict(config).items() if value != plain[name]}


def test_a_preset_is_its_fields_and_the_defaults(preset):
    config = train_config(preset)
    assert config.preset == preset
    changed = {name: value for name, value in named_preset(preset).items() if value != getattr(TrainConfig(), name)}
    assert differences(config) == changed


def test_an_experiment_differs_from_baseline_in_what_its_name_says(preset):
    if preset in EXPERIMENTS:
        assert differences(train_config(preset)) == EXPERIMENTS[preset]
    assert EXPERIMENTS.keys() <= PRESETS.keys()


def test_a_preset_for_a_gpu_scales_the_rate_to_its_batches_and_warms_up(preset):
    if preset in LARGER_BATCHES:
        config, base = train_config(preset), train_config(LARGER_BATCHES[preset])
        assert config.lr == pytest.approx(base.lr * (config.batch_size / base.batch_size) ** 0.5)
        assert config.batch_size >= 128
        assert config.warmup > 0
        assert config.compile == "auto"
    assert LARGER_BATCHES.keys() <= PRESETS.keys()


def test_a_preset_says_what_it_is_its_command_its_time_and_its_score(preset):
    first, blank, *_ = PRESETS[preset].__doc__.splitlines()
    assert first.endswith(".")
    assert not blank
    assert list(said_by(preset)) == ["Command", "Time", "Score"]
    assert all(text.strip() for text in said_by(preset).values())


def test_the_command_of_a_preset_selects_it(preset, tmp_path):
    program, command, *options = shlex.split(said_by(preset)["Command"].strip("`"))
    assert (program, command) == ("hemafast", "pretrain" if train_config(preset).method else "train")
    assert asked_of_training(*options, cwd=tmp_path, command=command) == train_config(preset)


def test_a_preset_cannot_be_changed_by_who_asks_for_it(preset):
    before = dict(named_preset(preset))
    named_preset(preset)["epochs"] = 1
    assert named_preset(preset) == before


def test_a_misspelt_preset_is_refused_and_the_known_ones_are_named(preset):
    with pytest.raises(HemafastError, match=f"'{preset}s'") as caught:
        named_preset(f"{preset}s")
    assert all(known in caught.value.remedy for known in PRESETS)
