"""Listing archives: what counts as an image, what is passed over, and what is refused."""

import os
import random
import re
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import pytest

from hemafast.config import PrepareConfig
from hemafast.errors import HemafastError
from hemafast.preparation.archive import entry_reader, find_archives, open_archive
from hemafast.preparation.build import prepare
from hemafast.preparation.safety import MAX_IMAGE_BYTES

COUNTS = {"basophil": 3, "monocyte": 2}


def _zip(path: Path, *names: str) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as file:
        warnings.simplefilter("ignore")  # zipfile warns of names that occur twice
        for name in names:
            # A ZipInfo takes every name as it is; writestr(str) would tidy it up.
            info = zipfile.ZipInfo("x")
            info.filename = name
            file.writestr(info, name.encode())
    return path


def _refusal(call, *named: str) -> HemafastError:
    """The error that `call` raises, which names everything in `named` and a remedy."""
    with pytest.raises(HemafastError) as caught:
        call()
    assert all(name in caught.value.problem for name in named), caught.value.problem
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("name", ["Domain.zip", "Domain"])
@pytest.mark.parametrize("top", ["", "Domain/"])
def test_class_folders_are_found_at_the_root_and_in_one_top_folder(tmp_path, make_archive, name, top):
    archive = open_archive(make_archive(tmp_path / name, COUNTS, top=top))
    assert archive.domain == "Domain"
    assert archive.classes == set(COUNTS)
    assert [(m.label, m.file) for m in archive.members] == [
        ("basophil", "BAS_000.png"),
        ("basophil", "BAS_001.png"),
        ("basophil", "BAS_002.png"),
        ("monocyte", "MON_000.png"),
        ("monocyte", "MON_001.png"),
    ]
    assert not archive.drawn
    assert archive.ignored == ()


@pytest.mark.parametrize("name", ["Domain.zip", "Domain"])
@pytest.mark.parametrize("top", ["", "Domain/"])
def test_the_reader_gives_the_bytes_of_each_member(tmp_path, make_archive, name, top):
    extra = {f"{top}basophil/a.jpg": b"first", f"{top}monocyte/a.jpg": b"second"}
    archive = open_archive(make_archive(tmp_path / name, {}, extra=extra))
    with entry_reader(archive.path) as read:
        assert {member.label: read(member.entry) for member in archive.members} == {
            "basophil": b"first",
            "monocyte": b"second",
        }


@pytest.mark.parametrize(
    "clutter",
    [
        "__MACOSX/basophil/._a.jpg",
        "basophil/._a.jpg",
        ".DS_Store",
        "basophil/.hidden.png",
        "basophil/Thumbs.db",
        "desktop.ini",
    ],
)
@pytest.mark.parametrize("name", ["d.zip", "d"])
def test_clutter_is_passed_over_in_silence(tmp_path, make_archive, name, clutter):
    archive = open_archive(make_archive(tmp_path / name, COUNTS, extra={clutter: b"x"}))
    assert len(archive.members) == 5
    assert archive.ignored == ()


def test_clutter_does_not_hide_a_top_folder(tmp_path, make_archive):
    path = make_archive(tmp_path / "d.zip", COUNTS, top="d/", extra={"__MACOSX/d/basophil/._a.png": b"x"})
    assert open_archive(path).classes == set(COUNTS)


@pytest.mark.parametrize("name", ["d.zip", "d"])
def test_files_that_are_no_images_in_class_folders_are_listed_as_ignored(tmp_path, make_archive, name):
    extra = {"README.md": b"x", "stray.png": b"x", "basophil/notes.txt": b"x", "basophil/deeper/a.png": b"x"}
    archive = open_archive(make_archive(tmp_path / name, COUNTS, extra=extra))
    assert len(archive.members) == 5
    assert archive.ignored == tuple(sorted(extra))


def test_suffixes_are_known_in_any_case(tmp_path):
    names = [f"basophil/{n}{s}" for n, s in enumerate((".JPG", ".jpeg", ".Png", ".TIF", ".tiff", ".bmp"))]
    assert len(open_archive(_zip(tmp_path / "d.zip", *names)).members) == len(names)


@pytest.mark.parametrize("name", ["d.zip", "d"])
@pytest.mark.parametrize("top", ["", "d/"])
def test_the_marker_says_that_cells_are_drawn(tmp_path, make_archive, name, top):
    archive = open_archive(make_archive(tmp_path / name, COUNTS, top=top, extra={f"{top}DRAWN.txt": b"drawn"}))
    assert archive.drawn
    assert archive.ignored == ()


def test_a_marker_in_a_class_folder_says_nothing(tmp_path, make_archive):
    assert not open_archive(make_archive(tmp_path / "d", COUNTS, extra={"basophil/DRAWN.txt": b"drawn"})).drawn


def test_an_entry_changes_when_its_bytes_do(tmp_path, make_archive):
    zips = [make_archive(tmp_path / f"{n}.zip", {}, extra={"a/x.png": data}) for n, data in enumerate((b"one", b"two"))]
    stamps = [open_archive(path).members[0].entry.stamp for path in zips]
    assert stamps[0] != stamps[1]


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_zip_is_refused(tmp_path, content):
    path = tmp_path / "d.zip"
    path.write_bytes(content)
    _refusal(lambda: open_archive(path), str(path))


def test_a_zip_cut_short_is_refused(tmp_path, make_archive):
    path = make_archive(tmp_path / "d.zip", COUNTS)
    path.write_bytes(path.read_bytes()[:-100])
    _refusal(lambda: open_archive(path), str(path))


def test_a_zip_with_a_damaged_directory_is_refused(tmp_path, make_archive):
    path = make_archive(tmp_path / "d.zip", COUNTS)
    content = bytearray(path.read_bytes())
    start = struct.unpack("<I", content[-6:-2])[0]  # offset of the central directory, from the end record
    content[start : start + 4] = b"\0\0\0\0"
    path.write_bytes(content)
    _refusal(lambda: open_archive(path), str(path))


@pytest.mark.parametrize("names", [(), ("readme.txt",), ("a.png", "b.png"), ("x/y/z/a.png", "w/y/z/b.png")])
def test_an_archive_without_class_folders_is_refused(tmp_path, names):
    _refusal(lambda: open_archive(_zip(tmp_path / "d.zip", *names)), str(tmp_path / "d.zip"))


def test_an_empty_folder_is_refused(tmp_path):
    _refusal(lambda: open_archive(tmp_path), str(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "../escape.png",
        "basophil/../../escape.png",
        "/basophil/absolute.png",
        "basophil\\..\\escape.png",
        "C:/basophil/drive.png",
        "__MACOSX/../../escape.png",
    ],
)
def test_a_name_that_points_outside_is_refused(tmp_path, name):
    path = _zip(tmp_path / "d.zip", "basophil/a.png", name)
    _refusal(lambda: open_archive(path), str(path), repr(name))


def test_a_member_without_a_name_is_refused(tmp_path):
    path = _zip(tmp_path / "d.zip", "basophil/a.png", ".")
    _refusal(lambda: open_archive(path), str(path))


def test_a_name_with_a_line_break_is_refused(tmp_path):
    path = _zip(tmp_path / "d.zip", "basophil/a.png", "basophil/b.png 0\nimages/x.png")
    _refusal(lambda: open_archive(path), str(path))


def test_an_encrypted_member_is_refused(tmp_path):
    path = _zip(tmp_path / "d.zip", "basophil/a.png")
    content = bytearray(path.read_bytes())
    content[6] |= 1  # general purpose flags in the local header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and in the central directory
    path.write_bytes(content)
    _refusal(lambda: open_archive(path), str(path), "basophil/a.png", "encrypted")


def test_a_member_that_would_unpack_to_too_much_is_refused(tmp_path):
    path = _zip(tmp_path / "d.zip", "basophil/a.png")
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = struct.pack("<I", MAX_IMAGE_BYTES + 1)
    path.write_bytes(content)
    _refusal(lambda: open_archive(path), str(path), "basophil/a.png")


@pytest.mark.parametrize(
    "pair",
    [
        ("basophil/a.png", "basophil/A.png"),
        ("basophil/a.png", "Basophil/a.png"),
        ("basophil/a.png", "basophil/a.PNG"),
        ("basophil/a.png", "Basophil/b.png"),
        ("basophil/\u00e4.png", "basophil/a\u0308.png"),
    ],
)
def test_names_that_differ_in_case_alone_are_refused(tmp_path, pair):
    path = _zip(tmp_path / "d.zip", *pair)
    both = _refusal(lambda: open_archive(path), str(path)).problem
    assert all(name in both or name.partition("/")[0] in both for name in pair)


@pytest.mark.parametrize("name", ["basophil/a.png", "notes.txt"])
def test_a_name_that_occurs_twice_is_refused(tmp_path, name):
    path = _zip(tmp_path / "d.zip", "basophil/b.png", name, name)
    _refusal(lambda: open_archive(path), str(path), name, "2 times")


def _packed(path: Path, name: str, data: bytes, method: int = zipfile.ZIP_DEFLATED, mode: int = 0o100644) -> Path:
    """A zip of one sound image and one member as it is asked for."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("basophil/a.png", b"a")
        info = zipfile.ZipInfo(name)
        info.compress_type, info.external_attr = method, mode << 16
        file.writestr(info, data)
    return path


def test_a_symbolic_link_in_a_zip_is_refused(tmp_path):
    path = _packed(tmp_path / "d.zip", "basophil/link.png", b"/etc/passwd", mode=0o120777)
    _refusal(lambda: open_archive(path), str(path), "basophil/link.png", "symbolic link")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_without_bounds_is_refused(tmp_path, method):
    path = _packed(tmp_path / "d.zip", "basophil/b.png", b"b" * 100, method=method)
    _refusal(lambda: open_archive(path), str(path), "basophil/b.png", "compressed by method")


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz", ".ZIP", ".7z", ".rar"])
@pytest.mark.parametrize("where", ["", "basophil/"])
@pytest.mark.parametrize("name", ["d.zip", "d"])
def test_an_archive_within_an_archive_is_refused_by_its_name(tmp_path, make_archive, name, where, suffix):
    inner = f"{where}inner{suffix}"
    path = make_archive(tmp_path / name, COUNTS, extra={inner: b"x"})
    _refusal(lambda: open_archive(path), str(path), inner)


@pytest.mark.parametrize("name", ["basophil/b.png", "notes.txt"])
def test_a_member_that_packs_too_well_is_refused(tmp_path, name):
    path = _packed(tmp_path / "d.zip", name, bytes(4 * 2**20))
    _refusal(lambda: open_archive(path), str(path), name, "times its size")


def test_many_small_members_that_pack_too_well_are_refused(tmp_path):
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(50):
            file.writestr(f"basophil/{number}.png", bytes(2**20))
    _refusal(lambda: open_archive(path), str(path), "times its size")


def test_members_that_share_their_bytes_are_counted_each(tmp_path):
    """The directory of a zip may name one stretch of it many times: each is small, together they are a bomb."""
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("basophil/00000.png", os.urandom(2**16))
        first = file.filelist[0]
        for number in range(1, 5000):
            twin = zipfile.ZipInfo(f"basophil/{number:05d}.png")
            for field in ("header_offset", "compress_size", "file_size", "CRC"):
                setattr(twin, field, getattr(first, field))
            file.filelist.append(twin)
    _refusal(lambda: open_archive(path), str(path), "times its size")


# Members that are not what the directory says: nothing shows it before they are read.


def _stored(path: Path, data: bytes) -> Path:
    return _packed(path, "basophil/b.png", data, method=zipfile.ZIP_STORED)


def _overwrite(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def _break_crc(path: Path) -> None:
    _overwrite(_stored(path, b"what the checksum is of"), b"checksum", b"checkers")


def _break_deflate(path: Path) -> None:
    data = os.urandom(1000)
    _packed(path, "basophil/b.png", data)
    content = bytearray(path.read_bytes())
    content[content.index(b"basophil/b.png") + len("basophil/b.png")] = 0x07  # a kind of block that does not exist
    path.write_bytes(content)


def _declare(path: Path, data: bytes, size: int) -> None:
    """A deflated member of which both headers say another size than it unpacks to."""
    _packed(path, "basophil/b.png", data)
    content, real = path.read_bytes(), struct.pack("<I", len(data))
    assert content.count(real) == 2
    path.write_bytes(content.replace(real, struct.pack("<I", size)))


def _cut_out(path: Path) -> None:
    _stored(path, b"bytes that lie elsewhere")
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02") + 42  # where the local header is said to lie
    content[at : at + 4] = struct.pack("<I", 7)
    path.write_bytes(content)


DAMAGE = {
    "CRC": _break_crc,
    "deflate stream": _break_deflate,
    "larger than declared": lambda path: _declare(path, os.urandom(100_000), 1_000),
    "smaller than declared": lambda path: _declare(path, os.urandom(1_003), 100_000),
    "no local header": _cut_out,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_member_refuses_the_archive_when_it_is_read(tmp_path, damage):
    path = tmp_path / "d.zip"
    damage(path)
    archive = open_archive(path)
    with entry_reader(archive.path) as read:
        assert read(archive.members[0].entry) == b"a"
        error = _refusal(lambda: read(archive.members[1].entry), str(path), "basophil/b.png", "damaged")
    assert "folder" in error.remedy


def test_a_bomb_is_inflated_no_further_than_it_declares(tmp_path):
    path = tmp_path / "d.zip"
    _declare(path, bytes(64 * 2**20 + 13), 5_000)  # zeros; the caps go by what is declared, and see nothing
    archive = open_archive(path)
    tracemalloc.start()
    with entry_reader(archive.path) as read:
        _refusal(lambda: read(archive.members[1].entry), "basophil/b.png")
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["d.zip", "d"])
def test_an_archive_that_changes_while_it_is_read_is_an_error(tmp_path, make_archive, name):
    def write(data):
        return make_archive(tmp_path / name, {}, extra={"basophil/a.png": data})

    archive = open_archive(write(b"first"))
    write(b"second, and longer")
    with entry_reader(archive.path) as read:
        _refusal(lambda: read(archive.members[0].entry), "basophil/a.png", "changed since it was listed")


@pytest.mark.parametrize("left", [None, b"no zip any more"])
def test_an_archive_that_has_gone_is_an_error(tmp_path, make_archive, left):
    path = make_archive(tmp_path / "d.zip", COUNTS)
    archive = open_archive(path)
    path.unlink()
    if left:
        path.write_bytes(left)
    _refusal(lambda: entry_reader(archive.path).__enter__(), str(path))


def test_flipped_bytes_in_the_directory_of_a_zip_end_in_a_clear_error_or_a_whole_archive(tmp_path, make_archive):
    path = make_archive(tmp_path / "d.zip", {}, extra={f"basophil/{n}.png": bytes([n]) * 40 for n in range(3)})
    before, generator = path.read_bytes(), random.Random(0)
    start, refused = before.index(b"PK\x01\x02"), 0
    for _ in range(600):
        content = bytearray(before)
        for _ in range(generator.randint(1, 4)):
            content[generator.randrange(start, len(content))] = generator.randrange(256)
        path.write_bytes(content)
        try:
            archive = open_archive(path)
            with entry_reader(archive.path) as read:
                for member in archive.members:
                    assert read(member.entry) in {bytes([n]) * 40 for n in range(3)}
        except HemafastError:
            refused += 1
    assert refused > 300


def test_a_file_too_large_for_an_image_is_refused_in_a_folder_too(tmp_path, make_archive):
    folder = make_archive(tmp_path / "d", COUNTS)
    with (folder / "basophil" / "large.png").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)  # a hole: it takes no disk
    _refusal(lambda: open_archive(folder), str(folder), "basophil/large.png")


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, make_archive, monkeypatch):
    folder = make_archive(tmp_path / "d", COUNTS)
    scandir = os.scandir

    def scan(path):
        if Path(path).name == "monocyte":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    _refusal(lambda: open_archive(folder), str(folder / "monocyte"), "Permission denied")


def test_a_file_of_a_folder_that_has_gone_is_an_error(tmp_path, make_archive):
    archive = open_archive(make_archive(tmp_path / "d", COUNTS))
    (tmp_path / "d" / "basophil" / "BAS_000.png").unlink()
    with entry_reader(archive.path) as read:
        error = _refusal(lambda: read(archive.members[0].entry), "basophil/BAS_000.png")
    assert "Check the disk" in error.remedy


def test_nothing_of_a_refused_archive_is_written(tmp_path, make_archive):
    make_archive(tmp_path / "source" / "sound.zip", {"basophil": 70, "monocyte": 5})
    _break_crc(tmp_path / "source" / "d.zip")
    config = PrepareConfig(source=tmp_path / "source", output=tmp_path / "out" / "prepared", pack_sizes=(32,))
    with pytest.raises(HemafastError, match=r"basophil/b\.png is damaged"):
        prepare(config)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".prepared.lock"}


@pytest.mark.parametrize("name", ["Lab\nB", "Lab\x85B", "Lab\u2028B"])
def test_a_domain_that_would_break_a_list_is_refused(tmp_path, make_archive, name):
    folder = make_archive(tmp_path / name, COUNTS)
    assert "unprintable" in _refusal(lambda: open_archive(folder)).problem


def test_spaces_of_any_kind_and_clutter_of_any_name_are_no_reason_to_refuse(tmp_path, make_archive):
    extra = {"basophil/a\u00a0b c.png": b"x", "basophil/Icon\r": b""}
    assert len(open_archive(make_archive(tmp_path / "d", COUNTS, extra=extra)).members) == 6


def test_a_pipe_in_the_place_of_a_zip_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "d.zip")
    _refusal(lambda: open_archive(tmp_path / "d.zip"), "d.zip is not a regular file")


def test_a_linked_image_in_a_folder_is_refused(tmp_path, make_archive):
    folder = make_archive(tmp_path / "d", COUNTS)
    link = folder / "basophil" / "link.png"
    link.symlink_to(folder / "basophil" / "BAS_000.png")
    _refusal(lambda: open_archive(folder), str(link))


def test_a_linked_class_folder_is_refused(tmp_path, make_archive):
    folder = make_archive(tmp_path / "d", COUNTS)
    elsewhere = make_archive(tmp_path / "elsewhere", {"eosinophil": 2})
    (folder / "eosinophil").symlink_to(elsewhere / "eosinophil")
    _refusal(lambda: open_archive(folder), str(folder / "eosinophil"))


def test_archives_are_found_in_name_order_and_the_rest_passed_over(tmp_path):
    for folder in ("b", "prepared", ".hidden"):
        (tmp_path / folder).mkdir()
    for file in ("c.zip", "a.ZIP", "README.md", ".d.zip"):
        (tmp_path / file).touch()
    assert [path.name for path in find_archives(tmp_path, tmp_path / "prepared")] == ["a.ZIP", "b", "c.zip"]


def test_an_output_named_another_way_is_still_no_archive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("source/prepared").mkdir(parents=True)
    Path("source/a.zip").touch()
    found = find_archives(tmp_path / "source", Path("source/../source/prepared"))
    assert [path.name for path in found] == ["a.zip"]


def test_a_missing_source_is_refused(tmp_path):
    _refusal(lambda: find_archives(tmp_path / "none", tmp_path / "out"), str(tmp_path / "none"))


@pytest.mark.parametrize("file", [None, "README.md"])
def test_a_source_without_archives_is_refused(tmp_path, file):
    if file:
        (tmp_path / file).touch()
    _refusal(lambda: find_archives(tmp_path, tmp_path / "prepared"), str(tmp_path))


@pytest.mark.parametrize("zipped", ["Twice.zip", "twice.zip"])
def test_two_archives_of_one_name_are_refused(tmp_path, zipped):
    (tmp_path / "Twice").mkdir()
    (tmp_path / zipped).touch()
    error = _refusal(lambda: find_archives(tmp_path, tmp_path / "prepared"), str(tmp_path), "Twice", zipped[:-4])
    assert re.search("[Rr]emove", error.remedy)


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_a_file_name_that_is_no_text_is_refused(tmp_path, make_archive):
    folder = make_archive(tmp_path / "d", COUNTS)
    (folder / "basophil" / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    _refusal(lambda: open_archive(folder), str(folder))
