"""Strategies of hypothesis for hostile files: sound files with damage, and documents of any shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

_BITS = (
    *(b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xff\xff\x7f"),
    *(b"-1", b"1e999", b"NaN", b"9" * 20, b"null", b"\r\n", b'"', b"{", b"["),
    *(b"../", b"/etc/passwd", b"\x1b[31m", b"[/red]", b"=HYPERLINK(1)", b"\xed\xa0\x80", b"\xe2\x80\xae"),
)
"""What breaks readers: bounds of integers, ends of paths, escapes of terminals, half of a surrogate pair."""

_NUMBERS = st.one_of(
    st.sampled_from([0, -1, 2**31, 2**63, 10**30, 1e308]), st.integers(), st.floats(allow_nan=True, allow_infinity=True)
)
_TEXTS = st.one_of(st.sampled_from([bit.decode("utf-8", "replace") for bit in _BITS]), st.text(max_size=20))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_TEXTS, inner, max_size=4)),
    max_leaves=8,
)
"""Any value that JSON can hold."""


def damaged(files: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of the files after a few edits: bytes replaced, put in, cut out, repeated, or the end cut off."""
    edit = st.tuples(
        st.sampled_from(["replace", "insert", "delete", "repeat", "cut", "flip"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(st.sampled_from(_BITS), st.binary(min_size=1, max_size=8)),
    )
    return st.builds(_edited, st.sampled_from(list(files)), st.lists(edit, min_size=1, max_size=4))


def _edited(data: bytes, edits: Sequence[tuple[str, float, bytes]]) -> bytes:
    for kind, place, bits in edits:
        at, size = int(place * len(data)), len(bits)
        after = {
            "replace": bits + data[at + size :],
            "insert": bits + data[at:],
            "delete": data[at + size :],
            "repeat": data[max(0, at - 64 * size) : at] + data[at:],
            "cut": b"",
            "flip": bytes(byte ^ bits[0] for byte in data[at : at + 1]) + data[at + 1 :],
        }
        data = data[:at] + after[kind]
    return data


def documents(sound: Sequence[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """One of the JSON objects with some fields, at any depth, replaced by other values or left out."""
    change = st.tuples(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.one_of(st.just(_GONE), VALUES))
    return st.builds(_changed, st.sampled_from(list(sound)), st.lists(change, min_size=1, max_size=3))


_GONE = object()


def _changed(document: dict[str, Any], changes: Sequence[tuple[list[int], Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(json.dumps(document))
    for path, value in changes:
        _set(whole, path, value)
    return whole


def _set(place: Any, path: Sequence[int], value: Any) -> None:
    """Walk down by the numbers in `path`, as far as there is something, and set what is there."""
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    if not keys:
        return
    key, rest = keys[path[0] % len(keys)], path[1:]
    if rest and isinstance(place[key], dict | list) and place[key]:
        _set(place[key], rest, value)
    elif value is _GONE:
        del place[key]
    else:
        place[key] = value


def towers() -> st.SearchStrategy[bytes]:
    """JSON and TOML that nest deeply, or in many keys, from few bytes."""
    shapes = {"[": "]", '{"a":': "}", "a.": "b = 1", "[a.": "b]", "a=[": "]", "a={b=": "}"}
    return st.builds(
        lambda opening, depth: (opening * depth + "1" + shapes[opening] * depth).encode(),
        st.sampled_from(sorted(shapes)),
        st.sampled_from([1, 20, 63, 65, 900, 1100, 20_000, 100_000]),
    )


def as_json(document: Any) -> bytes:
    """The bytes of a JSON file."""
    return json.dumps(document).encode("utf-8", "surrogatepass")
