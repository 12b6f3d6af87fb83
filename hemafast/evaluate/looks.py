"""Looks at held-out test images: each is counted beside the data set, whatever run takes it, and told with the score.

A test is honest once. Whoever looks again has seen the score, and may have chosen something by it.
"""

from __future__ import annotations

import csv
import io
import logging
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import numpy as np

from hemafast.data.dataset import Dataset
from hemafast.files import open_in_place
from hemafast.preparation.split import ALL, TEST
from hemafast.regular import read_regular
from hemafast.words import counted

logger = logging.getLogger("hemafast")

COLUMNS = ("at", "test", "images", "run", "epoch", "macro_f1")
"""Of the file: local time, which test images, how many, the run and the epoch of its model, and the score."""

_LONGEST = 16  # hexadecimal digits of what names a set of images
_MOST_BYTES = 2**24

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Look:
    """One look at test images."""

    number: int
    """1 for the first."""
    runs: int
    """Runs that took the looks before it."""
    last: str | None
    """Local time of the look before it."""

    def told(self) -> str:
        """What this look is worth, in a sentence."""
        if self.number == 1:
            return "The first look at these test images. Choose nothing by it: later scores on them would be too good"
        return (
            f"THE TEST IMAGES WERE LOOKED AT BEFORE: {counted(self.number - 1, 'time')}, with "
            f"{counted(self.runs, 'run')}, last at {self.last}. If anything was chosen by these scores, this one is "
            "too good; images that nobody has scored yet would be a test"
        )


def looks_file(data: Path) -> Path:
    """The file that counts the looks at the test images of a data set: hidden beside it, so that it stays as it is."""
    return data.absolute().with_name(f".{data.absolute().name}.test_looks.csv")


def take_look(dataset: Dataset, split: str, run: Path, *, epoch: int, macro_f1: float | None) -> Look | None:
    """Count a look at test images.

    Args:
        dataset: what was scored. Its test images are known by their content, however it was prepared.
        split: which of its images were scored; "all" includes test images.
        run: what they were scored with.
        epoch: of its model.
        macro_f1: the score.

    Returns:
        The look; None if no test image was scored. Where it cannot be written down, a warning goes to the log.
    """
    if split not in (TEST, ALL) or TEST not in dataset.info.counts:
        return None
    hashes = dataset.images(TEST)["sha256"]
    test = sha256("".join(sorted(hashes)).encode()).hexdigest()[:_LONGEST]
    file = looks_file(dataset.folder)
    before = [row for row in _rows(file) if row["test"] == test]
    look = Look(
        number=len(before) + 1,
        runs=len({row["run"] for row in before}),
        last=before[-1]["at"] if before else None,
    )
    score = "" if macro_f1 is None or not np.isfinite(macro_f1) else f"{macro_f1:.6f}"
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    _append(file, (now, test, str(len(hashes)), str(run.absolute()), str(epoch), score))
    return look


def _rows(file: Path) -> list[Row]:
    """The looks so far; lines that are none are passed over."""
    try:
        text = read_regular(file, _MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    rows = csv.reader(text.splitlines())
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows if len(row) == len(COLUMNS) and row[0] != COLUMNS[0]]


def _append(file: Path, row: tuple[str, ...]) -> None:
    """Add a line in one write, so that looks at the same moment are both counted."""
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    if not file.exists():
        writer.writerow(COLUMNS)
    writer.writerow([" ".join(cell.split("\n")) for cell in row])
    try:
        with open_in_place(file, "ab", buffering=0) as log:
            log.write(line.getvalue().encode("utf-8", "backslashreplace"))
    except OSError as error:
        logger.warning("this look at the test images cannot be counted in %s (%s)", file, error.strerror or error)
