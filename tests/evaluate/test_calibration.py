"""Temperature and thresholds: what they should do, on answers whose calibration is known."""

import numpy as np
import pytest
from scipy.special import softmax

from hemafast.evaluate.calibration import calibrate, fit_sensitivity, fit_temperature, fit_threshold, soften


def honest(seed, images=4000, classes=5):
    """Labels drawn from the very probabilities: perfectly calibrated."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2, size=(images, classes))
    probabilities = softmax(logits, axis=1)
    labels = (probabilities.cumsum(axis=1) < generator.random((images, 1))).sum(axis=1)
    return labels, logits


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_spoiled_probabilities_is_found(temperature):
    labels, logits = honest(0)
    assert fit_temperature(labels, softmax(logits * temperature, axis=1)) == pytest.approx(temperature, rel=0.06)


def test_softening_is_dividing_logits():
    _, logits = honest(1, images=50)
    np.testing.assert_allclose(soften(softmax(logits, axis=1), 2.5), softmax(logits / 2.5, axis=1), rtol=1e-6)


def test_softening_keeps_the_order_of_classes_and_takes_zeros():
    probabilities = np.array([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3]], dtype=np.float32)
    softened = soften(probabilities, 4.0)
    assert np.isfinite(softened).all()
    assert (softened.argsort(axis=1)[1] == [0, 2, 1]).all()
    np.testing.assert_allclose(softened.sum(axis=1), 1)


def test_an_image_without_an_answer_stays_without_one():
    assert np.isnan(soften(np.full((1, 3), np.nan), 2.0)).all()


def test_the_threshold_lets_as_many_pass_as_the_target_allows():
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    right = np.array([1, 1, 0, 1, 0], dtype=bool)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.where(right, 0, 1)
    assert fit_threshold(labels, probabilities, 1.0, least=1) == 0.8
    assert fit_threshold(labels, probabilities, 0.75, least=1) == 0.6
    assert fit_threshold(labels, probabilities, 0.5, least=1) == 0.5


def test_images_of_one_confidence_pass_together_or_not_at_all():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1]])
    assert fit_threshold(np.array([0, 1]), probabilities, 0.9) is None


def test_the_threshold_for_blasts_finds_the_share_that_is_asked_for():
    scores = np.linspace(0, 1, 200)
    positive = np.arange(200) % 3 == 0
    threshold = fit_sensitivity(positive, scores, 0.9)
    assert (scores[positive] >= threshold).mean() >= 0.9
    assert (scores[positive] > threshold).mean() < 0.9
    assert fit_sensitivity(np.zeros(5, dtype=bool), np.ones(5), 0.9) is None


def test_no_threshold_is_fitted_on_fewer_than_twenty_images():
    for count, fits in ((19, False), (20, True)):
        labels, sure = np.zeros(count, np.int64), np.tile([0.9, 0.1], (count, 1))
        assert (fit_threshold(labels, sure, 0.95) is not None) == fits
        assert (fit_sensitivity(labels == 0, sure[:, 0], 0.95) is not None) == fits
        calibration = calibrate(labels, sure, blast=0)
        assert (calibration.blast_threshold is not None) == fits
        assert calibration.blasts == count


def test_without_images_nothing_is_fitted():
    calibration = calibrate(np.zeros(0, np.int64), np.zeros((0, 3)))
    assert (calibration.temperature, calibration.threshold, calibration.images) == (1.0, None, 0)
