"""A model and data of other classes: merged, left out, or refused with the command that compares them."""

import numpy as np
import pytest

from hemafast.errors import HemafastError
from hemafast.evaluate.folding import OtherClassesError, fold_classes, notes
from hemafast.preparation.sources.class_names import covered_by
from hemafast.taxonomy import CHALLENGE_CLASSES

BCCD = {"Basophil": 3, "Eosinophil": 88, "Lymphocyte": 33, "Monocyte": 20, "Neutrophil": 207}
AGREED = {"Lymphocyte": "lymphocyte_typical", "neutrophil_banded": "Neutrophil", "neutrophil_segmented": "Neutrophil"}


def test_equal_classes_are_left_as_they_are():
    folding = fold_classes(CHALLENGE_CLASSES, dict.fromkeys(CHALLENGE_CLASSES, 1), {})
    given = np.random.default_rng(0).dirichlet(np.ones(11), 5).astype(np.float32)
    assert folding.classes == CHALLENGE_CLASSES
    assert np.array_equal(folding.labels, np.arange(11))
    assert np.array_equal(folding.probabilities(given), given)
    assert notes(folding.account) == []


def test_a_coarse_class_takes_the_probability_of_all_that_it_covers():
    folding = fold_classes(CHALLENGE_CLASSES, BCCD, AGREED)
    given = np.random.default_rng(0).dirichlet(np.ones(11), 5)
    folded = folding.probabilities(given)
    both = given[:, 8] + given[:, 9]
    np.testing.assert_allclose(folded[:, folding.classes.index("Neutrophil")], both)
    np.testing.assert_allclose(folded.sum(axis=1), 1)
    assert len(folding.classes) == 10
    assert [folding.classes[place] for place in folding.labels] == [
        "basophil", "eosinophil", "lymphocyte_typical", "monocyte", "Neutrophil",
    ]  # fmt: skip
    assert "neutrophil_banded and neutrophil_segmented count as Neutrophil" in notes(folding.account)


def test_a_merged_answer_may_win_that_no_single_class_would():
    folding = fold_classes(("a", "b", "c"), {"a": 1, "bc": 1}, {"b": "bc", "c": "bc"})
    assert folding.probabilities(np.array([[0.4, 0.3, 0.3]])).argmax() == folding.classes.index("bc")


def test_other_names_are_refused_with_a_map_that_then_works():
    with pytest.raises(OtherClassesError, match=r"Lymphocyte \(33 images, probably lymphocyte_typical") as refused:
        fold_classes(CHALLENGE_CLASSES, BCCD, {})
    assert refused.value.suggested == AGREED
    assert fold_classes(CHALLENGE_CLASSES, BCCD, refused.value.suggested).account["left_out"] == {}


@pytest.mark.parametrize(
    ("model", "images"),
    [
        (tuple(BCCD), dict.fromkeys(CHALLENGE_CLASSES, 4)),  # the model is the coarse one
        (CHALLENGE_CLASSES, {"ig": 4, "Neutrophils": 2, "neutrophil": 3, "small lymph": 2, "large lymph": 1}),
        (CHALLENGE_CLASSES, {"neutrophil_banded": 4, "Neutrophil": 2}),
    ],
)
def test_every_suggestion_works(model, images):
    with pytest.raises(OtherClassesError) as refused:
        fold_classes(model, images, {})
    folding = fold_classes(model, images, refused.value.suggested)
    assert not any(covered_by(name) for name in folding.account["left_out"]) or model == tuple(BCCD)


def test_one_map_merges_the_classes_of_both_sides():
    images = dict.fromkeys(CHALLENGE_CLASSES, 1)
    folding = fold_classes(CHALLENGE_CLASSES, images, {"neutrophil_banded": "neutrophil_segmented"})
    assert folding.labels[8] == folding.labels[9] == folding.answers[8]
    assert "neutrophil_banded counts as neutrophil_segmented" in notes(folding.account)


def test_classes_that_the_model_lacks_are_left_out_and_counted():
    folding = fold_classes(CHALLENGE_CLASSES, {"Platelet": 7, "monocyte": 2, "artefact": 0}, {})
    assert list(folding.labels) == [-1, 5, -1]
    assert folding.account["left_out"] == {"Platelet": 7}
    assert "7 images of Platelet are left out" in notes(folding.account)


def test_an_empty_name_leaves_images_out_and_the_model_still_answers():
    folding = fold_classes(CHALLENGE_CLASSES, {"monocyte": 2, "basophil": 2}, {"basophil": ""})
    assert folding.account["left_out"] == {"basophil": 2}
    assert "basophil" in folding.classes


@pytest.mark.parametrize(
    ("images", "class_map", "words"),
    [
        (BCCD, {"Lympocyte": ""}, "names Lympocyte"),
        (BCCD, AGREED | {"Lymphocyte": "lymphocite"}, "names lymphocite"),
        ({"Platelet": 3}, {}, "No class is in both"),
        ({"monocyte": 3}, {"monocyte": ""}, "No class is in both"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(images, class_map, words):
    with pytest.raises(HemafastError, match=words):
        fold_classes(CHALLENGE_CLASSES, images, class_map)


def test_coarse_names_cover_classes_of_the_challenge():
    assert covered_by("Neutrophils") == {"neutrophil_banded", "neutrophil_segmented"}
    assert covered_by("01_Neutrófilo") == {"neutrophil_banded", "neutrophil_segmented"}
    assert covered_by("segmented neutrophil") == {"neutrophil_segmented"}
    assert covered_by("immature granulocytes") == {"promyelocyte", "myelocyte", "metamyelocyte"}
    assert covered_by("platelet") == covered_by("something") == set()
