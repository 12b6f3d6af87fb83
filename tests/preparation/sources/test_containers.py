"""Listing and reading folders, zips and tars: what they hold, what is refused, and what damage leads to."""

import io
import os
import random
import socket
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
import zstandard
from packs import FORMS, PACKED, TARS, compressed, member, pack, tar_of, write_zip

from hemafast.config import PrepareConfig
from hemafast.errors import HemafastError
from hemafast.preparation.build import prepare
from hemafast.preparation.sources.containers import archive_suffix, list_container, read_files, reader_of, stem_of
from hemafast.preparation.sources.safety import MAX_IMAGE_BYTES

FILES = {"basophil/a.png": b"first", "basophil/b.png": os.urandom(5000), "monocyte/a.png": b"", "notes.txt": b"text"}


def _names(path: Path, **options) -> list[str]:
    return sorted(entry.name for entry in list_container(path, **options).entries)


def _contents(path: Path) -> dict[str, bytes]:
    """What the files hold, by name, read one after the other in the order of their offsets."""
    entries = sorted(list_container(path).entries, key=lambda entry: entry.offset)
    return dict(zip([entry.name for entry in entries], read_files(entries), strict=True))


def _refusal(call, *named: str) -> HemafastError:
    """The error that `call` raises, which names everything in `named` and a remedy."""
    with pytest.raises(HemafastError) as caught:
        call()
    assert all(name in caught.value.problem for name in named), caught.value.problem
    assert caught.value.remedy
    return caught.value


def _tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    path.write_bytes(compressed(path.name, tar_of(members)))
    return path


# What is listed and read


@pytest.mark.parametrize("form", FORMS)
def test_every_file_is_listed_with_its_size_and_read_whole(tmp_path, form):
    path = pack(tmp_path / form, FILES)
    assert {entry.name: entry.size for entry in list_container(path).entries} == {
        name: len(data) for name, data in FILES.items()
    }
    assert _contents(path) == FILES
    assert list_container(path).notes == ()


@pytest.mark.parametrize("form", FORMS)
def test_files_are_read_in_any_order_and_their_heads_alone(tmp_path, form):
    path = pack(tmp_path / form, FILES)
    entries = sorted(list_container(path).entries, key=lambda entry: entry.name, reverse=True)
    assert read_files(entries) == [FILES[entry.name] for entry in entries]
    assert read_files(entries, 3) == [FILES[entry.name][:3] for entry in entries]
    with reader_of(path) as read:
        assert [read(entry) for entry in entries for _ in range(2)] == [FILES[e.name] for e in entries for _ in (0, 1)]


@pytest.mark.parametrize("name", ["d.ZIP", "d.TAR", "d.tgz", "d.tbz2", "d.txz", "d.tzst", "d.Tar.Gz"])
def test_suffixes_are_known_in_any_case_and_short(tmp_path, name):
    assert _contents(pack(tmp_path / name, FILES)) == FILES


@pytest.mark.parametrize(
    ("name", "suffix", "stem"),
    [
        ("PBC.zip", ".zip", "PBC"),
        ("PBC.v2.tar.gz", ".tar.gz", "PBC.v2"),
        ("PBC.TGZ", ".TGZ", "PBC"),
        ("PBC.gz", "", "PBC.gz"),
        ("zip", "", "zip"),
    ],
)
def test_an_archive_is_named_without_its_suffix(name, suffix, stem):
    assert archive_suffix(name) == suffix.lower()
    assert stem_of(Path(name)) == stem


def test_a_folder_keeps_its_whole_name(tmp_path):
    (tmp_path / "PBC.zip").mkdir()
    assert stem_of(tmp_path / "PBC.zip") == "PBC.zip"


@pytest.mark.parametrize("form", PACKED)
def test_folders_in_an_archive_are_no_files(tmp_path, form):
    if form == "d.zip":
        path = write_zip(tmp_path / form, [("a/", b""), ("a/", b""), ("b\\", b""), ("a/x.png", b"x")])
    else:
        folder = (member("a", kind=tarfile.DIRTYPE), b"")
        path = _tar(tmp_path / form, folder, folder, (member("a/x.png", 1), b"x"))
    assert _contents(path) == {"a/x.png": b"x"}


@pytest.mark.parametrize("form", PACKED)
def test_an_empty_archive_holds_no_files(tmp_path, form):
    assert _names(pack(tmp_path / form, {})) == []


def test_an_entry_changes_when_its_bytes_do(tmp_path):
    zips = [pack(tmp_path / f"{n}.zip", {"a/x.png": data}) for n, data in enumerate((b"one", b"two"))]
    stamps = [list_container(path).entries[0].stamp for path in zips]
    assert stamps[0] != stamps[1]


def test_a_tar_of_several_frames_is_read_whole(tmp_path):
    data = tar_of([(member(name, len(content)), content) for name, content in FILES.items()])
    pack_frame = zstandard.ZstdCompressor().compress
    (tmp_path / "d.tar.zst").write_bytes(b"".join(pack_frame(data[at : at + 700]) for at in range(0, len(data), 700)))
    assert _contents(tmp_path / "d.tar.zst") == FILES


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_tars_of_every_format_are_read(tmp_path, form):
    name = "/".join(["folder" * 8] * 3) + "/x.png"
    with tarfile.open(tmp_path / "d.tar", "w", format=form) as file:
        file.addfile(member(name, 4), io.BytesIO(b"four"))
    assert _contents(tmp_path / "d.tar") == {name: b"four"}


# Names


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize(
    ("written", "understood"),
    [
        ("/basophil/a.png", "basophil/a.png"),
        ("C:/basophil/a.png", "basophil/a.png"),
        ("c:\\basophil\\a.png", "basophil/a.png"),
        ("\\\\server\\cells\\a.png", "server/cells/a.png"),
        ("./basophil//./a.png", "basophil/a.png"),
        ("basophil/a\u0308.png", "basophil/\u00e4.png"),
        ("basophil/a\u00a0b c.png", "basophil/a\u00a0b c.png"),
    ],
)
def test_names_of_any_system_become_plain(tmp_path, form, written, understood):
    assert _contents(pack(tmp_path / form, {written: b"x", "b.png": b"y"})) == {understood: b"x", "b.png": b"y"}


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize(
    "name",
    [
        "../escape.png",
        "basophil/../../escape.png",
        "basophil\\..\\escape.png",
        "/../escape.png",
        "__MACOSX/../../escape.png",
        ".",
        "basophil/b.png 0\nimages/x.png",
        "basophil/b\x1b[2J.png",
        "basophil/b\u2028.png",
    ],
)
def test_a_name_that_leads_out_or_cannot_be_printed_is_refused(tmp_path, form, name):
    path = pack(tmp_path / form, {"basophil/a.png": b"a", name: b"b"})
    _refusal(lambda: list_container(path), str(path), repr(name))


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize("twin", ["basophil/a.png", "./basophil/a.png", "basophil\\a.png", "/basophil/a.png"])
def test_a_name_that_occurs_twice_is_refused(tmp_path, form, twin):
    both = [("basophil/a.png", b"1"), (twin, b"2")]
    path = tmp_path / form
    if form == "d.zip":
        write_zip(path, both)
    else:
        _tar(path, *((member(name, len(data)), data) for name, data in both))
    _refusal(lambda: list_container(path), str(path), "basophil/a.png 2 times")


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("basophil/a.png", "basophil/A.png"),
        ("basophil/a.png", "Basophil/a.png"),
        ("basophil/\u00e4.png", "basophil/a\u0308.png"),
    ],
)
def test_names_that_differ_in_case_or_form_are_two_files(tmp_path, form, one, other):
    entries = list_container(pack(tmp_path / form, {one: b"1", other: b"2"})).entries
    assert sorted(read_files(entries)) == [b"1", b"2"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("clutter", ["a/Icon\r", "__MACOSX/a/._b.png", ".DS_Store", "a/.hidden.zip"])
def test_what_a_system_left_is_listed_and_no_reason_to_refuse(tmp_path, form, clutter):
    assert _names(pack(tmp_path / form, {"a/b.png": b"x", clutter: b"y"})) == sorted(["a/b.png", clutter])


@pytest.mark.parametrize(
    ("encoding", "names"),
    [
        ("cp437", ["Lymphozyten groß/Blut-Übersicht.png", "Größe.png"]),
        ("gb2312", ["嗜碱性粒细胞/一.png", "单核细胞/二.png"]),
        ("cp866", ["моноцит/клетка.png", "базофил/мазок.png"]),
    ],
)
@pytest.mark.parametrize("form", ["d", "d.zip", "d.tar"])
def test_names_of_another_encoding_are_understood_and_a_note_says_so(tmp_path, form, encoding, names):
    raw = [name.encode(encoding) for name in names]
    if form == "d.zip":
        write_zip(tmp_path / form, [(name, b"x") for name in raw])
    else:
        pack(tmp_path / form, {os.fsdecode(name): b"x" for name in raw})
    listing = list_container(tmp_path / form)
    assert sorted(entry.name for entry in listing.entries) == sorted(names)
    (note,) = listing.notes
    assert encoding in note
    assert read_files(listing.entries) == [b"x"] * 2


def test_names_that_are_marked_as_utf8_stay_so_beside_others(tmp_path):
    path = write_zip(tmp_path / "d.zip", [("Ω/ä.png", b"1"), ("Größe/ö.png".encode("cp437"), b"2")])
    assert _contents(path) == {"Ω/ä.png": b"1", "Größe/ö.png": b"2"}


def test_in_a_folder_only_names_that_are_no_utf8_are_guessed(tmp_path):
    folder = pack(tmp_path / "d", {"Ω/ä.png": b"1", os.fsdecode("Größe.png".encode("cp437")): b"2"})
    assert _contents(folder) == {"Ω/ä.png": b"1", "Größe.png": b"2"}


def test_the_unicode_path_of_a_zip_goes_before_its_raw_name(tmp_path):
    raw, name = b"gr\xe1.png", "grß.png"
    content = b"\1" + struct.pack("<L", zlib.crc32(raw)) + name.encode()
    extra = struct.pack("<HH", 0x7075, len(content)) + content
    (tmp_path / "d.zip").write_bytes(_zip_with_extra(raw, extra))
    assert _contents(tmp_path / "d.zip") == {name: b""}


def _zip_with_extra(raw: bytes, extra: bytes) -> bytes:
    """A zip of one empty member."""
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, 0, 0, 0, len(raw), len(extra))
    local = b"PK\x03\x04" + fields + raw + extra
    directory = b"PK\x01\x02" + struct.pack("<H", 20) + fields + bytes(14) + raw + extra
    return local + directory + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(directory), len(local), 0)


# Archives in folders and in archives


@pytest.mark.parametrize("form", PACKED)
def test_an_archive_in_a_folder_is_read_as_a_folder(tmp_path, form):
    pack(tmp_path / "source" / "lab" / form, FILES)
    pack(tmp_path / "source" / "lab", {"stray.png": b"x"})
    expected = {f"lab/d/{name}": data for name, data in FILES.items()} | {"lab/stray.png": b"x"}
    assert _contents(tmp_path / "source") == expected


@pytest.mark.parametrize(
    ("inside", "listed"),
    [
        ({"d/a.png": b"", "d/b.png": b""}, ["d/a.png", "d/b.png"]),
        ({"d/a.png": b"", "a.png": b""}, ["d/a.png", "d/d/a.png"]),
        ({"d/a.png": b"", "e/b.png": b""}, ["d/d/a.png", "d/e/b.png"]),
        ({"d/a.png": b"", "__MACOSX/d/._a.png": b""}, ["d/__MACOSX/d/._a.png", "d/a.png"]),
    ],
)
def test_a_folder_that_was_packed_whole_is_that_folder(tmp_path, inside, listed):
    pack(tmp_path / "source" / "d.zip", inside)
    assert _names(tmp_path / "source") == listed


@pytest.mark.parametrize("twin", ["d", "d.tar"])
def test_an_archive_beside_what_was_unpacked_from_it_is_refused(tmp_path, twin):
    pack(tmp_path / "source" / "lab" / "d.zip", FILES)
    pack(tmp_path / "source" / "lab" / twin, FILES)
    _refusal(lambda: list_container(tmp_path / "source"), "lab/d.zip", "lab/d")


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz", ".tar.zst", ".ZIP", ".7z", ".rar"])
@pytest.mark.parametrize("form", PACKED)
def test_an_archive_within_an_archive_is_refused_by_its_name(tmp_path, form, suffix):
    inner = f"basophil/inner{suffix}"
    path = pack(tmp_path / form, FILES | {inner: b"x"})
    _refusal(lambda: list_container(path), str(path), inner)


@pytest.mark.parametrize("suffix", [".7z", ".rar"])
def test_an_archive_that_cannot_be_read_is_refused_in_a_folder(tmp_path, suffix):
    _refusal(lambda: list_container(pack(tmp_path / "d", {f"a/b{suffix}": b"x"})), str(tmp_path / "d"), f"a/b{suffix}")


def test_a_damaged_archive_in_a_folder_is_refused_by_its_path(tmp_path):
    _refusal(lambda: list_container(pack(tmp_path / "d", {"a/b.zip": b"no zip"})), str(tmp_path / "d/a/b.zip"))


# What is not a regular file


LINKS = {
    "symbolic link": member("b.png", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "hard link": member("b.png", kind=tarfile.LNKTYPE, link="a.png"),
    "character device": member("b.png", kind=tarfile.CHRTYPE),
    "block device": member("b.png", kind=tarfile.BLKTYPE),
    "pipe": member("b.png", kind=tarfile.FIFOTYPE),
    "volume label": member("b.png", kind=b"V"),
}


@pytest.mark.parametrize("form", TARS)
@pytest.mark.parametrize("special", LINKS.values(), ids=LINKS)
def test_what_is_no_regular_file_in_a_tar_is_refused(tmp_path, form, special):
    path = _tar(tmp_path / form, (member("a.png", 1), b"a"), (special, b""))
    _refusal(lambda: list_container(path), str(path), "b.png")


@pytest.mark.parametrize("form", TARS)
def test_a_sparse_file_of_old_gnu_tars_is_refused(tmp_path, form):
    header = bytearray(member("b.png", kind=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[483:495] = b"%011o " % 0, b"%011o " % 2**30  # where its data lies, and its size in all
    path = tmp_path / form
    path.write_bytes(compressed(form, _summed(header) + bytes(1024)))
    _refusal(lambda: list_container(path), str(path), "b.png")


@pytest.mark.parametrize("form", TARS)
def test_a_sparse_file_of_pax_tars_is_refused(tmp_path, form):
    sparse = member("b.png", 4)
    sparse.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.map": "0,4", "GNU.sparse.size": str(2**30)}
    data = sparse.tobuf(tarfile.PAX_FORMAT) + b"four".ljust(512, b"\0") + bytes(1024)
    (tmp_path / form).write_bytes(compressed(form, data))
    _refusal(lambda: list_container(tmp_path / form), form, "b.png")


def _summed(header: bytearray) -> bytes:
    """The header of a member of a tar with its checksum."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


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
    _refusal(lambda: list_container(path), str(path), "basophil/link.png", "symbolic link")


def test_an_encrypted_member_is_refused(tmp_path):
    path = pack(tmp_path / "d.zip", {"basophil/a.png": b"a"})
    content = bytearray(path.read_bytes())
    content[6] |= 1  # general purpose flags in the local header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and in the central directory
    path.write_bytes(content)
    _refusal(lambda: list_container(path), str(path), "basophil/a.png", "encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_without_bounds_is_refused(tmp_path, method):
    path = _packed(tmp_path / "d.zip", "basophil/b.png", b"b" * 100, method=method)
    _refusal(lambda: list_container(path), str(path), "basophil/b.png", "compressed by method")


@pytest.mark.parametrize("form", PACKED)
def test_a_pipe_in_the_place_of_an_archive_is_refused_without_waiting_for_it(tmp_path, form):
    os.mkfifo(tmp_path / form)
    _refusal(lambda: list_container(tmp_path / form), f"{form} is not a regular file")


@pytest.mark.parametrize("inside", ["b.png", "b.zip", "b.tar.gz"])
def test_a_pipe_in_a_folder_is_refused(tmp_path, inside):
    os.mkfifo(pack(tmp_path / "d", {"a.png": b"x"}) / inside)
    _refusal(lambda: list_container(tmp_path / "d"), f"{inside} is not a regular file")


def test_a_socket_in_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(pack(tmp_path / "d", {"a.png": b"x"}))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("b.png")  # a path from here, for those of sockets are short
        _refusal(lambda: list_container(tmp_path / "d"), "b.png is not a regular file")


@pytest.mark.parametrize("name", ["link.png", "link.zip", "link"])
def test_links_in_a_folder_are_refused(tmp_path, name):
    target = pack(tmp_path / "elsewhere", {"x.png": b"x"}) if name == "link" else tmp_path / "x"
    target.exists() or target.write_bytes(b"x")
    (pack(tmp_path / "d", {"a.png": b"x"}) / name).symlink_to(target)
    _refusal(lambda: list_container(tmp_path / "d"), str(tmp_path / "d" / name), "symbolic link")


def test_links_to_files_are_followed_where_nothing_is_copied(tmp_path):
    folder = pack(tmp_path / "d", {"a.png": b"x"})
    (folder / "b.png").symlink_to(folder / "a.png")
    assert _names(folder, follow_links=True) == ["a.png", "b.png"]
    (folder / "c.png").symlink_to(folder / "none.png")
    _refusal(lambda: list_container(folder, follow_links=True), "c.png cannot be found")


# What unpacks to too much


def test_a_member_of_a_zip_that_would_unpack_to_too_much_is_refused(tmp_path):
    path = pack(tmp_path / "d.zip", {"basophil/a.png": b"a"})
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = struct.pack("<I", MAX_IMAGE_BYTES + 1)
    path.write_bytes(content)
    _refusal(lambda: list_container(path), str(path), "basophil/a.png")


@pytest.mark.parametrize("form", TARS)
def test_a_member_of_a_tar_that_declares_too_much_is_refused(tmp_path, form):
    large = member("b.png", MAX_IMAGE_BYTES + 1).tobuf(tarfile.GNU_FORMAT)
    (tmp_path / form).write_bytes(compressed(form, large + bytes(1024)))
    _refusal(lambda: list_container(tmp_path / form), form, "b.png has 256 MiB")


def test_a_file_too_large_for_an_image_is_refused_in_a_folder_too(tmp_path):
    folder = pack(tmp_path / "d", FILES)
    with (folder / "basophil" / "large.png").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)  # a hole: it takes no disk
    _refusal(lambda: list_container(folder), str(folder), "basophil/large.png")


@pytest.mark.parametrize("name", ["basophil/b.png", "notes.txt"])
def test_a_member_of_a_zip_that_packs_too_well_is_refused(tmp_path, name):
    path = _packed(tmp_path / "d.zip", name, bytes(4 * 2**20))
    _refusal(lambda: list_container(path), str(path), name, "times its size")


def test_many_small_members_that_pack_too_well_are_refused(tmp_path):
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(50):
            file.writestr(f"basophil/{number}.png", bytes(2**20))
    _refusal(lambda: list_container(path), str(path), "times its size")


def test_members_of_a_zip_that_share_their_bytes_are_counted_each(tmp_path):
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
    _refusal(lambda: list_container(path), str(path), "times its size")


BOMBS = {
    "one member": lambda: member("b.png", 2**25).tobuf() + bytes(2**25 + 1024),
    "many members": lambda: b"".join(member(f"{n}.png", 2**20).tobuf() + bytes(2**20) for n in range(32)) + bytes(1024),
    "zeros behind the end": lambda: member("b.png").tobuf() + bytes(2**25),
    "nothing but zeros": lambda: bytes(2**25),
}


@pytest.mark.parametrize("form", [form for form in TARS if form != "d.tar"])
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_tar_that_unpacks_to_far_more_than_its_size_is_refused_in_bounded_memory(tmp_path, form, bomb):
    (tmp_path / form).write_bytes(compressed(form, bomb()))
    tracemalloc.start()
    try:
        _refusal(lambda: list_container(tmp_path / form), form, "times its size")
        assert tracemalloc.get_traced_memory()[1] < 80 * 2**20
    finally:
        tracemalloc.stop()


def test_headers_alone_may_be_a_bomb(tmp_path):
    header = member("a", kind=tarfile.DIRTYPE).tobuf()
    (tmp_path / "d.tar.zst").write_bytes(compressed("d.tar.zst", header * 2**16 + bytes(1024)))
    _refusal(lambda: list_container(tmp_path / "d.tar.zst"), "times its size")


@pytest.mark.parametrize("form", TARS)
@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("size", [2**30, -512])
def test_a_name_or_header_of_absurd_length_is_refused_in_bounded_memory(tmp_path, form, kind, size):
    header = bytearray(member("long", kind=kind).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    (tmp_path / form).write_bytes(compressed(form, _summed(header) + bytes(2**16)))
    tracemalloc.start()
    try:
        _refusal(lambda: list_container(tmp_path / form), form, "cannot be listed")
        assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", TARS)
def test_a_negative_size_is_refused_and_not_gone_round_in_for_ever(tmp_path, form):
    header = bytearray(member("b.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = tarfile.itn(-1024, 12, tarfile.GNU_FORMAT)
    (tmp_path / form).write_bytes(compressed(form, _summed(header) + bytes(1024)))
    _refusal(lambda: list_container(tmp_path / form), form, "-1024")


# Damage


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut short", b"\x1f\x8b\x08", bytes(300)])
def test_a_file_that_is_no_archive_is_refused(tmp_path, form, content):
    (tmp_path / form).write_bytes(content)
    _refusal(lambda: list_container(tmp_path / form), str(tmp_path / form))


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize("named", ["d.zip", "d.tar", "d.tar.gz"])
def test_an_archive_under_the_suffix_of_another_is_read_by_its_content(tmp_path, form, named):
    content = pack(tmp_path / "other" / form, FILES).read_bytes()
    (tmp_path / named).write_bytes(content)
    assert _contents(tmp_path / named) == FILES


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        ({"d.zip": b"version https://git-lfs.github.com/spec/v1\n"}, "its content is no archive (text)"),
        ({"d.zip": b"<!DOCTYPE html><html>Sign in</html>"}, "its content is no archive (text)"),
        ({"d.zip": b"PK\x03\x04 cut short"}, "Download it again"),
        ({"d.zip": b"PK\x03\x04 the last part", "d.z01": b"the first"}, "zip -s 0 d.zip"),
    ],
    ids=["pointer", "page", "cut", "parts"],
)
def test_the_remedy_fits_what_is_no_whole_archive(tmp_path, files, remedy):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(HemafastError) as caught:
        list_container(tmp_path / "d.zip")
    assert remedy in caught.value.remedy


def test_an_archive_in_an_archive_is_refused_with_what_to_do(tmp_path):
    inner = pack(tmp_path / "basophil.zip", FILES).read_bytes()
    outer = pack(tmp_path / "all.zip", {"basophil.zip": inner})
    with pytest.raises(HemafastError) as caught:
        list_container(outer)
    assert caught.value.remedy == f"Unpack {outer}, and use the folder instead."
    unpacked = pack(tmp_path / "all", {"basophil.zip": inner})
    assert len(_names(unpacked)) == len(FILES)


def _outcome(path: Path) -> dict[str, bytes] | None:
    """What is read; None if it is refused. Anything else that is raised fails the test."""
    try:
        return _contents(path)
    except HemafastError:
        return None


@pytest.mark.parametrize("form", PACKED)
def test_an_archive_that_is_cut_anywhere_is_refused_or_whole(tmp_path, form):
    path = pack(tmp_path / form, FILES)
    whole = path.read_bytes()
    outcomes = []
    for size in {len(whole) * part // 60 for part in range(60)} | set(range(len(whole) - 8, len(whole))):
        path.write_bytes(whole[:size])
        outcomes.append(_outcome(path))
    assert all(outcome in (None, FILES) for outcome in outcomes)
    assert outcomes.count(None) > len(outcomes) * (0.4 if form == "d.tar" else 0.8)  # a third of this tar is padding


@pytest.mark.parametrize("form", ["d.tar.gz", "d.tar.bz2", "d.tar.xz", "d.tar.zst"])
def test_flipped_bytes_in_a_compressed_tar_end_in_an_error_or_the_whole_archive(tmp_path, form):
    path = pack(tmp_path / form, FILES)
    whole, generator, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content)
        outcome = _outcome(path)
        assert outcome in (None, FILES)
        refused += outcome is None
    assert refused > 100


def test_flipped_bytes_in_the_headers_of_a_tar_end_in_an_error_or_the_same_names(tmp_path):
    """A tar has no checksums of its images, only of their headers: flips in images are for the decoders to find."""
    path = pack(tmp_path / "d.tar", {f"basophil/{n}.png": bytes([n + 1]) * 40 for n in range(3)})
    whole, generator, refused = path.read_bytes(), random.Random(0), 0
    headers = [at for at in range(6 * 512) if at // 512 % 2 == 0]
    for _ in range(400):
        content = bytearray(whole)
        content[generator.choice(headers)] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        outcome = _outcome(path)
        assert outcome is None or len(outcome) == 3
        refused += outcome is None
    assert refused > 300


def test_flipped_bytes_in_the_directory_of_a_zip_end_in_a_clear_error_or_a_whole_archive(tmp_path):
    path = pack(tmp_path / "d.zip", {f"basophil/{n}.png": bytes([n]) * 40 for n in range(3)})
    before, generator = path.read_bytes(), random.Random(0)
    start, refused = before.index(b"PK\x01\x02"), 0
    for _ in range(600):
        content = bytearray(before)
        for _ in range(generator.randint(1, 4)):
            content[generator.randrange(start, len(content))] = generator.randrange(256)
        path.write_bytes(content)
        outcome = _outcome(path)
        assert set((outcome or {}).values()) <= {bytes([n]) * 40 for n in range(3)}
        refused += outcome is None
    assert refused > 300


@pytest.mark.parametrize("form", TARS)
def test_files_behind_a_hole_are_not_lost_in_silence(tmp_path, form):
    content = bytearray(tar_of([(member(name, len(data)), data) for name, data in FILES.items()]))
    at = content.index(b"monocyte/a.png")
    content[at : at + 512] = bytes(512)  # a part that was never downloaded
    (tmp_path / form).write_bytes(compressed(form, bytes(content)))
    _refusal(lambda: list_container(tmp_path / form), form, "more follows its end")


@pytest.mark.parametrize("form", TARS)
def test_a_second_tar_behind_the_first_is_not_lost_in_silence(tmp_path, form):
    one, two = (tar_of([(member(name, 1), b"x")]) for name in ("a.png", "b.png"))
    (tmp_path / form).write_bytes(compressed(form, one) + compressed(form, two))
    _refusal(lambda: list_container(tmp_path / form), form, "several tars in one")


def test_a_zip_with_a_damaged_directory_is_refused(tmp_path):
    path = pack(tmp_path / "d.zip", FILES)
    content = bytearray(path.read_bytes())
    start = struct.unpack("<I", content[-6:-2])[0]  # offset of the central directory, from the end record
    content[start : start + 4] = b"\0\0\0\0"
    path.write_bytes(content)
    _refusal(lambda: list_container(path), str(path))


# Members of a zip that are not what the directory says: nothing shows it before they are read.


def _stored(path: Path, data: bytes) -> Path:
    return _packed(path, "basophil/b.png", data, method=zipfile.ZIP_STORED)


def _break_crc(path: Path) -> None:
    content = _stored(path, b"what the checksum is of").read_bytes()
    path.write_bytes(content.replace(b"checksum", b"checkers"))


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
    sound, damaged = list_container(path).entries
    with reader_of(path) as read:
        assert read(sound) == b"a"
        error = _refusal(lambda: read(damaged), str(path), "basophil/b.png", "damaged")
    assert "folder" in error.remedy
    _refusal(lambda: read_files([damaged]), str(path), "basophil/b.png", "damaged")


def test_a_bomb_is_inflated_no_further_than_it_declares(tmp_path):
    path = tmp_path / "d.zip"
    _declare(path, bytes(64 * 2**20 + 13), 5_000)  # zeros; the caps go by what is declared, and see nothing
    _, bomb = list_container(path).entries
    tracemalloc.start()
    with reader_of(path) as read:
        _refusal(lambda: read(bomb), "basophil/b.png")
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


def test_nothing_of_a_refused_archive_is_written(tmp_path, make_archive):
    make_archive(tmp_path / "source" / "sound.zip", {"basophil": 70, "monocyte": 5})
    _break_crc(tmp_path / "source" / "d.zip")
    config = PrepareConfig(source=tmp_path / "source", output=tmp_path / "out" / "prepared", pack_sizes=(32,))
    with pytest.raises(HemafastError, match=r"basophil/b\.png is damaged"):
        prepare(config)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".prepared.lock"}


# What changes between listing and reading


@pytest.mark.parametrize("form", FORMS)
def test_what_changes_while_it_is_read_is_an_error(tmp_path, form):
    (entry,) = list_container(pack(tmp_path / form, {"basophil/a.png": b"first"})).entries
    pack(tmp_path / form, {"basophil/a.png": b"second, and longer"})
    with reader_of(tmp_path / form) as read:
        _refusal(lambda: read(entry), "basophil/a.png", "changed since it was listed")


@pytest.mark.parametrize("form", PACKED)
def test_an_archive_that_has_gone_is_an_error(tmp_path, form):
    entries = list_container(pack(tmp_path / form, FILES)).entries
    (tmp_path / form).unlink()
    _refusal(lambda: reader_of(tmp_path / form).__enter__(), str(tmp_path / form), "cannot be opened any more")
    _refusal(lambda: read_files(entries), str(tmp_path / form), "cannot be opened any more")


def test_a_zip_that_is_none_any_more_is_an_error(tmp_path):
    pack(tmp_path / "d.zip", FILES).write_bytes(b"no zip any more")
    _refusal(lambda: reader_of(tmp_path / "d.zip").__enter__(), str(tmp_path / "d.zip"))


def test_a_file_of_a_folder_that_has_gone_is_an_error(tmp_path):
    (entry,) = list_container(pack(tmp_path / "d", {"basophil/a.png": b"x"})).entries
    (tmp_path / "d" / "basophil" / "a.png").unlink()
    with reader_of(tmp_path / "d") as read:
        error = _refusal(lambda: read(entry), "basophil/a.png")
    assert "Check the disk" in error.remedy


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    folder = pack(tmp_path / "d", FILES)
    scandir = os.scandir

    def scan(path):
        if Path(path).name == "monocyte":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    _refusal(lambda: list_container(folder), str(folder / "monocyte"), "Permission denied")


@pytest.mark.parametrize("name", ["Lab\nB", "Lab\x85B", "Lab\u2028B", "Lab\nB.zip"])
def test_a_container_whose_name_would_break_a_list_is_refused(tmp_path, name):
    assert "unprintable" in _refusal(lambda: list_container(pack(tmp_path / name, FILES))).problem
