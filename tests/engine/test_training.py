"""The settings reach the optimizer, the loss and the loaders."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from hemafast.engine import trainer
from hemafast.engine.journal import read_rows
from hemafast.engine.schedule import one_cycle
from hemafast.engine.step import Steps
from hemafast.engine.trainer import resume, train
from hemafast.objective import class_weights

BEST = "best_model.safetensors"


@pytest.fixture
def seen(monkeypatch):
    """Of each training step: the optimizer's rate, the images, and what its loss should be without and with weights."""
    steps, original = [], Steps.train

    def spy(self, batch, optimizer, lr, totals):
        logits = self._forward(batch.images, batch.labels)[1].detach()
        original(self, batch, optimizer, lr, totals)
        rates = {group["lr"] for group in optimizer.param_groups}
        steps.append((rates, batch.images, logits, batch.labels))

    monkeypatch.setattr(Steps, "train", spy)
    return steps


def test_a_constant_rate_arrives_in_the_optimizer(settings, console, seen):
    folder = train(settings(lr=3e-4), console)
    assert [rates for rates, *_ in seen] == [{3e-4}] * 6
    assert read_rows(folder)[0]["lr"] == 3e-4


def test_the_one_cycle_rate_arrives_in_the_optimizer(settings, console, seen):
    folder = train(settings(epochs=2, onecycle=True), console)
    expected = [one_cycle(1e-3, 12)(step) for step in range(12)]
    assert [rates for rates, *_ in seen] == [{rate} for rate in expected]
    assert len(set(expected)) == 12
    assert [row["lr"] for row in read_rows(folder)] == [expected[5], expected[11]]
    assert folder.name.endswith("_onecycle")


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_weighted_by_class_if_asked(settings, console, seen, dataset, weighted):
    folder = train(settings(batch_size=64, weighted_loss=weighted, label_smoothing=0.1), console)
    ((_, _, logits, labels),) = seen
    weight = torch.from_numpy(class_weights(dataset.counts("train")))
    plain, heavy = (
        functional.cross_entropy(logits, labels, weight=w, label_smoothing=0.1).item() for w in (None, weight)
    )
    assert abs(plain - heavy) > 1e-3
    assert read_rows(folder)[0]["train_loss"] == pytest.approx(heavy if weighted else plain, rel=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(settings, console):
    first, second, other = (load_file(train(settings(seed=seed), console) / BEST) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["backbone.fc.weight"], other["backbone.fc.weight"])


def test_validation_sees_every_image_whole_and_still_while_training_augments(settings, console, monkeypatch, seen):
    original, epochs = trainer.validate, []

    def spy(model, steps, loader, samples, totals):
        epochs.append((np.concatenate([batch.images.permute(0, 2, 3, 1).numpy() for batch in loader.epoch()]), samples))
        return original(model, steps, loader, samples, totals)

    monkeypatch.setattr(trainer, "validate", spy)
    train(settings(epochs=2, policy="basic", image_size=56), console)
    (first, samples), (second, _) = epochs
    assert np.array_equal(first, np.asarray(samples.packed)[:, 4:60, 4:60])  # the centre window of 7/8, pixel for pixel
    assert np.array_equal(first, second)
    trained = [torch.cat([images for _, images, *_ in part]) for part in (seen[:6], seen[6:])]
    first_epoch, second_epoch = (sorted(image.numpy().tobytes() for image in images) for images in trained)
    assert first_epoch != second_epoch


@pytest.mark.parametrize("kind", ["auto", "resident"])
def test_every_place_of_the_squares_trains_the_same_network(settings, console, kind):
    packed, other = (load_file(train(settings(input=source), console) / BEST) for source in ("packed", kind))
    assert all(torch.equal(packed[name], other[name]) for name in packed)


def test_files_train_nearly_the_network_that_packed_pixels_train(settings, console):
    """A view of a file is scaled once and rounded once, that of a square may be scaled for the second time."""
    packed, files = (read_rows(train(settings(input=kind), console)) for kind in ("packed", "files"))
    for one, other in zip(packed, files, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=0.05)


def test_the_input_and_its_bytes_are_in_the_log_and_beside_the_run(settings, console):
    folder = train(settings(input="files"), console)
    chosen = {choice["name"]: choice for choice in json.loads((folder / "machine.json").read_text())["choices"]}
    assert chosen["input"]["value"] == "files"
    assert "MiB of encoded images" in chosen["input"]["reason"]
    assert "input: files" in (folder / "train.log").read_text(encoding="utf-8")


def test_a_run_under_a_changed_policy_and_sampler_trains_and_is_resumed(settings, console):
    asked = {"policy": "lineage", "stain": 0.1, "erase": 0.2, "sampler": "mixed:0.66"}
    straight = train(settings(**asked, epochs=2), console)
    stopped = train(settings(**asked, epochs=1), console)
    resume(stopped, console, epochs=2)
    assert all(
        torch.equal(one, other)
        for one, other in zip(load_file(straight / BEST).values(), load_file(stopped / BEST).values(), strict=True)
    )
