"""Train a run: open it, decide its plan, build its objects, and loop to its end."""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hemafast.command import train_command
from hemafast.config import TrainConfig, everywhere, to_json, to_plain
from hemafast.engine.build import build_run
from hemafast.engine.distributed import World, joined, restarts
from hemafast.engine.duration import refuse_used_up
from hemafast.engine.journal import Journal, logger
from hemafast.engine.loop import train_run
from hemafast.engine.opening import Opened, changed_settings, free_settings, moved, newest_run, open_stopped
from hemafast.engine.plan import announce, settle
from hemafast.engine.probe import probe_run
from hemafast.engine.run import Run, is_finished
from hemafast.engine.starting import Starting
from hemafast.engine.stop import StopFlag
from hemafast.engine.trackers import open_trackers, refuse_missing
from hemafast.engine.trial import keep_compile_seconds
from hemafast.errors import HemafastError
from hemafast.files import write_text
from hemafast.progress import SILENT, Progress
from hemafast.run_folder import COMMAND, CONFIG, MACHINE, locked, make_run_folder

_FLAGS = (
    ("torch.backends.cudnn", "benchmark"),
    ("torch._dynamo.config", "fail_on_recompile_limit_hit"),
    ("torch._functorch.config", "force_non_lazy_backward_lowering"),
)
"""Flags of torch that learner.py and compiling.py set."""


def train(
    config: TrainConfig, *, go_on: bool = False, began: float | None = None, progress: Progress = SILENT
) -> Path | None:
    """Train a new run in a folder of its own under `config.output`. Every process of torchrun calls this.

    With `go_on`, or after torchrun has restarted its processes, the newest run with exactly these settings resumes, if
    there is one. A time budget counts from `began`, a moment of time.monotonic; None is now. Returns the folder in the
    process that writes it, None in the others. Raises HemafastError before anything is written if settings, machine or
    data do not fit, and StoppedError after a signal.
    """
    config = everywhere(config)
    with _starting(began) as starting, joined(config.device) as world, ExitStack() as held:
        opened = Opened(config)
        if go_on or restarts():
            folder = world.broadcast(newest_run(config) if world.first else None)
            if folder is not None:
                held.enter_context(_alone_in(folder, world))
                opened = open_stopped(folder, free_settings(config), allow_changes=False)
        return _train(opened, world, starting, progress)


def resume(
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    allow_changes: bool = False,
    began: float | None = None,
    progress: Progress = SILENT,
) -> Path | None:
    """Continue the run in `folder` from its newest undamaged checkpoint. A finished run stays unchanged.

    `changes` are settings by name. Those that affect what is learned need `allow_changes`, and the epoch then starts
    again. A time budget continues from `began`, and the time used before counts. Returns as `train` does. Raises
    HemafastError if `folder` is not a run, its data has changed, or a change is not allowed.
    """
    settings = changed_settings(folder, changes or {}, allow_changes=allow_changes)
    # Nobody else may go on with the run between the moment that its checkpoint is read and its end.
    with _starting(began) as starting, joined(settings.device) as world, _alone_in(folder, world):
        opened = open_stopped(folder, changes or {}, allow_changes=allow_changes)
        return _train(opened, world, starting, progress)


def _starting(began: float | None) -> Starting:
    starting = Starting(time.monotonic() if began is None else began)
    starting.done("imports")
    return starting


@contextmanager
def _alone_in(folder: Path, world: World) -> Iterator[None]:
    """Only these processes train in `folder`; collective. Raises HemafastError in all if others already do."""
    with ExitStack() as held:
        world.together(lambda: held.enter_context(locked(folder)) if world.first else None)
        yield


def _train(opened: Opened, world: World, starting: Starting, progress: Progress) -> Path | None:
    settings, saved = opened.settings, opened.saved
    if saved is not None and is_finished(saved["progress"], settings):
        logger.info("%s is finished; to extend it, raise --epochs or --time-budget", opened.folder)
        return opened.folder if world.first else None
    refuse_missing(settings.track)
    with _globals_kept():
        plan = settle(settings, world, saved)
        starting.done("data and choices")
        run = build_run(plan, world, saved, restart_epoch=opened.restart_epoch)
        starting.done("network")
        run.state.elapsed += world.highest(time.monotonic() - starting.began)[0]  # one time for all, as rates follow it
        if opened.folder is None:
            refuse_used_up(run.duration, run.state)
        new = opened.folder or (make_run_folder(plan.settings) if world.first else Path())
        folder = world.broadcast(new)
        with nullcontext() if opened.folder else _alone_in(folder, world):  # an opened one is locked already
            _loop(run, folder, opened.changed, starting, progress)
    return folder if world.first else None


def _loop(run: Run, folder: Path, changed: Sequence[str], starting: Starting, progress: Progress) -> None:
    """Write down settings and plan, then train to the end."""
    if run.world.first:
        changed = [*changed, *moved(folder, run.plan.machine)]
        write_text(folder / CONFIG, to_json(run.config))
        write_text(folder / COMMAND, train_command(run.config) + "\n")
        write_text(folder / MACHINE, json.dumps(run.plan.to_json(), indent=2) + "\n")
    journal = _journal(run, folder, progress) if run.world.first else Journal(None)
    with StopFlag() as flag, journal:
        logger.info("run folder %s", folder)
        announce(run.plan, run.learner.started_from)
        for line in changed:
            logger.warning("changed on resume: %s", line)
        starting.done("settings")
        follow = probe_run if run.config.probe else train_run
        follow(run, folder, journal, flag, starting)
        if run.world.first:
            keep_compile_seconds(run.config, run.plan.machine, run.learner.compiler.compiled)


def _journal(run: Run, folder: Path, progress: Progress) -> Journal:
    first_epoch = run.state.epochs_done + 1
    trackers = open_trackers(run.config.track, folder, to_plain(run.config), first_epoch=first_epoch)
    try:
        budget = run.config.time_budget
        return Journal(
            folder,
            progress,
            epochs=run.duration.epochs,
            first_epoch=first_epoch,
            seconds=None if budget is None else budget - run.state.elapsed,
            trackers=trackers,
        )
    except HemafastError:
        for tracker in trackers:
            tracker.close()
        raise


@contextmanager
def _globals_kept() -> Iterator[None]:
    """Restore what a run sets for its process: random generators, flags of the compiler, environment, and hook."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    environment, threads, hook = dict(os.environ), torch.get_num_threads(), threading.excepthook
    flags = {flag: _flag(*flag) for flag in _FLAGS}
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        torch.set_num_threads(threads)
        threading.excepthook = hook
        for (module, name), value in flags.items():
            if module in sys.modules:
                setattr(sys.modules[module], name, value)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]


def _flag(module: str, name: str) -> bool:
    """The value of a flag; off, its default, if the compiler is not loaded yet."""
    return bool(getattr(sys.modules.get(module), name, False))
