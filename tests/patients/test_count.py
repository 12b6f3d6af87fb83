"""Counting patients: what is counted, what is said beside it, and how it agrees with labels."""

import numpy as np
import pandas as pd
import pytest
from called_cells import CLASSES, cells_of

from hemafast.errors import HemafastError
from hemafast.patients.count import Counting, count_patients, lacking, natural
from hemafast.patients.known import compare

USUAL = {"eosinophil": 60, "monocyte": 38, "myeloblast": 2, "erythroblast": 5}


def counted(calls, change=None, **counting):
    cells = cells_of(calls)
    if change is not None:
        cells.table.update(pd.DataFrame(change))
    asked = Counting(**counting).checked(CLASSES)
    return cells, asked, count_patients(cells, asked)


def test_patients_are_counted_each_alone_in_the_order_of_their_names():
    _, _, patients = counted({"10": {"monocyte": 3}, "9": USUAL, "b": {"monocyte": 1}, "007": {"eosinophil": 1}})
    assert [one["patient"] for one in patients] == ["007", "9", "10", "b"]
    assert patients[1]["leukocytes"] == 100
    assert patients[1]["apart"]["erythroblast"]["per_100"] == 5
    assert patients[1]["notes"] == []


def test_a_patient_with_one_image_has_a_wide_interval_and_a_note():
    _, _, (one,) = counted({"a": {"monocyte": 1}})
    assert one["classes"]["monocyte"]["percent"] == 100
    assert one["classes"]["monocyte"]["ci95"][0] < 25
    assert one["notes"] == ["1 leukocyte: fewer than the 100 of a differential"]
    assert one["calls"]["myeloblast"]["call"] == "open"


def test_a_patient_without_leukocytes_has_no_percentages_and_open_calls():
    _, _, (one,) = counted({"a": {"erythroblast": 4}})
    assert one["classes"]["monocyte"]["percent"] is None
    assert one["apart"]["erythroblast"] == {"count": 4, "per_100": None, "ci95": None}
    assert one["calls"]["myeloblast"]["call"] == "open"
    assert one["notes"] == ["no leukocyte was found: there are no percentages"]


def test_what_is_uncertain_unlike_unreadable_or_not_named_is_said():
    calls = {"a": {"monocyte": 110}}
    change = {
        "confidence": [0.2] * 3 + [np.nan] * 107,
        "likeness": [0.01] * 40 + [np.nan] * 70,
        "error": [None] * 105 + ["damaged"] * 5,
        "predicted": [None] * 103 + [""] * 7,
    }
    _, _, (one,) = counted(calls, change)
    assert (one["images"], one["unreadable"], one["uncalled"], one["cells"]) == (110, 5, 2, 103)
    assert (one["uncertain"], one["unlike"]) == (3, 40)
    assert one["notes"] == [
        "5 of 110 images cannot be read",
        "2 cells were not named, and not counted",
        "3 of 103 cells are uncertain",
        "40 of 110 images are unlike those of training",
    ]


def test_a_patient_of_two_laboratories_is_said():
    cells, _, patients = counted({"a": USUAL}, {"domain": ["A"] * 50 + ["B"] * 55})
    assert patients[0]["domains"] == ["A", "B"]
    assert patients[0]["notes"] == ["images of 2 laboratories: A, B"]
    assert lacking(patients, cells)[0].startswith("a: of several laboratories")


def test_images_without_a_patient_are_not_counted_and_said():
    cells, _, patients = counted({"a": USUAL, "": {"monocyte": 3}})
    assert [one["patient"] for one in patients] == ["a"]
    assert lacking(patients, cells) == ["3 images have no patient, and no count"]


def test_a_limit_of_the_user_replaces_that_of_blasts():
    _, _, (one,) = counted({"a": USUAL}, limits={"eosinophil": 10})
    assert one["calls"] == {"eosinophil": {"limit": 10, "call": "above"}}
    _, _, (one,) = counted({"a": USUAL})
    assert one["calls"] == {"myeloblast": {"limit": 20, "call": "below"}}


@pytest.mark.parametrize(
    ("counting", "words"),
    [
        ({"apart": ["platelet"]}, "no class platelet"),
        ({"limits": {"blast": 20}}, "no class blast"),
        ({"limits": {"monocyte": 0}}, "no percentage"),
        ({"limits": {"monocyte": 101}}, "no percentage"),
        ({"limits": {"monocyte": float("nan")}}, "no percentage"),
        ({"limits": {"erythroblast": 5}}, "no leukocyte"),
        ({"convention": 150}, "100 or 200"),
    ],
)
def test_what_cannot_be_counted_is_refused(counting, words):
    with pytest.raises(HemafastError, match=words):
        Counting(**counting).checked(CLASSES)


def test_classes_that_users_name_are_counted_apart():
    _, _, (one,) = counted({"a": USUAL}, apart=["erythroblast", "myeloblast"])
    assert one["leukocytes"] == 98
    assert set(one["apart"]) == {"erythroblast", "myeloblast"}
    assert one["calls"] == {}


HOME = {"monocyte": {"monocyte": 80, "eosinophil": 20}, "eosinophil": {"eosinophil": 90, "monocyte": 10}}


def home_of(counts, prefix="home"):
    rows = [(label, call) for label, calls in counts.items() for call, count in calls.items() for _ in range(count)]
    images = [f"{prefix}/{number}.png" for number in range(len(rows))]
    return pd.DataFrame({"image": images, "label": [row[0] for row in rows], "predicted": [row[1] for row in rows]})


def test_adjusted_percentages_take_out_the_mistakes_at_home():
    """Of 100 monocytes and 100 eosinophils, as many are called as a model with these mistakes would."""
    cells = cells_of({"a": {"monocyte": 90, "eosinophil": 110, "erythroblast": 20}}, home=home_of(HOME))
    (one,) = count_patients(cells, Counting(adjust=True).checked(CLASSES))
    assert one["classes"]["monocyte"]["percent"] == 45
    assert one["adjusted"]["monocyte"]["percent"] == pytest.approx(50, abs=0.5)
    low, high = one["adjusted"]["monocyte"]["ci95"]
    assert low < 45 < 50 < high
    assert "erythroblast" not in one["adjusted"]


def test_a_patients_own_images_are_not_those_of_home():
    own = home_of({"monocyte": {"eosinophil": 30}}, "cells")
    cells = cells_of({"a": {"eosinophil": 30}}, home=pd.concat([own, home_of(HOME)]))
    (one,) = count_patients(cells, Counting(adjust=True).checked(CLASSES))
    cells = cells_of({"a": {"eosinophil": 30}}, home=home_of(HOME))
    (without,) = count_patients(cells, Counting(adjust=True).checked(CLASSES))
    assert one["adjusted"] == without["adjusted"]


def test_without_a_run_nothing_is_adjusted():
    with pytest.raises(HemafastError, match="mistakes at home are not known"):
        count_patients(cells_of({"a": USUAL}), Counting(adjust=True).checked(CLASSES))


def test_labels_of_cells_show_the_errors_of_the_counts():
    labels = ["monocyte"] * 10 + ["eosinophil"] * 50 + ["monocyte"] * 38 + ["myeloblast"] * 2 + ["erythroblast"] * 5
    cells, counting, patients = counted({"a": USUAL, "b": {"monocyte": 5}}, {"label": labels + [""] * 5})
    known = patients[0]["known"]
    assert (known["cells"], known["right"]) == (105, 95)
    assert known["percent"]["monocyte"] == 48
    assert known["distance"] == pytest.approx(10)
    assert patients[1]["known"] is None
    found = compare(patients, counting.among(cells.classes), counting.limits)
    assert found["patients"] == 1
    assert found["classes"]["eosinophil"]["bias"] == pytest.approx(10)
    assert found["calls"] == {"myeloblast": {"right": 1, "wrong": 0, "open": 0}}
    assert 0 < found["inside"] < 1


def test_without_labels_there_is_no_agreement():
    cells, counting, patients = counted({"a": USUAL})
    assert compare(patients, counting.among(cells.classes), counting.limits) is None


def test_numbers_come_before_names_and_in_their_order():
    assert sorted(["b", "10", "9", "a", "007"], key=natural) == ["007", "9", "10", "a", "b"]
