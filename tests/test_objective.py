"""The losses, against formulas written in numpy."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from hemafast.config import LossName
from hemafast.objective import build_loss, class_weights, log_priors

COUNTS = [[10, 20, 30], [1, 1000, 7], [5, 5, 5], [3, 0, 9]]
NAMES = LossName.__args__
IMAGES, CLASSES = 16, 3


def _case(seed=0):
    """Logits, labels and, instead of labels, shares of the classes."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(IMAGES, CLASSES)).astype(np.float32) * 3
    labels = generator.integers(CLASSES, size=IMAGES)
    shares = generator.dirichlet(np.ones(CLASSES), size=IMAGES).astype(np.float32)
    return logits, labels, shares


def _log_softmax(logits):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _smooth(targets, smoothing):
    return (1 - smoothing) * targets + smoothing / CLASSES


def _balanced(counts):
    counts = np.array(counts)
    return np.array([counts.sum() / (np.count_nonzero(counts) * n) if n else 0.0 for n in counts])


def _by_hand(name, counts, logits, targets, smoothing):
    """The loss of shares of the classes: a sum over classes, a mean over images."""
    weights, offset, power = np.ones(CLASSES), np.zeros(CLASSES), 0.0
    if name == "weighted":
        weights = _balanced(counts)
    if name == "logit-adjusted":
        present = np.where(np.array(counts) > 0, counts, np.max(counts))
        offset = np.log(present / np.sum(counts))
    if name == "focal":
        power = 2.0
    logs = _log_softmax(logits + offset)
    each = -weights * _smooth(targets, smoothing) * (1 - np.exp(logs)) ** power * logs
    return each.sum(axis=1).mean()


@pytest.mark.parametrize("counts", [*COUNTS, [0, 0, 4]])
def test_weights_are_the_balanced_ones_and_absent_classes_weigh_nothing(counts):
    labels = np.repeat(np.arange(3), counts)
    present = np.unique(labels)
    found = class_weights(np.array(counts))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[present], compute_class_weight("balanced", classes=present, y=labels), rtol=1e-6)
    assert not found[np.array(counts) == 0].any()
    assert np.average(found, weights=counts) == pytest.approx(1)


def test_priors_are_frequencies_and_an_absent_class_counts_as_the_most_frequent():
    np.testing.assert_allclose(np.exp(log_priors(np.array([3, 0, 9]))), [0.25, 0.75, 0.75], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_that_training_lacks_is_not_what_a_trained_model_predicts(name, smoothing):
    counts = np.array([300, 0, 900])
    loss = build_loss(counts, name, smoothing=smoothing)
    logits = torch.zeros(2, CLASSES, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(300):  # one free row of logits for each class that is there
        optimizer.zero_grad()
        loss(logits, torch.tensor([0, 2])).backward()
        optimizer.step()
    assert logits.argmax(dim=1).tolist() == [0, 2]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_its_formula(name, counts, soft, smoothing):
    logits, labels, shares = _case()
    loss = build_loss(np.array(counts), name, smoothing=smoothing)
    found = loss(torch.from_numpy(logits), torch.from_numpy(shares if soft else labels))
    expected = _by_hand(name, counts, logits, shares if soft else np.eye(CLASSES)[labels], smoothing)
    assert found.ndim == 0
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_plain_cross_entropy_is_torch_s(smoothing):
    logits, labels, _ = (torch.from_numpy(part) for part in _case())
    found = build_loss(np.array([1, 2, 3]), smoothing=smoothing)(logits, labels)
    torch.testing.assert_close(found, functional.cross_entropy(logits, labels, label_smoothing=smoothing))


@pytest.mark.parametrize("name", NAMES)
def test_labels_and_whole_shares_are_the_same_targets(name):
    logits, labels, _ = (torch.from_numpy(part) for part in _case())
    loss = build_loss(np.array([90, 9, 1]), name, smoothing=0.1)
    torch.testing.assert_close(loss(logits, labels), loss(logits, functional.one_hot(labels, CLASSES).float()))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "without", [{"name": "focal", "focal_gamma": 0.0}, {"name": "logit-adjusted", "logit_tau": 0.0}]
)
def test_a_loss_whose_strength_is_nothing_is_cross_entropy(without, soft):
    logits, labels, shares = (torch.from_numpy(part) for part in _case())
    targets = shares if soft else labels
    counts = np.array([90, 9, 1])
    found, plain = (build_loss(counts, smoothing=0.1, **options)(logits, targets) for options in (without, {}))
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [("focal", "focal_gamma", (1.0, 4.0)), ("logit-adjusted", "logit_tau", (0.5, 2.0))],
)
def test_the_strength_of_a_loss_reaches_it(name, option, values):
    logits, labels, _ = (torch.from_numpy(part) for part in _case())
    found = [build_loss(np.array([90, 9, 1]), name, **{option: value})(logits, labels) for value in values]
    assert abs(found[0] - found[1]) > 1e-2


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_training_lacks_leaves_loss_and_gradient_finite(name, soft):
    logits = torch.tensor([[60.0, -60.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    labels = torch.tensor([1, 1])  # the class that is absent, hopelessly wrong and undecided
    targets = functional.one_hot(labels, CLASSES).float() if soft else labels
    loss = build_loss(np.array([3, 0, 9]), name, smoothing=0.1)(logits, targets)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 10.0])
def test_an_image_that_is_certainly_right_leaves_the_focal_gradient_finite(gamma):
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = build_loss(np.array([1, 1, 1]), "focal", focal_gamma=gamma)(logits, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.isfinite().all()


def test_a_weighted_loss_is_divided_by_images_and_not_by_the_weights_of_the_batch():
    logits, labels, _ = (torch.from_numpy(part) for part in _case())
    counts = np.array([90, 9, 1])
    loss = build_loss(counts, "weighted")
    parts = [loss(logits[rows], labels[rows]) * len(labels[rows]) for rows in (slice(0, 5), slice(5, None))]
    torch.testing.assert_close(loss(logits, labels), sum(parts) / IMAGES)
    torchs = functional.cross_entropy(logits, labels, weight=torch.from_numpy(class_weights(counts)))
    assert abs(loss(logits, labels) - torchs) > 1e-2


@pytest.mark.parametrize("name", ["weighted", "logit-adjusted"])
def test_a_rare_class_pulls_harder_than_without_its_frequency(name):
    counts, pulls = np.array([90, 9, 1]), []
    for asked in ("cross-entropy", name):
        logits = torch.zeros(3, CLASSES, requires_grad=True)
        build_loss(counts, asked)(logits, torch.arange(CLASSES)).backward()
        pulls.append(-logits.grad.diagonal())
    assert pulls[1][2] > pulls[0][2]
    assert pulls[1][0] < pulls[0][0]


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_can_move_with_the_model(name):
    loss = build_loss(np.array([1, 2, 3]), name).to(torch.float64)
    assert all(buffer.dtype == torch.float64 for buffer in loss.buffers())
    assert loss(torch.zeros(2, CLASSES, dtype=torch.float64), torch.tensor([0, 1])).dtype == torch.float64
