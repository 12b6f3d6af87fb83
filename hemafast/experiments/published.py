"""The published experiments. Importing this imports nothing heavy, so that a typo is answered at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from hemafast.errors import HemafastError


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


def refuse_unknown_experiments(sweep: str, only: Sequence[str] = ()) -> None:
    """Raise HemafastError with a close match if `sweep`, or one of its experiments in `only`, is unknown."""
    _refuse_unknown(sweep, list(SWEEPS), f"There is no sweep {sweep!r}.")
    for name in only:
        _refuse_unknown(name, [one.preset for one in SWEEPS[sweep]], f"{sweep} has no experiment {name!r}.")


def _refuse_unknown(name: str, known: Sequence[str], problem: str) -> None:
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Choose from: {', '.join(known)}."
        raise HemafastError(problem, hint)
