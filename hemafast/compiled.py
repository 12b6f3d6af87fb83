"""Functions that numba compiles, with a cache where it can write one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba import njit
from numba.core import event

logger = logging.getLogger("hemafast")


def kept(compile_function: Callable[..., Any]) -> Any:
    """The result of `compile_function` with cache=True, or with cache=False if numba cannot write a cache."""
    try:
        return compile_function(cache=True)
    except RuntimeError:
        return compile_function(cache=False)


def compiled(**options: Any) -> Callable[[Any], Any]:
    """numba's `njit` with these options, and a cache if possible."""
    return lambda function: kept(lambda cache: njit(cache=cache, **options)(function))


@contextmanager
def told(what: str) -> Iterator[None]:
    """Say so, once, if the block lets numba compile `what`: for some seconds, as it is in no cache."""
    with event.install_listener("numba:compile", _Told(what)):
        yield


class _Told(event.Listener):
    def __init__(self, what: str) -> None:
        self._what = what

    def on_start(self, _: Any) -> None:
        if self._what:
            logger.info("compiling %s: some seconds, once", self._what)
        self._what = ""  # functions within are compiled, too

    def on_end(self, _: Any) -> None:
        pass
