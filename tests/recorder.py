"""A listener that notes what long work reports."""

from dataclasses import dataclass, field
from typing import Any

from hemafast.progress import Progress


@dataclass
class Stage:
    """One stage: the units done at its start and after each report."""

    what: str
    total: int | None
    unit: str
    done: list[int] = field(default_factory=list)
    finished: bool = False


class Recorder(Progress):
    """Notes every stage; raises `error` once the stage named `stop_in` has done `stop_after` units or more."""

    shows = True

    def __init__(self, stop_in: str = "", stop_after: int = 0, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.stages: list[Stage] = []
        self._stop_in, self._stop_after, self._error = stop_in, stop_after, error

    def start(self, what: str, total: int | None = None, *, unit: str = "images", done: int = 0, **facts: Any) -> None:
        for stage in self.stages:
            stage.finished = True  # a start ends the stage before it
        self.stages.append(Stage(what, total, unit, [done]))
        self._stop_if_due()

    def advance(self, count: int = 1, **measured: float) -> None:
        self.stages[-1].done.append(self.stages[-1].done[-1] + count)
        self._stop_if_due()

    def finish(self, **results: Any) -> None:
        if self.stages:
            self.stages[-1].finished = True

    def stage(self, what: str) -> Stage:
        """The one stage of that name."""
        (found,) = (stage for stage in self.stages if stage.what == what)
        return found

    def _stop_if_due(self) -> None:
        if self.stages[-1].what == self._stop_in and self.stages[-1].done[-1] >= self._stop_after:
            raise self._error
