"""What a check returns: a verdict, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a check ended, from good to bad."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""
    """What to do about it; empty if nothing need be done."""


def green(name: str, found: str) -> Finding:
    """All is well."""
    return Finding(name, Verdict.GREEN, found)


def yellow(name: str, found: str, remedy: str) -> Finding:
    """It works, and less well than it could."""
    return Finding(name, Verdict.YELLOW, found, remedy)


def red(name: str, found: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(name, Verdict.RED, found, remedy)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of all; green if there are none."""
    return max(verdicts, key=list(Verdict).index, default=Verdict.GREEN)
