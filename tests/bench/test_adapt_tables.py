"""The table of labels says how long adapting takes, where that was measured."""

import copy
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import adapt_tables  # a script beside the package, not a part of it

RESULT = Path(adapt_tables.__file__).parent / "results" / "adapt.json"


@pytest.fixture
def result():
    """What was measured, without seconds."""
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    for one in found["laboratories"]:
        for measured in (one, *one["labels"]):
            measured.pop("seconds", None)
    return found


def test_seconds_are_those_of_the_laboratory_where_it_takes_longest(result):
    timed = copy.deepcopy(result)
    for place, one in enumerate(timed["laboratories"]):
        for seconds, measured in enumerate((one, *one["labels"])):
            measured["seconds"] = 10.0 * seconds + place
    last = len(timed["laboratories"]) - 1
    lines = adapt_tables.tables({"adapt": timed})["adapt_labels"].splitlines()
    assert lines[0].endswith("| seconds |")
    assert [line.split("|")[-2].strip() for line in lines[2:6]] == [str(10 * row + last) for row in (1, 2, 3, 4)]
    assert f"without labels {last}." in lines[-1]


def test_a_result_of_an_earlier_version_has_no_such_column(result):
    assert "econds" not in adapt_tables.tables({"adapt": result})["adapt_labels"]
