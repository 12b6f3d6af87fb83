"""Names from outside as text that a terminal and a log show, and do not obey."""

from __future__ import annotations

import logging
import re

# Control characters, of which ESC begins a command to the terminal; line and paragraph breaks of Unicode; characters
# that turn the direction of what follows them; and what is invisible.
_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff"
_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_IN_TEXT = re.compile(f"[{_CONTROLS}]")
_IN_LINE = re.compile(f"[{_CONTROLS}\t\n]")


def printable(text: str) -> str:
    """Text of any origin on one line: what a terminal would obey is written as `\\x1b` and the like."""
    return _IN_LINE.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """The same for text whose line breaks and tabs are meant."""
    return _IN_TEXT.sub(_escaped, text)


def has_commands(text: str) -> bool:
    """Whether a terminal would obey something in it."""
    return _COMMANDS.search(text) is not None


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class PrintableFormatter(logging.Formatter):
    """Writes each record on a line of its own, whatever names are in it; tracebacks follow on theirs."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging gives it
        """The line of a record."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802 - as above
        """A traceback."""
        return printable_lines(super().formatException(ei))  # type: ignore[arg-type] # logging does not name the type
