"""Run several experiments: reuse finished runs, resume interrupted ones, and continue after a failure."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from hemafast.config import TrainConfig, everywhere
from hemafast.data.dataset import open_dataset
from hemafast.engine.checkpoint import DRAWN_WARNING, read_card
from hemafast.engine.distributed import refuse_several
from hemafast.engine.opening import newest_run
from hemafast.engine.trainer import train
from hemafast.errors import HemafastError, StoppedError
from hemafast.evaluate.evaluate import Metrics, evaluate_run
from hemafast.experiments.apart import train_apart
from hemafast.files import csv_bytes, write_whole, writing
from hemafast.progress import SILENT, Progress
from hemafast.report.page import write_report
from hemafast.run_folder import BEST, PREDICTIONS, REPORT, read_metrics, summarise

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True)
class Scored:
    """A finished and evaluated run."""

    folder: Path
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed run and the reason."""

    reason: str


Outcome = Scored | Failed


def run_all(
    configs: Mapping[str, TrainConfig], *, processes: int = 1, progress: Progress = SILENT
) -> Iterator[tuple[str, Outcome]]:
    """Train and evaluate runs, and yield the name and the outcome of each run as it ends.

    Each of `configs` has an `output` of its own. Finished runs are reused, interrupted runs resume, and an error in a
    run is its outcome. One run follows the other in this process; with several `processes`, so many run at a time, each
    in a process and on cores of its own. Raises StoppedError if a signal stopped a run, which the same call resumes,
    and HemafastError if torchrun started several processes.
    """
    refuse_several()
    left = {name: config for name, config in configs.items() if processes > 1 and not _is_finished(config)}
    apart = left if len(left) > 1 else {}
    here = {name: config for name, config in configs.items() if name not in apart}
    for number, (name, config) in enumerate(here.items(), start=1):
        logger.info("%s: run %d of %d", name, number, len(configs))
        yield name, outcome_of(name, config, progress)
        _free_memory()
    for name, ended in train_apart(apart, min(processes, len(apart)), progress=progress) if apart else ():
        if ended.folder is None:
            logger.error("%s failed: %s", name, ended.reason)
            yield name, Failed(ended.reason)
        else:
            yield name, Scored(ended.folder, read_metrics(ended.folder))


def _is_finished(config: TrainConfig) -> bool:
    """Whether there is such a run that has come to its end."""
    try:
        folder = newest_run(everywhere(config))
        return folder is not None and summarise(folder).state == "finished"
    except HemafastError:
        return False


def scored_before(folder: Path, fingerprint: str) -> Scored | None:
    """The run in `folder`, if its best model was evaluated on the data of this fingerprint."""
    try:
        metrics, card = read_metrics(folder), read_card(folder / BEST)
    except HemafastError:
        return None
    same = metrics["model"]["epoch"] == card.epoch and metrics["data"]["fingerprint"] == fingerprint
    return Scored(folder, metrics) if same and (folder / PREDICTIONS).is_file() else None


def warnings_about(scored: Iterable[Scored]) -> list[str]:
    """Warnings that belong beside the scores."""
    models = [run.metrics for run in scored]
    found = [DRAWN_WARNING for metrics in models if metrics["data"]["drawn"]]
    origins = [metrics["model"]["started_from"] for metrics in models]
    found += [f"Training started from {origin}" for origin in origins if origin.startswith("RANDOM")]
    return list(dict.fromkeys(found))


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files by name, each whole or not at all. Raises HemafastError if `folder` cannot be written."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_whole(folder / name, methodcaller("write_bytes", content))


def csv_of(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """Rows as CSV. Missing values and None are left empty."""
    return csv_bytes(pd.DataFrame(list(rows), columns=list(columns), dtype=object))  # counts stay whole beside gaps


def outcome_of(name: str, config: TrainConfig, progress: Progress = SILENT) -> Outcome:
    """What came of one run, as `run_all` makes it in this process. Raises StoppedError if a signal stopped it."""
    try:
        return _train_and_score(config, progress)
    except StoppedError:
        raise
    except Exception as error:  # the others may succeed: smaller ones fit into memory
        logger.debug("raised here", exc_info=error)
        reason = str(error) if isinstance(error, HemafastError) else f"{type(error).__name__}: {error}"
        logger.error("%s failed: %s", name, reason)
        return Failed(" ".join(reason.split()))


def _train_and_score(config: TrainConfig, progress: Progress) -> Scored:
    folder = train(config, go_on=True, progress=progress)
    assert folder is not None  # None only in processes that torchrun started
    scored = scored_before(folder, open_dataset(config.data).info.fingerprint)
    if scored is None:
        evaluate_run(folder, device=config.device, progress=progress)
        (folder / REPORT).unlink(missing_ok=True)  # it is of scores before
    if not (folder / REPORT).is_file():  # a disk may have refused it after the scores were written
        write_report(folder)
    return scored or Scored(folder, read_metrics(folder))


def _free_memory() -> None:
    """Free the memory of a run before the next: cycles, compiled graphs, the GPU's cache."""
    from torch._dynamo.utils import counters

    gc.collect()
    if counters["frames"]:  # something was compiled
        torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
