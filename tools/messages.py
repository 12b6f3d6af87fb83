"""Every error that hemafast raises, read from the code: what is wrong, and what to do.

Values that a message is filled with are shown as an ellipsis.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hemafast import errors

PACKAGE = Path(__file__).resolve().parent.parent / "hemafast"
NAMES = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
VALUE = "…"
"""Stands for what is filled in."""


class Raised(NamedTuple):
    """One place of the code that makes an error: its file, relative to the package, its line, and the arguments."""

    file: str
    line: int
    arguments: list[ast.expr]


def raised() -> Iterator[Raised]:
    """All such places, by file and line. Arguments that are constants of their module are put in."""
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        known = dict(_constants(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES:
                arguments = [known.get(one.id, one) if isinstance(one, ast.Name) else one for one in node.args]
                yield Raised(file.relative_to(PACKAGE).as_posix(), node.lineno, arguments)


def _constants(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value


def texts(node: ast.expr, value: str = VALUE) -> Iterator[str]:
    """The literal texts that an argument may be, with `value` for each value in an f-string."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else value for part in parts)
        case ast.IfExp():
            yield from (*texts(node.body, value), *texts(node.orelse, value))


def messages() -> dict[str, dict[str, list[str]]]:
    """Remedies by problem, by station: the folder or module of the package that raises it.

    Left out are problems that are nothing but values.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for file, _, arguments in raised():
        station = file.partition("/")[0].removesuffix(".py")
        remedies = list(texts(arguments[1]))
        for problem in texts(arguments[0]):
            if any(character.isalpha() for character in problem):
                known = found.setdefault(station, {}).setdefault(problem, [])
                known += [one for one in remedies if one not in known]
    return {station: dict(sorted(found[station].items(), key=_by_words)) for station in sorted(found)}


def _by_words(item: tuple[str, list[str]]) -> str:
    """Key that sorts by the first word that a reader sees unchanged."""
    return item[0].lstrip(f"{VALUE}-:.,( ").lower()
