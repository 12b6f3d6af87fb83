"""The losses, against formulas written in numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from hemafast.config import LossName
from hemafast.engine.machine import choose_machine
from hemafast.engine.step import loss_forward
from hemafast.lineage import Lineage, soft_targets
from hemafast.objective import LineageTerm, build_loss, class_weights, lineage_term, log_priors

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
    term = LineageTerm(0.3, np.array([0, 1, 1]), np.eye(3, dtype=np.float32))
    loss = build_loss(np.array([1, 2, 3]), name, lineage=term).to(torch.float64)
    assert all(buffer.dtype == torch.float64 for buffer in loss.buffers() if buffer.is_floating_point())
    assert loss(torch.zeros(2, CLASSES, dtype=torch.float64), torch.tensor([0, 1])).dtype == torch.float64


# The term of a tree of classes

TREE = Lineage({"early": ("a", "c"), "late": ("b",), "others": ("d", "e", "f")}, stages=("f", "d", "e"))
LABELS = tuple("abcdef")
FAMILY = np.array([0, 1, 0, 2, 2, 2])
OF_SIX = [10, 200, 30, 5, 60, 1]


def _term(weight=0.3, temperature=0.0):
    return lineage_term(TREE, LABELS, weight=weight, temperature=temperature)


def _six(seed=0, images=16):
    """Logits, labels and shares of six classes."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(images, 6)) * 3
    return logits, generator.integers(6, size=images), generator.dirichlet(np.ones(6), size=images)


def _on_lineages(name, counts, logits, targets, smoothing):
    """The loss on the lineage by probabilities: a sum over lineages, a mean over images."""
    weights, offset, power = np.ones(6), np.zeros(6), 0.0
    if name == "weighted":
        weights = class_weights(np.array(counts)).astype(np.float64)
    if name == "logit-adjusted":
        offset = log_priors(np.array(counts)).astype(np.float64)
    if name == "focal":
        power = 2.0
    belongs = np.eye(3)[FAMILY]
    found = np.exp(_log_softmax(logits + offset)) @ belongs
    wanted = (((1 - smoothing) * targets + smoothing / 6) * weights) @ belongs
    return -(wanted * (1 - found) ** power * np.log(found)).sum(axis=1).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_on_the_lineage_comes_on_top_and_is_that_of_summed_probabilities(name, soft, smoothing):
    logits, labels, shares = _six()
    targets = shares if soft else np.eye(6)[labels]
    given = torch.from_numpy(shares if soft else labels)
    plain = build_loss(np.array(OF_SIX), name, smoothing=smoothing).to(torch.float64)
    loss = build_loss(np.array(OF_SIX), name, smoothing=smoothing, lineage=_term(0.3)).to(torch.float64)
    expected = plain(torch.from_numpy(logits), given).item()
    expected += 0.3 * _on_lineages(name, OF_SIX, logits, targets, smoothing)
    assert loss(torch.from_numpy(logits), given).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_soft_labels_are_shares_of_the_stages_and_an_image_weighs_as_its_true_class(name, soft):
    logits, labels, shares = (torch.from_numpy(part) for part in _six())
    targets = (shares if soft else functional.one_hot(labels, 6)).double()
    plain = build_loss(np.array(OF_SIX), name, smoothing=0.1).to(torch.float64)
    loss = build_loss(np.array(OF_SIX), name, smoothing=0.1, lineage=_term(0.0, 0.7)).to(torch.float64)
    mixed = torch.from_numpy(soft_targets(TREE, LABELS, 0.7)).double()
    if name == "weighted":
        weights = torch.from_numpy(class_weights(np.array(OF_SIX))).double()
        mixed = weights[:, None] * mixed / weights
    if name == "logit-adjusted":
        plain.offset = torch.from_numpy(log_priors(OF_SIX @ soft_targets(TREE, LABELS, 0.7))).double()
    mixed = targets @ mixed
    torch.testing.assert_close(loss(logits, shares if soft else labels), plain(logits, mixed))


@pytest.mark.parametrize("name", ["cross-entropy", "weighted", "focal"])  # priors change with the targets
def test_soft_labels_do_not_change_the_loss_on_the_lineage(name):
    """A stage shares its target with its own lineage only."""
    logits, labels, _ = (torch.from_numpy(part) for part in _six())
    counts = np.array(OF_SIX)
    both, soft, group, plain = (
        build_loss(counts, name, smoothing=0.1, lineage=term).to(torch.float64)(logits, labels)
        for term in (_term(0.3, 0.7), _term(0.0, 0.7), _term(0.3, 0.0), None)
    )
    torch.testing.assert_close(both - soft, group - plain)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_differences(name, temperature, soft):
    logits, labels, shares = (torch.from_numpy(part) for part in _six(images=5))
    loss = build_loss(np.array(OF_SIX), name, smoothing=0.1, lineage=_term(0.3, temperature)).to(torch.float64)
    targets = shares if soft else labels
    assert torch.autograd.gradcheck(lambda given: loss(given, targets), logits.requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_a_lineage_or_class_that_a_batch_or_training_lacks_leaves_loss_and_gradient_finite(name):
    logits = torch.tensor([[60.0, -60, 0, 0, 0, 0], [-200.0, 200, 0, 0, 0, 0]], requires_grad=True)
    loss = build_loss(np.array([10, 0, 30, 5, 0, 1]), name, smoothing=0.1, lineage=_term(0.3, 0.5))
    found = loss(logits, torch.tensor([1, 0]))  # right is the lineage with a probability of nearly nothing
    found.backward()
    assert found.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_that_training_lacks_has_no_share_in_soft_labels_and_is_not_predicted(name):
    counts = np.array([10, 20, 30, 0, 60, 5])  # without d, the middle of f, d, e
    loss = build_loss(counts, name, lineage=_term(0.3, 1.0))
    assert not loss.targets[[0, 1, 2, 4, 5], 3].any()
    logits = torch.zeros(5, 6, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    labels = torch.tensor([0, 1, 2, 4, 5])
    for _ in range(300):
        optimizer.zero_grad()
        loss(logits, labels).backward()
        optimizer.step()
    assert logits.argmax(dim=1).tolist() == labels.tolist()


def test_both_terms_want_the_same_answer():
    """With weights and priors, the minimum of the sum is that of the loss on the class alone."""
    shares = torch.tensor([[0.3, 0.2, 0.1, 0.2, 0.15, 0.05]], dtype=torch.float64)
    for name in ("cross-entropy", "weighted", "logit-adjusted"):
        found = []
        for term in (None, _term(2.0)):
            loss = build_loss(np.array(OF_SIX), name, smoothing=0.1, lineage=term).to(torch.float64)
            logits = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
            optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15)

            def closure(logits=logits, loss=loss, optimizer=optimizer):
                optimizer.zero_grad()
                value = loss(logits, shares)
                value.backward()
                return value

            optimizer.step(closure)
            found.append(logits.detach().softmax(dim=1))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_one_lineage_of_all_and_lineages_of_one_are_no_news():
    logits, labels, _ = (torch.from_numpy(part) for part in _six())
    plain = build_loss(np.array(OF_SIX))(logits, labels)
    for groups, more in ((np.zeros(6, np.int64), 0.0), (np.arange(6), 1.0)):
        found = build_loss(np.array(OF_SIX), lineage=LineageTerm(1.0, groups)).to(torch.float64)(logits, labels)
        torch.testing.assert_close(found, plain * (1 + more))


def test_nothing_asked_is_no_term():
    assert _term(0.0, 0.0) is None
    assert lineage_term(None, LABELS, weight=0.3, temperature=0.5) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_of_lower_precision_are_judged_in_fp32(name, precision):
    machine = replace(choose_machine(device="cpu", amp="off", compiled="off"), precision=precision)
    network = torch.nn.Linear(4, 6)
    loss = build_loss(np.array(OF_SIX), name, smoothing=0.1, lineage=_term(0.3, 0.5))
    found, logits = loss_forward(network, loss, machine)(torch.randn(8, 4), torch.arange(8) % 6)
    found.backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(logits.float(), torch.arange(8) % 6))
    assert network.weight.grad.isfinite().all()
