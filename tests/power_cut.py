"""A power cut: the process gets no further than some call to the file system, and cleans nothing up."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest

CALLS = ("replace", "unlink", "link", "chmod", "fsync")


class PowerCut(BaseException):
    """Nothing after it happens."""


@contextmanager
def power_cut(at: int) -> Iterator[None]:
    """Of all calls that change the disk, those before call `at`, counted from 0, are carried out; all others raise."""
    calls = count()

    def cut(call):
        def call_or_raise(*arguments, **named):
            if next(calls) >= at:
                raise PowerCut
            return call(*arguments, **named)

        return call_or_raise

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, cut(getattr(os, name)))
        yield


def moments() -> Iterator[int]:
    """Moments for `power_cut`, from the first call on; to be left when there was no cut."""
    return count()
