"""The bench: what it says about numbers, and one small run of it."""

import json
import subprocess
import sys
from itertools import count

import psutil
import pytest

from hemafast.bench.headroom import bound_by, headroom
from hemafast.bench.result import BenchFacts
from hemafast.bench.run import _ratio, run_bench
from hemafast.bench.settings import Bench, bench_settings
from hemafast.bench.stations import RATIOS, groups
from hemafast.bench.worker import Done, Round, Worker
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


def children() -> list[psutil.Process]:
    """Living processes below this one, but for the tracker that Python keeps for all of its own."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "resource_tracker" not in " ".join(process.cmdline())
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
        room = bytearray(64 * 2**20)
        time.sleep(seconds)
        del room
        yield Done(4, waited=seconds / 2)


def parts(seconds):
    """Batches of which only a little time counts."""
    import time

    while True:
        time.sleep(seconds)
        yield Done(2, seconds=seconds / 10, cpu_seconds=seconds / 20)


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
    assert found.steps >= 2
    assert found.seconds >= 0.1
    assert found.waited == pytest.approx(0.01 * found.steps)
    assert found.page_faults >= 32 * found.steps  # pages of 2 MiB, or many more of 4 KiB
    assert found.peak_memory > 64 * 2**20
    assert found.peak_device_memory == 0


def test_only_the_time_of_a_part_counts_where_a_station_says_so():
    with Worker({"parts": parts}, 0.01) as worker:
        found = worker.run("parts", 0.005)
    assert found.steps == 5
    assert found.seconds == pytest.approx(0.005)
    assert found.cpu_seconds == pytest.approx(0.0025)


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


@pytest.mark.slow
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


@pytest.mark.slow
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
