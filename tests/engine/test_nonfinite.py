"""An update that is not finite moves nothing, is kept for whoever wants to look at it, and may stop the run."""

import csv
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hemafast.engine.build import build_run
from hemafast.engine.checkpoint import load_last
from hemafast.engine.distributed import World
from hemafast.engine.journal import column, read_rows
from hemafast.engine.plan import settle
from hemafast.engine.step import TrainStep, seed_batch
from hemafast.engine.trainer import resume, train
from hemafast.errors import HemafastError, StoppedError
from hemafast.objective import CrossEntropy
from hemafast.preparation.schema import in_split
from hemafast.run_folder import LAST, read_config

ACCUMULATED = {"epochs": 2, "batch_size": 10, "accumulate": 2, "policy": "basic"}  # updates of 10 + 10, 10 + 10, 7


@contextmanager
def poisoned(*updates, value=float("nan")):
    """The loss of these updates, counted from 0, is not finite. Yields the batches of each update."""
    step, loss, seen = TrainStep.__call__, CrossEntropy.forward, {}
    current = [None]

    def step_and_see(self, batch, *arguments, **named):
        current[0] = named["step"]
        seen.setdefault(named["step"], []).append(batch)
        step(self, batch, *arguments, **named)
        current[0] = None

    def loss_or_poison(self, logits, targets):
        healthy = loss(self, logits, targets)
        return healthy * value if current[0] in updates else healthy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", step_and_see)
        patch.setattr(CrossEntropy, "forward", loss_or_poison)
        yield seen


@pytest.fixture(scope="module")
def stopped(settings):
    """A run that stopped at its fifth update, and the batches that each of its updates saw."""
    config = settings(**ACCUMULATED)
    with poisoned(4) as seen, pytest.raises(HemafastError, match=r"not finite in update 5 .epoch 2.*--lr") as error:
        train(config)
    assert "the last checkpoint is intact" in error.value.problem
    assert not isinstance(error.value, StoppedError)
    (folder,) = config.output.iterdir()
    return folder, seen


def kept(folder):
    return sorted((folder / "nonfinite").glob("*.safetensors"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_update_that_is_not_finite_gets_by(settings, value):
    config = settings()
    with poisoned(2, value=value), pytest.raises(HemafastError, match="update 3 "):
        train(config)


def test_the_very_images_labels_and_rows_of_the_update_are_kept(stopped):
    folder, seen = stopped
    assert [file.name for file in kept(folder)] == [
        "epoch002-batch00002-rank0.safetensors",
        "epoch002-batch00003-rank0.safetensors",
    ]
    for file, batch in zip(kept(folder), seen[4], strict=True):
        tensors = load_file(file)
        assert tensors.keys() == {"images", "labels", "rows"}
        assert all(torch.equal(tensors[name], getattr(batch, name)) for name in tensors)
        assert tensors["images"].dtype == torch.uint8


def test_their_rows_of_the_manifest_lie_beside_them(stopped, dataset):
    folder, _ = stopped
    manifest = in_split(dataset.table, "train")
    for file in kept(folder):
        tensors = load_file(file)
        with file.with_suffix(".csv").open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["sha256"] for row in rows] == list(manifest["sha256"].iloc[tensors["rows"].numpy()])
        assert [dataset.info.classes.index(row["label"]) for row in rows] == tensors["labels"].tolist()


def test_the_last_checkpoint_is_finite_and_that_of_the_epoch_before(stopped):
    state = load_last(stopped[0] / LAST)
    assert state["progress"]["steps_done"] == 3
    assert state["progress"]["bad_updates"] == 0
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_a_stopped_run_goes_on_and_is_the_run_without_the_accident(stopped, settings, assert_equal_runs):
    folder, _ = stopped
    assert_equal_runs(resume(folder), train(settings(**ACCUMULATED)))


def test_checkpoint_and_kept_images_reproduce_the_loss_that_was_not_finite(settings):
    """The weights are ruined this time, not the loss: replayed without any help."""
    config = settings(lr=1e36, on_nonfinite="stop", policy="basic")
    with pytest.raises(HemafastError, match="update 2 "):
        train(config)
    (folder,) = config.output.iterdir()
    run = build_run(settle(read_config(folder), World(), load_last(folder / LAST)), World(), load_last(folder / LAST))
    run.learner.model.train()
    (file,) = kept(folder)
    batch = run.train_batches.again(0, 1)
    assert torch.equal(batch.images, load_file(file)["images"])
    for number in range(2):  # from the checkpoint to the update
        seed_batch(config.seed, 0, 1, number)
        run.learner.train_step(run.train_batches.again(0, number), config.lr, run.totals, step=number)
        assert run.learner.train_step.bad.read() == (number, number)
    assert not run.learner.model(load_file(file)["images"]).isfinite().all()


def test_skipped_updates_are_left_out_counted_and_kept(settings):
    config = settings(**ACCUMULATED, on_nonfinite="skip")
    with poisoned(1, 4):
        folder = train(config)
    rows = read_rows(folder)
    assert column(rows, "train", "bad_updates") == [1, 2]
    assert np.isfinite(column(rows, "train", "loss") + column(rows, "train", "grad_norm")).all()
    assert len(kept(folder)) == 4
    assert "in update 2 (epoch 1). It was skipped (1 so far)" in (folder / "train.log").read_text(encoding="utf-8")
    assert all(tensor.isfinite().all() for tensor in load_last(folder / LAST)["model"].values())


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"], ids=["with batch norm", "without"])
def test_a_skipped_update_leaves_the_run_as_if_it_had_never_been(settings, same, model):
    """Constant rate, no other updates: after the bad ones, weights, optimizer and statistics are those before."""
    config = settings(model=model, on_nonfinite="skip", ema=0.9, clip_grad=1.0)
    states = []
    for left_out in (False, True):
        with poisoned(4, 5), pytest.MonkeyPatch.context() as patch:
            poisoned_step = TrainStep.__call__

            def step_or_not(self, *arguments, call=poisoned_step, left_out=left_out, **named):
                if not left_out or named["step"] < 4:
                    call(self, *arguments, **named)

            patch.setattr(TrainStep, "__call__", step_or_not)
            states.append(load_last(train(config) / LAST))
    for name in ("model", "ema", "optimizer"):
        first, second = (without_counts(state[name]) for state in states)
        assert same(first, second), name


def without_counts(state):
    return {name: value for name, value in state.items() if not str(name).endswith("num_batches_tracked")}


@pytest.mark.parametrize("stop", [2, 3])
def test_counts_and_statistics_survive_a_resume(settings, signal_at, assert_equal_runs, stop):
    """The third update is bad: the stop comes right before it, or within it."""
    changes = {**ACCUMULATED, "on_nonfinite": "skip", "ema": 0.9}
    with poisoned(2, 4):
        straight = train(settings(**changes))
    config = settings(**changes)
    with poisoned(2, 4), signal_at(stop), pytest.raises(StoppedError):
        train(config)
    (folder,) = config.output.iterdir()
    assert load_last(folder / LAST)["progress"]["bad_updates"] == stop - 2
    with poisoned(2, 4):
        resume(folder)
    assert column(read_rows(folder), "train", "bad_updates") == [1, 2]
    assert_equal_runs(folder, straight)


def test_a_run_stops_where_its_budget_is_used_up_a_resumed_one_too(settings, signal_at):
    config = settings(on_nonfinite="skip", nonfinite_budget=1)
    with poisoned(0, 3), signal_at(2), pytest.raises(StoppedError):
        train(config)
    (folder,) = config.output.iterdir()
    with poisoned(0, 3) as seen, pytest.raises(HemafastError, match=r"2 updates were not finite.*--nonfinite-budget"):
        resume(folder)
    assert max(seen) == 3
    assert len(kept(folder)) == 2


def test_a_budget_that_is_not_used_up_lets_the_run_end(settings):
    with poisoned(0, 3):
        folder = train(settings(on_nonfinite="skip", nonfinite_budget=2))
    assert column(read_rows(folder), "train", "bad_updates") == [2]
