"""torch.compile for steps of fixed shape, with its seconds, its cache hits, and a warning if it compiles again."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemafast.config import CompileMode
from hemafast.words import counted

if TYPE_CHECKING:
    from torch import Tensor

Forward = Callable[["Tensor", "Tensor"], tuple["Tensor", "Tensor"]]

logger = logging.getLogger("hemafast")

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
CACHE_FOLDER = ".compile_cache"
_MOST_OF_CAUSE = 200  # characters; torch appends pages of advice

GRAPHED: tuple[CompileMode, ...] = ("reduce-overhead", "max-autotune")
"""Modes in which the compiler makes CUDA graphs."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled function."""

    name: str
    seconds: float
    """Duration of its first call."""
    cached: bool
    """Whether all of it was in the cache."""
    folder: str = "the cache"
    """Where the cache is."""

    def __str__(self) -> str:
        state = f"warm: from {self.folder}" if self.cached else f"cold: the next run finds it in {self.folder}"
        return f"compiled the {self.name} step in {self.seconds:.1f} s ({state})"


class Compiler:
    """Compiles functions of (images, targets) for batches of `batch_size`. Other batches run without compiling.

    Batches of other sizes are rare, as the last of an epoch. They are not worth the minute that their graph would take.
    The folder `cache` keeps compiled code. With `may_fail`, a function that cannot be compiled runs as it is, with a
    warning.
    """

    def __init__(
        self,
        *,
        enabled: bool,
        mode: CompileMode = "default",
        batch_size: int = 0,
        cache: Path | None = None,
        may_fail: bool = False,
    ) -> None:
        self._enabled, self._mode, self._batch_size, self._cache = enabled, mode, batch_size, cache
        self._may_fail = may_fail
        self._untold: list[Compiled] = []
        self.compiled: list[Compiled] = []
        self.recompiles = 0
        """How often a compiled function had to be compiled again."""

    @property
    def replays(self) -> bool:
        """Whether compiled functions run as CUDA graphs of the compiler, whose results the next call writes over."""
        return self._enabled and self._mode in GRAPHED

    def compile(self, forward: Forward, name: str) -> Forward:
        """`forward`, compiled at its first full batch; `forward` itself if compiling is off."""
        if not self._enabled:
            return forward
        import torch
        import torch._dynamo
        import torch._functorch.config

        if self._cache is not None:
            keep_cache_in(self._cache)
        # An error, because past the limit torch silently continues without compiling.
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        # Compile the backward pass with the forward pass, so that the first call counts all seconds and cache misses.
        torch._functorch.config.force_non_lazy_backward_lowering = True
        fast: Forward = torch.compile(forward, dynamic=False, options=options_of(self._mode))
        sizes: set[int] = set()

        def run(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal fast
            if fast is forward or len(images) != self._batch_size:
                return forward(images, targets)
            before, size = _Counts(), images.shape[-1]
            if size not in sizes:
                logger.info("compiling the %s step at %d px: minutes, or seconds with a warm cache", name, size)
            try:
                results = fast(images, targets)
            except torch._dynamo.exc.TorchDynamoException as error:
                if not self._may_fail or size in sizes:
                    raise
                logger.warning("the %s step cannot be compiled and runs without (%s)", name, _cause(error))
                fast = forward
                return forward(images, targets)
            self._note(name, before, first_call=size not in sizes)  # growing images: a graph per size
            sizes.add(size)
            return results

        return run

    def new_seconds(self, name: str) -> float:
        """Seconds that compiling the step `name` has taken since the last call."""
        seconds = sum(one.seconds for one in self._untold if one.name == name)
        self._untold = [one for one in self._untold if one.name != name]
        return seconds

    def _note(self, name: str, before: _Counts, *, first_call: bool) -> None:
        now = _Counts()
        if first_call:
            cached, folder = now.misses == before.misses, os.environ.get(CACHE_VARIABLE, "the cache of torch")
            done = Compiled(name, now.seconds - before.seconds, cached, folder)
            self.compiled.append(done)
            self._untold.append(done)
            logger.info("%s", done)
        elif now.graphs > before.graphs:
            self.recompiles += 1
            logger.warning(
                "the %s step was compiled again (%s so far)", name, counted(self.recompiles, "recompilation")
            )


class _Counts:
    """What torch has compiled in this process so far."""

    def __init__(self) -> None:
        from torch._dynamo.utils import counters

        # Not frames: those of DistributedDataParallel are traced again after its first step, without a new graph.
        self.graphs = int(counters["stats"]["unique_graphs"])
        self.misses = int(counters["inductor"]["fxgraph_cache_miss"])
        self.seconds = time.perf_counter()


def _cause(error: Exception) -> str:
    """The beginning of what torch says, in one line."""
    return " ".join(str(error).split())[:_MOST_OF_CAUSE] or type(error).__name__


def options_of(mode: CompileMode) -> dict[str, Any]:
    """Options of Inductor for a mode, with the layout forced; torch.compile takes a mode or options, but not both.

    Inductor decides the layout from the forward graph alone, and otherwise loses channels_last in the backward pass.
    """
    from torch._inductor import list_mode_options

    return {**list_mode_options(mode), "force_layout_optimization": True}


def cache_in(folder: Path) -> Path:
    """Where the compile cache of runs under `folder` is: there, unless the environment names a place."""
    return Path(os.environ.get(CACHE_VARIABLE, str(folder.absolute() / CACHE_FOLDER)))


def keep_cache_in(folder: Path) -> Path:
    """Keep the compile cache under `folder`, unless the environment names a place. Returns the place."""
    return Path(os.environ.setdefault(CACHE_VARIABLE, str(cache_in(folder))))
