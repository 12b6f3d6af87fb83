"""The plan of a sweep: its settings, scaled down or not, and finished runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hemafast.config import TrainConfig, checked, everywhere, to_plain, train_config
from hemafast.data.dataset import open_dataset
from hemafast.errors import HemafastError
from hemafast.experiments.published import SWEEPS, refuse_unknown_experiments
from hemafast.experiments.runs import Outcome, Scored, scored_before
from hemafast.presets import named_preset
from hemafast.recorded import Results, read_recorded

RESULTS = "results.json"

_STEP, _SMALLEST = 32, 64  # px: steps of a view's side, and the smallest
_UNCHANGED_BY = frozenset({"data", "output", "device", "seed", "threads", "save_every", "keep", "track"})
"""Settings that leave an experiment the one that was published."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """The experiments to run, and those already finished."""

    name: str
    scale: float
    output: Path
    data: Path
    configs: dict[str, TrainConfig]
    """Settings of all experiments, by preset."""
    chosen: tuple[str, ...]
    """The presets to run now."""
    before: dict[str, Outcome]
    """Runs that earlier calls finished."""
    changed: tuple[str, ...]
    """Options that make the experiments differ from those published."""

    @property
    def caveat(self) -> str:
        """A warning for every result; empty if the experiments are those published."""
        return f"changed by {', '.join(self.changed)}: not the reference's experiments" if self.changed else ""

    @property
    def headline(self) -> str:
        """Name and caveat."""
        return f"{self.name}, {self.caveat}" if self.caveat else self.name

    def state(self, name: str) -> str:
        """Whether an experiment is finished, and how long it took."""
        outcome = self.before.get(name)
        if not isinstance(outcome, Scored):
            return "to run"
        return f"done, took {outcome.metrics['training']['total_seconds']:,.0f} s"


def plan_sweep(
    name: str,
    *,
    output: Path,
    scale: float = 1.0,
    only: Sequence[str] = (),
    base: str | None = None,
    file: Path | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Sweep:
    """Plan the runs of a sweep, or of its presets in `only`, with their folders and results in `output`.

    Settings come from the preset `base`, then the settings file `file`, then the presets of the sweep, then `changes`
    by name, each over the ones before. `scale` is for `scaled`. Raises HemafastError if a name is unknown, a setting or
    `scale` is out of range, or the data is not prepared.
    """
    refuse_unknown_experiments(name, only)
    if not 0 < scale <= 1:
        raise HemafastError(f"--preset-scale {scale:g} is out of range.", "Give a number above 0 and up to 1, as 0.1.")
    names = [experiment.preset for experiment in SWEEPS[name]]
    start = to_plain(train_config(base, file)) if base or file else {}
    given = {name: value for name, value in (changes or {}).items() if value is not None}
    _refuse_probe({**start, **given})
    configs = {preset: _settings(start, preset, {**given, "output": output / preset}, scale) for preset in names}
    data = configs[names[0]].data
    return Sweep(
        name=name,
        scale=scale,
        output=output,
        data=data,
        configs=configs,
        chosen=tuple(preset for preset in names if not only or preset in only),
        before=_finished_before(output, configs, open_dataset(data).info.fingerprint),
        changed=(
            *([f"--preset-scale {scale:g}"] if scale != 1 else []),
            *([f"--preset {base}"] if base else []),
            *([f"--config {file}"] if file else []),
            *(f"--{name.replace('_', '-')}" for name in given if name not in _UNCHANGED_BY),
        ),
    )


def _refuse_probe(settings: Mapping[str, Any]) -> None:
    if settings.get("probe"):
        raise HemafastError(
            f"probe = {settings['probe']}: the experiments of a sweep train in steps, and a probe makes none.",
            "Leave out the probe, or measure it with `hemafast train --preset probe --seeds 3`.",
        )


def _settings(start: Mapping[str, Any], preset: str, given: Mapping[str, Any], scale: float) -> TrainConfig:
    """The settings of one experiment, with absolute paths as in the settings of a run."""
    config = checked(TrainConfig, {**start, **named_preset(preset), "preset": preset, **given})
    return scaled(everywhere(config), scale)


def scaled(config: TrainConfig, scale: float) -> TrainConfig:
    """Settings with `scale` times the epochs and about `scale` times the pixels; a scale of 1 changes nothing.

    The side of a view is rounded to a multiple of 32 px, and is at least 64 px.
    """
    if scale == 1:
        return config
    side = _STEP * round(config.image_size * math.sqrt(scale) / _STEP)
    return replace(config, epochs=max(1, round(config.epochs * scale)), image_size=max(_SMALLEST, side))


def _finished_before(output: Path, configs: Mapping[str, TrainConfig], fingerprint: str) -> dict[str, Outcome]:
    """Runs listed in results.json that have exactly these settings and this data."""
    try:
        rows = read_recorded(output / RESULTS, Results)["experiments"]
        remembered = {row["experiment"]: (Path(row["run"]).name, row["settings"]) for row in rows if row["run"]}
    except (OSError, ValueError):
        return {}  # run_all finds finished runs without it
    found: dict[str, Outcome] = {}
    for name, config in configs.items():
        folder, settings = remembered.get(name, ("", None))
        same = settings is not None and {**settings, "output": ""} == {**to_plain(config), "output": ""}
        scored = scored_before(config.output / folder, fingerprint) if same else None
        if scored is not None:
            found[name] = scored
    return found
