"""Numbers with their nouns."""

from pathlib import Path

import pytest

import hemafast
from hemafast.words import counted, listed, plural

PACKAGE = Path(hemafast.__file__).parent


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (2387, "2,387 images")]
)
def test_one_is_one(number, words):
    assert counted(number, "image") == words


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("class", "classes"),
        ("epoch", "epochs"),
        ("batch", "batches"),
        ("copy", "copies"),
        ("nucleus", "nuclei"),
        ("day", "days"),
        ("epoch", "epochs"),
        ("box", "boxes"),
        ("validation image", "validation images"),
    ],
)
def test_plurals_of_the_field(one, many):
    assert plural(one) == many


def test_a_verb_agrees():
    assert counted(1, "image is", "images are") == "1 image is"
    assert counted(3, "image is", "images are") == "3 images are"


@pytest.mark.parametrize(("words", "said"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")])
def test_words_in_a_row(words, said):
    assert listed(words) == said
