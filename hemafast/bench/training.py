"""Stations of the training step: its parts, the whole step, and the run around it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import count, cycle, islice
from pathlib import Path

from hemafast.bench.settings import Bench
from hemafast.bench.worker import Done, Moment, Span, Station
from hemafast.data.batch import Batch
from hemafast.engine.checkpoint import save_last
from hemafast.engine.distributed import World
from hemafast.engine.learner import Learner, build_learner
from hemafast.engine.machine import Machine
from hemafast.engine.step import Totals, loss_forward

_BATCHES = 4  # on the device
_RATE = 1e-4


def passes(bench: Bench, *, backward: bool) -> Station:
    """Forward passes with the loss, or the backward passes after them; only the time of the one asked for counts."""
    learner, machine = build_measured(bench)
    compiling = Compiling(learner)
    run = learner.compiler.compile(loss_forward(learner.model, learner.loss, machine), "training")
    for batch in cycle(ready_batches(bench)):
        begin, cpu = Moment(), time.process_time()
        loss, logits = run(batch.images, batch.labels)
        if backward:
            begin, cpu = Moment(), time.process_time()
            loss.backward()  # type: ignore[no-untyped-call]
        part, cpu = Span(begin, Moment()), time.process_time() - cpu
        done = Done(len(batch.labels), part=part, cpu_seconds=cpu, compiled=compiling.seconds())
        del loss, logits  # and the graph, which would otherwise stay in memory while other stations run
        yield done
        learner.optimizer.zero_grad(set_to_none=True)


def optimizer(bench: Bench) -> Station:
    """The update of all weights from existing gradients."""
    learner, machine = build_measured(bench)
    batch = ready_batches(bench)[0]
    loss, _ = loss_forward(learner.model, learner.loss, machine)(batch.images[:2], batch.labels[:2])
    loss.backward()  # type: ignore[no-untyped-call]
    while True:
        learner.optimizer.step()
        yield Done(bench.batch_size)


def step(bench: Bench) -> Station:
    """Our training step on batches already on the device."""
    return _steps(bench, build_measured(bench)[0], cycle(ready_batches(bench)))


def validation(bench: Bench) -> Station:
    """Our validation step on batches already on the device."""
    learner, machine = build_measured(bench)
    averaged = learner.ema.module if learner.ema is not None else learner.model
    averaged.eval()
    totals, compiling = Totals(len(bench.dataset.classes), machine.device), Compiling(learner)
    for batch in cycle(ready_batches(bench)):
        learner.eval_step(batch, totals)
        yield Done(len(batch.labels), compiled=compiling.seconds())


def checkpoint(bench: Bench) -> Station:
    """Write the state of network and optimizer to the temporary folder and flush it to the disk."""
    learner, _ = build_measured(bench)
    steps = _steps(bench, learner, iter(ready_batches(bench)[:1]))
    next(steps)  # the optimizer has no state before its first update
    with tempfile.TemporaryDirectory() as folder:
        while True:
            state = {"model": learner.model.state_dict(), "optimizer": learner.optimizer.state_dict()}
            save_last(Path(folder, "last_model.ckpt"), state)
            yield Done(1)


def end_to_end(bench: Bench) -> Station:
    """Our loader and training step together, as `hemafast train` runs them."""
    loader = bench.loader(bench.batch_size)
    return _steps(bench, build_measured(bench)[0], (batch for epoch in count() for batch in loader.epoch(epoch)))


@cache
def ready_batches(bench: Bench) -> Sequence[Batch]:
    """A few training batches on the device, shared by all stations of a process."""
    return tuple(islice(bench.loader(bench.batch_size).epoch(0), _BATCHES))


def build_measured(bench: Bench, world: World | None = None) -> tuple[Learner, Machine]:
    """What training builds from these settings, with random weights: their values do not change the time."""
    machine = bench.machine(tuned=True)
    learner = build_learner(
        bench.settings,
        machine,
        bench.dataset.counts("train"),
        batch_size=bench.batch_size,
        world=world,
        started_from="random weights, for a measurement",
        fuse=bench.fused,
    )
    return learner, machine


class Compiling:
    """The seconds that the steps of a learner compile."""

    def __init__(self, learner: Learner) -> None:
        self._compiler, self._known = learner.compiler, 0.0

    def seconds(self) -> float:
        """Seconds of compiling since the last call."""
        known, self._known = self._known, sum(one.seconds for one in self._compiler.compiled)
        return self._known - known


def _steps(bench: Bench, learner: Learner, batches: Iterator[Batch]) -> Station:
    totals = Totals(len(bench.dataset.classes), learner.model.scale.device.type)
    compiling = Compiling(learner)
    for number in count():
        asked = Moment()
        batch = next(batches)
        waited = Span(asked, Moment())
        learner.train_step(batch, _RATE, totals, step=number)
        yield Done(len(batch.labels), waited, compiled=compiling.seconds())
