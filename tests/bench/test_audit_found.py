"""The measurement of `hemafast audit`: which labels are changed, and how many are found."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import audit as measured  # a script beside the package, not a part of it

LABELS = np.random.default_rng(0).integers(0, 5, 1000)
SURE = np.eye(6)[LABELS] * 0.9 + 0.1 / 6


def test_as_many_labels_as_it_says_are_changed_and_no_image_twice():
    likeliest = (LABELS + 1) % 5
    wrong, places = measured.changed(LABELS, likeliest, np.random.default_rng(1))
    rows = np.concatenate([*places.values()])
    assert len(rows) == len(set(rows)) == 40
    assert set(np.flatnonzero(wrong != LABELS)) == set(rows)
    assert (wrong[places[measured.LIKELIEST]] == likeliest[places[measured.LIKELIEST]]).all()
    assert set(wrong) <= set(LABELS)  # never a class without images


def test_the_likeliest_wrong_class_is_the_second_where_the_label_is_the_first():
    probabilities = np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]])
    assert measured.likeliest_other(np.array([0, 2]), probabilities).tolist() == [1, 0]


def test_a_model_that_is_right_finds_all_and_chance_finds_its_share():
    wrong, places = measured.changed(LABELS, (LABELS + 1) % 5, np.random.default_rng(2))
    for name, ranking in measured.RANKINGS.items():
        found = [measured.found_by(ranking(wrong, SURE), rows) for rows in places.values()]
        assert (found == [1, 1]) == (name != "chance")
    chance = measured.found_by(measured.RANKINGS["chance"](wrong, SURE), np.arange(500))
    assert 0 < chance < 0.1


def test_the_table_has_a_row_for_each_ranking():
    shares = {"median": 0.8, "min": 0.7, "max": 0.9}
    result = {
        "command": "python benchmarks/audit.py DATA",
        "machine": {"cores": "2", "processor": "P", "torch": "2"},
        "judged_by": "features",
        "likeliest_is_answer": 0.12,
        "others_doubted_before": shares,
        "images": 1000,
        "accuracy": 0.9,
        "found": {name: {measured.RANDOM: shares, measured.LIKELIEST: shares} for name in measured.RANKINGS},
    }
    text = measured.tables({"audit": result})["audit"]
    assert text.count("80% (70% to 90%)") == 10
    assert "first 4%" in text
