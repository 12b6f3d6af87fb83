"""Every error that a user sees names what is wrong, with its value, and what to do about it."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import messages  # a script beside the package, not a part of it

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


RAISED = list(messages.raised())


def _texts(node):
    return messages.texts(node, value="{}")


def test_every_error_has_a_problem_and_a_remedy():
    assert not [one[:2] for one in RAISED if len(one.arguments) != 2]


@pytest.mark.parametrize("one", RAISED, ids=[f"{one.file}:{one.line}" for one in RAISED])
def test_an_error_names_the_value_and_the_remedy(one):
    problem, remedy = one.arguments
    for text in _texts(problem):
        assert text[-1] in ".?})", f"{text!r} is no sentence"
        assert "{}" in text or SETTING.search(text) or text in WITHOUT_A_VALUE, f"{text!r} names no file and no value"
    for text in _texts(remedy):
        assert len(text.split()) > 1 or text == "{}", f"{text!r} does not say what to do"
        assert text[0].isupper() or text.startswith(("`", "{}", "pip install")), f"{text!r} is no sentence"


def test_there_are_errors_to_look_at_and_no_exception_outlives_its_reason():
    texts = {text for one in RAISED for text in _texts(one.arguments[0])}
    assert len(texts) > 150
    assert texts >= WITHOUT_A_VALUE
