"""Progress: a bar for any long work, and for training a table of the last epochs above it.

Where nothing can be drawn anew, as in a pipe or with TERM=dumb, it is a line now and then.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console

from hemafast.progress import Progress

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment

Epoch = Mapping[str, Mapping[str, float]]
"""Measurements of an epoch by phase ("train", "val") and name."""

_SHOWN_EPOCHS = 8
_RECENT_EPOCHS = 5
_REFRESHES = 2  # a second
_LINE_SECONDS = 15.0  # where nothing can be drawn
_MARK_SECONDS = 0.25
_FIRST_MARKS = 3
_MARKS = 40  # the rate is that of the last ten seconds, so that compiling is soon forgotten

_OF_TRAINING = {
    (phase, name): f"{phase}\n{said}"
    for phase in ("train", "val")
    for name, said in (("loss", "loss"), ("f1_macro", "macro-F1"))
}
_OF_PRETRAINING = {
    ("train", "loss"): "train\nloss",
    ("val", "knn_accuracy"): "val\nkNN",
    ("val", "feature_spread"): "val\nspread",
}


class LiveProgress(Progress):
    """Shows long work while it runs; the table of a training stays when it ends. Costs nothing if nobody listens."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.perf_counter) -> None:
        self.shows = console.is_terminal and not console.is_dumb_terminal and not console.quiet
        self._console, self._clock = console, clock
        self._live: Any = None
        self._ended: dict[int, Epoch] = {}
        self._table: _Drawn | None = None
        self._what, self._unit, self._total = "", "images", 0
        self._epoch: int | None = None
        self._epochs: int | None = None
        self._ends: float | None = None
        self._done = 0
        self._measured: dict[str, float] = {}
        self._begins = True  # the rate still counts the first units, which wait for loaders and compilers
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)], maxlen=_MARKS)
        self._advanced = self._told = clock()

    def start(self, what: str, total: int | None = None, *, unit: str = "images", done: int = 0, **facts: Any) -> None:
        """Begin a stage."""
        self._what, self._unit, self._total, self._done = what, unit, total or 0, done
        self._epoch, self._epochs = facts.get("epoch"), facts.get("epochs")
        left = facts.get("seconds_left")
        self._advanced = self._told = self._clock()
        self._ends = None if left is None else self._advanced + left
        self._measured = {}
        self._begins = True
        self._marks.clear()
        self._marks.append((self._advanced, done))
        if self.shows and self._live is None:
            from rich.live import Live

            # A training leaves its table; a bar leaves nothing.
            self._live = Live(
                console=self._console,
                refresh_per_second=_REFRESHES,
                get_renderable=self._view,
                transient=self._epoch is None,
            )
            self._live.start()

    def advance(self, count: int = 1, **measured: float) -> None:
        """Count more units; measurements that are not given stay as they are."""
        if self._console.quiet:
            return
        self._done += count
        self._advanced = now = self._clock()
        if now - self._marks[-1][0] >= _MARK_SECONDS:
            self._marks.append((now, self._done))
        if self._begins and len(self._marks) > _FIRST_MARKS:
            self._begins = False
            self._marks.popleft()
        self._measured |= measured
        if not self.shows and now - self._told >= _LINE_SECONDS:
            self._told = now
            self.say(f"{self._stage()}: {self._count()}{f', {self._left()}' if self._total else ''}")

    def say(self, text: str) -> None:
        """Show a line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def finish(self, **results: Any) -> None:
        """Add an epoch to the table, if this ends one; else take the view down."""
        if "rows" in results:
            self._ended[results["epoch"]] = results["rows"]
            if self.shows:
                self._table = _Drawn(_epoch_table(self._ended))
        elif self._live is not None:
            live, self._live = self._live, None
            self._what = ""
            live.stop()
            self._ended, self._table = {}, None

    def rate(self) -> float | None:
        """Units per second over the last seconds; None until it is known."""
        began, done = self._marks[0]
        seconds = self._advanced - began
        return (self._done - done) / seconds if seconds > 0 and self._done > done else None

    def stage_left(self) -> float | None:
        """Seconds until this stage ends; None until that is known."""
        rate = self.rate()
        return max(self._total - self._done, 0) / rate if rate and self._total else None

    def run_left(self) -> float | None:
        """Seconds until the run ends: to its time budget, or by the mean of its last epochs; None until it is known.

        In the first epoch, by the rate of its training: validation is not known yet.
        """
        if self._ends is not None:
            return max(self._ends - self._clock(), 0.0)
        if self._epochs is None or self._epoch is None:
            return None
        taken = [seconds for seconds in map(_seconds, self._ended.values()) if seconds is not None][-_RECENT_EPOCHS:]
        if not taken and (rate := self.rate()) and self._what == "training":
            taken = [self._total / rate]
        if not taken:
            return None
        share_left = max(1 - self._done / max(self._total, 1), 0.0) if self._what == "training" else 0.0
        return sum(taken) / len(taken) * (self._epochs - self._epoch + share_left)

    def _stage(self) -> str:
        of = f"/{self._epochs}" if self._epochs else ""
        return self._what if self._epoch is None else f"{self._what}  epoch {self._epoch}{of}"

    def _count(self) -> str:
        of = f"/{self._total:,}" if self._total else ""
        return f"{self._done:,}{of} {self._unit}  {_rate_text(self.rate())} {self._unit}/s"

    def _left(self) -> str:
        stage = _clock_text(self.stage_left())
        return f"left: {stage}" if self._epoch is None else f"left: epoch {stage}, run {_clock_text(self.run_left())}"

    def _view(self) -> RenderableType:
        from rich.console import Group

        table = [self._table] if self._table is not None else []
        return Group(*table, *(self._lines() if self._what else ()))

    def _lines(self) -> Iterable[RenderableType]:
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        what = self._stage()
        if not self._total:
            yield Spinner("line" if self._console.options.ascii_only else "dots", text=Text(what))
            return
        grid = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=self._total, completed=self._done, width=24)
        left = [self._left()] if self._epoch is None else []
        grid.add_row(Text(what, no_wrap=True), bar, *(Text(text, no_wrap=True) for text in (self._count(), *left)))
        yield grid
        if self._epoch is not None:
            measured = self._measured
            score = (
                f", macro-F1 {_text(measured.get('f1_macro'), '.3f')}" if "f1_macro" in measured or not measured else ""
            )
            yield Text(
                f"train loss {_text(measured.get('loss'), '.3f')}{score}  "
                f"wait {_text(measured.get('data_wait_share'), '.1%')}  "
                f"{self._left()}"
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


def _epoch_table(ended: Mapping[int, Epoch]) -> RenderableType:
    """A row for each of the last epochs, and the best one."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    scores = _scores_of(ended)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("epoch", *scores.values(), "images/s", "data\nwait %", "seconds"):
        table.add_column(name, justify="right")
    best = _best(ended)
    for epoch in sorted({*list(ended)[-_SHOWN_EPOCHS:], *best}):
        mark, style = ("* ", "bold green") if epoch in best else ("", None)
        table.add_row(f"{mark}{epoch}", *_cells(ended[epoch], scores), style=style)
    return table


def _scores_of(ended: Mapping[int, Epoch]) -> Mapping[tuple[str, str], str]:
    """Phase and name of each score in the table, and its head; pretraining has others than a classifier."""
    pretrains = any("feature_spread" in measured.get("val", {}) for measured in ended.values())
    return _OF_PRETRAINING if pretrains else _OF_TRAINING


def _best(ended: Mapping[int, Epoch]) -> list[int]:
    """The first epoch of the highest macro-F1 on validation; empty if none has any."""
    scores = {epoch: measured.get("val", {}).get("f1_macro", math.nan) for epoch, measured in ended.items()}
    known = [epoch for epoch, score in scores.items() if not math.isnan(score)]
    return [max(known, key=scores.__getitem__)] if known else []


def _cells(measured: Epoch, scores: Iterable[tuple[str, str]]) -> list[str]:
    train = measured.get("train", {})
    waited = train.get("data_wait_share")
    return [
        *(_text(measured.get(phase, {}).get(name), ".4f") for phase, name in scores),
        _rate_text(train.get("images_per_second")),
        _text(None if waited is None else 100 * waited, ".1f"),
        _text(_seconds(measured), ",.1f"),
    ]


def _seconds(measured: Epoch) -> float | None:
    """Seconds of training and validation; None where nobody measured them."""
    taken = [phase["seconds"] for phase in measured.values() if "seconds" in phase]
    return sum(taken) if taken else None


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _rate_text(value: float | None) -> str:
    """Whole numbers, and a decimal below ten: slow is not nothing."""
    return _text(value, ",.0f" if value is None or value >= 10 else ".1f")


def _clock_text(seconds: float | None) -> str:
    return "-" if seconds is None else str(timedelta(seconds=round(seconds)))
