"""Every file of a source becomes an image of a class or is passed over by name; and no image loses its name."""

import io
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packs import FORMS, pack
from PIL import Image

from hemafast.config import PrepareConfig
from hemafast.errors import HemafastError
from hemafast.preparation.sources.containers import read_files
from hemafast.preparation.sources.gather import LEFT_OUT, NO_CLASS, NOT_LISTED, Gathered, gather
from hemafast.preparation.sources.names import same_file


def _gathered(source: Path, **options) -> Gathered:
    settings = {"source": source, "output": source.parent / "prepared", "classes": "from-data", **options}
    return gather(PrepareConfig(**settings))


def _named(found: Gathered, kind: str) -> list[str]:
    return sorted(one.name for one in found.passed if one.kind == kind)


def _images(encode, *names: str) -> dict[str, bytes]:
    """Files that differ, of 8 x 8 px."""
    pixels = np.random.default_rng(0).integers(0, 255, (len(names), 8, 8, 3), np.uint8)
    return {name: encode(one) for name, one in zip(names, pixels, strict=True)}


# Any tree


FOLDERS = [
    "basophil", "Basophil", "monocyte", "blue", "images", "masks", "train", "TestA", "val", "patient1", "fold_0",
    "LabA", "Größe", "单核", "a b", "__MACOSX", ".hidden",
]  # fmt: skip
FILES = [
    "1.png", "1.bmp", "1.PNG", "1_mask.png", "x", "X.png", "x.png", "x~2.png", "notes.txt", "labels.csv", ".DS_Store",
    "Thumbs.db", "\u00e4.png", "a\u0308.png", "-x.png", "=1.png", "many.dots.in.it.jpg", "a__b.png", "DRAWN.txt",
    "long" * 55 + ".png", "ж" * 120 + ".png",
]  # fmt: skip


def _contents() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(2)]
    pictures.append(Image.fromarray(np.repeat([[0, 255]], 16, 0).repeat(8, 1).astype(np.uint8)))
    written = []
    for picture, kind in zip(pictures, ("PNG", "JPEG", "PNG"), strict=True):
        stream = io.BytesIO()
        picture.save(stream, kind)
        written.append(stream.getvalue())
    names = ("photograph", "other photograph", "mask", "empty", "text", "noise")
    return dict(zip(names, [*written, b"", b"some text\n", bytes(range(256))], strict=True))


CONTENTS = _contents()


PATHS = st.builds(
    lambda folders, file: "/".join([*folders, file]),
    st.lists(st.sampled_from(FOLDERS), max_size=3),
    st.sampled_from(FILES),
)
TREES = st.dictionaries(PATHS, st.sampled_from(list(CONTENTS)), max_size=25)


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


@example({"\u00e4.png": "photograph", "a\u0308.png": "mask"}, "nested.zip", "basophil")
@settings(max_examples=150, deadline=None)
@given(TREES, st.sampled_from([*FORMS, "nested.zip", "nested.tar.gz"]), st.sampled_from(["basophil", "blue"]))
def test_every_file_of_any_tree_is_an_image_or_passed_over_and_no_two_images_share_a_name(tree, form, label):
    files = {name: CONTENTS[content] for name, content in (tree | {f"{label}/anchor.png": "photograph"}).items()}
    with tempfile.TemporaryDirectory() as room:
        source = Path(room, "source")
        if form.startswith("nested"):  # an archive in the folder of a laboratory
            pack(source / "d" / form, files)
            around = "d/nested"
        else:
            pack(source / form, files)
            around = "d"
        found = _gathered(source)
        contents = read_files([member.entry for member in found.members])
    assert len(found.members) + len(found.passed) == len(files)
    names = [member.name for member in found.members]
    assert len({same_file(name) for name in names}) == len(names)
    assert all(len(member.file.encode()) <= 255 and "/" not in member.file for member in found.members)
    written = {_normal(f"{around}/{name}"): data for name, data in files.items()}
    paths = [*(member.source for member in found.members), *(one.name for one in found.passed)]
    assert {path.removeprefix("source/") for path in paths} == set(written)
    for member, data in zip(found.members, contents, strict=True):
        name = member.source.removeprefix("source/")
        twins = {data for path, data in files.items() if _normal(f"{around}/{path}") == name}
        assert data in twins


# What is known of each image


def test_images_know_laboratory_class_split_patient_and_where_they_came_from(tmp_path, encode):
    raabin = ["Train/Basophil/1.png", "TestA/Basophil/1.png", "overview.png"]
    patients = ["wrap/P1/monocyte/1.png", "wrap/P2/monocyte/2.png"]
    pack(tmp_path / "source" / "Raabin.zip", _images(encode, *raabin) | {"README.md": b"text"})
    pack(tmp_path / "source" / "Prague", _images(encode, *patients))
    found = _gathered(tmp_path / "source", classes="challenge")
    fields = [(one.name, one.split, one.group, one.source) for one in found.members]
    assert fields == [
        ("Prague/monocyte/1.png", "", "Prague/P1", "Prague/wrap/P1/monocyte/1.png"),
        ("Prague/monocyte/2.png", "", "Prague/P2", "Prague/wrap/P2/monocyte/2.png"),
        ("Raabin/basophil/TestA__Basophil__1.png", "test", "", "Raabin/TestA/Basophil/1.png"),
        ("Raabin/basophil/Train__Basophil__1.png", "train", "", "Raabin/Train/Basophil/1.png"),
    ]
    assert {name: domain.archive for name, domain in found.domains.items()} == {
        "Prague": "Prague",
        "Raabin": "Raabin.zip",
    }
    assert {one.kind: one.name for one in found.passed} == {NO_CLASS: "Raabin/overview.png", "text": "Raabin/README.md"}
    assert any("stay on one side of the split" in note for note in found.notes)


@pytest.mark.parametrize("form", FORMS)
def test_a_tree_gives_the_same_images_in_every_form(tmp_path, encode, form):
    names = ["LabA/train/basophil/1.png", "LabB/test/basophil/1", "LabB/val/monocyte/P1/2.png", "LabB/plot.png"]
    files = _images(encode, *names) | {"notes.txt": b"text"}
    found = _gathered(pack(tmp_path / "source" / form, files).parent)
    fields = [(one.name, one.split, one.group, one.source) for one in found.members]
    assert fields == [
        ("LabA/basophil/1.png", "train", "", "d/LabA/train/basophil/1.png"),
        ("LabB/basophil/1", "test", "", "d/LabB/test/basophil/1"),
        ("LabB/monocyte/2.png", "val", "LabB/P1", "d/LabB/val/monocyte/P1/2.png"),
    ]
    assert read_files([one.entry for one in found.members]) == [files[one.source[2:]] for one in found.members]
    assert sorted(one.name for one in found.passed) == ["d/LabB/plot.png", "d/notes.txt"]


def test_folders_of_one_name_in_two_trees_are_two_laboratories(tmp_path, encode):
    for tree in ("first", "second"):
        pack(tmp_path / "source" / tree, _images(encode, *(f"{lab}/basophil/1.png" for lab in ("A", "B", tree[0]))))
    assert list(_gathered(tmp_path / "source").domains) == ["f", "first_A", "first_B", "s", "second_A", "second_B"]


def test_a_drawn_laboratory_stays_so_beside_single_files_of_the_name_of_the_source(tmp_path, encode):
    pack(tmp_path / "Lab" / "Lab", _images(encode, "basophil/1.png") | {"DRAWN.txt": b"drawn"})
    pack(tmp_path / "Lab", {"README.md": b"text"})
    (domain,) = _gathered(tmp_path / "Lab").domains.values()
    assert domain.drawn


# Unique names


@pytest.mark.parametrize(
    ("written", "names"),
    [
        (["basophil/a.png", "basophil/b.png"], ["a.png", "b.png"]),
        (["basophil/P1/1.png", "basophil/P2/1.png", "basophil/2.png"],
         ["2.png", "basophil__P1__1.png", "basophil__P2__1.png"]),
        (["basophil/a.png", "basophil/A.png"], ["basophil__A.png", "basophil__a~2.png"]),
        (["basophil/a.png", "Basophil/a.png"], ["Basophil__a.png", "basophil__a~2.png"]),
        (["basophil/\u00e4.png", "basophil/a\u0308.png"], ["basophil__\u00e4.png", "basophil__\u00e4~2.png"]),
        (["basophil/x/a.png", "basophil/y/a.png", "basophil/basophil__x__a.png"],
         ["basophil__x__a.png", "basophil__x__a~2.png", "basophil__y__a.png"]),
        (["basophil/x/1", "basophil/X/1"], ["basophil__X__1", "basophil__x__1~2"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["d", "d.zip", "d.tar"])
def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path, encode, form, written, names):
    files = _images(encode, *written)
    found = _gathered(pack(tmp_path / "source" / form, files | _images(encode, "monocyte/z.png")).parent)
    own = [member for member in found.members if member.label.lower() == "basophil"]
    assert sorted(member.file for member in own) == sorted(names)
    assert len({member.label for member in own}) == 1


def test_long_names_are_cut_and_stay_unique(tmp_path, encode):
    files = _images(encode, *(f"basophil/{'n' * 230}{number}.png" for number in range(3)))
    members = _gathered(pack(tmp_path / "source" / "d.tar", files).parent).members
    assert len({member.file for member in members}) == 3
    assert all(len(member.file) <= 200 and member.file.endswith(".png") for member in members)


# Classes


def test_a_class_map_renames_merges_and_leaves_out(tmp_path, encode):
    names = ["neutrophil/1.png", "Band/2.png", "ig/3.png", "basophil/4.png"]
    source = pack(tmp_path / "source" / "d", _images(encode, *names)).parent
    meant = {"neutrophil": "neutrophil_segmented", "band": "neutrophil_segmented", "ig": ""}
    found = _gathered(source, class_map=meant, classes="challenge")
    assert sorted(member.label for member in found.members) == ["basophil", *["neutrophil_segmented"] * 2]
    assert _named(found, LEFT_OUT) == ["d/ig/3.png"]


def test_names_of_a_class_map_find_the_level_of_the_classes(tmp_path, encode):
    source = pack(tmp_path / "source" / "d", _images(encode, "hem/1/a.png", "hem/2/b.png", "blue/1/c.png")).parent
    found = _gathered(source, class_map={"hem": "basophil", "blue": "monocyte"})
    assert [member.label for member in found.members] == ["basophil", "basophil", "monocyte"]


def test_a_class_map_that_leaves_out_everything_is_refused(tmp_path, encode):
    source = pack(tmp_path / "source" / "d", _images(encode, "ig/1.png", "ig/2.png")).parent
    with pytest.raises(HemafastError, match="leaves out every class"):
        _gathered(source, class_map={"ig": ""})


def test_unknown_classes_are_refused_with_a_command_that_works(tmp_path, encode):
    source = pack(tmp_path / "source" / "d", _images(encode, "neutrophil/1.png", "ig/2.png", "basophil/3.png")).parent
    with pytest.raises(HemafastError) as caught:
        _gathered(source, classes="challenge")
    assert str(source) in caught.value.problem
    assert "neutrophil=neutrophil_segmented" in caught.value.remedy
    found = _gathered(source, classes="challenge", class_map={"ig": "", "neutrophil": "neutrophil_segmented"})
    assert [member.label for member in found.members] == ["basophil", "neutrophil_segmented"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"notes.txt": b"text"}, ["1 text"]),
        ({"1.png": b"x", "2.png": b"x"}, ["2 image outside class folders"]),
        ({"images/1.png": b"x", "labels.csv": b"path,label\n"}, ["1 image outside class folders", "1 table (csv)"]),
        ({".DS_Store": b"x"}, ["1 system file"]),
    ],
)
def test_a_source_without_images_of_a_class_is_refused_with_what_it_holds(tmp_path, files, words):
    source = pack(tmp_path / "source", files)
    with pytest.raises(HemafastError, match="holds no image of a class") as caught:
        _gathered(source)
    assert all(word in caught.value.problem for word in words)
    assert "--labels" in caught.value.remedy


# Tables of labels


def test_a_table_overrides_the_folders_and_images_that_it_lacks_are_named(tmp_path, encode):
    pack(tmp_path / "source" / "Lab.zip", _images(encode, "train/1.png", "test/2.png", "3.png"))
    table = tmp_path / "labels.csv"
    table.write_text("path,label,split,patient\n1.png,basophil,val,P1\n2.png,monocyte,,P2\n", encoding="utf-8")
    found = _gathered(tmp_path / "source", labels=table)
    fields = [(one.name, one.split, one.group.rpartition("/")[2]) for one in found.members]
    assert fields == [("Lab/basophil/1.png", "val", "P1"), ("Lab/monocyte/2.png", "test", "P2")]
    assert _named(found, NOT_LISTED) == ["Lab/3.png"]


def test_laboratories_beside_that_of_a_table_keep_the_classes_of_their_folders(tmp_path, encode):
    pack(tmp_path / "source" / "Table.zip", _images(encode, "1.png", "2.png"))
    pack(tmp_path / "source" / "Folders.zip", _images(encode, "basophil/3.png", "monocyte/4.png", "5.png"))
    pack(tmp_path / "source" / "Other.zip", _images(encode, "pictures/6.png"))
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n1.png,eosinophil\n", encoding="utf-8")
    found = _gathered(tmp_path / "source", labels=table)
    assert [one.name for one in found.members] == [
        "Folders/basophil/3.png",
        "Folders/monocyte/4.png",
        "Table/eosinophil/1.png",
    ]
    assert _named(found, NOT_LISTED) == ["Folders/5.png", "Other/pictures/6.png", "Table/2.png"]
    assert found.notes[-2:] == (
        "3 images are not in labels.csv: Folders/5.png, Other/pictures/6.png, Table/2.png",
        "Folders: no image is in the labels; the folders say the classes",
    )


def test_a_class_that_cannot_be_a_folder_is_refused(tmp_path, encode):
    pack(tmp_path / "source" / "Lab", _images(encode, "1.png"))
    (tmp_path / "labels.csv").write_text("path,label\n1.png,band/stab\n", encoding="utf-8")
    with pytest.raises(HemafastError, match="'band/stab' cannot be the name of a folder"):
        _gathered(tmp_path / "source", labels=tmp_path / "labels.csv")


def test_where_labels_are_ignored_every_image_of_any_folder_is_of_one_class(tmp_path, encode):
    names = ("1.png", "basophil/1.png", "odd name/deep/2.png")
    pack(tmp_path / "source", _images(encode, *names))
    found = _gathered(tmp_path / "source", ignore_labels=True)
    assert {member.label for member in found.members} == {"unlabelled"}
    assert len({member.name for member in found.members}) == len(names)
    assert found.passed == ()


@pytest.mark.parametrize("given", [{"labels": "l.csv"}, {"labels_fix": "f.csv"}, {"class_map": {"a": "b"}}])
def test_labels_that_are_ignored_are_not_given(given):
    with pytest.raises(HemafastError, match="exclude each other"):
        PrepareConfig(ignore_labels=True, **given)
