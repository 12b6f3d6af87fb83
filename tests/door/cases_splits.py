"""Ready splits in folders."""

from door import Refused, Room, Taken, refused, taken

BA, MO = "basophil", "monocyte"


def split_of(room: Room, *folders: str, count: int = 2, into: str = "Set") -> None:
    """Two classes in each of these folders."""
    room.write(
        {path: data for one in folders for path, data in room.classes(BA, MO, under=f"{one}/", count=count).items()},
        into,
    )


@taken
def train_valid_and_test_in_mixed_case(room):
    split_of(room, "TRAIN", "Valid", "test")
    return Taken({f"Set/{BA}": 6, f"Set/{MO}": 6}, splits={"train": 4, "val": 4, "test": 4})


@taken
def a_zip_with_two_wrapping_folders_and_what_macos_adds(room):
    files = {}
    for split in ("train", "valid", "test"):
        files |= room.classes(BA, MO, under=f"Blood Cells/dataset2-master/{split}/", count=2)
    rubbish = {f"__MACOSX/{name.rpartition('/')[0]}/._{name.rpartition('/')[2]}": b"\0\5\x16\7" for name in files}
    room.write({**files, **rubbish, "Blood Cells/.DS_Store": b"x"}, "archive.zip")
    others = dict.fromkeys((f"archive/{name}" for name in (*rubbish, "Blood Cells/.DS_Store")), "system file")
    return Taken({f"archive/{BA}": 6, f"archive/{MO}": 6}, others, {"train": 4, "val": 4, "test": 4})


@taken
def folders_of_splits_directly_in_the_source(room):
    split_of(room, "train", "val", into="")
    return Taken({f"Source/{BA}": 4, f"Source/{MO}": 4}, splits={"train": 4, "val": 4})


@taken
def a_tar_gz_of_train_and_one_of_test(room):
    room.write(room.classes(BA, MO, count=5), "train.tar.gz")
    room.write(room.classes(BA, MO, count=2), "test.tar.gz")
    return Taken({f"Source/{BA}": 7, f"Source/{MO}": 7}, splits={"train": 8, "val": 2, "test": 4})


@taken
def a_class_only_in_test(room):
    split_of(room, "train", "val")
    room.write(room.cells("test/eosinophil/{}.png", 2), "Set")
    return Taken(
        {f"Set/{BA}": 4, f"Set/{MO}": 4, "Set/eosinophil": 2},
        splits={"train": 4, "val": 4, "test": 2},
        notes=("eosinophil",),
    )


@taken
def the_same_file_names_in_every_class_and_split(room):
    split_of(room, "train", "val", "test", count=3)

    def unique(made):
        assert made.files.manifest["path"].is_unique

    return Taken({f"Set/{BA}": 9, f"Set/{MO}": 9}, splits={"train": 6, "val": 6, "test": 6}, also=unique)


@taken
def train_and_test_without_validation(room):
    split_of(room, "Train", "Test", count=5)
    return Taken(
        {f"Set/{BA}": 10, f"Set/{MO}": 10}, splits={"train": 8, "val": 2, "test": 10}, notes=("no validation",)
    )


@taken
def two_tests_as_published(room):
    split_of(room, "Train", "TestA", "TestB", count=5)
    return Taken({f"Set/{BA}": 15, f"Set/{MO}": 15}, splits={"train": 8, "val": 2, "test": 20})


@taken
def names_of_the_set_in_the_names_of_the_splits(room):
    split_of(room, "PBC_train", "PBC_test", count=5)
    return Taken({f"Set/{BA}": 10, f"Set/{MO}": 10}, splits={"train": 8, "val": 2, "test": 10})


@taken
def splits_within_the_class_folders(room):
    files = {}
    for label in (BA, MO):
        for split in ("train", "val"):
            files |= room.cells(f"{label}/{split}/{{}}.png", 2)
    room.write(files, "Set")
    return Taken({f"Set/{BA}": 4, f"Set/{MO}": 4}, splits={"train": 4, "val": 4})


@taken
def only_a_test_folder_is_no_split(room):
    split_of(room, "test", count=5)
    return Taken({f"Set/{BA}": 5, f"Set/{MO}": 5}, splits={"train": 8, "val": 2}, notes=("not taken for a split",))


@taken
def resplit_draws_anew(room):
    split_of(room, "train", "val", "test", count=5)
    return Taken(
        {f"Set/{BA}": 15, f"Set/{MO}": 15},
        splits={"train": 24, "val": 6},
        options={"resplit": True},
        notes=("ignored",),
    )


@taken
def the_same_picture_in_train_and_test(room):
    split_of(room, "train", "val")
    both = room.image()
    room.write({f"train/{BA}/copy.png": both, f"test/{BA}/original.png": both, f"test/{MO}/0.png": room.image()}, "Set")
    return Taken(
        {f"Set/{BA}": 5, f"Set/{MO}": 5},
        {f"Set/train/{BA}/copy.png": "twin validates"},
        splits={"train": 4, "val": 4, "test": 2},
    )


@taken
def two_sets_one_with_a_split(room):
    split_of(room, "train", "val", into="First")
    room.write(room.classes(BA, MO, count=5), "Second.zip")
    return Taken(
        {f"First/{BA}": 4, f"First/{MO}": 4, f"Second/{BA}": 5, f"Second/{MO}": 5}, splits={"train": 12, "val": 6}
    )


@refused
def an_empty_training_folder(room):
    split_of(room, "val", "test", count=3)
    (room.source / "Set" / "train").mkdir()
    return Refused(("leaves no image for training",), then={"resplit": True})


@taken
def images_beside_the_folders_of_splits(room):
    split_of(room, "train", "val")
    room.write(room.classes("eosinophil", count=2), "Set")
    return Taken(
        {f"Set/{BA}": 4, f"Set/{MO}": 4, "Set/eosinophil": 2}, splits={"train": 6, "val": 4}, notes=("in no split",)
    )


@taken
def a_zip_for_each_split_within_a_folder(room):
    for split, count in (("train", 5), ("test", 2)):
        room.write(room.classes(BA, MO, count=count), f"Set/{split}.zip")
    return Taken({f"Set/{BA}": 7, f"Set/{MO}": 7}, splits={"train": 8, "val": 2, "test": 4})


@taken
def one_laboratory_trains_and_another_tests(room):
    files = room.classes(BA, MO, under="train/hospital A/", count=5)
    room.write(files | room.classes(BA, MO, under="test/hospital B/", count=2), "Set.zip")
    counts = {f"hospital A/{BA}": 5, f"hospital A/{MO}": 5, f"hospital B/{BA}": 2, f"hospital B/{MO}": 2}
    return Taken(counts, splits={"train": 8, "val": 2, "test": 4})


@taken
def a_split_twice_wrapped_in_its_own_name(room):
    split_of(room, "Train/Train", "Val/Val")
    return Taken({f"Set/{BA}": 4, f"Set/{MO}": 4}, splits={"train": 4, "val": 4})


@taken
def splits_named_with_numbers_and_dates(room):
    split_of(room, "train_2019", "validation_2020", "test_2021")
    return Taken({f"Set/{BA}": 6, f"Set/{MO}": 6}, splits={"train": 4, "val": 4, "test": 4})


@taken
def the_same_picture_in_train_and_validation(room):
    split_of(room, "train", "val", count=3)
    both = room.image()
    room.write({f"train/{BA}/copy.png": both, f"val/{BA}/original.png": both}, "Set")
    others = {f"Set/train/{BA}/copy.png": "twin validates"}
    return Taken({f"Set/{BA}": 7, f"Set/{MO}": 6}, others, splits={"train": 6, "val": 7})


@taken
def patients_above_the_classes_of_each_split(room):
    files = {}
    for split, patients in (("train", (1, 2)), ("val", (3,))):
        for patient in patients:
            files |= room.classes(BA, MO, under=f"{split}/patient{patient}/", count=2)
    room.write(files, "Set")
    return Taken({f"Set/{BA}": 6, f"Set/{MO}": 6}, splits={"train": 8, "val": 4}, notes=("patients",))
