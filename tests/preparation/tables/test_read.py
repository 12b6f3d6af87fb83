"""Tables of users are read as text, whatever wrote them; what cannot be read is named, with a remedy."""

import datetime
import io
import zipfile

import openpyxl
import pandas as pd
import pytest

from hemafast.errors import HemafastError
from hemafast.preparation.tables import read as tables
from hemafast.preparation.tables.read import number_of, read_rows, read_table, whole

PLAIN = {"path": ["a.png", "b c.png"], "label": ["1", "Säure"]}

TEXTS = {
    "comma": "path,label\na.png,1\nb c.png,Säure\n",
    "semicolon": "path;label\na.png;1\nb c.png;Säure\n",
    "tab": "path\tlabel\na.png\t1\nb c.png\tSäure\n",
    "bar": "path|label\na.png|1\nb c.png|Säure\n",
    "no line end": "path,label\na.png,1\nb c.png,Säure",
    "quoted": '"path","label"\n"a.png","1"\n"b c.png","Säure"\n',
    "spaces": "path , label \n a.png, 1\nb c.png ,Säure  \n",
    "spaces before quotes": 'path, "label"\na.png, "1"\nb c.png, "Säure"\n',
    "empty columns": "path,label,,\na.png,1,,\nb c.png,Säure,,\n",
    "empty lines": "\npath,label\n\na.png,1\n,\nb c.png,Säure\n\n\n",
    "comments": "# written by hand, in 2024\n#\npath,label\n# the first\na.png,1\nb c.png,Säure\n",
    "separator hint": "sep=;\npath;label\na.png;1\nb c.png;Säure\n",
}


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("form", TEXTS)
def test_text_is_read_in_any_form(tmp_path, form, encoding, ends):
    file = tmp_path / "labels.csv"
    file.write_bytes(TEXTS[form].replace("\n", ends).encode(encoding))
    assert read_table(file).to_dict("list") == PLAIN


CELLS = {
    "separators within quotes": ('path,label\n"a,b.png","x;y"\n', {"path": ["a,b.png"], "label": ["x;y"]}),
    "quotes within quotes": ('path,label\n"a""b.png",x\n', {"path": ['a"b.png'], "label": ["x"]}),
    "inches": ('path,label\na.png,5" lens\n', {"path": ["a.png"], "label": ['5" lens']}),
    "line breaks within quotes": ('path,remark\na.png,"one\ntwo"\n', {"path": ["a.png"], "remark": ["one\ntwo"]}),
    "decimal commas": (
        "path;um/px\na.png;0,1\nb.png;0,2\nc.png;0,3\n",
        {"path": ["a.png", "b.png", "c.png"], "um/px": ["0,1", "0,2", "0,3"]},
    ),
    "commas in paths": ("path;label\na,b.png;x\nc,d.png;y\n", {"path": ["a,b.png", "c,d.png"], "label": ["x", "y"]}),
    "an unnamed index": (",path\n0,a.png\n1,b.png\n", {"column 1": ["0", "1"], "path": ["a.png", "b.png"]}),
    "short lines": (
        "path,label,split\na.png,x\nb.png\n",
        {"path": ["a.png", "b.png"], "label": ["x", ""], "split": ["", ""]},
    ),
    "no header": ("a.png,x\nb.png,y\n", {"column 1": ["a.png", "b.png"], "column 2": ["x", "y"]}),
    "one column": ("path\na, b.png\n", {"path": ["a, b.png"]}),
    "words that others take for missing": (
        "path,label\na.png,NA\nb.png,nan\n",
        {"path": ["a.png", "b.png"], "label": ["NA", "nan"]},
    ),
    "numbers as they are written": ("path,label\n001,1.0\n", {"path": ["001"], "label": ["1.0"]}),
    "files named like comments": ("path,label\n#1.png,x\n", {"path": ["#1.png"], "label": ["x"]}),
    "an index named #": ("#,path\n1,a.png\n", {"#": ["1"], "path": ["a.png"]}),
    "hard spaces": ("path,label\na.png\xa0,x\u2003\n", {"path": ["a.png"], "label": ["x"]}),
}


@pytest.mark.parametrize("what", CELLS)
def test_cells_keep_their_text(tmp_path, what):
    text, expected = CELLS[what]
    (tmp_path / "t.csv").write_text(text, encoding="utf-8", newline="")
    assert read_table(tmp_path / "t.csv").to_dict("list") == expected


def test_the_index_holds_the_lines_of_the_file(tmp_path):
    (tmp_path / "t.csv").write_text('# c\npath,label\n\na.png,"x\ny"\nb.png,y\n', encoding="utf-8")
    assert read_table(tmp_path / "t.csv").index.tolist() == [4, 6]


def _book(*sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets):
        sheet = book.create_sheet(f"Sheet {number}")
        for row in rows:
            sheet.append(row)
    written = io.BytesIO()
    book.save(written)
    return written.getvalue()


@pytest.mark.parametrize("suffix", [".xlsx", ".csv", ""])
def test_a_workbook_is_told_by_its_content(tmp_path, suffix):
    rows = [["path", "label", "um/px", None], [], [1, 2.0, 0.25], [" b.png ", "Säure", None], ["c", True, None]]
    file = tmp_path / f"t{suffix}"
    file.write_bytes(_book([], rows, [["other"], ["x"]]))
    assert read_table(file).to_dict("list") == {
        "path": ["1", "b.png", "c"],
        "label": ["2", "Säure", "True"],
        "um/px": ["0.25", "", ""],
    }
    assert read_table(file).index.tolist() == [3, 4, 5]


def _edited(data: bytes, **changes: str) -> bytes:
    """A workbook whose first sheet has other XML: `new` for `old`, several of them with | between."""
    with zipfile.ZipFile(io.BytesIO(data)) as book:
        members = {name: book.read(name) for name in book.namelist()}
    sheet = members["xl/worksheets/sheet1.xml"].decode()
    for old, new in zip(changes["old"].split("|"), changes["new"].split("|"), strict=True):
        assert old in sheet
        sheet = sheet.replace(old, new)
    return _zip(**members | {"xl/worksheets/sheet1.xml": sheet.encode()})


def test_formulas_count_by_their_value(tmp_path):
    data = _book([["path", "label"], ["a.png", '="x"&"y"']])
    assert read_rows_of(tmp_path, data)[2] == ["a.png"]  # no program has computed it yet
    computed = _edited(data, old='<c r="B2">|<v />', new='<c r="B2" t="str">|<v>xy</v>')
    assert read_rows_of(tmp_path, computed)[2] == ["a.png", "xy"]


def read_rows_of(tmp_path, data: bytes):
    (tmp_path / "t.xlsx").write_bytes(data)
    return read_rows(tmp_path / "t.xlsx")


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_parquet_is_told_by_its_content(tmp_path, suffix):
    frame = pd.DataFrame(
        {
            "path": ["a.png", "b.png"],
            "label": pd.array([1, None], dtype="Float64"),
            "kind": pd.Categorical(["x", "y"]),
            "day": [datetime.date(2024, 1, 2)] * 2,
            "box": [[1, 2], [3, 4]],
        }
    )
    frame.to_parquet(tmp_path / f"t{suffix}", index=False)
    assert read_table(tmp_path / f"t{suffix}").to_dict("list") == {
        "path": ["a.png", "b.png"],
        "label": ["1", ""],
        "kind": ["x", "y"],
        "day": ["2024-01-02", "2024-01-02"],
    }


def _zip(**members: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return written.getvalue()


def _parquet() -> bytes:
    written = io.BytesIO()
    pd.DataFrame({"path": ["a"] * 50}).to_parquet(written)
    return written.getvalue()


BAD = {
    "empty": (b"", "is empty"),
    "blank": (b"\n , \n\n", "is empty"),
    "comments only": (b"# a\n# b\n", "is empty"),
    "binary": (bytes(range(256)) * 4, "no text"),
    "UTF-16 without a mark": ("path,label\n".encode("utf-16-le"), "no text"),
    "UTF-32": ("path,label\n".encode("utf-32"), "no text"),
    "no encoding": (b"path\n\x81\x8d\n", "no text"),
    "open quotes": (b'path,label\n"a.png,x\nb.png,y\n', "line 2"),
    "text after quotes": (b'path,label\n"a.png"b,x\n', "line 2"),
    "a huge cell": (b"path,label\n" + b"a" * 200_000 + b",x\n", "line 2"),
    "a long line": (b"path,label\na.png,x\nb.png,x,y\n", "line 3 has 3 cells, but 2"),
    "two columns of one name": (b"path,label,label\na,b,c\n", "two columns named label"),
    "old Excel": (b"\xd0\xcf\x11\xe0" + bytes(600), "old (.xls) or encrypted"),
    "a zip": (_zip(**{"a.png": b"x"}), "no xlsx"),
    "a broken zip": (b"PK\x03\x04" + bytes(100), "damaged xlsx"),
    "half a workbook": (_book([["path"], ["a"]])[:-200], "damaged xlsx"),
    "a workbook without sheets": (_zip(**{"[Content_Types].xml": b"<x/>"}), "damaged xlsx"),
    "an empty workbook": (_book([]), "is empty"),
    "a bomb": (_zip(**{"[Content_Types].xml": b"<x/>", "b": bytes(257 * 2**20)}), "unpacks to more than"),
    "broken parquet": (b"PAR1" + bytes(100) + b"PAR1", "damaged parquet"),
    "half parquet": (_parquet()[:-30], "damaged parquet"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_table_is_refused_by_name(tmp_path, what):
    data, said = BAD[what]
    file = tmp_path / "labels of users.csv"
    file.write_bytes(data)
    with pytest.raises(HemafastError) as caught:
        read_table(file)
    assert str(file) in caught.value.problem
    assert said in caught.value.problem
    assert caught.value.remedy


def test_a_table_that_is_missing_or_a_folder_is_refused(tmp_path):
    with pytest.raises(HemafastError, match="No such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(HemafastError, match=r"cannot be read \(Is a directory"):
        read_table(tmp_path)


def test_cells_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_CELLS", 20)
    (tmp_path / "wide.csv").write_text("a,b\n" * 3 + ",".join("abcdef") + "\n", encoding="utf-8")
    (tmp_path / "long.csv").write_text("a\n" * 25, encoding="utf-8")
    for name in ("wide.csv", "long.csv"):
        with pytest.raises(HemafastError, match="more than 20 cells"):
            read_rows(tmp_path / name)
    with pytest.raises(HemafastError, match="more than 20 cells"):
        read_rows_of(tmp_path, _book([["path", "label"]] * 20))


def test_a_cell_far_below_is_refused_soon(tmp_path):
    data = _edited(_book([["path"], ["a.png"]]), old='<row r="2"|r="A2"', new='<row r="99999999999"|r="A99999999999"')
    with pytest.raises(HemafastError, match="1,048,576 lines"):
        read_rows_of(tmp_path, data)


def test_a_cell_far_to_the_right_is_read(tmp_path):
    data = _edited(_book([["path", "x"]]), old='r="B1"', new='r="XFD1"')
    assert len(read_rows_of(tmp_path, data)[1]) == 16_384


@pytest.mark.parametrize(
    ("text", "number"), [("0,1", 0.1), ("0.1", 0.1), ("1", 1.0), ("-2,5", -2.5), (".5", 0.5), ("1e-1", 0.1)]
)
def test_numbers_have_a_point_or_a_comma(text, number):
    assert number_of(text) == number


@pytest.mark.parametrize("text", ["", "x", "1.234,5", "1,234,5", "nan", "inf", "1e999", "0.1 um", "1_0", ",", "٣"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ValueError):
        number_of(text)


@pytest.mark.parametrize(
    ("text", "same"), [("1.0", "1"), ("001.0", "001"), ("-3.00", "-3"), ("1.5", "1.5"), ("a1.0", "a1.0"), ("", "")]
)
def test_whole_numbers_lose_the_point_that_spreadsheets_add(text, same):
    assert whole(text) == same
