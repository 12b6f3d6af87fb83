"""Convolutions whose gradients are wrong in channels_last on this processor; they run in the contiguous layout.

oneDNN's kernel for AVX2 of 1 x 1 convolutions with a stride and fewer than 8 input channels writes past its buffer
(github.com/uxlfoundation/oneDNN/issues/6035). Gradients are then wrong, or the process hangs or ends. Nothing tells
beforehand which kernel oneDNN takes, so every convolution of a network is compared once per machine.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hemafast.config import TrainConfig
from hemafast.engine import layout_trial
from hemafast.engine.answers import Answers
from hemafast.engine.machine import Choice, Machine
from hemafast.errors import HemafastError

SECONDS = 20.0
"""The comparison takes so long at most. What is not compared by then runs in channels_last."""
TIME_UP = "the time was up"
_FROM_OUTSIDE = (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)  # no convolution ends a process by these
_MOST_OF_FAILURE = 200  # characters
_COMMAND = (sys.executable, "-P", layout_trial.__file__)

logger = logging.getLogger("hemafast")

Pair = tuple[int, int]


class Convolution(NamedTuple):
    """What decides which kernel computes a convolution."""

    inputs: int
    """Channels."""
    outputs: int
    height: int
    """Of the input, in pixels."""
    width: int
    groups: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def __str__(self) -> str:
        kernel, stride = ("x".join(map(str, pair)) for pair in (self.kernel, self.stride))
        return f"{kernel}, stride {stride}, {self.inputs} to {self.outputs} channels, {self.height} x {self.width} px"

    @property
    def numbers(self) -> tuple[int, ...]:
        """As `layout_trial.difference` takes them."""
        return (*self[:5], *self.kernel, *self.stride, *self.padding, *self.dilation)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison of some convolutions found."""

    wrong: frozenset[Convolution]
    """Wrong in channels_last: other gradients, or none."""
    left: int = 0
    """How many were not compared."""
    why: str = TIME_UP
    """Why they were not."""


def avoid_wrong_gradients(model: nn.Module, machine: Machine, settings: TrainConfig) -> list[str]:
    """Let convolutions of `model` that are wrong in channels_last run in the contiguous layout; for CPUs only.

    They are compared once per machine, network and image size, in at most `SECONDS`. Returns their names. Raises
    HemafastError if there are any and the step is compiled, because the compiler chooses the layout by itself.
    """
    if machine.device != "cpu":
        return []
    names = _wrong_names(model, machine, settings)
    if not names:
        return []
    if machine.compiled:
        problem = f"--compile on: gradients of {len(names)} convolutions of {settings.model} would be wrong"
        raise HemafastError(f"{problem} on this CPU, because the compiler runs all in channels_last.", "Leave it out.")
    logger.warning(
        "%d convolutions of %s have wrong gradients in channels_last on this CPU and run in the contiguous layout: %s",
        *(len(names), settings.model, ", ".join(names)),
    )
    modules = dict(model.named_modules())
    for name in names:
        run_contiguous(modules[name])
    return names


def run_contiguous(convolution: nn.Module) -> None:
    """Let it compute in the contiguous layout, in place. What it takes and gives stays in channels_last."""
    weight: Any = convolution.weight
    # Not `contiguous()`, which leaves a 1 x 1 kernel as it is, and torch then takes it for channels_last.
    weight.data = weight.data.clone(memory_format=torch.contiguous_format)
    convolution.register_forward_pre_hook(_contiguous)
    convolution.register_forward_hook(_channels_last)


def _contiguous(_: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
    return given[0].contiguous()


def _channels_last(_: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> Tensor:
    return found.contiguous(memory_format=torch.channels_last)


def _wrong_names(model: nn.Module, machine: Machine, settings: TrainConfig) -> list[str]:
    """The names of the modules that are wrong in channels_last, as found now or before.

    The answer that is kept begins with how many convolutions were compared and how many there are. The next run
    compares those that the time did not suffice for.
    """
    sizes = (*settings.growing_from, settings.image_size)
    answers = Answers(machine, [])
    question = f"convolutions of {settings.model} at {', '.join(map(str, sizes))} px"
    kept = answers.kept(question)
    done, total, *names = kept.value.split() if kept else ("0", "1")
    if done == total:
        return names
    found = convolutions_of(model, sizes)
    distinct = distinct_of(found)
    waiting = distinct[int(done) :]
    logger.info("comparing gradients of %d convolutions in two layouts, for at most %.0f s", len(waiting), SECONDS)
    compared = compare(waiting, machine.precision)
    names = [name for name, several in found.items() if name in names or compared.wrong & several]
    if compared.left:
        told = "%d of %d were not compared (%s). The next run tries again"
        logger.info(told, compared.left, len(distinct), compared.why)
    value = f"{len(distinct) - compared.left} {len(distinct)} {' '.join(names)}"
    answers.keep(question, Choice(question, value, "compared, of so many; and which are wrong in channels_last"))
    return names


def distinct_of(found: Mapping[str, set[Convolution]]) -> list[Convolution]:
    """Each convolution of a network once, strided ones first: those have been wrong."""
    return sorted(set().union(*found.values()), key=lambda one: (max(one.stride) == 1, one))


def compare(convolutions: Sequence[Convolution], precision: str, seconds: float = SECONDS) -> Comparison:
    """Compare convolutions in both layouts, in processes of their own, as one that is wrong can end its process."""
    waiting, wrong, until = list(convolutions), set[Convolution](), time.monotonic() + seconds
    while waiting and (left := until - time.monotonic()) > 0:
        said, failure = _said(waiting, precision, left)
        waiting = waiting[said.count(layout_trial.RIGHT) :]
        if failure:
            return Comparison(frozenset(wrong), len(waiting), failure)
        if waiting:
            wrong.add(waiting.pop(0))
    return Comparison(frozenset(wrong), len(waiting))


def _said(convolutions: Sequence[Convolution], precision: str, seconds: float) -> tuple[list[str], str]:
    """What a process says of each convolution until it ends, and why it ended unless a convolution did that."""
    command = [*_COMMAND, str(torch.get_num_threads()), precision]
    lines = "".join(f"{' '.join(map(str, one.numbers))}\n" for one in convolutions)
    try:
        done = subprocess.run(command, input=lines.encode(), capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode().split(), TIME_UP
    said = done.stdout.decode().split()
    if layout_trial.BEGUN in said and -done.returncode not in _FROM_OUTSIDE:
        return said, ""
    errors = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit status {done.returncode}"]
    return said, errors[-1][:_MOST_OF_FAILURE]


def convolutions_of(model: nn.Module, sizes: Sequence[int]) -> dict[str, set[Convolution]]:
    """The convolutions that each module of `model` computes for uint8 images of `sizes` pixels, by name of module."""
    recorder = _Recorder()
    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_pre_hook(recorder.enter(name)) for name, module in modules]
    try:
        with _evaluating(model), torch.no_grad(), recorder:
            for size in sizes:
                model(torch.zeros((1, 3, size, size), dtype=torch.uint8))
    finally:
        for hook in hooks:
            hook.remove()
    return recorder.found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each convolution under the module that was entered last."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, set[Convolution]] = {}
        self._name = ""

    def enter(self, name: str) -> Any:
        """A hook that notes that the module `name` begins."""

        def begin(*_: Any) -> None:
            self._name = name

        return begin

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            images, weight, _, stride, padding, dilation, _, _, groups = args
            shape = (*weight.shape[2:], *stride, *padding, *dilation)
            pairs = [(int(shape[start]), int(shape[start + 1])) for start in range(0, 8, 2)]
            sizes = images.shape[1], weight.shape[0], *images.shape[2:], groups
            self.found.setdefault(self._name, set()).add(Convolution(*map(int, sizes), *pairs))  # type: ignore[arg-type]
        return func(*args, **(kwargs or {}))
