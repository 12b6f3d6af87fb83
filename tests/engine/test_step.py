"""One step of training and of evaluation."""

import copy
import dataclasses
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix
from steps import CLASSES, CPU, SIDE, batch_of, changed, network, parts_of, plain_descent, train_on
from torch import nn

from hemafast.data.augment import named_policy
from hemafast.data.stream import BatchStream, Process
from hemafast.engine.average import Average
from hemafast.engine.optimizer import build_optimizer
from hemafast.engine.step import BadUpdates, EvalStep, Mix, Totals, TrainStep, seed_batch, update_plan
from hemafast.objective import build_loss

COUNTS = np.array([9, 3, 1, 0, 7])
FP16 = dataclasses.replace(CPU, precision="fp16")
LEARNS = {"backbone.bn1.weight", "backbone.fc.weight"}  # from the first step on; residual branches begin at zero


@pytest.fixture
def model():
    return network()


@pytest.fixture
def loss():
    return build_loss(COUNTS, "weighted", smoothing=0.1)


def adam(model, **options):
    return build_optimizer(model, weight_decay=0.01, **options)


# Totals


def test_totals_are_the_mean_loss_and_the_confusion_of_all_batches():
    totals, losses, actual, predicted = Totals(CLASSES, "cpu"), [], [], []
    for seed, images in enumerate((8, 8, 3)):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(images, CLASSES, generator=generator)
        labels = torch.randint(0, CLASSES, (images,), generator=generator)
        each = nn.functional.cross_entropy(logits, labels, reduction="none")
        totals.add(each.mean(), logits, labels)
        losses += each.tolist()
        actual += labels.tolist()
        predicted += logits.argmax(dim=1).tolist()
    mean, confusion = totals.read()
    assert mean == pytest.approx(np.mean(losses), rel=1e-6)
    assert np.array_equal(confusion, confusion_matrix(actual, predicted, labels=range(CLASSES)))
    glanced = totals.glance()
    assert glanced is not None
    assert glanced[0] == mean


def test_totals_of_nothing_are_zero():
    mean, confusion = Totals(CLASSES, "cpu").read()
    assert mean == 0
    assert confusion.sum() == 0


def test_a_glance_is_of_its_moment(model, loss):
    totals = Totals(CLASSES, "cpu")
    step = TrainStep(model, loss, adam(model), CPU)
    train_on(step, batch_of(8), totals=totals)
    loss_then, confusion_then = totals.glance()
    train_on(step, batch_of(8, 1), totals=totals)
    assert confusion_then.sum() == 8
    assert totals.glance()[1].sum() == 16
    assert totals.glance()[0] != loss_then


def test_the_mean_norm_is_that_of_the_good_updates():
    totals = Totals(CLASSES, "cpu")
    for norm, bad in ((1.0, False), (float("nan"), True), (4.0, False), (9.0, True)):
        totals.add_update(torch.tensor(norm), torch.tensor(bad))
    assert totals.mean_norm() == 2.5


# A step


def test_a_step_is_the_step_of_a_plain_script(model, loss):
    plain, batch = copy.deepcopy(model.backbone), batch_of(8)
    totals = train_on(TrainStep(model, loss, plain_descent(model), CPU), batch)

    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (model.mean, model.std))
    normal = (batch.images.contiguous().float() / 255 - mean) / std
    weight = torch.from_numpy(np.array([20 / (4 * n) if n else 0 for n in COUNTS], dtype=np.float32))
    each = nn.functional.cross_entropy(
        plain.train()(normal), batch.labels, weight=weight, label_smoothing=0.1, reduction="none"
    )
    expected = each.mean()
    expected.backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in plain.parameters()]).norm()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()

    assert totals.read()[0] == pytest.approx(expected.item(), abs=1e-5)
    assert totals.mean_norm() == pytest.approx(norm.item(), rel=1e-4)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(model.backbone.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)


def test_training_changes_the_weights_at_the_rate_it_is_given(model, loss):
    before = copy.deepcopy(model.state_dict())
    train_on(TrainStep(model, loss, build_optimizer(model, weight_decay=0.0), CPU), batch_of(8), lr=1e-3)
    moved = [(parameter.detach() - before[name]).abs().max().item() for name, parameter in model.named_parameters()]
    assert max(moved) == pytest.approx(1e-3, rel=1e-3)  # Adam's first step has the length of the rate


def test_gradients_do_not_pile_up_over_steps(model, loss):
    before = copy.deepcopy(model.state_dict())
    step, batch = TrainStep(model.eval(), loss, plain_descent(model), CPU), batch_of(8)
    train_on(step, *[batch] * 3, lr=0.0)
    assert not changed(before, model)
    train_on(step, batch)
    twin = network().eval()
    train_on(TrainStep(twin, loss, plain_descent(twin), CPU), batch)
    assert not changed(twin.state_dict(), model)


def test_evaluation_leaves_the_model_alone(model, loss):
    model.eval()
    before = copy.deepcopy(model.state_dict())
    totals = Totals(CLASSES, "cpu")
    probabilities = EvalStep(model, loss, CPU)(batch_of(8), totals)
    assert not changed(before, model)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not probabilities.requires_grad
    assert totals.read()[1].sum() == 8


def test_a_model_still_learns_after_an_evaluation(model, loss):
    before = copy.deepcopy(model.state_dict())
    totals = Totals(CLASSES, "cpu")
    EvalStep(model, loss, CPU)(batch_of(8), totals)
    train_on(TrainStep(model, loss, adam(model), CPU), batch_of(8), totals=totals)
    assert totals.read()[1].sum() == 16
    assert changed(before, model) >= LEARNS


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_probabilities_are_fp32_and_sum_to_one_in_every_precision(model, loss, precision):
    machine = dataclasses.replace(CPU, precision=precision)
    probabilities = EvalStep(model.eval(), loss, machine)(batch_of(8), Totals(CLASSES, "cpu"))
    assert probabilities.dtype == torch.float32
    assert probabilities.shape == (8, CLASSES)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(8))


def test_only_fp16_scales_its_gradients(model, loss):
    for precision in ("fp32", "bf16"):
        machine = dataclasses.replace(CPU, precision=precision)
        assert not TrainStep(model, loss, adam(model), machine).scaler.is_enabled()
    assert TrainStep(model, loss, adam(model), FP16).scaler.is_enabled()


def test_the_loss_of_an_fp16_step_and_its_gradients_are_those_of_an_fp32_step(model, loss):
    twin, batch = network(), batch_of(8)
    ours = train_on(TrainStep(model, loss, plain_descent(model), CPU), batch)
    scaled = TrainStep(twin, loss, plain_descent(twin), FP16)
    theirs = train_on(scaled, batch)
    while theirs.mean_norm() != theirs.mean_norm():  # not a number: the scaler looks for its scale
        theirs = train_on(scaled, batch)
    assert theirs.read()[0] == pytest.approx(ours.read()[0], rel=0.02)
    assert theirs.mean_norm() == pytest.approx(ours.mean_norm(), rel=0.05)


# Several batches that make one update


def still(name):
    """A network of which an image's result does not depend on the others of its batch."""
    model = network(name)
    model.freeze(norm=True)
    return model


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (5, 4, 3), (4, 4, 1), (8,)])
def test_an_update_over_several_batches_is_that_over_one_large_batch(name, sizes, loss):
    one, many = still(name), still(name)
    whole = batch_of(sum(sizes))
    expected = train_on(TrainStep(one, loss, plain_descent(one), CPU, clip_grad=0.5), whole)
    step, totals = TrainStep(many, loss, plain_descent(many), CPU, clip_grad=0.5), Totals(CLASSES, "cpu")
    plan = update_plan([(size, size) for size in sizes], len(sizes), 1)
    before = copy.deepcopy(many.state_dict())
    for part, (share, update) in zip(parts_of(whole, *sizes), plan, strict=True):
        assert not changed(before, many)  # nothing moves before the group is complete
        step(part, 0.1, totals, step=0, share=share, update=update)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(many.state_dict()[name], tensor, atol=2e-6, rtol=1e-5)
    assert totals.mean_norm() == pytest.approx(expected.mean_norm(), rel=1e-4)
    assert totals.read()[0] == pytest.approx(expected.read()[0], rel=1e-5)


def test_the_last_update_of_an_epoch_may_have_fewer_batches():
    plan = update_plan([(8, 8)] * 5 + [(7, 7)], 4, 1)
    assert [completes for _, completes in plan] == [False, False, False, True, False, True]
    assert [share for share, _ in plan] == pytest.approx([1 / 4] * 4 + [8 / 15, 7 / 15])


@given(images=st.integers(2, 200), batch_size=st.integers(2, 40), accumulate=st.integers(1, 9), ranks=st.integers(1, 3))
def test_shares_of_an_update_weigh_every_image_the_same_whoever_has_it(images, batch_size, accumulate, ranks):
    plans, sizes = [], []
    for rank in range(min(ranks, images)):
        stream = BatchStream(
            labels=np.zeros(images, dtype=np.int64),
            batch_size=batch_size,
            packed_size=64,
            image_size=SIDE,
            policy=named_policy("none"),
            shuffle=True,
            process=Process(rank, min(ranks, images)),
        )
        sizes.append(stream.sizes())
        plans.append(update_plan(sizes[-1], accumulate, min(ranks, images)))
    flags = [[completes for _, completes in plan] for plan in plans]
    assert all(row == flags[0] for row in flags)  # all processes update behind the same batch
    assert flags[0][-1]
    for first in range(0, len(sizes[0]), accumulate):
        group = slice(first, first + accumulate)
        # Gradients are averaged over the processes, hence a mean here.
        assert np.mean([sum(share for share, _ in plan[group]) for plan in plans]) == pytest.approx(1)
        weights = [
            share / mine
            for plan, part in zip(plans, sizes, strict=True)
            for (share, _), (mine, _) in zip(plan[group], part[group], strict=True)
        ]
        assert weights == pytest.approx([weights[0]] * len(weights))


# Options of a step


def test_long_gradients_are_shortened_to_the_norm_asked_for(model, loss):
    limit = 1e-2
    free = network()
    start, batch = copy.deepcopy(model.state_dict()), batch_of(8)
    unclipped = train_on(TrainStep(free, loss, plain_descent(free), CPU), batch, lr=1.0)
    totals = train_on(TrainStep(model, loss, plain_descent(model), CPU, clip_grad=limit), batch, lr=1.0)
    moves = [
        torch.cat([(start[name] - parameter.detach()).flatten() for name, parameter in net.named_parameters()])
        for net in (free, model)
    ]
    assert moves[0].norm() > 10 * limit
    assert moves[1].norm().item() == pytest.approx(limit, rel=1e-3)
    torch.testing.assert_close(moves[1] / moves[1].norm(), moves[0] / moves[0].norm(), atol=1e-3, rtol=0)
    assert totals.mean_norm() == unclipped.mean_norm()  # what is reported is the norm before


def test_short_gradients_are_left_alone(model, loss):
    twin, batch = network(), batch_of(8)
    train_on(TrainStep(model, loss, plain_descent(model), CPU, clip_grad=1e6), batch)
    train_on(TrainStep(twin, loss, plain_descent(twin), CPU), batch)
    assert not changed(twin.state_dict(), model)


def test_averaged_weights_are_the_average_by_hand(model, loss):
    decay = 0.5
    average = Average(model, decay)
    step, totals = TrainStep(model, loss, adam(model), CPU, ema=average), Totals(CLASSES, "cpu")
    by_hand = None
    for number in range(5):
        step(batch_of(8, number), 1e-2, totals, step=number)
        # The first update is taken as it is; from then on the decay rises to the one asked for.
        kept = 0.0 if by_hand is None else min(1 - (1 + number) ** (-2 / 3), decay)
        now = {name: tensor.double().clone() for name, tensor in model.state_dict().items()}
        by_hand = {name: kept * (by_hand or now)[name] + (1 - kept) * tensor for name, tensor in now.items()}
    for name, tensor in average.module.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), by_hand[name], atol=1e-6, rtol=1e-5, msg=name)
    assert changed(model.state_dict(), average.module) >= LEARNS


def test_smoothing_reaches_the_loss(model):
    batch = batch_of(8)
    logits = model(batch.images).detach().double()
    totals = train_on(TrainStep(model, build_loss(COUNTS, smoothing=0.2), adam(model), CPU), batch)
    targets = 0.8 * np.eye(CLASSES)[batch.labels.numpy()] + 0.2 / CLASSES
    logs = logits.log_softmax(dim=1).numpy()
    assert totals.read()[0] == pytest.approx(-(targets * logs).sum(axis=1).mean(), rel=1e-4)


@pytest.mark.parametrize("images", [1, 2, 7, 8])
@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0), (0.4, 0.4)])
def test_mixed_images_keep_to_their_range_and_shares_sum_to_one(images, mixup, cutmix):
    mix, batch = Mix(CLASSES, mixup=mixup, cutmix=cutmix), batch_of(images)
    untouched = batch.images.clone()
    for number in range(4):
        seed_batch(0, 0, 0, number)
        mixed, shares = mix(batch)
        assert torch.equal(batch.images, untouched)
        assert mixed.shape == batch.images.shape
        assert mixed.dtype == torch.float32
        assert mixed.min() >= 0
        assert mixed.max() <= 255.001
        assert (shares >= 0).all()
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(images))


def test_an_odd_image_out_stays_as_it_is():
    batch = batch_of(7)
    seed_batch(0, 0, 0, 0)
    mixed, shares = Mix(CLASSES, mixup=1.0, cutmix=0.0)(batch)
    assert torch.equal(mixed[6], batch.images[6].float())
    assert torch.equal(shares[6], nn.functional.one_hot(batch.labels[6], CLASSES).float())


def test_a_mixed_image_is_of_two_as_its_shares_say():
    batch = batch_of(4)
    batch = dataclasses.replace(batch, labels=torch.tensor([0, 1, 2, 3]))
    seed_batch(0, 0, 0, 0)
    mixed, shares = Mix(CLASSES, mixup=1.0, cutmix=0.0)(batch)
    assert shares[0, 3] == pytest.approx(1 - shares[0, 0].item())  # image 0 and its partner from the other end
    assert 0 < shares[0, 0] < 1
    blend = shares[0, 0] * batch.images[0] + shares[0, 3] * batch.images[3]
    torch.testing.assert_close(mixed[0], blend, atol=1e-3, rtol=0)


def test_cutmix_swaps_as_many_pixels_as_its_shares_say():
    batch = dataclasses.replace(batch_of(4), labels=torch.tensor([0, 1, 2, 3]))
    seed_batch(0, 0, 0, 0)
    mixed, shares = Mix(CLASSES, mixup=0.0, cutmix=1.0)(batch)
    own = (mixed[0] == batch.images[0]).all(dim=0)
    theirs = (mixed[0] == batch.images[3]).all(dim=0)
    assert (own | theirs).all()
    assert 0 < shares[0, 3] < 1
    assert theirs.float().mean().item() == pytest.approx(shares[0, 3].item(), abs=1e-6)


def test_a_step_trains_on_the_mixed_batch(model):
    plain, batch = build_loss(COUNTS), batch_of(7)
    mix = Mix(CLASSES, mixup=0.4, cutmix=0.4)
    seed_batch(1, 0, 0, 0)
    images, shares = mix(batch)
    expected = plain(copy.deepcopy(model)(images), shares)
    seed_batch(1, 0, 0, 0)
    totals = train_on(TrainStep(model, plain, adam(model), CPU, mix=mix), batch)
    assert totals.read()[0] == pytest.approx(expected.item(), rel=1e-5)
    rows = totals.read()[1].sum(axis=1)
    assert np.array_equal(rows, np.bincount(batch.labels.numpy(), minlength=CLASSES))  # scored by the labels they had


# Draws


def logits_under(model, *where):
    seed_batch(*where)
    with torch.no_grad():
        return model(batch_of(8).images)


def test_dropout_depends_on_seed_process_epoch_and_batch_alone():
    model = network(dropout=0.5)
    here = (42, 0, 3, 5)
    expected = logits_under(model, *here)
    logits_under(model, 42, 0, 3, 6)
    assert torch.equal(logits_under(model, *here), expected)
    for place in range(4):
        there = [number + (rank == place) for rank, number in enumerate(here)]
        assert not torch.equal(logits_under(model, *there), expected)


def test_places_do_not_share_draws_by_summing_up_alike():
    draws = set()
    for rank in range(3):
        for epoch in range(4):
            for batch in range(20):
                seed_batch(0, rank, epoch, batch)
                draws.add((torch.rand(()).item(), np.random.rand(), random.random()))  # noqa: NPY002
    assert len(draws) == 3 * 4 * 20
    assert all(len({draw[kind] for draw in draws}) > 200 for kind in range(3))


# What is not finite


class Blasting(nn.Module):
    """A loss that is `value` at the calls in `at`, and finite at others."""

    def __init__(self, value: float, at: set[int]) -> None:
        super().__init__()
        self.inner, self.value, self.at, self.calls = build_loss(COUNTS), value, at, 0

    def forward(self, logits, targets):
        factor = self.value if self.calls in self.at else 1.0
        self.calls += 1
        return self.inner(logits, targets) * factor


class BlastingGradient(Blasting):
    """A finite loss whose gradient is `value` at the calls in `at`."""

    def forward(self, logits, targets):
        if self.calls in self.at:
            logits.register_hook(lambda gradient: gradient * self.value)
        self.calls += 1
        return self.inner(logits, targets)


def moments_of(optimizer):
    return {
        f"{number}.{name}": tensor.clone()
        for number, state in enumerate(optimizer.state.values())
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("kind", [Blasting, BlastingGradient])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("skip", [True, False])
def test_an_update_that_is_not_finite_moves_nothing(model, kind, value, clip, skip):
    optimizer = adam(model)
    step = TrainStep(model, kind(value, {1}), optimizer, CPU, clip_grad=clip, skip_bad=skip)
    totals = Totals(CLASSES, "cpu")
    step(batch_of(8, 0), 1e-2, totals, step=0)
    model_then, moments_then, norm_then = copy.deepcopy(model.state_dict()), moments_of(optimizer), totals.mean_norm()
    step(batch_of(8, 1), 1e-2, totals, step=1)
    moved = changed(model_then, model)
    if skip:
        assert {name for name in moved if "num_batches" not in name} == set()
    assert not moved & {name for name, _ in model.named_parameters()}
    moments_now = moments_of(optimizer)
    assert all(torch.equal(moments_then[name], moments_now[name]) for name in moments_then)
    assert any(name.endswith("step") for name in moments_then)
    assert step.bad.read() == step.bad.glance() == (1, 1)
    assert totals.mean_norm() == norm_then
    assert np.isfinite(totals.read()[0])

    step(batch_of(8, 2), 1e-2, totals, step=2)  # and the next one trains
    assert changed(model_then, model) >= LEARNS
    assert step.bad.read() == (1, 1)


def test_images_that_make_a_network_overflow_leave_no_trace_in_batch_norm(model):
    step = TrainStep(model, build_loss(COUNTS), adam(model), CPU, skip_bad=True)
    totals = train_on(step, batch_of(8))
    before = copy.deepcopy(model.state_dict())
    poisoned = dataclasses.replace(batch_of(8), images=torch.full((8, 3, SIDE, SIDE), float("nan")))
    step(poisoned, 1e-2, totals, step=1)
    assert {name for name in changed(before, model) if "num_batches" not in name} == set()
    assert step.bad.read() == (1, 1)
    train_on(step, batch_of(8), totals=totals)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_one_bad_batch_spoils_the_update_it_is_part_of_and_no_other(model):
    optimizer = adam(model)
    step = TrainStep(model, Blasting(float("nan"), {2}), optimizer, CPU, skip_bad=True)
    totals = Totals(CLASSES, "cpu")
    for number in range(6):  # three updates of two batches; the first batch of the second is bad
        step(batch_of(8, number), 1e-2, totals, step=number // 2, share=0.5, update=bool(number % 2))
    assert step.bad.read() == (1, 1)
    assert {state["step"].item() for state in optimizer.state.values()} == {2}


def test_bad_updates_are_counted_on_and_the_last_is_named():
    bad = BadUpdates("cpu")
    assert bad.read() == (0, 0)
    bad.start_from(3)
    for step, found in ((10, False), (11, True), (12, False), (13, True), (14, False)):
        bad.add(torch.tensor(found), step)
    assert bad.read() == bad.glance() == (5, 13)


def test_an_overflow_that_the_scaler_cures_is_not_a_bad_update(model):
    optimizer = adam(model)
    step = TrainStep(model, BlastingGradient(float("inf"), {1}), optimizer, FP16, skip_bad=True)
    totals = Totals(CLASSES, "cpu")
    step.scaler._init_scale = 4.0
    step(batch_of(8, 0), 1e-2, totals, step=0)
    before, moments = copy.deepcopy(model.state_dict()), moments_of(optimizer)
    step(batch_of(8, 1), 1e-2, totals, step=1)
    assert not changed(before, model) & {name for name, _ in model.named_parameters()}
    assert all(torch.equal(moments[name], tensor) for name, tensor in moments_of(optimizer).items())
    assert step.scaler.get_scale() == 2.0
    assert step.bad.read() == (0, 0)
    assert np.isfinite(totals.mean_norm())
    step(batch_of(8, 2), 1e-2, totals, step=2)
    assert changed(before, model) >= LEARNS


def test_an_overflow_at_the_least_scale_is_a_bad_update(model):
    step = TrainStep(model, BlastingGradient(float("inf"), {0}), adam(model), FP16)
    step.scaler._init_scale = 1.0
    train_on(step, batch_of(8))
    assert step.bad.read() == (1, 0)


def test_a_loss_that_is_not_finite_is_a_bad_update_at_any_scale(model):
    before = copy.deepcopy(model.state_dict())
    step = TrainStep(model, Blasting(float("nan"), {0}), adam(model), FP16)
    train_on(step, batch_of(8))
    assert step.bad.read() == (1, 0)
    assert not changed(before, model) & {name for name, _ in model.named_parameters()}


def test_a_batch_is_seeded_as_torch_would_seed_it():
    seed_batch(3, 0, 2, 1)
    ours, words = torch.rand(4), np.random.SeedSequence([3, 0, 2, 1]).generate_state(2)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    assert torch.equal(ours, torch.rand(4))


def test_a_batch_seeds_the_generator_of_the_gpu_in_use(monkeypatch):
    generators = (torch.Generator(), torch.Generator())
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    seed_batch(3, 0, 2, 1)
    assert generators[1].initial_seed() == torch.default_generator.initial_seed() != generators[0].initial_seed()
