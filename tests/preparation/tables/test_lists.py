"""Lists of users name images in their own way; each value reaches the image that is meant, or the list is refused."""

import time
import unicodedata
from pathlib import Path

import openpyxl
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hemafast.errors import HemafastError
from hemafast.preparation.tables import lists
from hemafast.preparation.tables.columns import find_columns
from hemafast.preparation.tables.lists import read_class_map, read_labels, resolve, resolve_split
from hemafast.preparation.tables.read import read_table

LIST = Path("list.csv")
A, B = "A/basophil/x.png", "B/basophil/x.png"
TECOM = {f"Tecom/{n}": (f"Tecom/{n}", f"Tecom/Dataset 1/{n}") for n in ("001.bmp", "002.bmp", "010.bmp", "100.bmp")}

FITTING = {
    "whole": ([A, B], "A/basophil/x.png", A),
    "leading ./": ([A, B], "./A/basophil/x.png", A),
    "leading /": ([A, B], "/A//basophil/./x.png", A),
    "folders before": ([A, B], "/data/blood/B/basophil/x.png", B),
    "Windows": ([A, B], "C:\\data\\A\\basophil\\x.png", A),
    "drive alone": ([A, B], "d:A\\basophil\\x.png", A),
    "spaces": ([A, B], " A/basophil/x.png ", A),
    "another case": ([A, B], "a/Basophil/X.PNG", A),
    "another Unicode form": (["Ä/é/ö.png"], unicodedata.normalize("NFD", "Ä/é/ö.png"), "Ä/é/ö.png"),
    "file name": ([A, "B/basophil/y.png"], "y.png", "B/basophil/y.png"),
    "class and file": ([A, "A/monocyte/x.png"], "monocyte/x.png", "A/monocyte/x.png"),
    "another copy": (
        ["Matek_19/myeloblast/MYO_3241.TIFF"],
        "AML/MYO/MYO_3241.tiff",
        "Matek_19/myeloblast/MYO_3241.TIFF",
    ),
    "the most parts": ([A, "A/monocyte/x.png"], "PBC/monocyte/x.png", "A/monocyte/x.png"),
    "without suffix": ([A, "A/basophil/y.v2.jpg"], "y.v2", "A/basophil/y.v2.jpg"),
    "without suffix, with folder": ([A, B], "B/basophil/x", B),
    "number": (TECOM, "1", "Tecom/001.bmp"),
    "number from a spreadsheet": (TECOM, "10.0", "Tecom/010.bmp"),
    "number with zeros": (TECOM, "0002", "Tecom/002.bmp"),
    "number in a folder": (["A/1/003.bmp", "A/2/003.bmp"], "2/3", "A/2/003.bmp"),
    "zeros that tell apart": (["A/1.bmp", "A/001.bmp"], "001", "A/001.bmp"),
    "the stranger's folder": (TECOM, "Dataset 1/100.bmp", "Tecom/100.bmp"),
    "the stranger's folder and number": (TECOM, "tecom/dataset 1/2", "Tecom/002.bmp"),
    "suffix tells apart": (["A/001.bmp", "A/001.png"], "001.png", "A/001.png"),
    "a name that is a number with a suffix": (["A/12.bmp", "B/12.bmp"], "B/12.0", "B/12.bmp"),
}


@pytest.mark.parametrize("what", FITTING)
def test_a_path_finds_its_image(what):
    images, path, key = FITTING[what]
    found = resolve(LIST, [(path, "P1")], images)
    assert found.values == {key: "P1"}
    assert (found.missing, found.twice) == ((), ())
    assert set(found.unlisted) == set(images) - {key}


STRANGE = {
    "another file": ([A], "A/basophil/y.png"),
    "another suffix": ([A], "A/basophil/x.jpg"),
    "the end of a name": ([A], "basophil/ax.png"),
    "the start of a number": (["A/basophil/BAS_00012.png"], "BAS_0001"),
    "a number within a name": (["A/img001.bmp"], "1"),
    "a number that is none": (TECOM, "1.5"),
    "a folder": ([A], "A/basophil"),
    "empty": ([A], ""),
    "only separators": ([A], "/./"),
    "other folders, several images": ([A, B], "C/basophil/x.png"),
    "other folders, several images without suffix": ([A, B], "C/basophil/x"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_path_of_no_image_is_missing(what):
    images, path = STRANGE[what]
    found = resolve(LIST, [(path, "P1")], images)
    assert (found.values, found.missing, found.unlisted) == ({}, (path,), tuple(images))


AMBIGUOUS = {
    "file name": ([A, B], "x.png"),
    "class and file": ([A, B], "basophil/x.png"),
    "stem": ([A, B], "x"),
    "stem with two suffixes": (["A/001.bmp", "A/001.png"], "001"),
    "number": (["A/1.bmp", "A/001.bmp"], "1"),
    "number from a spreadsheet": (["A/01.bmp", "A/001.bmp"], "1.0"),
    "number in two folders": (["A/1/003.bmp", "A/2/003.bmp"], "3"),
}


@pytest.mark.parametrize("what", AMBIGUOUS)
def test_a_path_of_several_images_is_refused(what):
    images, path = AMBIGUOUS[what]
    with pytest.raises(HemafastError) as caught:
        resolve(LIST, [(path, "P1")], images)
    assert f"list.csv: {path} may be {images[0]} or {images[1]}." in caught.value.problem


def test_an_image_with_two_values_is_refused():
    with pytest.raises(HemafastError, match=r"list.csv: a/x.png is listed as P1 and P2\."):
        resolve(LIST, [("a/x.png", "P1"), ("a/x.png", "P2")], ["a/x.png"])
    with pytest.raises(HemafastError, match=r"x and a/x.png are one image, listed as P1 and P2\."):
        resolve(LIST, [("x", "P1"), ("a/x.png", "P2")], ["a/x.png"])


def test_images_that_are_listed_twice_in_one_way_are_named():
    found = resolve(LIST, [("x.png", "P"), ("a/x.png", "P"), ("a/y.png", "Q")], ["a/x.png", "a/y.png"])
    assert (found.values, found.twice) == ({"a/x.png": "P", "a/y.png": "Q"}, ("a/x.png",))


def test_a_closer_path_of_the_list_wins():
    listed = [("C/basophil/x.png", "far"), ("A/basophil/x.png", "near")]
    found = resolve(LIST, listed, [A])
    assert (found.values, found.missing) == ({A: "near"}, ("C/basophil/x.png",))
    found = resolve(LIST, [("C/blast/x.png", "far"), ("D/basophil/x.png", "near")], [A])
    assert (found.values, found.missing) == ({A: "near"}, ("C/blast/x.png",))


@pytest.mark.parametrize("values", ["PP", "PQ"])
def test_two_paths_of_other_folders_that_are_equally_close_fit_nothing(values):
    listed = [("C/basophil/x.png", values[0]), ("D/basophil/x.png", values[1])]
    found = resolve(LIST, listed, [A])
    assert (found.values, len(found.missing), found.unlisted) == ({}, 2, (A,))


DERIVED = {
    "a resized copy": ("A/MYO/BAS_0001.tiff", "M/basophil/BAS_0001_0_8415_102.tiff", True),
    "a turned copy": ("BA_1234.jpg", "M/basophil/BA_1234-rot90.png", True),
    "the longest name": ("BAS_0001_2.tiff", "M/basophil/BAS_0001_2_x.tiff", True),
    "another number": ("BAS_0001.tiff", "M/basophil/BAS_00012.tiff", False),
    "digits alone": ("1234.tiff", "M/basophil/1234_5.tiff", False),
    "no digit": ("basophil.tiff", "M/basophil/basophil_5.tiff", False),
}
"""By what is tried: a listed path, an image, and whether the image goes with it."""


@pytest.mark.parametrize("what", DERIVED)
def test_an_image_goes_with_the_listed_one_that_it_is_named_after(what):
    path, image, goes = DERIVED[what]
    found = resolve(LIST, [("BAS_0001.jpg", "val"), (path, "test")] if "longest" in what else [(path, "test")], [image])
    assert found.values == ({image: "test"} if goes else {})
    assert found.derived == ((image,) if goes else ())
    assert found.unlisted == (() if goes else (image,))
    assert any("named after" in note for note in found.notes()) == goes


def test_an_image_that_is_listed_itself_is_no_copy():
    found = resolve(
        LIST, [("BAS_0001.tiff", "train"), ("BAS_0001_2.tiff", "test")], ["M/b/BAS_0001.tiff", "M/b/BAS_0001_2.tiff"]
    )
    assert found.values == {"M/b/BAS_0001.tiff": "train", "M/b/BAS_0001_2.tiff": "test"}
    assert found.derived == ()


def test_what_does_not_fit_is_told_in_sentences():
    images = [f"A/b/{n}.png" for n in "abcdefg"]
    listed = [(f"A/b/{n}.png", "P") for n in "abbvwxyz"]
    assert resolve(Path("x/list.csv"), listed, images).notes() == (
        "5 paths in list.csv match no image: A/b/v.png, A/b/w.png, A/b/x.png and 2 more",
        "5 images are not in list.csv: A/b/c.png, A/b/d.png, A/b/e.png and 2 more",
        "1 image is listed more than once in list.csv: A/b/b.png",
    )
    assert resolve(LIST, [("a.png", "P")], ["A/b/a.png"]).notes() == ()


FILES = st.sampled_from(["1.png", "01.png", "001.bmp", "x.png", "X.tif", "x.b.jpg", "2.png", "é.png"])
IMAGES = st.lists(
    st.tuples(st.sampled_from("AB"), st.sampled_from(["b", "m", "1"]), FILES).map("/".join),
    unique_by=lambda name: name.lower(),
    min_size=1,
    max_size=12,
)
WAYS = {
    "whole": lambda name: name,
    "Windows": lambda name: "D:\\cells\\" + name.replace("/", "\\"),
    "upper case": str.upper,
    "other form": lambda name: unicodedata.normalize("NFD", name),
    "without suffix": lambda name: name.rpartition(".")[0],
    "without domain": lambda name: name.partition("/")[2],
    "file": lambda name: name.rpartition("/")[2],
    "stem": lambda name: name.rpartition("/")[2].rpartition(".")[0],
    "number": lambda name: name.rpartition("/")[2].rpartition(".")[0].lstrip("0"),
    "other domain": lambda name: "Q/" + name.partition("/")[2],
}


@settings(max_examples=400, deadline=None)
@given(images=IMAGES, ways=st.lists(st.sampled_from(sorted(WAYS)), min_size=12, max_size=12), data=st.data())
def test_a_path_never_reaches_another_image(images, ways, data):
    """Each image is listed in some way, its own name as value: it gets that name, nothing, or the list is refused."""
    listed = data.draw(st.permutations([(WAYS[way](name), name) for name, way in zip(images, ways, strict=False)]))
    try:
        found = resolve(LIST, listed, {name: (name, f"src/{name}") for name in images})
    except HemafastError:
        return
    assert all(key == value for key, value in found.values.items())
    assert set(found.unlisted) == set(images) - set(found.values)
    assert len(found.values) + len(found.missing) == len(listed)
    plain = {WAYS[way](name) for name, way in zip(images, ways, strict=False) if way in ("whole", "Windows")}
    assert not plain & set(found.missing)


def test_a_list_of_a_real_archive_takes_a_second():
    names = [f"D{n % 3}/c{n % 11}/P{n % 2000:04}_{n:05}.png" for n in range(33_000)]
    images = {name: (name, f"blood/{name}") for name in names}
    for path in (lambda name: name, lambda name: name[3:-4], lambda name: f"Q{name}"):
        started = time.process_time()
        assert len(resolve(LIST, [(path(name), "P") for name in names], images).values) == 33_000
        assert time.process_time() - started < 4  # 1 on a quiet machine


# Columns

HEADERS = {
    "image ID,class label": ("image ID", "class label"),
    "Image,Class": ("Image", "Class"),
    "filename,label,label_id": ("filename", "label"),
    "id,file_name,diagnosis": ("file_name", "diagnosis"),
    "ID,y": ("ID", "y"),
    "img_path,cell_type,patient": ("img_path", "cell_type"),
    "IMAGE.NAME,Cell-Type": ("IMAGE.NAME", "Cell-Type"),
    "name,category,set": ("name", "category"),
    "path,image,target": ("path", "target"),
    ",path,label": ("path", "label"),
}


def _table(tmp_path, text: str, name: str = "table.csv"):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return file


def _columns(tmp_path, text, columns=None):
    file = _table(tmp_path, text)
    return find_columns(file, read_table(file), needed=("path", "label"), columns=columns or {})


@pytest.mark.parametrize("header", HEADERS)
def test_common_names_of_columns_are_known(tmp_path, header):
    cells = ",".join("abcdef"[: header.count(",") + 1])
    found = _columns(tmp_path, f"{header}\n{cells}\n")
    assert (found["path"], found["label"]) == HEADERS[header]


ROLES = {
    "split": ["split", "Subset", "partition"],
    "group": ["patient", "Patient ID", "slide", "subject_id", "case", "donor"],
    "domain": ["domain", "Lab", "site", "hospital", "dataset", "source"],
    "um_per_pixel": ["um_per_px", "mpp", "Pixel size", "um/px", "\u00b5m/px", "\u03bcm per pixel"],
}


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in ROLES.items() for name in names])
def test_further_roles_are_known_by_name(tmp_path, role, name):
    assert _columns(tmp_path, f"path,label,{name}\na,b,c\n")[role] == name


@pytest.mark.parametrize("name", ["dataset", "set", "phase"])
def test_a_column_of_splits_is_told_by_its_values(tmp_path, name):
    assert _columns(tmp_path, f"path,label,{name}\na,b,Train\nb,b,valid\n")["split"] == name
    assert "split" not in _columns(tmp_path, f"path,label,{name}\na,b,Train\nb,b,Lyon\n")


def test_columns_can_be_named_and_left_out(tmp_path):
    text = "scan,kind,site,patient\na.png,x,marrow,P1\n"
    found = _columns(tmp_path, text, {"Path": "SCAN", "label": "kind", "domain": "", "patient": "patient"})
    assert found == {"path": "scan", "label": "kind", "group": "patient"}


def test_a_table_without_header_is_read_if_it_is_plain(tmp_path):
    assert _columns(tmp_path, "a.png,x\nb.png,y\n") == {"path": "column 1", "label": "column 2"}
    assert _columns(tmp_path, "1,a.png\n2,b.png\n") == {"path": "column 2", "label": "column 1"}


BAD_COLUMNS = {
    "no label": ("image,kind\na,b\n", {}, "no column label", "--columns path=image,label=kind."),
    "neither": ("scan no,kind\na,b\n", {}, "no column path and label", "--columns 'path=scan no,label=kind'."),
    "two labels": ("path,label,class\na,b,c\n", {}, "label or class", "--columns label=label."),
    "no such column": ("path,label\na,b\n", {"path": "Image"}, "no column Image; it has path, label", "--columns"),
    "no such role": ("path,label\na,b\n", {"colour": "label"}, "colour is nothing", "path, label, split"),
    "three columns without header": ("a.png,b,c\n", {}, "column 1, column 2, column 3", "path=column 1"),
}


@pytest.mark.parametrize("what", BAD_COLUMNS)
def test_columns_that_are_not_clear_are_refused(tmp_path, what):
    text, columns, problem, remedy = BAD_COLUMNS[what]
    with pytest.raises(HemafastError) as caught:
        _columns(tmp_path, text, columns)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


def test_the_remedy_for_columns_works(tmp_path):
    text = "scan no,kind\na,b\n"
    with pytest.raises(HemafastError) as caught:
        _columns(tmp_path, text)
    pairs = caught.value.remedy.partition("'")[2].partition("'")[0]
    assert _columns(tmp_path, text, dict(pair.split("=") for pair in pairs.split(",")))["path"] == "scan no"


def test_columns_that_say_the_same_are_one(tmp_path):
    assert _columns(tmp_path, "path,label,class\na,b,b\n")["label"] == "label"


# Labels


def test_labels_are_read_with_all_that_the_table_says(tmp_path):
    text = (
        "Image;Class;Patient;Lab;um/px;Split\n1;3.0;7;Lyon;0,1;Training\n2;4;7;Lyon;0.10;dev\n"
        "10;3;;Graz;0,25;\n10;3;;Graz;0,25;\n999;3;;;;\n100;;;;;\n"
    )
    found = read_labels(_table(tmp_path, text), {}, TECOM)
    one, two, ten = "Tecom/001.bmp", "Tecom/002.bmp", "Tecom/010.bmp"
    assert found.label == {one: "3", two: "4", ten: "3"}
    assert found.split == {one: "train", two: "val"}
    assert found.group == {one: "7", two: "7"}
    assert found.domain == {one: "Lyon", two: "Lyon", ten: "Graz"}
    assert found.um_per_pixel == {"Lyon": 0.1, "Graz": 0.25}
    assert (found.fit.missing, found.fit.unlisted, found.fit.twice) == (("999",), ("Tecom/100.bmp",), (ten,))
    assert found.notes() == (
        "table.csv: path is in the column 'Image', label is in the column 'Class', split is in the column 'Split', "
        "group is in the column 'Patient', domain is in the column 'Lab', um_per_pixel is in the column 'um/px'",
        "1 line has no label in table.csv: 100",
        "1 path in table.csv matches no image: 999",
        "1 image is not in table.csv: Tecom/100.bmp",
        "1 image is listed more than once in table.csv: Tecom/010.bmp",
    )


def test_columns_of_other_languages_are_known(tmp_path):
    found = read_labels(_table(tmp_path, "Bild-Nr;Zellart;Pat.-Nr.;Gerät\n1;x;7;A\n2;y;7;A\n"), {}, TECOM)
    assert found.group == {"Tecom/001.bmp": "7", "Tecom/002.bmp": "7"}
    assert found.columns["label"] == "Zellart"


def test_a_column_that_may_name_patients_is_named_where_none_is_taken(tmp_path):
    text = "image,class,who,device,number\n1,x,A,S,1\n2,y,A,S,2\n10,x,B,S,3\n"
    unused = "table.csv: not used: who; a column of patients or slides is named by --columns group=who"
    assert unused in read_labels(_table(tmp_path, text), {}, TECOM).notes()
    assert not any("not used" in note for note in read_labels(_table(tmp_path, text), {"group": "who"}, TECOM).notes())


def test_a_column_of_one_value_is_not_suggested_as_the_classes(tmp_path):
    with pytest.raises(HemafastError, match="--columns path=Foto,label=What"):
        read_labels(_table(tmp_path, "Foto,What,Device\n1.png,x,S\n2.png,y,S\n3.png,x,S\n"), {}, TECOM)


def test_a_scale_without_domains_is_that_of_the_archive(tmp_path):
    found = read_labels(_table(tmp_path, "path,label,mpp\n1,x,0.1\n2,x,0.1\n"), {}, TECOM)
    assert found.um_per_pixel == {"Tecom": 0.1}


def test_labels_may_come_from_a_spreadsheet_or_parquet(tmp_path):
    book = openpyxl.Workbook()
    for row in (["image ID", "class label"], [1, 2], [2, 1.0]):
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    pd.DataFrame({"image ID": [1, 2], "class label": [2, 1]}).to_parquet(tmp_path / "t.parquet")
    for name in ("t.xlsx", "t.parquet"):
        assert read_labels(tmp_path / name, {}, TECOM).label == {"Tecom/001.bmp": "2", "Tecom/002.bmp": "1"}


BAD_LABELS = {
    "two labels": ("path,label\n1,x\n001.bmp,y\n", "1 and 001.bmp are one image, listed as x and y"),
    "two patients": ("path,label,patient\n1,x,P1\n1,x,P2\n", "x, P1 and x, P2"),
    "no path": ("path,label\n1,x\n,y\n", "line 3: path is empty"),
    "one image and nothing else": ("A/x.png", "no column path and label"),
    "no image": ("path,label\nq.png,x\n", "lists no image of the archives: q.png"),
    "no labels": ("path,label\n1,\n2,\n", "the column label is empty in all of its 2 lines"),
    "a strange split": ("path,label,split\n1,x,fold7\n", "001.bmp has the split 'fold7'"),
    "a strange scale": ("path,label,mpp\n1,x,fine\n", "001.bmp has 'fine' um/px"),
    "nanometres": ("path,label,mpp\n1,x,101\n", "001.bmp has '101' um/px"),
    "two scales": ("path,label,mpp\n1,x,0.1\n2,x,0.2\n", "Tecom has images of 0.1 and of 0.2 um/px"),
    "empty": ("", "is empty"),
}


@pytest.mark.parametrize("what", BAD_LABELS)
def test_bad_labels_are_refused_by_name(tmp_path, what):
    text, problem = BAD_LABELS[what]
    with pytest.raises(HemafastError) as caught:
        read_labels(_table(tmp_path, text), {}, TECOM)
    assert "table.csv" in caught.value.problem
    assert problem in caught.value.problem


# Splits

NAMES = pd.Series(["A/b/1.png", "A/b/2.png", "A/b/3.png"])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("path,split\n1.png,train\n2.png,val\n3.png,test\n", "split.csv"),
        ("image,subset\n1,Training\n2,Validation\n3,Testing\n", "x.csv"),
        ("file;set\nq/1.png;tr\nq/2.png;DEV\nq/3.png;holdout\n", "train.csv"),
        ("path,split,fold\nA/b/1.png,train,-1\nA/b/2.png,valid,-1\nA/b/3.png,test,-1\n", "split.csv"),
    ],
)
def test_splits_are_read_from_a_column(tmp_path, text, name):
    split = resolve_split([_table(tmp_path, text, name)], NAMES).values
    assert split == dict(zip(NAMES, ("train", "val", "test"), strict=True))


@pytest.mark.parametrize(
    "names",
    [
        ("lab_acevedo_train.csv", "val-list.tsv", "test.csv"),
        ("TrainImages.txt", "myValidation2.txt", "HOLDOUT.txt"),
        ("training.csv", "dev.csv", "x.test.v1.csv"),
    ],
)
def test_splits_are_read_from_the_names_of_files(tmp_path, names):
    texts = (",path,label\n0,P/b/1.png,x\n", "2.png\n", "filename\n3\n")
    files = [_table(tmp_path, text, name) for text, name in zip(texts, names, strict=True)]
    assert resolve_split(files, NAMES).values == dict(zip(NAMES, ("train", "val", "test"), strict=True))
    assert resolve_split(files, {name: (name, f"z/{name}") for name in NAMES}).values[NAMES[2]] == "test"


BAD_SPLITS = {
    "no word": ({"images.csv": "path\n1.png\n"}, "images.csv has no column split"),
    "two words": ({"train_test.csv": "path\n1.png\n"}, "train_test.csv has no column split"),
    "a word within a word": ({"restrained.csv": "path\n1.png\n"}, "restrained.csv has no column split"),
    "two splits": (
        {"train.csv": "path\n1.png\n", "test.csv": "path\n1.png\n"},
        "train.csv and test.csv: 1.png is listed as train and test",
    ),
    "no path": ({"train.csv": "a,b\n1,2\n"}, "train.csv has no column path; it has a, b"),
    "an empty split": ({"s.csv": "path,split\n1.png,\n"}, "s.csv, line 2: split is empty"),
    "nothing known": ({"train.csv": "path\nq.png\n"}, "train.csv lists no image of the archives: q.png"),
}


@pytest.mark.parametrize("what", BAD_SPLITS)
def test_bad_splits_are_refused_by_name(tmp_path, what):
    texts, problem = BAD_SPLITS[what]
    with pytest.raises(HemafastError) as caught:
        resolve_split([_table(tmp_path, text, name) for name, text in texts.items()], NAMES)
    assert problem in caught.value.problem
    assert "--columns" not in caught.value.remedy  # which only --labels has


def test_what_a_published_split_lists_beyond_is_counted(tmp_path):
    text = ",path,label\n0,PBC/b/1.png,BAS\n1,PBC/b/7.png,BAS\n2,PBC/c/2.png,MON\n"
    found = lists.resolve_split([_table(tmp_path, text, "lab_train.csv")], NAMES)
    assert found.values == {"A/b/1.png": "train", "A/b/2.png": "train"}
    assert (found.missing, found.unlisted) == (("PBC/b/7.png",), ("A/b/3.png",))


def test_patients_may_have_any_common_name(tmp_path):
    text = "Image;Patient ID\n1;07\n2;07\n3;8.0\n"
    assert lists.resolve_values(_table(tmp_path, text), "group", NAMES).values == dict(
        zip(NAMES, ("07", "07", "8"), strict=True)
    )


# Class maps

MAPS = {
    "columns": "from,to\n1,neutrophil\n2,lymphocyte\n3,\n",
    "more columns": "remark,to,from\n,neutrophil,1\n,lymphocyte,2\nleft out,,3\n",
    "no header": "1,neutrophil\n2,lymphocyte\n3,\n",
    "a header": "Number;Class\n1.0;neutrophil\n2.0;lymphocyte\n3.0;\n",
    "listed twice": "1,neutrophil\n1,neutrophil\n2,lymphocyte\n3,\n",
}


@pytest.mark.parametrize("what", MAPS)
def test_a_class_map_is_read(tmp_path, what):
    assert read_class_map(_table(tmp_path, MAPS[what])) == {"1": "neutrophil", "2": "lymphocyte", "3": ""}


def test_a_class_map_may_be_given():
    assert read_class_map({"1": "neutrophil", "3": ""}) == {"1": "neutrophil", "3": ""}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1,neutrophil\n1,lymphocyte\n", "1 becomes both neutrophil and lymphocyte"),
        ("from,to\n,lymphocyte\n", "without a name becomes lymphocyte"),
        ("a,b,c\n1,2,3\n", "no columns from and to"),
        ("neutrophil\n", "no columns from and to"),
    ],
)
def test_a_bad_class_map_is_refused_by_name(tmp_path, text, problem):
    with pytest.raises(HemafastError) as caught:
        read_class_map(_table(tmp_path, text))
    assert "table.csv" in caught.value.problem
    assert problem in caught.value.problem


# Tables that are nearly one

REMEDIES = {
    "columns in another order": (
        "Was;Foto\nbasophil;1.png\nbasophil;2.png\nmonocyte;3.png\n",
        "path=Foto,label=Was",
    ),
    "numbers for names": ("Was;Foto;P\nbasophil;1;A\nbasophil;2;A\nmonocyte;3;A\n", "path=Foto,label=Was"),
    "a title": ("Labels of 2020\n\nfile,class\n1.png,basophil\n", "Separate its columns"),
    "spaces": ("1.png basophil\n2.png monocyte\n", "Separate its columns"),
    "several marks in a line": ("image,baso,mono\n1.png,1,1\n2.png,0,1\n", "Name a column label"),
    "a header alone": ("file,class\n", "Add a line for each image"),
    "JSON": ('[{"file": "1.png", "class": "basophil"}]', "Save it as CSV"),
    "folds for splits": ("file,class,split\n1.png,basophil,0\n", "--columns split="),
}


@pytest.mark.parametrize("what", REMEDIES)
def test_the_remedy_fits_the_table(tmp_path, what):
    text, remedy = REMEDIES[what]
    with pytest.raises(HemafastError) as caught:
        read_labels(_table(tmp_path, text), {}, ["1.png", "2.png", "3.png"])
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("marks", [("1", "0"), ("1.0", "0.0"), ("True", "False"), ("x", "")])
def test_a_column_for_each_class_says_the_class(tmp_path, marks):
    yes, no = marks
    text = f"image,basophil,monocyte,eosinophil\n1.png,{yes},{no},{no}\n2.png,{no},{no},{yes}\n"
    labels = read_labels(_table(tmp_path, text), {}, {"1.png": ("1.png",), "2.png": ("2.png",)})
    assert labels.label == {"1.png": "basophil", "2.png": "eosinophil"}


def test_a_label_beats_columns_with_marks(tmp_path):
    text = "image,class,checked,sharp\n1.png,basophil,1,0\n2.png,monocyte,0,1\n"
    labels = read_labels(_table(tmp_path, text), {}, {"1.png": ("1.png",), "2.png": ("2.png",)})
    assert labels.label == {"1.png": "basophil", "2.png": "monocyte"}
