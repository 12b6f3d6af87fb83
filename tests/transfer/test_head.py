"""A last layer from few labels: what it learns, what it keeps of the old one, and that no cell scores itself."""

import numpy as np
import pytest

from hemafast.folds import folds_apart
from hemafast.logistic import Layer
from hemafast.transfer.head import FEW, fit_head, with_new_classes

CLASSES, AXES = 4, 12


@pytest.fixture
def cells():
    """80 cells of four classes in as many clusters, two cells from each patient."""
    generator = np.random.default_rng(0)
    labels = np.arange(80) % CLASSES
    centres = 3 * np.eye(CLASSES, AXES)
    features = centres[labels] + generator.normal(0, 0.8, (80, AXES))
    return features, labels, [f"patient {row // 8}" for row in range(80)], Layer(centres - 1, np.zeros(CLASSES))


def right(logits, labels):
    return float((logits.argmax(1) == labels).mean())


def test_labels_teach_what_the_old_layer_does_not_know(cells):
    features, labels, groups, old = cells
    wrong = Layer(np.roll(old.weights, 1, axis=0), old.bias)
    assert right(wrong(features), labels) < 0.1
    fitted = fit_head(features, labels, groups, wrong, features)
    assert right(fitted.held_out, labels) > 0.9
    assert right(fitted.layer(features), labels) > 0.9
    assert fitted.trust < 0.2


def test_an_old_layer_that_is_right_is_trusted(cells):
    features, labels, _, old = cells
    few = np.arange(12)
    fitted = fit_head(features[few], labels[few], [str(row) for row in few], old, features)
    assert fitted.trust > 0
    assert right(fitted.layer(features), labels) > 0.95


def test_a_class_without_labels_is_known_from_the_old_layer(cells):
    features, labels, groups, old = cells
    some = np.flatnonzero(labels != 3)
    fitted = fit_head(features[some], labels[some], [groups[row] for row in some], old, features)
    assert fitted.trust > 0
    assert right(fitted.layer(features[labels == 3]), labels[labels == 3]) > 0.9


def test_a_class_that_the_model_lacks_is_learned(cells):
    features, labels, groups, old = cells
    three = Layer(old.weights[:3], old.bias[:3])
    fitted = fit_head(features, labels, groups, with_new_classes(three, 1, features), features)
    assert fitted.layer.weights.shape == (CLASSES, AXES)
    assert right(fitted.held_out[labels == 3], labels[labels == 3]) > 0.9


def test_one_label_a_class_is_too_few_to_score(cells):
    features, labels, _, old = cells
    fitted = fit_head(features[:4], labels[:4], list("abcd"), old, features)
    assert fitted.held_out is None
    assert fitted.trust == FEW.trust


def test_labels_of_one_class_change_nothing_but_trust(cells):
    features, labels, _, old = cells
    same = np.flatnonzero(labels == 1)
    fitted = fit_head(features[same], labels[same], [str(row) for row in same], old, features)
    np.testing.assert_allclose(fitted.layer.weights, fitted.trust * old.weights)


def test_no_patient_is_on_both_sides_of_a_fold(cells):
    _, labels, groups, _ = cells
    names, held = np.array(groups), []
    for fitted, left in folds_apart(labels, groups, 4):
        assert not set(names[fitted]) & set(names[left])
        held += left.tolist()
    assert sorted(held) == list(range(80))
