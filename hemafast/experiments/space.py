"""What a search may change: settings with ranges or choices, written as `lr=1e-4..1e-2` and `policy=basic,robust`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from hemafast.config import LEARNS, STEPPED, TrainConfig, checked, option_of
from hemafast.errors import HemafastError

if TYPE_CHECKING:
    from optuna import Trial

DEFAULT = (
    "lr=3e-4..1e-2",
    "weight_decay=1e-3..0.3",
    "label_smoothing=0..0.2",
    "policy=basic,robust",
    "sampler=natural,mixed:0.5",
)
"""What is searched by default. A probe leaves out what it does not use: `default_space`."""

_WIDE = 10  # a range over so large a factor is drawn on a logarithmic scale
_EXAMPLE = "Write a range as lr=1e-4..1e-2, or choices as policy=basic,robust."


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`."""

    low: float
    high: float

    @property
    def log(self) -> bool:
        """Whether it is drawn on a logarithmic scale."""
        return self.low > 0 and self.high / self.low >= _WIDE

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


@dataclass(frozen=True, slots=True)
class Choice:
    """Values as they are typed."""

    values: tuple[str, ...]

    def __str__(self) -> str:
        return ",".join(self.values)


@dataclass(frozen=True, slots=True)
class Space:
    """Ranges and choices by the name of the setting."""

    parts: Mapping[str, Range | Choice]

    def to_plain(self) -> dict[str, str]:
        """As it is typed, by name."""
        return {name: str(part) for name, part in self.parts.items()}

    def check(self, config: TrainConfig) -> None:
        """Raise HemafastError if a setting is unknown or cannot be searched, or if a value is refused."""
        for name, part in self.parts.items():
            for value in _extremes(config, name, part):
                _with(config, {name: value})
            if option_of(TrainConfig, name).on_resume != LEARNS:
                raise HemafastError(f"{name} does not change what is learned.", "Search another setting.")

    def draw(self, trial: Trial, config: TrainConfig) -> TrainConfig:
        """The settings of a trial."""
        return _with(config, {name: _drawn(trial, config, name, part) for name, part in self.parts.items()})


def default_space(config: TrainConfig) -> Space:
    """DEFAULT, as far as these settings have a use for it."""
    idle = STEPPED if config.probe else ()
    return Space({name: part for name, part in parse_space(DEFAULT).parts.items() if name not in idle})


def parse_space(texts: Iterable[str]) -> Space:
    """A space from texts such as `lr=1e-4..1e-2`. Raises HemafastError for one that is neither range nor choices."""
    parts: dict[str, Range | Choice] = {}
    for text in texts:
        name, equals, values = (part.strip() for part in text.partition("="))
        if not (name and equals and values):
            raise HemafastError(f"--space {text!r} is not NAME=VALUES.", _EXAMPLE)
        if parts.setdefault(name.replace("-", "_"), found := _part(text, values)) is not found:
            raise HemafastError(f"--space names {name} twice.", "Leave out one of them.")
    return Space(parts)


def _part(text: str, values: str) -> Range | Choice:
    low, dots, high = values.partition("..")
    if not dots:
        choices = tuple(part.strip() for part in values.split(","))
        if not all(choices) or len(set(choices)) < 2:
            raise HemafastError(f"--space {text!r} leaves nothing to choose.", _EXAMPLE)
        return Choice(choices)
    try:
        found = Range(float(low), float(high))
    except ValueError as error:
        raise HemafastError(f"--space {text!r} is not a range of numbers.", _EXAMPLE) from error
    if not found.low < found.high < float("inf"):
        raise HemafastError(f"--space {text!r}: the range is empty.", _EXAMPLE)
    return found


def _with(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    return checked(TrainConfig, {**{one.name: getattr(config, one.name) for one in fields(config)}, **values})


def _extremes(config: TrainConfig, name: str, part: Range | Choice) -> tuple[Any, ...]:
    if isinstance(part, Choice):
        return part.values
    return (round(part.low), round(part.high)) if _is_whole(config, name, part) else (part.low, part.high)


def _is_whole(config: TrainConfig, name: str, part: Range) -> bool:
    """Whether the setting takes whole numbers only, as it says by refusing others."""
    middle = (part.low + part.high) / 2
    return not _takes(config, name, middle if middle % 1 else middle + 0.5) and _takes(config, name, round(middle))


def _takes(config: TrainConfig, name: str, value: float) -> bool:
    try:
        _with(config, {name: value})
    except HemafastError:
        return False
    return True


def _drawn(trial: Trial, config: TrainConfig, name: str, part: Range | Choice) -> Any:
    if isinstance(part, Choice):
        return trial.suggest_categorical(name, part.values)
    if _is_whole(config, name, part):
        return trial.suggest_int(name, round(part.low), round(part.high), log=part.log)
    return trial.suggest_float(name, part.low, part.high, log=part.log)
