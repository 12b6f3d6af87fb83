"""Short trials of the training step, to choose batch size, precision and compiling. Answers are kept per machine.

What is chosen for a GPU has not run on one: tests give seconds and memory by arithmetic.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hemafast.config import Amp, TrainConfig
from hemafast.data.batch import Batch
from hemafast.data.dataset import Dataset
from hemafast.engine.captured import WARM_UP
from hemafast.engine.compiling import Compiled, cache_in
from hemafast.engine.distributed import World
from hemafast.engine.learner import build_learner
from hemafast.engine.machine import Choice, Machine, choose_input, machine_for, room_of
from hemafast.engine.step import Totals
from hemafast.errors import HemafastError
from hemafast.files import user_cache, write_text
from hemafast.preparation.split import TRAIN, VAL
from hemafast.reading import read_object

logger = logging.getLogger("hemafast")

DECIDED = ("amp", "batch_size", "compile")
"""Settings whose `auto` is replaced by `decide`."""

_CPU_BATCHES = (8, 16, 32, 64, 128)
_LARGEST_GPU_BATCH = 4096
_FULL = 0.9  # of the memory of a GPU; fragmentation and validation need the rest
_ROUNDS = 3
_GPU_ROUNDS = 10  # after the step is captured; they take milliseconds
_KNEE = 0.95  # of the most images per second: larger batches only cost updates
_UPDATES = 20  # of an epoch, at least, so that the schedule has steps to take
_PAID_BACK = 10.0  # times the seconds of compiling that a time budget must have
_COMPILING = 60.0  # seconds for each image size from a cold cache; an assumption until a run here has told
_CLEARLY = 0.9  # of the seconds of fp32: bf16 must be clearly faster, because it loses digits and a trial is short
_SMALL_BATCH = 16  # large enough to compare precisions
_SMALLEST_GPU_BATCH = 8
_GLANCE = 4  # images in the step that predicts the length of a run; few, because every run on a CPU waits for it
_WORTH_SECONDS = 3600.0  # of a run: compiling for a trial takes minutes, which a shorter run does not win back

Counts = npt.NDArray[np.int64]
"""Training images per class."""
Seconds = Callable[[int, bool], float]
"""Seconds of a step, by number of images and whether it is compiled."""


def decide(config: TrainConfig, dataset: Dataset, world: World) -> tuple[TrainConfig, tuple[Choice, ...]]:
    """Replace each `auto` that a short trial can answer: batch size, and on a CPU precision and compiling.

    The first process tries, and all take its answer. Raises HemafastError if not even the smallest batch fits.
    """
    answer = world.broadcast(world.together(lambda: _decide(config, dataset, world) if world.first else None))
    assert answer is not None
    return answer


def _decide(config: TrainConfig, dataset: Dataset, world: World) -> tuple[TrainConfig, tuple[Choice, ...]]:
    counts, processes = dataset.counts(TRAIN), world.process.world_size
    config, choices = decide_precision(config, counts, processes=world.local_size)
    machine = machine_for(config, config.device, world.local_size)
    if config.compile == "auto" and config.time_budget is not None and machine.device == "cuda" and machine.compiled:
        choices.append(_within_budget(config, machine, config.time_budget))
        if choices[-1].value == "off":
            config, machine = replace(config, compile="off"), replace(machine, compiled=False)
    tried = config if world.alone else replace(config, capture="off")  # as a run of several processes
    seconds = _seconds_of(tried, machine, counts)
    answers = Answers(machine, config, processes)
    if config.batch_size == "auto":
        most = most_images(int(counts.sum()), processes * config.accumulate)
        limits = Limits(most, _squares(config, machine, dataset)) if machine.device == "cuda" else None
        question = f"batch size up to {most}" if limits else "batch size"
        choice = answers.get(question, lambda: choose_batch_size(seconds, limits))
        choices.append(replace(choice, name="batch size"))
        config = replace(config, batch_size=int(choice.value))
    if config.compile == "auto" and machine.device == "cpu":
        size = int(config.batch_size)
        steps = int(counts.sum()) * config.epochs // (processes * size)
        choices.append(_choose_compiling(answers, size, steps, seconds, budget=config.time_budget))
        config = replace(config, compile="on" if choices[-1].value == "on" else "off")
    return config, tuple(choices)


def decide_precision(config: TrainConfig, counts: Counts, *, processes: int = 1) -> tuple[TrainConfig, list[Choice]]:
    """Compare bf16 with fp32 if `amp` is `auto` and the CPU has instructions for bf16.

    The faster one depends on the network: dense convolutions and matrix products gain, depthwise convolutions lose.
    """
    machine = machine_for(config, config.device, processes)
    if config.amp != "auto" or (machine.device, machine.precision) != ("cpu", "bf16"):
        return config, []

    def seconds(amp: Amp) -> float:
        asked = replace(config, amp=amp, compile="off")
        return _seconds_of(asked, machine_for(asked, asked.device, processes), counts)(_SMALL_BATCH, False)

    def faster() -> Choice:
        fp32, bf16 = seconds("off"), seconds("bf16")
        value = "bf16" if bf16 < _CLEARLY * fp32 else "fp32"
        return Choice("precision", value, f"a trial step took {fp32:.2f} s in fp32 and {bf16:.2f} s in bf16")

    choice = Answers(machine, config).get("precision", faster)
    return replace(config, amp="bf16" if choice.value == "bf16" else "off"), [choice]


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the batch on a GPU."""

    most: int
    """Images of a batch, so that an epoch has enough updates."""
    squares: int = 0
    """Bytes of the pixels that will lie in the memory of the GPU during training."""


def most_images(images: int, batches: int) -> int:
    """The largest power of two with which an epoch of `images` has `_UPDATES` updates of `batches` batches each."""
    bound = max(images // (_UPDATES * batches), _SMALLEST_GPU_BATCH)
    return 1 << bound.bit_length() - 1


def choose_batch_size(seconds: Seconds, limits: Limits | None = None) -> Choice:
    """The batch size with the most images per second on a CPU; on a GPU, with `limits`, the knee of its throughput.

    The knee is the smallest power of two within 5 % of the most images per second of those that fit.
    """
    name = "batch size"
    if limits is not None:
        return _at_the_knee(name, seconds, limits)
    rates: dict[int, float] = {}
    for size in _CPU_BATCHES:
        rates[size] = size / seconds(size, False)
        if rates[size] < 0.9 * max(rates.values()):
            break  # larger ones are even slower, because the working set no longer fits the cache
    fastest = max(rates, key=lambda size: rates[size])
    tried = ", ".join(f"{size}: {rate:,.1f}" for size, rate in rates.items())
    return Choice(name, str(fastest), f"the fastest in a trial; images/s by batch size: {tried}")


def _choose_compiling(
    answers: Answers, size: int, steps: int, seconds: Seconds, *, budget: float | None = None
) -> Choice:
    name, question = "torch.compile", f"torch.compile at batch {size}"
    if not answers.knows(question):
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            return Choice(name, "off", "compiling for a CPU needs g++, which is not installed")
        glance = min(size, _GLANCE)
        expected = budget or steps * size / glance * seconds(glance, False)
        if expected < _WORTH_SECONDS:
            minutes = f"about {expected / 60:,.0f} minutes of steps"
            return Choice(name, "off", f"{minutes} are too short for a trial of compiling to pay off")

    def faster() -> Choice:
        eager, compiled = seconds(size, False), seconds(size, True)
        value = "on" if compiled < eager else "off"
        return Choice(name, value, f"a trial step took {eager:.2f} s uncompiled and {compiled:.2f} s compiled")

    return replace(answers.get(question, faster), name=name)


def _at_the_knee(name: str, seconds: Seconds, limits: Limits) -> Choice:
    rates, size = dict[int, float](), _SMALLEST_GPU_BATCH
    while size <= min(limits.most, _LARGEST_GPU_BATCH):
        took = _seconds_if_it_fits(size, seconds, limits.squares)
        if took is None:
            break
        rates[size], size = size / took, 2 * size
    if not rates:
        raise HemafastError(
            f"Not even {_SMALLEST_GPU_BATCH} images fit on the GPU.", "Choose a smaller --model or --image-size."
        )
    knee = min(one for one, rate in rates.items() if rate >= _KNEE * max(rates.values()))
    tried = ", ".join(f"{one}: {rate:,.0f}" for one, rate in rates.items())
    reason = f"the smallest within 5 % of the fastest, without compiling; images/s by batch size: {tried}"
    return Choice(name, str(knee), reason)


def _seconds_if_it_fits(size: int, seconds: Seconds, squares: int) -> float | None:
    """Seconds of a step, or None if it does not fit into the memory that is free beside the squares."""
    free, _ = torch.cuda.mem_get_info()
    torch.cuda.reset_peak_memory_stats()
    try:
        took = seconds(size, False)
    except torch.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        torch.cuda.empty_cache()  # reserved memory would count for the next size
    return took if torch.cuda.max_memory_reserved() <= _FULL * (free - squares) else None


def _squares(config: TrainConfig, machine: Machine, dataset: Dataset) -> int:
    """Bytes that resident pixels will take; 0 where they come from elsewhere. They are loaded after the trial."""
    splits = [dataset.samples(split, config.image_size) for split in (TRAIN, VAL)]
    size = sum(samples.packed.nbytes for samples in splits)
    chosen = choose_input(config.input, machine, room_of(machine), packed_bytes=size, file_bytes=0)
    return size if chosen.value == "resident" else 0


def _within_budget(config: TrainConfig, machine: Machine, budget: float) -> Choice:
    """Whether compiling on a GPU pays off in so many seconds."""
    kept = Answers(machine, replace(config, compile="auto")).kept(_compiling_in(config.output))
    expected = float(kept.value) if kept else _COMPILING * (1 + len(config.growing_from))
    source = "as in the last run" if kept else "an assumption until a run here has compiled"
    reason = f"compiling takes about {expected:.0f} s ({source}), and the budget is {budget:.0f} s"
    return Choice("torch.compile", "on" if budget >= _PAID_BACK * expected else "off", reason)


def keep_compile_seconds(config: TrainConfig, machine: Machine, compiled: Sequence[Compiled]) -> None:
    """Keep how long a run took to compile on a GPU, for the next run with a time budget."""
    if compiled and machine.device == "cuda":
        seconds = sum(one.seconds for one in compiled)
        question = _compiling_in(config.output)
        Answers(machine, replace(config, compile="auto")).keep(question, Choice(question, f"{seconds:.1f}", "measured"))


def _compiling_in(output: Path) -> str:
    """The next run finds in the cache what this one has compiled, so the answer belongs to the cache."""
    return f"seconds of torch.compile with the cache {cache_in(output)}"


def _seconds_of(config: TrainConfig, machine: Machine, counts: Counts) -> Seconds:
    """A function that times training steps of `config` on random pixels: the median of the last ones.

    On a GPU, the first steps warm up and are captured, as in a run, so that launches do not count.
    """
    warm_up, rounds = (1 + WARM_UP, _GPU_ROUNDS) if machine.device == "cuda" else (1, _ROUNDS)

    def seconds(size: int, compiled: bool) -> float:
        on = replace(machine, compiled=compiled, own_gradients=machine.own_gradients and not compiled)
        # Random weights, because their values do not affect the time.
        learner = build_learner(config, on, counts, batch_size=size, started_from="random weights, for a trial")
        totals, side = Totals(len(counts), on.device), config.image_size
        images = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, device=on.device)
        labels = torch.arange(size, device=on.device) % len(counts)
        batch = Batch(images.permute(0, 3, 1, 2), labels, torch.arange(size))
        times = []
        for step in range(warm_up + rounds):
            started = time.perf_counter()
            learner.train_step(batch, 1e-4, totals, step=step)
            totals.read()  # waits for the device
            times.append(time.perf_counter() - started)
        del learner, images, batch
        gc.collect()
        return median(times[warm_up:])

    return seconds


class Answers:
    """Results of trials in the user's cache folder, by machine, versions, and what decides the cost of a step."""

    def __init__(self, machine: Machine, config: TrainConfig, processes: int = 1) -> None:
        self._file = user_cache() / "hemafast" / "trials.json"
        facts = [machine.facts.get(name, "") for name in ("processor", "cores", "gpu", "torch", "timm")]
        network = [config.model, f"{config.image_size} px", f"freeze {config.freeze_stages} {config.freeze_norm}"]
        step = [machine.precision, f"ema {bool(config.ema)}", f"compile {config.compile} {config.compile_mode}"]
        self._key = " | ".join([*facts, *network, *step, f"input {config.input}", f"{processes} processes"])

    @classmethod
    def about(cls, facts: Sequence[str]) -> Answers:
        """Answers that depend on other facts than those of training."""
        answers = cls.__new__(cls)
        answers._file, answers._key = user_cache() / "hemafast" / "trials.json", " | ".join(facts)
        return answers

    def knows(self, question: str) -> bool:
        """Whether the answer is stored."""
        return self.kept(question) is not None

    def get(self, question: str, find: Callable[[], Choice]) -> Choice:
        """The stored answer, or else the answer of `find`, which is then stored."""
        kept = self.kept(question)
        if kept is not None:
            return replace(kept, reason=f"{kept.reason} (found before, in {self._file})")
        choice = find()
        self.keep(question, choice)
        return choice

    def keep(self, question: str, choice: Choice) -> None:
        """Store an answer."""
        known = self._read()
        known.setdefault(self._key, {})[question] = {"value": choice.value, "reason": choice.reason}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._file, json.dumps(known, indent=2))
        except OSError as error:
            logger.warning("the result of the trial cannot be kept (%s). The next run tries again", error)

    def kept(self, question: str) -> Choice | None:
        """The stored answer, or None."""
        try:
            kept = self._read()[self._key][question]
            return Choice(question, str(kept["value"]), str(kept["reason"]))
        except (KeyError, TypeError):  # not stored, or not written by us
            return None

    def _read(self) -> dict[str, Any]:
        try:
            known = read_object(self._file)
        except (OSError, ValueError):
            return {}
        return {key: answers for key, answers in known.items() if isinstance(answers, dict)}
