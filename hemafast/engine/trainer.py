"""Start a run, go on with one, and the folder that it leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from hemafast.config import TrainConfig, checked, to_json, to_plain
from hemafast.engine.checkpoint import DRAWN_WARNING, load_last
from hemafast.engine.distributed import World, joined, restarted
from hemafast.engine.journal import Journal, SilentJournal, logger
from hemafast.engine.loop import Loop
from hemafast.engine.run import (
    CONFIG,
    MACHINE,
    Run,
    finished,
    read_config,
    set_up,
)
from hemafast.engine.stop import StopFlag
from hemafast.engine.trackers import open_trackers, refuse_missing
from hemafast.engine.trial import DECIDED, decide
from hemafast.errors import HemafastError
from hemafast.files import write_whole
from hemafast.run_folder import LAST

FREE_CHANGES = frozenset(
    {
        "preset",
        "output",
        "epochs",
        "time_budget",
        "threads",
        "keep",
        "save_every",
        "on_nonfinite",
        "nonfinite_budget",
        "track",
    }
)
"""Settings that a resumed run may change at will."""
FIXED = frozenset({"data", "fold", "domains", "model", "weights", "pretrained"})
"""Settings that no resumed run may change."""


def train(config: TrainConfig, console: Console, *, go_on: bool = False, began: float | None = None) -> Path | None:
    """Train from the start, in a new run folder under `config.output`; the same in every process that torchrun starts.

    A time budget counts from `began`, a moment of time.monotonic, or else from now.

    With `go_on`, or after torchrun has restarted its processes, the newest run of the very same settings is gone on
    with where there is one. Returns the folder, in the process that writes it; None in the others. Raises HemafastError
    for what cannot be done (before anything is written), StoppedError after a signal.
    """
    began = time.monotonic() if began is None else began
    config = replace(config, data=config.data.absolute())  # a run is resumed and evaluated from anywhere
    with joined(config.device) as world:
        if go_on or restarted():
            folder = world.broadcast(_newest_run(config) if world.first else None)
            if folder is not None:
                asked = to_plain(config)
                free = {name: asked[name] for name in FREE_CHANGES}
                return _resume(folder, console, world, free, began, allow_changes=False)
        config, tried = decide(config, world)
        run = set_up(config, world=world)
        run.machine = run.machine.with_choices(tried)
        refuse_missing(config.track)
        folder = world.broadcast(_new_folder(config) if world.first else Path())
        return _run(run, folder, console, began)


def resume(
    folder: Path,
    console: Console,
    changes: Mapping[str, Any] | None = None,
    *,
    allow_changes: bool = False,
    began: float | None = None,
) -> Path | None:
    """Go on with the run in `folder` from its newest checkpoint that is whole.

    `changes` are settings by name. Those of FREE_CHANGES have no say in what is learned; others need `allow_changes`,
    and let the epoch under way begin anew. A run that is finished is left as it is. A time budget goes on from what the
    run has used up of it, and counts on from `began`. Returns as `train` does. Raises
    HemafastError if `folder` is not a run, its data has changed, or a change is not allowed.
    """
    began = time.monotonic() if began is None else began
    config = checked(TrainConfig, {**to_plain(read_config(folder)), **(changes or {})})
    with joined(config.device) as world:
        return _resume(folder, console, world, changes or {}, began, allow_changes=allow_changes)


def _resume(
    folder: Path, console: Console, world: World, changes: Mapping[str, Any], began: float, *, allow_changes: bool
) -> Path | None:
    before = read_config(folder)
    config = checked(TrainConfig, {**to_plain(before), **changes})
    changed = _changes(to_plain(before), to_plain(config))
    _refuse(changed, allow_changes=allow_changes)
    state = load_last(folder / LAST)
    if finished(state["progress"], config):
        if not world.first:
            return None
        logger.info("%s is finished; give more --epochs (or --time-budget) to extend it", folder)
        return folder
    # The checkpoint may be older than the settings: of a run that crashed right after a change, for one.
    run = set_up(config, state, world, changed=bool(_changes(state["settings"], to_plain(config))))
    return _run(run, folder, console, began, changed)


def _run(run: Run, folder: Path, console: Console, began: float, changed: Sequence[str] = ()) -> Path | None:
    """Write down how the run is run, then train to the end."""
    config, first = run.config, run.world.first
    run.progress.elapsed += time.monotonic() - began
    if first:
        _write_text(folder / CONFIG, to_json(config))
        _write_text(folder / MACHINE, json.dumps(run.machine.to_json(), indent=2) + "\n")
    with (
        StopFlag(on_second=console.show_cursor) as flag,
        _journal(run, folder, console) as journal,
    ):
        _announce(run, folder)
        for line in changed:
            logger.warning("changed on resume: %s", line)
        loop = Loop(run, folder, journal, flag, began=began)
        loop.train()
    return folder if first else None


def _write_text(file: Path, text: str) -> None:
    write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between plain settings and has a say in what is learned, a line each."""
    names = [name for name in new if name not in FREE_CHANGES and old[name] != new[name]]
    return [f"{name}: {old[name]} -> {new[name]}" for name in names]


def _refuse(changed: list[str], *, allow_changes: bool) -> None:
    fixed = [line for line in changed if line.partition(":")[0] in FIXED]
    if fixed:
        raise HemafastError(f"A run cannot change this ({fixed[0]}).", "Start a new run.")
    if changed and not allow_changes:
        raise HemafastError(
            f"This would change the run ({'; '.join(changed)}).",
            "Leave it out to go on exactly, or say --allow-changes.",
        )


def _newest_run(config: TrainConfig) -> Path | None:
    """The newest run under `config.output` with these very settings and a checkpoint.

    Where `auto` is asked for, whatever the run decided is the same.
    """
    for folder in sorted(config.output.glob("*/"), reverse=True):
        try:
            stored = replace(read_config(folder), output=config.output)
            decided = {name: getattr(stored, name) for name in DECIDED if getattr(config, name) == "auto"}
            same = not _changes(to_plain(stored), to_plain(replace(config, **decided)))
        except HemafastError:
            continue
        length = (config.epochs, config.time_budget)
        if same and (stored.epochs, stored.time_budget) == length and (folder / LAST).exists():
            return folder
    return None


def _journal(run: Run, folder: Path, console: Console) -> Journal:
    if not run.world.first:
        return SilentJournal()
    first_epoch = run.progress.epochs_done + 1
    trackers = open_trackers(run.config.track, folder, to_plain(run.config), first_epoch=first_epoch)
    try:
        budget = run.config.time_budget
        epochs, seconds = (run.config.epochs, None) if budget is None else (None, budget - run.progress.elapsed)
        return Journal(folder, console, epochs=epochs, first_epoch=first_epoch, seconds=seconds, trackers=trackers)
    except HemafastError:
        for tracker in trackers:
            tracker.close()
        raise


def _new_folder(config: TrainConfig) -> Path:
    """A new folder named for the moment and the model."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d_%H%M%S")
    name = f"{stamp}_{config.model}" + ("" if config.schedule == "constant" else f"_{config.schedule}")
    for suffix in ("", *(f"-{n}" for n in range(2, 100))):
        folder = config.output / (name + suffix)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise HemafastError(f"{folder} cannot be made ({error.strerror}).", "Choose another --output.") from error
        return folder
    raise HemafastError(f"{config.output} holds a hundred runs of this second.", "Choose another --output.")


def _announce(run: Run, folder: Path) -> None:
    info, config = run.dataset.info, run.config
    logger.info("run folder %s", folder)
    for choice in run.machine.choices:
        logger.info("%s: %s (%s)", choice.name, choice.value, choice.reason)
    logger.info(
        "%d training and %d validation images of %s, %d classes, fingerprint %s",
        run.train_batches.images,
        run.val_batches.images,
        ", ".join(config.domains or info.domains),
        len(run.classes),
        info.fingerprint[:12],
    )
    logger.info("%s at %d px, started from %s", config.model, config.image_size, run.started_from)
    warnings = [DRAWN_WARNING] if info.drawn else []
    if run.started_from.startswith("RANDOM"):
        warnings.append(f"TRAINING STARTS FROM {run.started_from}: expect a far lower score in the same time")
    for warning in warnings:
        logger.warning(warning)
