"""One rule for names: what is one path, one class, one file; and in which encoding names were written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hemafast.preparation.sources.names import choose_encoding, fold, one_path, plain_name, same_file, words_of


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("a/b.png", "a/b.png"),
        ("./a//b.png", "a/b.png"),
        ("/a/b.png/", "a/b.png"),
        ("a\\b.png", "a/b.png"),
        ("C:\\a\\b.png", "a/b.png"),
        ("d:a/b.png", "a/b.png"),
        ("\\\\server\\a\\b.png", "server/a/b.png"),
        ("a/./b.png", "a/b.png"),
        ("a/../b.png", "a/../b.png"),
        ("a\u0308.png", "\u00e4.png"),
        (".", ""),
        ("a:b.png", "b.png"),
        ("ab:c.png", "ab:c.png"),
    ],
)
def test_paths_of_any_system_become_plain(name, plain):
    assert plain_name(name) == plain


@given(st.text())
def test_a_plain_name_is_plain_already(name):
    plain = plain_name(name)
    assert "\\" not in plain
    assert "" not in plain.split("/") or plain == ""
    assert fold(fold(name)) == fold(name)
    assert same_file(same_file(name)) == same_file(name)


def test_one_path_keeps_the_unicode_form():
    assert one_path("/a\u0308//b") == "a\u0308/b"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Basophil", "basophil"),
        ("neutrophil_segmented", "Neutrophil  segmented"),
        ("neutrophil-segmented", "NEUTROPHIL.SEGMENTED "),
        ("\u00c4rzte", "a\u0308rzte"),
        ("gro\u00df", "GROSS"),
    ],
)
def test_one_class_may_be_spelled_in_several_ways(one, other):
    assert fold(one) == fold(other)


def test_other_classes_stay_apart():
    assert len({fold(name) for name in ("band", "bands", "b and", "bánd")}) == 4


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a/B.png", "A/b.PNG", True),
        ("\u00e4.png", "A\u0308.png", True),
        ("a b.png", "a_b.png", False),
        ("a.png", "b.png", False),
    ],
)
def test_files_that_some_file_system_cannot_tell_apart(one, other, same):
    assert (same_file(one) == same_file(other)) is same


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("TestA_set-2", ["test", "a", "set", "2"]),
        ("BA_12345", ["ba", "12345"]),
        ("001mask", ["001", "mask"]),
        ("PBCTrain", ["pbc", "train"]),
        ("", []),
    ],
)
def test_words_of_a_name(name, words):
    assert words_of(name) == words


@pytest.mark.parametrize(
    ("names", "encoding"),
    [
        (["plain.png"], "utf-8"),
        (["Größe.png"], "utf-8"),
        (["嗜碱性粒细胞.png"], "utf-8"),
        ([], "utf-8"),
    ],
)
def test_names_that_may_be_utf8_are(names, encoding):
    assert choose_encoding([name.encode() for name in names]) == encoding


@pytest.mark.parametrize(
    ("encodings", "names"),
    [
        (("cp437", "cp850"), ["Größe", "Lymphozyten groß", "Übersicht"]),
        (("cp437", "cp850"), ["Éosinophile", "cellule géante"]),
        (("cp1252",), ["Größe", "Übersicht", "Höhe"]),
        (("gb2312",), ["嗜碱性粒细胞", "单核细胞"]),
        (("cp866",), ["моноцит", "базофил"]),
    ],
)
def test_other_names_are_read_so_that_they_make_words(encodings, names):
    raw = [name.encode(encodings[-1]) for name in names]
    found = choose_encoding(raw)
    assert [name.decode(found) for name in raw] == names


@given(st.lists(st.binary(min_size=1, max_size=12), max_size=5))
def test_any_names_are_read_in_some_encoding(names):
    encoding = choose_encoding(names)
    assert [name.decode(encoding).encode(encoding) for name in names] == names
