"""The bench: what it says about numbers, and one small run of it."""

import json

import psutil
import pytest

from hemafast.bench.run import RATIOS, _ratio, bound_by, run_bench
from hemafast.bench.stations import STATIONS, Bench
from hemafast.bench.worker import Round, Worker
from hemafast.errors import HemafastError


def stations_at(loader: float, step: float, whole: float):
    rates = {"loader, packed": loader, "step": step, "end to end": whole}
    return {name: {"images_per_second": {"median": rate}} for name, rate in rates.items()}


def children() -> list[psutil.Process]:
    """Living processes below this one, but for the tracker that Python keeps for all of its own."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "resource_tracker" not in " ".join(process.cmdline())
    ]


def test_a_slow_step_is_named_as_the_limit():
    sentence = bound_by(stations_at(loader=2000, step=50, whole=49))
    assert "bound by the training step: 50 images/s" in sentence
    assert "the loader could do 40.0x that" in sentence
    assert "reaches 98 % of it; a smaller model" in sentence


def test_a_slow_loader_is_named_as_the_limit():
    sentence = bound_by(stations_at(loader=1000, step=1500, whole=900))
    assert "bound by the loader: 1,000 images/s" in sentence
    assert "the training step could do 1.5x that" in sentence
    assert "reaches 90 % of it; more loader threads" in sentence


def test_ratios_are_paired_by_round():
    ours = [Round(images, 2.0, 0.0) for images in (100, 40, 300)]
    plain = [Round(images, 1.0, 0.0) for images in (10, 20, 30)]
    # The medians alone would give 50 / 20 = 2.5; round by round it is 5, 1, 5.
    assert _ratio(ours, plain) == {"median": 5.0, "min": 1.0, "max": 5.0}


def test_fewer_than_three_rounds_are_refused_at_once(tmp_path):
    with pytest.raises(HemafastError, match="--rounds 3"):
        run_bench(Bench(data=tmp_path / "missing"), rounds=2, seconds=0.1)


def test_missing_data_is_refused_before_a_process_starts(tmp_path):
    with pytest.raises(HemafastError, match="not a prepared data set"):
        run_bench(Bench(data=tmp_path / "missing"), rounds=3, seconds=0.1)
    assert children() == []


@pytest.fixture
def bench(prepared) -> Bench:
    return Bench(
        data=prepared.folder,
        model="test_resnet",
        image_size=32,
        batch_size=8,
        loader_batch_size=8,
        threads=1,
        device="cpu",
        amp="off",
        compile="off",
    )


@pytest.mark.slow
def test_all_stations_are_measured_and_no_process_is_left(bench, dataset):
    named = []
    result = run_bench(bench, rounds=3, seconds=0.1, on_round=named.append)
    assert children() == []
    assert named == list(STATIONS) * 4  # a warm-up that is not counted, then three rounds
    assert json.loads(json.dumps(result)) == result
    assert "data" not in result["bench"]  # a path says nothing to another machine
    assert result["data"]["fingerprint"] == dataset.info.fingerprint
    assert list(result["stations"]) == list(STATIONS)
    for station in result["stations"].values():
        assert len(station["rounds"]) == 3
        assert all(one["images"] >= 8 and one["seconds"] >= 0.1 for one in station["rounds"])
        rate = station["images_per_second"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
        assert station["images_per_cpu_second"]["median"] > 0
    for ours, plain in RATIOS.items():
        pairs = zip(*(result["stations"][name]["rounds"] for name in (ours, plain)), strict=True)
        ratios = [a["images"] / a["seconds"] / (b["images"] / b["seconds"]) for a, b in pairs]
        assert result["ratios"][ours] == {
            "median": sorted(ratios)[1],
            "min": min(ratios),
            "max": max(ratios),
            "to": plain,
        }
    assert result["bound_by"] == bound_by(result["stations"])
    assert result["machine"]["device"] == "cpu"


@pytest.mark.slow
def test_a_station_that_fails_is_named_and_leaves_no_process(bench):
    broken = Bench(data=bench.data, model="no_such_network", threads=1, device="cpu")
    with (
        pytest.raises(HemafastError, match=r"'step' failed: .*no_such_network"),
        Worker("step", STATIONS["step"], broken) as worker,
    ):
        worker.run(0.1)
    assert children() == []


def test_a_station_whose_process_dies_is_named_and_leaves_no_process(bench):
    died = pytest.raises(HemafastError, match="'loader, packed' failed: its process died")
    with died, Worker("loader, packed", STATIONS["loader, packed"], bench) as worker:
        (process,) = children()
        process.kill()
        worker.run(0.1)
    assert children() == []


@pytest.mark.slow
def test_an_interrupted_bench_leaves_no_process(bench):
    def stop(name: str) -> None:
        if name == "loader, files":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bench(bench, rounds=3, seconds=0.1, on_round=stop)
    assert children() == []


def test_every_ratio_has_both_its_stations():
    assert {*RATIOS, *RATIOS.values()} <= set(STATIONS)
