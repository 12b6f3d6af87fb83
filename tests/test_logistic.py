"""Logistic regression as a layer, and the axes of features."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from hemafast.logistic import Axes, Layer, cross_entropy, fit_logistic


@pytest.fixture
def cells():
    """90 cells of three classes in five dimensions, one of which is constant."""
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = generator.normal(size=(90, 5)) + 2 * np.eye(3, 5)[labels]
    features[:, 4] = 7
    return features * [1, 10, 1, 1, 1], labels


def test_a_layer_answers_as_scikit_learn_does(cells):
    features, labels = cells
    theirs = LogisticRegression(C=0.1, max_iter=300, tol=1e-3).fit(features, labels).predict_proba(features)
    ours = softmax(fit_logistic(features, labels, 3, 0.1)(features), axis=1)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_two_of_three_classes_are_told_apart_and_the_third_lies_between(cells):
    features, labels = cells
    two = labels != 1
    logits = fit_logistic(features[two], labels[two], 3, 1.0)(features[two])
    assert (logits[:, [0, 2]].argmax(axis=1) * 2 == labels[two]).mean() > 0.9
    np.testing.assert_allclose(logits[:, 1], logits[:, [0, 2]].mean(axis=1), atol=1e-9)


def test_labels_of_one_class_teach_nothing(cells):
    layer = fit_logistic(cells[0], np.full(90, 2), 3, 1.0)
    assert not layer.weights.any()
    assert not layer.bias.any()


def test_a_weight_counts_as_often_as_the_cell_came(cells):
    features, labels = cells
    weights = np.where(labels == 1, 2.0, 1.0)
    twice = np.concatenate([np.arange(90), np.flatnonzero(labels == 1)])
    weighed, repeated = (
        fit_logistic(features, labels, 3, 0.1, weights),
        fit_logistic(features[twice], labels[twice], 3, 0.1),
    )
    np.testing.assert_allclose(weighed(features), repeated(features), atol=0.05)


def test_cross_entropy_is_that_of_scikit_learn_and_no_certain_mistake_makes_it_infinite(cells):
    features, labels = cells
    logits, weights = features[:, :3], np.linspace(0.5, 1.5, 90)  # of mean 1
    theirs = log_loss(labels, softmax(logits, axis=1), sample_weight=weights)
    assert cross_entropy(logits, labels, weights) == pytest.approx(theirs)
    assert cross_entropy(np.array([[0.0, 1e4]]), np.array([0]), np.array([2.0])) == pytest.approx(2e4)


@pytest.mark.parametrize("images", [4, 90])
def test_axes_are_standardised_and_in_the_order_of_what_they_tell(cells, images):
    features = cells[0][:images]
    low = Axes.of(features)(features)
    np.testing.assert_allclose(low.mean(axis=0), 0, atol=1e-9)
    spreads = low.std(axis=0)
    assert (np.diff(spreads) < 1e-9).all()
    np.testing.assert_allclose((low**2).sum(), images * 4)  # what is constant has no part in it


def test_a_layer_on_axes_is_the_same_layer_on_the_features(cells):
    features, _ = cells
    axes, generator = Axes.of(features, most=3), np.random.default_rng(1)
    layer = Layer(generator.normal(size=(2, 3)), generator.normal(size=2))
    np.testing.assert_allclose(axes.unfold(layer)(features), layer(axes(features)))
