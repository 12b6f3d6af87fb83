"""The live view of a run on a terminal: a table of the last epochs, and how the present one goes."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment

Epoch = Mapping[str, Mapping[str, float]]
"""Measurements of an epoch by phase ("train", "val") and name."""

_SHOWN_EPOCHS = 8
_RECENT_EPOCHS = 5
_REFRESHES = 2  # a second
_MARK_SECONDS = 0.25
_MARKS = 40  # the rate is that of the last ten seconds, so that compiling is soon forgotten


class Panel:
    """Shows a run while it goes on; the table stays when it ends. Costs nothing where it is not shown."""

    def __init__(
        self,
        console: Console,
        *,
        epochs: int | None,
        seconds: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """A run of so many `epochs`, or one that ends in so many `seconds`."""
        self.shows = console.is_terminal and not console.quiet
        self._console, self._epochs, self._clock = console, epochs, clock
        self._ends = None if seconds is None else clock() + seconds
        self._live: Any = None
        self._ended: dict[int, Epoch] = {}
        self._table: _Drawn | None = None
        self._phase, self._epoch, self._images, self._done = "starting", 0, 0, 0
        self._loss: float | None = None
        self._f1_macro: float | None = None
        self._data_wait_share: float | None = None
        self._marks: deque[tuple[float, int]] = deque(maxlen=_MARKS)
        self._advanced = 0.0

    def open(self) -> None:
        """Begin to show, twice a second."""
        if self.shows:
            from rich.live import Live

            self._live = Live(console=self._console, refresh_per_second=_REFRESHES, get_renderable=self._view)
            self._live.start()

    def close(self) -> None:
        """Leave the table alone on the terminal."""
        if self._live is not None:
            live, self._live = self._live, None
            self._epoch = 0
            live.stop()

    def phase(self, text: str) -> None:
        """Show what is being done."""
        self._phase = text

    def begin_epoch(self, epoch: int, images: int, done: int = 0) -> None:
        """Begin an epoch of `images`, of which `done` were trained before a resume."""
        self._phase, self._epoch, self._images, self._done = "training", epoch, images, done
        self._loss = self._f1_macro = self._data_wait_share = None
        self._advanced = self._clock()
        self._marks.clear()
        self._marks.append((self._advanced, done))

    def advance(
        self,
        images: int,
        *,
        loss: float | None = None,
        f1_macro: float | None = None,
        data_wait_share: float | None = None,
    ) -> None:
        """Count `images` more; None leaves a measurement as it is."""
        if not self.shows:
            return
        self._done += images
        self._advanced = now = self._clock()
        if now - self._marks[-1][0] >= _MARK_SECONDS:
            self._marks.append((now, self._done))
        if loss is not None:
            self._loss = loss
        if f1_macro is not None:
            self._f1_macro = f1_macro
        if data_wait_share is not None:
            self._data_wait_share = data_wait_share

    def end_epoch(self, epoch: int, measured: Epoch) -> None:
        """Add a line to the table."""
        self._ended[epoch] = measured
        if self.shows:
            self._table = _Drawn(_table(self._ended))

    def images_per_second(self) -> float | None:
        """The rate of the last seconds of training; None until it is known."""
        began, done = self._marks[0]
        seconds = self._advanced - began
        return (self._done - done) / seconds if seconds > 0 and self._done > done else None

    def epoch_left(self) -> float | None:
        """Seconds until all images of the epoch are trained; None until that is known."""
        rate = self.images_per_second()
        return max(self._images - self._done, 0) / rate if rate else None

    def run_left(self) -> float | None:
        """Seconds until the run ends, from the mean of its last epochs; None until one has ended.

        Where the end is a moment, until that moment.
        """
        if self._ends is not None:
            return max(self._ends - self._clock(), 0.0)
        taken = [seconds for seconds in map(_seconds, self._ended.values()) if seconds is not None][-_RECENT_EPOCHS:]
        if not taken or self._epochs is None:
            return None
        share_left = max(1 - self._done / max(self._images, 1), 0.0)
        return sum(taken) / len(taken) * (self._epochs - self._epoch + share_left)

    def _view(self) -> RenderableType:
        from rich.console import Group

        table = [self._table] if self._table is not None else []
        return Group(*table, *(self._lines() if self._epoch else ()))

    def _lines(self) -> Iterable[RenderableType]:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        where = Text(f"{self._phase}  epoch {self._epoch}{f'/{self._epochs}' if self._epochs else ''}", no_wrap=True)
        bar = ProgressBar(total=max(self._images, 1), completed=self._done, width=24)
        rate = _text(self.images_per_second(), ",.0f")
        grid.add_row(where, bar, Text(f"{self._done:,}/{self._images:,} images  {rate} images/s", no_wrap=True))
        yield grid
        yield Text(
            f"loss {_text(self._loss, '.4f')}  macro-F1 {_text(self._f1_macro, '.4f')}  "
            f"data wait {_text(self._data_wait_share, '.1%')}  "
            f"left: epoch {_clock_text(self.epoch_left())}, run {_clock_text(self.run_left())}"
        )


class _Drawn:
    """Something to show that is laid out once, not at every refresh."""

    def __init__(self, content: RenderableType) -> None:
        self._content, self._width = content, 0
        self._segments: list[Segment] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> list[Segment]:
        if self._width != options.max_width:
            self._width, self._segments = options.max_width, list(console.render(self._content, options))
        return self._segments


def _table(ended: Mapping[int, Epoch]) -> RenderableType:
    """A row for each of the last epochs, and the best one."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    phases = [f"{phase}\n{name}" for phase in ("train", "val") for name in ("loss", "macro-F1")]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("epoch", *phases, "images/s", "data\nwait %", "seconds"):
        table.add_column(name, justify="right")
    best = _best(ended)
    for epoch in sorted({*list(ended)[-_SHOWN_EPOCHS:], *best}):
        mark, style = ("* ", "bold green") if epoch in best else ("", None)
        table.add_row(f"{mark}{epoch}", *_cells(ended[epoch]), style=style)
    return table


def _best(ended: Mapping[int, Epoch]) -> list[int]:
    """The first epoch of the highest macro-F1 on validation; empty if none has any."""
    scores = {epoch: measured.get("val", {}).get("f1_macro", math.nan) for epoch, measured in ended.items()}
    known = [epoch for epoch, score in scores.items() if not math.isnan(score)]
    return [max(known, key=scores.__getitem__)] if known else []


def _cells(measured: Epoch) -> list[str]:
    train, val = measured.get("train", {}), measured.get("val", {})
    waited = train.get("data_wait_share")
    return [
        *(_text(phase.get(name), ".4f") for phase in (train, val) for name in ("loss", "f1_macro")),
        _text(train.get("images_per_second"), ",.0f"),
        _text(None if waited is None else 100 * waited, ".1f"),
        _text(_seconds(measured), ",.1f"),
    ]


def _seconds(measured: Epoch) -> float | None:
    """Seconds of training and validation; None where nobody measured them."""
    taken = [phase["seconds"] for phase in measured.values() if "seconds" in phase]
    return sum(taken) if taken else None


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _clock_text(seconds: float | None) -> str:
    return "-" if seconds is None else str(timedelta(seconds=round(seconds)))
