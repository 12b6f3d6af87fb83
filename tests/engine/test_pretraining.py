"""A pretraining run: it learns from views without labels, in the same loop as every other run."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from two_processes import pair_of_processes

from hemafast.config import TrainConfig
from hemafast.data.dataset import Dataset, open_dataset
from hemafast.engine import task
from hemafast.engine.build import build_run
from hemafast.engine.checkpoint import load_best, load_last
from hemafast.engine.distributed import World, joined
from hemafast.engine.journal import read_rows
from hemafast.engine.plan import settle
from hemafast.engine.trainer import resume, train
from hemafast.errors import HemafastError, StoppedError
from hemafast.neighbours import nearest_labels
from hemafast.pretraining import Encoder
from hemafast.report.page import write_report
from hemafast.run_folder import BEST, COMMAND, ENCODER, LAST, LOG, read_metrics

METHODS = ("simclr", "byol", "dino")
UPDATES = 3  # an epoch: 47 images are batches of 16, 16, 15
EPOCHS = 2
SETTINGS = {
    "epochs": EPOCHS,
    "batch_size": 16,
    "policy": "robust",
    "crop_area": (0.3, 1.0),
    "background": 0.0,
    "schedule": "cosine",
    "clip_grad": 1.0,
    "layer_decay": 0.8,
}


@pytest.fixture
def asked(settings):
    """`asked(method, **changes)`: the settings of a short pretraining run."""
    return lambda method, **changes: settings(method=method, **SETTINGS | changes)


@pytest.fixture(scope="module", params=METHODS)
def straight(request, settings):
    """A finished run that was never stopped."""
    return request.param, train(settings(method=request.param, **SETTINGS))


def left_by(folder):
    """All that a finished run left, but for times and settings."""
    state = load_last(folder / LAST)
    timed = ("seconds", "waited", "elapsed", "ending", "per_second", "share")
    rows = [{name: row[name] for name in row if not name.endswith(timed)} for row in read_rows(folder)]
    progress = {name: value for name, value in state["progress"].items() if name not in timed}
    kept = {name: state[name] for name in ("model", "ema", "loader", "totals")}
    moments = state["optimizer"]["state"]
    return {"rows": rows, "progress": progress, "moments": moments, **kept, "encoder": load_file(folder / ENCODER)}


@pytest.mark.parametrize("stop", [1, UPDATES, UPDATES + 2])
def test_a_run_stopped_behind_any_update_and_resumed_equals_one_never_stopped(straight, asked, signal_at, same, stop):
    method, whole = straight
    config = asked(method)
    with signal_at(stop), pytest.raises(StoppedError, match="hemafast pretrain --resume"):
        train(config)
    (folder,) = config.output.iterdir()
    resumed, never_stopped = left_by(resume(folder)), left_by(whole)
    assert [name for name in resumed if not same(resumed[name], never_stopped[name])] == []


def test_every_epoch_is_scored_and_the_encoder_is_that_of_the_last(straight):
    method, folder = straight
    rows = read_rows(folder)
    assert [(row["epoch"], row["phase"]) for row in rows] == [(1, "train"), (1, "val"), (2, "train"), (2, "val")]
    for row in rows[1::2]:
        assert 0 <= row["knn_accuracy"] <= 1
        assert row["feature_spread"] > 0
        assert not row.keys() & {"accuracy", "f1_macro", "loss"}
    assert all(np.isfinite(row["loss"]) and "accuracy" not in row for row in rows[::2])
    state = load_last(folder / LAST)
    scored = state["ema"] or state["model"]  # byol and dino keep their teacher
    assert bool(state["ema"]) == (method != "simclr")
    kept = load_file(folder / ENCODER)
    assert kept.keys() == {name for name in state["model"] if name.startswith("backbone.")}
    assert all(torch.equal(kept[name], scored[name]) for name in kept)
    assert "kNN accuracy" in (folder / LOG).read_text(encoding="utf-8")
    assert (folder / COMMAND).read_text(encoding="utf-8").startswith("hemafast pretrain ")


def test_labels_change_nothing_that_is_learned(asked, same, monkeypatch):
    def learned():
        return load_file(train(asked("simclr", epochs=1)) / ENCODER)

    with_labels = learned()
    original = Dataset.samples

    def shuffled(self, *asked):
        samples = original(self, *asked)
        return replace(samples, labels=np.random.default_rng(0).permutation(samples.labels))

    monkeypatch.setattr(Dataset, "samples", shuffled)
    assert same(learned(), with_labels)


def test_the_weights_of_a_run_are_those_that_training_starts_from(straight, settings):
    _, folder = straight
    kept = load_file(folder / ENCODER)
    run = train(settings(weights=folder, lr=1e-12))
    model, card = load_best(run / BEST)
    assert f"weights file {folder / ENCODER}" in card.started_from
    assert "filled 100 %" in card.started_from
    for name, parameter in model.named_parameters():
        assert "fc" in name or torch.allclose(parameter, kept[name], atol=1e-6), name


def test_a_classifier_is_a_start_too(settings):
    folder = train(settings())
    assert "best_model.safetensors: " in load_best(train(settings(weights=folder)) / BEST)[1].started_from


def test_a_pretrained_network_is_no_classifier(straight):
    with pytest.raises(HemafastError, match=r"no classifier.*hemafast train --weights"):
        load_best(straight[1] / BEST)


def test_its_scores_and_its_page_are_refused_in_the_same_words(straight):
    for asked in (read_metrics, write_report):
        with pytest.raises(HemafastError, match=r"no classifier.*hemafast train --weights"):
            asked(straight[1])


def test_a_last_layer_may_be_fitted_first_and_all_layers_go_on_from_it(straight, settings):
    layer = {"policy": "basic", "probe": 2, "lr": TrainConfig.lr}
    probe = train(settings(weights=straight[1], **layer))
    whole = train(settings(weights=probe, lr=1e-12))
    (fitted, _), (begun, card) = (load_best(run / BEST) for run in (probe, whole))
    assert str(probe) in card.started_from
    for name, parameter in begun.named_parameters():
        torch.testing.assert_close(parameter, fitted.get_parameter(name), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "value"), [("method", None), ("views", 3)])
def test_another_method_is_another_run(straight, name, value):
    with pytest.raises(HemafastError, match=f"cannot change this .{name}: "):
        resume(straight[1], {name: value, "epochs": 9}, allow_changes=True)


# What a batch is


@pytest.fixture
def built(asked):
    """`built(method, **changes)`: a run that has not begun."""

    def make(method, **changes):
        config = asked(method, **changes)
        return build_run(settle(config, World()), World())

    return make


@pytest.mark.parametrize("views", [2, 3])
def test_a_batch_holds_each_image_in_so_many_views(built, views):
    run = built("simclr", views=views)
    batch = next(iter(run.train_batches.epoch()))
    assert batch.images.shape[0] == 16 * views
    rows = batch.rows.view(views, 16)
    assert torch.equal(rows, rows[:1].expand(views, 16))
    first, second, *_ = batch.images.chunk(views)
    assert not torch.equal(first, second)
    assert run.train_batches.sizes == [(16, 16), (16, 16), (15, 15)]


def model_parts(run):
    return {name.split(".")[0] for name, _ in run.learner.model.named_parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_a_step_with_three_views_learns(built, method):
    run = built(method, views=3)
    before = {name: tensor.clone() for name, tensor in run.learner.model.state_dict().items()}
    batch = next(iter(run.train_batches.epoch()))
    run.learner.train_step(batch, 1e-2, run.totals, step=0)
    changed = {name for name, tensor in run.learner.model.state_dict().items() if not torch.equal(before[name], tensor)}
    learns = {name for name, parameter in run.learner.model.named_parameters() if parameter.requires_grad}
    assert all(name.startswith("backbone.layer") for name in learns - changed)  # branches that begin at zero
    assert {name.split(".")[0] for name in changed} >= {"backbone", "head"} | ({"predictor"} & model_parts(run))
    measured, images = run.totals.measured()
    assert (measured.keys(), images) == ({"loss"}, 16)


def test_simclr_is_the_cross_entropy_of_each_view_to_its_other_one(built):
    model = built("simclr").learner.model
    batch = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    projected = model(batch)
    unit = functional.normalize(projected[:, 0], dim=1)
    likeness = (unit @ unit.T / 0.5).fill_diagonal_(-torch.inf)
    expected = functional.cross_entropy(likeness, (torch.arange(8) + 4) % 8)
    assert model.loss(projected, torch.zeros(8)).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("method", ["byol", "dino"])
def test_the_teacher_follows_and_has_no_gradient(built, method):
    run = built(method)
    learner = run.learner
    teacher = {name: tensor.clone() for name, tensor in learner.ema.module.named_parameters()}
    learner.train_step(next(iter(run.train_batches.epoch())), 1e-2, run.totals, step=5)  # the first copies the student
    share = learner.ema.share(5)
    assert 0 < share < 1
    for name, before in teacher.items():
        now, student = learner.ema.module.get_parameter(name), learner.model.get_parameter(name)
        assert now.grad is None
        if student.requires_grad:
            assert torch.allclose(now, before + share * (student - before), atol=1e-6), name


def test_the_teacher_sees_the_statistics_of_its_batch_again_after_validation(built):
    run = built("byol")
    run.learner.ema.module.eval()  # as the scores of an epoch leave it
    run.learner.model.train()
    assert run.learner.ema.module.training


# Scores


def test_neighbours_vote_by_closeness():
    features = np.array([[1, 0.1], [1, 0.2], [0.1, 1], [0.2, 1]], np.float32)
    asked = np.array([[5, 0.1], [0, 3]], np.float32)
    assert nearest_labels(features, np.array([0, 0, 7, 7]), asked).tolist() == [0, 7]


def test_features_that_collapse_are_noticed_and_said(asked, monkeypatch, caplog):
    features = Encoder.features
    monkeypatch.setattr(Encoder, "features", lambda self, images: features(self, images) * 1e-4 + 1.0)
    with caplog.at_level(logging.WARNING, "hemafast"):
        train(asked("simclr", epochs=1))
    assert [record for record in caplog.records if "have collapsed" in record.getMessage()]


def test_one_image_has_no_spread_and_has_not_collapsed(asked, monkeypatch, caplog):
    monkeypatch.setattr(task, "features_of", lambda *_, **__: (np.ones((1, 4), np.float32), np.zeros(1)))
    folder = train(asked("simclr", epochs=1))
    assert "have collapsed" not in caplog.text
    assert "feature_spread" not in next(row for row in read_rows(folder) if row["phase"] == "val")


def test_features_that_are_not_finite_stop_the_run(asked, monkeypatch):
    monkeypatch.setattr(task, "features_of", lambda *_, **__: (np.full((11, 4), np.nan, np.float32), np.zeros(11)))
    config = asked("simclr", epochs=1)
    with pytest.raises(HemafastError, match="not finite in epoch 1"):
        train(config)
    (folder,) = config.output.iterdir()
    assert not (folder / ENCODER).exists()


def test_images_of_one_class_are_learned_from_without_scores_and_not_classified(asked, settings, prepare_again):
    data = prepare_again(ignore_labels=True)
    folder = train(asked("simclr", epochs=1, data=data))
    (row,) = [row for row in read_rows(folder) if row["phase"] == "val"]
    assert "knn_accuracy" not in row
    assert (folder / ENCODER).exists()
    config = settings(data=data)
    with pytest.raises(HemafastError, match=r"one class, unlabelled: .* `hemafast pretrain`"):
        train(config)
    assert not [*config.output.iterdir()]


def test_neighbours_are_scored_on_the_labelled_part(asked, prepare_again, monkeypatch, tmp_path):
    (tmp_path / "map.csv").write_text("from,to\nmonocyte,unlabelled\n")
    data = prepare_again(class_map=tmp_path / "map.csv", classes="from-data")
    seen = []

    def recorded(features, labels, asked_for):
        seen.append((labels, asked_for))
        return nearest_labels(features, labels, asked_for)

    monkeypatch.setattr(task, "nearest_labels", recorded)
    train(asked("simclr", epochs=1, data=data))
    prepared = open_dataset(data)
    known, unknown = prepared.split("val")["label"] != "unlabelled", prepared.classes.index("unlabelled")
    assert not known.all()
    ((labels, questions),) = seen
    assert len(questions) == known.sum() and unknown not in labels
    assert len(labels) == (prepared.split("train")["label"] != "unlabelled").sum()


# Settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "focal"}, "loss = focal has no effect with method = simclr"),
        ({"mixup": 0.3}, "mixup = 0.3"),
        ({"sampler": "balanced"}, "sampler = balanced"),
        ({"views": 1}, "views = 1"),
        ({"method": "mae"}, "method = 'mae'"),
    ],
)
def test_what_needs_labels_is_refused(asked, changes, words):
    with pytest.raises(HemafastError, match=words):
        asked(**{"method": "simclr"} | changes)


def test_without_lightly_it_says_what_to_install(asked, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lightly.loss", None)
    config = asked("simclr")
    with pytest.raises(HemafastError, match=r"lightly.loss cannot be imported.*hemafast\[ssl\]"):
        train(config)
    assert not list(config.output.iterdir())


# Several processes


@pytest.fixture(scope="module")
def pair():
    with pair_of_processes() as two:
        yield two


def one_update(config):
    """Loss, trained weights, images of each batch, and the centre of dino after an update; also in a world of one."""
    with joined("cpu") as world:
        run = build_run(settle(config, world), world)
        run.learner.model.train()
        batch = next(iter(run.train_batches.epoch()))
        run.learner.train_step(batch, 1e-2, run.totals, step=0)
        run.totals.load(run.totals.summed(world))
        model = run.learner.model
        weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        centre = getattr(model.loss.criterion, "center", torch.zeros(1))
        return run.totals.read()[0], weights, run.train_batches.sizes, centre


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_learn_as_one_with_batches_twice_as_large(pair, asked, method):
    """So simclr compares the images of all. Batch norm is frozen, because each process has statistics of its own."""
    frozen = {"freeze_norm": True, "clip_grad": None}
    first, second = pair(one_update, asked(method, batch_size=8, **frozen))
    alone = one_update(asked(method, batch_size=16, **frozen))
    assert torch.equal(first[1], second[1])
    assert first[0] == second[0] == pytest.approx(alone[0], rel=1e-5)
    # A first step of AdamW is the sign of a gradient, where that is not as small as its rounding: 1e-2 either way.
    torch.testing.assert_close(first[1], alone[1], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(first[3], alone[3], rtol=1e-4, atol=1e-6)
    assert first[2] == second[2]  # 47 images: one is left out, because all processes compare as many
    assert sum(whole for _, whole in first[2]) == 46
    assert all(mine * 2 == whole for mine, whole in first[2])


@pytest.mark.slow
def test_a_whole_run_of_two_processes_scores_every_image(pair, asked):
    (folder, none) = pair(train, asked("simclr", epochs=1, batch_size=8))
    assert none is None
    (row,) = [row for row in read_rows(folder) if row["phase"] == "val"]
    assert 0 <= row["knn_accuracy"] <= 1
