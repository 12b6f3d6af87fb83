"""How far a run is, by its updates or by the clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hemafast.engine.duration import TICKS, EpochCount, TimeBudget, seconds_to_end, size_at
from hemafast.engine.state import RunState


def test_a_counted_course_is_over_behind_its_last_epoch():
    course = EpochCount(epochs=3, updates=5)
    assert course.ticks == 15
    assert course.tick(RunState(steps_done=7, epochs_done=1)) == 7
    assert not course.over(RunState(steps_done=15, epochs_done=2))  # trained, but not validated
    assert course.over(RunState(steps_done=15, epochs_done=3))


def test_a_timed_course_leaves_time_for_its_ending():
    course = TimeBudget(budget=100.0)
    assert course.tick(RunState(elapsed=20.0, ending=20.0)) == TICKS // 4
    assert not course.over(RunState(steps_done=9, elapsed=79.0, ending=20.0))
    assert course.over(RunState(steps_done=9, elapsed=80.0, ending=20.0))


@pytest.mark.parametrize("ending", [0.0, 5.0, 500.0])
def test_a_timed_course_has_one_update_however_late_it_is(ending):
    course, late = TimeBudget(budget=10.0), RunState(elapsed=60.0, ending=ending)
    assert course.tick(late) == TICKS
    assert not course.over(late)
    late.steps_done = 1
    assert course.over(late)


@given(st.floats(0, 1e6), st.floats(1, 1e6), st.floats(0, 1e6))
def test_ticks_stay_on_the_course(elapsed, budget, ending):
    assert 0 <= TimeBudget(budget).tick(RunState(elapsed=elapsed, ending=ending)) <= TICKS


def test_all_sizes_have_equal_shares():
    sizes = [size_at(tick, 12, (64, 96, 128)) for tick in range(12)]
    assert sizes == [64] * 4 + [96] * 4 + [128] * 4
    assert size_at(12, 12, (64, 96, 128)) == 128  # behind the last update
    assert size_at(5, 12, (128,)) == 128


def test_the_ending_is_reckoned_at_full_size():
    small, full = seconds_to_end(3.0, 64, 128, 0.0), seconds_to_end(12.0, 128, 128, 0.0)
    assert small == full == 24.0


def test_a_slow_start_foretells_a_slow_report():
    quick, slow = (seconds_to_end(3.0, 128, 128, starting) for starting in (1.0, 7.0))
    assert 6.0 < quick < slow < 6.0 + 7.0
