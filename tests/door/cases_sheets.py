"""Tables of spreadsheets and other programs."""

import datetime
import io
import zipfile
from pathlib import Path

import openpyxl
import pandas as pd
from door import Refused, Taken, refused, taken

BA, MO = "Set/basophil", "Set/monocyte"
CLASSES = ("basophil", "monocyte")


def sheet(rows, *, before=(), title="Sheet1") -> bytes:
    """An xlsx file; `before` are sheets that come before, each a list of rows."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, some in enumerate([*before, rows]):
        page = book.create_sheet(title if number == len(before) else f"Cover{number}")
        for row in some:
            page.append(row)
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


def labelled(room, count=6):
    files = room.cells("images/{}.png", count)
    room.write(files, "Set")
    return [[name, CLASSES[number % 2]] for number, name in enumerate(files)]


@taken
def an_excel_list_beside_the_images(room):
    rows = labelled(room)
    room.write({"Labels (final).xlsx": sheet([["Image Name", "Cell Type"], *rows])}, "Set")
    file = room.source / "Set/Labels (final).xlsx"
    return Taken({BA: 3, MO: 3}, {"Set/Labels (final).xlsx": "Excel table"}, options={"labels": file})


@refused
def an_excel_list_that_nobody_named(room):
    rows = labelled(room)
    room.write({"Labels (final).xlsx": sheet([["Image Name", "Cell Type"], *rows])}, "Set")
    file = Path("Set/Labels (final).xlsx")
    return Refused(("holds no image of a class", f"--labels '{file}'"), then={"labels": file}, commands=1)


@taken
def a_blank_cover_sheet_and_blank_lines(room):
    rows = labelled(room)
    content = sheet([[None, None], ["path ", " label", None], *rows[:3], [None, None], *rows[3:], [None]], before=[[]])
    return Taken({BA: 3, MO: 3}, options={"labels": room.beside("labels.xlsx", content)})


@taken
def numbers_that_excel_made_floats(room):
    room.write(room.cells("{:03d}.png", 6, start=1), "Set")
    rows = [[float(number), float(number % 2)] for number in range(1, 7)]
    options = {
        "labels": room.beside("l.xlsx", sheet([["ID", "Class"], *rows])),
        "class_map": {"0": "basophil", "1": "monocyte"},
    }
    return Taken({BA: 3, MO: 3}, options=options)


@taken
def dates_remarks_and_patients_in_further_columns(room):
    rows = labelled(room, 8)
    full = [
        [*row, datetime.date(2020, 1, 1), None if place else "blurred", place // 2] for place, row in enumerate(rows)
    ]
    content = sheet([["file", "label", "date", "remark", "patient"], *full])

    def together(made):
        rows = made.files.manifest
        pair = rows["source"].str.extract(r"/(\d)\.png")[0].astype(int) // 2
        assert (rows.groupby(pair)["split"].nunique() == 1).all()

    return Taken({BA: 4, MO: 4}, options={"labels": room.beside("labels.xlsx", content)}, also=together)


@taken
def an_xlsx_named_csv(room):
    content = sheet([["path", "label"], *labelled(room)])
    return Taken({BA: 3, MO: 3}, options={"labels": room.beside("labels.csv", content)})


@taken
def a_csv_of_excel_with_a_hint_of_its_separator(room):
    lines = ["sep=;", "path;label", *(";".join(row) for row in labelled(room))]
    return Taken({BA: 3, MO: 3}, options={"labels": room.beside("labels.csv", "\r\n".join(lines))})


@taken
def text_of_excel_in_utf_16(room):
    lines = ["path\tlabel\tBemerkung", *("\t".join([*row, "schön"]) for row in labelled(room))]
    return Taken({BA: 3, MO: 3}, options={"labels": room.beside("labels.txt", "\r\n".join(lines).encode("utf-16"))})


@taken
def a_table_without_a_header(room):
    lines = [" ".join(row) for row in labelled(room)]
    text = "\n".join(line.replace(" ", ",") for line in lines)
    return Taken({BA: 3, MO: 3}, options={"labels": room.beside("labels.csv", text)})


@taken
def a_parquet_table_with_an_index(room):
    stream = io.BytesIO()
    pd.DataFrame(labelled(room), columns=["image", "label"]).set_index("image", drop=False).rename_axis(
        "key"
    ).to_parquet(stream)
    return Taken({BA: 3, MO: 3}, options={"labels": room.beside("labels.parquet", stream.getvalue())})


@refused
def an_old_excel_file(room):
    labelled(room)
    file = room.beside("labels.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    return Refused(("labels.xls is an old (.xls) or encrypted Excel file", "CSV"), {"labels": file})


@refused
def a_word_document(room):
    labelled(room)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    return Refused(
        ("labels.docx is a zip, but no xlsx file",), {"labels": room.beside("labels.docx", stream.getvalue())}
    )


@refused
def a_column_that_comes_twice(room):
    rows = [[*row, row[1]] for row in labelled(room)]
    content = sheet([["path", "label", "label"], *rows])
    return Refused(("two columns named label", "Rename"), {"labels": room.beside("labels.xlsx", content)})


@refused
def formulas_that_were_never_calculated(room):
    rows = [[name, f'=IF(TRUE,"{label}","")'] for name, label in labelled(room)]
    content = sheet([["path", "label"], *rows])
    return Refused(
        ("the column label is empty in all of its 6 lines", "Formulas"), {"labels": room.beside("labels.xlsx", content)}
    )
