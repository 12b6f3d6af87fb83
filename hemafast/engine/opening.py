"""Open a run: a new one from settings, or a stopped one with its newest checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hemafast.config import FIXED, FREE, READ, TrainConfig, checked, located, option_of, to_plain
from hemafast.engine.checkpoint import load_last
from hemafast.engine.machine import Machine
from hemafast.engine.trial import DECIDED
from hemafast.errors import HemafastError
from hemafast.reading import cause
from hemafast.recorded import Checkpoint, MachineFile, read_recorded
from hemafast.run_folder import LAST, MACHINE, read_config, run_folders

_DECIDE_SUMS = {
    "cpu": ("device", "torch", "instructions", "torch threads"),
    "cuda": ("device", "torch", "gpu"),
}
"""By device: choices and facts in machine.json that a run must find again to be bit-identical."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a run starts from."""

    settings: TrainConfig
    folder: Path | None = None
    """None for a new run: the folder is made when everything else is ready."""
    saved: dict[str, Any] | None = None
    """State of a stopped run, as `Run.state_dict` returns it."""
    changed: tuple[str, ...] = ()
    """Settings that were changed on resume, in words."""
    restart_epoch: bool = False
    """Whether to train the epoch from its start, because the checkpoint was saved under other settings."""


def open_stopped(folder: Path, changes: Mapping[str, Any], *, allow_changes: bool) -> Opened:
    """The run in `folder` with its newest undamaged checkpoint. `changes` are settings by name.

    Raises HemafastError if `folder` is not a run, or if a change is not allowed.
    """
    before = read_config(folder)
    settings = changed_settings(folder, changes, allow_changes=allow_changes)
    changed = _changes(to_plain(before), to_plain(settings))
    saved = load_last(folder / LAST)
    try:
        Checkpoint.model_validate(saved)
    except ValueError as error:
        problem = f"{folder / LAST} is no checkpoint that hemafast writes ({cause(error)})."
        raise HemafastError(problem, "Start a new run.") from error
    # The checkpoint may be older than the settings, if a run crashed right after a change.
    restart = bool(_changes(saved["settings"], to_plain(settings)))
    return Opened(settings, folder, saved, tuple(changed), restart)


def moved(folder: Path, machine: Machine) -> list[str]:
    """What decides the last digit of sums and is other on `machine` than where the run in `folder` was, in words."""
    try:
        before = read_recorded(folder / MACHINE, MachineFile)
    except (OSError, ValueError):  # a new run
        return []
    there = before["facts"] | {choice["name"]: choice["value"] for choice in before["choices"]}
    here = machine.facts | {choice.name: choice.value for choice in machine.choices}
    known = [name for name in _DECIDE_SUMS[machine.device] if name in there and name in here]
    said = "{}: {} -> {}, so sums may differ in the last digit"
    return [said.format(name, there[name], here[name]) for name in known if there[name] != here[name]]


def changed_settings(folder: Path, changes: Mapping[str, Any], *, allow_changes: bool) -> TrainConfig:
    """The settings of the run in `folder` with `changes`. Raises HemafastError if a change is not allowed."""
    before = to_plain(read_config(folder))
    settings = checked(TrainConfig, {**before, **located(changes)})
    _refuse(_changes(before, to_plain(settings)), allow_changes=allow_changes)
    return settings


def free_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings of `config` that a resumed run may change at will, as plain data."""
    return {name: value for name, value in to_plain(config).items() if _on_resume(name) == FREE}


def newest_run(config: TrainConfig) -> Path | None:
    """The newest run under `config.output` with exactly these settings and a checkpoint; None without one.

    A setting of `auto` matches any decision of the stored run.
    """
    for folder in reversed(run_folders(config.output)):
        try:
            stored = replace(read_config(folder), output=config.output)
            decided = {name: getattr(stored, name) for name in DECIDED if getattr(config, name) == "auto"}
            same = not _changes(to_plain(stored), to_plain(replace(config, **decided)))
        except HemafastError:
            continue
        length = (config.epochs, config.time_budget)
        if same and (stored.epochs, stored.time_budget) == length and (folder / LAST).exists():
            return folder
    return None


def _on_resume(name: str) -> str:
    return option_of(TrainConfig, name).on_resume


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each setting that differs and affects what is learned. Settings missing in `old` have defaults."""
    before = {**to_plain(TrainConfig()), **old}
    names = [name for name in new if _on_resume(name) != FREE and not _same(name, before[name], new[name])]
    return [f"{name}: {before[name]} -> {new[name]}" for name in names]


def _same(name: str, old: Any, new: Any) -> bool:
    """Whether two values of a setting are one; two paths are one if they lead to the same place."""
    if name in READ and None not in (old, new):
        return Path(old).resolve() == Path(new).resolve()
    return bool(old == new)


def _refuse(changed: list[str], *, allow_changes: bool) -> None:
    fixed = [line for line in changed if _on_resume(line.partition(":")[0]) == FIXED]
    if fixed:
        raise HemafastError(f"A run cannot change this ({fixed[0]}).", "Start a new run.")
    if changed and not allow_changes:
        raise HemafastError(
            f"This would change the run ({'; '.join(changed)}).",
            "Leave the change out, or add --allow-changes.",
        )
