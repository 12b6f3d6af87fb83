"""What the domain and the border give away, beside plain numpy and scikit-learn."""

import json
from dataclasses import replace
from unittest.mock import Mock, call

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler

from hemafast.config import PrepareConfig
from hemafast.data.dataset import open_dataset
from hemafast.experiments import border
from hemafast.experiments.border import border_features, border_pixels
from hemafast.experiments.resampled import Estimate
from hemafast.experiments.shortcut import (
    BORDER_ALONE,
    DOMAIN,
    MAJORITY,
    POOLED,
    Guess,
    Guesses,
    Shortcuts,
    check_shortcuts,
)
from hemafast.preparation.build import prepare

DOMAINS = ("Acevedo_20", "Matek_19")


@pytest.fixture(scope="module")
def found(dataset):
    return check_shortcuts(dataset, DOMAINS)


@pytest.fixture(scope="module")
def features(train_samples, val_samples):
    return border_features([train_samples, val_samples])


def assert_scores(guess, actual, called):
    present = np.unique(actual)
    expected = {
        "accuracy": accuracy_score(actual, called),
        "balanced_accuracy": np.mean([(called[actual == name] == name).mean() for name in present]),
        "macro_f1": f1_score(actual, called, labels=present, average="macro", zero_division=0),
    }
    for name, value in expected.items():
        score = getattr(guess, name)
        assert score.value == pytest.approx(value)
        assert score.ci95[0] <= score.ci95[1]
    assert guess.above_chance.value == pytest.approx(expected["balanced_accuracy"] - 1 / len(present))


def test_features_are_those_of_numpy_on_the_four_strips(train_samples, features):
    wide = border_pixels(64)
    assert wide == 5
    for row in (0, 17, len(train_samples) - 1):
        square = np.asarray(train_samples.packed[row]).astype(float)
        expected = []
        for strip in (square[:wide], square[-wide:], square[:, :wide], square[:, -wide:]):
            pixels = strip.reshape(-1, 3)
            levels = np.percentile(pixels, [5, 25, 50, 75, 95], axis=0, method="inverted_cdf")
            expected += [pixels.mean(axis=0), pixels.std(axis=0), *levels]
        assert features[0][row] == pytest.approx(np.concatenate(expected))


def test_the_middle_of_an_image_has_no_say(val_samples, features):
    square = np.array(val_samples.packed[0])
    square[5:-5, 5:-5] = 0
    assert border._border_of(square) == pytest.approx(features[1][0])
    square[4, 30] ^= 255
    assert border._border_of(square) != pytest.approx(features[1][0])


def test_progress_counts_every_image_once(train_samples, val_samples):
    progress = Mock()
    border_features([train_samples, val_samples], progress=progress)
    images = len(train_samples) + len(val_samples)
    start, *advances, finish = progress.mock_calls
    assert start == call.start("reading borders", images, unit="images")
    assert advances == [call.advance()] * images
    assert finish == call.finish()


def test_what_the_border_finds_is_what_sklearn_finds(found, features, train_samples, val_samples):
    scaler = StandardScaler().fit(features[0])
    for target, actual, guesses in (
        (train_samples.domains, val_samples.domains, found.domain),
        (train_samples.labels, val_samples.labels, found.label[POOLED]),
    ):
        model = LogisticRegression(class_weight="balanced", max_iter=5000).fit(scaler.transform(features[0]), target)
        called = model.predict(scaler.transform(features[1]))
        assert_scores(guesses.by[BORDER_ALONE], actual, called)
        for name in DOMAINS if guesses is not found.domain else ():
            rows = val_samples.domains == name
            assert_scores(found.label[name].by[BORDER_ALONE], actual[rows], called[rows])


def test_domain_alone_answers_the_likeliest_class_of_its_domain(found, train_samples, val_samples):
    likeliest = {name: np.bincount(train_samples.labels[train_samples.domains == name]).argmax() for name in DOMAINS}
    called = np.array([likeliest[name] for name in val_samples.domains])
    assert len(set(likeliest.values())) == 2
    assert_scores(found.label[POOLED].by[DOMAIN], val_samples.labels, called)
    majority = np.full(len(val_samples), np.bincount(train_samples.labels).argmax())
    assert_scores(found.label[POOLED].by[MAJORITY], val_samples.labels, majority)
    domains = np.full(len(val_samples), "Matek_19")
    assert_scores(found.domain.by[MAJORITY], val_samples.domains, domains)
    assert balanced_accuracy_score(val_samples.domains, domains) == found.domain.chance


def test_mutual_information_and_exclusive_classes_are_of_the_training_images(found, train_samples):
    assert found.mutual_information == pytest.approx(
        normalized_mutual_info_score(train_samples.domains, train_samples.labels)
    )
    assert found.exclusive == {"eosinophil": "Acevedo_20", "myeloblast": "Matek_19", "promyelocyte": "Matek_19"}


def test_plain_data_has_all_of_it(found):
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["verdict"] == found.verdict
    assert plain["label"][POOLED]["by"][DOMAIN]["accuracy"]["value"] == found.label[POOLED].by[DOMAIN].accuracy.value


def guesses(*known):
    """A hundred images of two classes, of which the ways that are named know something."""
    nothing, something = Estimate(0.5, (0.4, 0.6)), Estimate(0.9, (0.8, 1.0))
    at_chance, above = Estimate(0.0, (-0.1, 0.1)), Estimate(0.4, (0.3, 0.5))
    guess = {False: Guess(nothing, nothing, nothing, at_chance), True: Guess(something, something, something, above)}
    return Guesses(100, 2, {way: guess[way in known] for way in (MAJORITY, DOMAIN, BORDER_ALONE)})


@pytest.fixture
def nothing():
    return Shortcuts(
        domains=("A", "B"),
        mutual_information=0.0,
        exclusive={},
        border_pixels=5,
        square_pixels=64,
        domain=guesses(),
        label={"pooled": guesses(), "A": guesses(), "B": guesses()},
    )


def test_the_verdict_follows_from_what_was_found(nothing):
    shows = {"domain": guesses(BORDER_ALONE)}
    tells = {"label": nothing.label | {"pooled": guesses(DOMAIN)}}
    only = {"exclusive": {"blast": "A"}}
    assert nothing.verdict.startswith("Neither check finds a shortcut")
    seen = "the border alone predicts the domain (balanced accuracy 0.90, chance 0.50)"
    shown = replace(nothing, **shows).verdict
    assert shown == f"The domain shows, but says nothing about the class: {seen}; each class is in several domains."
    assert replace(nothing, **tells).verdict.startswith("The domain says something about the class (the domain alone")
    assert replace(nothing, **only).verdict.startswith(
        "The domain says something about the class (blast occurs in one domain only), but the border does not"
    )
    assert replace(nothing, **shows, **only).verdict == (
        f"A shortcut is open: {seen}, and blast occurs in one domain only."
    )
    within = replace(nothing, label=nothing.label | {"B": guesses(BORDER_ALONE)})
    assert within.border_tells_class == ("B",)
    assert within.verdict.endswith(
        "; within B (balanced accuracy 0.90, chance 0.50), the border also predicts the class."
    )


def test_domains_of_other_colours_and_classes_of_other_borders_are_found(tmp_path, encode):
    """Two domains, one bright and one dark; within each, one class with a blue border and one with a red one."""
    generator = np.random.default_rng(0)
    for name, ground in (("Bright", 200), ("Dark", 60)):
        for label, channel in (("basophil", 2), ("monocyte", 0)):
            (tmp_path / "source" / name / label).mkdir(parents=True)
            for number in range(30):
                pixels = generator.normal(ground, 8, (64, 64, 3))
                pixels[..., channel] += 40
                file = tmp_path / "source" / name / label / f"{name}_{label}_{number}.png"
                file.write_bytes(encode(pixels.clip(0, 255).astype(np.uint8)))
    config = PrepareConfig(source=tmp_path / "source", output=tmp_path / "prepared", pack_sizes=(64,))
    found = check_shortcuts(open_dataset(prepare(config).folder), ("Bright", "Dark"))
    assert found.border_shows_domain
    assert not found.domain_tells_class
    assert found.border_tells_class == ("Bright", "Dark")
    assert found.mutual_information == pytest.approx(0, abs=1e-9)
    assert found.domain.by[BORDER_ALONE].accuracy.value == 1
