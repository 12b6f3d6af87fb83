"""Packages that only an extra of hemafast brings."""

from __future__ import annotations

import importlib

from hemafast.errors import HemafastError


def require(extra: str, *packages: str) -> None:
    """Import packages that `extra` brings. Raises HemafastError for one that is not there or does not import."""
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise HemafastError(f"{name} cannot be imported ({error}).", f"pip install 'hemafast[{extra}]'") from error
