"""Rows, logs and the progress bar."""

import io

import pytest
from rich.console import Console

from hemafast.engine.journal import Journal, logger, read_rows
from hemafast.errors import HemafastError


def test_rows_come_back_as_they_were_written(tmp_path, console):
    rows = [{"epoch": 1, "loss": 0.1234567890123, "val_macro_f1_a,b": 1e-17}, {"epoch": 2, "loss": 2.0}]
    rows[1]["val_macro_f1_a,b"] = 0.5
    with Journal(tmp_path, console, first_epoch=1) as journal:
        for row in rows:
            journal.epoch(row)
    assert read_rows(tmp_path) == rows


def test_rows_of_epochs_that_will_be_run_again_are_dropped(tmp_path, console):
    with Journal(tmp_path, console, first_epoch=1) as journal:
        for epoch in (1, 2, 3):
            journal.epoch({"epoch": epoch, "loss": 1.0})
    with Journal(tmp_path, console, first_epoch=3) as journal:
        journal.epoch({"epoch": 3, "loss": 7.0})
    assert [(row["epoch"], row["loss"]) for row in read_rows(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 7.0)]


def test_a_run_without_a_log_has_no_rows(tmp_path):
    assert read_rows(tmp_path) == []
    assert read_rows(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("options", "hidden"),
    [
        ({"force_terminal": True}, False),
        ({"force_terminal": True, "quiet": True}, True),
        ({"force_terminal": False}, True),
    ],
    ids=["terminal", "quiet terminal", "pipe"],
)
def test_a_bar_shows_on_a_terminal_that_is_not_quiet(tmp_path, options, hidden):
    stream = io.StringIO()
    with Journal(tmp_path, Console(file=stream, width=120, **options), first_epoch=1) as journal:
        with journal.bar(1, 3, 64) as bar:
            bar.advance(32, None)
            bar.advance(16, "loss 0.100")
        assert bar.hidden == hidden
    assert ("48/64" in stream.getvalue() and "loss 0.100" in stream.getvalue()) != hidden
    assert bool(stream.getvalue()) != hidden


def test_the_log_says_why_a_run_stopped_and_is_closed(tmp_path, console):
    handlers = list(logger.handlers)
    with pytest.raises(HemafastError), Journal(tmp_path, console, first_epoch=1):
        logger.info("hello")
        raise HemafastError("The disk is full.", "Make room.")
    text = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert "hello" in text
    assert "stopped: The disk is full. Make room." in text
    assert logger.handlers == handlers


def test_the_log_names_an_error_that_has_no_words(tmp_path, console):
    with pytest.raises(MemoryError), Journal(tmp_path, console, first_epoch=1):
        raise MemoryError
    assert "MemoryError" in (tmp_path / "train.log").read_text(encoding="utf-8")


def test_a_resumed_log_goes_on_where_the_first_ended(tmp_path, console):
    for words in ("first", "second"):
        with Journal(tmp_path, console, first_epoch=1):
            logger.info(words)
    text = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert text.index("first") < text.index("second")
