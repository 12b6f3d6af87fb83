"""Lineages, maturation, blasts: against counts by hand."""

import numpy as np
import pytest
from sklearn import metrics as reference

from hemafast.evaluate.lineage import blast_scores, lineage_scores, maturation_scores, maturation_steps
from hemafast.evaluate.metrics import confusions
from hemafast.evaluate.scores import score, selective
from hemafast.taxonomy import CHALLENGE_CLASSES, LINEAGES, MATURATION

INDEX = {name: index for index, name in enumerate(CHALLENGE_CLASSES)}


def matrix_of(*pairs):
    """Confusion of pairs of true and answered class."""
    true, answered = np.array([[INDEX[name] for name in pair] for pair in pairs]).T
    return confusions(true, answered, np.ones((len(pairs), 1), np.float32), 11)


def test_every_class_of_the_challenge_has_one_lineage():
    assert sorted(label for labels in LINEAGES.values() for label in labels) == sorted(CHALLENGE_CLASSES)
    assert set(MATURATION) < set(LINEAGES["granulocytic"])


def test_a_mistake_within_a_lineage_is_none_between_lineages():
    within = matrix_of(("myelocyte", "promyelocyte"), ("monocyte", "monocyte"))
    across = matrix_of(("myelocyte", "lymphocyte_typical"), ("monocyte", "monocyte"))
    assert lineage_scores(within, CHALLENGE_CLASSES)["accuracy"] == 1
    assert lineage_scores(across, CHALLENGE_CLASSES)["accuracy"] == 0.5


def test_lineage_scores_are_those_of_scikit_learn_on_the_names_of_lineages():
    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(0, 11, 200), generator.integers(0, 11, 200)
    probabilities = np.eye(11)[predicted]
    found = score(labels, probabilities, CHALLENGE_CLASSES, resamples=10)["lineage"]
    lineage_of = {name: lineage for lineage, names in LINEAGES.items() for name in names}
    true, answered = ([lineage_of[CHALLENGE_CLASSES[index]] for index in each] for each in (labels, predicted))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(true, answered, average="macro"))
    assert found["confusion"] == reference.confusion_matrix(true, answered, labels=found["names"]).tolist()


def test_a_neighbour_costs_less_than_a_far_stage_and_another_cell_most():
    costs = [
        maturation_scores(matrix_of(("myelocyte", answered)), CHALLENGE_CLASSES)["distance"]
        for answered in ("myelocyte", "metamyelocyte", "neutrophil_banded", "neutrophil_segmented", "monocyte")
    ]
    assert costs == [0, 1, 2, 3, 4]


def test_the_distance_is_the_mean_over_the_cells_that_mature():
    said = maturation_scores(
        matrix_of(
            ("promyelocyte", "promyelocyte"),
            ("promyelocyte", "neutrophil_segmented"),
            ("neutrophil_banded", "neutrophil_segmented"),
            ("neutrophil_banded", "eosinophil"),
            ("eosinophil", "neutrophil_banded"),
        ),
        CHALLENGE_CLASSES,
    )
    assert said["images"] == 4
    assert said["distance"] == (0 + 4 + 1 + 4) / 4
    assert (said["exact"], said["neighbour"], said["far"], said["outside"]) == (1, 1, 1, 1)


def test_steps_do_not_depend_on_the_order_of_the_classes():
    turned = CHALLENGE_CLASSES[::-1]
    np.testing.assert_array_equal(maturation_steps(turned), maturation_steps(CHALLENGE_CLASSES)[:, ::-1])


def test_other_classes_have_neither_lineage_nor_stages_nor_blasts():
    found = confusions(np.array([0, 1]), np.array([1, 1]), np.ones((2, 1), np.float32), 2)
    assert lineage_scores(found, ("cat", "dog")) is None
    assert maturation_scores(found, ("cat", "dog")) is None
    assert blast_scores(np.zeros(1, np.int64), np.ones((1, 2)), ("cat", "dog"), 0.5, np.ones(1, bool)) is None


def test_blasts_are_counted_by_the_likeliest_class_and_by_the_threshold_on_what_is_reported():
    labels = np.array([0, 0, 1, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.45, 0.55], [0.2, 0.8], [0.05, 0.95]])
    reported = np.array([False, True, True, True, True])
    said = blast_scores(labels, probabilities, ("myeloblast", "monocyte"), 0.3, reported)
    assert (said["likeliest"]["sensitivity"], said["likeliest"]["specificity"]) == (0.5, 1.0)
    point = said["operating_point"]
    assert (point["blasts"], point["others"]) == (1, 3)
    assert (point["sensitivity"], point["specificity"]) == (1.0, pytest.approx(2 / 3))
    assert point["sensitivity_ci95"][0] < 0.25  # one blast proves little


def test_where_there_are_no_blasts_there_is_no_sensitivity():
    said = blast_scores(np.ones(3, np.int64), np.full((3, 2), 0.5), ("myeloblast", "monocyte"), None, np.ones(3, bool))
    assert said["likeliest"]["sensitivity"] is None
    assert said["operating_point"] is None


def test_selective_answers_count_what_passes_the_threshold():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    said = selective(np.array([0, 1, 0]), probabilities, 0.65)
    assert (said["coverage"], said["answered"], said["accuracy"]) == (pytest.approx(2 / 3), 2, 0.5)
    assert selective(np.array([0, 1, 0]), probabilities, 0.99)["accuracy"] is None
    assert selective(np.array([0, 1, 0]), probabilities, None) is None
