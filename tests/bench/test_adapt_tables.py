"""The tables of adapting are means over runs."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import adapt_tables  # a script beside the package, not a part of it


def laboratory(name, cells, scores, seconds):
    return {
        "name": name,
        "cells": cells,
        "changes": [
            {"change": change, "macro_f1": score} for change, score in zip(("no", "some"), scores, strict=True)
        ],
        "labels": [{"with": {"mean": 0.1 * place}} for place in range(len(adapt_tables.PER_CLASS))],
        "suggested": {"suggested": {"mean": 0.5}, "random": {"mean": 0.25}},
        "seconds": {"without": seconds, "with": 2 * seconds},
    }


@pytest.fixture
def result():
    runs = [
        {
            "preset": "robust",
            "laboratories": [laboratory("A", 10, (0.2, 0.4), 3), laboratory("B", 1000, (0.5, 0.7), 5)],
        },
        {
            "preset": "robust",
            "laboratories": [laboratory("A", 10, (0.4, 0.8), 9), laboratory("B", 1000, (0.5, 0.7), 9)],
        },
    ]
    machine = {"cpu": "x", "threads": 2, "gpu": None, "torch": "1", "dali": "1", "cores": 2, "vectors": "avx2"}
    return {"command": "python it", "machine": machine, "draws": 5, "runs": runs}


def test_changes_are_means_over_runs_and_laboratories(result, monkeypatch):
    monkeypatch.setattr(adapt_tables, "machine_line", lambda facts: "a machine")
    made = adapt_tables.tables({"adapt": result, "adapt_classes": {**result, "runs": result["runs"][:1]}})
    assert made["adapt_changes"].splitlines()[2:4] == [
        "| no | 0.300 (0.200 to 0.400) | 0.500 (0.500 to 0.500) | 0.400 |",
        "| some | 0.600 (0.400 to 0.800) | 0.700 (0.700 to 0.700) | 0.650 |",
    ]
    assert "| some | 0.400 (0.400 to 0.400) | 0.700 (0.700 to 0.700) | 0.550 |" in made["adapt_classes"]
    assert "| 50 a class | 0.300 | 0.300 | 0.300 |" in made["adapt_labels"]
    assert "| random | 0.250 | 0.250 | 0.250 |" in made["adapt_suggested"]


def test_seconds_are_those_of_the_first_run_where_it_takes_longest(result, monkeypatch):
    monkeypatch.setattr(adapt_tables, "machine_line", lambda facts: "a machine")
    told = adapt_tables.tables({"adapt": result, "adapt_classes": {**result, "runs": result["runs"][:1]}})[
        "adapt_labels"
    ]
    assert "at most 5 seconds without labels, and 10 with 50 a class (1,000 images)" in told
