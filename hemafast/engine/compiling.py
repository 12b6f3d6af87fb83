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

if TYPE_CHECKING:
    from torch import Tensor

Forward = Callable[["Tensor", "Tensor"], tuple["Tensor", "Tensor"]]

logger = logging.getLogger("hemafast")

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
CACHE_FOLDER = ".compile_cache"

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

    def __str__(self) -> str:
        state = "warm: from the cache" if self.cached else "cold: the next run finds it in the cache"
        return f"compiled the {self.name} step in {self.seconds:.1f} s ({state})"


class Compiler:
    """Compiles functions of (images, targets) for batches of `batch_size`. Other batches run without compiling.

    Batches of other sizes are rare, as the last of an epoch. They are not worth the minute that their graph would take.
    The folder `cache` keeps compiled code.
    """

    def __init__(
        self, *, enabled: bool, mode: CompileMode = "default", batch_size: int = 0, cache: Path | None = None
    ) -> None:
        self._enabled, self._mode, self._batch_size, self._cache = enabled, mode, batch_size, cache
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
            if len(images) != self._batch_size:
                return forward(images, targets)
            before, size = _Counts(), images.shape[-1]
            results = fast(images, targets)
            self._note(name, before, first_call=size not in sizes)  # growing images: a graph per size
            sizes.add(size)
            return results

        return run

    def _note(self, name: str, before: _Counts, *, first_call: bool) -> None:
        now = _Counts()
        if first_call:
            cached = now.misses == before.misses
            self.compiled.append(Compiled(name, now.seconds - before.seconds, cached))
            logger.info("%s", self.compiled[-1])
        elif now.frames > before.frames:
            self.recompiles += 1
            logger.warning("the %s step was compiled again (%d recompilations so far)", name, self.recompiles)


class _Counts:
    """What torch has compiled in this process so far."""

    def __init__(self) -> None:
        from torch._dynamo.utils import counters

        self.frames = int(counters["frames"]["ok"])
        self.misses = int(counters["inductor"]["fxgraph_cache_miss"])
        self.seconds = time.perf_counter()


def options_of(mode: CompileMode) -> dict[str, Any]:
    """Options of Inductor for a mode, with the layout forced; torch.compile takes a mode or options, but not both.

    Inductor decides the layout from the forward graph alone, and otherwise loses channels_last in the backward pass.
    """
    from torch._inductor import list_mode_options

    return {**list_mode_options(mode), "force_layout_optimization": True}


def keep_cache_in(folder: Path) -> Path:
    """Keep the compile cache under `folder`, unless the environment names a place. Returns the place."""
    return Path(os.environ.setdefault(CACHE_VARIABLE, str(folder.absolute() / CACHE_FOLDER)))
