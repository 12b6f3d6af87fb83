"""Versions of the packages that a result depends on."""

from __future__ import annotations

from collections.abc import Iterable

from hemafast import __version__

DALI = ("nvidia-dali-cuda120", "nvidia-dali-cuda130")
"""The same package built for CUDA 12 and for CUDA 13. One of them is installed."""


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of the packages among `names` that are installed; that of hemafast also if it only lies on the path."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = __version__ if name == "hemafast" else version(name)
        except PackageNotFoundError:
            continue
    return found
