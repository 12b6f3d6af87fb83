"""What a regression on all others says of a cell."""

import numpy as np
import pytest
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge

from hemafast.evaluate import left_out
from hemafast.evaluate.left_out import LeftOut
from hemafast.logistic import Axes


@pytest.fixture
def cells():
    """60 cells of three classes in six dimensions, some of them of one patient."""
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = generator.normal(size=(60, 6)) + 4 * np.eye(3, 6)[labels]
    return features, labels, [str(max(row, 7)) for row in range(60)]


def test_the_formula_is_the_fit_to_all_others(cells):
    features, labels, groups = cells
    found = LeftOut.of(features, groups)(labels, 3)
    low = Axes.of(features)(features)
    gamma = left_out._WIDTH / (low**2).sum(axis=1).mean()
    mapped = Nystroem(gamma=gamma, n_components=60, random_state=0).fit_transform(low)
    for row in (0, 7, 8, 59):
        others = [other for other in range(60) if groups[other] != groups[row]]
        fitted = Ridge(alpha=left_out._RIDGE).fit(mapped[others], np.eye(3)[labels[others]])
        np.testing.assert_allclose(found[row], fitted.predict(mapped[[row]])[0], atol=1e-6)


def test_a_cell_has_no_say_about_itself_nor_has_its_patient(cells):
    features, labels, groups = cells
    judge, other = LeftOut.of(features, groups), labels.copy()
    other[:8] = (labels[:8] + 1) % 3
    np.testing.assert_allclose(judge(labels, 3)[:8], judge(other, 3)[:8], atol=1e-9)
    assert not np.allclose(judge(labels, 3)[8:], judge(other, 3)[8:], atol=1e-3)


def test_most_cells_have_the_highest_score_for_their_class_and_scores_add_up_to_one(cells):
    features, labels, groups = cells
    scores = LeftOut.of(features, groups)(labels, 4)
    assert (scores.argmax(axis=1) == labels).mean() > 0.8
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-9)
    assert not scores[:, 3].any()


def test_fewer_landmarks_than_cells_are_nearly_as_good(cells, monkeypatch):
    features, labels, groups = cells
    monkeypatch.setattr(left_out, "_LANDMARKS", 40)
    assert (LeftOut.of(features, groups)(labels, 3).argmax(axis=1) == labels).mean() > 0.8


def test_cells_that_are_all_alike_are_told_by_how_frequent_classes_are():
    scores = LeftOut.of(np.ones((10, 3)), [str(row) for row in range(10)])(np.repeat([0, 1], [7, 3]), 2)
    np.testing.assert_allclose(scores[0], [6 / 9, 3 / 9])
