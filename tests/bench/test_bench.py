"""The bench: what it says about numbers, and one small run of it."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import count

import psutil
import pytest

from hemafast.bench import feeding
from hemafast.bench import worker as workers
from hemafast.bench.headroom import bound_by, headroom
from hemafast.bench.result import BenchFacts
from hemafast.bench.run import _ratio, run_bench, summary
from hemafast.bench.settings import Bench, bench_settings
from hemafast.bench.stations import RATIOS, groups
from hemafast.bench.training import Compiling, build_measured
from hemafast.bench.worker import Done, Moment, Round, Span, Worker
from hemafast.engine.compiling import Compiled, Compiler
from hemafast.engine.machine import Choice
from hemafast.errors import HemafastError
from hemafast.progress import Progress


def result_at(loader: float, step: float, whole: float, *, memory: float = 60.0, **more):
    """A result of the rates alone; the step has 2 GFLOP and 1 GB an image, the machine 100 GFLOP/s."""
    rates = {"augment, basic": loader, "step": step, "end to end": whole, "decode": 900.0}
    result = {
        "stations": {name: {"images_per_second": {"median": rate}} for name, rate in rates.items()},
        "costs": {"training_flops": 2e9, "training_bytes": 1e9},
        "matrix_product_flops": {"median": 100e9},
        "memory_copy_bytes": {"median": memory * 1e9},
        "bench": {"batch_size": 32, "image_size": 224} | more.pop("bench", {}),
        "machine": {"device": "cpu", "loader threads": "2", "cores": "2", "torch.compile": "off", "precision": "fp32"}
        | more,
    }
    return result | {"headroom": headroom(result)}


OLDER: set[int] = set()
"""Processes below this one when a test began: preparing for another test may have left a reader that waits for work."""


@pytest.fixture(autouse=True)
def _older_processes() -> None:
    OLDER.clear()
    OLDER.update(process.pid for process in psutil.Process().children(recursive=True))


def children() -> list[psutil.Process]:
    """Living processes that the test has left, but for the tracker that Python keeps for all of its own."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.pid not in OLDER and "resource_tracker" not in " ".join(process.cmdline())
    ]


def test_a_slow_step_is_named_as_the_limit_by_the_side_of_the_roof_it_is_on():
    sentence = bound_by(result_at(loader=2000, step=40, whole=38))
    assert sentence.startswith(
        "Training is bound by the arithmetic of the step: 40 images/s, while the loader could do 50.0x that"
    )
    assert "End to end reaches 95% of it. The next thing to try is --image-size 160, 51% of the pixels" in sentence
    assert "memory traffic of the step" in bound_by(result_at(loader=2000, step=40, whole=38, memory=45))


def test_a_slow_loader_is_named_as_the_limit():
    sentence = bound_by(result_at(loader=1000, step=1500, whole=900))
    assert "bound by the loader: 1,000 images/s, while the step could do 1.5x that" in sentence
    assert "reaches 90% of it. The next thing to try is a policy that costs less" in sentence
    assert "try is --threads 8." in bound_by(result_at(loader=1000, step=1500, whole=900, cores="8"))


GPU = {"device": "cuda", "torch.compile": "on", "precision": "bf16"}


@pytest.mark.parametrize(
    ("more", "advice"),
    [
        ({"torch.compile": "off"}, "--compile on"),
        ({"precision": "fp32"}, "--amp auto"),
        ({}, "--batch-size 64"),
        ({"bench": {"batch_size": 256}}, "--image-size 160"),
        ({"bench": {"batch_size": 256, "image_size": 32}}, "a smaller --model"),
    ],
)
def test_advice_for_a_gpu_begins_with_what_costs_nothing(more, advice):
    assert f"next thing to try is {advice}" in bound_by(result_at(loader=5000, step=1000, whole=990, **(GPU | more)))


def test_what_is_lost_between_loader_and_step_is_blamed_on_shared_cores():
    assert "try is --threads 1: loader and step share" in bound_by(result_at(loader=100, step=90, whole=50))


def test_a_whole_that_beats_its_slower_part_is_to_be_measured_again():
    assert "try is to measure again with nothing else running" in bound_by(result_at(loader=2000, step=40, whole=48))
    assert "measure again" not in bound_by(result_at(loader=2000, step=40, whole=44))


def test_ceilings_are_rates_of_images():
    room = result_at(loader=1000, step=20, whole=19)["headroom"]
    assert (room["arithmetic"], room["memory"], room["reached"]) == (50.0, 60.0, 0.95)


def test_ratios_are_paired_by_round():
    ours = [Round(images, 2.0, *[0] * 6) for images in (100, 40, 300)]
    plain = [Round(images, 1.0, *[0] * 6) for images in (10, 20, 30)]
    # The medians alone would give 50 / 20 = 2.5; round by round it is 5, 1, 5.
    assert _ratio(ours, plain) == {"median": 5.0, "min": 1.0, "max": 5.0}


def test_fewer_than_three_rounds_are_refused_at_once(tmp_path):
    with pytest.raises(HemafastError, match="--rounds 3"):
        run_bench(Bench(bench_settings(data=tmp_path / "missing")), rounds=2, seconds=0.1)


def test_missing_data_is_refused_before_a_process_starts(tmp_path):
    with pytest.raises(HemafastError, match="not a prepared data set"):
        run_bench(Bench(bench_settings(data=tmp_path / "missing")), rounds=3, seconds=0.1)
    assert children() == []


# Workers: the stations are functions of this file, which their process imports.


def whole(seconds):
    """Batches that wait half of their time for data, and keep 64 MiB for a moment."""
    import time

    while True:
        room, asked = bytearray(64 * 2**20), Moment()
        time.sleep(seconds / 2)
        waited = Span(asked, Moment())
        time.sleep(seconds / 2)
        del room
        yield Done(4, waited)


def parts(seconds):
    """Batches of which only a little time counts."""
    import time

    while True:
        time.sleep(seconds)
        begin = Moment()
        time.sleep(seconds / 10)
        yield Done(2, part=Span(begin, Moment()), cpu_seconds=seconds / 20)


def numbered(_):
    """A station that says how often it was asked."""
    return (Done(number) for number in count())


def broken(_):
    raise ValueError("it does not fit")


def test_a_round_counts_batches_waiting_page_faults_and_memory():
    with Worker({"whole": whole}, 0.02) as worker:
        worker.run("whole", 0.05)
        found = worker.run("whole", 0.1)
    assert found.images == 4 * found.steps
    assert found.seconds >= 0.1
    assert 0.01 * found.steps <= found.waited < found.seconds
    assert found.page_faults >= 32 * found.steps  # pages of 2 MiB, or many more of 4 KiB
    assert found.peak_memory > 64 * 2**20
    assert found.peak_device_memory == 0


def test_only_the_time_of_a_part_counts_where_a_station_says_so():
    with Worker({"parts": parts}, 0.01) as worker:
        found = worker.run("parts", 0.005)
    assert found.steps <= 5
    assert 0.005 <= found.seconds < 0.01 * found.steps
    assert found.cpu_seconds == pytest.approx(0.0005 * found.steps)


def test_stations_of_one_process_keep_their_places_and_what_was_read_ahead_is_not_counted():
    with Worker({"a": numbered, "b": numbered}, None, reads_ahead=frozenset({"b"})) as worker:
        first, ahead = worker.run("a", 0), worker.run("b", 0)
        again = worker.run("a", 0)
    # Each round of "a" throws one batch away first, that of "b" six.
    assert (first.images, again.images, ahead.images) == (1, 3, 6)


def test_a_station_that_fails_is_named_and_leaves_no_process():
    failed = pytest.raises(HemafastError, match=r"'broken' failed: ValueError: it does not fit\.")
    with failed, Worker({"broken": broken}, None) as worker:
        worker.run("broken", 0.1)
    assert children() == []


def test_a_station_whose_process_dies_is_named_and_leaves_no_process():
    with pytest.raises(HemafastError, match="'a' failed: its process died"), Worker({"a": numbered}, None) as worker:
        (process,) = children()
        process.kill()
        worker.run("a", 0.1)
    assert children() == []


LOCKED = """
import multiprocessing
from hemafast.bench.worker import Done, Worker

class Locked:
    def __init__(self, _):
        self.lock, self.itself = multiprocessing.get_context("spawn").Lock(), self

    def __iter__(self):
        return self

    def __next__(self):
        return Done(1)

if __name__ == "__main__":
    with Worker({"locked": Locked}, None) as worker:
        worker.run("locked", 0)
"""


def test_a_station_with_locks_as_those_of_torchs_loader_leaves_no_warning(tmp_path):
    script = tmp_path / "locked.py"
    script.write_text(LOCKED, encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# A stand-in for a GPU: it works on what was handed to it while the host goes on, by a clock of its own.


class Card:
    """Time on a host and a device. A batch takes the host 1 s to hand over and the device `seconds` to compute."""

    def __init__(self, monkeypatch, seconds=10.0):
        self.now, self.done_at, self.seconds, self.said, self.deepest = 0.0, 0.0, seconds, [], 0.0
        self.synchronize = lambda: self._reach(self.done_at, "synchronize")
        self.max_memory_allocated, self.reset_peak_memory_stats = (lambda: 5), (lambda: None)
        monkeypatch.setattr(workers, "_cuda", lambda: self)
        monkeypatch.setattr(workers, "_settle", lambda: None)
        monkeypatch.setattr(workers.time, "perf_counter", lambda: self.now)

    def Event(self, *, enable_timing):  # noqa: N802 - as in torch.cuda
        assert enable_timing
        return Event(self)

    def works(self, count=1_000_000):
        """A station whose batches are computed by this card."""
        for _ in range(count):
            asked = Moment()
            self._device(1.0)  # the device waits a second for data in each of its ten
            waited = Span(asked, Moment())
            self._device(self.seconds - 1.0)
            self.now += 1.0
            self.deepest = max(self.deepest, self.done_at - self.now)
            yield Done(4, waited)

    def _device(self, seconds):
        self.done_at = max(self.done_at, self.now) + seconds

    def _reach(self, at, said):
        self.now = max(self.now, at)
        self.said.append(said)


class Event:
    def __init__(self, card):
        self._card, self.at = card, None

    def record(self):
        self.at = max(self._card.done_at, self._card.now)

    def synchronize(self):
        self._card._reach(self.at, "event")

    def elapsed_time(self, later):
        assert self._card.now >= later.at, "asked before the device was there"
        return 1000 * (later.at - self.at)


def test_the_clock_stops_when_the_device_is_done_and_not_when_the_host_is(monkeypatch):
    card = Card(monkeypatch)
    found = workers.measure(card.works(), 30.0, drain=False)
    assert found.images / found.seconds == pytest.approx(4 / 10)
    assert found.step_seconds == pytest.approx([10, 10, 10])
    assert found.waited == pytest.approx(found.steps)
    assert found.peak_device_memory == 5


def test_the_device_is_waited_for_around_a_measurement_and_not_within(monkeypatch):
    card = Card(monkeypatch, seconds=2.0)
    workers.measure(card.works(), 10.0, drain=False)
    assert card.said.count("synchronize") == 2
    assert card.said[-1] == "synchronize"


def test_the_host_does_not_run_so_far_ahead_that_a_measurement_never_ends(monkeypatch):
    card = Card(monkeypatch, seconds=100.0)
    found = workers.measure(card.works(), 50.0, drain=False)
    assert card.deepest <= 100.0 * (workers._AHEAD + 1)
    assert found.steps <= 51


def compiling(card, seconds):
    """A station whose batches take a second, and in which some also compile for `seconds`."""
    for once in seconds:
        card.now += 1.0 + once
        yield Done(4, compiled=once)


@pytest.mark.parametrize("late", [[], [0.0, 0.0, 0.0, 60.0]])
def test_compiling_is_told_apart_whenever_it_happens(monkeypatch, late):
    card = Card(monkeypatch)
    station = compiling(card, [100.0, 0.0, 0.0, *late, *[0.0] * 20])
    found = workers.measure(station, 5.0, drain=False)
    assert found.compile_seconds == 100.0 + sum(late)
    assert (found.images, found.seconds, found.steps) == (20, 5.0, 5)


def test_what_is_compiled_at_the_end_of_the_warm_up_is_not_the_first_step_that_counts(monkeypatch):
    card = Card(monkeypatch)
    found = workers.measure(compiling(card, [0.0, 0.0, 50.0, 70.0, *[0.0] * 20]), 5.0, drain=False)
    assert (found.compile_seconds, found.seconds) == (120.0, 5.0)


def test_the_overall_rate_weighs_rounds_by_their_seconds():
    warm_up, *rounds = (Round(images, 2.0, 0, 1, *[0] * 4, step_seconds=[1, 2, 3]) for images in (9, 100, 20))
    rounds[1] = replace(rounds[1], seconds=10.0, step_seconds=[0.5, 4, 9])
    found = summary(replace(warm_up, compile_seconds=40.0), rounds, "images")
    assert found["images_per_second_overall"] == 120 / 12  # the mean of the rates would be 26
    assert found["compile_seconds"] == 40.0
    assert found["seconds_a_step"] == {"median": 3, "min": 0.5, "max": 9}


def test_the_bench_reads_what_training_would_read(bench, monkeypatch):
    monkeypatch.setattr("hemafast.engine.plan.choose_input", lambda *_, **sizes: Choice("input", "resident", "fits"))
    machine, graph = bench.machine_and_graph()
    assert graph.source == "resident"
    assert machine.choices[-1] == Choice("input", "resident", "fits")
    assert bench.loader(8)._shape == replace(graph, batch_size=8)
    assert bench.loader(8, "strong", "files")._shape.source == "files"


def test_all_loaders_of_a_process_share_the_squares_on_the_device(bench):
    resident = replace(bench, settings=replace(bench.settings, input="resident"))
    first, second = resident.loader(8, "basic"), resident.loader(4, "none")
    assert first._source is second._source
    assert [len(next(loader.epoch(0)).images) for loader in (first, second)] == [8, 4]
    assert bench.loader(8)._source is not first._source


def test_compiling_is_what_the_compiler_of_the_step_says(bench):
    learner, _ = build_measured(bench)
    measured = Compiling(learner)
    assert measured.seconds() == 0
    learner.compiler.compiled.append(Compiled("training", 12.5, cached=False))
    assert (measured.seconds(), measured.seconds()) == (12.5, 0)


def test_the_compile_mode_of_the_settings_is_the_one_that_is_measured(bench, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "hemafast.engine.learner.Compiler", lambda **options: asked.append(options) or Compiler(enabled=False)
    )
    settings = replace(bench.settings, compile_mode="reduce-overhead")
    build_measured(replace(bench, settings=settings))
    assert [options["mode"] for options in asked] == ["reduce-overhead"]
    assert replace(bench, settings=settings).to_plain()["compile_mode"] == "reduce-overhead"


def test_no_copy_is_asked_for_where_the_host_feeds_a_gpu(bench, monkeypatch):
    """DALI copies from the memory that it is given, without a copy of its own before that."""
    from nvidia.dali import fn

    asked = []

    def external_source(**options):
        asked.append(options)
        raise LookupError

    monkeypatch.setattr(fn, "external_source", external_source)
    for station in (feeding.hand_over, feeding.decode):
        with pytest.raises(LookupError):
            next(station(bench))
    assert [options["no_copy"] for options in asked] == [True, True]


# All of it


@pytest.fixture
def bench(prepared) -> Bench:
    settings = bench_settings(
        data=prepared.folder,
        model="test_resnet",
        image_size=32,
        batch_size=8,
        threads=1,
        device="cpu",
        amp="off",
        compile="off",
    )
    return Bench(settings, loader_batch_size=8)


class Told(Progress):
    """Remembers the rounds that began: station, rounds done, rounds in all."""

    def __init__(self):
        self.rounds = []

    def start(self, what, total=None, *, unit="images", done=0, **facts):
        self.rounds.append((what.removeprefix("measuring: "), done, total))


@pytest.mark.nightly
def test_all_stations_are_measured_and_no_process_is_left(bench, dataset):
    told = Told()
    result = run_bench(bench, rounds=3, seconds=0.05, progress=told)
    named = told.rounds
    assert children() == []
    stations = [name for group in groups("cpu", peers=True) for name in group.makes]
    assert list(result["stations"]) == stations
    # A warm-up that is not counted, in which the processes do not wait for each other; then three rounds in turn.
    assert sorted(name for name, _, _ in named[: len(stations)]) == sorted(stations)
    assert [name for name, _, _ in named[len(stations) :]] == stations * 3
    assert sorted((done, total) for _, done, total in named) == [(k, len(named)) for k in range(4 * len(stations))]
    assert json.loads(json.dumps(result)) == result
    BenchFacts.model_validate(result)
    assert "data" not in result["bench"]  # a path says nothing to another machine
    assert result["data"]["fingerprint"] == dataset.info.fingerprint
    for station in result["stations"].values():
        rate = station["images_per_second"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
    assert result["stations"]["end to end"]["data_wait_share"]["median"] > 0
    assert result["stations"]["end to end"]["peak_memory"] > 100 * 2**20
    for ours, plain in RATIOS.items():
        pairs = zip(*(result["stations"][name]["rounds"] for name in (ours, plain)), strict=True)
        ratios = [a["images"] / a["seconds"] / (b["images"] / b["seconds"]) for a, b in pairs]
        assert result["ratios"][ours] == {
            "median": sorted(ratios)[1],
            "min": min(ratios),
            "max": max(ratios),
            "to": plain,
        }
    assert result["bound_by"] == bound_by(result)
    assert result["machine"]["device"] == "cpu"


@pytest.mark.nightly
def test_an_interrupted_bench_leaves_no_process(bench):
    class Stop(Told):
        def start(self, what, total=None, **more):
            if what.endswith("decode"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bench(bench, rounds=3, seconds=0.1, progress=Stop())
    assert children() == []


def test_every_ratio_has_both_its_stations():
    assert {*RATIOS, *RATIOS.values()} <= {name for group in groups("cpu", peers=True) for name in group.makes}
    assert "copy to device" in {name for group in groups("cuda", peers=False) for name in group.makes}
