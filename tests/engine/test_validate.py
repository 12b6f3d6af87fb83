"""A split classified once, in order, whole and by domain."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from steps import CPU

from hemafast.data import feed
from hemafast.data.graph import GraphShape
from hemafast.data.loader import eval_loader
from hemafast.engine.step import EvalStep, Totals
from hemafast.engine.validate import validate
from hemafast.model import build_model
from hemafast.objective import build_loss


def centre_windows(samples):
    return torch.from_numpy(np.ascontiguousarray(np.asarray(samples.packed)[:, 4:60, 4:60])).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def model(dataset, val_samples):
    torch.manual_seed(0)
    network = build_model("test_resnet", len(dataset.info.classes), 56).train()
    for _ in range(20):  # batch norm learns the images, so that the network calls them by several names
        network(centre_windows(val_samples))
    return network


def loader_of(samples, batch_size):
    shape = GraphShape("cpu", "packed", packed_size=64, image_size=56, batch_size=batch_size, threads=1)
    return eval_loader(samples, shape=shape)


def outcome_of(model, dataset, samples, batch_size, loader=None, **options):
    loss = build_loss(dataset.counts("val"))
    totals = Totals(len(dataset.info.classes), "cpu")
    loader = loader or loader_of(samples, batch_size)
    return validate(model, EvalStep(model, loss, CPU), loader, samples, totals, **options)


@pytest.fixture(scope="module")
def outcome(model, dataset, val_samples):
    return outcome_of(model, dataset, val_samples, 5)  # 11 images: the last batch is short


def test_the_outcome_is_that_of_each_image_alone_in_shard_order(outcome, model, val_samples):
    pixels = centre_windows(val_samples)
    with torch.inference_mode():
        expected = torch.cat([model.eval()(image[None]) for image in pixels]).softmax(dim=1)
    np.testing.assert_allclose(outcome.probabilities, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(outcome.probabilities.sum(axis=1), 1, atol=1e-5)
    likelihood = expected[torch.arange(len(pixels)), torch.from_numpy(val_samples.labels)]
    assert outcome.loss == pytest.approx(-likelihood.log().mean().item(), rel=1e-4)


def test_the_domains_partition_the_images(outcome, val_samples):
    assert set(outcome.domains) == {"Acevedo_20", "Matek_19"}
    assert np.array_equal(sum(outcome.domains.values()), outcome.pooled)
    assert outcome.pooled.sum() == len(val_samples)
    predicted = outcome.probabilities.argmax(axis=1)
    for name, confusion in outcome.domains.items():
        rows = val_samples.domains == name
        expected = confusion_matrix(val_samples.labels[rows], predicted[rows], labels=range(len(confusion)))
        assert np.array_equal(confusion, expected)
    assert np.count_nonzero(outcome.pooled.sum(axis=0)) > 1


def test_the_model_is_put_into_evaluation(model, dataset, val_samples, outcome):
    model.train()
    again = outcome_of(model, dataset, val_samples, 5)
    assert not model.training
    assert np.array_equal(again.probabilities, outcome.probabilities)


def test_the_size_of_the_batches_does_not_matter(model, dataset, val_samples, outcome):
    other = outcome_of(model, dataset, val_samples, 12)
    np.testing.assert_allclose(other.probabilities, outcome.probabilities, atol=1e-5)
    assert np.array_equal(other.pooled, outcome.pooled)


def test_each_batch_is_told_of(model, dataset, val_samples):
    told = []
    outcome_of(model, dataset, val_samples, 5, on_batch=told.append)
    assert told == [5, 5, 1]


def test_a_stop_within_validation_comes_through(model, dataset, val_samples):
    def stop(images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outcome_of(model, dataset, val_samples, 5, on_batch=stop)


def test_validations_share_a_pipeline_and_answer_alike(model, dataset, val_samples, outcome, monkeypatch):
    built, build = [], feed.build_graph
    monkeypatch.setattr(feed, "build_graph", lambda *given: built.append(given) or build(*given))
    loader = loader_of(val_samples, 5)
    for _ in range(3):
        again = outcome_of(model, dataset, val_samples, 5, loader)
        assert np.array_equal(again.probabilities, outcome.probabilities)
        assert again.loss == outcome.loss
    assert len(built) == 1
