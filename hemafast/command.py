"""The command lines that repeat a run or prepare a data set again, from their settings."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hemafast.config import PrepareConfig, TrainConfig, checked, option_of, prepared_beside, to_plain
from hemafast.presets import PRESETS

_LISTS = ("split_file", "groups", "checksums", "labels", "labels_fix", "class_map")
"""Files of `hemafast prepare` that a data set remembers by their hash only."""


def train_command(config: TrainConfig) -> str:
    """`hemafast train` or `pretrain` with every option that its preset does not give: one line, quoted for a shell.

    None cannot be written on the command line: where a preset gives a value and `config` has None, the command starts
    from the default preset instead.
    """
    settings = to_plain(config)
    usual = _given_by(config.preset)
    if any(settings[name] is None and value is not None for name, value in usual.items()):
        usual = _given_by(TrainConfig.preset)
    changed = {name: value for name, value in settings.items() if name != "preset" and value != usual[name]}
    return " ".join([_verb(config), "--preset", usual["preset"], *_options(TrainConfig, changed)])


def resuming(config: TrainConfig, folder: Path) -> str:
    """The command that continues the run in `folder`."""
    return f"{_verb(config)} --resume {folder}"


def _verb(config: TrainConfig) -> str:
    return "hemafast train" if config.method is None else "hemafast pretrain"


def prepare_command(settings: Mapping[str, Any]) -> str:
    """`hemafast prepare` with every option that is not at its default, from the settings in dataset.json."""
    usual = to_plain(PrepareConfig())
    changed = {name: value for name, value in settings.items() if name in usual and value != usual[name]}
    named: dict[str, Any] = {name: "FILE" for name in _LISTS if isinstance(changed.get(name), str)}
    named |= {name: ["FILE"] * len(changed[name]) for name in _LISTS if isinstance(changed.get(name), list)}
    return " ".join(["hemafast prepare", *_options(PrepareConfig, changed | named)])


def command_to_prepare(config: PrepareConfig, **changed: Any) -> str:
    """`hemafast prepare` as it was called, with some settings changed."""
    settings = to_plain(config) | changed
    usual = to_plain(PrepareConfig()) | {"output": str(prepared_beside(config.source))}
    given = {name: value for name, value in settings.items() if value != usual[name]}
    return " ".join(["hemafast prepare", *_options(PrepareConfig, given)])


def command_to_evaluate(run: Path, data: Path, split: str, class_map: Mapping[str, str]) -> str:
    """`hemafast evaluate` of a run on a data set with other classes."""
    words = ["hemafast", "evaluate", str(run), "--data", str(data), *(["--split", split] if split != "val" else [])]
    return shlex.join([*words, "--class-map", _pairs(class_map)])


def _given_by(preset: str) -> dict[str, Any]:
    """All settings of a preset; of the default preset, if `preset` is unknown."""
    name = preset if preset in PRESETS else TrainConfig.preset
    return to_plain(checked(TrainConfig, {"preset": name, **PRESETS[name]()}))


def _options(kind: type[Any], changed: Mapping[str, Any]) -> list[str]:
    return [words for name, value in changed.items() for words in _option(kind, name, value)]


def _option(kind: type[Any], name: str, value: Any) -> list[str]:
    """One setting as typed: no words for None, several options for a list."""
    option = option_of(kind, name)
    flag = option.flag or f"--{name.replace('_', '-')}"
    match name, value:
        case _, None:
            return []
        case _, bool():
            return [flag if value else f"--no-{flag[2:]}"]
        case _, []:
            values = [option.none]
        case "crop_area", [low, high]:
            return [f"{flag} {low} {high}"]
        case "growing_from", list():
            values = [",".join(map(str, value))]
        case "class_map" | "columns", dict():
            values = [_pairs(value)]
        case "bit_depth", dict():
            values = [f"{key}={bits}" if key else str(bits) for key, bits in value.items()]
        case _, dict():
            values = [f"{key}={number}" for key, number in value.items()]
        case _:
            values = value if isinstance(value, list) else [value]
    return [f"{flag} {shlex.quote(str(part))}" for part in values]


def _pairs(mapping: Mapping[str, str]) -> str:
    """As csv, so that names may hold commas."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([f"{name}={meant}" for name, meant in mapping.items()])
    return text.getvalue()
