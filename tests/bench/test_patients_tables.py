"""The tables of patients are means over compositions."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import patients_tables  # a script beside the package, not a part of it


def counted(distance, adjusted):
    return {"patients": 24, "distance": distance, "adjusted": adjusted, "inside": 0.9, "adjusted_inside": 0.95}


def learned(area, p):
    return {"auroc": area, "p": p, "told": p <= 0.05, "means": 0.7, "differential": 0.75}


def test_tables_show_the_mean_the_lowest_and_the_highest():
    machine = {"processor": "x", "cores": "2", "torch": "1"}
    result = {
        "command": "python it",
        "machine": machine,
        "run": {"model": "net", "macro_f1": 0.5},
        "cells": 574,
        "draws": 2,
        "differentials": {"as at home": {"25": [counted(10.0, 20.0), counted(14.0, 22.0)]}},
        "labels": {
            "patients": 24,
            "cells": 22,
            "rich": "eosinophil",
            "planted": [learned(0.9, 0.01), learned(0.8, 0.11)],
            "none": [learned(0.5, 0.5), learned(0.6, 0.4)],
        },
    }
    tables = patients_tables.tables({"patients": result})
    row = "| as at home | 25 | 12.0% (10.0% to 14.0%) | 90% (90% to 90%) | 21.0% (20.0% to 22.0%) | 95% (95% to 95%) |"
    assert row in tables["differentials"]
    simple = "0.70 (0.70 to 0.70) | 0.75 (0.75 to 0.75)"
    planted = (
        f"| ill patients have more of eosinophil | 0.85 (0.80 to 0.90) | {simple} | 0.06 (0.01 to 0.11) | 1 of 2 |"
    )
    assert planted in tables["labels_of_patients"]
    none = f"| none | 0.55 (0.50 to 0.60) | {simple} | 0.45 (0.40 to 0.50) | 0 of 2 |"
    assert none in tables["labels_of_patients"]
