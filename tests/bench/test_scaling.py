"""The scaling benchmark: its arithmetic on made-up rounds, its stations on a small data set."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from scipy import stats

from hemafast.bench.settings import Bench, bench_settings
from hemafast.bench.worker import Done, Round
from hemafast.pictures import pixels_of
from hemafast.preparation.schema import DatasetInfo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import scaling  # a script beside the package, not a part of it

pytestmark = pytest.mark.nightly

COST, RATE = scaling.AXES["pixels"], scaling.AXES["threads"]


def counted(bench):
    """A station that costs nothing."""
    while True:
        yield Done(bench.batch_size)


def round_of(images=100, seconds=1.0, **more):
    others = dict.fromkeys(("waited", "page_faults", "peak_memory", "peak_device_memory"), 0)
    return Round(**{"images": images, "seconds": seconds, "cpu_seconds": 2 * seconds, "steps": 1} | others | more)


@pytest.fixture
def bench(prepared):
    network = {"model": "test_resnet", "image_size": 56, "batch_size": 8}
    plain = {"threads": 1, "device": "cpu", "amp": "off", "compile": "off"}
    return Bench(bench_settings(data=prepared.folder, **network, **plain), loader_batch_size=8)


def test_a_line_is_found_with_its_fixed_cost_and_its_slope():
    grown = [0.004, 0.02, 0.05, 0.08]
    found = scaling.fitted(COST, {x: [2 + 30 * x, 4 + 60 * x, 3 + 45 * x] for x in grown})
    assert found["line"]["fixed"] == pytest.approx({"median": 3, "min": 2, "max": 4})
    assert found["line"]["each"] == pytest.approx({"median": 45, "min": 30, "max": 60})


def test_fits_are_those_of_scipy_round_by_round():
    generator = np.random.default_rng(0)
    grown = np.array([1.0, 2.0, 5.0, 9.0, 30.0])
    rounds = np.exp(generator.normal(0, 0.1, (3, 5))) * (1 + 2 * grown)
    found = scaling.fitted(COST, dict(zip(grown, rounds.T.tolist(), strict=True)))
    exponents = [stats.linregress(np.log(grown), np.log(one)).slope for one in rounds]
    assert found["exponent"] == pytest.approx(scaling.spread(exponents))
    # Least squares of relative errors: both sides of every equation over what was measured.
    lines = [np.linalg.lstsq(np.stack([grown / one, 1 / one], 1), np.ones(5))[0] for one in rounds]
    assert found["line"]["each"] == pytest.approx(scaling.spread([line[0] for line in lines]))
    assert found["line"]["fixed"] == pytest.approx(scaling.spread([line[1] for line in lines]))


def test_a_rate_has_an_efficiency_against_the_first_point_of_the_same_round():
    found = scaling.fitted(RATE, {1: [10.0, 20.0, 40.0], 2: [20.0, 30.0, 40.0], 4: [40.0, 20.0, 40.0]})
    assert found["efficiency"] == [
        {"median": 1.0, "min": 1.0, "max": 1.0},
        {"median": 0.75, "min": 0.5, "max": 1.0},
        {"median": 0.25, "min": 0.25, "max": 1.0},
    ]
    assert found["exponent"] == pytest.approx({"median": 0, "min": 0, "max": 1})
    assert "line" not in found


def test_one_point_says_nothing():
    assert scaling.fitted(RATE, {1: [10.0, 11.0, 12.0]}) == {}


def test_each_axis_looks_at_its_own_quantity():
    one = round_of(images=300, seconds=6.0, steps=3)
    values = {name: axis.value(one) for name, axis in scaling.AXES.items()}
    assert values == {"images": 2000.0, "pixels": 20.0, "threads": 50.0, "ranks": 50.0}
    assert scaling.AXES["pixels"].measure(1000) == 1.0


def test_a_summary_has_points_with_their_rounds_and_rates():
    sides = [scaling.Side(scaling.STEP, threads, counted) for threads in (1, 2)]
    measured = {sides[0]: [round_of(images) for images in (8, 10, 12)], sides[1]: [round_of(20)] * 3}
    found = scaling.summary(RATE, measured)
    series = found["series"][scaling.STEP]
    first, second = series["points"]
    assert first["at"] == 1
    assert first["value"] == first["images_per_second"] == {"median": 10, "min": 8, "max": 12}
    assert first["images_per_cpu_second"] == {"median": 5, "min": 4, "max": 6}
    assert [one["images"] for one in first["rounds"]] == [8, 10, 12]
    assert second["value"]["median"] == 20
    assert series["efficiency"][1]["median"] == 1.0
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(("cores", "workers"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_workers_double_up_to_all_cores(cores, workers):
    for axis in ("threads", "ranks"):
        processes = scaling.sides_of(axis, 1000, cores)
        assert all(len(mine) == 1 for mine in processes)  # torch has one number of threads a process
        for series in {mine[0].series for mine in processes}:
            assert [mine[0].at for mine in processes if mine[0].series == series] == workers


def test_images_grow_beyond_the_data_set_and_sizes_are_those_promised():
    loader, both = scaling.sides_of("images", 1000, 2)
    assert [side.at for side in loader] == [250, 500, 1000, 4000, 16000]
    assert [side.at for side in both] == [16, 31, 62, 125]
    for mine in scaling.sides_of("pixels", 1000, 2):
        assert tuple(side.at for side in mine) == scaling.SIZES
    assert len({side.at for side in scaling.sides_of("images", 3, 2)[1]}) == 1  # too few to cut: named once


def test_only_bare_loaders_are_drained():
    drained = {
        (axis, side.series)
        for axis in scaling.AXES
        for mine in scaling.sides_of(axis, 1000, 2)
        for side in mine
        if side.reads_ahead
    }
    assert drained == {("pixels", scaling.LOADER), ("threads", scaling.LOADER)}


@pytest.mark.parametrize("images", [20, 47, 100])
def test_an_epoch_of_the_loader_is_as_long_as_asked_for(bench, images):
    epochs = scaling.loader_epochs(images, bench)
    assert [next(epochs).images for _ in range(2)] == [images, images]


def test_an_epoch_of_training_is_as_long_as_asked_for(bench):
    epochs = scaling.training_epochs(21, bench)
    assert [next(epochs).images for _ in range(2)] == [21, 21]


def test_sizes_reach_the_station(bench):
    def asked(given):
        yield Done(given.settings.image_size)

    assert next(scaling.sized(asked, 96, bench)).images == 96


def test_ranks_train_together_and_leave_no_process_behind(bench):
    before = len(psutil.Process().children(recursive=True))
    sides = [[scaling.Side(scaling.BOTH, 2, partial(scaling.training_by_ranks, 2, True))]]
    ((side, rounds),) = scaling.race(sides, bench, 1, 0.1).items()
    assert side.at == 2
    assert all(one.images >= 16 and one.images / one.steps <= 16 for one in rounds)
    assert len(psutil.Process().children(recursive=True)) <= before + 1  # Python's tracker of its own resources


def test_sides_take_turns_behind_a_warm_up(bench, capsys):
    sides = [[scaling.Side(name, at, counted) for at in (1, 2)] for name in (scaling.LOADER, scaling.STEP)]
    measured = scaling.race(sides, bench, 3, 0.01)
    assert [len(rounds) for rounds in measured.values()] == [3] * 4
    said = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    turn = ["loader, 1", "loader, 2", "step, 1", "step, 2"]
    assert said == [f"{number}/3 {name}" for number in range(4) for name in turn]


def axes_made_up():
    found = {}
    for name, axis in scaling.AXES.items():
        sides = [side for mine in scaling.sides_of(name, 1000, 4) for side in mine]
        found[name] = scaling.summary(axis, {side: [round_of(side.at, 1 + k / 10) for k in range(3)] for side in sides})
    return found


def test_all_axes_are_drawn_with_what_was_measured(tmp_path, monkeypatch):
    drawn = []
    with monkeypatch.context() as change:
        change.setattr("hemafast.pictures.save", lambda figure, file: drawn.append(figure))
        scaling.draw(axes_made_up(), tmp_path / "new" / "scaling.png")
    (figure,) = drawn
    assert [panel.get_title(loc="left") for panel in figure.axes] == list(scaling.AXES)
    assert [panel.get_xlabel() for panel in figure.axes] == [axis.unit for axis in scaling.AXES.values()]
    pixels = figure.axes[1]
    assert [label.get_text() for label in pixels.get_xticklabels()] == [f"{side}²" for side in scaling.SIZES]
    assert {text.get_text() for text in pixels.get_legend().get_texts()} == {scaling.LOADER, scaling.STEP}
    assert pixels_of(figure).std() > 5


def test_drawn_data_and_unknown_axes_are_refused(tmp_path, prepared, monkeypatch):
    with pytest.raises(SystemExit, match="no axis 'time'; there are images, pixels, threads, ranks"):
        scaling.main(data=prepared.folder, axis=["time"])
    monkeypatch.setattr(DatasetInfo, "drawn", property(lambda self: True))
    with pytest.raises(SystemExit, match="holds drawn cells"):
        scaling.main(data=prepared.folder)


def test_the_whole_is_written(tmp_path, prepared, monkeypatch):
    monkeypatch.setattr(
        scaling, "race", lambda sides, *_: {side: [round_of(100, side.at)] * 3 for m in sides for side in m}
    )
    file, plot = tmp_path / "new" / "scaling.json", tmp_path / "new" / "scaling.png"
    scaling.main(data=prepared.folder, json_file=file, plot=plot, rounds=3, seconds=1.0)
    found = json.loads(file.read_text())
    assert found["axes"].keys() == scaling.AXES.keys()
    assert (
        found["command"]
        == "python benchmarks/scaling.py --model efficientnet_b0 --batch-size 16 --rounds 3 --seconds 1"
    )
    assert found["images"] == 47
    assert found["domains"] == ["Acevedo_20", "Matek_19"]
    assert found["machine"]["torch"]
    assert plot.read_bytes().startswith(b"\x89PNG")
