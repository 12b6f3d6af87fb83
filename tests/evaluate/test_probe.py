"""Nearest neighbours and a linear probe: what they find, and that groups stay on one side."""

import numpy as np
import pytest

from hemafast.evaluate import probe as probing
from hemafast.evaluate.probe import probe

LABELS = ["a"] * 40 + ["b"] * 40


def features_of(labels, distance, seed=0):
    generator = np.random.default_rng(seed)
    places = np.array([label == "b" for label in labels], dtype=np.float32)
    features = generator.normal(size=(len(labels), 8)).astype(np.float32)
    features[:, 0] += distance * (2 * places - 1)
    return features


def singly(labels):
    return [str(number) for number in range(len(labels))]


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_classes_that_lie_apart_are_told_and_others_are_not(kind):
    apart, mixed = (probe(features_of(LABELS, distance), LABELS, singly(LABELS)) for distance in (8, 0))
    assert apart[kind]["accuracy"] == 1
    assert 0.25 < mixed[kind]["accuracy"] < 0.75
    low, high = mixed[kind]["ci95"]["macro_f1"]
    assert low < mixed[kind]["macro_f1"] < high


def test_groups_stay_on_one_side_of_a_fold():
    """Features that tell the patient, and nothing else, tell nothing of classes when patients are apart."""
    generator = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), 30)
    of_patient = generator.normal(size=(60, 16)).astype(np.float32)
    features = of_patient[patients] + 0.01 * generator.normal(size=(1800, 16)).astype(np.float32)
    labels = np.where(generator.permutation(60)[patients] < 30, "a", "b").tolist()
    apart = probe(features, labels, patients.astype(str).tolist())
    together = probe(features, labels, singly(labels))
    assert together["knn"]["accuracy"] == 1
    assert apart["knn"]["accuracy"] < 0.7


def test_many_cells_are_drawn(monkeypatch):
    monkeypatch.setattr(probing, "MOST", 50)
    assert probe(features_of(LABELS, 8), LABELS, singly(LABELS))["images"] == 50


@pytest.mark.parametrize(
    ("labels", "groups"),
    [(["a"] * 6, singly("abcdef")), (["a", "a", "b", "b"], ["1", "1", "2", "2"]), (["a", "b"], ["1", "2"])],
    ids=["one class", "one group a class", "one cell a class"],
)
def test_too_few_labels_have_no_score(labels, groups):
    assert probe(features_of(labels, 1), labels, groups) is None


def test_a_class_with_fewer_cells_than_folds_is_scored_without_a_warning():
    labels = [*LABELS, "c", "c"]
    assert probe(features_of(labels, 8), labels, singly(labels))["classes"] == ["a", "b", "c"]
