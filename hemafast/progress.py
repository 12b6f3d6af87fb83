"""The one protocol through which long work reports how far it is. By default nobody listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hemafast.printable import printable, printable_lines


class Progress:
    """Listens to long work. This one shows nothing; a subclass overrides what it wants to hear of.

    One stage runs at a time: a `start` ends the stage before it, `finish` ends the last.
    """

    shows = False
    """Whether anybody watches. If not, measurements made only to be shown are skipped."""

    def start(self, what: str, total: int | None = None, *, unit: str = "images", done: int = 0, **facts: Any) -> None:
        """Begin a stage.

        Args:
            what: what is being done, as "reading images".
            total: how many units it takes; None if unknown.
            unit: what is counted.
            done: units finished before, by an interrupted run.
            facts: anything else worth showing; training gives `epoch`, `epochs` and `seconds_left`.
        """

    def advance(self, count: int = 1, **measured: float) -> None:
        """`count` more units are done; `measured` are the latest values, such as `loss`."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def finish(self, **results: Any) -> None:
        """End the stage; training gives `epoch` and `rows`, the measurements of that epoch by phase."""


SILENT = Progress()


class ProgressBar(Progress):
    """A tqdm bar, in a notebook or on a terminal: `hf.train(data, progress=hf.ProgressBar())`."""

    shows = True

    def __init__(self) -> None:
        self._bar: Any = None

    def start(self, what: str, total: int | None = None, *, unit: str = "images", done: int = 0, **facts: Any) -> None:
        """Open a bar."""
        from tqdm.auto import tqdm

        self.finish()
        name = f"{what}, epoch {facts['epoch']}" if "epoch" in facts else what
        self._bar = tqdm(desc=printable(name), total=total, unit=f" {unit}", initial=done)

    def advance(self, count: int = 1, **measured: float) -> None:
        """Move the bar."""
        if self._bar is not None:
            if measured:
                self._bar.set_postfix({name: f"{value:.3f}" for name, value in measured.items()}, refresh=False)
            self._bar.update(count)

    def say(self, text: str) -> None:
        """Write a line above the bar."""
        from tqdm.auto import tqdm

        tqdm.write(printable_lines(text))

    def finish(self, **results: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def stage(progress: Progress, what: str, total: int | None = None, *, unit: str = "images") -> Iterator[Progress]:
    """A stage that is finished however its body ends; yields `progress`."""
    progress.start(what, total, unit=unit)
    try:
        yield progress
    finally:
        progress.finish()
