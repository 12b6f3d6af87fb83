"""The result of a check: a verdict, a finding and a remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The result of a check, from good to bad."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""
    """What to do about it; empty if nothing."""


def green(name: str, found: str) -> Finding:
    """It works."""
    return Finding(name, Verdict.GREEN, found)


def yellow(name: str, found: str, remedy: str) -> Finding:
    """It works, but could be better or may fail later."""
    return Finding(name, Verdict.YELLOW, found, remedy)


def red(name: str, found: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(name, Verdict.RED, found, remedy)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst verdict; green without verdicts."""
    return max(verdicts, key=list(Verdict).index, default=Verdict.GREEN)
