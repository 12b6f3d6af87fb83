"""The commands that make a data set or a run again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from hemafast.config import PrepareConfig, TrainConfig, to_plain
from hemafast.presets import PRESETS

_OF_HERE = frozenset({"preset", "output", "device", "threads", "save_every", "keep", "track"})
"""Settings that say where and how a run runs, not what it learns."""


def train_command(config: TrainConfig) -> str:
    """`hemafast train` with every option that its preset does not give, but for those that belong to the place."""
    preset = config.preset if config.preset in PRESETS else TrainConfig.preset
    settings = to_plain(config)
    usual = to_plain(TrainConfig()) | _as_plain(PRESETS[preset]())
    changed = {name: value for name, value in settings.items() if name not in _OF_HERE and value != usual[name]}
    return " ".join(["hemafast train", "--preset", preset, *_options(changed)])


def prepare_command(settings: Mapping[str, Any]) -> str:
    """`hemafast prepare` with every option that is not at its default; `settings` as dataset.json has them."""
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


def _options(changed: Mapping[str, Any]) -> list[str]:
    return [option for name, value in changed.items() for option in _option(name.replace("_", "-"), value)]


def _option(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if name == "crop-area":
        return [f"--{name} {value[0]} {value[1]}"]
    if isinstance(value, list):
        return [f"--{name} {shlex.quote(str(part))}" for part in value]
    return [f"--{name} {shlex.quote(str(value))}"]


def _as_plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
