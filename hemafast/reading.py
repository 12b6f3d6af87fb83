"""JSON and TOML that anybody may have written: size, depth and number of values are bounded before they are parsed.

A parser needs more memory or more stack for some small texts than a machine has: one call per level of nesting, or a
copy of the whole name for each part of a dotted key.
"""

from __future__ import annotations

import json
import re
import tomllib
from itertools import accumulate
from pathlib import Path
from typing import Any

from hemafast.regular import read_regular

MOST_BYTES = 256 * 2**20
"""Largest file of JSON. The scores of 1,000 classes in seven domains take 100 MB."""
MOST_SETTINGS_BYTES = 2**20
"""Largest file of settings."""
MOST_VALUES = 20_000_000
"""Most values in a JSON text. The smallest takes 8 bytes, an empty object 72."""
MOST_LEVELS = 100
"""Deepest nesting; hemafast itself writes at most 10 levels."""
MOST_KEY_PARTS = 16
"""Most parts of a dotted key or of a table's name in TOML."""

# Every repeat is possessive and no string needs its end, so that the time is proportional to the length of any text.
_JSON_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_TOML_QUOTED = re.compile(
    r'"""(?:[^"\\]++|\\.|"(?!""))*+(?:"{3,5}+)?'
    r"|'''(?:[^']++|'(?!''))*+(?:'{3,5}+)?"
    r'|"(?:[^"\\\n]++|\\.)*+"?'
    r"|'[^'\n]*+'?"
    r"|(?P<comment>#[^\n]*+)",
    re.DOTALL,
)
_LONG_KEY = re.compile(rf"(?:\.[ \t]*+[\w-]++[ \t]*+){{{MOST_KEY_PARTS}}}")
_NO_BRACKETS = re.compile(r"[^][{}]++")
_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}


def read_json(file: Path, most_bytes: int = MOST_BYTES) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON in UTF-8, too large or too deep; the message says which.
    """
    return parse_json(_read(file, most_bytes))


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises OSError and ValueError as `read_json`."""
    found = read_json(file)
    if not isinstance(found, dict):
        raise ValueError("it holds no object")
    return found


def cause(error: OSError | ValueError) -> str:
    """Why a file could not be read, without its name; of the errors that pydantic found, the first with its place."""
    errors = getattr(error, "errors", None)
    if errors is not None:
        first = errors()[0]
        said = first["msg"].removeprefix("Value error, ")  # what pydantic puts before words of ours
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), said)))
    return getattr(error, "strerror", None) or str(error)


def read_json_text(file: Path) -> str:
    """The text of a JSON file, for a parser that checks a schema. Raises OSError and ValueError as `read_json`."""
    text = _read(file, MOST_BYTES)
    _refuse_excess(text)
    return text


def parse_json(text: str) -> Any:
    """The content of a JSON text. Raises ValueError as `read_json`."""
    _refuse_excess(text)
    return json.loads(text)


def read_toml(file: Path) -> dict[str, Any]:
    """The table in a TOML file. Raises OSError and ValueError as `read_json`, with MOST_SETTINGS_BYTES."""
    text = _read(file, MOST_SETTINGS_BYTES)
    bare = _TOML_QUOTED.sub(lambda found: "" if found["comment"] else "s", text)
    _refuse_depth(bare)
    if _LONG_KEY.search(bare):
        raise ValueError(f"a key has more than {MOST_KEY_PARTS} parts")
    return tomllib.loads(text)


def _read(file: Path, most_bytes: int) -> str:
    content = read_regular(file, most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it holds more than {most_bytes / 2**20:,.0f} MiB")
    return content.decode("utf-8")


def _refuse_excess(text: str) -> None:
    """Raise ValueError if a JSON text has too many values or levels."""
    if sum(map(text.count, ",[{")) <= MOST_LEVELS:
        return
    bare = _JSON_STRING.sub("", text)
    if sum(map(bare.count, ",[{")) > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES:,} values")
    _refuse_depth(bare)


def _refuse_depth(bare: str) -> None:
    """Raise ValueError if brackets nest too deeply in a text without strings."""
    brackets = _NO_BRACKETS.sub("", bare)
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MOST_LEVELS:
        raise ValueError(f"it nests more than {MOST_LEVELS} levels")
