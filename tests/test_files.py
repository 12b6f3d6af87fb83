"""Files are whole or not there, whatever happens while they are written."""

import errno
import os
import resource
import signal
import stat
from contextlib import suppress

import numpy as np
import openpyxl
import pandas as pd
import pytest
import torch
from power_cut import PowerCut, moments, power_cut
from safetensors.torch import load_file

from hemafast.errors import HemafastError
from hemafast.files import csv_bytes, write_table, write_tables, write_tensors, write_whole
from hemafast.preparation.tables.read import read_table


def text(content):
    return lambda part: part.write_text(content, encoding="utf-8")


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "state.json"
    write_whole(file, text("old"))
    return file


def test_a_file_is_made_and_replaced(file):
    assert file.read_text(encoding="utf-8") == "old"
    write_whole(file, text("new"))
    assert file.read_text(encoding="utf-8") == "new"
    assert list(file.parent.iterdir()) == [file]


def test_others_may_read_what_a_writer_made_for_itself(file):
    def private(part):
        part.touch(0o600)

    write_whole(file, private)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError(), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(file, error):
    def half(part):
        part.write_text("ne", encoding="utf-8")
        raise error

    with pytest.raises(type(error)):
        write_whole(file, half)
    assert file.read_text(encoding="utf-8") == "old"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
def test_a_disk_that_fails_leaves_the_old_file_and_no_litter(file, call, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output"):
        write_whole(file, text("new"))
    assert file.read_text(encoding="utf-8") == "old"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "at least 2.5 MB and .* MB are free"), (errno.EDQUOT, "at least 2.5 MB: ")]
)
def test_a_full_disk_names_the_file_and_what_it_needs(file, number, words):
    def half(part):
        part.write_bytes(bytes(2_500_000))
        raise OSError(number, "full")  # as of a write, which knows no name

    with pytest.raises(OSError, match=words) as caught:
        write_whole(file, half)
    assert (caught.value.errno, caught.value.filename) == (number, str(file))


def test_an_error_without_a_name_gets_that_of_the_file(file, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output") as caught:
        write_whole(file, text("new"))
    assert caught.value.filename == str(file)


def test_what_makes_room_is_called_when_the_new_file_is_safe_and_the_old_one_still_there(file, monkeypatch):
    calls = []

    def spied(name, call):
        return lambda *arguments: (calls.append(name), call(*arguments))[1]

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, spied(name, getattr(os, name)))
    seen = lambda: calls.append(file.read_text(encoding="utf-8"))  # noqa: E731 - spelt as the argument it is
    write_whole(file, text("new"), before_replace=seen)
    assert calls == ["fsync", "old", "replace", "fsync"]  # the file, then the folder


def test_a_power_cut_at_any_moment_leaves_the_old_file_or_the_new_one(file):
    left = []
    for moment in moments():
        write_whole(file, text("old"))
        try:
            with power_cut(moment):
                write_whole(file, text("new"))
        except PowerCut:
            left.append(file.read_text(encoding="utf-8"))
        else:
            break
    assert left == ["old"] * 3 + ["new"] * 2  # nothing, flushed, readable | replaced, folder flushed


def test_litter_of_a_power_cut_is_gone_after_the_next_write(file):
    with pytest.raises(PowerCut), power_cut(0):
        write_whole(file, text("new"))
    assert len(list(file.parent.iterdir())) == 2
    write_whole(file, text("newer"))
    assert list(file.parent.iterdir()) == [file]


# Tables


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a,b.png", b'image,share\n"a,b.png",0.5\n'),
        ("é.png", b"\xef\xbb\xbfimage,share\n\xc3\xa9.png,0.5\n"),
        ("\udce9.png", b"\xef\xbb\xbfimage,share\n\\udce9.png,0.5\n"),
    ],
)
def test_a_csv_has_a_mark_for_excel_only_where_it_is_not_ascii(name, data):
    assert csv_bytes(pd.DataFrame({"image": [name], "share": [0.5]}, dtype=object)) == data


TABLE = pd.DataFrame(
    {
        "image": ["=1+1", "@x", "é [b].png", "x\x07.png"],
        "predicted": ["monocyte", "", "+x", "-y"],
        "p": np.array([0.1, np.nan, 1.0, 0.25], dtype=np.float32),
        "count": [1, 2, 3, 4],
    }
)


def test_a_sheet_has_text_and_numbers_and_no_formulas(tmp_path):
    file = tmp_path / "out.XLSX"
    write_table(file, TABLE)
    (sheet,) = openpyxl.load_workbook(file).worksheets
    header, *rows = sheet.iter_rows()
    assert [cell.value for cell in header] == list(TABLE)
    assert [cell.value for cell in rows[0]] == ["=1+1", "monocyte", 0.1, 1]
    assert rows[1][2].value is None
    assert rows[3][0].value == "x\\x07.png"
    assert not [cell for row in rows for cell in row if cell.data_type == "f"]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".xlsx", ".parquet"])
def test_a_table_comes_back_from_every_format(tmp_path, suffix):
    write_table(tmp_path / f"out{suffix}", TABLE.iloc[:3])
    assert read_table(tmp_path / f"out{suffix}").to_dict("list") == {
        "image": ["=1+1", "@x", "é [b].png"],
        "predicted": ["monocyte", "", "+x"],
        "p": ["0.1", "", "1.0" if suffix in (".csv", ".tsv") else "1"]
        if suffix != ".parquet"
        else [str(float(np.float32(0.1))), "", "1"],
        "count": ["1", "2", "3"],
    }


@pytest.mark.parametrize("name", ["out", "out.txt", "out.csv.gz", "."])
def test_a_table_of_another_format_is_refused(tmp_path, name):
    with pytest.raises(HemafastError, match=r"ends in none of \.csv, \.tsv, \.xlsx, \.parquet|is a folder"):
        write_table(tmp_path / name, TABLE)
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_while_it_writes_tensors_leaves_nothing_that_stays(file):
    """safetensors itself writes to a name that it draws, which nobody would ever remove."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # ends the process in the middle of the file
        with suppress(BaseException):
            write_tensors(file, {"weight": torch.ones(1000)}, {})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGXFSZ
    assert {path.name for path in file.parent.iterdir()} == {file.name, f".{file.name}.part"}
    write_tensors(file, {"weight": torch.ones(3)}, {"name": "one"})
    assert load_file(file)["weight"].tolist() == [1, 1, 1]
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".xlsx", ".parquet"])
@pytest.mark.parametrize("names", [["a", "b", "c", "d"], ["a", "b", "c", "Zürich"], ["ö", "b", "c", "d"]])
def test_a_table_in_parts_is_the_table(tmp_path, suffix, names):
    rate = np.array([0.1, np.nan, 0.25, 1.0], np.float32)
    table = pd.DataFrame({"image": names, "error": ["", "", "=1", ""], "rate": rate, "count": [1, 2, 3, 4]})
    whole, parts = tmp_path / f"whole{suffix}", tmp_path / f"parts{suffix}"
    write_table(whole, table)
    write_tables(parts, (table.iloc[start : start + 2] for start in (0, 2)))
    if suffix in (".csv", ".tsv"):
        assert parts.read_bytes() == whole.read_bytes()
    else:
        pd.testing.assert_frame_equal(read_back(parts), read_back(whole))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([whole.name, parts.name])


def read_back(file):
    return pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_excel(file)


def test_parts_that_fail_leave_the_old_table(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("old")

    def parts():
        yield pd.DataFrame({"a": [1]})
        raise HemafastError("The zip was removed.", "Put it back.")

    with pytest.raises(HemafastError, match="removed"):
        write_tables(file, parts())
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    assert file.read_text() == "old"
