"""What a run leaves to read: train.log, training_log.csv, TensorBoard, and a progress bar while it runs."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LOG = "train.log"
CSV = "training_log.csv"
TENSORBOARD = "tb"

logger = logging.getLogger("hemafast")


class Journal:
    """Writes one row an epoch to CSV and TensorBoard, and lines to the log."""

    def __init__(self, folder: Path, console: Console, *, first_epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._console = console
        self._csv = folder / CSV
        _keep_rows_before(self._csv, first_epoch)
        self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=first_epoch)
        self._handler = logging.FileHandler(folder / LOG, encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(self._handler)
        self._level = logger.level
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)  # nobody has asked for news on the terminal; the file gets them all the same

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            # For the file alone: the terminal hears of it from whoever catches the error.
            why = str(error) or type(error).__name__
            self._handler.handle(
                logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "stopped: %s", (why,), None)
            )
        self._board.close()
        logger.removeHandler(self._handler)
        logger.setLevel(self._level)
        self._handler.close()

    def epoch(self, row: dict[str, Any]) -> None:
        """Record the measurements of one epoch; `row["epoch"]` counts from 1."""
        new = not self._csv.exists()
        with self._csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
        for name, value in row.items():
            if name != "epoch":
                self._board.add_scalar(name, value, row["epoch"])
        self._board.flush()

    @contextmanager
    def bar(self, epoch: int, epochs: int, images: int) -> Iterator[Bar]:
        """A progress bar over the images of one epoch; hidden where the console is quiet or no terminal."""
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[rate]} images/s"),
            TextColumn("{task.fields[scores]}"),
            TimeRemainingColumn(),
        )
        hidden = self._console.quiet or not self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=hidden) as progress:
            task = progress.add_task("", total=images, epoch=f"{epoch}/{epochs}", rate="", scores="")
            yield Bar(progress, task, hidden=hidden)


class Bar:
    """The progress of one epoch."""

    def __init__(self, progress: Progress, task: Any, *, hidden: bool) -> None:
        self._progress, self._task, self.hidden = progress, task, hidden

    def advance(self, images: int, scores: str | None) -> None:
        """Show that `images` more are done, and how it goes (None leaves the scores as they are)."""
        speed = self._progress.tasks[0].speed
        fields: dict[str, Any] = {"rate": f"{speed:,.0f}" if speed else ""}
        if scores is not None:
            fields["scores"] = scores
        self._progress.update(self._task, advance=images, **fields)


def read_rows(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's training log; empty if there is none."""
    try:
        with (folder / CSV).open(newline="", encoding="utf-8") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def _keep_rows_before(file: Path, first_epoch: int) -> None:
    """Drop the rows of epochs that will be run again: they were logged after the checkpoint was taken."""
    if not file.exists():
        return
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines[1:] if int(line.split(",")[0]) < first_epoch]
    file.write_text("".join(lines[:1] + kept), encoding="utf-8")
