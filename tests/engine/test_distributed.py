"""Two processes train as one with batches twice as large; one of them writes, and any of them may die."""

import json
import math
import os
import platform
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from two_processes import Pair, pair_of_processes, torchrun, torchrun_with

from hemafast.config import TrainConfig, to_json
from hemafast.data.graph import GraphShape
from hemafast.data.loader import eval_loader
from hemafast.engine import distributed as world_of
from hemafast.engine import hooks, machine, plan, probe, trainer, trial
from hemafast.engine.build import build_run
from hemafast.engine.checkpoint import load_best, load_last
from hemafast.engine.distributed import World, joined, refuse_several, restarts
from hemafast.engine.journal import read_rows
from hemafast.engine.learner import synchronised
from hemafast.engine.loop import train_run
from hemafast.engine.lr_find import find_rate
from hemafast.engine.machine import Choice, Machine, Room
from hemafast.engine.plan import settle
from hemafast.engine.step import Totals, update_plan
from hemafast.engine.trainer import resume, train
from hemafast.engine.validate import validate
from hemafast.errors import HemafastError, StoppedError
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.model import build_model
from hemafast.run_folder import BEST, LAST, LOG, LOG_TABLE

pytestmark = pytest.mark.filterwarnings("ignore:.*GradScaler is enabled, but CUDA is not available")

WITHOUT_BATCH_NORM = {"model": "test_vit", "dropout": 0.0, "policy": "basic"}
IMAGES, VALIDATED = 47, 11  # of the small prepared data set


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with pair_of_processes() as two:
        yield two


# Work of the processes; each also runs here, in a world of one.


def updates_of_an_epoch(config: TrainConfig) -> tuple[list[torch.Tensor], torch.Tensor, list[int], tuple[float, int]]:
    """Gradients as the optimizer meets them, an entry an update; the parameters then; rows; mean loss and images."""
    gradients, rows = [], []
    with joined(config.device) as world:
        run = build_run(settle(config, world), world)
        parameters = [parameter for parameter in run.learner.model.parameters() if parameter.requires_grad]
        for group in run.learner.optimizer.param_groups:
            group["eps"] = 1.0  # Adam's steps then grow with the gradients, and do not only take their signs
        run.learner.optimizer.register_step_pre_hook(
            lambda *_: gradients.append(torch.cat([parameter.grad.flatten() for parameter in parameters]))
        )
        plan = update_plan(run.train_batches.sizes, config.accumulate, world.process.world_size)
        run.learner.model.train()
        update = 0
        for batch, (share, completes) in zip(run.train_batches.epoch(), plan, strict=True):
            rows += batch.rows.tolist()
            run.learner.train_step(batch, 1.0, run.totals, step=update, share=share, update=completes)
            update += completes
        run.totals.load(run.totals.summed(world))
        loss, confusion = run.totals.read()
        trained = torch.cat([parameter.detach().flatten() for parameter in parameters])
        return gradients, trained, rows, (loss, int(confusion.sum()))


def outcome_of(config: TrainConfig, images: int):
    """What the untrained network makes of the first validation images."""
    with joined(config.device) as world:
        run = build_run(settle(config, world), world)
        samples = run.plan.val.select(np.arange(images))
        shape = GraphShape("cpu", "packed", samples.packed_size, config.image_size, config.batch_size, threads=1)
        totals = Totals(len(run.dataset.info.classes), "cpu")
        batches = eval_loader(samples, shape=shape, process=world.process)
        return validate(run.learner.model, run.learner.eval_step, batches, samples, totals, world=world)


def trained_run(config: TrainConfig) -> Path | None:
    return train(config)


def resumed_run(folder: Path) -> Path | None:
    return resume(folder)


def answers_to_votes(votes: list[list[int]]) -> list[int]:
    with joined("cpu") as world:
        return [world.vote(numbers[world.process.rank]) for numbers in votes]


def things_said_together() -> tuple:
    with joined("cpu") as world:
        rank, total = world.process.rank, torch.tensor([1.0, 10.0 * world.process.rank])
        world.add_up(total)
        world.barrier()
        return world.first, world.alone, world.broadcast(f"from {rank}"), world.gather(rank), total.tolist()


def traced_updates(config: TrainConfig) -> tuple[int, int, torch.Tensor]:
    """Updates of an epoch as `torch.compile` traces them, run as they are: recompilations, steps compiled, weights."""
    compiled = torch.compile
    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch, joined(config.device) as world:
        patch.setattr(torch, "compile", lambda forward, **_: compiled(forward, dynamic=False, backend="eager"))
        run = build_run(settle(config, world), world)
        plan = update_plan(run.train_batches.sizes, config.accumulate, world.process.world_size)
        run.learner.model.train()
        for batch, (share, completes) in zip(run.train_batches.epoch(), plan, strict=True):
            run.learner.train_step(batch, 1e-3, run.totals, step=0, share=share, update=completes)
        weights = torch.cat([parameter.detach().flatten() for parameter in run.learner.model.parameters()])
        compiler = run.learner.compiler
        return compiler.recompiles, len(compiler.compiled), weights


def probe_with_a_signal(config: TrainConfig) -> str:
    """How a probe ends whose second process gets a signal in its second view."""
    found, views = probe.features_of, iter(range(9))

    def features_of(*given, **named):
        if next(views) == 1 and os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGTERM)
        return found(*given, **named)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError) as stopped:
        patch.setattr(probe, "features_of", features_of)
        train(config)
    return stopped.value.problem


def saves_of_a_run(config: TrainConfig, due: int) -> list[int]:
    """Updates behind which a run saves, where the clock of the first process says so behind update `due`."""

    saved = []

    after_update, save = hooks.Stops.after_update, hooks.Saver.save

    def after_clocked_update(self) -> None:
        if self._run.world.first and self._run.state.steps_done == due:
            self._saver.saved = -math.inf
        after_update(self)

    def noted_save(self, *, must: bool = False) -> None:
        saved.append(self._run.state.steps_done)
        save(self, must=must)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooks.Stops, "after_update", after_clocked_update)
        patch.setattr(hooks.Saver, "save", noted_save)
        trained_run(config)
    return saved


def plans_of(config: TrainConfig, rooms: list[Room], precisions: list[str], lacks: int | None = None) -> tuple:
    """Input, precision and compiling of the plan, where processes have other free memory and other precisions.

    Process `lacks` cannot compute in what the first has.
    """
    rank = int(os.environ["RANK"])

    def choose(device, amp):
        if rank == lacks and amp != "auto":
            raise HemafastError(f"--amp {amp}: no.", "Use --amp auto.")
        return Choice("precision", precisions[rank] if amp == "auto" else amp.replace("off", "fp32"), "a stand-in")

    with pytest.MonkeyPatch.context() as patch, joined("cpu") as world:
        patch.setattr(machine, "_choose_precision", choose)
        patch.setattr(trial, "decide_precision", lambda config, counts, processes: (config, []))
        patch.setattr(plan, "room_of", lambda machine: rooms[rank])
        try:
            settled = settle(config, world)
        except HemafastError as error:
            return (str(error),)
        return settled.graph.source, settled.machine.precision, settled.machine.compiled


def extended_run(folder: Path, late: list[float]) -> tuple[int, float]:
    """Updates and weights of a run on a budget whose second part began at another time for each process."""
    ended = []

    def noted_run(run, *arguments, **named):
        train_run(run, *arguments, **named)
        weights = sum(float(parameter.detach().double().sum()) for parameter in run.learner.model.parameters())
        ended.append((run.state.steps_done, weights))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_run", noted_run)
        resume(folder, {"time_budget": 4.0}, began=time.monotonic() - late[int(os.environ["RANK"])])
    return ended[0]


def curve_of(config: TrainConfig) -> tuple | None:
    curve = find_rate(config, first=1e-5, last=1e-3, steps=10)
    return None if curve is None else (curve.rates.tolist(), curve.losses.tolist())


# One process with batches twice as large.


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 2},
        {"accumulate": 4, "loss": "weighted", "label_smoothing": 0.1, "clip_grad": 0.5},
        {"model": "test_resnet", "freeze_norm": True, "loss": "weighted", "clip_grad": 0.5, "accumulate": 2},
    ],
    ids=["plain", "accumulated", "weighted and clipped", "frozen batch norm"],
)
def test_two_processes_update_as_one_with_batches_twice_as_large(pair, settings, changes):
    """47 images are five batches of 8 and one of 7, of which one process has 3 and the other 4."""
    asked = WITHOUT_BATCH_NORM | changes
    first, second = pair(updates_of_an_epoch, settings(**asked, batch_size=4))
    gradients, trained, rows, (loss, images) = updates_of_an_epoch(settings(**asked, batch_size=8))
    assert len(gradients) == -(-6 // asked.get("accumulate", 1))
    for one, other, alone in zip(first[0], second[0], gradients, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, alone, rtol=1e-5, atol=1e-5 * alone.abs().max().item())
    assert torch.equal(first[1], second[1])
    torch.testing.assert_close(first[1], trained, rtol=1e-5, atol=1e-6)
    assert sorted(first[2] + second[2]) == sorted(rows) == list(range(IMAGES))  # each image once
    assert first[3] == second[3] == (pytest.approx(loss, rel=1e-6), images)


@pytest.mark.slow
def test_processes_compile_their_step_once_and_learn_the_same(pair, settings):
    """Also where only every second batch sends gradients, and although gradients move to other buckets meanwhile."""
    asked = settings(model="test_resnet", dropout=0.0, policy="basic", batch_size=4, accumulate=2, compile="on")
    first, second = pair(traced_updates, asked)
    assert first[:2] == second[:2] == (0, 1)
    assert torch.equal(first[2], second[2])
    _, _, eager = pair(traced_updates, replace(asked, compile="off"))[0]
    torch.testing.assert_close(first[2], eager, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("images", "exactly"), [(8, True), (VALIDATED, False), (1, False)])
def test_two_processes_validate_as_one(pair, settings, images, exactly):
    asked = {**WITHOUT_BATCH_NORM, "batch_size": 4}
    first, second = pair(outcome_of, settings(**asked), images)
    alone = outcome_of(settings(**asked), images)
    for outcome in (first, second):
        # Where the batches are the same, so are the sums; elsewhere the mean of a batch is rounded to fp32 anew.
        assert outcome.loss == pytest.approx(alone.loss, rel=1e-9 if exactly else 1e-6)
        assert np.array_equal(outcome.pooled, alone.pooled)
        assert outcome.pooled.sum() == images
        assert outcome.domains.keys() == alone.domains.keys()
        assert all(np.array_equal(outcome.domains[name], alone.domains[name]) for name in alone.domains)
        np.testing.assert_allclose(outcome.probabilities, alone.probabilities, atol=1e-6)


@pytest.mark.slow
def test_a_whole_run_of_two_processes_is_that_of_one_with_batches_twice_as_large(pair, settings):
    asked = {**WITHOUT_BATCH_NORM, "epochs": 2, "lr": 1e-4, "loss": "weighted"}
    folder, nothing = pair(trained_run, settings(**asked, batch_size=4))
    assert nothing is None
    alone = trained_run(settings(**asked, batch_size=8))
    for one, other in zip(read_rows(folder), read_rows(alone), strict=True):
        assert one.keys() == other.keys()
        assert (one.pop("epoch"), one.pop("phase")) == (other.pop("epoch"), other.pop("phase"))
        for name in one.keys() - {"seconds", "images_per_second", "data_wait_share"}:
            assert one[name] == pytest.approx(other[name], rel=1e-3), name
    (two, card), (one, same_card) = load_best(folder / BEST), load_best(alone / BEST)
    assert card == same_card
    pixels = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(two.eval()(pixels).softmax(1), one.eval()(pixels).softmax(1), rtol=0, atol=1e-3)
    scores = [evaluate_run(path) for path in (folder, alone)]
    assert scores[0]["pooled"]["confusion"] == scores[1]["pooled"]["confusion"]


def test_a_probe_of_two_processes_is_that_of_one_with_batches_twice_as_large(pair, settings):
    asked = {"probe": 2, "policy": "basic", "sampler": "balanced", "lr": TrainConfig.lr}
    folder, nothing = pair(trained_run, settings(**asked, batch_size=4))
    assert nothing is None
    (two, card), (one, same_card) = (load_best(run / BEST) for run in (folder, trained_run(settings(**asked))))
    assert card == same_card
    alone = one.state_dict()
    for name, tensor in two.state_dict().items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-2, atol=1e-3)  # the fit stops within a tolerance


def test_a_signal_to_one_process_stops_a_probe_of_both_between_views(pair, settings):
    config = settings(probe=8, policy="basic", lr=TrainConfig.lr, model="test_vit")
    first, second = pair(probe_with_a_signal, config)
    assert first == second
    assert "Stopped by SIGTERM" in first
    (folder,) = config.output.iterdir()
    assert not (folder / BEST).exists()
    assert pair(resumed_run, folder) == [folder, None]
    assert (folder / BEST).exists()


@pytest.mark.slow
def test_what_two_processes_validate_is_the_model_that_is_kept(pair, settings):
    """Statistics of batch norm differ from process to process, and only those of the first are kept."""
    config = settings(model="test_resnet", batch_size=4, lr=1e-3, ema=0.5, epochs=2)
    folder, _ = pair(trained_run, config)
    validated = {row["epoch"]: row for row in read_rows(folder) if row["phase"] == "val"}
    metrics = evaluate_run(folder)
    kept = validated[metrics["model"]["epoch"]]
    assert metrics["pooled"]["log_loss"] == pytest.approx(kept["loss"], rel=1e-5)
    assert metrics["pooled"]["macro_f1"] == pytest.approx(kept["f1_macro"], abs=1e-9)


# What processes say to each other.


@pytest.mark.slow
def test_processes_tell_each_other_and_add_up(pair):
    first, second = pair(things_said_together)
    assert first == (True, False, "from 0", [0, 1], [2.0, 10.0])
    assert second == (False, False, "from 0", [0, 1], [2.0, 10.0])


@pytest.mark.slow
def test_a_vote_is_the_highest_number_one_call_later_in_every_process(pair):
    answers = pair(answers_to_votes, [[0, 0], [0, 15], [1, 0], [0, 0], [2, 1], [0, 0], [0, 0]])
    assert answers == [[0, 0, 15, 1, 0, 2, 0]] * 2


MANY, FEW = Room(2**40), Room(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rooms", "precisions", "expected"),
    [
        ([MANY, MANY], ["fp32", "bf16"], ("packed", "fp32", False)),
        ([MANY, FEW], ["bf16", "fp32"], ("files", "bf16", False)),
    ],
)
def test_all_processes_follow_the_plan_of_the_first(pair, settings, rooms, precisions, expected):
    plans = pair(plans_of, settings(amp="auto", input="auto", compile="off"), rooms, precisions)
    assert plans == [expected, expected]


@pytest.mark.slow
def test_a_process_that_cannot_follow_ends_all_and_is_named(pair, settings):
    asked = settings(amp="auto", input="auto", compile="off")
    told = pair(plans_of, asked, [MANY, MANY], ["bf16", "fp32"], 1)
    assert told == [(f"Process 1 on {platform.node()}: --amp bf16: no. Use --amp auto.",)] * 2


@pytest.mark.slow
def test_processes_on_a_budget_stop_after_the_same_update_with_the_same_weights(pair, settings):
    """One began later than the other, so that it has used less time when their first update sets its rate."""
    config = settings(**WITHOUT_BATCH_NORM, batch_size=4, time_budget=1.0, schedule="onecycle", track=())
    folder, _ = pair(trained_run, config)
    first, second = pair(extended_run, folder, [0.0, 1.5])
    assert first == second
    assert first[0] > 1


@pytest.mark.slow
def test_two_processes_find_the_curve_of_one_with_batches_twice_as_large(pair, settings):
    asked = {**WITHOUT_BATCH_NORM, "policy": "none"}
    (rates, losses), nothing = pair(curve_of, settings(**asked, batch_size=4))
    assert nothing is None
    alone = curve_of(settings(**asked, batch_size=8))
    assert rates == alone[0]
    assert losses == pytest.approx(alone[1], rel=1e-4)


# What is asked of the library of the GPUs.


@pytest.fixture
def eight_gpus(monkeypatch):
    """A host with eight GPUs that are not there; returns what is asked of torch.distributed."""
    asked, store = {}, torch.distributed.HashStore()
    store.set("life 0/device", "a GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: asked.update(device=number))
    monkeypatch.setattr(world_of, "_meeting_place", lambda: store)
    groups = {
        "init_process_group": lambda backend, **named: asked.update(named, by=backend),
        "new_group": lambda backend, timeout: asked.update(control=(backend, timeout)),
        "destroy_process_group": lambda: None,
    }
    for name, stand_in in groups.items():
        monkeypatch.setattr(torch.distributed, name, stand_in)
    return asked


FOURTH = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}


def test_a_group_of_gpus_is_bound_to_its_devices_and_waits_for_a_first_compile(eight_gpus):
    with joined("auto", FOURTH) as world:
        assert world.process.rank == 3
    assert (eight_gpus["by"], eight_gpus["device"]) == ("nccl", 3)
    assert eight_gpus["device_id"] == torch.device("cuda:3")
    assert eight_gpus["timeout"] == timedelta(minutes=30)
    assert eight_gpus["control"] == ("gloo", timedelta(minutes=30))


@pytest.mark.usefixtures("eight_gpus")
def test_a_process_without_a_gpu_among_others_with_one_is_refused():
    named = r"Process 3 on .* trains on the CPU, and process 0 on a GPU"
    with pytest.raises(HemafastError, match=named), joined("cpu", FOURTH):
        pass


@pytest.mark.parametrize("begin", [lambda environment: joined("cpu", environment).__enter__(), refuse_several])
def test_copies_that_slurm_started_without_torchrun_are_refused(begin):
    with pytest.raises(HemafastError, match="Slurm started 4 copies") as caught:
        begin({"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "2"})
    assert "srun --ntasks-per-node=1 torchrun" in caught.value.remedy


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script is one process
        {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": "4", "WORLD_SIZE": "1"},  # a separate run per task
    ],
)
def test_one_process_of_a_slurm_job_trains(environment):
    refuse_several(environment)
    with joined("cpu", environment) as world:
        assert world.alone


def test_gradients_are_shared_without_sending_buffers(monkeypatch):
    asked = {}
    monkeypatch.setattr(world_of, "DistributedDataParallel", lambda model, **named: asked.update(named))
    monkeypatch.setattr(World, "alone", False)
    World.share(World.__new__(World), nn.Linear(1, 1), "cpu")
    assert asked == {"device_ids": None, "gradient_as_bucket_view": True, "forward_sync_buffers": False}


def test_a_process_alone_decides_at_once():
    world = World()
    assert (world.alone, world.first) == (True, True)
    assert [world.vote(number) for number in (0, 15, 1)] == [0, 15, 1]
    assert (world.broadcast("it"), world.gather("it"), world.share(nn.Linear(1, 1), "cpu")) == ("it", ["it"], None)


@pytest.mark.slow
def test_a_checkpoint_that_is_due_is_saved_once_and_behind_the_same_update(pair, settings):
    config = settings(**WITHOUT_BATCH_NORM, batch_size=4, save_every=10.0)
    saves = pair(saves_of_a_run, config, 2)
    assert saves == [[0, 3, 6]] * 2  # at the start, one update after it was due, and with the epoch


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "first", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "two"},
        {"WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
        {"RANK": "0", "WORLD_SIZE": "0"},
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "none"},
    ],
    ids=["rank", "size", "no rank", "no address", "rank beyond size", "no process", "port"],
)
def test_variables_that_are_not_torchruns_are_refused(variables, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(HemafastError, match="torchrun"), joined("cpu"):
        pass
    assert not torch.distributed.is_initialized()


def test_variables_of_one_process_are_no_group():
    with joined("cpu", {"RANK": "0", "WORLD_SIZE": "1"}) as world:
        assert world.alone


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)
    four = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    with pytest.raises(HemafastError, match=r"4 processes share 1 GPU.*--nproc-per-node"), joined("auto", four):
        pass


@pytest.mark.parametrize(("count", "expected"), [(None, False), ("0", False), ("2", True)])
def test_a_restart_is_known_by_torchruns_count(count, expected):
    assert (restarts({} if count is None else {"TORCHELASTIC_RESTART_COUNT": count}) > 0) is expected


# Batch norm over processes.


def test_batch_norm_over_processes_is_refused_on_a_cpu(settings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = settings(sync_norm=True, device="auto")
    with pytest.raises(HemafastError, match="--sync-norm needs GPUs"):
        train(config)
    assert not [path for path in config.output.iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("freeze", [{}, {"norm": True}, {"stages": 1}])
def test_batch_norm_over_processes_keeps_parameters_and_what_is_frozen(name, freeze):
    plain, model = (build_model(name, 5, 32) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    converted = synchronised(model, Machine("cuda", "fp32", False, 1, (), {}))
    for network in (plain, converted):
        network.freeze(**freeze)
    norms = [[part for part in network.modules() if isinstance(part, nn.BatchNorm2d)] for network in (plain, converted)]
    over_all = [part for part in converted.modules() if isinstance(part, nn.SyncBatchNorm)]
    assert (len(norms[0]), len(norms[1])) == (len(over_all), 0)
    assert [part.training for part in norms[0]] == [part.training for part in over_all]
    named = [dict(network.named_parameters()) for network in (plain, converted)]
    assert named[0].keys() == named[1].keys()
    assert all(named[0][key].requires_grad == named[1][key].requires_grad for key in named[0])
    assert all(torch.equal(plain.state_dict()[key], tensor) for key, tensor in converted.state_dict().items())


# The command under torchrun.


@pytest.fixture(scope="module")
def asked(settings):
    """Settings of the runs that follow: 3 epochs of 6 updates, compiling and input left to choose."""
    return lambda **changes: settings(**WITHOUT_BATCH_NORM, batch_size=4, epochs=3, keep=3, compile="auto", **changes)


@pytest.fixture(scope="module")
def straight(pair, asked) -> Path:
    """Such a run of two processes that nothing disturbed."""
    return pair(trained_run, asked())[0]


def written(config: TrainConfig) -> Path:
    file = config.output / "asked.json"
    file.write_text(to_json(config), encoding="utf-8")
    return file


def runs_in(output: Path) -> list[Path]:
    return [path.parent for path in sorted(output.glob(f"*/{LAST}"))]


@pytest.mark.slow
def test_one_process_writes_and_speaks(asked, straight, assert_equal_runs):
    config = asked()
    done = torchrun("-m", "hemafast", "train", "--config", written(config), "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)  # one result and nothing else
    (folder,) = runs_in(config.output)
    assert Path(said["run"]) == folder
    assert [path for path in config.output.iterdir() if path.is_dir() and not path.name.startswith(".")] == [folder]
    log = (folder / LOG).read_text(encoding="utf-8").splitlines()
    assert sum("run folder" in line for line in log) == 1
    assert [sum(f"epoch {epoch}/3" in line for line in log) for epoch in (1, 2, 3)] == [1, 1, 1]
    assert [(row["epoch"], row["phase"]) for row in read_rows(folder)] == [
        (epoch, phase) for epoch in (1, 2, 3) for phase in ("train", "val")
    ]
    assert len((folder / LOG_TABLE).read_text(encoding="utf-8").splitlines()) == 7
    assert_equal_runs(folder, straight)


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint_after_a_process_was_killed(asked, straight, assert_equal_runs, tmp_path):
    config = asked(save_every=1e-5)
    done = torchrun_with("kill", 10, "train", "--config", written(config), cwd=tmp_path, restarts=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report ") == 1  # one table of results
    (folder,) = runs_in(config.output)
    log = (folder / LOG).read_text(encoding="utf-8")
    assert log.count("run folder") == done.stderr.count("run folder") == 2  # two lives, one voice
    assert log.count("epoch 1/3") == 1  # the first epoch was not trained again
    assert_equal_runs(folder, straight)


@pytest.mark.slow
def test_sigterm_to_torchrun_stops_all_processes_behind_the_same_update(
    pair, asked, straight, assert_equal_runs, tmp_path
):
    config = asked(save_every=None)
    done = torchrun_with("stop", 8, "train", "--config", written(config), cwd=tmp_path)
    assert done.returncode == 1, done.stderr  # torchrun's own code; its processes ended with 143
    (folder,) = runs_in(config.output)
    state = load_last(folder / LAST)
    assert state["progress"]["epochs_done"] in (1, 2)  # a signal takes some updates to arrive
    assert 8 <= state["progress"]["steps_done"] < 18
    assert done.stdout == ""
    log = (folder / LOG).read_text(encoding="utf-8")
    assert log.count("Stopped by SIGTERM") == 1
    assert pair(resumed_run, folder) == [folder, None]
    assert_equal_runs(folder, straight)


@pytest.mark.slow
def test_a_run_that_is_finished_is_left_alone_by_all_processes(pair, straight):
    before = (straight / LOG_TABLE).read_bytes(), (straight / LAST).stat().st_mtime_ns
    assert pair(resumed_run, straight) == [straight, None]
    assert ((straight / LOG_TABLE).read_bytes(), (straight / LAST).stat().st_mtime_ns) == before
