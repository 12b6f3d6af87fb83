"""Stations of the step: its parts, the whole of it, and the run around it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from hemafast.bench.settings import Bench, wait_for
from hemafast.bench.worker import Done, Station
from hemafast.engine.compiling import Compiler
from hemafast.engine.machine import Machine

if TYPE_CHECKING:
    import torch

    from hemafast.data.loader import Batch
    from hemafast.engine.step import TrainStep
    from hemafast.model import Classifier

_BATCHES = 4  # that lie ready
_RATE = 1e-4


@dataclass(frozen=True, slots=True)
class _Trained:
    """A network and what trains it."""

    model: Classifier
    optimizer: torch.optim.Optimizer
    machine: Machine
    compiler: Compiler


def forward(bench: Bench) -> Station:
    """The network and its loss on batches that lie ready, with all that backward will need."""
    return _passes(bench, backward=False)


def backward(bench: Bench) -> Station:
    """The gradients of all weights; the forward pass before each is not counted."""
    return _passes(bench, backward=True)


def optimizer(bench: Bench) -> Station:
    """The update of all weights, once their gradients are there."""
    from hemafast.engine.step import loss_forward
    from hemafast.objective import CrossEntropy

    made = _made(bench)
    batch = ready_batches(bench)[0]
    loss, _ = loss_forward(made.model, CrossEntropy(), made.machine)(batch.images[:2], batch.labels[:2])
    loss.backward()  # type: ignore[no-untyped-call]
    while True:
        made.optimizer.step()
        wait_for(made.machine.device)
        yield Done(bench.batch_size)


def step(bench: Bench) -> Station:
    """Our training step alone, on batches that lie ready on the device."""
    made = _made(bench)
    return _steps(bench, made, cycle(ready_batches(bench)))


def validation(bench: Bench) -> Station:
    """Our validation step alone, on batches that lie ready."""
    from hemafast.engine.step import EvalStep, Totals
    from hemafast.objective import CrossEntropy

    made = _made(bench)
    evaluate = EvalStep(made.model.eval(), CrossEntropy(), made.machine, made.compiler)
    totals = Totals(bench.classes, made.machine.device)
    for batch in cycle(ready_batches(bench)):
        evaluate(batch, totals)
        wait_for(made.machine.device)
        yield Done(len(batch.labels))


def checkpoint(bench: Bench) -> Station:
    """The whole state of network and optimizer to the temporary folder, down to the disk; each counts as one."""
    from hemafast.engine.checkpoint import save_last

    made = _made(bench)
    steps = _steps(bench, made, iter(ready_batches(bench)[:1]))
    next(steps)  # the optimizer has no state before its first update
    with tempfile.TemporaryDirectory() as folder:
        while True:
            state = {"model": made.model.state_dict(), "optimizer": made.optimizer.state_dict()}
            save_last(Path(folder, "last_model.ckpt"), state)
            yield Done(1)


def end_to_end(bench: Bench) -> Station:
    """Our loader and our training step together, as `hemafast train` runs them."""
    loader = bench.loader("packed", bench.batch_size)
    return _steps(bench, _made(bench), (batch for epoch in count() for batch in loader.epoch(epoch)))


@cache
def ready_batches(bench: Bench) -> Sequence[Batch]:
    """A few batches of training images on the device; the same ones for all stations of a process."""
    return tuple(islice(bench.loader("packed", bench.batch_size).epoch(0), _BATCHES))


def _made(bench: Bench) -> _Trained:
    from hemafast.engine.depthwise import use_own_gradients
    from hemafast.engine.optimizer import build_optimizer
    from hemafast.fuse_norm import fuse_batch_norms
    from hemafast.model import build_model

    machine = bench.machine(tuned=True)
    model = build_model(bench.model, bench.classes, bench.image_size).to(machine.device)
    model.freeze(stages=bench.freeze_stages)
    use_own_gradients(model, machine)
    if bench.folded and not machine.compiled:
        fuse_batch_norms(model)
    optimizer = build_optimizer(model, weight_decay=0.01, device=machine.device)
    return _Trained(model, optimizer, machine, Compiler(enabled=machine.compiled, batch_size=bench.batch_size))


def _train_step(bench: Bench, made: _Trained) -> TrainStep:
    from hemafast.engine.step import TrainStep
    from hemafast.objective import CrossEntropy

    return TrainStep(made.model, CrossEntropy(), made.optimizer, made.machine, made.compiler)


def _steps(bench: Bench, made: _Trained, batches: Iterator[Batch]) -> Station:
    from hemafast.engine.step import Totals

    step, totals = _train_step(bench, made), Totals(bench.classes, made.machine.device)
    for number in count():
        asked = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - asked
        step(batch, _RATE, totals, step=number)
        wait_for(made.machine.device)
        yield Done(len(batch.labels), waited)


def _passes(bench: Bench, *, backward: bool) -> Station:
    """Forward passes, or the backward passes behind them: the time of the one or the other counts."""
    from hemafast.engine.step import loss_forward
    from hemafast.objective import CrossEntropy

    made = _made(bench)
    run = made.compiler.compile(loss_forward(made.model, CrossEntropy(), made.machine), "training")
    for batch in cycle(ready_batches(bench)):
        wall, cpu = time.perf_counter(), time.process_time()
        loss, logits = run(batch.images, batch.labels)
        wait_for(made.machine.device)
        if backward:
            wall, cpu = time.perf_counter(), time.process_time()
            loss.backward()  # type: ignore[no-untyped-call]
            wait_for(made.machine.device)
        done = Done(len(batch.labels), seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)
        del loss, logits  # and with them the graph, or every station would hold its own while the others run
        yield done
        made.optimizer.zero_grad(set_to_none=True)
