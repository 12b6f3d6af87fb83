"""Names and encodings in archives and lists; tars; folders of archives."""

import io
import tarfile
import unicodedata
import zipfile

from door import Refused, Taken, pack, refused, taken, tar, zipped

BA, MO = "Lab/basophil", "Lab/monocyte"
FROM_DATA = {"classes": "from-data"}


def raw_zip(room, names, encoding, into="Lab.zip", separator="/"):
    """A zip of these images whose names are stored in an encoding, without saying so."""
    files = {name: room.image() for name in names}
    room.source.mkdir(exist_ok=True)
    (room.source / into).write_bytes(
        zipped({name.replace("/", separator).encode(encoding): data for name, data in files.items()})
    )
    room.written += [f"{into.partition('.')[0]}/{name}" for name in files]


@taken
def names_that_macos_takes_apart(room):
    names = [
        unicodedata.normalize("NFD", f"{label}/Zelle_ä{number}.png")
        for label in ("basophil", "monocyte")
        for number in range(3)
    ]
    room.write({name: room.image() for name in names}, "Lab")
    return Taken({BA: 3, MO: 3})


@taken
def one_name_in_two_unicode_forms(room):
    forms = [unicodedata.normalize(form, "basophil/ä.png") for form in ("NFC", "NFD")]
    room.write({**room.classes("basophil", "monocyte"), **{name: room.image() for name in forms[:1]}}, "Lab")
    room.write({forms[1]: room.image()}, "Lab2")
    room.write(room.classes("basophil", "monocyte"), "Lab2")
    return Taken({BA: 4, MO: 3, "Lab2/basophil": 4, "Lab2/monocyte": 3})


@taken
def a_zip_of_chinese_windows(room):
    raw_zip(room, [f"{label}/图像{number}.png" for label in ("单核细胞", "嗜碱性粒细胞") for number in range(3)], "gbk")
    return Taken({"Lab/单核细胞": 3, "Lab/嗜碱性粒细胞": 3}, options=FROM_DATA, notes=("not UTF-8",))


@taken
def a_zip_of_dos(room):
    raw_zip(room, [f"{label}/Größe_{number}.png" for label in ("basophil", "monocyte") for number in range(3)], "cp437")
    return Taken({BA: 3, MO: 3}, notes=("read as cp437",))


@taken
def a_zip_of_utf8_that_does_not_say_so(room):
    raw_zip(
        room, [f"{label}/зразок {number}.png" for label in ("basophil", "monocyte") for number in range(3)], "utf-8"
    )
    return Taken({BA: 3, MO: 3})


@taken
def a_zip_with_backslashes(room):
    names = [f"Cells/{label}/{number}.png" for label in ("basophil", "monocyte") for number in range(3)]
    raw_zip(room, names, "ascii", separator="\\")
    return Taken({BA: 3, MO: 3})


@taken
def a_zip_with_drive_letters_and_dots(room):
    names = [f"{label}/{number}.png" for label in ("basophil", "monocyte") for number in range(3)]
    files = {f"./{name}" if number % 2 else f"/{name}": room.image() for number, name in enumerate(names)}
    room.source.mkdir()
    pack(room.source / "Lab.zip", files)
    room.written += [f"Lab/{name}" for name in names]
    return Taken({BA: 3, MO: 3})


@refused
def a_zip_that_leads_out(room):
    room.write({**room.classes("basophil", "monocyte"), "../../evil.png": room.image()}, "Lab.zip")
    return Refused(("points outside the archive", "Do not trust"))


@taken
def a_tar_of_old_latin_names(room):
    names = [f"{label}/Größe {number}.png" for label in ("basophil", "monocyte") for number in range(3)]
    files = {name: room.image() for name in names}
    room.source.mkdir()
    (room.source / "Lab.tar").write_bytes(tar(files, format=0, encoding="latin-1"))
    room.written += [f"Lab/{name}" for name in names]
    return Taken({BA: 3, MO: 3}, notes=("not UTF-8",))


@taken
def tars_of_every_compression(room):
    for suffix in (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"):
        room.write(room.classes("basophil", "monocyte", count=2), f"Lab{suffix.replace('.', '_')}{suffix}")
    labs = ("_tar", "_tgz", "_tar_gz", "_tar_bz2", "_tar_xz", "_tar_zst")
    return Taken({f"Lab{lab}/{label}": 2 for lab in labs for label in ("basophil", "monocyte")})


@taken
def an_archive_as_the_source(room):
    room.write_source("Lab.tar.gz", room.classes("basophil", "monocyte", under="Lab/"))
    return Taken({BA: 3, MO: 3})


@taken
def a_folder_of_zips_within_a_folder(room):
    room.write(room.cells("{}.png"), "Lab/basophil.zip")
    room.write(room.cells("monocyte/{}.png"), "Lab/monocyte.zip")
    room.write(room.cells("{}.png"), "Lab/eosinophil.tar")
    return Taken({BA: 3, MO: 3, "Lab/eosinophil": 3})


@taken
def zips_in_parts_of_one_class(room):
    room.write(room.cells("{}.png"), "Lab/basophil/part_1.zip")
    room.write(room.cells("{}.png"), "Lab/basophil/part_2.zip")
    room.write(room.cells("{}.png"), "Lab/monocyte/part_1.zip")
    return Taken({BA: 6, MO: 3})


@taken
def names_that_a_shell_or_a_spreadsheet_reads(room):
    names = ("=1+1.png", "-rf.png", "$HOME.png", "a b'c\".png", "[x].png", "50%.png", "#1.png", "a;b,c.png", "*.png")
    room.write({f"{label}/{name}": room.image() for label in ("basophil", "monocyte") for name in names}, "Lab")
    return Taken({BA: 9, MO: 9})


@taken
def very_long_names(room):
    long = "ü" * 110 + "{}.png"
    room.write(room.cells(f"basophil/{long}", 2) | room.cells(f"monocyte/{long}", 2), "Lab")
    return Taken({BA: 2, MO: 2})


@taken
def names_that_differ_in_case_alone(room):
    room.write(
        {**room.classes("basophil", "monocyte"), "basophil/A.png": room.image(), "basophil/a.PNG": room.image()},
        "Lab.zip",
    )
    return Taken({BA: 5, MO: 3})


@taken
def what_macos_leaves_beside_an_archive(room):
    room.write(room.classes("basophil", "monocyte"), "Lab.zip")
    room.write({"._Lab.zip": b"\0\5\x16\7" + bytes(100), ".DS_Store": b"\0\0\0\1Bud1"})
    return Taken({BA: 3, MO: 3}, {"._Lab.zip": "system file", ".DS_Store": "system file"})


@taken
def what_macos_leaves_in_an_archive_of_archives(room):
    room.write(room.cells("{}.png"), "Lab/basophil.zip")
    room.write(room.cells("{}.png"), "Lab/monocyte.zip")
    room.write({"._basophil.zip": b"\0\5\x16\7" + bytes(100)}, "Lab")
    return Taken({BA: 3, MO: 3}, {"Lab/._basophil.zip": "system file"})


@refused
def an_archive_in_a_zip(room):
    room.write({**room.classes("basophil", "monocyte"), "more.zip": b"PK\5\6" + bytes(18)}, "Lab.zip")
    return Refused(("holds another archive, more.zip", "Lab.zip, and use the folder"))


@refused
def an_archive_that_no_reader_here_opens(room):
    room.write({**room.classes("basophil", "monocyte"), "more.rar": b"Rar!\x1a\x07\1\0"}, "Lab")
    return Refused(("holds another archive, more.rar", "Unpack it"))


@refused
def an_archive_of_a_kind_that_is_not_read_at_the_top(room):
    room.write(room.classes("basophil", "monocyte"), "Lab")
    room.write({"Other.7z": b"7z\xbc\xaf\x27\x1c" + bytes(30)})
    return Refused(("Other.7z",))


@taken
def a_source_named_as_its_archive(room):
    room.source = room.root / "Lab"
    room.write(room.classes("basophil", "monocyte"), "Lab.zip")
    room.write({"README.md": b"# Cells\n"})

    def named(made):
        assert made.info.domains["Lab"].archive == "Lab.zip"

    return Taken({BA: 3, MO: 3}, {"README.md": "text"}, also=named)


@taken
def a_source_named_as_its_folder(room):
    room.source = room.root / "Lab"
    room.write(room.classes("basophil", "monocyte"), "Lab")
    room.write({"README.md": b"# Cells\n", "basophil/a.png": room.image(), "basophil/b.png": room.image()})
    return Taken({BA: 5, MO: 3}, {"README.md": "text"})


@taken
def a_zip_for_each_class_wrapped_in_different_ways(room):
    room.write(room.cells("basophil/{}.png"), "basophil.zip")
    room.write(room.cells("monocyte images/monocyte/{}.png"), "Monocyte.zip")
    room.write(room.cells("{}.png"), "EOSINOPHIL.tar")
    return Taken({"Source/basophil": 3, "Source/monocyte": 3, "Source/eosinophil": 3})


@taken
def images_at_several_depths_of_a_class(room):
    files = room.cells("basophil/{}.png") | room.cells("basophil/more/{}.png") | room.cells("basophil/more/most/{}.png")
    room.write(files | room.cells("monocyte/{}.png"), "Lab")
    return Taken({BA: 9, MO: 3})


@taken
def an_archive_with_entries_of_folders_and_a_comment(room):
    files = room.classes("basophil", "monocyte")
    room.write({}, "Lab.zip")
    with zipfile.ZipFile(room.source / "Lab.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = b"packed in 2019"
        for folder in ("basophil/", "monocyte/", "empty/"):
            archive.writestr(folder, b"")
        for name, data in files.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    room.written += [f"Lab/{name}" for name in files]
    return Taken({BA: 3, MO: 3})


@taken
def a_tar_of_long_names_and_folders(room):
    long = "/".join(["a rather long name of a folder"] * 8)
    files = room.classes("basophil", "monocyte", under=f"{long}/")
    room.write(files, "Lab.tar.xz")
    return Taken({BA: 3, MO: 3})


@refused
def a_name_of_two_lines(room):
    room.write({**room.classes("basophil", "monocyte"), "basophil/a\nb.png": room.image()}, "Lab.zip")
    return Refused(("unprintable", "Rename it"))


@refused
def a_tar_that_packs_a_copy_as_a_link(room):
    room.write(room.classes("basophil", "monocyte"), "Lab")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        data = room.image()
        first, link = tarfile.TarInfo("basophil/a.png"), tarfile.TarInfo("basophil/b.png")
        first.size, link.type, link.linkname = len(data), tarfile.LNKTYPE, "basophil/a.png"
        archive.addfile(first, io.BytesIO(data))
        archive.addfile(link)
    (room.source / "Linked.tar").write_bytes(stream.getvalue())
    return Refused(("basophil/b.png is a link", "Pack the file"))
