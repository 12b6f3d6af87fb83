"""Dead ends: nothing to take, nothing to write to, settings that leave nothing."""

import os
from pathlib import Path

from door import Refused, Taken, picture, refused, taken

from hemafast.config import PrepareConfig
from hemafast.preparation.build import prepare

USUAL = {"Lab/basophil": 3, "Lab/monocyte": 3}


def usual(room):
    room.write(room.classes("basophil", "monocyte"), "Lab")


@refused
def a_source_that_is_not_there(room):
    return Refused(("Source is neither a folder nor an archive", "--source"))


@refused
def an_empty_source(room):
    room.source.mkdir()
    return Refused(("is empty", "hemafast demo"))


@refused
def a_source_of_empty_folders(room):
    (room.source / "Lab" / "basophil").mkdir(parents=True)
    return Refused(("holds no image of a class", "basophil/BA_1.jpg"))


@refused
def a_source_of_documents_only(room):
    room.write({"README.md": b"# Cells\n", "paper.pdf": b"%PDF-1.7\n"})
    return Refused(("holds no image of a class", "1 PDF", "1 text"))


@refused
def a_file_that_is_no_archive_as_the_source(room):
    room.source = room.beside("cells.docx", b"PK\3\4")
    return Refused(("cells.docx is neither a folder nor an archive",))


@refused
def an_empty_zip(room):
    room.write({}, "Lab.zip")
    return Refused(("holds no image of a class",))


@refused
def a_zip_that_was_not_downloaded_to_its_end(room):
    usual(room)
    room.write(room.classes("basophil"), "Cut.zip")
    path = room.source / "Cut.zip"
    path.write_bytes(path.read_bytes()[:-200])
    return Refused(("Cut.zip cannot be listed", "Download it again"))


@refused
def a_tar_gz_that_was_not_downloaded_to_its_end(room):
    usual(room)
    room.write(room.classes("basophil"), "Cut.tar.gz")
    path = room.source / "Cut.tar.gz"
    path.write_bytes(path.read_bytes()[:-200])
    return Refused(("Cut.tar.gz cannot be listed", "Download it again"))


@refused
def a_page_of_a_server_named_zip(room):
    room.write({"Lab.zip": b"<!DOCTYPE html><html>Sign in</html>"})
    return Refused(("Lab.zip cannot be listed", "Download it again"))


@refused
def one_image_of_each_class(room):
    room.write(room.classes("basophil", "monocyte", count=1), "Lab")
    return Refused(("too few images", "two different images"))


@refused
def copies_of_one_image(room):
    data = picture(900)
    room.write({f"basophil/{number}.png": data for number in range(4)}, "Lab")
    return Refused(("too few images", "two different images"))


@refused
def nothing_but_damaged_images(room):
    room.write(
        {f"{label}/{number}.jpg": b"\xff\xd8\xff\xe0cut" for label in ("basophil", "monocyte") for number in range(3)},
        "Lab",
    )
    return Refused(("None of 6 images", "6 damaged", "basophil/0.jpg", "Repair or replace"))


@refused
def more_damaged_images_than_are_allowed(room):
    usual(room)
    room.write({"basophil/cut.png": picture(900)[:-700]}, "Lab")
    return Refused(
        ("1 of 7 images", "1 damaged", "basophil/cut.png"), {"max_quarantined": 0.05}, then={"max_quarantined": 0.2}
    )


@refused
def a_strict_preparation_with_a_stray_image(room):
    room.write(room.classes("basophil", "monocyte") | {"stray.png": room.image()}, "Lab")
    return Refused(("Images would be lost", "Lab/stray.png"), {"strict": True}, then={"strict": False})


@refused
def the_same_picture_in_two_classes_only(room):
    room.write(
        {f"{label}/{number}.png": picture(900 + number) for label in ("basophil", "monocyte") for number in range(3)},
        "Lab",
    )
    return Refused(("None of 6 images", "6 contradiction", "the same picture is"))


@refused
def a_link_out_of_the_source(room):
    usual(room)
    Path(room.source / "Lab/basophil/link.png").symlink_to(room.beside("secret.png", picture(900)))
    return Refused(("link.png is a symbolic link", "Replace it"))


@refused
def a_pipe_in_a_class_folder(room):
    usual(room)
    os.mkfifo(room.source / "Lab/basophil/pipe.png")
    return Refused(("pipe.png is not a regular file",))


@refused
def a_map_that_leaves_out_every_class(room):
    usual(room)
    return Refused(
        ("--class-map leaves out every class", "at least one class"), {"class_map": {"basophil": "", "monocyte": ""}}
    )


@refused
def a_hold_out_of_no_domain(room):
    usual(room)
    return Refused(("--holdout-domain names Matek_19", "Choose from Lab"), {"holdout_domain": "Matek_19"})


@refused
def a_prepared_data_set_as_the_source(room):
    room.write({"dataset.json": b'{"schema_version": 3}', "manifest.parquet": b"PAR1"})
    return Refused(("is a prepared data set already", "--data"))


@taken
def an_output_that_exists_and_is_empty(room):
    usual(room)
    room.output.mkdir()
    return Taken(USUAL)


@taken
def a_single_class(room):
    room.write(room.cells("basophil/{}.png", 4), "Lab")
    return Taken({"Lab/basophil": 4})


@taken
def a_class_with_one_image_beside_others(room):
    usual(room)
    room.write(room.cells("eosinophil/{}.png", 1), "Lab")
    return Taken({**USUAL, "Lab/eosinophil": 1}, notes=("eosinophil",))


@taken
def empty_folders_among_full_ones(room):
    usual(room)
    (room.source / "Lab" / "myeloblast").mkdir()
    (room.source / "Empty").mkdir()
    return Taken(USUAL)


@taken
def an_output_within_the_source_and_what_an_interrupted_call_left(room):
    usual(room)
    inside = room.source / "prepared"
    (room.source / ".prepared.hemafast-tmp").mkdir()

    def again(made):
        config = PrepareConfig(source=room.source, output=inside, pack_sizes=(32,), shards=1, max_quarantined=1.0)
        assert not prepare(config, workers=1).fresh

    return Taken(USUAL, options={"output": inside}, also=again)


@refused
def a_source_within_the_output(room):
    room.source = room.root / "out" / "Source"
    usual(room)
    return Refused(("inside the output", "Choose another --output"), {"output": room.root / "out"})


@refused
def an_output_that_holds_something_else(room):
    usual(room)
    thesis = room.root / "results"
    thesis.mkdir()
    (thesis / "thesis.docx").write_bytes(b"x")
    return Refused(("results",), {"output": thesis}, then={"output": room.root / "new"})
