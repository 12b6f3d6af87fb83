"""timm without torch's compiler, which takes longer to import than torch itself, because of sympy and triton.

timm and torchvision import it for decorators and for questions that only compiled code asks. What they take from it
here loads it when it is called.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType, SimpleNamespace
from typing import Any

from torch._compile import _disable_dynamo

_COMPILER, _UTILS = "torch._dynamo", "torch._dynamo.utils"


@contextmanager
def _compiler_left_out() -> Iterator[None]:
    """Within the block, an import of the compiler finds what timm and torchvision take from it."""
    if _COMPILER in sys.modules:
        yield
        return
    compiler, utils = ModuleType(_COMPILER), ModuleType(_UTILS)
    compiler.__dict__.update(disable=_disable, config=SimpleNamespace())  # one of timm's optimizers sets an option
    utils.__dict__.update(is_compile_supported=_is_compile_supported)
    sys.modules |= {_COMPILER: compiler, _UTILS: utils}
    try:
        yield
    finally:
        for name in (_COMPILER, _UTILS):
            sys.modules.pop(name, None)


def _disable(function: Callable[..., Any], recursive: bool = True, **_: object) -> Callable[..., Any]:
    return _disable_dynamo(function, recursive)


def _is_compile_supported(device: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device))


with suppress(ImportError, AttributeError), _compiler_left_out():  # other versions may ask more of the compiler
    importlib.import_module("timm.layers")

from timm.layers import BatchNormAct2d, Conv2dSame  # noqa: E402
from timm.layers.padding import pad_same  # noqa: E402

__all__ = ["BatchNormAct2d", "Conv2dSame", "pad_same"]
