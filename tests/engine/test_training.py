"""The settings reach the optimizer, the loss and the loaders."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from hemafast.engine import task
from hemafast.engine.build import build_run
from hemafast.engine.distributed import World
from hemafast.engine.journal import column, read_rows
from hemafast.engine.plan import settle
from hemafast.engine.schedule import one_cycle
from hemafast.engine.step import TrainStep
from hemafast.engine.trainer import resume, train
from hemafast.objective import class_weights
from hemafast.presets import PRESETS, named_preset, thawed
from hemafast.run_folder import LOG, read_config

BEST = "best_model.safetensors"


@pytest.fixture
def seen(monkeypatch):
    """Of each training step: the optimizer's rate, the images, and what its loss should be without and with weights."""
    steps, original = [], TrainStep.__call__

    def spy(self, batch, *arguments, **named):
        logits = self._forward(batch.images, batch.labels)[1].detach()
        original(self, batch, *arguments, **named)
        rates = {group["lr"].item() for group in self._optimizer.param_groups}
        steps.append((rates, batch.images, logits, batch.labels))

    monkeypatch.setattr(TrainStep, "__call__", spy)
    return steps


def test_a_constant_rate_arrives_in_the_optimizer(settings, seen):
    folder = train(settings(lr=3e-4))
    assert [rate for rates, *_ in seen for rate in rates] == pytest.approx([3e-4] * 6)
    assert read_rows(folder)[0]["lr"] == 3e-4


def test_the_one_cycle_rate_arrives_in_the_optimizer(settings, seen):
    folder = train(settings(epochs=2, schedule="onecycle"))
    expected = [one_cycle(1e-3, 12)(step) for step in range(12)]
    assert [rate for rates, *_ in seen for rate in rates] == pytest.approx(expected)
    assert len(set(expected)) == 12
    assert column(read_rows(folder), "train", "lr") == [expected[5], expected[11]]
    assert folder.name.endswith("_onecycle")


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_weighted_by_class_if_asked(settings, seen, dataset, weighted):
    name = "weighted" if weighted else "cross-entropy"
    folder = train(settings(batch_size=64, loss=name, label_smoothing=0.1))
    ((_, _, logits, labels),) = seen
    weight = torch.from_numpy(class_weights(dataset.counts("train")))
    plain, heavy = (
        functional.cross_entropy(logits, labels, weight=w, label_smoothing=0.1, reduction="none").mean().item()
        for w in (None, weight)
    )
    assert abs(plain - heavy) > 1e-3
    assert read_rows(folder)[0]["loss"] == pytest.approx(heavy if weighted else plain, rel=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(settings):
    first, second, other = (load_file(train(settings(seed=seed)) / BEST) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["backbone.fc.weight"], other["backbone.fc.weight"])


def test_validation_sees_every_image_whole_and_still_while_training_augments(settings, monkeypatch, seen):
    original, epochs = task.validate, []

    def spy(model, step, loader, samples, totals, **named):
        epochs.append((np.concatenate([batch.images.permute(0, 2, 3, 1).numpy() for batch in loader.epoch()]), samples))
        return original(model, step, loader, samples, totals, **named)

    monkeypatch.setattr(task, "validate", spy)
    train(settings(epochs=2, policy="basic", image_size=56))
    (first, samples), (second, _) = epochs
    assert np.array_equal(first, np.asarray(samples.packed)[:, 4:60, 4:60])  # the centre window of 7/8, pixel for pixel
    assert np.array_equal(first, second)
    trained = [torch.cat([images for _, images, *_ in part]) for part in (seen[:6], seen[6:])]
    first_epoch, second_epoch = (sorted(image.numpy().tobytes() for image in images) for images in trained)
    assert first_epoch != second_epoch


def test_the_log_names_the_domains_that_are_trained_on(settings):
    folder = train(settings(domains=("Matek_19",)))
    assert " validation images of Matek_19, " in (folder / LOG).read_text(encoding="utf-8")


def test_the_weights_of_the_best_epoch_are_the_averaged_ones_where_asked_for(settings):
    plain, none, averaged = (load_file(train(settings(ema=ema)) / BEST) for ema in (None, 0, 0.9))
    assert plain.keys() == averaged.keys()
    assert torch.equal(plain["backbone.fc.weight"], none["backbone.fc.weight"])
    assert not torch.equal(plain["backbone.fc.weight"], averaged["backbone.fc.weight"])


def test_frozen_stages_and_norms_come_out_as_they_went_in(settings):
    frozen = train(settings(freeze_stages=2, freeze_norm=True, lr=1e-2))
    run = build_run(settle(read_config(frozen), World()), World())
    before, after = run.learner.model.state_dict(), load_file(frozen / BEST)
    same = {name for name in after if torch.equal(before[name], after[name])}
    assert {name for name in after if "running_" in name or "bn" in name} <= same
    assert "backbone.conv1.weight" in same or "backbone.conv1.0.weight" in same
    assert "backbone.fc.weight" not in same


def test_what_a_preset_freezes_is_trained_if_the_weights_are_random_and_that_is_said(settings, monkeypatch):
    monkeypatch.setitem(PRESETS, "fast", lambda: {"freeze_stages": 2})
    asked = {"preset": "fast", "freeze_stages": 2, "lr": 1e-2}
    free = train(settings(**asked))
    assert read_config(free).freeze_stages == 0
    assert "all layers are trained: fast freezes some, but the weights are random" in (free / LOG).read_text("utf-8")
    plain = train(settings(lr=1e-2))
    same = [load_file(folder / BEST) for folder in (free, plain)]
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[1])
    kept = train(settings(**asked, weights=plain / BEST))
    assert read_config(kept).freeze_stages == 2
    assert "all layers" not in (kept / LOG).read_text("utf-8")


def test_what_a_user_freezes_stays_frozen():
    fast = named_preset("fast")
    assert thawed("fast", {"freeze_stages": fast["freeze_stages"], "freeze_norm": False}) == {"freeze_stages": 0}
    assert thawed("fast", {"freeze_stages": 2, "freeze_norm": True}) == {}
    assert thawed("quick", {"freeze_stages": 0, "freeze_norm": False}) == {}


@pytest.mark.parametrize("kind", ["auto", "resident"])
def test_every_place_of_the_squares_trains_the_same_network(settings, kind):
    packed, other = (load_file(train(settings(input=source)) / BEST) for source in ("packed", kind))
    assert all(torch.equal(packed[name], other[name]) for name in packed)


def test_files_train_nearly_the_network_that_packed_pixels_train(settings):
    """A view of a file is scaled once and rounded once, that of a square may be scaled for the second time."""
    packed, files = (read_rows(train(settings(input=kind))) for kind in ("packed", "files"))
    for one, other in zip(packed, files, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.05)


def test_the_input_and_its_bytes_are_in_the_log_and_beside_the_run(settings):
    folder = train(settings(input="files"))
    chosen = {choice["name"]: choice for choice in json.loads((folder / "machine.json").read_text())["choices"]}
    assert chosen["input"]["value"] == "files"
    assert "MiB of encoded images" in chosen["input"]["reason"]
    assert "input: files" in (folder / "train.log").read_text(encoding="utf-8")


def test_a_run_under_a_changed_policy_and_sampler_trains_and_is_resumed(settings):
    asked = {"policy": "lineage", "stain": 0.1, "erase": 0.2, "sampler": "mixed:0.66"}
    straight = train(settings(**asked, epochs=2))
    stopped = train(settings(**asked, epochs=1))
    resume(stopped, {"epochs": 2})
    assert all(
        torch.equal(one, other)
        for one, other in zip(load_file(straight / BEST).values(), load_file(stopped / BEST).values(), strict=True)
    )


def test_seconds_of_compiling_are_told_apart_from_the_pace(settings, monkeypatch):
    compiled = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda forward, **_: compiled(forward, dynamic=False, backend="eager"))
    folder = train(settings(compile="on", epochs=2, track=()))
    rows = {(row["epoch"], row["phase"]): row for row in read_rows(folder)}
    assert [place for place in rows if "compile_seconds" in rows[place]] == [(1, "train"), (1, "val")]
    for phase, images in (("train", 47), ("val", 11)):
        row = rows[1, phase]
        assert 0 < row["compile_seconds"] < row["seconds"]
        assert row["images_per_second"] == pytest.approx(images / (row["seconds"] - row["compile_seconds"]))
    log = (folder / LOG).read_text(encoding="utf-8").splitlines()
    first, second = (line for line in log if "train loss" in line)
    assert "s of them compiling" in first
    assert "compiling" not in second
