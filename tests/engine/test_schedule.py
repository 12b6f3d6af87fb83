"""The learning rate of each step, as a function."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hemafast.engine.schedule import build_schedule, constant, cosine, one_cycle

NAMES = ["constant", "cosine", "onecycle"]


def _by_torch(peak: float, steps: int, pct_start: float = 0.3) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=peak, total_steps=steps, pct_start=pct_start, cycle_momentum=False
    )
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def _rates(schedule, steps: int) -> list[float]:
    return [schedule(step) for step in range(steps)]


# One cycle


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 7, 9, 10, 11, 20, 33, 100, 1000])
@pytest.mark.parametrize("peak", [3e-3, 1.0])
def test_one_cycle_is_torch_s_at_every_step(peak, steps):
    assert _rates(one_cycle(peak, steps), steps) == pytest.approx(_by_torch(peak, steps), rel=1e-9)


@pytest.mark.parametrize("pct_start", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("steps", [20, 33, 100])
def test_the_warm_up_of_one_cycle_is_torch_s_pct_start(pct_start, steps):
    ours = _rates(build_schedule("onecycle", 0.1, steps, pct_start), steps)
    assert ours == pytest.approx(_by_torch(0.1, steps, pct_start), rel=1e-9)


@pytest.mark.parametrize("steps", range(1, 12))
def test_one_cycle_of_a_few_steps_is_a_rate_at_every_step(steps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates = _rates(one_cycle(0.1, steps), steps)
    assert all(math.isfinite(rate) and 0 < rate <= 0.1 * (1 + 1e-12) for rate in rates)


def test_one_cycle_that_rises_over_one_step_begins_at_the_peak():
    """Where torch's divides by zero."""
    assert one_cycle(0.1, 20, 0.05)(0) == 0.1


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing():
    rates = _rates(one_cycle(0.1, 100), 100)
    assert rates[0] == pytest.approx(0.1 / 25)
    assert rates.index(max(rates)) == 29
    assert max(rates) == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.1 / 25 / 1e4)
    assert rates[:30] == sorted(rates[:30])
    assert rates[29:] == sorted(rates[29:], reverse=True)


# Cosine


def test_cosine_rises_in_a_line_and_falls_along_a_cosine():
    rates = _rates(cosine(1.0, 12, 1 / 3), 12)
    falling = [(1 + math.cos(math.pi * share / 8)) / 2 for share in range(8)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, *falling])
    assert falling[4] == pytest.approx(0.5)


def test_cosine_without_warm_up_begins_at_the_peak():
    rates = _rates(cosine(0.1, 10, 0.0), 10)
    assert rates[0] == 0.1
    assert rates == sorted(rates, reverse=True)


# Constant


def test_constant_is_constant():
    assert {constant(0.01)(step) for step in (0, 1, 10**6)} == {0.01}


def test_constant_rises_in_a_line_if_asked():
    rates = _rates(build_schedule("constant", 1.0, 10, 0.3), 10)
    assert rates == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 7)


# All of them


@pytest.mark.parametrize(
    ("name", "expected"), [("constant", constant(0.1)), ("cosine", cosine(0.1, 200, 0.05)), ("onecycle", None)]
)
def test_a_schedule_has_a_warm_up_of_its_own(name, expected):
    expected = expected or one_cycle(0.1, 200, 0.3)
    assert _rates(build_schedule(name, 0.1, 200), 200) == _rates(expected, 200)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup", [None, 0.1, 0.25, 0.5])
def test_the_highest_rate_is_the_one_asked_for(name, warmup):
    assert max(_rates(build_schedule(name, 3e-4, 200, warmup), 200)) == pytest.approx(3e-4, rel=1e-12)


@given(
    name=st.sampled_from(NAMES),
    lr=st.floats(1e-8, 10),
    steps=st.integers(1, 300),
    warmup=st.none() | st.floats(0, 0.999),
    beyond=st.integers(0, 1000),
)
def test_no_step_has_a_rate_below_nothing_or_above_the_peak(name, lr, steps, warmup, beyond):
    rate = build_schedule(name, lr, steps, warmup)
    for step in (*range(steps), steps + beyond):
        assert 0 <= rate(step) <= lr * (1 + 1e-9)
    assert rate(steps - 1) > 0  # the last step learns too


@pytest.mark.parametrize("name", NAMES)
def test_a_step_beyond_the_last_keeps_the_last_rate(name):
    rate = build_schedule(name, 0.1, 50)
    assert rate(50) == rate(500)
    assert rate(50) <= rate(49)
