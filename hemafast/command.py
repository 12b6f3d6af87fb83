"""The command lines that repeat a run or prepare a data set again, from their settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from hemafast.config import PrepareConfig, TrainConfig, checked, to_plain
from hemafast.presets import PRESETS

_EMPTY = {"growing_from": "off", "track": "none"}
"""How the command line writes an empty list."""


def train_command(config: TrainConfig) -> str:
    """`hemafast train` with every option that its preset does not give: one line, quoted for a shell.

    None cannot be written on the command line: where a preset gives a value and `config` has None, the command starts
    from the default preset instead.
    """
    settings = to_plain(config)
    usual = _given_by(config.preset)
    if any(settings[name] is None and value is not None for name, value in usual.items()):
        usual = _given_by(TrainConfig.preset)
    changed = {name: value for name, value in settings.items() if name != "preset" and value != usual[name]}
    return " ".join(["hemafast train", "--preset", usual["preset"], *_options(changed)])


def prepare_command(settings: Mapping[str, Any]) -> str:
    """`hemafast prepare` with every option that is not at its default.

    `settings` are those of dataset.json, which keeps no paths of lists: the command names each as FILE.
    """
    usual = to_plain(PrepareConfig()) | {"pack_sizes": list(PrepareConfig.pack_sizes)}
    changed = {name: value for name, value in settings.items() if name in usual and value != usual[name]}
    scales = changed.pop("um_per_pixel", {})
    sizes = changed.pop("pack_sizes", [])
    lists = [name for name in ("split_file", "groups", "checksums") if changed.pop(name, None)]
    options = [
        *_options(changed),
        *(f"--um-per-pixel {shlex.quote(f'{name}={scale}')}" for name, scale in scales.items()),
        *(f"--pack-size {size}" for size in sizes),
        *(f"--{name.replace('_', '-')} FILE" for name in lists),
    ]
    return " ".join(["hemafast prepare", *options])


def _given_by(preset: str) -> dict[str, Any]:
    """All settings of a preset; of the default preset, if there is none of that name."""
    name = preset if preset in PRESETS else TrainConfig.preset
    return to_plain(checked(TrainConfig, {"preset": name, **PRESETS[name]()}))


def _options(changed: Mapping[str, Any]) -> list[str]:
    return [option for name, value in changed.items() for option in _option(name, value)]


def _option(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    match name, value:
        case _, None:
            return []
        case _, bool():
            return [option if value else f"--no-{option[2:]}"]
        case _, []:
            words = _EMPTY[name]
        case "crop_area", [low, high]:
            words = f"{low} {high}"
        case "growing_from", list():
            words = ",".join(map(str, value))
        case _, list():
            return [f"{option} {shlex.quote(str(part))}" for part in value]
        case _:
            words = shlex.quote(str(value))
    return [f"{option} {words}"]
