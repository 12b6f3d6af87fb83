"""The clock of the bench on a GPU."""

import time

import pytest
import torch

from hemafast.bench import worker
from hemafast.bench.settings import Bench, bench_settings
from hemafast.bench.training import end_to_end
from hemafast.bench.worker import Done

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # Inductor and cuDNN advise according to the device
]


def products(side: int = 8192):
    """Products that a GPU computes for milliseconds, and a host hands over in microseconds."""
    first, second, out = (torch.rand(side, side, device="cuda") for _ in range(3))
    while True:
        torch.mm(first, second, out=out)
        yield Done(1)


def test_the_clock_stops_when_the_device_is_done():
    found = worker.measure(products(), 0.3, drain=False)
    station, rounds = products(), 20
    next(station)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(rounds):
        next(station)
        torch.cuda.synchronize()
    each = (time.perf_counter() - started) / rounds
    assert found.seconds / found.steps == pytest.approx(each, rel=0.3)
    assert found.step_seconds[1] == pytest.approx(each, rel=0.3)


@pytest.mark.parametrize("compiled", ["off", pytest.param("on", marks=pytest.mark.slow)])
def test_training_is_measured_from_its_own_input_without_its_compiling(prepared, compiled):
    small = {"model": "test_resnet", "image_size": 56, "batch_size": 8, "threads": 2}
    bench = Bench(bench_settings(data=prepared.folder, device="cuda", compile=compiled, **small))
    assert bench.machine_and_graph()[1].source == "resident"
    found = worker.measure(end_to_end(bench), 0.3, drain=True)
    assert (found.compile_seconds > 0) == (compiled == "on")
    assert found.step_seconds[0] <= found.seconds / found.steps
    assert 0 <= found.waited < found.seconds
    assert found.peak_device_memory > 0
