"""What numba compiles is said, once."""

from numba import njit

from hemafast.compiled import told


def test_compiling_is_said_once_and_what_is_compiled_is_not(caplog):
    caplog.set_level("INFO", "hemafast")
    inner = njit(lambda number: number + 1)
    outer = njit(lambda number: inner(number) * 2)
    for _ in range(2):
        with told("sums"):
            assert outer(3) == 8
    assert caplog.messages == ["compiling sums: some seconds, once"]
