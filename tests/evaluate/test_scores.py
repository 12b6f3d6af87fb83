"""Scores and their intervals: scikit-learn's definitions, whatever is absent, and an image drawn twice counts twice."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as reference

from hemafast.evaluate.intervals import interval, resample
from hemafast.evaluate.metrics import all_scores, auroc, bins_of, bootstrapped, confusions
from hemafast.evaluate.scores import reliability, score

CLASSES = 6
NAMES = tuple("abcdef")
PRESENT = (range(6), (0, 2, 5), (3,), (1, 4))
CASES = [(seed, present) for seed in range(3) for present in PRESENT]


def answers(seed, *, images=300, present=range(CLASSES), skill=1.0, rounded=None):
    """Labels and probabilities; rounded ones have ties."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(list(present), images)
    logits = generator.normal(size=(images, CLASSES))
    logits[np.arange(images), labels] += skill
    if rounded is not None:
        logits = logits.round(rounded)
    powers = np.exp(logits)
    return labels, powers / powers.sum(axis=1, keepdims=True)


def once(images):
    return np.ones((images, 1), np.float32)


@pytest.mark.parametrize(("seed", "present"), CASES)
def test_scores_are_those_of_scikit_learn(seed, present):
    labels, probabilities = answers(seed, present=present)
    predicted, there = probabilities.argmax(axis=1), sorted(set(labels))
    found = {name: values[0] for name, values in all_scores(labels, probabilities, once(300)).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are answered and have no image
        balanced = reference.balanced_accuracy_score(labels, predicted)
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": balanced,
        "micro_f1": reference.f1_score(labels, predicted, average="micro"),
        "macro_f1": reference.f1_score(labels, predicted, labels=there, average="macro", zero_division=0),
        "weighted_f1": reference.f1_score(labels, predicted, average="weighted", zero_division=0),
        "matthews": reference.matthews_corrcoef(labels, predicted),
        "kappa": reference.cohen_kappa_score(labels, predicted),
        "top2_accuracy": reference.top_k_accuracy_score(labels, probabilities, k=2, labels=range(CLASSES)),
        "log_loss": reference.log_loss(labels, probabilities, labels=range(CLASSES)),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    matrix = confusions(labels, predicted, once(300), CLASSES).first()
    np.testing.assert_array_equal(matrix, reference.confusion_matrix(labels, predicted, labels=range(CLASSES)))
    assert score(labels, probabilities, NAMES, resamples=2)["confusion"] == matrix.tolist()


@pytest.mark.parametrize(("seed", "present"), CASES)
def test_scores_of_each_class_are_those_of_scikit_learn(seed, present):
    labels, probabilities = answers(seed, present=present)
    scores = score(labels, probabilities, NAMES, resamples=20)
    there = sorted(set(labels))
    assert list(scores["per_class"]) == [NAMES[label] for label in there]
    assert scores["absent"] == [name for label, name in enumerate(NAMES) if label not in there]
    expected = reference.precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=there, zero_division=0
    )
    for precision, recall, f1, support, label in zip(*expected, there, strict=True):
        found = scores["per_class"][NAMES[label]]
        assert (found["images"], found["recall"], found["f1"]) == pytest.approx((support, recall, f1))
        assert (found["precision"] or 0) == pytest.approx(precision)


@pytest.mark.parametrize("rounded", [None, 1, 0])
@pytest.mark.parametrize("seed", range(3))
def test_areas_under_the_curve_are_those_of_scikit_learn_with_ties_and_weights(seed, rounded):
    labels, probabilities = answers(seed, present=(0, 1, 2, 4), rounded=rounded)
    weights = np.random.default_rng(seed).integers(0, 4, size=(300, 2)).astype(np.float32)
    areas = auroc(labels, probabilities, weights)
    assert areas.shape == (2, CLASSES)
    for column, label in np.ndindex(areas.shape):
        if label in (0, 1, 2, 4):
            expected = reference.roc_auc_score(
                labels == label, probabilities[:, label], sample_weight=weights[:, column]
            )
            assert areas[column, label] == pytest.approx(expected)
        else:
            assert np.isnan(areas[column, label])


def test_the_area_over_all_classes_is_the_mean_of_those_that_have_images():
    labels, probabilities = answers(0)
    expected = reference.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert all_scores(labels, probabilities, once(300))["auroc"][0] == pytest.approx(expected)


def test_the_calibration_error_is_that_of_its_definition():
    labels, probabilities = answers(2)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for low in np.arange(15) / 15:
        chosen = (confidence > low) & (confidence <= low + 1 / 15)
        if chosen.any():
            expected += chosen.mean() * abs(confidence[chosen].mean() - right[chosen].mean())
    assert all_scores(labels, probabilities, once(300))["ece"][0] == pytest.approx(expected, rel=1e-5)
    assert bins_of(np.array([0.0, 1 / 15, 1.0])).tolist() == [0, 0, 14]


def test_the_reliability_diagram_holds_every_image_once():
    labels, probabilities = answers(4)
    points = reliability(labels, probabilities)
    assert sum(point["images"] for point in points) == 300
    right = (probabilities.argmax(axis=1) == labels).sum()
    assert sum(point["images"] * point["accuracy"] for point in points) == pytest.approx(right)
    for point in points:
        low, high = point["ci95"]
        assert 0 <= low <= point["accuracy"] <= high <= 1


def test_an_image_that_is_drawn_twice_counts_as_two():
    labels, probabilities = answers(1, images=80, rounded=1)
    drawn = np.random.default_rng(5).integers(0, 80, 80)
    weights = np.bincount(drawn, minlength=80).astype(np.float32)[:, None]
    weighted = all_scores(labels, probabilities, weights)
    repeated = all_scores(labels[drawn], probabilities[drawn], once(80))
    cells = weighted["confusion"] > 0  # those of images that were not drawn are empty
    np.testing.assert_array_equal(weighted.pop("confusion")[cells], repeated.pop("confusion")[0])
    for name, values in weighted.items():
        np.testing.assert_allclose(values, repeated[name], rtol=1e-5, err_msg=name)


def test_each_resample_draws_as_many_images_as_there_are_and_the_first_column_is_the_images(monkeypatch):
    monkeypatch.setattr("hemafast.evaluate.intervals._MOST_WEIGHTS", 50 * 7)
    chunks = list(resample(50, resamples=30, seed=3))
    weights = np.concatenate(chunks, axis=1)
    assert len(chunks) > 3
    assert weights.shape == (50, 31)
    assert (weights[:, 0] == 1).all()
    assert (weights.sum(axis=0) == 50).all()
    assert len({tuple(column) for column in weights.T}) == 31


def test_intervals_are_seeded_and_hold_the_score():
    labels, probabilities = answers(0)
    first, same = (score(labels, probabilities, NAMES, resamples=200) for _ in range(2))
    other = score(labels, probabilities, NAMES, resamples=200, seed=1)
    assert first == same
    assert first["ci95"] != other["ci95"]
    for name in ("accuracy", "macro_f1", "matthews", "kappa", "auroc", "log_loss", "top2_accuracy"):
        low, high = first["ci95"][name]
        assert low < first[name] < high, name


def test_an_interval_is_the_percentiles_of_scores_computed_one_by_one():
    labels, probabilities = answers(3, images=120)
    predicted = probabilities.argmax(axis=1)
    found = bootstrapped(all_scores, labels, probabilities, resamples=300)["macro_f1"]
    generator = np.random.default_rng(9)
    by_hand = []
    for _ in range(1000):
        rows = generator.integers(0, 120, 120)
        there = sorted(set(labels[rows]))
        by_hand.append(reference.f1_score(labels[rows], predicted[rows], labels=there, average="macro"))
    np.testing.assert_allclose(interval(found), np.percentile(by_hand, [2.5, 97.5]), atol=0.02)


def test_the_interval_narrows_with_more_images():
    widths = []
    for images in (50, 500, 5000):
        low, high = score(*answers(0, images=images), NAMES, resamples=300)["ci95"]["macro_f1"]
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


@pytest.mark.parametrize("images", [0, 1, 2])
def test_of_few_images_or_none_there_are_scores_without_warnings(images):
    labels, probabilities = answers(0, images=images)
    scores = score(labels, probabilities, NAMES, resamples=50)
    assert scores["images"] == images
    assert scores["classes"] == len(set(labels))
    assert (scores["accuracy"] is None) == (images == 0)
    assert scores["auroc"] is None or images == 2


def test_confusions_of_resamples_are_counts():
    labels, probabilities = answers(0, images=40)
    weights = next(resample(40, resamples=10))
    found = confusions(labels, probabilities.argmax(axis=1), weights, CLASSES)
    assert (found.counts.sum(axis=1) == 40).all()
    assert (found.counts == found.counts.round()).all()
    assert (found.of_actual == weights_by(labels, weights)).all()
    kept = np.array([True, False, True, False, True, False])
    assert (found.among(kept).of_actual == kept * found.of_actual).all()


def weights_by(labels, weights):
    return np.stack([weights[labels == index].sum(axis=0) for index in range(CLASSES)], axis=1)


def test_a_thousand_classes_take_the_memory_of_their_images():
    labels = np.arange(2000) % 1000
    found = confusions(labels, (labels * 7) % 1000, next(resample(2000, resamples=10)), 1000)
    assert found.counts.shape == (11, 1000)
    assert found.folded(labels[:1000] % 3, 3).first().sum() == 2000
