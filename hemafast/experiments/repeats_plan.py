"""The plan of repeated trainings: which runs there are, and where those of an earlier call lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hemafast.command import prepare_command
from hemafast.config import FREE, TrainConfig, everywhere, option_of, to_plain
from hemafast.data.dataset import Dataset
from hemafast.errors import HemafastError
from hemafast.recorded import RepeatsFile, read_recorded

RESULT = "repeats.json"
MOST_SEEDS = 100


@dataclass(frozen=True, slots=True)
class Repeats:
    """What is trained: every fold with every seed."""

    config: TrainConfig
    """Settings of all runs."""
    folds: int | None
    """None for the split that the data set was prepared with."""
    seeds: tuple[int, ...]

    @property
    def kind(self) -> str:
        """What differs between the runs, for the name of their folder."""
        return "seeds" if self.folds is None else "folds"

    @property
    def members(self) -> dict[str, tuple[int | None, int]]:
        """Fold and seed of each run by its name, which is that of its folder whatever other seeds there are."""
        of_fold = "" if self.folds is None else "fold_{}_"
        return {f"{of_fold.format(fold)}seed_{seed}": (fold, seed) for seed in self.seeds for fold in self.validating}

    @property
    def validating(self) -> tuple[int | None, ...]:
        """The folds that validate, one run after the other; None for the split that the data set was prepared with."""
        return (self.config.fold,) if self.folds is None else tuple(range(self.folds))

    def configs(self, folder: Path) -> dict[str, TrainConfig]:
        """The settings of each run, with a folder of its own in `folder`."""
        return {
            name: replace(self.config, fold=fold, seed=seed, output=folder / name)
            for name, (fold, seed) in self.members.items()
        }

    def identity(self) -> dict[str, Any]:
        """What decides whether an earlier call was about the same; more or fewer seeds are."""
        settings = to_plain(self.config)
        return (
            {"folds": self.folds}
            | {name: value for name, value in settings.items() if option_of(TrainConfig, name).on_resume != FREE}
            | {"epochs": settings["epochs"], "time_budget": settings["time_budget"]}
        )


def plan_repeats(config: TrainConfig, folds: int | None, seeds: int) -> Repeats:
    """The runs of some folds and seeds. Raises HemafastError if settings and folds contradict each other."""
    if config.fold is not None and folds is not None:
        raise HemafastError(f"fold = {config.fold} and folds = {folds} exclude each other.", "Leave out one of them.")
    if not 1 <= seeds <= MOST_SEEDS:
        raise HemafastError(f"seeds = {seeds} is out of range.", f"Give a number from 1 to {MOST_SEEDS}.")
    return Repeats(everywhere(config), folds, tuple(range(config.seed, config.seed + seeds)))


def refuse_other_folds(dataset: Dataset, folds: int | None) -> None:
    """Raise HemafastError, with the command that makes them, if the data set was not prepared with so many folds."""
    there = dataset.info.folds
    if folds is None or folds == there:
        return
    output = dataset.folder.with_name(f"{dataset.folder.name}-{folds}-folds")
    command = prepare_command({**dataset.info.settings, "folds": folds, "output": str(output)})
    has = f"{there} folds" if there else "no folds"
    raise HemafastError(
        f"{dataset.folder} has {has}, not {folds}.",
        f"Prepare such a data set with `{command} --source SOURCE`, and train with --data {output}.",
    )


def newest_repeats(repeats: Repeats, fingerprint: str) -> Path | None:
    """The newest folder under the output that is about the same settings, folds and data."""
    for file in sorted(repeats.config.output.glob(f"*/{RESULT}"), reverse=True):
        try:
            found = read_recorded(file, RepeatsFile)
        except (OSError, ValueError):
            continue
        if found["identity"] == repeats.identity() and found["data"]["fingerprint"] == fingerprint:
            return file.parent
    return None
