"""Short trials of the training step, to choose batch size, precision and compiling. Answers are kept per machine."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hemafast.config import Amp, TrainConfig
from hemafast.data.batch import Batch
from hemafast.data.dataset import Dataset
from hemafast.engine.distributed import World
from hemafast.engine.learner import build_learner
from hemafast.engine.machine import Choice, Machine, machine_for
from hemafast.engine.step import Totals
from hemafast.errors import HemafastError
from hemafast.files import user_cache, write_text
from hemafast.preparation.split import TRAIN
from hemafast.reading import read_object

logger = logging.getLogger("hemafast")

DECIDED = ("amp", "batch_size", "compile")
"""Settings whose `auto` is replaced by `decide`."""

_CPU_BATCHES = (8, 16, 32, 64, 128)
_LARGEST_GPU_BATCH = 4096
_FULL = 0.9  # of the memory of a GPU; fragmentation and validation need the rest
_ROUNDS = 3
_CLEARLY = 0.9  # of the seconds of fp32: bf16 must be clearly faster, because it loses digits and a trial is short
_SMALL_BATCH = 16  # large enough to compare precisions
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
    answer = world.broadcast(_decide(config, dataset.counts(TRAIN), world) if world.first else None)
    assert answer is not None
    return answer


def _decide(config: TrainConfig, counts: Counts, world: World) -> tuple[TrainConfig, tuple[Choice, ...]]:
    config, choices = decide_precision(config, counts, processes=world.local_size)
    machine = machine_for(config, config.device, world.local_size)
    seconds = _seconds_of(config, machine, counts)
    answers = Answers(machine, config)
    if config.batch_size == "auto":
        choices.append(answers.get("batch size", lambda: choose_batch_size(machine.device, seconds)))
        config = replace(config, batch_size=int(choices[-1].value))
    if config.compile == "auto" and machine.device == "cpu":
        size = int(config.batch_size)
        steps = int(counts.sum()) * config.epochs // (world.process.world_size * size)
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


def choose_batch_size(device: str, seconds: Seconds) -> Choice:
    """The largest power of two that fits on a GPU, or the one with the most images per second on a CPU."""
    name = "batch size"
    if device == "cuda":
        return Choice(name, str(_largest_that_fits(seconds)), "the largest power of two that fits")
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


def _largest_that_fits(seconds: Seconds) -> int:
    size, fits = 8, 0
    while size <= _LARGEST_GPU_BATCH and _fits(size, seconds):
        fits, size = size, 2 * size
    if not fits:
        raise HemafastError("Not even 8 images fit on the GPU.", "Choose a smaller --model or --image-size.")
    return fits


def _fits(size: int, seconds: Seconds) -> bool:
    _, all_memory = torch.cuda.mem_get_info()
    torch.cuda.reset_peak_memory_stats()
    try:
        seconds(size, False)
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        torch.cuda.empty_cache()  # reserved memory would count for the next size
    return torch.cuda.max_memory_reserved() <= _FULL * all_memory


def _seconds_of(config: TrainConfig, machine: Machine, counts: Counts) -> Seconds:
    """A function that times training steps of `config` on random pixels: the median after the first step."""

    def seconds(size: int, compiled: bool) -> float:
        on = replace(machine, compiled=compiled, own_gradients=machine.own_gradients and not compiled)
        # Random weights, because their values do not affect the time.
        learner = build_learner(config, on, counts, batch_size=size, started_from="random weights, for a trial")
        totals, side = Totals(len(counts), on.device), config.image_size
        images = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, device=on.device)
        labels = torch.arange(size, device=on.device) % len(counts)
        batch = Batch(images.permute(0, 3, 1, 2), labels, torch.arange(size))
        times = []
        for step in range(1 + _ROUNDS):
            started = time.perf_counter()
            learner.train_step(batch, 1e-4, totals, step=step)
            totals.read()  # waits for the device
            times.append(time.perf_counter() - started)
        del learner, images, batch
        gc.collect()
        return median(times[1:])

    return seconds


class Answers:
    """Results of trials in the user's cache folder, by machine, versions, network, image size and precision."""

    def __init__(self, machine: Machine, config: TrainConfig) -> None:
        self._file = user_cache() / "hemafast" / "trials.json"
        facts = [machine.facts.get(name, "") for name in ("processor", "cores", "gpu", "torch", "timm")]
        self._key = " | ".join([*facts, config.model, f"{config.image_size} px", machine.precision])

    def knows(self, question: str) -> bool:
        """Whether the answer is stored."""
        return self._kept(question) is not None

    def get(self, question: str, find: Callable[[], Choice]) -> Choice:
        """The stored answer, or else the answer of `find`, which is then stored."""
        kept = self._kept(question)
        if kept is not None:
            return replace(kept, reason=f"{kept.reason} (found before, in {self._file})")
        choice = find()
        known = self._read()
        known.setdefault(self._key, {})[question] = {"value": choice.value, "reason": choice.reason}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._file, json.dumps(known, indent=2))
        except OSError as error:
            logger.warning("the result of the trial cannot be kept (%s). The next run tries again", error)
        return choice

    def _kept(self, question: str) -> Choice | None:
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
