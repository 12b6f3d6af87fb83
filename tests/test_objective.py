"""The loss: torch's cross-entropy with scikit-learn's balanced weights."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from hemafast.objective import build_loss, class_weights

COUNTS = [[10, 20, 30], [1, 1000, 7], [5, 5, 5], [3, 0, 9], [0, 0, 4]]


@pytest.mark.parametrize("counts", COUNTS)
def test_weights_are_the_balanced_ones_and_absent_classes_weigh_nothing(counts):
    labels = np.repeat(np.arange(3), counts)
    present = np.unique(labels)
    found = class_weights(np.array(counts))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[present], compute_class_weight("balanced", classes=present, y=labels), rtol=1e-6)
    assert not found[np.array(counts) == 0].any()
    assert np.average(found, weights=counts) == pytest.approx(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("counts", COUNTS[:4])
def test_the_loss_is_torch_s(counts, weighted, smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 3, generator=generator)
    labels = torch.randint(0, 3, (16,), generator=generator)
    weight = torch.from_numpy(class_weights(np.array(counts))) if weighted else None
    loss = build_loss(np.array(counts), weighted=weighted, label_smoothing=smoothing)
    expected = functional.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
    assert torch.equal(loss(logits, labels), expected)


def test_rare_classes_weigh_more_only_when_asked():
    logits, labels = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
    counts = np.array([90, 10])
    plain, weighted = (build_loss(counts, weighted=asked, label_smoothing=0)(logits, labels) for asked in (False, True))
    assert weighted > plain


def test_the_loss_can_move_with_the_model():
    loss = build_loss(np.array([1, 2]), weighted=True, label_smoothing=0.0)
    assert loss.to(torch.float64).weight.dtype == torch.float64
