"""Several runs in one command: what is finished is found, what was stopped is gone on with, a failure ends no other."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from hemafast.config import TrainConfig
from hemafast.data.dataset import open_dataset
from hemafast.engine.checkpoint import read_card
from hemafast.engine.run import DRAWN_WARNING
from hemafast.engine.trainer import train
from hemafast.errors import HemafastError, StoppedError
from hemafast.evaluate.evaluate import PREDICTIONS, Metrics, evaluate_run, read_metrics
from hemafast.files import write_whole
from hemafast.report.page import write_report
from hemafast.run_folder import BEST

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True)
class Plan:
    """A run to be: its name among its like, and its settings, whose output no other plan shares."""

    name: str
    config: TrainConfig


@dataclass(frozen=True, slots=True)
class Scored:
    """A run that was trained to its end and evaluated."""

    folder: Path
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Failed:
    """A run that came to no end, and why."""

    reason: str


Outcome = Scored | Failed


def run_all(plans: Sequence[Plan], console: Console) -> Iterator[tuple[str, Outcome]]:
    """Train and evaluate one plan after the other; yields the name and the outcome of each.

    Whatever goes wrong within a run is its outcome. Raises StoppedError after a signal, when the same call goes on
    later, and HemafastError where torchrun has started several processes.
    """
    started = os.environ.get("WORLD_SIZE", "1")
    if started != "1":
        raise HemafastError(f"torchrun started {started} processes of this.", "Start it without torchrun.")
    for number, plan in enumerate(plans, start=1):
        logger.info("%s: run %d of %d", plan.name, number, len(plans))
        yield plan.name, _outcome(plan, console)
        _free_memory()


def scored_before(folder: Path, fingerprint: str) -> Scored | None:
    """A run whose best model was evaluated on the data of this fingerprint; None if it was not."""
    try:
        metrics, card = read_metrics(folder), read_card(folder / BEST)
    except HemafastError:
        return None
    same = metrics["model"]["epoch"] == card.epoch and metrics["data"]["fingerprint"] == fingerprint
    return Scored(folder, metrics) if same and (folder / PREDICTIONS).is_file() else None


def warnings_about(scored: Iterable[Scored]) -> list[str]:
    """What their scores cannot be read without."""
    models = [run.metrics for run in scored]
    found = [DRAWN_WARNING for metrics in models if metrics["data"]["drawn"]]
    origins = [metrics["model"]["started_from"] for metrics in models]
    found += [f"Training started from {origin}" for origin in origins if origin.startswith("RANDOM")]
    return list(dict.fromkeys(found))


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files by name, each whole or not at all. Raises HemafastError where the folder takes none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_whole(folder / name, partial(_write, content))
    except OSError as error:
        raise HemafastError(f"{folder} cannot be written ({error}).", "Name another --output.") from error


def _write(content: bytes, file: Path) -> None:
    file.write_bytes(content)


def _outcome(plan: Plan, console: Console) -> Outcome:
    try:
        return _train_and_score(plan.config, console)
    except StoppedError:
        raise
    except Exception as error:  # out of memory, for one: the other runs may well fit
        logger.debug("raised here", exc_info=error)
        reason = str(error) if isinstance(error, HemafastError) else f"{type(error).__name__}: {error}"
        logger.error("%s failed: %s", plan.name, reason)
        return Failed(" ".join(reason.split()))


def _train_and_score(config: TrainConfig, console: Console) -> Scored:
    folder = train(config, console, go_on=True)
    assert folder is not None  # None is for processes that torchrun started
    before = scored_before(folder, open_dataset(config.data).info.fingerprint)
    if before is not None:
        return before
    evaluate_run(folder, device=config.device)
    write_report(folder)
    return Scored(folder, read_metrics(folder))


def _free_memory() -> None:
    """Leave nothing of a run to the next: its graphs, and what it held on the device."""
    from torch._dynamo.utils import counters

    gc.collect()
    if counters["frames"]:  # something was compiled
        torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
