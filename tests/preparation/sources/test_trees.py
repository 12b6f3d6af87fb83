"""What lies in a source: each folder or archive is a tree, and parts of one data set are one tree."""

import os

import pytest
from packs import PACKED, pack

from hemafast.errors import HemafastError
from hemafast.preparation.schema import INFO, MANIFEST
from hemafast.preparation.sources.survey import SYSTEM_FILE
from hemafast.preparation.sources.trees import find_trees, list_archives

LAB = {"basophil/a.png": b"x", "monocyte/b.png": b"x"}


def _trees(source, **options) -> dict[str, list[str]]:
    """The images of each tree, by its name."""
    trees = find_trees(source, source.parent / "prepared", **options)
    return {tree.name: sorted(entry.name for entry in tree.images) for tree in trees}


def _passed(source) -> set[tuple[str, str]]:
    trees = find_trees(source, source.parent / "prepared")
    return {(one.kind, f"{tree.name}/{one.name}") for tree in trees for one in tree.passed}


def _refusal(source, *words: str, output=None) -> HemafastError:
    with pytest.raises(HemafastError) as caught:
        find_trees(source, output or source.parent / "prepared")
    assert all(word in caught.value.problem for word in words), caught.value.problem
    assert caught.value.remedy
    return caught.value


SOURCES = {
    "laboratories": (
        {"Barcelona": LAB, "Munich.zip": LAB, "Prague.tar.gz": LAB},
        dict.fromkeys(("Barcelona", "Munich", "Prague"), sorted(LAB)),
    ),
    "class folders": (
        {"basophil": {"a.png": b"x"}, "monocyte": {"b.png": b"x"}},
        {"source": ["basophil/a.png", "monocyte/b.png"]},
    ),
    "archives of one class each": (
        {"basophil.zip": {"a.png": b"x"}, "monocyte.tar.xz": {"monocyte/b.png": b"x"}},
        {"source": ["basophil/a.png", "monocyte/b.png"]},
    ),
    "unknown classes": (
        {"hem": {"a.png": b"x"}, "blue": {"b.png": b"x"}},
        {"source": ["blue/b.png", "hem/a.png"]},
    ),
    "classes with patients": (
        {"basophil": {"P1/a.png": b"x"}, "monocyte": {"P2/b.png": b"x"}},
        {"source": ["basophil/P1/a.png", "monocyte/P2/b.png"]},
    ),
    "splits": (
        {"train": LAB, "TestA.zip": LAB},
        {"source": [f"{split}/{name}" for split in ("TestA", "train") for name in sorted(LAB)]},
    ),
    "a laboratory beside single files": (
        {"Barcelona": LAB, "stray.png": b"x", "README.md": b"x"},
        {"Barcelona": sorted(LAB), "source": ["stray.png"]},
    ),
    "a laboratory in a folder of its name": (
        {"Barcelona.zip": {f"Barcelona/{name}": data for name, data in LAB.items()}},
        {"Barcelona": sorted(LAB)},
    ),
    "a laboratory of archives": (
        {"Barcelona": {"notes.txt": b"x"}, "Barcelona/basophil.zip": {"a.png": b"x"}},
        {"Barcelona": ["basophil/a.png"]},
    ),
}


@pytest.mark.parametrize(("layout", "expected"), SOURCES.values(), ids=SOURCES)
def test_a_source_is_divided_into_trees(tmp_path, layout, expected):
    source = tmp_path / "source"
    source.mkdir()
    for name, content in layout.items():
        if isinstance(content, bytes):
            (source / name).write_bytes(content)
        else:
            pack(source / name, content)
    assert _trees(source) == expected


@pytest.mark.parametrize("form", PACKED)
def test_a_source_may_be_one_archive(tmp_path, form):
    assert _trees(pack(tmp_path / form, LAB)) == {"d": sorted(LAB)}


def test_with_a_table_of_labels_folders_of_images_are_trees(tmp_path):
    for name in ("Barcelona", "Munich"):
        pack(tmp_path / "source" / name, {"1.png": b"x"})
    assert _trees(tmp_path / "source") == {"source": ["Barcelona/1.png", "Munich/1.png"]}
    assert _trees(tmp_path / "source", labelled=True) == {"Barcelona": ["1.png"], "Munich": ["1.png"]}


def test_a_tree_is_named_after_its_source_also_where_that_is_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(pack(tmp_path / "cells", LAB))
    (tree,) = find_trees(tmp_path.joinpath("cells").relative_to(tmp_path.joinpath("cells")), tmp_path / "prepared")
    assert tree.name == "cells"


def test_what_a_system_left_is_passed_over_whatever_it_is(tmp_path):
    source = pack(tmp_path / "source", {"Barcelona/basophil/a.png": b"x", "Barcelona/monocyte/b.png": b"x"})
    pack(source, {".hidden/c.png": b"x", ".DS_Store": b"x", "__MACOSX/d/._e.png": b"x", "Thumbs.db": b"x"})
    pack(source / ".d.zip", LAB)
    os.mkfifo(source / ".pipe")
    assert _trees(source)["Barcelona"] == ["basophil/a.png", "monocyte/b.png"]
    left = (".DS_Store", ".d.zip", ".hidden/c.png", ".pipe", "Thumbs.db", "__MACOSX/d/._e.png")
    assert _passed(source) == {(SYSTEM_FILE, f"source/{name}") for name in left}


def test_every_other_file_is_passed_over_as_what_it_is(tmp_path):
    source = pack(tmp_path / "source", {"README.md": b"text", "empty": b""})
    pack(source / "Barcelona.zip", LAB | {"labels.csv": b"path,label\n"})
    pack(source / "basophil", {"a.png": b"x", "notes.txt": b"text"})
    assert _passed(source) == {
        ("text", "source/README.md"),
        ("empty file", "source/empty"),
        ("table (csv)", "Barcelona/labels.csv"),
        ("text", "source/basophil/notes.txt"),
    }


@pytest.mark.parametrize(
    ("marker", "drawn"),
    [
        ("DRAWN.txt", True),
        ("basophil/DRAWN.txt", False),
        ("NOT DRAWN.txt", False),
        ("drawn.md", False),
    ],
)
@pytest.mark.parametrize("name", ["d", "d.zip", "d.tar.zst"])
def test_a_marker_says_that_all_cells_below_are_drawn(tmp_path, name, marker, drawn):
    pack(tmp_path / "source" / name, LAB | {marker: b"drawn"})
    (tree,) = find_trees(tmp_path / "source", tmp_path / "prepared")
    assert tree.drawn is drawn


def test_a_marker_may_lie_in_a_folder_around_all_cells(tmp_path):
    pack(tmp_path / "source" / "d", {f"wrap/{name}": data for name, data in LAB.items()} | {"wrap/DRAWN.txt": b"x"})
    (tree,) = find_trees(tmp_path / "source", tmp_path / "prepared")
    assert tree.drawn


def test_prepared_data_sets_and_the_output_are_no_trees(tmp_path, prepared):
    source = pack(tmp_path / "source", {f"Barcelona/{name}": data for name, data in LAB.items()})
    pack(source / "earlier", {INFO: (prepared.folder / INFO).read_bytes(), MANIFEST: b"x", "images/x.png": b"x"})
    pack(source, {"out/anything.png": b"x", f".out-new-{'0' * 16}/x.png": b"x", ".out.lock": b""})
    trees = find_trees(source, source / "out")
    assert [(tree.name, len(tree.passed)) for tree in trees] == [("Barcelona", 0)]


def test_an_output_named_another_way_is_still_no_tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = pack(tmp_path / "source", {f"Barcelona/{name}": data for name, data in LAB.items()} | {"out/x": b""})
    assert [tree.name for tree in find_trees(source, source / ".." / "source" / "out")] == ["Barcelona"]


def test_archives_are_listed_in_name_order(tmp_path):
    pack(tmp_path, {"c.zip": b"", "a.ZIP": b"", "b/x": b"", "d.tar.gz": b"", "README.md": b"", ".e.zip": b""})
    assert [path.name for path in list_archives(tmp_path)] == ["a.ZIP", "b", "c.zip", "d.tar.gz"]


@pytest.mark.parametrize("file", ["none", "none.zip"])
def test_a_missing_source_is_refused(tmp_path, file):
    _refusal(tmp_path / file, str(tmp_path / file), "neither a folder nor an archive")


def test_a_file_that_is_no_archive_is_no_source(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    _refusal(tmp_path / "a.png", "neither a folder nor an archive")


def test_an_empty_source_is_refused(tmp_path):
    (tmp_path / "source").mkdir()
    assert "hemafast demo" in _refusal(tmp_path / "source", "is empty").remedy


def test_a_prepared_data_set_is_no_source(prepared):
    assert "--data" in _refusal(prepared.folder, "is a prepared data set already").remedy


@pytest.mark.parametrize("twin", ["Barcelona.zip", "barcelona.tar.gz", "BARCELONA"])
def test_two_trees_of_one_name_are_refused(tmp_path, twin):
    pack(tmp_path / "source" / "Barcelona", LAB)
    pack(tmp_path / "source" / twin, LAB)
    _refusal(tmp_path / "source", "Barcelona", twin)


def test_a_tree_may_have_the_name_of_the_source_beside_single_files(tmp_path):
    source = pack(tmp_path / "Barcelona", {f"Barcelona/{name}": data for name, data in LAB.items()} | {"README": b"x"})
    assert {tree.name for tree in find_trees(source, tmp_path / "out")} == {"Barcelona"}


def test_an_output_within_a_tree_is_refused(tmp_path):
    source = pack(tmp_path / "source", {f"Barcelona/{name}": data for name, data in LAB.items()})
    _refusal(source, "lies within", output=source / "Barcelona" / "prepared")


def test_a_link_to_nothing_is_refused(tmp_path):
    source = pack(tmp_path / "source", {"a.png": b"x"})
    (source / "b").symlink_to(tmp_path / "none")
    _refusal(source, "is a link to nothing")


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(pack(tmp_path / "source", {"a.png": b"x"}) / "b.png")
    _refusal(tmp_path / "source", "b.png is not a regular file")
