"""Stations of the step: its parts, the whole of it, and the run around it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import count, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from hemafast.bench.settings import Bench, wait_for
from hemafast.bench.worker import Done, Station
from hemafast.engine.machine import Machine

if TYPE_CHECKING:
    from hemafast.data.loader import Batch
    from hemafast.engine.build import Learner
    from hemafast.engine.distributed import World

_BATCHES = 4  # that lie ready
_RATE = 1e-4


_NO_WEIGHTS = "random weights, for a measurement"


def forward(bench: Bench) -> Station:
    """The network and its loss on batches that lie ready, with all that backward will need."""
    return _passes(bench, backward=False)


def backward(bench: Bench) -> Station:
    """The gradients of all weights; the forward pass before each is not counted."""
    return _passes(bench, backward=True)


def optimizer(bench: Bench) -> Station:
    """The update of all weights, once their gradients are there."""
    from hemafast.engine.step import loss_forward

    learner, machine = build_measured(bench)
    batch = ready_batches(bench)[0]
    loss, _ = loss_forward(learner.model, learner.loss, machine)(batch.images[:2], batch.labels[:2])
    loss.backward()  # type: ignore[no-untyped-call]
    while True:
        learner.optimizer.step()
        wait_for(machine.device)
        yield Done(bench.batch_size)


def step(bench: Bench) -> Station:
    """Our training step alone, on batches that lie ready on the device."""
    return _steps(bench, build_measured(bench)[0], cycle(ready_batches(bench)))


def validation(bench: Bench) -> Station:
    """Our validation step alone, on batches that lie ready."""
    from hemafast.engine.step import Totals

    learner, machine = build_measured(bench)
    averaged = learner.ema.module if learner.ema is not None else learner.model
    averaged.eval()
    totals = Totals(bench.classes, machine.device)
    for batch in cycle(ready_batches(bench)):
        learner.eval_step(batch, totals)
        wait_for(machine.device)
        yield Done(len(batch.labels))


def checkpoint(bench: Bench) -> Station:
    """The whole state of network and optimizer to the temporary folder, down to the disk; each counts as one."""
    from hemafast.engine.checkpoint import save_last

    learner, _ = build_measured(bench)
    steps = _steps(bench, learner, iter(ready_batches(bench)[:1]))
    next(steps)  # the optimizer has no state before its first update
    with tempfile.TemporaryDirectory() as folder:
        while True:
            state = {"model": learner.model.state_dict(), "optimizer": learner.optimizer.state_dict()}
            save_last(Path(folder, "last_model.ckpt"), state)
            yield Done(1)


def end_to_end(bench: Bench) -> Station:
    """Our loader and our training step together, as `hemafast train` runs them."""
    loader = bench.loader("packed", bench.batch_size)
    return _steps(bench, build_measured(bench)[0], (batch for epoch in count() for batch in loader.epoch(epoch)))


@cache
def ready_batches(bench: Bench) -> Sequence[Batch]:
    """A few batches of training images on the device; the same ones for all stations of a process."""
    return tuple(islice(bench.loader("packed", bench.batch_size).epoch(0), _BATCHES))


def build_measured(bench: Bench, world: World | None = None) -> tuple[Learner, Machine]:
    """What training builds from these settings; weights are random, their values change nothing about the time."""
    from hemafast.engine.build import build_learner
    from hemafast.preparation.split import TRAIN

    machine = bench.machine(tuned=True)
    learner = build_learner(
        bench.settings,
        machine,
        bench.dataset.counts(TRAIN),
        batch_size=bench.batch_size,
        world=world,
        started_from=_NO_WEIGHTS,
        fuse=bench.fused,
    )
    return learner, machine


def _steps(bench: Bench, learner: Learner, batches: Iterator[Batch]) -> Station:
    from hemafast.engine.step import Totals

    device = learner.model.scale.device.type
    step, totals = learner.train_step, Totals(bench.classes, device)
    for number in count():
        asked = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - asked
        step(batch, _RATE, totals, step=number)
        wait_for(device)
        yield Done(len(batch.labels), waited)


def _passes(bench: Bench, *, backward: bool) -> Station:
    """Forward passes, or the backward passes behind them: the time of the one or the other counts."""
    from hemafast.engine.step import loss_forward

    learner, machine = build_measured(bench)
    run = learner.compiler.compile(loss_forward(learner.model, learner.loss, machine), "training")
    for batch in cycle(ready_batches(bench)):
        wall, cpu = time.perf_counter(), time.process_time()
        loss, logits = run(batch.images, batch.labels)
        wait_for(machine.device)
        if backward:
            wall, cpu = time.perf_counter(), time.process_time()
            loss.backward()  # type: ignore[no-untyped-call]
            wait_for(machine.device)
        done = Done(len(batch.labels), seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)
        del loss, logits  # and with them the graph, or every station would hold its own while the others run
        yield done
        learner.optimizer.zero_grad(set_to_none=True)
