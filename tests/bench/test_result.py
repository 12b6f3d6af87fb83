"""Files of results: read back, refused, compared."""

import copy
import io
import json

import numpy as np
import pytest
from command import hemafast
from rich.console import Console
from scipy import stats

from hemafast.bench.compare import compare
from hemafast.bench.plots import roofline_figure
from hemafast.bench.result import read_result, spread
from hemafast.cli.tables import bench_table, change_table, headroom_table
from hemafast.errors import HemafastError
from hemafast.pictures import pixels_of

STATIONS = ("decode", "augment, basic", "forward", "step", "end to end", "matrix product", "memory copy")


def station(rates, unit="images"):
    rounds = [
        {
            "images": round(1000 * rate),
            "seconds": 1000.0,
            "cpu_seconds": 2000.0,
            "steps": 10,
            "waited": 1.0,
            "page_faults": 5,
            "peak_memory": 2**30,
            "peak_device_memory": 0,
        }
        for rate in rates
    ]
    return {
        "unit": unit,
        "images_per_second": spread(rates),
        "images_per_cpu_second": spread([rate / 2 for rate in rates]),
        "page_faults_a_step": spread([0.5]),
        "data_wait_share": spread([0.001]),
        "peak_memory": 2**30,
        "peak_device_memory": 0,
        "rounds": rounds,
    }


@pytest.fixture
def result():
    """A whole result, made up."""
    return {
        "schema": 2,
        "bench": {"model": "resnet18", "image_size": 224, "batch_size": 32},
        "data": {"fingerprint": "abc", "drawn": False, "domains": ["A"]},
        "machine": {"processor": "P", "cores": "2", "device": "cpu", "precision": "fp32", "torch": "2"},
        "warm_up_rounds": 1,
        "rounds": 3,
        "seconds": 1.0,
        "stations": {name: station([10.0, 11.0, 12.0]) for name in STATIONS},
        "ratios": {"step": spread([2.0, 3.0, 4.0]) | {"to": "step, plain PyTorch"}},
        "matrix_product_flops": spread([1e11]),
        "memory_copy_bytes": spread([1e10]),
        "costs": {
            "forward_flops": 10**9,
            "training_flops": 3 * 10**9,
            "forward_bytes": 10**8,
            "training_bytes": 3 * 10**8,
        },
        "headroom": {
            "end_to_end": 11.0,
            "step_with_free_data": 11.0,
            "data_with_free_step": 11.0,
            "decode": 11.0,
            "arithmetic": 33.3,
            "memory": 33.3,
            "reached": 1.0,
        },
        "bound_by": "Training is bound by something.",
    }


def written(folder, result):
    file = folder / "bench.json"
    file.write_text(result if isinstance(result, str) else json.dumps(result))
    return file


def test_what_was_written_is_read_back(tmp_path, result):
    assert read_result(written(tmp_path, result)) == result


BROKEN = {
    "an older version": (lambda result: result.update(schema=1), "has format 1, not 2"),
    "no version": (lambda result: result.pop("schema"), "not the result of a bench .schema: Field required"),
    "no warm-up": (lambda result: result.update(warm_up_rounds=0), "warm_up_rounds"),
    "too few rounds": (lambda result: result.update(rounds=2), "rounds: Input should be greater"),
    "rounds that are missing": (
        lambda result: result["stations"]["step"]["rounds"].pop(),
        "stations.step.rounds: List should have at least 3",
    ),
    "a key that nobody knows": (lambda result: result.update(more=1), "more: Extra inputs"),
    "no number": (lambda result: result["headroom"].update(memory=float("nan")), "headroom.memory"),
    "a median beyond the largest": (
        lambda result: result["stations"]["step"]["images_per_second"].update(median=99.0),
        "not min <= median <= max",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_is_no_result_is_refused_by_name_and_place(tmp_path, result, how):
    spoil, said = BROKEN[how]
    spoil(result)
    with pytest.raises(HemafastError, match=said) as raised:
        read_result(written(tmp_path, result))
    assert "bench.json" in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"a"', "\ud83d"])
def test_a_file_that_is_no_json_object_is_refused(tmp_path, text):
    file = tmp_path / "bench.json"
    file.write_bytes(text.encode("utf-16", "surrogatepass") if text == "\ud83d" else text.encode())
    with pytest.raises(HemafastError, match=r"bench\.json is not (JSON|the result)"):
        read_result(file)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(HemafastError, match="cannot be read"):
        read_result(tmp_path / "none.json")


def test_a_change_has_the_interval_of_welch_on_logarithms(result):
    after = copy.deepcopy(result)
    after["stations"]["step"] = station([20.0, 23.0, 21.0, 25.0])
    changes = {one.station: one for one in compare(result, after).changes}
    step = changes["step"]
    logs = [np.log(rates) for rates in ([20.0, 23.0, 21.0, 25.0], [10.0, 11.0, 12.0])]
    expected = stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert step.ratio == pytest.approx(np.exp(logs[0].mean() - logs[1].mean()))
    assert (step.low, step.high) == pytest.approx((np.exp(expected.low), np.exp(expected.high)))
    assert step.verdict == "faster"
    assert changes["forward"].verdict == "within noise"
    assert {one.verdict for one in compare(after, result).changes if one.station == "step"} == {"slower"}


def test_a_comparison_says_what_else_differs(result):
    after = copy.deepcopy(result)
    after["bench"]["batch_size"] = 64
    after["machine"]["gpu"] = "H100"
    after["data"]["fingerprint"] = "def"
    after["stations"]["memory copy"] = station([30.0, 31.0, 32.0])
    del after["stations"]["forward"]
    assert compare(result, after).lines() == [
        "different: batch_size: 32 before, 64 after",
        "different: data: abc before, def after",
        "different: gpu: None before, H100 after",
        "only one result has forward",
        "the machine itself was faster: memory copy 2.83x",
    ]
    assert compare(result, result).lines() == []


def test_rates_without_spread_have_a_ratio_all_the_same(result):
    after = copy.deepcopy(result)
    for one, rate in ((result, 10.0), (after, 20.0)):
        one["stations"]["step"] = station([rate] * 3)
    (step,) = (one for one in compare(result, after).changes if one.station == "step")
    assert (step.ratio, step.low, step.high) == pytest.approx((2, 2, 2))


def test_tables_hold_what_was_measured(result):
    console = Console(width=160, record=True, file=io.StringIO())
    for table in (bench_table(result), headroom_table(result), change_table(compare(result, result))):
        console.print(table)
    text = console.export_text()
    assert "3.0x (2.0 to 4.0)" in text
    assert "arithmetic alone: 3.00 GFLOP per image at 100 GFLOP/s" in text
    assert "1,024 MiB" in text
    assert "1.000x" in text
    assert "within noise" in text


def test_the_roofline_is_drawn(result):
    figure = roofline_figure(result)
    (axis,) = figure.axes
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    points = {collection.get_label(): collection.get_offsets()[0].tolist() for collection in axis.collections}
    assert points["step: 11 images/s"] == pytest.approx([10, 33e9])  # 3 GFLOP and 0.3 GB an image
    assert points["forward: 11 images/s"] == pytest.approx([10, 11e9])
    roof = axis.lines[0].get_ydata()
    assert max(roof) == pytest.approx(1e11)
    assert pixels_of(figure).std() > 5


def test_the_command_shows_draws_and_compares_files_without_measuring(tmp_path, result):
    before = written(tmp_path, result)
    after = tmp_path / "after.json"
    result["stations"]["step"] = station([20.0, 23.0, 21.0])
    after.write_text(json.dumps(result))
    copied, plot = tmp_path / "new" / "copy.json", tmp_path / "new" / "roofline.png"
    done = hemafast("bench", "--result", after, "--compare", before, "--json", copied, "--plot", plot)
    assert done.returncode == 0, done.stderr
    assert "Training is bound by something." in done.stdout
    (line,) = (line for line in done.stdout.splitlines() if "faster" in line)
    assert "step" in line
    assert "1.9" in line
    assert json.loads(copied.read_text()) == result
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_command_refuses_a_file_to_compare_with_before_it_measures(tmp_path, prepared):
    done = hemafast("bench", "--data", prepared.folder, "--compare", written(tmp_path, "{}"))
    assert done.returncode == 2
    assert "bench.json is not the result of a bench" in done.stderr
