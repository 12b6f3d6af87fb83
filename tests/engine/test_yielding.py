"""While other programs want the cores, waiting threads of torch give them up; sums and later waits stay as they are."""

import atexit
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import hemafast
from hemafast.engine import yielding
from hemafast.engine.load import Load
from hemafast.engine.yielding import SpareThreads, Watch, yield_to_others

SECOND = 10**9
ALONE, BESIDE = (1.7, 0.2), (1.0, 0.8)
"""Seconds that a training ran and waited, of one second on two cores."""

WAITS = """
import sys, time, torch
from hemafast.engine.yielding import SpareThreads
torch.set_num_threads(2)
numbers = torch.ones(1 << 20)

def waited():
    numbers.add_(1)
    began = time.process_time()
    for _ in range(40):
        numbers.add_(1)
        time.sleep(0.02)
    return time.process_time() - began

before = waited()
spare = SpareThreads(2, 2)
meanwhile = waited()
spare.close()
print(before, meanwhile, waited())
"""


def loads(*seconds: tuple[float, float]) -> Iterator[Load]:
    """What looks at the load find, from the first one on, if so many seconds passed between them."""
    ran, waited = 0, 0
    yield Load()
    for more_ran, more_waited in seconds:
        ran, waited = ran + int(more_ran * SECOND), waited + int(more_waited * SECOND)
        yield Load({"1": (ran, waited)})


class Spare:
    """Spare threads that are only counted."""

    held = 0

    def __init__(self) -> None:
        Spare.held += 1

    def close(self) -> None:
        Spare.held -= 1


def watched(*seconds: tuple[float, float]) -> list[bool]:
    """Whether threads yield after each look."""
    each, Spare.held = loads(*seconds), 0
    watch, answers = Watch(Spare, lambda: next(each)), []
    for _ in seconds:
        watch.look()
        answers.append(watch.yields)
        assert Spare.held == watch.yields
    return answers


def test_threads_yield_from_the_first_crowded_look_on():
    assert watched(ALONE, ALONE, BESIDE, BESIDE) == [False, False, True, True]


def test_they_wait_as_before_once_it_has_been_quiet_for_a_while():
    assert watched(BESIDE, *[ALONE] * 5, ALONE) == [True] * 5 + [False] * 2
    assert watched(BESIDE, ALONE, ALONE, BESIDE, *[ALONE] * 5) == [True] * 8 + [False]


def test_between_the_limits_all_stays_as_it_is():
    between = (1.66, 0.34)  # 0.17
    assert watched(between, BESIDE, *[between] * 9) == [False] + [True] * 10


def test_a_process_that_rests_is_not_judged():
    assert watched((0.01, 0.02), BESIDE, *[(0.01, 0.0)] * 9) == [False] + [True] * 10


@pytest.mark.skipif(len(os.sched_getaffinity(0)) != 2, reason="OpenMP counts the cores; the figures are for two")
def test_the_openmp_of_torch_takes_spare_threads_as_a_switch():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP"))}
    environment["PYTHONPATH"] = str(Path(hemafast.__file__).parent.parent)
    command = [sys.executable, "-c", WAITS]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    before, meanwhile, after = map(float, told.split())
    assert meanwhile < 0.7 * before
    assert meanwhile < 0.7 * after


@pytest.mark.parametrize(("threads", "cores", "teams"), [(2, 2, 1), (2, 4, 3), (16, 16, 1), (8, 64, 9), (4, 2, 0)])
def test_there_are_more_threads_than_cores_and_they_end(threads, cores, teams, monkeypatch):
    monkeypatch.setattr(SpareThreads, "_hold", lambda self: self._ended.wait())  # without threads of OpenMP
    spare = SpareThreads(threads, cores)
    started = list(spare._started)
    assert [team.is_alive() for team in started] == [True] * teams
    assert threads + teams * (threads - 1) > cores
    spare.close()
    assert not any(team.is_alive() for team in started)


def test_sums_stay_the_same_beside_spare_threads():
    numbers = torch.randn(1 << 20, generator=torch.Generator().manual_seed(1))
    alone, threads = numbers.sum(), torch.get_num_threads()
    spare = SpareThreads(max(threads, 2), len(os.sched_getaffinity(0)))
    assert torch.equal(numbers.sum(), alone)
    assert torch.get_num_threads() == threads
    spare.close()


@pytest.mark.parametrize(
    ("threads", "cores", "given"),
    [
        (1, 2, {}),
        (2, 2, {"GOMP_SPINCOUNT": "7"}),
        (2, 2, {"OMP_WAIT_POLICY": "ACTIVE"}),
        (2, 64, {}),  # 63 teams would be needed
        (4, 2, {}),  # they sleep at once anyway
    ],
)
def test_nothing_is_watched_where_none_waits_or_it_costs_too_many_threads_or_against_the_user(
    threads, cores, given, monkeypatch
):
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(yielding, "_watches", {})
    assert not yield_to_others(given)
    assert not yielding._watches


@pytest.mark.parametrize(
    ("exported", "watched"),
    [
        (["GOMP_parallel"], True),
        (["GOMP_parallel", "kmp_set_blocktime"], False),  # LLVM's and Intel's
        ([], False),  # a pool of torch
        (None, False),  # no such library
    ],
)
def test_only_threads_of_gnu_openmp_are_watched(exported, watched, monkeypatch):
    def library(name):
        if exported is None:
            raise OSError(name)
        return SimpleNamespace(**dict.fromkeys(exported))

    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(yielding, "_watches", {})
    monkeypatch.setattr(yielding.ctypes, "CDLL", library)
    monkeypatch.setattr(Watch, "run", lambda self, ended: None)
    assert yield_to_others({}) is watched
    assert bool(yielding._watches) is watched


def test_the_threads_of_this_torch_are_known():
    brought = list(Path(torch.__file__).parent.glob("lib/libgomp*"))
    assert yielding._threads_of_gnu() or not brought


def test_a_forked_process_ends_without_the_thread_of_its_parent():
    ended = threading.Event()
    gone = threading.Thread(target=ended.wait)  # as after a fork: not alive, and its lock is held for ever
    with ended._cond:
        yielding._end(ended, gone)
    assert not ended.is_set()


def test_one_thread_watches_however_often_it_is_asked_for_until_the_process_ends(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr(yielding, "_watches", {})
    started, ends = list[Watch](), list[Callable[[], None]]()
    monkeypatch.setattr(Watch, "run", lambda self, ended: (started.append(self), ended.wait()))
    monkeypatch.setattr(atexit, "register", lambda end, *given: ends.append(partial(end, *given)))
    before = set(threading.enumerate())
    assert yield_to_others({})
    assert yield_to_others({})
    (end,) = ends
    end()
    assert len(started) == 1
    assert "watch the load" not in {thread.name for thread in set(threading.enumerate()) - before}


def test_a_forked_process_watches_by_itself(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr(yielding, "_watches", {os.getpid() + 1: None})
    started = threading.Event()
    monkeypatch.setattr(Watch, "run", lambda self, ended: started.set())
    assert yield_to_others({})
    assert started.wait(10)


def test_spare_threads_end_with_the_watch(monkeypatch):
    monkeypatch.setattr(yielding, "LOOK", 0.001)
    each, ended, Spare.held = loads(*[BESIDE] * 10**6), threading.Event(), 0
    watch = Watch(Spare, lambda: next(each))
    watching = threading.Thread(target=watch.run, args=(ended,))
    watching.start()
    while not watch.yields:
        time.sleep(0.001)
    ended.set()
    watching.join()
    assert Spare.held == 0


@pytest.mark.parametrize(("room", "asked"), [(5, 0), (8, 2)])  # three teams of two have six threads
def test_where_no_thread_can_be_started_the_watch_ends_and_leaves_none(monkeypatch, room, asked):
    start, left, teams = threading.Thread.start, iter(range(room)), []

    def start_one(self):
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(SpareThreads, "_hold", lambda self: (teams.append(self), self._ended.wait()))
    monkeypatch.setattr(threading.Thread, "start", start_one)
    monkeypatch.setattr(yielding, "LOOK", 0.001)
    before, each = threading.active_count(), loads(BESIDE)
    watch = Watch(lambda: SpareThreads(2, 4), lambda: next(each))
    watch.run(threading.Event())
    assert not watch.yields
    assert len(teams) == asked  # OpenMP, which would end the process, is asked only where there is room for all
    assert threading.active_count() == before
