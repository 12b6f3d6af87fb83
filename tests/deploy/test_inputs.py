"""Which images a user means, in which order, and what is refused before anything is read."""

import os
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from packs import PACKED, pack

from hemafast.deploy import inputs
from hemafast.deploy.inputs import Some, list_images, read_images
from hemafast.errors import HemafastError
from hemafast.preparation.sources.safety import MAX_IMAGE_BYTES


def names(*paths):
    return [image.name for image in list_images(map(str, paths))]


def touch(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(file.encode(errors="surrogateescape"))
    return folder


def write_zip(path, *members):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as file:
        warnings.simplefilter("ignore")  # zipfile warns of names that occur twice
        for name in members:
            info = zipfile.ZipInfo("x")
            info.filename = name  # as it is; writestr would tidy it up
            file.writestr(info, name.encode())
    return path


def test_a_folder_is_searched_to_the_bottom_in_name_order(tmp_path):
    touch(tmp_path / "cells", "b.png", "a/2.JPG", "a/1.tiff", "c/d/e.bmp", "a.jpeg")
    found = ["a.jpeg", "a/1.tiff", "a/2.JPG", "b.png", "c/d/e.bmp"]
    assert names(tmp_path / "cells") == [f"{tmp_path}/cells/{name}" for name in found]


def test_what_is_no_image_by_its_name_is_passed_over_in_folders_and_zips(tmp_path):
    others = ("notes.txt", "DRAWN.txt", "a", "__MACOSX/._b.png", ".hidden/c.png", "._d.png")
    touch(tmp_path / "cells", "b.png", *others)
    write_zip(tmp_path / "cells.zip", "b.png", *others)
    assert names(tmp_path / "cells") == [f"{tmp_path}/cells/b.png"]
    assert names(tmp_path / "cells.zip") == [f"{tmp_path}/cells.zip/b.png"]


def test_what_leads_to_a_folder_may_be_hidden(tmp_path):
    touch(tmp_path / ".cache" / "cells", "b.png")
    assert len(names(tmp_path / ".cache" / "cells")) == 1


def test_a_file_that_is_named_is_an_image_whatever_its_suffix(tmp_path):
    touch(tmp_path, "notes.txt", ".b.png")
    assert names(tmp_path / "notes.txt", tmp_path / ".b.png") == [f"{tmp_path}/notes.txt", f"{tmp_path}/.b.png"]


def test_a_zip_is_searched_to_the_bottom_in_name_order(tmp_path):
    path = write_zip(tmp_path / "d.ZIP", "b.png", "a/x/2.jpg", "a/1.tif")
    assert names(path) == [f"{path}/{name}" for name in ("a/1.tif", "a/x/2.jpg", "b.png")]


def test_a_glob_matches_files_and_zips_in_name_order(tmp_path, monkeypatch):
    touch(tmp_path / "cells", "b/2.png", "b/1.png", "a/1.png", "a/1.jpg")
    write_zip(tmp_path / "d.zip", "x.png")
    assert names(f"{tmp_path}/cells/**/*.png") == [f"{tmp_path}/cells/{name}.png" for name in ("a/1", "b/1", "b/2")]
    monkeypatch.chdir(tmp_path)
    assert names("cells/?/1.*") == ["cells/a/1.jpg", "cells/a/1.png", "cells/b/1.png"]
    assert names("*.zip") == ["d.zip/x.png"]


def test_what_is_there_is_no_glob_whatever_its_name(tmp_path):
    touch(tmp_path / "cells[1]", "a.png")
    assert names(tmp_path / "cells[1]") == [f"{tmp_path}/cells[1]/a.png"]


def test_things_come_as_they_are_named_and_each_once(tmp_path, monkeypatch):
    monkeypatch.chdir(touch(tmp_path, "cells/a.png", "cells/b.png", "c.png"))
    assert names("c.png", "cells/b.png", "cells", "*.png") == ["c.png", "cells/b.png", "cells/a.png"]
    assert names(".") == ["./c.png", "./cells/a.png", "./cells/b.png"]


def test_one_image_of_a_list_is_that_which_comes_in_its_turn(tmp_path, monkeypatch):
    monkeypatch.chdir(touch(tmp_path, *(f"cells/{number}.png" for number in range(9)), "c.png"))
    write_zip(Path("d.zip"), "y.png", "x.png")
    for named in (["cells", "d.zip", "*.png"], ["c.png", "cells/4.png", "cells", "d.zip", "cells/?.png"]):
        listed = list_images(named)
        turns = list(listed)
        assert [listed[row] for row in range(len(listed))] == turns
        assert [listed[row] for row in np.arange(len(listed))] == turns
        assert [listed[-1], listed[3:11], listed[::-1]] == [turns[-1], turns[3:11], turns[::-1]]
        assert [image.named for image in listed[3:11]] == [image.named for image in turns[3:11]]
        assert list(listed.names()) == [image.name for image in turns]
        rows = np.array([5, 0])
        assert list(Some(listed, rows)) == [turns[5], turns[0]]
        assert list(Some(listed, rows)[1:]) == [turns[0]]


def test_files_that_are_named_one_by_one_are_one_column(tmp_path):
    files = [str(touch(tmp_path, f"{number}.png") / f"{number}.png") for number in range(300)]
    listed = list_images(files)
    assert [image.name for image in listed] == files
    assert len(listed._parts) == 1


def test_no_paths_are_no_images():
    assert [len(list_images([])), list(list_images([]))] == [0, []]


def test_names_that_share_a_hash_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "hash", lambda name: 0, raising=False)
    monkeypatch.chdir(touch(tmp_path, "cells/a.png", "cells/b.png"))
    assert names("cells/b.png", "cells") == ["cells/b.png", "cells/a.png"]


def test_an_image_of_a_folder_takes_a_hundred_bytes(tmp_path):
    """A folder of a million is a hundred megabytes, and not seven hundred."""
    count = 4_000
    touch(tmp_path, "cell.png")
    (tmp_path / "cells").mkdir()
    for number in range(count):
        (tmp_path / "cells" / f"neutrophil_segmented_{number:07d}.png").hardlink_to(tmp_path / "cell.png")
    list_images([str(tmp_path / "cells")])  # what is kept for good
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    listed = list_images([str(tmp_path / "cells")])
    objects, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(listed) == count
    assert (pa.total_allocated_bytes() - before + objects) / count < 110


@pytest.mark.parametrize("name", ["=1+1.png", "+1.png", "-1.png", "@x.png"])
def test_no_name_begins_as_a_formula_and_each_still_leads_to_its_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(touch(tmp_path, name))
    assert names("*.png") == names(name) == [f"./{name}"]
    assert list(read_images(list_images(["*.png"]))) == [name.encode()]


def test_no_name_of_a_zip_begins_as_a_formula(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_zip(Path("=d.zip"), "=x.png")
    assert names("=d.zip") == ["./=d.zip/=x.png"]


@pytest.mark.parametrize(
    ("make", "named", "words"),
    [
        (lambda path: None, "none.png", ["There is no", "none.png"]),
        (lambda path: None, "*.png", ["No file matches", "*.png"]),
        (lambda path: (path / "cells/sub").mkdir(parents=True), "cells/*", ["No file matches", "cells/*"]),
        (lambda path: (path / "cells").mkdir(), "cells", ["cells", "no images"]),
        (lambda path: touch(path, "cells/notes.txt"), "cells", ["cells", "no images, only text (1 file)"]),
        (lambda path: write_zip(path / "d.zip", "notes.txt"), "d.zip", ["d.zip", "no images"]),
        (lambda path: write_zip(path / "d.zip"), "d.zip", ["d.zip", "no images"]),
        (lambda path: touch(path, "d.zip"), "d.zip", ["d.zip", "cannot be listed"]),
        (lambda path: touch(path, "a\nb.png"), "*.png", ["a\\nb.png", "unprintable"]),
        (lambda path: touch(path, "a\x1b[2Jb.png"), ".", ["unprintable"]),
        (lambda path: touch(path, os.fsdecode(b"\xff.png")), "*.png", ["unprintable"]),
    ],
)
def test_what_cannot_be_listed_is_refused_by_name(tmp_path, monkeypatch, make, named, words):
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HemafastError) as refused:
        list_images([named])
    assert all(word in str(refused.value) for word in words)


def test_a_linked_folder_is_not_passed_over_and_a_linked_file_is_read(tmp_path):
    touch(tmp_path, "elsewhere/a.png", "cells/b.png")
    (tmp_path / "cells" / "c.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert list(read_images(list_images([f"{tmp_path}/cells"]))) == [b"cells/b.png", b"elsewhere/a.png"]
    (tmp_path / "cells" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HemafastError, match="more is a symbolic link"):
        names(tmp_path / "cells")


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    touch(tmp_path, "cells/a/1.png", "cells/b/2.png")
    scandir = os.scandir

    def scan(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(HemafastError, match="cells/b cannot be listed"):
        names(tmp_path / "cells")


def as_link(path):
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo("link.png")
        info.external_attr = 0o120777 << 16
        file.writestr(info, b"/etc/passwd")


def as_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros.png", bytes(8 * 2**20))


def as_encrypted(path):
    content = bytearray(write_zip(path, "a.png").read_bytes())
    content[6] |= 1  # general purpose flags in the local header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and in the central directory
    path.write_bytes(content)


HOSTILE = {
    "upwards": lambda path: write_zip(path, "a.png", "../b.png"),
    "line break": lambda path: write_zip(path, "a.png", "b\n.png"),
    "twice": lambda path: write_zip(path, "a.png", "a.png"),
    "nested": lambda path: write_zip(path, "a.png", "b.zip"),
    "link": as_link,
    "bomb": as_bomb,
    "encrypted": as_encrypted,
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_zip_that_cannot_be_trusted_is_refused_as_a_whole(tmp_path, make):
    make(tmp_path / "d.zip")
    with pytest.raises(HemafastError, match=r"d\.zip"):
        names(tmp_path / "d.zip")


def test_the_bytes_are_those_of_each_image_in_turn(tmp_path):
    touch(tmp_path, "a.png", "cells/b.png")
    write_zip(tmp_path / "d.zip", "y.png", "x.png")
    named = [f"{tmp_path}/{name}" for name in ("cells", "d.zip", "a.png")]
    assert list(read_images(list_images(named))) == [b"cells/b.png", b"x.png", b"y.png", b"a.png"]


def test_a_file_that_cannot_be_read_is_its_own_trouble(tmp_path):
    touch(tmp_path, "a.png", "gone.png", "z.png")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)  # a hole: it takes no disk
    os.mkfifo(tmp_path / "pipe.png")
    listed = list_images([f"{tmp_path}/*.png"])
    (tmp_path / "gone.png").unlink()
    first, gone, large, pipe, last = read_images(listed)
    assert (first, last) == (b"a.png", b"z.png")
    assert isinstance(gone, FileNotFoundError)
    assert "256" in str(large)
    assert "regular file" in str(pipe)


def test_a_damaged_member_of_a_zip_is_its_own_trouble(tmp_path):
    path = write_zip(tmp_path / "d.zip", "a.png", "b.png", "c.png")
    content = path.read_bytes()
    at = content.index(b"b.pngb.png") + 5  # its data, stored behind its name
    path.write_bytes(content[:at] + b"B" + content[at + 1 :])
    first, damaged, last = read_images(list_images([str(path)]))
    assert (first, last) == (b"a.png", b"c.png")
    assert isinstance(damaged, OSError)
    assert "b.png is damaged" in str(damaged)


def test_a_member_is_inflated_no_further_than_it_declares(tmp_path):
    path, data = tmp_path / "d.zip", os.urandom(50_001)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", data)
    content, real = path.read_bytes(), struct.pack("<I", len(data))
    assert content.count(real) == 2
    path.write_bytes(content.replace(real, struct.pack("<I", 1_000)))
    (read,) = read_images(list_images([str(path)]))
    assert isinstance(read, OSError)


def test_a_zip_that_has_gone_is_refused(tmp_path):
    listed = list_images([str(write_zip(tmp_path / "d.zip", "a.png"))])
    (tmp_path / "d.zip").unlink()
    with pytest.raises(HemafastError, match=r"d\.zip"):
        list(read_images(listed))


def test_each_zip_is_opened_once(tmp_path, monkeypatch):
    paths = [str(write_zip(tmp_path / f"{name}.zip", "x.png", "y.png")) for name in "ab"]
    opened = []
    reader_of = inputs.reader_of
    monkeypatch.setattr(inputs, "reader_of", lambda path: opened.append(path.name) or reader_of(path))
    assert len(list(read_images(list_images(paths)))) == 4
    assert opened == ["a.zip", "b.zip"]


@pytest.mark.parametrize("form", PACKED)
def test_what_a_folder_and_an_archive_hold_is_read_alike(tmp_path, encode, draw, form):
    image = encode(draw(1))
    files = {"b.png": b"1", "a/c.png": b"2", "a/cell": image, "notes.txt": b"x", ".DS_Store": b"x"}
    listed = list_images([str(pack(tmp_path / form, files)), str(pack(tmp_path / "d", files))])
    names = [image.name.removeprefix(f"{tmp_path}/") for image in listed]
    assert sorted(names) == sorted(
        f"{around}/{name}" for around in (form, "d") for name in ("a/c.png", "a/cell", "b.png")
    )
    assert list(read_images(listed)) == [files[name.partition("/")[2]] for name in names]


@pytest.mark.parametrize("form", PACKED)
def test_an_archive_in_a_folder_is_opened_once_and_read_in_one_go(tmp_path, monkeypatch, form):
    files = {f"{number}.png": bytes([number]) for number in (3, 1, 2)}
    pack(tmp_path / "cells" / form, files)
    touch(tmp_path / "cells", "a.png", "e.png")
    listed, opened, reader_of = list_images([f"{tmp_path}/cells"]), [], inputs.reader_of
    monkeypatch.setattr(inputs, "reader_of", lambda path: opened.append(path.name) or reader_of(path))
    first, *inside, last = read_images(listed)
    assert (first, last) == (b"a.png", b"e.png")
    assert inside == [bytes([number]) for number in ((3, 1, 2) if ".tar." in form else (1, 2, 3))]
    assert opened == ["cells", form, "cells"]


def test_masks_are_left_out_and_a_warning_says_so(tmp_path, encode, draw, caplog):
    mask = np.zeros((60, 64, 3), np.uint8)
    mask[20:40, 20:40] = 255
    pack(tmp_path / "cells", {"1.bmp": encode(draw(1), "BMP"), "1.png": encode(mask)})
    with caplog.at_level("WARNING"):
        assert names(tmp_path / "cells") == [f"{tmp_path}/cells/1.bmp"]
    assert "mask of a cell (1 file)" in caplog.text
