"""What a sweep is: which presets, shrunk or not, beside which published scores, and which of them are done already."""

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
    """A preset that somebody else has published a score of."""

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
"""`seed-table`: the five experiments of the reference, github.com/harefi/Hematology-Challenge-HIDA, and what its
results_summary.csv says of them."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is about to be run, and what is known already."""

    name: str
    scale: float
    output: Path
    data: Path
    experiments: tuple[Experiment, ...]
    plans: dict[str, Plan]
    """Of all experiments, by preset."""
    chosen: tuple[str, ...]
    """Those to run now."""
    before: dict[str, Outcome]
    """What earlier calls finished."""

    @property
    def caveat(self) -> str:
        """What every result must say; nothing where the experiments are as they were published."""
        return "" if self.scale == 1 else f"shrunk by --preset-scale {self.scale:g}: not the reference's experiments"

    @property
    def headline(self) -> str:
        """What it is, and what it is not."""
        return f"{self.name}, {self.caveat}" if self.caveat else self.name

    def state(self, name: str) -> str:
        """Whether an experiment is done; how long it takes is known of no other."""
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
    """The runs of the sweep `name`, or those of its experiments that `only` names.

    With a `scale` below 1 they are shrunk, see `scaled`. Raises HemafastError for an unknown name, a scale that is not
    in (0, 1], or where there is no prepared data set at `data`.
    """
    if name not in SWEEPS:
        raise HemafastError(f"There is no sweep {name!r}.", f"There is: {', '.join(SWEEPS)}.")
    if not 0 < scale <= 1:
        raise HemafastError(f"--preset-scale {scale:g} is not above 0 and at most 1.", "Choose one as 0.1.")
    experiments = SWEEPS[name]
    names = [experiment.preset for experiment in experiments]
    for asked in only:
        if asked not in names:
            raise HemafastError(f"{name} has no experiment {asked!r}.", f"Choose from: {', '.join(names)}.")
    data = data.absolute()  # as the settings of a run have it
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
    """The same with `scale` times the epochs, and about as many times the pixels; a scale of 1 changes nothing.

    The side of a view is the multiple of 32 px nearest to the side times the root of the scale, and at least 64 px.
    """
    if scale == 1:
        return config
    side = _STEP * round(config.image_size * math.sqrt(scale) / _STEP)
    return replace(config, epochs=max(1, round(config.epochs * scale)), image_size=max(_SMALLEST, side))


def _finished_before(output: Path, configs: Mapping[str, TrainConfig], fingerprint: str) -> dict[str, Outcome]:
    """What earlier calls finished with these very settings on this data, as results.json remembers it."""
    try:
        rows = json.loads((output / RESULTS).read_text(encoding="utf-8"))["experiments"]
        remembered = {row["experiment"]: (Path(row["run"]).name, row["settings"]) for row in rows if row["run"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # the runs themselves are found all the same when they are asked for
    found: dict[str, Outcome] = {}
    for name, config in configs.items():
        folder, settings = remembered.get(name, ("", None))
        same = isinstance(settings, dict) and {**settings, "output": ""} == {**to_plain(config), "output": ""}
        scored = scored_before(config.output / folder, fingerprint) if same else None
        if scored is not None:
            found[name] = scored
    return found
