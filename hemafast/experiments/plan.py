"""The plan of a sweep: its presets, scaled down or not, their published scores, and finished runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hemafast.config import Device, TrainConfig, to_plain, train_config
from hemafast.data.dataset import open_dataset
from hemafast.errors import HemafastError
from hemafast.experiments.runs import Outcome, Plan, Scored, scored_before

RESULTS = "results.json"

_STEP, _SMALLEST = 32, 64  # px of the side of a view


@dataclass(frozen=True, slots=True)
class Experiment:
    """A preset with a published score."""

    preset: str
    title: str
    published: float
    """Best macro-F1."""


SWEEPS: dict[str, tuple[Experiment, ...]] = {
    "seed-table": (
        Experiment("baseline", "baseline", 0.8948),
        Experiment("weighted_loss", "weighted loss", 0.8904),
        Experiment("strong_augment", "strong augment", 0.8621),
        Experiment("b0", "EfficientNet-B0", 0.9015),
        Experiment("onecycle", "EfficientNet-B0 + AMP + one-cycle", 0.9073),
    )
}
"""`seed-table`: the five experiments of the reference, github.com/harefi/Hematology-Challenge-HIDA, with the scores
in its results_summary.csv."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """The experiments to run, and those already finished."""

    name: str
    scale: float
    output: Path
    data: Path
    experiments: tuple[Experiment, ...]
    plans: dict[str, Plan]
    """All experiments, by preset."""
    chosen: tuple[str, ...]
    """The presets to run now."""
    before: dict[str, Outcome]
    """Runs that earlier calls finished."""

    @property
    def caveat(self) -> str:
        """A warning for every result; empty if the experiments are those published."""
        return "" if self.scale == 1 else f"shrunk by --preset-scale {self.scale:g}: not the reference's experiments"

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
    data: Path,
    output: Path,
    scale: float = 1.0,
    only: Sequence[str] = (),
    seed: int | None = None,
    device: Device | None = None,
) -> Sweep:
    """Plan the runs of a sweep.

    Args:
        name: one of SWEEPS.
        data: prepared data set.
        output: folder for the runs and the results.
        scale: share of the epochs and pixels to keep, above 0 and up to 1; see `scaled`.
        only: presets to run; by default all of the sweep.
        seed: of each run; by default the preset's.
        device: where the models run; by default the preset's.

    Raises:
        HemafastError: a name is unknown, `scale` is out of range, or `data` is not a prepared data set.
    """
    if name not in SWEEPS:
        raise HemafastError(f"There is no sweep {name!r}.", f"Choose from: {', '.join(SWEEPS)}.")
    if not 0 < scale <= 1:
        raise HemafastError(
            f"--preset-scale {scale:g} is out of range.", "Choose a number above 0 and up to 1, such as 0.1."
        )
    experiments = SWEEPS[name]
    names = [experiment.preset for experiment in experiments]
    for asked in only:
        if asked not in names:
            raise HemafastError(f"{name} has no experiment {asked!r}.", f"Choose from: {', '.join(names)}.")
    data = data.absolute()  # as in the settings of a run
    fingerprint = open_dataset(data).info.fingerprint
    configs = {
        preset: scaled(train_config(preset, data=data, output=output / preset, seed=seed, device=device), scale)
        for preset in names
    }
    return Sweep(
        name=name,
        scale=scale,
        output=output,
        data=data,
        experiments=experiments,
        plans={preset: Plan(preset, config) for preset, config in configs.items()},
        chosen=tuple(preset for preset in names if not only or preset in only),
        before=_finished_before(output, configs, fingerprint),
    )


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
        rows = json.loads((output / RESULTS).read_text(encoding="utf-8"))["experiments"]
        remembered = {row["experiment"]: (Path(row["run"]).name, row["settings"]) for row in rows if row["run"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # run_all finds finished runs without it
    found: dict[str, Outcome] = {}
    for name, config in configs.items():
        folder, settings = remembered.get(name, ("", None))
        same = isinstance(settings, dict) and {**settings, "output": ""} == {**to_plain(config), "output": ""}
        scored = scored_before(config.output / folder, fingerprint) if same else None
        if scored is not None:
            found[name] = scored
    return found
