"""Packages that come only with an extra of hemafast."""

from __future__ import annotations

import importlib

from hemafast.errors import HemafastError


def require(extra: str, *packages: str) -> None:
    """Import packages of `extra`. Raises HemafastError for one that is missing or fails to import."""
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise HemafastError(f"{name} cannot be imported ({error}).", f"pip install 'hemafast[{extra}]'") from error
