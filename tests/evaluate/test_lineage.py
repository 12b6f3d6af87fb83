"""Lineages, maturation, blasts: against counts by hand."""

import numpy as np
import pytest
from sklearn import metrics as reference

from hemafast.evaluate import lineage as scored
from hemafast.evaluate.lineage import SPECIFICITY
from hemafast.evaluate.metrics import confusions
from hemafast.evaluate.scores import score, selective
from hemafast.lineage import Lineage, packaged_lineage
from hemafast.taxonomy import CHALLENGE_CLASSES

INDEX = {name: index for index, name in enumerate(CHALLENGE_CLASSES)}


def matrix_of(*pairs):
    """Confusion of pairs of true and answered class."""
    true, answered = np.array([[INDEX[name] for name in pair] for pair in pairs]).T
    return confusions(true, answered, np.ones((len(pairs), 1), np.float32), 11)


def lineage_scores(confusion, classes=CHALLENGE_CLASSES, tree=None):
    return scored.lineage_scores(confusion, classes, tree or packaged_lineage())


def maturation_scores(confusion, classes=CHALLENGE_CLASSES, tree=None):
    return scored.maturation_scores(confusion, classes, tree or packaged_lineage())


def blast_scores(labels, probabilities, classes, threshold, reported, blast="myeloblast"):
    return scored.blast_scores(labels, probabilities, classes, threshold, reported, blast)


def test_a_mistake_within_a_lineage_is_none_between_lineages():
    within = matrix_of(("myelocyte", "promyelocyte"), ("monocyte", "monocyte"))
    across = matrix_of(("myelocyte", "lymphocyte_typical"), ("monocyte", "monocyte"))
    assert lineage_scores(within)["accuracy"] == 1
    assert lineage_scores(across)["accuracy"] == 0.5


def test_lineage_scores_are_those_of_scikit_learn_on_the_names_of_lineages():
    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(0, 11, 200), generator.integers(0, 11, 200)
    probabilities = np.eye(11)[predicted]
    found = score(labels, probabilities, CHALLENGE_CLASSES, resamples=10)["lineage"]
    lineage_of = {name: lineage for lineage, names in packaged_lineage().lineages.items() for name in names}
    true, answered = ([lineage_of[CHALLENGE_CLASSES[index]] for index in each] for each in (labels, predicted))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(true, answered, average="macro"))
    assert found["confusion"] == reference.confusion_matrix(true, answered, labels=found["names"]).tolist()


def test_a_neighbour_costs_less_than_a_far_stage_and_another_cell_most():
    costs = [
        maturation_scores(matrix_of(("myelocyte", answered)))["distance"]
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
        )
    )
    assert said["images"] == 4
    assert said["distance"] == (0 + 4 + 1 + 4) / 4
    assert (said["exact"], said["neighbour"], said["far"], said["outside"]) == (1, 1, 1, 1)


def test_the_share_of_adjacent_stages_counts_neighbours_only():
    said = maturation_scores(
        matrix_of(
            ("promyelocyte", "myelocyte"),
            ("myelocyte", "promyelocyte"),
            ("myelocyte", "neutrophil_banded"),
            ("metamyelocyte", "monocyte"),
            ("monocyte", "metamyelocyte"),
        )
    )
    assert said["adjacent"] == 2 / 4
    assert said["neighbour"] == 2


def test_mistakes_between_lineages_are_twice_as_far_as_those_within():
    said = lineage_scores(
        matrix_of(
            ("myeloblast", "myeloblast"),
            ("myeloblast", "promyelocyte"),
            ("monocyte", "lymphocyte_typical"),
            ("monocyte", "eosinophil"),
        )
    )
    assert said["mistake_distance"] == pytest.approx((1 + 2 + 2) / 3)
    assert lineage_scores(matrix_of(("monocyte", "monocyte")))["mistake_distance"] is None


def test_scores_follow_the_tree_that_is_given():
    tree = Lineage({"one": ("a", "b", "c"), "other": ("d",)}, stages=("c", "a"), blast="d")
    labels, predicted = np.array([0, 1, 2, 3, 3]), np.array([2, 0, 2, 0, 3])
    found = score(labels, np.eye(4)[predicted], tuple("abcd"), lineage=tree, resamples=10)
    assert found["lineage"]["names"] == ["one", "other"]
    assert found["lineage"]["confusion"] == [[3, 0], [1, 1]]
    assert found["lineage"]["mistake_distance"] == pytest.approx((1 + 1 + 2) / 3)
    assert found["maturation"]["stages"] == ["c", "a"]
    assert (found["maturation"]["images"], found["maturation"]["adjacent"]) == (2, 0.5)
    without = score(labels, np.eye(4)[predicted], tuple("abcd"), resamples=10)
    assert without["lineage"] is without["maturation"] is None


def test_two_stages_apart_and_outside_are_told_apart_even_where_they_are_as_far():
    tree = Lineage({"one": ("a", "b", "c")}, stages=("a", "b"))
    said = score(np.array([0, 0]), np.eye(3)[[1, 2]], tuple("abc"), lineage=tree, resamples=10)["maturation"]
    assert (said["distance"], said["adjacent"], said["neighbour"], said["outside"]) == (1.0, 0.5, 1, 1)


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
    assert said["at_specificity"]["sensitivity"] is None


def test_blasts_at_a_fixed_specificity_are_a_point_of_the_roc_curve():
    generator = np.random.default_rng(0)
    labels = (generator.random(300) < 0.8).astype(np.int64)  # 0 is the blast
    blast = np.round(np.clip(generator.normal(0.6 - 0.3 * labels, 0.2), 0, 1), 2)  # with ties
    said = blast_scores(labels, np.stack([blast, 1 - blast], 1), ("myeloblast", "monocyte"), None, labels > 1)
    point = said["at_specificity"]
    false, true, _ = reference.roc_curve(labels == 0, blast, drop_intermediate=False)
    allowed = false <= 1 - SPECIFICITY + 1e-12
    assert point["sensitivity"] == pytest.approx(true[allowed].max())
    assert point["specificity"] == pytest.approx(1 - false[allowed].max())


def test_blasts_are_those_of_the_tree():
    labels, probabilities = np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]])
    said = blast_scores(labels, probabilities, ("a", "b"), None, labels >= 0, blast="b")
    assert (said["class"], said["likeliest"]["sensitivity"]) == ("b", 1.0)
    assert blast_scores(labels, probabilities, ("a", "b"), None, labels >= 0, blast=None) is None


def test_selective_answers_count_what_passes_the_threshold():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    said = selective(np.array([0, 1, 0]), probabilities, 0.65)
    assert (said["coverage"], said["answered"], said["accuracy"]) == (pytest.approx(2 / 3), 2, 0.5)
    assert selective(np.array([0, 1, 0]), probabilities, 0.99)["accuracy"] is None
    assert selective(np.array([0, 1, 0]), probabilities, None) is None
