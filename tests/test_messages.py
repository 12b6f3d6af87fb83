"""Every error that a user sees names what is wrong, with its value, and what to do about it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import hemafast
from hemafast import errors

PACKAGE = Path(hemafast.__file__).parent
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
WITHOUT_A_VALUE = {
    "A submission needs a class for every image.",
    "A page about several runs needs a file name.",
    "A resumed run already has its settings.",
    "No images are given.",
    "No images are named.",
    "No model is named.",
    "No threshold was chosen for several models together.",
    "Stopped. Finished runs are kept.",
    "Stopped. What was verified is kept.",
    "Stopped; nothing was written.",
    "The batch size has not been decided yet.",
}
"""Problems in which there is no file and no value to name."""
SETTING = re.compile(r"--[a-z]|\w+ = |\b[a-z]+_[a-z_]+\b|\b(groups|zoom|abstain|TrainConfig)\b")


def _calls() -> Iterator[tuple[str, ast.expr, ast.expr]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                assert len(node.args) == 2, f"{file}:{node.lineno} gives no remedy"
                yield f"{file.relative_to(PACKAGE)}:{node.lineno}", *node.args


CALLS = list(_calls())


def _texts(node: ast.expr) -> Iterator[str]:
    """The literal texts that an argument may be; a value in an f-string becomes {}."""
    match node:
        case ast.Constant(value=str()):
            yield node.value
        case ast.JoinedStr():
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        case ast.IfExp():
            yield from (*_texts(node.body), *_texts(node.orelse))


@pytest.mark.parametrize(("where", "problem", "remedy"), CALLS, ids=[where for where, *_ in CALLS])
def test_an_error_names_the_value_and_the_remedy(where, problem, remedy):
    for text in _texts(problem):
        assert text[-1] in ".?})", f"{text!r} is no sentence"
        assert "{}" in text or SETTING.search(text) or text in WITHOUT_A_VALUE, f"{text!r} names no file and no value"
    for text in _texts(remedy):
        assert len(text.split()) > 1 or text == "{}", f"{text!r} does not say what to do"
        assert text[0].isupper() or text.startswith(("`", "{}", "pip install")), f"{text!r} is no sentence"


def test_there_are_errors_to_look_at_and_no_exception_outlives_its_reason():
    texts = {text for _, problem, _ in CALLS for text in _texts(problem)}
    assert len(texts) > 150
    assert texts >= WITHOUT_A_VALUE
