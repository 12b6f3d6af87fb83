"""A probe: a last layer on features of a network that stays as it is, in a run folder like any other."""

import logging
import signal
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from hemafast.api import open_run
from hemafast.config import STEPPED, TrainConfig
from hemafast.data.dataset import open_dataset
from hemafast.engine import probe
from hemafast.engine.build import build_run
from hemafast.engine.checkpoint import load_best
from hemafast.engine.distributed import World
from hemafast.engine.journal import Journal, read_rows
from hemafast.engine.lr_find import find_rate
from hemafast.engine.plan import settle
from hemafast.engine.probe import SMOOTHNESS, fit_probe
from hemafast.engine.trainer import resume, train
from hemafast.errors import HemafastError, StoppedError
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.logistic import Axes, fit_logistic
from hemafast.run_folder import BEST, LAST, LOG, LOG_TABLE

SETTINGS = {"probe": 3, "policy": "basic", "sampler": "balanced", "epochs": 1, "lr": TrainConfig.lr}


@pytest.fixture(scope="module")
def asked(settings):
    """`asked(**changes)`: the settings of a probe of three views."""
    return lambda **changes: settings(**SETTINGS | changes)


@pytest.fixture(scope="module")
def straight(asked):
    """A probe that was never stopped."""
    return train(asked())


@pytest.fixture
def cells():
    """Two views of 120 cells of three classes in 30 dimensions, 20 cells from each patient."""
    generator = np.random.default_rng(0)
    labels = np.arange(120) % 3
    views = generator.normal(size=(2, 120, 30)) + 1.5 * np.eye(3, 30)[labels]
    return views, labels, [f"patient {row // 20}" for row in range(120)]


def test_a_probe_is_an_ordinary_run(straight, asked):
    assert {BEST, LAST, LOG, LOG_TABLE} <= {file.name for file in straight.iterdir()}
    assert straight.name.endswith("test_resnet_probe")
    train_row, val_row = read_rows(straight)
    assert (train_row["epoch"], train_row["phase"], val_row["phase"]) == (1, "train", "val")
    assert train_row["smoothness"] in SMOOTHNESS
    metrics = evaluate_run(straight)
    assert metrics["pooled"]["macro_f1"] == pytest.approx(val_row["f1_macro"], abs=1e-4)
    answers = open_run(straight).model(device="cpu").predict(open_dataset(asked().data).folder / "images")
    assert len(answers) == 58


def test_only_the_last_layer_differs_from_the_first_weights(straight, asked):
    settings = asked()
    run = build_run(settle(settings, World()), World())
    before, (network, _) = run.learner.model.state_dict(), load_best(straight / BEST)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"backbone.fc.weight", "backbone.fc.bias"}


def test_what_is_kept_is_the_layer_that_was_fitted(asked, monkeypatch):
    made, fit = [], probe.fit_probe
    monkeypatch.setattr(probe, "fit_probe", lambda *given: made.append(fit(*given)) or made[0])
    layer = load_best(train(asked()) / BEST)[0].backbone.fc
    np.testing.assert_allclose(layer.weight.detach(), made[0].layer.weights, rtol=1e-6)
    np.testing.assert_allclose(layer.bias.detach(), made[0].layer.bias, rtol=1e-6)


def test_views_differ_and_the_first_is_the_plain_one(asked, monkeypatch):
    seen = {}
    fit = probe.fit_probe
    monkeypatch.setattr(probe, "fit_probe", lambda views, *rest: seen.update(views=views) or fit(views, *rest))
    train(asked(policy="none"))
    same = seen["views"]
    assert same.shape[:2] == (3, 47)
    np.testing.assert_allclose(same[1:], np.broadcast_to(same[0], same[1:].shape), rtol=1e-3, atol=1e-3)
    train(asked(probe=2))
    np.testing.assert_allclose(seen["views"][0], same[0], rtol=1e-3, atol=1e-3)
    assert not np.allclose(seen["views"][1], same[0], rtol=1e-2, atol=1e-2)


def test_the_graph_standardises_views_of_training_and_the_network_does_not_again(asked, monkeypatch):
    modes = []
    found = probe.features_of

    def features_of(model, *rest, **named):
        modes.append((model.standardize, named.get("learns", False)))
        result = found(model, *rest, **named)
        modes[-1] += (model.training,)
        return result

    monkeypatch.setattr(probe, "features_of", features_of)
    train(asked(standardize=True, probe=2))
    assert modes == [(True, False, False), (True, True, True)]


def test_norms_keep_their_statistics(straight):
    statistics = load_best(straight / BEST)[0].state_dict()
    assert all(not tensor.any() for name, tensor in statistics.items() if name.endswith("running_mean"))


@pytest.mark.parametrize("batches", [1, 8, 19])
def test_a_stopped_probe_starts_over_and_ends_the_same(
    batches, asked, straight, monkeypatch, assert_equal_runs, caplog
):
    config, count, advance = asked(), iter(range(1, 1000)), Journal.advance

    def interrupted(self, *given):
        advance(self, *given)
        if next(count) == batches:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "advance", interrupted)
        with pytest.raises(StoppedError, match="--resume"):
            train(config)
    (folder,) = config.output.iterdir()
    assert not (folder / BEST).exists()
    resume(folder)
    assert_equal_runs(folder, straight)
    with caplog.at_level(logging.INFO, "hemafast"):
        resume(folder)
    assert "is finished" in caplog.text


def test_the_likelihood_of_held_out_images_chooses_how_smooth_the_layer_is(cells):
    views, labels, groups = cells
    made = fit_probe(views, labels, groups, 3, np.ones(120))
    assert made.held_out.shape == (120, 3)
    assert (made.held_out.argmax(1) == labels).mean() > 0.6
    noise = fit_probe(np.random.default_rng(1).normal(size=(2, 120, 30)), labels, groups, 3, np.ones(120))
    assert noise.smoothness < made.smoothness


def test_no_image_is_held_out_from_its_own_group(cells):
    views, labels, _ = cells
    twins = np.concatenate([views, views], axis=1)  # each image twice
    apart = fit_probe(twins, np.tile(labels, 2), [str(row % 120) for row in range(240)], 3, np.ones(240))
    singly = fit_probe(twins, np.tile(labels, 2), [str(row) for row in range(240)], 3, np.ones(240))
    assert (singly.held_out.argmax(1) == np.tile(labels, 2)).mean() > (
        apart.held_out.argmax(1) == np.tile(labels, 2)
    ).mean()


def test_several_views_of_an_image_weigh_as_one(cells):
    views, labels, groups = cells
    one, same = (fit_probe(np.repeat(views[:1], count, 0), labels, groups, 3, np.ones(120)) for count in (1, 4))
    assert one.smoothness == same.smoothness
    np.testing.assert_allclose(one.layer(views[0]), same.layer(views[0]), atol=0.02)


def test_without_groups_to_hold_out_the_usual_smoothness_is_taken(cells):
    views, labels, _ = cells
    made = fit_probe(views, labels, [str(label) for label in labels], 3, np.ones(120))
    assert made.held_out is None
    low = Axes.of(views.reshape(240, 30))
    layer = fit_logistic(low(views.reshape(240, 30)), np.tile(labels, 2), 3, made.smoothness, np.full(240, 0.5))
    np.testing.assert_allclose(made.layer(views[0]), layer(low(views[0])), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "power"), [({"sampler": "natural"}, 0), ({}, 1), ({"sampler": "natural", "loss": "weighted"}, 1)]
)
def test_images_weigh_as_the_sampler_and_the_loss_have_it(asked, changes, power):
    run = build_run(settle(asked(**changes), World()), World())
    labels, counts = run.plan.train.labels, run.dataset.counts("train")
    usual = (47 / ((counts > 0).sum() * counts[labels])) ** power
    np.testing.assert_allclose(probe._weights(run, labels), usual, rtol=1e-6)


REFUSED = {
    "time_budget": 60,
    "accumulate": 2,
    "lr": 1e-3,
    "schedule": "cosine",
    "warmup": 0.1,
    "weight_decay": 0.1,
    "layer_decay": 0.5,
    "clip_grad": 1.0,
    "ema": 0.9,
    "focal_gamma": 1.0,
    "logit_tau": 2.0,
    "label_smoothing": 0.1,
    "lineage_weight": 0.3,
    "stage_temperature": 0.5,
    "teacher": "runs/other",
    "teacher_weight": 0.1,
    "mixup": 0.2,
    "cutmix": 0.2,
    "dropout": 0.1,
    "drop_path": 0.1,
    "growing_from": (32,),
    "freeze_norm": True,
    "freeze_stages": 1,
    "sync_norm": True,
}


@pytest.mark.parametrize("name", STEPPED)
def test_what_is_about_steps_is_refused_by_name(name):
    with pytest.raises(HemafastError, match=f"{name} = .* has no effect with probe = 4"):
        TrainConfig(probe=4, **{name: REFUSED[name]})


@pytest.mark.parametrize(("preset", "other"), [("probe", ""), ("quick", ", or use --preset probe")])
def test_the_remedy_names_no_preset_that_is_used_already(preset, other):
    with pytest.raises(HemafastError) as refused:
        TrainConfig(preset=preset, probe=4, clip_grad=1.0)
    assert refused.value.remedy == f"Leave it out{other}."


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 5}, "epochs = 5: a probe looks at its views once"),
        ({"loss": "focal"}, "loss = focal has no logistic regression"),
        ({"method": "byol"}, "probe = 4 has no effect with method = byol"),
    ],
)
def test_what_a_probe_cannot_do_is_refused(changes, said):
    with pytest.raises(HemafastError, match=said):
        TrainConfig(probe=4, **changes)


def test_a_probe_has_no_learning_rate_to_find(asked):
    with pytest.raises(HemafastError, match="makes no steps"):
        find_rate(asked())


def test_a_network_without_a_linear_last_layer_is_refused_before_its_features_are_taken(asked, monkeypatch):
    monkeypatch.setattr(probe, "features_of", lambda *_, **__: pytest.fail("features were taken"))
    with pytest.raises(HemafastError, match="not a linear one with a bias"):
        train(asked(model="deit_tiny_distilled_patch16_224"))


def test_an_encoder_of_dinov2_is_probed(asked, tmp_path):
    """Such files are published for blood cells; none is at hand, so this one is of their structure alone."""
    encoder = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=70).state_dict()
    file = tmp_path / "encoder.safetensors"
    save_file({f"teacher.backbone.{name}": tensor.contiguous() for name, tensor in encoder.items()}, file)
    folder = train(asked(model="vit_small_patch14_dinov2", pretrained="auto", weights=file, image_size=56, probe=2))
    network, card = load_best(folder / BEST)
    assert "pos_embed resampled" in card.started_from
    kept = network.backbone.state_dict()
    assert torch.equal(kept["blocks.11.mlp.fc2.weight"], encoder["blocks.11.mlp.fc2.weight"])
    assert kept["head.weight"].shape == (11, 384)
    assert replace(card, calibration=None).backbone == "vit_small_patch14_dinov2"
