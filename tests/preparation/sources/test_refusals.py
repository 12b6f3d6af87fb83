"""What lies together at the top of a source, and the commands that refusals have."""

import json
import shlex
from pathlib import Path

import pytest
from packs import pack
from typer.testing import CliRunner

from hemafast.cli import app
from hemafast.config import PrepareConfig
from hemafast.errors import HemafastError
from hemafast.preparation.sources.gather import Member, gather


def _members(source: Path, **options) -> list[Member]:
    return list(gather(PrepareConfig(source=source, output=source.parent / "out", **options)).members)


def _refused(source: Path, **options) -> str:
    with pytest.raises(HemafastError) as caught:
        _members(source, **options)
    return caught.value.remedy


def _command_in(remedy: str) -> list[str]:
    """The first command of a remedy, in words."""
    return shlex.split(remedy.partition(": hemafast ")[2].partition(" (or keep")[0])


def _follow(remedy: str) -> dict[str, dict]:
    """What the first command of a remedy would take: images by domain, split and class."""
    run = CliRunner().invoke(app, [*_command_in(remedy), "--dry-run", "--json"], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    return {name: domain["splits"] for name, domain in json.loads(run.stdout)["domains"].items()}


def _images(*names: str) -> dict[str, bytes]:
    return {name: name.encode() for name in names}


# Refusals and the commands in them


def test_names_with_commas_and_quotes_may_stand_in_the_command(tmp_path):
    names = ("neutrophil, segmented", 'the "monocyte" cell', "baso=phil")
    source = pack(tmp_path / "Lab", _images(*(f"{name}/1.png" for name in names)))
    remedy = _refused(source)
    assert _command_in(remedy)[-1].count("=") == 4
    assert "neutrophil_segmented" in str(_follow(remedy))


@pytest.mark.parametrize("form", ["Lab", "Lab.zip"])
def test_the_table_that_says_the_classes_is_found_among_others(tmp_path, form):
    rows = "file,class\n1.png,basophil\n2.png,monocyte\n"
    files = {"README.csv": b"about,this\nmuch,text\n", "a/labels.txt": rows.encode(), "z.csv": b"x,y\n1,2\n"}
    source = pack(tmp_path / form, {**_images("img/1.png", "img/2.png"), **files})
    assert list(_follow(_refused(source)).values()) == [{"split to be drawn": {"basophil": 1, "monocyte": 1}}]


def test_a_table_in_an_archive_is_called_by_its_place_there(tmp_path):
    source = pack(tmp_path / "Lab.zip", {**_images("img/1.png"), "more/z.csv": b"x,y\n1,2\n"})
    with pytest.raises(HemafastError, match=r"^more/z\.csv has no column path; it has x, y"):
        _members(source, labels=Path("z.csv"))


def test_without_any_table_the_remedy_names_no_command(tmp_path):
    remedy = _refused(pack(tmp_path / "Lab", _images("1.png", "2.png")))
    assert "folder per class" in remedy
    assert "--labels FILE" in remedy
    assert "hemafast" not in remedy


def test_a_table_is_meant_by_its_path_or_by_its_end_alone(tmp_path):
    tables = {name: f"file,class\n1.png,{label}\n".encode() for name, label in TABLES.items()}
    source = pack(tmp_path / "Lab", {**_images("a/1.png"), **tables})
    assert _members(source, labels=Path("labels.csv"))[0].label == "basophil"
    assert _members(source, labels=Path("old/labels.csv"))[0].label == "monocyte"
    assert _members(source, labels=Path("Lab/labels.csv"))[0].label == "basophil"
    assert "old/more.csv or older/more.csv" in _refused(source, labels=Path("more.csv"))


TABLES = {
    "labels.csv": "basophil",
    "old/labels.csv": "monocyte",
    "old/more.csv": "monocyte",
    "older/more.csv": "monocyte",
}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("map.csv", "there is no file 'map.csv'"),
        ("", "there is no file ''"),
        ("a:b", "there is no file 'a:b'"),
        ("=b", "'=b' is not NAME=VALUE"),
        ("a=b,a=c", "gives a two values"),
    ],
)
def test_a_class_map_that_is_none_is_refused_with_its_form(given, words):
    with pytest.raises(HemafastError) as caught:
        PrepareConfig(class_map=given)
    assert words in caught.value.problem
    assert caught.value.remedy


def test_many_unknown_classes_go_into_a_table(tmp_path):
    remedy = _refused(pack(tmp_path / "Lab", _images(*(f"k{number}/1.png" for number in range(30)))))
    assert "--class-map FILE" in remedy
    assert "k29" not in remedy


# What lies together at the top of a source


@pytest.mark.parametrize("suffix", ["", ".zip"])
@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("PBC_train", "PBC_test"), [("Lab", "test", ""), ("Lab", "train", "")]),
        (("fold_0", "fold_1"), [("Lab", "", ""), ("Lab", "", "")]),
        (("part1", "part2"), [("Lab", "", ""), ("Lab", "", "")]),
        (("patient_01", "patient_02"), [("Lab", "", "Lab/patient_01"), ("Lab", "", "Lab/patient_02")]),
        (("LabA", "LabB"), [("LabA", "", ""), ("LabB", "", "")]),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_splits_parts_and_patients_are_no_laboratories(tmp_path, suffix, folders, expected):
    for folder in folders:
        pack(tmp_path / "Lab" / f"{folder}{suffix}", _images(f"basophil/{folder}.png"))
    members = _members(tmp_path / "Lab")
    assert sorted((one.domain, one.split, one.group) for one in members) == expected


def test_the_folder_of_a_class_is_answered_with_the_one_around_it(tmp_path):
    pack(tmp_path / "Lab", _images("basophil/1.png", "monocyte/1.png"))
    remedy = _refused(tmp_path / "Lab" / "basophil")
    assert _follow(remedy) == {"Lab": {"split to be drawn": {"basophil": 1, "monocyte": 1}}}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cells.rar", b"Rar!\x1a\x07\x00", "Unpack it and name the folder"),
        ("cells", b"PK\x03\x04", "add that to its name"),
        ("labels.csv", b"file,class\n", "--labels"),
        ("cell.png", b"\x89PNG\r\n\x1a\n", "--source"),
    ],
)
def test_a_source_that_is_another_file_is_answered_by_what_it_is(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert words in _refused(tmp_path / name)


def test_what_may_be_an_archive_is_named(tmp_path):
    source = pack(tmp_path / "Lab", {**_images("basophil/1.png"), "more.zip.001": b"PK\x03\x04"})
    assert any("more.zip.001 (zip archive): not opened" in note for note in gather(PrepareConfig(source=source)).notes)
    assert "not opened" in _refused(pack(tmp_path / "Other", {"cells": b"PK\x03\x04"}))


CLUTTER = ["$RECYCLE.BIN/1.png", "@eaDir/basophil/1.png", "basophil/thumbs.db", "~$labels.xlsx", "basophil/1.png~",
           "basophil/1.png:Zone.Identifier", "System Volume Information/x", "__MACOSX/basophil/._1.png"]  # fmt: skip


@pytest.mark.parametrize("name", CLUTTER)
def test_what_systems_leave_is_passed_over(tmp_path, name):
    found = gather(PrepareConfig(source=pack(tmp_path / "Lab", _images("basophil/1.png", name))))
    assert [one.source for one in found.members] == ["Lab/basophil/1.png"]
    assert [one.kind for one in found.passed] == ["system file"]
