"""The learning rate of each step: torch's OneCycleLR, as a function."""

import math
import warnings

import pytest
import torch

from hemafast.engine.schedule import constant, one_cycle


def _by_torch(peak: float, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=steps, cycle_momentum=False)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 7, 9, 10, 11, 20, 33, 100, 1000])
@pytest.mark.parametrize("peak", [3e-3, 1.0])
def test_one_cycle_is_torch_s_at_every_step(peak, steps):
    rate = one_cycle(peak, steps)
    assert [rate(step) for step in range(steps)] == pytest.approx(_by_torch(peak, steps), rel=1e-9)


@pytest.mark.parametrize("steps", range(1, 12))
def test_one_cycle_of_a_few_steps_is_a_rate_at_every_step(steps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates = [one_cycle(0.1, steps)(step) for step in range(steps)]
    assert all(math.isfinite(rate) and 0 < rate <= 0.1 * (1 + 1e-12) for rate in rates)


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing():
    rates = [one_cycle(0.1, 100)(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1 / 25)
    assert rates.index(max(rates)) == 29
    assert max(rates) == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.1 / 25 / 1e4)
    assert rates[:30] == sorted(rates[:30])
    assert rates[29:] == sorted(rates[29:], reverse=True)


def test_a_step_beyond_the_last_keeps_the_last_rate():
    rate = one_cycle(0.1, 50)
    assert rate(49) == rate(50) == rate(500)


def test_constant_is_constant():
    assert {constant(0.01)(step) for step in (0, 1, 10**6)} == {0.01}
