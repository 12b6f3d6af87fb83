"""Names of classes and class maps."""

from door import Refused, Taken, refused, taken

BA, MO = "Lab/basophil", "Lab/monocyte"
FROM_DATA = {"classes": "from-data"}


@taken
def classes_in_any_case_with_spaces_and_hyphens(room):
    room.write(room.classes("Basophil", "NEUTROPHIL-SEGMENTED", "Lymphocyte Typical"), "Lab")
    return Taken({BA: 3, "Lab/neutrophil_segmented": 3, "Lab/lymphocyte_typical": 3})


@taken
def class_folders_with_trailing_spaces(room):
    room.write(room.classes("basophil ", " monocyte"), "Lab.zip")
    return Taken({BA: 3, MO: 3})


@taken
def one_class_in_three_spellings(room):
    room.write(room.classes("Basophil", "basophil", "BASOPHIL", "monocyte"), "Lab.zip")
    return Taken({BA: 9, MO: 3})


@refused
def the_codes_of_a_published_set(room):
    room.write(room.classes("BAS", "EOS", "MON", "NGS"), "Lab")
    return Refused(("4 of 4 classes", "probably basophil", "probably neutrophil_segmented"), commands=2)


@refused
def plurals_and_a_typo(room):
    room.write(room.classes("Basophils", "Eosinophils", "Moncyte"), "Lab")
    return Refused(("Basophils", "probably monocyte"), commands=2)


@refused
def a_class_that_the_challenge_leaves_out(room):
    room.write(room.classes("basophil", "monocyte", "platelet", "smudge_cell"), "Lab")
    return Refused(("platelet", "of no class there"), commands=2)


@refused
def nothing_but_cells_that_the_challenge_leaves_out(room):
    room.write(room.classes("Platelet", "RBC"), "Lab")
    return Refused(("Platelet", "of no class there"), commands=1)


@refused
def classes_of_another_field(room):
    room.write(room.classes("cats", "dogs"), "Pets")
    return Refused(("cats (3 images)", "dogs (3 images)"), commands=2)


@refused
def numbered_class_folders(room):
    room.write(room.classes("0", "1", "2"), "Lab")
    return Refused(("3 of 3 classes", "Say which class each number is"), commands=2)


@refused
def names_with_quotes_commas_and_brackets(room):
    room.write(room.classes("Lymphocyte, typical", "Mono's", "Eosinophil (adult)"), "Lab")
    return Refused(("Mono's", "--class-map"), then=FROM_DATA, commands=2)


@taken
def numbered_class_folders_kept(room):
    room.write(room.classes("0", "1", "10"), "Lab")
    return Taken({"Lab/0": 3, "Lab/1": 3, "Lab/10": 3}, options=FROM_DATA)


@taken
def classes_in_other_scripts(room):
    room.write(room.classes("嗜碱性粒细胞", "Эозинофил", "Lymphozyt (groß)"), "Lab")
    return Taken({"Lab/嗜碱性粒细胞": 3, "Lab/Эозинофил": 3, "Lab/Lymphozyt (groß)": 3}, options=FROM_DATA)


@taken
def a_map_that_joins_and_leaves_out(room):
    room.write(room.classes("neutrophil", "BNE", "platelet", "monocyte"), "Lab")
    left = {f"Lab/platelet/{number}.png": "class left out" for number in range(3)}
    meant = {"Neutrophil": "neutrophil_segmented", "bne": "neutrophil_segmented", "platelet": "", "giant": "monocyte"}
    return Taken(
        {"Lab/neutrophil_segmented": 6, MO: 3}, left, options={"class_map": meant}, notes=("giant, which is no class",)
    )


@taken
def a_map_in_a_table_with_semicolons(room):
    room.write(room.classes("A", "B"), "Lab")
    file = room.beside("map.csv", "\ufefffrom;to\r\nA;basophil\r\nB;monocyte\r\n")
    return Taken({BA: 3, MO: 3}, options={"class_map": file})


@refused
def a_map_that_contradicts_itself(room):
    room.write(room.classes("A", "B"), "Lab")
    file = room.beside("map.csv", "from,to\nA,basophil\nA,monocyte\n")
    return Refused(
        ("map.csv: A becomes both basophil and monocyte",), {"class_map": file}, then={"class_map": None, **FROM_DATA}
    )


@taken
def a_zip_for_each_class(room):
    room.write(room.cells("{}.png"), "basophil.zip")
    room.write(room.cells("monocyte/{}.png"), "monocyte.zip")
    return Taken({"Source/basophil": 3, "Source/monocyte": 3})


@taken
def domains_in_folders_around_the_classes(room):
    room.write(
        room.classes("basophil", "monocyte", under="hospital A/")
        | room.classes("basophil", "monocyte", under="hospital B/"),
        "Cells.zip",
    )
    return Taken(
        {f"hospital {lab}/{label}": 3 for lab in "AB" for label in ("basophil", "monocyte")}, notes=("domains",)
    )


@taken
def patients_in_folders_below_the_classes(room):
    files = {}
    for label in ("basophil", "monocyte"):
        for patient in range(1, 6):
            files |= room.cells(f"{label}/patient_{patient:02d}/{{}}.png", 2)
    room.write(files, "Lab")

    def together(made):
        rows = made.files.manifest
        patients = rows["source"].str.extract(r"(patient_\d+)")[0]
        assert (rows.groupby(patients)["split"].nunique() == 1).all()

    return Taken({BA: 10, MO: 10}, notes=("patients",), also=together)


@taken
def images_outside_class_folders(room):
    room.write(room.classes("basophil", "monocyte") | {"overview.png": room.image()}, "Lab")
    return Taken({BA: 3, MO: 3}, {"Lab/overview.png": "image outside class folders"})
