"""Data sets laid out as published ones are."""

from pathlib import Path

import numpy as np
from door import Refused, Taken, encode, refused, taken

SPOTS = [
    encode(
        ((np.hypot(*np.mgrid[-16:16, -16:16]) < 7 + number / 4)[..., None] * np.uint8([0, 128, 255])).astype(np.uint8)
    )
    for number in range(12)
]
"""Masks in colours."""


@taken
def a_competition_set_with_two_masters(room):
    files = {}
    for split, count in (("TRAIN", 5), ("TEST", 2), ("TEST_SIMPLE", 1)):
        files |= room.classes(
            "EOSINOPHIL",
            "MONOCYTE",
            under=f"dataset2-master/dataset2-master/images/{split}/",
            count=count,
            suffix=".jpeg",
        )
    fields = room.cells("dataset-master/dataset-master/JPEGImages/BloodImage_{:05d}.jpg", 3)
    notes = {
        f"dataset-master/dataset-master/Annotations/BloodImage_{number:05d}.xml": b"<annotation/>"
        for number in range(3)
    }
    room.write(
        {
            **files,
            **fields,
            **notes,
            "dataset2-master/dataset2-master/labels.csv": b",Image,Category\n0,1,NEUTROPHIL\n",
        },
        "archive.zip",
    )
    others = dict.fromkeys((f"archive/{name}" for name in fields), "image outside class folders")
    others |= dict.fromkeys((f"archive/{name}" for name in notes), "XML file")
    others["archive/dataset2-master/dataset2-master/labels.csv"] = "table (csv)"
    return Taken({"archive/eosinophil": 8, "archive/monocyte": 8}, others, {"train": 8, "val": 2, "test": 6})


@taken
def a_zip_for_each_split(room):
    for split, count in (("Train", 5), ("TestA", 2), ("TestB", 1)):
        room.write(room.classes("Basophil", "Monocyte", under=f"{split}/", count=count, suffix=".jpg"), f"{split}.zip")
    return Taken({"Source/basophil": 8, "Source/monocyte": 8}, splits={"train": 8, "val": 2, "test": 6})


@taken
def a_set_with_a_hidden_copy_of_an_image(room):
    files = room.classes("basophil", "monocyte", under="PBC_dataset_normal_DIB/", suffix=".jpg")
    room.write(
        {**files, "PBC_dataset_normal_DIB/basophil/.DS_169665.jpg": room.image(".jpg")}, "PBC_dataset_normal_DIB.zip"
    )
    others = {"PBC_dataset_normal_DIB/basophil/.DS_169665.jpg": "system file"}
    return Taken({"PBC_dataset_normal_DIB/basophil": 3, "PBC_dataset_normal_DIB/monocyte": 3}, others)


@taken
def classes_in_folders_of_a_thousand(room):
    files = {}
    for label in ("basophil", "monocyte"):
        for part in ("0001-1000", "1001-2000"):
            files |= room.cells(f"BM/{label}/{part}/{label[:3].upper()}_{{:05d}}.jpg", 2, start=int(part[:4]))
    room.write(files, "BM_cytomorphology_data.zip")
    return Taken(
        {"BM_cytomorphology_data/basophil": 4, "BM_cytomorphology_data/monocyte": 4}, notes=("without a meaning",)
    )


@taken
def folds_around_the_classes(room):
    files = {}
    for fold in range(3):
        files |= room.classes("basophil", "monocyte", under=f"training_data/fold_{fold}/", suffix=".bmp", count=2)
    room.write(files, "Set.tar")
    return Taken({"Set/basophil": 6, "Set/monocyte": 6}, notes=("without a meaning",))


@taken
def masks_in_a_tree_of_their_own(room):
    photographs = room.classes("basophil", "monocyte", under="Main Dataset/", suffix=".bmp", count=4)
    masks = {}
    for number, name in enumerate(photographs):
        masks[name.replace("Main Dataset", "Ground Truth Segmentation")] = SPOTS[number]
    room.write({**photographs, **masks}, "LISC")
    others = dict.fromkeys((f"LISC/{name}" for name in masks), "mask of a cell")
    return Taken({"LISC/basophil": 4, "LISC/monocyte": 4}, others)


@taken
def masks_beside_photographs_by_name(room):
    photographs = room.classes("basophil", "monocyte", count=4)
    masks = {name.replace(".png", "_mask.png"): SPOTS[number] for number, name in enumerate(photographs)}
    room.write({**photographs, **masks}, "Lab")
    return Taken({"Lab/basophil": 4, "Lab/monocyte": 4}, {f"Lab/{name}": "mask of a cell" for name in masks})


@refused
def two_sets_with_a_table_each_and_numbered_images(room):
    for number in (1, 2):
        files = room.cells("{:03d}.bmp", 4, start=1)
        lines = [f"{image},{('basophil', 'monocyte')[image % 2]}" for image in range(1, 5)]
        listed = "\n".join(["image ID,class label", *lines]).encode()
        room.write({**files, f"Class Labels of Dataset {number}.csv": listed}, f"Dataset {number}")
    return Refused(("in a table",), commands=2)


@taken
def two_sets_with_a_table_each_one_of_them_named(room):
    for number in (1, 2):
        files = room.cells("{:03d}.bmp", 4, start=1)
        lines = [f"Dataset {number}/{image},{('basophil', 'monocyte')[image % 2]}" for image in range(1, 5)]
        listed = "\n".join(["image ID,class label", *lines]).encode()
        room.write({**files, f"Labels {number}.csv": listed}, f"Dataset {number}")
    others = {f"Dataset {number}/Labels {number}.csv": "table (csv)" for number in (1, 2)}
    others |= {f"Dataset 2/{image:03d}.bmp": "image not in the labels" for image in range(1, 5)}
    options = {"labels": room.source / "Dataset 1" / "Labels 1.csv"}
    return Taken({"Dataset 1/basophil": 2, "Dataset 1/monocyte": 2}, others, options=options)


@refused
def labels_in_file_names_only(room):
    room.write(room.cells("img/Im{:03d}_1.tif", 6), "ALL_IDB2")
    return Refused(("holds no image of a class: 6 image outside class folders", "a folder per class"))


@taken
def a_checkout_with_its_git_folder(room):
    room.write(room.classes("basophil", "monocyte", under="data/"), "repo")
    rest = {
        ".git/HEAD": b"ref: refs/heads/main\n",
        ".git/objects/ab/cdef": b"x\x9c\x01",
        ".gitattributes": b"*.jpg filter=lfs\n",
        "LICENSE": b"MIT\n",
    }
    room.write(rest, "repo")
    others = {f"repo/{name}": "system file" for name in rest if name.startswith(".")} | {"repo/LICENSE": "text"}
    return Taken({"repo/basophil": 3, "repo/monocyte": 3}, others)


@taken
def notebooks_left_their_checkpoints(room):
    room.write(room.classes("basophil", "monocyte"), "Lab")
    hidden = room.cells("basophil/.ipynb_checkpoints/{}-checkpoint.png", 2)
    room.write(hidden, "Lab")
    return Taken({"Lab/basophil": 3, "Lab/monocyte": 3}, {f"Lab/{name}": "system file" for name in hidden})


@taken
def a_download_twice(room):
    files = room.classes("basophil", "monocyte")
    room.write(files, "Lab.zip")
    room.write(files, "Lab (1).zip")
    return Taken({"Lab/basophil": 3, "Lab/monocyte": 3, "Lab (1)/basophil": 3, "Lab (1)/monocyte": 3})


@taken
def crops_named_after_their_slide_and_a_class_of_few(room):
    files = room.cells("Lab/lymphocyte_typical/s12_x{}_y7.PNG", 5) | room.cells("Lab/metamyelocyte/s12_x{}_y9.PNG", 1)
    room.write(files, "download/2021-05 (final)")
    return Taken({"download/lymphocyte_typical": 5, "download/metamyelocyte": 1})


@refused
def two_zips_with_a_table_of_one_name(room):
    for number in (1, 2):
        files = room.cells(f"images/{number}_{{}}.png", 4)
        lines = [f"{name},{('basophil', 'monocyte')[place % 2]}" for place, name in enumerate(files)]
        room.write({**files, "labels.csv": "\n".join(["path,label", *lines]).encode()}, f"Lab{number}.zip")
    words = ("holds no image of a class", "--labels Lab1/labels.csv")
    return Refused(words, then={"labels": Path("Lab1/labels.csv")}, commands=1)


@refused
def numbered_images_of_two_sets_and_their_tables_above(room):
    for number in (1, 2):
        room.write(room.cells("{:03d}.bmp", 4, start=1), f"Dataset {number}")
        lines = [f"{image},{('basophil', 'monocyte')[image % 2]}" for image in range(1, 5)]
        listed = "\n".join(["image ID,class label", *lines]).encode()
        room.write({f"Class Labels of Dataset {number}.csv": listed})
    file = room.source / "Class Labels of Dataset 1.csv"
    alone = {"source": room.source / "Dataset 1", "labels": file}
    return Refused(("may be Dataset 1/001.bmp or Dataset 2/001.bmp", "--source"), {"labels": file}, then=alone)
