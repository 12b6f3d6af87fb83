"""Signals: what a real process does when it is told to stop, once, twice, and by whom."""

import os
import pty
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import forked
import pytest

from hemafast.config import to_json
from hemafast.engine import stop
from hemafast.engine.checkpoint import load_last
from hemafast.engine.step import TrainStep
from hemafast.engine.stop import SIGNALS, SecondSignal, StopFlag, exit_code
from hemafast.engine.trainer import train
from hemafast.run_folder import LAST

CODES = {
    signal.SIGINT: 130,
    signal.SIGTERM: 143,
    signal.SIGUSR1: 138,
    signal.SIGUSR2: 140,
    signal.SIGHUP: 129,
    signal.SIGXCPU: 152,
}

COMMAND = """
    import os, signal, sys, time
    from hemafast.cli import main
    from hemafast.engine import hooks
    from hemafast.engine.step import TrainStep

    update, number = map(int, sys.argv[1:3])
    del sys.argv[1:3]
    step, save, signalled = TrainStep.__call__, hooks.save_last, False

    def step_and_signal(self, *arguments, **named):
        global signalled
        step(self, *arguments, **named)
        if named["step"] + 1 == update:
            signalled = True
            os.kill(os.getpid(), number)

    def save_slowly(*arguments, **named):
        if signalled:
            print("saving", flush=True)
            time.sleep(60)
        save(*arguments, **named)

    TrainStep.__call__, hooks.save_last = step_and_signal, save_slowly
    main()
"""


def signal_behind(update: int, number: int) -> None:
    """The process that calls it signals itself behind that update."""
    step = TrainStep.__call__

    def step_and_signal(self, *arguments, **named):
        step(self, *arguments, **named)
        if named["step"] + 1 == update:
            os.kill(os.getpid(), number)

    TrainStep.__call__ = step_and_signal


def written(config, tmp_path: Path) -> Path:
    file = tmp_path / "settings.json"
    file.write_text(to_json(config), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def straight(settings):
    """The folder of a run that nobody stopped."""
    return train(settings(epochs=2, dropout=0.3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP], ids=lambda number: number.name
)  # the others come the same way: below
def test_a_signal_saves_behind_the_update_and_the_resumed_run_is_whole(
    settings, tmp_path, assert_equal_runs, straight, number
):
    config = settings(epochs=2, dropout=0.3)
    train_it = ("train", "--config", written(config, tmp_path), "--quiet")
    alone = {"cwd": tmp_path, "timeout": 120, "OMP_NUM_THREADS": "1"}
    ended = forked.hemafast(*train_it, **alone, first=partial(signal_behind, 8, number))
    (folder,) = config.output.iterdir()
    assert ended.returncode == CODES[number]
    assert f"Stopped by {number.name} after 8 updates, in epoch 2 of 2" in ended.stderr
    assert f"--resume {folder}" in ended.stderr
    assert load_last(folder / LAST)["progress"]["steps_done"] == 8
    resumed = forked.hemafast("train", "--resume", folder, "--quiet", **alone)
    assert resumed.returncode == 0
    assert_equal_runs(folder, straight)


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once_and_leaves_the_last_checkpoint_whole(settings, tmp_path):
    config = settings(epochs=2)
    asked = [str(8), str(int(signal.SIGTERM)), "train", "--config", str(written(config, tmp_path)), "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(COMMAND), *asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout.readline() == "saving\n"  # which would take a minute
    time.sleep(stop._ONE_PRESS + 0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=40)
    assert process.returncode == CODES[signal.SIGINT]
    (folder,) = config.output.iterdir()
    assert load_last(folder / LAST)["progress"]["epochs_done"] == 1


@pytest.mark.slow
def test_a_terminal_that_is_closed_leaves_a_run_that_can_be_resumed(settings, tmp_path):
    """Its writes fail from then on, which must not keep the run from saving."""
    config, (ours, theirs) = settings(epochs=500), pty.openpty()

    in_terminal = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [
        sys.executable,
        "-c",
        in_terminal,
        sys.executable,
        "-m",
        "hemafast",
        "train",
        "--config",
        str(written(config, tmp_path)),
    ]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, **streams, start_new_session=True, env=environment)
    os.close(theirs)
    seen = b""
    while b"epoch" not in seen:
        seen += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(timeout=60) == CODES[signal.SIGHUP]
    (folder,) = config.output.iterdir()
    assert "Stopped by SIGHUP" in (folder / "train.log").read_text(encoding="utf-8")
    assert load_last(folder / LAST)["progress"]["steps_done"] > 0


def test_a_signal_that_the_process_ignores_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopFlag() as flag:
            signal.raise_signal(signal.SIGHUP)
            assert flag.number == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", sorted({*SIGNALS} - {signal.SIGHUP}), ids=lambda number: number.name)
def test_a_signal_sets_the_flag(number):
    """SIGHUP, which also lets go of the terminal, is sent to a process of its own above."""
    with StopFlag() as flag:
        assert flag.number == 0
        signal.raise_signal(number)
        assert flag.number == number


def test_exit_codes_are_those_of_shells():
    assert {number: exit_code(number) for number in SIGNALS} == CODES


def test_signals_within_a_second_are_one(monkeypatch):
    with StopFlag() as flag:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert flag.number == signal.SIGINT
        later = time.monotonic() + stop._ONE_PRESS + 0.1
        monkeypatch.setattr(stop.time, "monotonic", lambda: later)
        with pytest.raises(SecondSignal) as caught:
            signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143


def test_handlers_are_put_back():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with StopFlag():
        assert all(signal.getsignal(number) != before[number] for number in SIGNALS)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_in_another_thread_nothing_is_handled():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    seen = []

    def enter() -> None:
        with StopFlag() as flag:
            seen.append((flag.number, {number: signal.getsignal(number) for number in SIGNALS}))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(0, before)]
