"""Open the file of a search, a study of Optuna, and check what hemafast keeps in it: anybody may have changed it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Len
from pydantic import Field, StringConstraints

from hemafast.errors import HemafastError
from hemafast.reading import cause
from hemafast.recorded import Recorded
from hemafast.regular import refuse_special

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

STUDY = "tune.db"

_NAME = "hemafast"
_UNPRUNED = 4  # trials that run to their end before any is pruned
_JUDGED_FROM = 2  # the epoch, or the number of folds, at whose end a trial may be pruned first


class Facts(Recorded):
    """Results of a trial that came to its end."""

    ci95: Annotated[list[float | None], Len(2, 2)]
    """Of macro-F1; None for several runs."""
    epochs: Annotated[int, Ge(0)]
    seconds: float
    run: str
    """Its folder, or the one above those of all folds."""
    runs: list[str] = Field(default_factory=list)
    """Folders of its runs; none in older studies, which had one run a trial."""


class Told(Recorded):
    """Attributes of a trial. Optuna keeps each under its name."""

    folder: Annotated[str, StringConstraints(pattern=r"^trial_\d{3,9}$")] | None = None
    """In the output."""
    facts: Facts | None = None
    by_fold: list[float] = Field(default_factory=list)
    """The macro-F1 of each fold that has ended."""
    reason: str | None = None
    """Why it failed."""


class Score(Recorded):
    """A macro-F1 on test images."""

    value: float | None
    by_run: list[float | None]
    cells: list[float | None]
    """Ends of the interval for other cells."""


class Tested(Recorded):
    """What `tested.score_on_test` found, and of which trial."""

    trial: int
    macro_f1: Score
    images: int
    look: str


class _AboutAll(Recorded):
    """Attributes of a study."""

    asked: dict[str, Any]
    tested: Tested | None = None


def told_of(trial: FrozenTrial) -> Told:
    """The attributes of a trial. Raises ValueError if hemafast never wrote such."""
    return Told.model_validate(trial.user_attrs)


def open_study(output: Path, asked: Mapping[str, Any], *, seed: int) -> Study:
    """Open the study in a folder, or make one.

    Args:
        output: its folder.
        asked: settings that it cannot be continued without, ready for JSON.
        seed: another one in each call draws other trials.

    Raises:
        HemafastError: it is of other settings, was changed, or cannot be read.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = output.resolve() / STUDY
    pruner = optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED, n_warmup_steps=_JUDGED_FROM)
    try:
        _refuse_links(file)
        study = optuna.create_study(
            storage=f"sqlite:///{file}", study_name=_NAME, load_if_exists=True, direction="maximize", pruner=pruner
        )
        study.set_user_attr("asked", study.user_attrs.get("asked", asked))
        before = _AboutAll.model_validate(study.user_attrs).asked
        for trial in study.trials:
            _refuse_changed(trial)
    except (SQLAlchemyError, optuna.exceptions.OptunaError, OSError, ValueError, RuntimeError, KeyError) as error:
        said = cause(error) if isinstance(error, OSError | ValueError) else str(error)
        why = said.partition("\n")[0]
        raise HemafastError(f"{file} cannot be used ({why}).", "Name another --output.") from error
    if changed := [name for name in asked if before.get(name) != asked[name]]:
        raise HemafastError(f"{file} is a study with other {', '.join(changed)}.", "Name another --output for these.")
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study


def _refuse_links(file: Path) -> None:
    """Raise OSError or ValueError if a study cannot be kept under this name: SQLite writes through links."""
    if file.is_symlink():
        raise ValueError("it is a link, which is not followed")
    if os.path.lexists(file):
        refuse_special(file)


def _refuse_changed(trial: FrozenTrial) -> None:
    """Raise ValueError for a trial that hemafast never wrote."""
    told_of(trial)
    scores = [*trial.intermediate_values.values(), *(trial.values or ())]
    if not all(map(isfinite, scores)):
        raise ValueError(f"trial {trial.number + 1} has a score that is no number")
