"""Whose cells they are: tables, folders, a run, a table of predictions, hostile names."""

import shutil

import numpy as np
import pandas as pd
import pytest

from hemafast.deploy.plan import Options
from hemafast.errors import HemafastError
from hemafast.evaluate.predictions import read_predictions
from hemafast.files import write_table
from hemafast.patients.cells import read_cells, read_patient_labels
from hemafast.report.embedding import Named
from hemafast.run_folder import PREDICTIONS


@pytest.fixture(scope="module")
def read(scored, slides):
    return read_cells([scored, slides], Named(), Options(device="cpu", um_per_pixel="unknown"))


def write(file, table):
    table.to_csv(file, index=False)
    return file


def test_folders_are_patients_where_nothing_else_says_so(read):
    """Class folders within are none."""
    assert read.table.groupby("patient").size().to_dict() == {"007": 12, "8": 7}
    assert (read.table["error"] != "").sum() == 1
    assert len(read.features) == len(read.tiles) == 19
    assert len(read.network) == 64
    assert read.home is not None


def test_folders_of_one_name_are_told_apart_by_those_around(scored, slides, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(slides / "007", tmp_path / name / "1" / "monocyte", dirs_exist_ok=True)
    cells = read_cells([scored, tmp_path], Named(), Options(device="cpu", um_per_pixel="unknown"))
    assert set(cells.table["patient"]) == {"first/1", "second/1"}


def test_a_table_says_whose_images_they_are_and_keeps_zeros(scored, slides, tmp_path):
    images = sorted(path for path in slides.rglob("*.png") if path.parent.parent.name == "007")
    rows = pd.DataFrame({"file": [f"{path.parent.name}/{path.name}" for path in images], "patient": ["012"] * 12})
    file = write(tmp_path / "whose.csv", rows.iloc[:9])
    cells = read_cells([scored, slides / "007"], Named(groups=file), Options(device="cpu", um_per_pixel="unknown"))
    assert cells.table["patient"].value_counts().to_dict() == {"012": 9, "": 3}


def test_a_run_alone_gives_its_validation_images_with_their_labels(scored, tmp_path):
    images = read_predictions(scored / PREDICTIONS)[0]["image"]
    file = write(tmp_path / "whose.csv", pd.DataFrame({"path": images, "patient": np.resize(["1", "2"], len(images))}))
    cells = read_cells(scored, Named(groups=file))
    assert len(cells.table) == len(images)
    assert (cells.table["label"] != "").all()
    assert set(cells.table["domain"]) == {"Acevedo_20", "Matek_19"}
    assert cells.home is cells.table
    assert cells.features is None


def test_a_run_whose_patients_nobody_names_is_refused(scored):
    with pytest.raises(HemafastError, match=r"does not say whose the .* are\. Name a table"):
        read_cells([scored], Named())


@pytest.mark.parametrize("column", ["patient", "group", "slide_id"])
def test_a_table_of_predictions_may_have_the_patients_itself(scored, tmp_path, column):
    table, classes, _ = read_predictions(scored / PREDICTIONS)
    owners = ["007"] * 3 + [""] * 2 + ["=1+1"] * (len(table) - 5)
    cells = read_cells([write(tmp_path / "predictions.csv", table.assign(**{column: owners}))], Named())
    assert cells.classes == classes
    assert cells.table["patient"].tolist() == owners
    assert cells.table["label"].tolist() == table["label"].tolist()
    assert cells.home is None


@pytest.mark.parametrize("suffix", [".tsv", ".xlsx", ".parquet"])
def test_a_table_of_predictions_may_be_any_that_predict_writes(scored, tmp_path, suffix):
    table = read_predictions(scored / PREDICTIONS)[0].assign(patient="007")
    text, other = (tmp_path / f"predictions{end}" for end in (".csv", suffix))
    for file in (text, other):
        write_table(file, table)
    expected, found = (read_cells([file], Named()) for file in (text, other))
    pd.testing.assert_frame_equal(found.table, expected.table)
    assert found.classes == expected.classes


def test_predictions_without_labels_are_read_too(tmp_path):
    table = pd.DataFrame({
        "image": ["a.png", "b.png", "c.png"], "status": ["ok", "abstained", "error"], "error": ["", "", "damaged"],
        "likeness": [0.5, 0.4, ""], "predicted": ["monocyte", "", ""], "confidence": [0.9, 0.3, ""],
        "p_monocyte": [0.9, 0.3, ""], "p_basophil": [0.1, 0.7, ""], "patient": ["1", "1", "1"],
    })  # fmt: skip
    cells = read_cells([write(tmp_path / "predictions.csv", table)], Named())
    assert cells.table["predicted"].tolist() == ["monocyte", "", ""]
    assert cells.table["error"].tolist() == ["", "", "damaged"]
    assert cells.table["label"].tolist() == ["", "", ""]
    assert np.isnan(cells.table["confidence"].iloc[2])


@pytest.mark.parametrize("likeness", ["much", 1.5, -0.1])
def test_numbers_that_are_no_shares_are_refused(tmp_path, likeness):
    table = pd.DataFrame({
        "image": ["a.png", "b.png"], "patient": ["1", "2"], "likeness": ["", likeness], "predicted": ["x", "x"],
        "confidence": [0.9, 0.8], "p_x": [0.9, 0.8],
    })  # fmt: skip
    with pytest.raises(HemafastError, match=r"likeness of b\.png is"):
        read_cells([write(tmp_path / "predictions.csv", table)], Named())


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07", "a\nb", "\x9b31m"])
def test_names_that_command_a_terminal_are_refused(scored, tmp_path, name):
    table = read_predictions(scored / PREDICTIONS)[0]
    file = tmp_path / "predictions.parquet"
    table[["image"]].assign(patient=name).to_parquet(file)
    with pytest.raises(HemafastError, match="unprintable"):
        read_cells([scored], Named(groups=file))


def test_a_model_without_images_and_a_missing_table_are_refused(scored, tmp_path):
    with pytest.raises(HemafastError, match="no images are named"):
        read_cells([scored / "best_model.safetensors"], Named())
    with pytest.raises(HemafastError, match="cannot be read"):
        read_cells([tmp_path / "none.csv"], Named())


def test_labels_of_patients_are_read_by_their_names(tmp_path):
    table = pd.DataFrame({"patient": ["007", "8", "9", "10"], "diagnosis": ["AML", "none", "", "AML"]})
    file = write(tmp_path / "diagnoses.csv", table)
    assert read_patient_labels(file, ["007", "8", "9", "11"]) == {"007": "AML", "8": "none"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"patient": ["1", "1"], "diagnosis": ["AML", "CML"]}, "1 is both AML and CML"),
        ({"patient": ["7"], "diagnosis": ["AML"]}, "lists none of the patients: 7"),
        ({"name": ["1"], "diagnosis": ["AML"]}, "no column group"),
    ],
)
def test_labels_that_contradict_or_fit_nobody_are_refused(tmp_path, rows, words):
    with pytest.raises(HemafastError, match=words):
        read_patient_labels(write(tmp_path / "diagnoses.csv", pd.DataFrame(rows)), ["1", "007"])
