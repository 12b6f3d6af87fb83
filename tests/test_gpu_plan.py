"""What GPUs could do: the arithmetic of docs/gpu.md, and the figures that its text repeats."""

import sys
from pathlib import Path

import pytest

from hemafast.bench.costs import step_operations
from hemafast.bench.result import Costs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import gpu_plan  # scripts beside the package, not parts of it
import output

ROOT = gpu_plan.ROOT
B0, RESNET18 = ("efficientnet_b0", 224, 256), ("resnet18", 224, 256)
PROJECTED = [(model, 224, batch) for model in gpu_plan.GOALS for batch in gpu_plan.BATCHES]


RESULTS = output.Results(ROOT / "benchmarks/results")
COUNTS = gpu_plan.read_counts(RESULTS)
SHARE = gpu_plan.memory_share(COUNTS)


@pytest.fixture(scope="module")
def tables():
    return gpu_plan.tables(RESULTS)


def work_of(key):
    return gpu_plan.work_of(COUNTS, key)


@pytest.fixture(scope="module")
def page():
    return " ".join((ROOT / "docs/gpu.md").read_text(encoding="utf-8").split())


def cells(table: str, row: int) -> list[str]:
    return [cell.strip() for cell in table.splitlines()[2 + row].strip("|").split("|")]


def test_the_page_says_first_that_nothing_ran_on_a_gpu(page):
    assert "**hemafast has not run on a GPU.**" in page.partition("## ")[0]


def test_a_step_takes_as_long_as_its_slowest_part():
    card = gpu_plan.Card("C", peak=10e12, memory=8e9, link=1e9, network=1e9)
    work = gpu_plan.Work(Costs(1, 4 * 10**9, 1, 8 * 10**7), 2 * 10**7, parameters=0, batch=10, launches=40_000)
    assert work.parts(card, 0.5) == {"arithmetic": pytest.approx(0.01), "memory": 0.2, "launches": pytest.approx(0.2)}
    assert work.rate(card, 1, 0.25) == pytest.approx(10 / 0.4)
    assert work.rate(card, 1, 1.0) == pytest.approx(10 / 0.2)  # launches bind


@pytest.mark.nightly
@pytest.mark.parametrize("key", gpu_plan.counted_keys(), ids=gpu_plan.named)
def test_the_result_file_holds_what_is_counted_now(key):
    assert gpu_plan.count(key) == COUNTS[gpu_plan.named(key)]


def test_the_result_file_holds_every_network_of_the_tables():
    assert list(COUNTS) == list(map(gpu_plan.named, gpu_plan.counted_keys()))


def test_flops_of_both_networks_are_those_of_their_papers():
    for key, forward, off in ((RESNET18, 2 * 1.8e9, 0.02), (B0, 2 * 0.39e9, 0.03)):
        assert work_of(key).costs.training_flops == pytest.approx(3 * forward, rel=off)


def test_operations_of_a_step_grow_with_the_network_and_are_those_of_our_step():
    """A forward and a backward pass of each layer, and what precision, loss, clipping and the optimizer add."""
    small, large = step_operations("test_resnet", 11, "fp32"), step_operations("resnet18", 11, "fp32")
    assert 62 * 2 < large < 62 * 2 + 120  # 62 parameters: one gradient each, and about as many activations
    assert small < large < step_operations("resnet18", 11, "bf16")  # casts


@pytest.mark.parametrize("key", PROJECTED)
def test_efficiency_never_rises_with_gpus(key):
    work = work_of(key)
    each = [work.rate(gpu_plan.H200, gpus, SHARE) / gpus for gpus in (1, 2, 4, 8, 16, 64, 256)]
    assert each == sorted(each, reverse=True)


def test_the_first_published_rate_is_met():
    rate = work_of(gpu_plan.ANCHOR).rate(gpu_plan.A100, 1, SHARE)
    assert rate == pytest.approx(gpu_plan.PUBLISHED[gpu_plan.ANCHOR][1])


def test_what_the_page_says_of_the_goals_is_what_the_table_says(tables, page):
    b0, resnet18 = (cells(tables["gpu_goals"], row) for row in (0, 1))
    assert b0[:2] == ["efficientnet_b0", "9,000"]
    assert resnet18[:2] == ["resnet18", "20,000"]
    unfused = work_of(B0).rate(gpu_plan.H200, 1, SHARE)
    assert unfused == pytest.approx(5900, rel=0.02)
    assert unfused < 9000
    assert 30 <= int(b0[-1].split()[0]) <= 37  # "a third of the bytes"
    assert 48 <= int(b0[3].split()[0]) <= 56  # "half of the bandwidth"
    assert f"needs {resnet18[3]} of the bandwidth with nothing fused; the published ResNet-50 reached 48 %" in page
    assert cells(tables["gpu_published"], 4)[4] == "48 %"
    assert "are 2 steps an epoch at a batch of 256, and 13 at 32" in page
    assert [cells(tables["gpu_projection"], row)[6] for row in (0, 1)] == ["13", "2"]


def test_launches_bind_small_batches_alone(tables):
    least, most = map(int, cells(tables["gpu_work"], 0)[-1].split(" to "))
    assert 8 < least < 32 < most < 256


def test_what_the_loader_moves_is_as_little_as_the_page_says():
    assert (3 * 256**2, 3 * 224**2) == (196_608, 150_528)
    share = (3 * 256**2 + 3 * 224**2) / work_of(B0).costs.training_bytes
    assert share == pytest.approx(0.001, abs=0.0005)
    assert pytest.approx(325_000, rel=0.01) == 64e9 / (3 * 256**2)


def test_the_limits_of_day_one_are_on_the_page(tables):
    rows = tables["gpu_steps"].splitlines()
    assert [row.split("`")[1] for row in rows[2:]] == [step.name for step in gpu_plan.STEPS]
    assert all(row.split("|")[3].strip().endswith(".") for row in rows[2:])
