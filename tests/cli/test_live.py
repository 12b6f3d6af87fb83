"""The live view: what it shows, when, and what it costs."""

import io
import logging
import time

import pytest
from rich.console import Console
from rich.logging import RichHandler

from hemafast.cli.live import LiveProgress


class Clock:
    """Seconds that pass when told to."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=80, height=50, color_system=None)


def measured(val_f1, seconds=10.0):
    train = {"loss": 0.5, "f1_macro": 0.25, "images_per_second": 1234.0, "data_wait_share": 0.031, "seconds": seconds}
    return {"train": train, "val": {"loss": 0.75, "f1_macro": val_f1, "seconds": 2.0}}


def lines(live, width=80):
    """What is shown at this moment."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(live._view())
    return [line.strip() for line in console.file.getvalue().splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"force_terminal": True}, True),
        ({"force_terminal": True, "quiet": True}, False),
        ({"force_terminal": False}, False),
        ({"force_terminal": True, "_environ": {"TERM": "dumb"}}, False),
    ],
    ids=["terminal", "quiet terminal", "pipe", "dumb terminal"],
)
def test_a_live_shows_on_a_terminal_that_is_not_quiet(options, shown):
    stream = io.StringIO()
    live = LiveProgress(Console(file=stream, width=100, **options))
    live.start("training", 64, epoch=1, epochs=3)
    live.advance(48, loss=0.1)
    live.finish(epoch=1, rows=measured(0.4))
    live.finish()
    assert live.shows == shown
    assert bool(stream.getvalue()) == shown


def test_the_present_epoch_is_told_with_its_rate_and_what_is_left(terminal, clock):
    live = LiveProgress(terminal, clock)
    live.finish(epoch=1, rows=measured(0.4, seconds=8.0))
    live.start("training", 1200, epoch=2, epochs=4)
    clock.now += 2
    live.advance(400, loss=0.5, f1_macro=0.25, data_wait_share=0.125)
    clock.now += 2
    live.advance(200)
    *_, where, how = lines(live)
    assert where.startswith("training  epoch 2/4")
    assert where.endswith("600/1,200 images  150 images/s")
    # 600 images at 150 a second; half of this epoch and two more of ten seconds
    assert how == "train loss 0.500, macro-F1 0.250  wait 12.5%  left: epoch 0:00:04, run 0:00:25"


def test_a_slow_rate_is_told_with_a_decimal(terminal, clock):
    live = LiveProgress(terminal, clock)
    live.start("explaining", 120)
    clock.now += 5
    live.advance(2)
    assert any("2/120 images  0.4 images/s" in line for line in lines(live))


def test_what_is_not_known_yet_is_a_dash(terminal):
    live = LiveProgress(terminal)
    live.start("training", 1200, epoch=1, epochs=4)
    *_, where, how = lines(live)
    assert where.endswith("0/1,200 images  - images/s")
    assert how == "train loss -, macro-F1 -  wait -  left: epoch -, run -"


def test_images_done_before_a_resume_count_for_the_progress_but_not_for_the_rate(terminal, clock):
    live = LiveProgress(terminal, clock)
    live.start("training", 1200, done=1000, epoch=1, epochs=4)
    clock.now += 1
    live.advance(100)
    assert live.rate() == 100
    assert live.stage_left() == 1


def test_a_slow_start_is_forgotten(terminal, clock):
    live = LiveProgress(terminal, clock)
    live.start("training", 100_000, epoch=1, epochs=1)
    clock.now += 60  # compiling
    live.advance(10)
    for _ in range(50):
        clock.now += 1
        live.advance(10)
    assert live.rate() == pytest.approx(10)


def test_in_the_first_epoch_the_run_ends_as_its_training_goes(terminal, clock):
    live = LiveProgress(terminal, clock)
    live.start("training", 1000, epoch=1, epochs=3)
    clock.now += 10
    live.advance(500)
    assert live.run_left() == 10 + 2 * 20
    live.start("validating", 100, epoch=1, epochs=3)
    assert live.run_left() is None  # it is not as fast or slow as training


def test_once_the_rate_is_known_the_wait_for_the_first_batch_does_not_count(terminal, clock):
    live = LiveProgress(terminal, clock)
    live.start("training", 1000, epoch=1, epochs=1)
    clock.now += 30
    live.advance(10)
    for _ in range(2):
        clock.now += 1
        live.advance(10)
    assert live.rate() == 10


def test_the_run_ends_as_the_last_epochs_went(terminal):
    live = LiveProgress(terminal)
    live.finish(epoch=1, rows=measured(0.1, seconds=1000.0))
    for epoch in range(2, 7):
        live.finish(epoch=epoch, rows=measured(0.1, seconds=8.0))
    live.start("training", 100, epoch=7, epochs=10)
    assert live.run_left() == 40.0


def test_the_phase_is_shown_until_training_begins_again(terminal):
    live = LiveProgress(terminal)
    live.start("training", 10, epoch=1, epochs=2)
    live.start("validating", 10, epoch=1, epochs=2)
    assert lines(live)[0].startswith("validating  epoch 1/2")
    live.start("training", 10, epoch=2, epochs=2)
    assert lines(live)[0].startswith("training  epoch 2/2")


def test_the_table_has_the_last_epochs_and_the_best_one_marked(terminal):
    live = LiveProgress(terminal)
    for epoch in range(1, 13):
        live.finish(epoch=epoch, rows=measured({2: 0.9, 11: 0.9}.get(epoch, 0.4)))
    rows = lines(live)[3:]
    assert [row.split()[0] for row in rows] == ["*", "5", "6", "7", "8", "9", "10", "11", "12"]
    assert rows[0].split() == ["*", "2", "0.5000", "0.2500", "0.7500", "0.9000", "1,234", "3.1", "12.0"]


def test_an_epoch_without_validation_or_a_score_is_shown_and_never_the_best(terminal):
    live = LiveProgress(terminal)
    live.finish(epoch=1, rows={"train": {"loss": 0.5}})
    live.finish(epoch=2, rows=measured(float("nan")))
    assert [row.split()[0] for row in lines(live)[3:]] == ["1", "2"]
    assert lines(live)[3].split() == ["1", "0.5000", "-", "-", "-", "-", "-", "-"]


def test_the_table_of_pretraining_has_its_own_scores(terminal):
    live = LiveProgress(terminal)
    val = {"feature_spread": 0.8, "knn_accuracy": 0.75, "seconds": 1.0}
    live.finish(epoch=1, rows={"train": {"loss": 4.0, "seconds": 9.0}, "val": val})
    live.start("training", 100, epoch=2, epochs=3)
    live.advance(10, loss=3.5)
    shown = " ".join(lines(live))
    assert "macro-F1" not in shown
    assert "train loss 3.500  wait" in shown
    assert "4.0000" in shown
    assert "0.7500" in shown
    assert "0.8000" in shown


def test_nothing_is_cut_off_on_a_terminal_of_eighty_columns(terminal, clock):
    live = LiveProgress(terminal, clock)
    live.finish(epoch=100, rows=measured(0.4, seconds=100.0))
    live.start("training", 100_000, epoch=101, epochs=300)
    live.advance(32, loss=12.5, f1_macro=0.25, data_wait_share=0.25)
    assert not [line for line in lines(live) if "…" in line]
    assert len(lines(live)) == 6


def test_lines_of_the_log_scroll_above_and_the_table_alone_remains(terminal):
    handler = RichHandler(console=terminal, show_path=False, show_time=False)
    log = logging.getLogger("test_live")
    log.addHandler(handler)
    live = LiveProgress(terminal)
    try:
        live.start("training", 10, epoch=1, epochs=2)
        log.warning("a line of the log")
        live.finish(epoch=1, rows=measured(0.4))
    finally:
        live.finish()
        log.removeHandler(handler)
    written = terminal.file.getvalue()
    end = written[written.rindex("macro-F1") :]
    assert "a line of the log" in written
    assert "0.7500" in end
    assert "images  " not in end


def test_advancing_costs_less_than_fifty_microseconds(terminal):
    live = LiveProgress(terminal)
    live.start("training", 10**9, epoch=1, epochs=2)
    calls, best = 2_000, float("inf")
    for _ in range(5):  # the best of five, for others compute here too
        started = time.perf_counter()
        for _ in range(calls):
            live.advance(32, loss=0.5, f1_macro=0.5, data_wait_share=0.01)
        best = min(best, (time.perf_counter() - started) / calls)
    assert best < 50e-6


PLAIN = {"pipe": {"force_terminal": False}, "dumb terminal": {"force_terminal": True, "_environ": {"TERM": "dumb"}}}


@pytest.mark.parametrize("kind", PLAIN)
def test_where_nothing_can_be_drawn_a_line_tells_the_progress_now_and_then(kind, clock):
    stream = io.StringIO()
    live = LiveProgress(Console(file=stream, width=60, **PLAIN[kind]), clock)
    live.start("reading images", 10_000, unit="images")
    for _ in range(40):
        clock.now += 1
        live.advance(100)
    live.start("training", 1_000, epoch=2, epochs=4)
    clock.now += 20
    live.advance(100)
    live.finish()
    assert stream.getvalue().splitlines() == [
        "reading images: 1,500/10,000 images  100 images/s, left: 0:01:25",
        "reading images: 3,000/10,000 images  100 images/s, left: 0:01:10",
        "training  epoch 2/4: 100/1,000 images  5.0 images/s, left: epoch 0:03:00, run 0:09:40",
    ]


def test_quiet_says_nothing_however_long_it_takes(clock):
    stream = io.StringIO()
    live = LiveProgress(Console(file=stream, quiet=True), clock)
    live.start("reading images")
    clock.now += 100
    live.advance(100)
    assert stream.getvalue() == ""


def test_a_terminal_without_unicode_gets_ascii(clock):
    written = io.BytesIO()
    console = Console(file=io.TextIOWrapper(written, encoding="latin-1"), force_terminal=True, width=80)
    live = LiveProgress(console, clock)
    for total in (None, 10):
        live.start("training", total)
        live.advance(5)
        console.print(live._view())
        live.finish()
    live.finish(epoch=1, rows=measured(0.4))
    console.print(live._view())
    console.file.flush()
    assert written.getvalue().isascii()
