"""Functions that numba compiles, with a cache where it can write one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def kept(compile_function: Callable[..., Any]) -> Any:
    """The result of `compile_function` with cache=True, or with cache=False if numba cannot write a cache."""
    try:
        return compile_function(cache=True)
    except RuntimeError:
        return compile_function(cache=False)


def compiled(**options: Any) -> Callable[[Any], Any]:
    """numba's `njit` with these options, and a cache if possible."""
    return lambda function: kept(lambda cache: njit(cache=cache, **options)(function))
