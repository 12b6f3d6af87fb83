"""Rows, the log, and what trackers are told."""

import errno
import io
import logging
import os
from contextlib import ExitStack
from unittest.mock import Mock

import numpy as np
import pytest
from rich.console import Console

from hemafast.cli.live import LiveProgress
from hemafast.engine.journal import Journal, column, logger, read_rows
from hemafast.engine.state import RunState
from hemafast.engine.step import Totals
from hemafast.errors import HemafastError
from hemafast.pictures import confusion_figure
from hemafast.run_folder import LOG, LOG_TABLE

TRAIN = {"loss": 0.1234567890123, "accuracy": 0.5, "f1_macro": 1e-17, "lr": 3e-4, "seconds": 1.0}
VAL = {"loss": 2.0, "accuracy": 0.25, "f1_macro": float("inf"), 'f1_macro_a,b\n"c"': 0.5}


class Recorder:
    """A tracker that remembers."""

    def __init__(self):
        self.values, self.figures, self.closed = [], [], False

    def scalars(self, values, *, step):
        self.values.append((step, dict(values)))

    def figure(self, name, figure, *, step):
        self.figures.append((step, name, [axis.images[0].get_array() for axis in figure.axes]))

    def close(self):
        self.closed = True


@pytest.fixture
def journal_of(tmp_path):
    """`journal_of(first_epoch, *trackers)`: the journal of a run of three epochs."""

    def make(first_epoch=1, *trackers):
        return Journal(tmp_path, epochs=3, first_epoch=first_epoch, trackers=trackers)

    return make


def end(journal, epoch, rows=None, **more):
    rows = {"train": {"loss": 1.0 * epoch}} if rows is None else rows
    journal.end_epoch(epoch, rows, **{"confusion": None, "classes": ("a", "b")} | more)
    journal.write()


def losses(folder):
    return [(row["epoch"], row["loss"]) for row in read_rows(folder)]


def test_rows_come_back_as_they_were_recorded(tmp_path, journal_of):
    with journal_of() as journal:
        end(journal, 1, {"train": TRAIN, "val": VAL})
        end(journal, 2, {"train": TRAIN | {"grad_norm": np.float32(0.5)}})
    assert read_rows(tmp_path) == [
        {"epoch": 1, "phase": "train", **TRAIN},
        {"epoch": 1, "phase": "val", **VAL},
        {"epoch": 2, "phase": "train", **TRAIN, "grad_norm": 0.5},
    ]


def test_the_columns_are_five_fixed_ones_then_others_in_order_of_appearance(tmp_path, journal_of):
    with journal_of() as journal:
        end(journal, 1, {"train": {"lr": 0.5, "loss": 1.0}, "val": {"seconds": 2.0, "f1_macro": 0.5, "accuracy": 1.0}})
        end(journal, 2, {"train": {"grad_norm": 3.0, "lr": 0.25}})
    assert (tmp_path / LOG_TABLE).read_text(encoding="utf-8").splitlines() == [
        "epoch,phase,loss,accuracy,f1_macro,lr,seconds,grad_norm",
        "1,train,1.0,,,0.5,,",
        "1,val,,1.0,0.5,,2.0,",
        "2,train,,,,0.25,,3.0",
    ]


def test_a_column_is_that_of_one_phase_with_nan_for_gaps(journal_of, tmp_path):
    with journal_of() as journal:
        end(journal, 1, {"train": {"loss": 1.0}, "val": {"loss": 5.0}})
        end(journal, 2, {"train": {"lr": 2.0}})
    assert column(read_rows(tmp_path), "train", "loss") == pytest.approx([1.0, float("nan")], nan_ok=True)
    assert column(read_rows(tmp_path), "val", "epoch") == [1.0]


def test_rows_of_epochs_that_will_be_run_again_are_dropped_at_once(tmp_path, journal_of):
    with journal_of() as journal:
        for epoch in (1, 2, 3):
            end(journal, epoch)
    with journal_of(3) as journal:
        assert losses(tmp_path) == [(1, 1.0), (2, 2.0)]
        end(journal, 3, {"train": {"loss": 7.0}})
    assert losses(tmp_path) == [(1, 1.0), (2, 2.0), (3, 7.0)]


def test_half_a_row_of_an_older_crash_does_not_stop_a_resume(tmp_path, journal_of):
    with journal_of() as journal:
        for epoch in (1, 2):
            end(journal, epoch)
    whole = (tmp_path / LOG_TABLE).read_bytes()
    for size in range(1, len(whole)):
        (tmp_path / LOG_TABLE).write_bytes(whole[:size])
        with journal_of(3):
            pass
        assert losses(tmp_path) == [(1, 1.0), (2, 2.0)][: max(whole[:size].count(b"\n") - 1, 0)]
    assert "half a row" in (tmp_path / LOG).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "content",
    [
        b"epoch,train_loss\n1,0.5\n",
        b"epoch,phase,loss,accuracy,f1_macro\n1,train,0.5\n",
        b"epoch,phase,loss,accuracy,f1_macro\n1,train,0.5,x,\n",
        b"epoch,phase,loss,accuracy,f1_macro\none,train,0.5,,\n",
        b"epoch,phase,loss,accuracy,f1_macro\n1,train,\xff,,\n",
        b"epoch,phase,loss,accuracy,f1_macro\n\0\0\0\0\n",
        b'epoch,phase,loss,accuracy,f1_macro\n1,"train,,,\n',
    ],
    ids=["other columns", "few cells", "no number", "no epoch", "no text", "zeros", "open quote"],
)
def test_a_damaged_file_is_refused_by_name_and_left_as_it_is(tmp_path, journal_of, content):
    (tmp_path / LOG_TABLE).write_bytes(content)
    handlers = list(logger.handlers)
    for read in (lambda: read_rows(tmp_path), lambda: journal_of(2)):
        with pytest.raises(HemafastError, match=f"{LOG_TABLE} is damaged .*Move it away"):
            read()
    assert (tmp_path / LOG_TABLE).read_bytes() == content
    assert logger.handlers == handlers


def test_half_a_row_is_damage_to_whoever_only_reads(tmp_path):
    (tmp_path / LOG_TABLE).write_bytes(b"epoch,phase,loss,accuracy,f1_macro\n1,train,0.5,,0.12")
    with pytest.raises(HemafastError, match="half a row"):
        read_rows(tmp_path)


def test_a_run_without_a_log_has_no_rows(tmp_path):
    assert read_rows(tmp_path) == []
    assert read_rows(tmp_path / "missing") == []


def test_rows_that_a_full_disk_refuses_are_written_with_the_next(tmp_path, journal_of, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with journal_of() as journal:
        end(journal, 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                end(journal, 2)
        assert losses(tmp_path) == [(1, 1.0)]
        end(journal, 3)
    assert losses(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert {path.name for path in tmp_path.iterdir()} == {LOG_TABLE, LOG}


def test_a_row_costs_its_own_text_and_not_that_of_those_before(journal_of, monkeypatch):
    parsed = []
    with journal_of() as journal:
        end(journal, 1, {"train": TRAIN, "val": VAL})
        monkeypatch.setattr("hemafast.engine.journal._parsed", parsed.append)
        for epoch in range(2, 30):
            end(journal, epoch, {"train": TRAIN, "val": VAL})
    assert parsed == []


def test_later_rows_that_a_full_disk_keeps_are_dropped_with_the_next(tmp_path, journal_of, monkeypatch):
    with journal_of() as journal:
        for epoch in (1, 2):
            end(journal, epoch)
    stack = ExitStack()
    with monkeypatch.context() as patch:
        patch.setattr("hemafast.engine.journal.write_text", Mock(side_effect=OSError(errno.ENOSPC, "No space left")))
        journal = stack.enter_context(journal_of(2))
        assert losses(tmp_path) == [(1, 1.0), (2, 2.0)]
    journal.write()
    stack.close()
    assert losses(tmp_path) == [(1, 1.0)]
    assert "No space left" in (tmp_path / LOG).read_text(encoding="utf-8")


def test_a_run_of_thousands_of_epochs_has_hundreds_of_pictures_and_that_of_its_end(tmp_path):
    tracker = Recorder()
    with (
        Journal(tmp_path, epochs=2034, trackers=[tracker]) as journal,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("hemafast.engine.journal.confusion_figure", lambda *_: Mock(axes=[]))
        for epoch in range(1, 2035):
            journal.end_epoch(epoch, {}, confusion=np.eye(2), classes=("a", "b"))
    drawn = [step for step, _, _ in tracker.figures]
    assert drawn == [*range(1, 100), *range(100, 1000, 10), *range(1000, 2001, 100), 2034]


def test_a_log_on_a_full_disk_neither_stops_the_run_nor_fills_the_terminal(tmp_path, journal_of, capfd):
    with journal_of() as journal:
        (log,) = (handler for handler in logger.handlers if isinstance(handler, logging.FileHandler))
        with open("/dev/full", "wb") as full:  # noqa: PTH123 - no file of ours
            os.dup2(full.fileno(), log.stream.fileno())
        logger.info("hello")
        end(journal, 1)
    assert losses(tmp_path) == [(1, 1.0)]
    assert "Traceback" not in capfd.readouterr().err


def test_trackers_get_measurements_by_epoch_rates_by_step_and_a_picture(journal_of):
    tracker = Recorder()
    with journal_of(1, tracker) as journal:
        rows = {"train": {"loss": 1.0}, "val": {"f1_macro": 0.5}}
        end(journal, 1, rows, confusion=np.array([[3, 1], [0, 2]]), lrs={12: 0.25, 11: 0.5})
        assert not tracker.closed
    assert tracker.values == [(11, {"lr": 0.5}), (12, {"lr": 0.25}), (1, {"train/loss": 1.0, "val/f1_macro": 0.5})]
    ((step, name, (shares,)),) = tracker.figures
    assert (step, name) == (1, "confusion")
    assert np.array_equal(shares, [[0.75, 0.25], [0.0, 1.0]])
    assert tracker.closed


def test_a_picture_does_not_wait_in_memory_for_the_collection_of_cycles(journal_of, monkeypatch):
    figure = confusion_figure({"epoch 1": np.eye(2)}, ("a", "b"))
    monkeypatch.setattr("hemafast.engine.journal.confusion_figure", lambda *_: figure)
    with journal_of(1, Recorder()) as journal:
        end(journal, 1, confusion=np.eye(2))
    assert figure.axes == []


def test_a_long_epoch_has_no_more_than_a_hundred_rates(journal_of):
    tracker = Recorder()
    with journal_of(1, tracker) as journal:
        end(journal, 1, lrs=dict.fromkeys(range(1, 1051), 1.0))
    steps = [step for step, values in tracker.values if "lr" in values]
    assert 50 < len(steps) <= 100
    assert steps[0] == 1


def test_a_resumed_run_shows_the_epochs_before(tmp_path, journal_of):
    with journal_of() as journal:
        for epoch in (1, 2):
            end(journal, epoch)
    stream = io.StringIO()
    live = LiveProgress(Console(file=stream, force_terminal=True, width=100, color_system=None))
    totals = Totals(2, "cpu")
    with Journal(tmp_path, live, epochs=3, first_epoch=2) as journal:
        journal.begin("training", 2, 64, done=32)
        journal.advance(16, totals, RunState(seconds=2.0, waited=0.5))
        journal.begin("validating", 2, 10)
        journal.advance(10)
    assert "1.0000" in stream.getvalue()
    assert "2.0000" not in stream.getvalue()


def test_scores_are_not_computed_if_nobody_watches(journal_of, monkeypatch):
    monkeypatch.setattr(Totals, "glance", lambda self: pytest.fail("somebody waited for scores"))
    with journal_of() as journal:
        journal.begin("training", 1, 64)
        journal.advance(16, Totals(2, "cpu"), RunState())


def test_the_log_says_why_a_run_stopped_and_all_is_closed(tmp_path, journal_of):
    handlers, level, tracker = list(logger.handlers), logger.level, Recorder()
    with pytest.raises(HemafastError), journal_of(1, tracker):
        logger.info("hello")
        raise HemafastError("The disk is full.", "Make room.")
    text = (tmp_path / LOG).read_text(encoding="utf-8")
    assert "hello" in text
    assert "stopped: The disk is full. Make room." in text
    assert (logger.handlers, logger.level) == (handlers, level)
    assert tracker.closed


def test_the_log_names_an_error_that_has_no_words(tmp_path, journal_of):
    with pytest.raises(MemoryError), journal_of():
        raise MemoryError
    assert "MemoryError" in (tmp_path / LOG).read_text(encoding="utf-8")


def test_a_resumed_log_goes_on_where_the_first_ended(tmp_path, journal_of):
    for words in ("first", "second"):
        with journal_of():
            logger.info(words)
    text = (tmp_path / LOG).read_text(encoding="utf-8")
    assert text.index("first") < text.index("second")
