"""What the folders around images say, in trees as published data sets have them."""

import pytest

from hemafast.preparation.sources.class_names import is_known
from hemafast.preparation.sources.layout import Place, read_layout, split_named

TREES: dict[str, dict[str, Place]] = {
    "PBC": {
        "basophil/BA_1.jpg": Place(label="basophil"),
        "ig/MMY_2.jpg": Place(label="ig"),
        "neutrophil/BNE_3.jpg": Place(label="neutrophil"),
    },
    "PBC in its folder": {
        "PBC_dataset_normal_DIB/basophil/BA_1.jpg": Place(label="basophil"),
        "PBC_dataset_normal_DIB/ig/MMY_2.jpg": Place(label="ig"),
    },
    "folders named as a class is, around classes": {
        "LY/0/basophil/1.png": Place(label="basophil"),
        "LY/0/Eosinophil/1.png": Place(label="Eosinophil"),
    },
    "Matek, peripheral blood": {
        "AML-Cytomorphology_LMU/BAS/BAS_0001.tiff": Place(label="BAS"),
        "AML-Cytomorphology_LMU/NGS/NGS_0001.tiff": Place(label="NGS"),
    },
    "Matek, bone marrow": {
        "BM_cytomorphology_data/ABE/0001-1000/ABE_00001.jpg": Place(label="ABE"),
        "BM_cytomorphology_data/ART/0001-1000/ART_00001.jpg": Place(label="ART"),
        "BM_cytomorphology_data/ART/1001-2000/ART_01001.jpg": Place(label="ART"),
        "BM_cytomorphology_data/WHO/0001-1000/WHO_00001.jpg": Place(label="WHO"),
    },
    "Raabin": {
        "Train/Basophil/1.jpg": Place("train", label="Basophil"),
        "TestA/Basophil/2.jpg": Place("test", label="Basophil"),
        "TestB/Lymphocyte/3.jpg": Place("test", label="Lymphocyte"),
    },
    "Raabin in its folder": {
        "Raabin-WBC/Train/Basophil/1.jpg": Place("train", label="Basophil"),
        "Raabin-WBC/Test-A/Basophil/2.jpg": Place("test", label="Basophil"),
        "Raabin-WBC/Test-B/Large Lymph/3.jpg": Place("test", label="Large Lymph"),
    },
    "LISC": {
        "LISC Database/Main Dataset/Baso/1.bmp": Place(label="Baso"),
        "LISC Database/Main Dataset/mixt/2.bmp": Place(label="mixt"),
    },
    "Bodzas": {
        "lymphoblast/a.png": Place(label="lymphoblast"),
        "neutrophil_segment/b.png": Place(label="neutrophil_segment"),
        "normoblast/c.png": Place(label="normoblast"),
    },
    "BCCD": {
        "dataset2-master/images/TRAIN/EOSINOPHIL/_0_1.jpeg": Place("train", label="EOSINOPHIL"),
        "dataset2-master/images/TEST/EOSINOPHIL/_0_2.jpeg": Place("test", label="EOSINOPHIL"),
        "dataset2-master/images/TEST_SIMPLE/MONOCYTE/_0_3.jpeg": Place("test", label="MONOCYTE"),
        "dataset-master/JPEGImages/BloodImage_00000.jpg": Place(),
    },
    "C-NMC": {
        "C-NMC_training_data/fold_0/all/1.bmp": Place(label="all"),
        "C-NMC_training_data/fold_0/hem/2.bmp": Place(label="hem"),
        "C-NMC_training_data/fold_1/all/3.bmp": Place(label="all"),
        "C-NMC_training_data/fold_1/hem/4.bmp": Place(label="hem"),
    },
    "C-NMC with its tests": {
        "C-NMC_Leukemia/training_data/fold_0/all/1.bmp": Place("train", label="all"),
        "C-NMC_Leukemia/training_data/fold_0/hem/2.bmp": Place("train", label="hem"),
        "C-NMC_Leukemia/training_data/fold_1/all/3.bmp": Place("train", label="all"),
        "C-NMC_Leukemia/training_data/fold_2/hem/4.bmp": Place("train", label="hem"),
        "C-NMC_Leukemia/testing_data/final_phase/1.bmp": Place("test", label="final_phase"),
    },
    "Chula": {
        "Chula-WBC-12/0 Neutrophil/1.jpg": Place(label="0 Neutrophil"),
        "Chula-WBC-12/11 Other/2.jpg": Place(label="11 Other"),
    },
    "ALL-IDB, whose classes are in the file names": {"img/Im001_1.tif": Place(), "img/Im131_0.tif": Place()},
    "ALL, four stages in two forms": {
        "Original/Benign/1.jpg": Place(domain="Original", label="Benign"),
        "Original/Early/2.jpg": Place(domain="Original", label="Early"),
        "Segmented/Benign/1.jpg": Place(domain="Segmented", label="Benign"),
        "Segmented/Early/2.jpg": Place(domain="Segmented", label="Early"),
    },
    "patients below classes": {
        "basophil/patient1/a.png": Place(label="basophil", group="patient1"),
        "monocyte/patient1/b.png": Place(label="monocyte", group="patient1"),
        "monocyte/patient2/b.png": Place(label="monocyte", group="patient2"),
    },
    "patients above classes": {
        "Patient_1/basophil/a.png": Place(label="basophil", group="Patient_1"),
        "Patient_2/monocyte/a.png": Place(label="monocyte", group="Patient_2"),
    },
    "patients below unknown classes": {
        "hem/P01/a.png": Place(label="hem", group="P01"),
        "hem/P02/b.png": Place(label="hem", group="P02"),
        "blue/P01/c.png": Place(label="blue", group="P01"),
        "blue/P02/d.png": Place(label="blue", group="P02"),
    },
    "patients above unknown classes": {
        "P01/hem/a.png": Place(label="hem", group="P01"),
        "P02/blue/b.png": Place(label="blue", group="P02"),
    },
    "slides of patients": {
        "data/Patient 12/Slide 3/monocyte/a.png": Place(label="monocyte", group="Patient 12"),
        "data/Patient 12/Slide 4/basophil/a.png": Place(label="basophil", group="Patient 12"),
        "data/Patient 13/Slide 3/basophil/a.png": Place(label="basophil", group="Patient 13"),
    },
    "laboratories": {
        "Barcelona/basophil/a.png": Place(domain="Barcelona", label="basophil"),
        "Munich/basophil/b.png": Place(domain="Munich", label="basophil"),
        "Munich/monocyte/c.png": Place(domain="Munich", label="monocyte"),
    },
    "laboratories with unknown classes": {
        "LabA/hem/a.png": Place(domain="LabA", label="hem"),
        "LabA/blue/b.png": Place(domain="LabA", label="blue"),
        "LabB/hem/c.png": Place(domain="LabB", label="hem"),
        "LabB/blue/d.png": Place(domain="LabB", label="blue"),
    },
    "laboratories with a folder of images each": {
        "Barcelona/images/basophil/a.png": Place(domain="Barcelona", label="basophil"),
        "Munich/images/basophil/b.png": Place(domain="Munich", label="basophil"),
    },
    "laboratories with patients": {
        "Barcelona/P1/basophil/a.png": Place(domain="Barcelona", label="basophil", group="P1"),
        "Munich/P1/basophil/b.png": Place(domain="Munich", label="basophil", group="P1"),
    },
    "laboratories with splits": {
        "Barcelona/train/basophil/a.png": Place("train", "Barcelona", "basophil"),
        "Barcelona/test/basophil/b.png": Place("test", "Barcelona", "basophil"),
        "Munich/val/monocyte/c.png": Place("val", "Munich", "monocyte"),
    },
    "splits with laboratories": {
        "train/Barcelona/basophil/a.png": Place("train", "Barcelona", "basophil"),
        "train/Munich/monocyte/c.png": Place("train", "Munich", "monocyte"),
        "test/Barcelona/basophil/b.png": Place("test", "Barcelona", "basophil"),
    },
    "two wrapping folders": {
        "download/wbc/basophil/a.png": Place(label="basophil"),
        "download/wbc/monocyte/b.png": Place(label="monocyte"),
    },
    "two wrapping folders around unknown classes": {
        "download/wbc/hem/a.png": Place(label="hem"),
        "download/wbc/blue/b.png": Place(label="blue"),
    },
    "a folder of images in each unknown class": {
        "hem/images/a.png": Place(label="hem"),
        "blue/images/b.png": Place(label="blue"),
    },
    "ranges of numbers in each unknown class": {
        "hem/0001-1000/a.png": Place(label="hem"),
        "blue/0001-1000/b.png": Place(label="blue"),
    },
    "classes by number": {
        "LabA/0/a.png": Place(domain="LabA", label="0"),
        "LabA/1/b.png": Place(domain="LabA", label="1"),
        "LabB/0/c.png": Place(domain="LabB", label="0"),
        "LabB/1/d.png": Place(domain="LabB", label="1"),
    },
    "splits below classes": {
        "basophil/train/a.png": Place("train", label="basophil"),
        "basophil/test/b.png": Place("test", label="basophil"),
        "monocyte/train/c.png": Place("train", label="monocyte"),
    },
    "splits below unknown classes": {
        "hem/train/a.png": Place("train", label="hem"),
        "hem/valid/b.png": Place("val", label="hem"),
        "blue/Training set/c.png": Place("train", label="blue"),
    },
    "splits in names": {
        "PBC_train/basophil/a.png": Place("train", label="basophil"),
        "PBC_test/basophil/b.png": Place("test", label="basophil"),
    },
    "a name with a split and no other beside it": {
        "PBC_train/basophil/a.png": Place(label="basophil"),
        "PBC_train/monocyte/b.png": Place(label="monocyte"),
    },
    "folds of splits": {
        "fold1/train/basophil/a.png": Place("train", label="basophil"),
        "fold1/test/basophil/b.png": Place("test", label="basophil"),
        "fold2/train/monocyte/c.png": Place("train", label="monocyte"),
    },
    "a test without training": {
        "test/basophil/a.png": Place(label="basophil"),
        "test/monocyte/b.png": Place(label="monocyte"),
    },
    "unknown classes": {"hem/a.png": Place(label="hem"), "blue/b.png": Place(label="blue")},
    "known and unknown classes": {"basophil/a.png": Place(label="basophil"), "blue/b.png": Place(label="blue")},
    "names of other scripts": {
        "嗜碱性粒细胞/一.png": Place(label="嗜碱性粒细胞"),
        "моноцит/клетка.png": Place(label="моноцит"),
    },
    "a single class": {"basophil/a.png": Place(label="basophil"), "basophil/b.png": Place(label="basophil")},
    "a single unknown class": {"wrap/blue/a.png": Place(label="blue"), "wrap/blue/b.png": Place(label="blue")},
    "classes named as patients are": {"S1/a.png": Place(label="S1"), "S2/b.png": Place(label="S2")},
    "stray images": {
        "basophil/a.png": Place(label="basophil"),
        "monocyte/b.png": Place(label="monocyte"),
        "overview.png": Place(),
    },
    "stray images at every level": {
        "data/train/basophil/a.png": Place("train", label="basophil"),
        "data/test/monocyte/b.png": Place("test", label="monocyte"),
        "data/train/mosaic.png": Place("train"),
        "data/plot.png": Place(),
        "plot.png": Place(),
    },
    "spellings": {"Basophil/a.png": Place(label="Basophil"), "basophil /b.png": Place(label="basophil ")},
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@pytest.mark.parametrize("backwards", [False, True])
def test_folders_say_split_laboratory_class_and_patient(tree, backwards):
    paths = sorted(tree, reverse=backwards)
    found = read_layout(paths, is_known, resplit=False, labelled=False)
    assert dict(zip(paths, found.places, strict=True)) == tree


RAABIN = ["Train/Basophil/1.jpg", "TestA/Basophil/2.jpg", "3.jpg"]


def test_resplit_passes_through_folders_of_splits():
    places = read_layout(RAABIN, is_known, resplit=True, labelled=False).places
    assert places == (Place(label="Basophil"), Place(label="Basophil"), Place())


def test_where_a_table_says_the_classes_folders_only_name_splits():
    places = read_layout(RAABIN, is_known, resplit=False, labelled=True).places
    assert places == (Place("train"), Place("test"), Place())


def test_no_images_have_no_layout():
    assert read_layout([], is_known, resplit=False, labelled=False).places == ()


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["A/basophil/1.jpg", "B/basophil/2.jpg"], "domains: A, B"),
        (["P1/basophil/1.jpg", "P2/basophil/2.jpg"], "patients or slides stay on one side of the split: P1, P2"),
        (["basophil/0001-1000/1.jpg", "monocyte/0001-1000/2.jpg"], "without a meaning: 0001-1000"),
        (["test/basophil/1.jpg"], "named test, but none train"),
    ],
)
def test_a_note_says_how_folders_were_understood(paths, said):
    (note,) = read_layout(paths, is_known, resplit=False, labelled=False).notes
    assert said in note


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("TRAINING", "train"),
        ("Training set", "train"),
        ("train_images", "train"),
        ("val", "val"),
        ("validation-data", "val"),
        ("TestA", "test"),
        ("Test-B", "test"),
        ("test2", "test"),
        ("TEST_SIMPLE", "test"),
        ("PBC_train", ""),
        ("trainee", ""),
        ("train_test", ""),
        ("contest", ""),
        ("validated cells of lab 3", ""),
        ("", ""),
    ],
)
def test_a_split_is_known_by_its_name(name, split):
    assert split_named(name) == split


# Splits that share a folder's name with something else


@pytest.mark.parametrize(
    ("paths", "places"),
    [
        (
            ["train_basophil/1.jpg", "test_basophil/2.jpg", "train_monocyte/3.jpg", "test_monocyte/4.jpg"],
            [Place(split, label=label) for label in ("basophil", "monocyte") for split in ("train", "test")],
        ),
        (
            ["basophil_train/1.jpg", "basophil_test/2.jpg"],
            [Place("train", label="basophil"), Place("test", label="basophil")],
        ),
        (
            [f"{lab}_{split}/basophil/1.jpg" for lab in ("LabA", "LabB") for split in ("train", "test")],
            [Place(split, lab, "basophil") for lab in ("LabA", "LabB") for split in ("train", "test")],
        ),
        (
            ["train/basophil/1.jpg", "test/basophil/2.jpg", "train_augmented/basophil/3.jpg"],
            [Place(split, label="basophil") for split in ("train", "test", "train")],
        ),
    ],
    ids=["classes", "one class", "laboratories", "augmented"],
)  # fmt: skip
def test_a_folder_of_a_split_may_name_more(paths, places):
    assert list(read_layout(paths, is_known, resplit=False, labelled=False).places) == places


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Entraînement", "train"),
        ("Validación", "val"),
        ("Testdaten", "test"),
        ("测试集", "test"),
        ("entrenamiento", "train"),
    ],
)
def test_a_split_is_known_in_other_languages(name, split):
    assert split_named(name) == split


@pytest.mark.parametrize("name", ["part1", "set2", "photos3", "shard-1"])
def test_a_part_is_no_patient(name):
    paths = [f"{name}/basophil/1.jpg", "z/basophil/2.jpg"]
    assert read_layout(paths, is_known, resplit=False, labelled=False).places[0].group == ""
