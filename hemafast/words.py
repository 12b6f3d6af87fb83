"""Numbers with their nouns, in messages and on pages."""

from __future__ import annotations

import re
from collections.abc import Sequence

_IRREGULAR = {"nucleus": "nuclei", "epoch": "epochs"}
_HISSING = re.compile(r"(s|x|z|ch|sh)$")
_Y = re.compile(r"(?<![aeiou])y$")


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number and what it counts: "1 image", "2,387 images", "1 class", "2 classes".

    Args:
        number: how many.
        one: what there is, if there is one of it; it may go on with a verb, as in "image is".
        many: what there are otherwise, as in "images are"; by default the plural of `one`.
    """
    return f"{number:,} {one if number == 1 else many or plural(one)}"


def listed(words: Sequence[str]) -> str:
    """Words in a row: "a", "a and b", "a, b and c"."""
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


def plural(noun: str) -> str:
    """The plural of a noun of this field; of several words, that of the last."""
    *before, last = noun.split(" ")
    return " ".join([*before, _IRREGULAR.get(last) or _regular(last)])


def _regular(noun: str) -> str:
    if _Y.search(noun):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if _HISSING.search(noun) else f"{noun}s"
