"""The benchmark of the start reads the log and makes a table."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import start_up  # a script beside the package, not part of it

from hemafast.bench.result import spread
from hemafast.engine.starting import Starting

MACHINE = {"cores": "2", "processor": "a processor", "torch": "2.0"}


def test_what_the_log_tells_is_read_back():
    with Starting(0.0) as starting:
        for part in ("imports", "data and choices", "first step"):
            starting.done(part)
    found = start_up.parts_of(f"INFO first step {starting.seconds:.1f} s after the start: {starting.told()}")
    assert list(found) == ["imports", "data and choices", "first step", "in all"]
    assert start_up.parts_of("INFO starting: libraries take some 5 s") is None


def test_the_table_has_a_row_for_each_part():
    parts = {"imports": spread([1.0, 2.0]), "in all": spread([3.0, 4.0]), "CPU seconds": spread([5.0, 6.0])}
    result = {"machine": MACHINE, "preset": "fast", "runs": 2, "seconds": {"warm": parts, "installed anew": parts}}
    lines = start_up.tables({"start_up": result})["start_up"].splitlines()
    assert lines[0] == "| part | warm | installed anew |"
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["imports", "in all", "CPU seconds"]
