"""What short trials have found on this machine, kept in the user's cache folder."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hemafast.config import TrainConfig
from hemafast.cores import cores
from hemafast.engine.load import Load
from hemafast.engine.machine import Choice, Machine
from hemafast.files import user_cache, write_text
from hemafast.reading import read_object
from hemafast.words import counted

logger = logging.getLogger("hemafast")

BUSY = 0.15
"""Share of its processor time that a trial may have waited for others. Beyond, its answer holds for one run only."""

_STEADY = 0.5  # of the median: steps that differ by more were disturbed, though the scheduler may not tell


def answers_file() -> Path:
    """Where the answers of this user are."""
    return user_cache() / "hemafast" / "trials.json"


def forget_answers() -> int:
    """Delete all answers, so that the next runs try again. Returns how many there were."""
    file = answers_file()
    known = sum(map(len, _read(file).values()))
    file.unlink(missing_ok=True)
    return known


class Answers:
    """Results of trials that depend on the machine, on how torch computes there, and on `facts`.

    Machines may share the folder, so the instructions count too: a virtual machine may hide some of its processor.
    """

    def __init__(self, machine: Machine, facts: Sequence[str]) -> None:
        import torch

        here = [machine.facts.get(name, "") for name in ("processor", "instructions", "cores", "gpu", "torch", "timm")]
        threads = counted(torch.get_num_threads(), "thread")
        self._file, self._key = answers_file(), " | ".join([*here, threads, machine.precision, *facts])

    @classmethod
    def of_training(cls, machine: Machine, config: TrainConfig, processes: int = 1) -> Answers:
        """Answers that depend on what decides the cost of a training step."""
        network = [config.model, f"{config.image_size} px", f"freeze {config.freeze_stages} {config.freeze_norm}"]
        step = [f"ema {bool(config.ema)}", f"compile {config.compile} {config.compile_mode}", f"input {config.input}"]
        return cls(machine, [*network, *step, f"{processes} processes"])

    def get(self, question: str, find: Callable[[], tuple[Choice, float]]) -> Choice:
        """The stored answer, or else that of `find`, with the spread of its times as a share of their median.

        An answer found on a busy machine or from times that differ is not trusted: the next run tries again. Under a
        quota, threads always wait for their turn, so only the times tell.
        """
        kept = self.kept(question)
        if kept is not None:
            return replace(kept, reason=f"{kept.reason} (found before, in {self._file})")
        before = Load.now()
        choice, spread = find()
        quota = cores() < len(os.sched_getaffinity(0))
        self.keep(question, choice, load=0.0 if quota else Load.now().others_since(before), spread=spread)
        return choice

    def keep(self, question: str, choice: Choice, *, load: float = 0.0, spread: float = 0.0) -> None:
        """Store an answer with the load of the machine (`Load.others_since`) and the spread of what was measured."""
        entry = {"value": choice.value, "reason": choice.reason, "load": round(load, 3), "spread": round(spread, 3)}
        if not _trusted(entry):
            logger.warning(
                "the trial of %s was disturbed: others had the processor for %.0f %% of its time, and its steps differ "
                "by %.0f %%. The next run tries again",
                *(choice.name, 100 * load, 100 * spread),
            )
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with _alone_in(self._file.parent):
                known = _read(self._file)
                known.setdefault(self._key, {})[question] = entry
                write_text(self._file, json.dumps(known, indent=2))
        except OSError as error:
            logger.warning("the result of the trial cannot be kept (%s). The next run tries again", error)

    def kept(self, question: str) -> Choice | None:
        """The stored answer; None if there is none that can be trusted."""
        try:
            kept = _read(self._file)[self._key][question]
            return Choice(question, str(kept["value"]), str(kept["reason"])) if _trusted(kept) else None
        except (KeyError, TypeError, ValueError):  # not stored, or not written by this version
            return None


def _trusted(entry: dict[str, Any]) -> bool:
    return float(entry["load"]) <= BUSY and float(entry["spread"]) <= _STEADY


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one process at a time change what is in a folder, as runs of several folds begin together."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # some network file systems have no locks for folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(file: Path) -> dict[str, Any]:
    try:
        known = read_object(file)
    except (OSError, ValueError):
        return {}
    return {key: answers for key, answers in known.items() if isinstance(answers, dict)}
