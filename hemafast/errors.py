"""Errors that a user can mend: one line that names what is wrong and what to do about it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence


def name_some(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first `most` of the names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


class HemafastError(Exception):
    """A mistake in the input or the request. The command line prints it as one line and exits with `exit_code`."""

    exit_code = 2

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy


class ClassesError(HemafastError):
    """Classes of a source are none of the challenge."""


class LossError(HemafastError):
    """Images would be lost, and --strict asks for none to be."""

    exit_code = 1


def require(extra: str, *packages: str) -> None:
    """Import packages of an extra of hemafast. Raises HemafastError for one that is missing or fails to import."""
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise HemafastError(f"{name} cannot be imported ({error}).", f"pip install 'hemafast[{extra}]'") from error


class StoppedError(HemafastError):
    """The user stopped the command; what was saved stays valid."""

    exit_code = 130

    def __init__(self, problem: str, remedy: str, *, exit_code: int = 130) -> None:
        super().__init__(problem, remedy)
        self.exit_code = exit_code
