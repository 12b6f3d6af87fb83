"""The records of a run while it trains: train.log, training_log.csv, trackers, and progress."""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from hemafast.engine.state import RunState
from hemafast.engine.step import Totals
from hemafast.engine.trackers import LR, Tracker
from hemafast.errors import HemafastError
from hemafast.files import open_in_place, write_text, writing
from hemafast.metrics import Confusion
from hemafast.pictures import confusion_figure
from hemafast.printable import PrintableFormatter
from hemafast.progress import SILENT, Progress
from hemafast.regular import read_regular
from hemafast.run_folder import LOG, LOG_TABLE

Row = dict[str, float | str]
"""Measurements of one phase of an epoch, by name."""

_FIRST = ("epoch", "phase", "loss", "accuracy", "f1_macro")
_POSITIVE = {"seconds", "images_per_second"}
_MOST_RATES = 100  # points per epoch of the learning rate curve
_DRAWN_DIGITS = 2  # a picture of each epoch whose number has no more digits in front of zeros

logger = logging.getLogger("hemafast")


class Journal:
    """Writes a row for each phase of an epoch to the CSV and the trackers, lines to the log, and reports progress."""

    def __init__(
        self,
        folder: Path | None,
        progress: Progress = SILENT,
        *,
        epochs: int | None = None,
        first_epoch: int = 1,
        seconds: float | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        """Read what the run wrote before epoch `first_epoch`; rows of later epochs are dropped.

        Without a `folder`, nothing is written and only warnings are logged: another process writes. The run ends after
        `epochs`, or in `seconds`. Raises HemafastError if training_log.csv is damaged before its last row.
        """
        self._folder, self._first_epoch = folder, first_epoch
        self._before, self._torn = _read(folder / LOG_TABLE) if folder else ([], False)
        self._table, self._written = _Table(), True
        self._trackers = list(trackers)
        self._progress, self._epochs = progress, epochs
        self._ends = None if seconds is None else time.monotonic() + seconds
        self._log: _LogFile | None = None
        self._closing = ExitStack()

    def __enter__(self) -> Journal:
        with ExitStack() as undo:
            undo.callback(logger.setLevel, logger.level)
            if self._folder is None:
                logger.setLevel(logging.WARNING)
            else:
                self._attach_log(self._folder / LOG, undo)
            before = self._forget_later_epochs()
            for tracker in self._trackers:
                undo.callback(tracker.close)
            for epoch, measured in _by_epoch(before).items():
                self._progress.finish(epoch=epoch, rows=measured)
            undo.callback(self._progress.finish)
            self._closing = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and self._log is not None:
            # Only for the file: whoever catches the error shows it on the terminal.
            why = str(error) or type(error).__name__
            self._log.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "stopped: %s", (why,), None))
        self._closing.close()

    def begin(self, what: str, epoch: int, images: int, done: int = 0) -> None:
        """Report that a phase of an epoch begins; `done` of its images were trained before a resume."""
        left = None if self._ends is None else self._ends - time.monotonic()
        self._progress.start(what, images, done=done, epoch=epoch, epochs=self._epochs, seconds_left=left)

    def advance(self, images: int, totals: Totals | None = None, state: RunState | None = None) -> None:
        """Report this number of further images; in training, with the latest scores if they are known and shown."""
        latest = totals.latest() if totals is not None and self._progress.shows else None
        if latest is None:
            self._progress.advance(images)
            return
        waited = {"data_wait_share": state.waited / state.seconds} if state is not None and state.seconds else {}
        self._progress.advance(images, **latest, **waited)

    def end_epoch(
        self,
        epoch: int,
        rows: Mapping[str, Mapping[str, float]],
        *,
        confusion: Confusion | None,
        classes: Sequence[str],
        lrs: Mapping[int, float] = {},
    ) -> None:
        """Record an epoch: measurements by phase ("train", "val") and name, and the confusion matrix of validation.

        `lrs` are learning rates by optimizer step. `write` puts the rows on the disk.
        """
        measured = {phase: {name: float(value) for name, value in values.items()} for phase, values in rows.items()}
        self._table.add([{"epoch": epoch, "phase": phase, **values} for phase, values in measured.items()])
        self._written = False
        self._progress.finish(epoch=epoch, rows=measured)
        if not self._trackers:
            return
        self._track(epoch, measured, lrs)
        if confusion is not None and self._draws(epoch):
            figure = confusion_figure({f"epoch {epoch}": confusion}, classes)
            for tracker in self._trackers:
                tracker.figure("confusion", figure, step=epoch)
            figure.clear()  # its parts refer to each other, and would wait with all their pixels to be collected

    def write(self) -> None:
        """Write the rows that are not on the disk. Raises OSError if it refuses them; the next call tries again."""
        if self._folder is not None and not self._written:
            write_text(self._folder / LOG_TABLE, self._table.text)
            self._written = True

    def _draws(self, epoch: int) -> bool:
        """Whether trackers get a picture: of 99 epochs, then of ever fewer, as each takes 40 kB; and of the last."""
        return epoch == self._epochs or epoch % 10 ** max(len(str(epoch)) - _DRAWN_DIGITS, 0) == 0

    def _track(self, epoch: int, measured: Mapping[str, Mapping[str, float]], lrs: Mapping[int, float]) -> None:
        values = {f"{phase}/{name}": value for phase, of in measured.items() for name, value in of.items()}
        steps = sorted(lrs)
        for tracker in self._trackers:
            for step in steps[:: -(-len(steps) // _MOST_RATES) or 1]:
                tracker.scalars({LR: lrs[step]}, step=step)
            tracker.scalars(values, step=epoch)

    def _attach_log(self, file: Path, undo: ExitStack) -> None:
        with writing(file, "Remove it, or start a new run."):
            self._log = _LogFile(file, encoding="utf-8", errors="backslashreplace")
        self._log.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(self._log)
        undo.callback(self._log.close)
        undo.callback(logger.removeHandler, self._log)
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)  # the file gets everything, even if the terminal shows nothing

    def _forget_later_epochs(self) -> list[Row]:
        """Drop rows of epochs that will be trained again; returns the others."""
        kept = [row for row in self._before if int(row["epoch"]) < self._first_epoch]
        if self._torn:
            logger.warning("%s ended in half a row, which is left out", LOG_TABLE)
        self._table, self._written = _Table(kept), not self._torn and len(kept) == len(self._before)
        self._before = []
        try:
            self.write()
        except OSError as error:
            logger.warning("%s cannot be written (%s). It is written with the next checkpoint", LOG_TABLE, error)
        return kept


class _Table:
    """The text of training_log.csv: rows of thousands of epochs as dicts would take twenty times the memory."""

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        self._begin(rows, _FIRST)

    @property
    def text(self) -> str:
        """All lines, with a header."""
        return self._stream.getvalue()

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows. A column that was not there before is empty in the rows before."""
        if all(name in self._names for row in rows for name in row):
            self._writer.writerows(rows)
        else:
            self._begin([*_parsed(self.text), *rows], self._names)

    def _begin(self, rows: Sequence[Row], names: Iterable[str]) -> None:
        self._names = dict.fromkeys([*names, *(name for row in rows for name in row)])
        self._stream = io.StringIO(newline="")
        self._writer = csv.DictWriter(self._stream, list(self._names), lineterminator="\n")
        self._writer.writeheader()
        self._writer.writerows(rows)


class _LogFile(logging.FileHandler):
    """A log file that ignores a full disk: no traceback on the terminal, and the run continues."""

    def _open(self) -> Any:
        return open_in_place(self.baseFilename, self.mode, encoding=self.encoding, errors=self.errors)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that logging gives it
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def read_rows(folder: Path) -> list[Row]:
    """The rows of training_log.csv in a run folder, one for each phase of an epoch; [] without a file.

    `epoch` is an int, `phase` a string, everything else a float; empty cells are left out. Raises HemafastError if the
    file is damaged.
    """
    rows, torn = _read(folder / LOG_TABLE)
    if torn:
        raise _damaged(folder / LOG_TABLE, "it ends in half a row")
    return rows


def column(rows: Sequence[Row], phase: str, name: str) -> list[float]:
    """One measurement of each row of a phase; nan where it is missing."""
    return [float(row.get(name, "nan")) for row in rows if row["phase"] == phase]


def measured(rows: Sequence[Row], phase: str, name: str) -> list[float]:
    """The same without the rows that lack it."""
    return [float(row[name]) for row in rows if row["phase"] == phase and name in row]


def _read(file: Path) -> tuple[list[Row], bool]:
    """The complete rows of a file, and whether half a row follows them."""
    try:
        content = read_regular(file) if file.exists() else b""
    except OSError as error:
        raise _damaged(file, error.strerror) from error
    whole = content[: content.rfind(b"\n") + 1]
    try:
        return list(_parsed(whole.decode("utf-8"))), len(whole) < len(content)
    except (ValueError, csv.Error) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, why: object) -> HemafastError:
    remedy = "Move it away. A resumed run starts a new file, and a report works without it."
    return HemafastError(f"{file} is damaged ({why}).", remedy)


def _parsed(text: str) -> Iterator[Row]:
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = next(lines, list(_FIRST))
    if tuple(header[: len(_FIRST)]) != _FIRST:
        raise ValueError(f"its columns do not begin with {', '.join(_FIRST)}")
    for cells in lines:
        if len(cells) != len(header):
            raise ValueError(f"line {lines.line_num} has {len(cells)} cells, the header {len(header)}")
        row = dict(zip(header, cells, strict=True))
        measured = {name: float(cell) for name, cell in row.items() if cell and name not in ("epoch", "phase")}
        for name in _POSITIVE & measured.keys():
            if not 0 < measured[name] < math.inf:
                raise ValueError(f"line {lines.line_num}: {name} is {row[name]}")
        yield {"epoch": int(row["epoch"]), "phase": row["phase"], **measured}


def _by_epoch(rows: Sequence[Row]) -> dict[int, dict[str, dict[str, float]]]:
    epochs: dict[int, dict[str, dict[str, float]]] = {}
    for row in rows:
        measured = {name: float(value) for name, value in row.items() if name not in ("epoch", "phase")}
        epochs.setdefault(int(row["epoch"]), {})[str(row["phase"])] = measured
    return epochs
