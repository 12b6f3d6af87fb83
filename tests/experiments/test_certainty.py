"""How sure a score is: intervals over cells, over seeds and over both cover what they say."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from hemafast.evaluate.intervals import resample
from hemafast.experiments.certainty import Passes, certainty, estimate_over, spread_of

CLASSES = ("a", "b", "c")


def _passes(seeds=1, images=300, per_group=1, right=0.8, seed=0):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, images)
    answers = {
        str(one): np.where(draw.random(images) < right, labels, draw.integers(0, 3, images)) for one in range(seeds)
    }
    groups = np.arange(images) // per_group
    return Passes(labels, answers, groups, np.where(labels == 0, "A", "B"), CLASSES)


@pytest.mark.parametrize("seeds", [1, 3])
def test_scores_are_means_of_those_of_scikit_learn(seeds):
    passes = _passes(seeds)
    found = certainty(passes)
    for name, score in (
        ("macro_f1", lambda *given: f1_score(*given, average="macro")),
        ("accuracy", accuracy_score),
        ("balanced_accuracy", balanced_accuracy_score),
    ):
        own = [score(passes.labels, answer) for answer in passes.answers.values()]
        assert found[name]["by_pass"] == pytest.approx(own)
        assert found[name]["value"] == pytest.approx(np.mean(own))
        assert found[name]["sd"] == (pytest.approx(np.std(own, ddof=1)) if seeds > 1 else None)
    assert (found["images"], found["groups"]) == (300, 300)
    assert np.sum(found["confusion"]) == 300 * seeds
    of_each = [f1_score(passes.labels, answer, average=None) for answer in passes.answers.values()]
    assert [of["f1"] for of in found["per_class"].values()] == pytest.approx(np.mean(of_each, axis=0))
    assert sum(of["images"] for of in found["per_class"].values()) == 300
    assert sum(part["images"] for part in found["domains"].values()) == 300


def test_one_pass_says_nothing_about_seeds():
    score = certainty(_passes())["macro_f1"]
    assert score["seeds"] is score["both"] is score["sd"] is None
    low, high = score["cells"]
    assert low < score["value"] < high


def test_the_interval_over_both_is_the_widest():
    score = certainty(_passes(3))["macro_f1"]
    width = {name: score[name][1] - score[name][0] for name in ("cells", "seeds", "both")}
    assert width["both"] > max(width["cells"], width["seeds"]) > 0


def test_cells_of_one_patient_that_fail_together_widen_the_interval():
    labels, wrong = np.tile([0, 1, 2], 100), np.repeat(np.arange(20) < 4, 15)
    answers = {"0": np.where(wrong, (labels + 1) % 3, labels)}
    domains = np.full(300, "A")
    alone, together = (
        certainty(Passes(labels, answers, groups, domains, CLASSES))["macro_f1"]["cells"]
        for groups in (np.arange(300), np.repeat(np.arange(20), 15))
    )
    assert together[1] - together[0] > 2.5 * (alone[1] - alone[0])


def test_whole_groups_are_drawn():
    groups = np.array([0, 0, 1, 2, 2, 2])
    weights = np.concatenate([*resample(6, 200, groups=groups)], axis=1)
    assert (weights[:, 0] == 1).all()
    for group in range(3):
        assert (weights[groups == group] == weights[groups == group][0]).all()
    assert set(weights[[0, 2, 3]].sum(axis=0)) == {3}
    assert len({tuple(column) for column in weights.T}) > 5


def test_intervals_over_seeds_and_both_cover_the_truth_as_often_as_they_say():
    """Trainings differ by a normal draw of 0.03, the score of cells by one of 0.02: so does what they estimate."""
    draw, hits = np.random.default_rng(1), {"seeds": 0, "both": 0}
    for _ in range(400):
        cells = draw.normal(0, 0.02)
        resampled = draw.normal(cells, 0.02, 400)
        trainings = draw.normal(0, 0.03, 4)
        scores = [0.5 + one + np.concatenate([[cells], resampled]) for one in trainings]
        found = estimate_over(scores)
        hits["seeds"] += found["seeds"][0] <= 0.5 + cells <= found["seeds"][1]
        hits["both"] += found["both"][0] <= 0.5 <= found["both"][1]
    assert 0.92 < hits["seeds"] / 400 < 0.98
    assert 0.92 < hits["both"] / 400 < 0.99


def test_intervals_stay_within_what_a_score_can_be():
    scores = [np.full(101, 0.99), np.full(101, 0.9)]
    found = estimate_over(scores)
    assert found["seeds"][1] == found["both"][1] == 1
    assert found["both"][0] >= 0


@pytest.mark.parametrize(("scores", "sd"), [([], None), ([0.5], None), ([0.4, 0.6], pytest.approx(0.1414, abs=1e-4))])
def test_a_spread_needs_two_runs(scores, sd):
    found = spread_of(scores)
    assert (found["runs"], found["sd"]) == (len(scores), sd)
