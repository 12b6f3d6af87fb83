"""Labels, splits and patients in tables."""

import hashlib
from pathlib import Path

import numpy as np
from door import Refused, Room, Taken, encode, refused, taken

BA, MO = "Set/basophil", "Set/monocyte"


def labelled(room: Room, pattern: str = "images/{}.png", count: int = 6, into: str = "Set") -> list[str]:
    """Images in one folder, without classes."""
    files = room.cells(pattern, count)
    room.write(files, into)
    return list(files)


def table(
    room: Room, names: list[str], header: str = "path,label", line: str = "{name},{label}", end: str = "\n"
) -> str:
    """A line for each image; the classes take turns."""
    rows = [
        line.format(name=name, label=("basophil", "monocyte")[number % 2], number=number)
        for number, name in enumerate(names)
    ]
    return end.join([header, *rows, ""])


@taken
def a_table_beside_the_images(room):
    names = labelled(room)
    room.write({"labels.csv": table(room, names).encode()}, "Set")
    return Taken({BA: 3, MO: 3}, {"Set/labels.csv": "table (csv)"}, options={"labels": room.source / "Set/labels.csv"})


@refused
def a_table_that_nobody_named(room):
    names = labelled(room)
    room.write({"labels.csv": table(room, names).encode()}, "Set")
    file = Path("Set/labels.csv")
    return Refused(("holds no image of a class", f"--labels {file}"), then={"labels": file}, commands=1)


@taken
def a_table_within_a_zip(room):
    files = room.cells("images/{}.png", 6)
    room.write({**files, "labels.csv": table(room, list(files)).encode()}, "Set.zip")
    return Taken({BA: 3, MO: 3}, {"Set/labels.csv": "table (csv)"}, options={"labels": Path("labels.csv")})


@taken
def semicolons_and_decimal_commas(room):
    names = labelled(room)
    text = table(room, names, "Bild;label;um/px", "{name};{label};0,0725", "\r\n").replace("Bild", "Dateipfad")
    file = room.beside("labels.csv", "\ufeff" + text)

    def scaled(made):
        assert made.info.domains["Set"].um_per_pixel == 0.0725

    return Taken(
        {BA: 3, MO: 3},
        options={"labels": file, "columns": {"path": "Dateipfad"}, "field_of_view": "whole"},
        also=scaled,
    )


@taken
def absolute_windows_paths(room):
    names = labelled(room)
    line = "C:\\Users\\Dr. Müller\\Desktop\\Set\\images\\{number}.png,{label}"
    file = room.beside("labels.csv", table(room, names, "path,label", line).encode("cp1252"))
    return Taken({BA: 3, MO: 3}, options={"labels": file})


@taken
def bare_numbers_with_masks_beside(room):
    names = labelled(room, "{:03d}.bmp")
    masks = {f"{number:03d}.png": _mask(number) for number in range(6)}
    room.write(masks, "Set")
    file = room.beside("labels.csv", table(room, names, "image ID,class label", "{number},{label}"))
    return Taken({BA: 3, MO: 3}, {f"Set/{name}": "mask of a cell" for name in masks}, options={"labels": file})


def _mask(number):
    y, x = np.mgrid[:32, :32]
    cell = np.hypot(y - 16, x - 16) < 8 + number / 3
    return encode((cell * 255).astype(np.uint8))


@taken
def listed_images_that_are_absent_and_images_that_are_not_listed(room):
    names = labelled(room, count=8)
    text = table(room, [*names[:6], "images/gone.png", "images/lost.png"])
    return Taken(
        {BA: 3, MO: 3},
        {f"Set/{name}": "image not in the labels" for name in names[6:]},
        notes=("2 paths in labels.csv match no image",),
        options={"labels": room.beside("labels.csv", text)},
    )


@taken
def images_listed_twice(room):
    names = labelled(room)
    text = table(room, names) + table(room, names).partition("\n")[2]
    return Taken({BA: 3, MO: 3}, notes=("listed more than once",), options={"labels": room.beside("labels.csv", text)})


@refused
def an_image_with_two_labels(room):
    names = labelled(room)
    text = table(room, names) + f"{names[0]},monocyte\n"
    return Refused(("labels.csv", names[0], "basophil and monocyte"), {"labels": room.beside("labels.csv", text)})


@taken
def a_split_column_with_words_in_capitals(room):
    names = labelled(room, count=8)
    words = ("Training", "VALIDATION", "Test", "Train")
    rows = [f"{name},{('basophil', 'monocyte')[number % 2]},{words[number // 2]}" for number, name in enumerate(names)]
    file = room.beside("labels.csv", "\n".join(["filename,cell_type,Split", *rows]))
    return Taken({BA: 4, MO: 4}, splits={"train": 4, "val": 2, "test": 2}, options={"labels": file})


@taken
def patients_in_a_column_stay_together(room):
    names = labelled(room, count=20)
    text = table(room, names, "image,class,patient_id", "{name},{label},P{number}").replace("P1", "P0")
    file = room.beside("labels.csv", text)

    def together(made):
        rows = made.files.manifest
        number = rows["source"].str.extract(r"/(\d+)\.png")[0]
        first = rows[number.isin(["0", "1"])]
        assert first["split"].nunique() == 1

    return Taken({BA: 10, MO: 10}, options={"labels": file}, also=together)


@taken
def a_domain_column(room):
    names = labelled(room, count=8)
    rows = [f"{name},{('basophil', 'monocyte')[number % 2]},Site{number // 4}" for number, name in enumerate(names)]
    file = room.beside("labels.csv", "\n".join(["path,label,hospital", *rows]))
    wanted = {f"Site{site}/{label}": 2 for site in range(2) for label in ("basophil", "monocyte")}
    return Taken(wanted, options={"labels": file})


@taken
def numbers_as_labels_with_a_map(room):
    names = labelled(room)
    text = table(room, names).replace("basophil", "1.0").replace("monocyte", "4.0")
    options = {"labels": room.beside("labels.csv", text), "class_map": {"1": "basophil", "4": "monocyte"}}
    return Taken({BA: 3, MO: 3}, options=options)


@refused
def numbers_as_labels(room):
    names = labelled(room)
    text = table(room, names).replace("basophil", "1").replace("monocyte", "4")
    return Refused(
        ("2 of 2 classes", "Say which class each number is"), {"labels": room.beside("labels.csv", text)}, commands=2
    )


@refused
def a_column_that_cannot_be_guessed(room):
    names = labelled(room)
    text = table(room, names, "Ding,Sorte")
    file = room.beside("labels.csv", text)
    return Refused(
        ("no column path and label", "Ding, Sorte", "--columns path=Ding,label=Sorte"),
        {"labels": file},
        then={"columns": {"path": "Ding", "label": "Sorte"}},
    )


@refused
def a_table_of_other_images(room):
    labelled(room)
    file = room.beside("labels.csv", "path,label\nx/a.png,basophil\ny/b.png,monocyte\n")
    return Refused(("lists no image", "x/a.png", "Images are named as Set/images/0.png"), {"labels": file})


@taken
def two_lists_one_for_each_split(room):
    room.write(room.classes("basophil", "monocyte", count=4), "Set")
    lines = [
        [f"{label}/{number}.png" for label in ("basophil", "monocyte") for number in some]
        for some in ((0, 1), (2,), (3,))
    ]
    files = tuple(
        room.beside(f"{split}.txt", "\n".join(["path", *names]))
        for split, names in zip(("train", "val", "test"), lines, strict=True)
    )
    return Taken({BA: 4, MO: 4}, splits={"train": 4, "val": 2, "test": 2}, options={"split_file": files})


@taken
def a_list_that_leaves_images_out(room):
    room.write(room.classes("basophil", "monocyte", count=3), "Set")
    names = [f"{label}/{number}" for number in (0, 1) for label in ("basophil", "monocyte")]
    rows = [f"{name},{('train', 'val')[place // 2]}" for place, name in enumerate(names)]
    file = room.beside("split.csv", "\n".join(["path,split", *rows]))
    left = {f"{folder}/2.png": "not in the split" for folder in (BA, MO)}
    return Taken({BA: 2, MO: 2}, left, splits={"train": 2, "val": 2}, options={"split_file": (file,)})


@taken
def a_table_over_folders_of_splits(room):
    files = {
        path: data for split in ("train", "test") for path, data in room.cells(f"{split}/{split}_{{}}.png", 6).items()
    }
    room.write(files, "Set")
    file = room.beside("labels.csv", table(room, [name.rpartition("/")[2] for name in files], "id,diagnosis"))
    return Taken({BA: 6, MO: 6}, splits={"train": 4, "val": 2, "test": 6}, options={"labels": file})


@refused
def patients_in_folders_and_classes_in_a_table_that_nobody_named(room):
    names = labelled(room, "P_A{}.png", count=4, into="Smith") + labelled(room, "P_B{}.png", count=4, into="Jones")
    room.write({"labels.tsv": table(room, names, "image\tclass", "{name}\t{label}").encode()})
    return Refused(("Jones (4 images)", "If the classes are in a table"), commands=2)


@refused
def bare_names_that_come_in_every_folder(room):
    room.write(room.cells("a/{}.png", 4) | room.cells("b/{}.png", 4), "Set")
    file = room.beside("labels.csv", table(room, [f"{number}.png" for number in range(4)]))
    return Refused(("0.png may be Set/a/0.png or Set/b/0.png", "folders"), {"labels": file})


@refused
def two_columns_that_may_be_the_label(room):
    names = labelled(room)
    rows = [f"{name},{number % 2},{('basophil', 'monocyte')[number % 2]}" for number, name in enumerate(names)]
    file = room.beside("labels.csv", "\n".join(["filename,label,class_name", *rows]))
    chosen = {"columns": {"label": "class_name"}}
    return Refused(("the label may be in the column label or class_name", "--columns"), {"labels": file}, then=chosen)


@taken
def a_column_for_each_class(room):
    names = labelled(room)
    rows = [f"{name},{number % 2},{1 - number % 2}" for number, name in enumerate(names)]
    file = room.beside("labels.csv", "\n".join(["image,BASOPHIL,MONOCYTE", *rows]))
    return Taken({BA: 3, MO: 3}, options={"labels": file})


@taken
def a_contradiction_between_two_laboratories(room):
    same = room.image()
    room.write({**room.classes("basophil", "monocyte"), "basophil/x.png": same}, "First")
    room.write({**room.classes("basophil", "monocyte"), "monocyte/y.png": same}, "Second.zip")
    others = {"First/basophil/x.png": "contradiction", "Second/monocyte/y.png": "contradiction"}
    return Taken({f"{lab}/{label}": 3 for lab in ("First", "Second") for label in ("basophil", "monocyte")}, others)


@taken
def checksums_of_which_one_differs(room):
    files = room.classes("basophil", "monocyte")
    room.write(files, "Set")
    sums = [f"{hashlib.sha256(data).hexdigest()}  ./Set/{name}" for name, data in files.items()]
    sums[0] = "0" * 64 + sums[0][64:]
    file = room.beside("SHA256SUMS", "\n".join(sums))
    return Taken({BA: 2, MO: 3}, {f"{BA}/0.png": "checksum"}, options={"checksums": file})
