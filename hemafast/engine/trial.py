"""Short trials of the training step, to choose batch size and precision. Answers are kept per machine.

A trial says what it tries and for how long at most, and it never takes more than a share of a time budget. Compiling is
not tried: on a CPU it lost wherever it was measured and takes minutes, and on a GPU it wins.

What is chosen for a GPU has not run on one: tests give seconds and memory by arithmetic.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch

from hemafast.config import Amp, TrainConfig, views_of
from hemafast.data.batch import Batch
from hemafast.data.dataset import Dataset
from hemafast.engine.answers import Answers
from hemafast.engine.captured import WARM_UP
from hemafast.engine.compiling import Compiled, cache_in
from hemafast.engine.distributed import World
from hemafast.engine.learner import build_learner
from hemafast.engine.machine import Choice, Machine, choose_input, machine_for, room_of
from hemafast.errors import HemafastError
from hemafast.preparation.split import TRAIN, VAL

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
_UNASKED, _ASKED = 20.0, 120.0  # seconds of a trial at most: of one that nobody asked for, and of --batch-size auto
_OF_BUDGET = 0.05  # of a time budget, for a trial at most
_LEAST_SECONDS = 2.0  # a shorter trial tells nothing
_USUAL_BATCH = TrainConfig.batch_size

Counts = npt.NDArray[np.int64]
"""Training images per class."""
Seconds = Callable[[int], float]
"""Seconds of a step, by number of images."""


def decide(config: TrainConfig, dataset: Dataset, world: World) -> tuple[TrainConfig, tuple[Choice, ...]]:
    """Replace each `auto` that a short trial or an earlier run can answer.

    That is the batch size, on a CPU the precision, and on a GPU compiling under a time budget. The first process tries,
    and all take its answer. Raises HemafastError if not even the smallest batch fits.
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
    if config.batch_size == "auto":
        most = most_images(int(counts.sum()), processes * config.accumulate)
        limits = Limits(most, _squares(config, machine, dataset)) if machine.device == "cuda" else None
        tried = config if world.alone else replace(config, capture="off")  # as a run of several processes
        trial = Trial(tried, machine, counts, _ASKED)
        choices.append(_batch_size(trial, Answers.of_training(machine, config, processes), limits))
        config = replace(config, batch_size=int(choices[-1].value))
    return config, tuple(choices)


def _batch_size(trial: Trial, answers: Answers, limits: Limits | None) -> Choice:
    name = "batch size"
    question = f"{name} up to {limits.most}" if limits else name
    if trial.allowed < _LEAST_SECONDS and answers.kept(question) is None:
        return Choice(name, str(_USUAL_BATCH), "the usual one: the time budget is too short for a trial")

    def find() -> tuple[Choice, float]:
        trial.begin("batch sizes")
        return choose_batch_size(trial, limits, over=trial.over), trial.spread

    return replace(answers.get(question, find), name=name)


def decide_precision(config: TrainConfig, counts: Counts, *, processes: int = 1) -> tuple[TrainConfig, list[Choice]]:
    """Compare bf16 with fp32 if `amp` is `auto` and the CPU has instructions for bf16.

    The faster one depends on the network: dense convolutions and matrix products gain, depthwise convolutions lose.
    """
    machine = machine_for(config, config.device, processes)
    if config.amp != "auto" or (machine.device, machine.precision) != ("cpu", "bf16"):
        return config, []
    if config.probe:
        return replace(config, amp="off"), [Choice("precision", "fp32", "a trial takes longer than a probe")]
    answers = Answers.of_training(machine, config)
    fp32, bf16 = (_trial_of(config, amp, counts, processes) for amp in ("off", "bf16"))
    if fp32.allowed < _LEAST_SECONDS and answers.kept("precision") is None:
        choice = Choice("precision", "fp32", "the time budget is too short for a trial of bf16")
    else:
        choice = answers.get("precision", lambda: _faster(fp32, bf16))
    return replace(config, amp="bf16" if choice.value == "bf16" else "off"), [choice]


def _trial_of(config: TrainConfig, amp: Amp, counts: Counts, processes: int) -> Trial:
    asked = replace(config, amp=amp, compile="off")
    return Trial(asked, machine_for(asked, asked.device, processes), counts, _UNASKED)


def _faster(fp32: Trial, bf16: Trial) -> tuple[Choice, float]:
    """Whether bf16 is clearly faster than fp32, and the spread of the steps."""
    fp32.begin("fp32 and bf16")
    usual = fp32(_SMALL_BATCH)
    if fp32.over():
        return Choice("precision", "fp32", f"a trial step took {usual:.1f} s, so bf16 was not tried"), fp32.spread
    bf16.until = fp32.until
    other = bf16(_SMALL_BATCH)
    value = "bf16" if other < _CLEARLY * usual else "fp32"
    reason = f"a trial step took {usual:.2f} s in fp32 and {other:.2f} s in bf16"
    return Choice("precision", value, reason), max(fp32.spread, bf16.spread)


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


def choose_batch_size(
    seconds: Seconds, limits: Limits | None = None, *, over: Callable[[], bool] = lambda: False
) -> Choice:
    """The batch size with the most images per second on a CPU; on a GPU, with `limits`, the knee of its throughput.

    The knee is the smallest power of two within 5 % of the most images per second of those that fit. Larger ones are
    not tried once the time of the trial is `over`.
    """
    name = "batch size"
    if limits is not None:
        return _at_the_knee(name, seconds, limits, over)
    rates: dict[int, float] = {}
    for size in _CPU_BATCHES:
        rates[size] = size / seconds(size)
        if rates[size] < 0.9 * max(rates.values()) or over():
            break  # larger ones are even slower, because the working set no longer fits the cache
    fastest = max(rates, key=lambda size: rates[size])
    tried = ", ".join(f"{size}: {rate:,.1f}" for size, rate in rates.items())
    return Choice(name, str(fastest), f"the fastest in a trial; images/s by batch size: {tried}")


def _at_the_knee(name: str, seconds: Seconds, limits: Limits, over: Callable[[], bool]) -> Choice:
    rates, size = dict[int, float](), _SMALLEST_GPU_BATCH
    while size <= min(limits.most, _LARGEST_GPU_BATCH):
        took = _seconds_if_it_fits(size, seconds, limits.squares)
        if took is None:
            break
        rates[size], size = size / took, 2 * size
        if over():
            break
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
        took = seconds(size)
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
    kept = Answers.of_training(machine, replace(config, compile="auto")).kept(_compiling_in(config.output))
    expected = float(kept.value) if kept else _COMPILING * (1 + len(config.growing_from))
    source = "as in the last run" if kept else "an assumption until a run here has compiled"
    reason = f"compiling takes about {expected:.0f} s ({source}), and the budget is {budget:.0f} s"
    return Choice("torch.compile", "on" if budget >= _PAID_BACK * expected else "off", reason)


def keep_compile_seconds(config: TrainConfig, machine: Machine, compiled: Sequence[Compiled]) -> None:
    """Keep how long a run took to compile on a GPU, for the next run with a time budget."""
    if compiled and machine.device == "cuda":
        seconds = sum(one.seconds for one in compiled)
        answers, question = Answers.of_training(machine, replace(config, compile="auto")), _compiling_in(config.output)
        answers.keep(question, Choice(question, f"{seconds:.1f}", "measured"))


def _compiling_in(output: Path) -> str:
    """The next run finds in the cache what this one has compiled, so the answer belongs to the cache."""
    return f"seconds of torch.compile with the cache {cache_in(output)}"


class Trial:
    """Times training steps of `config` on random pixels, for `most` seconds and a share of a time budget at most.

    On a GPU, the first steps warm up and are captured, as in a run, so that launches do not count.
    """

    def __init__(self, config: TrainConfig, machine: Machine, counts: Counts, most: float) -> None:
        self._config, self._machine, self._counts = config, machine, counts
        self.allowed = most if config.time_budget is None else min(most, _OF_BUDGET * config.time_budget)
        """Seconds."""
        self.until = float("inf")
        """Its end, a moment of time.monotonic. A step that has begun is waited for."""
        self.spread = 0.0
        """Of the steps of one size: the range as a share of the median; the largest so far."""

    def begin(self, what: str) -> None:
        """Say what is tried, and count from now."""
        logger.info("trying %s, for at most %.0f s", what, self.allowed)
        self.until = time.monotonic() + self.allowed

    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.until

    def __call__(self, size: int) -> float:
        """Seconds of a step of `size` images: the median of the last ones."""
        on_card = self._machine.device == "cuda"
        warm_up, rounds = (1 + WARM_UP, _GPU_ROUNDS) if on_card else (1, _ROUNDS)
        times: list[float] = []
        for seconds in islice(self._steps(size), warm_up + rounds):
            times.append(seconds)
            if self.over():
                break
        gc.collect()
        counted = times[warm_up:] or times[-1:]
        self.spread = max(self.spread, (max(counted) - min(counted)) / median(counted))
        return median(counted)

    def _steps(self, size: int) -> Iterator[float]:
        """Train without end, and yield the seconds of each step."""
        config, device, classes = self._config, self._machine.device, len(self._counts)
        on = replace(self._machine, compiled=False)
        # Random weights, because their values do not affect the time.
        learner = build_learner(config, on, self._counts, batch_size=size, started_from="random weights, for a trial")
        totals, side = learner.new_totals(), config.image_size
        seen = size * views_of(config)
        images = torch.randint(0, 256, (seen, side, side, 3), dtype=torch.uint8, device=device)
        labels = torch.arange(seen, device=device) % classes
        batch = Batch(images.permute(0, 3, 1, 2), labels, torch.arange(seen))
        for step in count():
            started = time.perf_counter()
            learner.train_step(batch, 1e-4, totals, step=step)
            totals.read()  # waits for the device
            yield time.perf_counter() - started
