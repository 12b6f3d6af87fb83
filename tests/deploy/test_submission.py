"""The challenge's form: its columns, its order of classes, and what cannot be submitted."""

import numpy as np
import pandas as pd
import pytest
from command import hemafast
from exported import CARD, write_run

from hemafast.deploy.submission import refuse_submission, submission_table
from hemafast.errors import HemafastError
from hemafast.taxonomy import CHALLENGE_CLASSES, SUBMISSION_CLASSES

LABEL_IDS = {
    "basophil": 0,
    "eosinophil": 1,
    "erythroblast": 2,
    "myeloblast": 3,
    "promyelocyte": 4,
    "myelocyte": 5,
    "metamyelocyte": 6,
    "neutrophil_banded": 7,
    "neutrophil_segmented": 8,
    "monocyte": 9,
    "lymphocyte_typical": 10,
}
"""As the starter code of the challenge has them."""


def test_every_class_has_the_label_id_of_the_challenge():
    rows = pd.DataFrame({"image": [f"x/{name}.TIF" for name in CHALLENGE_CLASSES], "predicted": CHALLENGE_CLASSES})
    table = submission_table(rows)
    assert list(table) == ["Image", "Label", "LabelID"]
    assert dict(zip(table["Label"], table["LabelID"], strict=True)) == LABEL_IDS
    assert table["Image"].tolist() == [f"{name}.TIF" for name in CHALLENGE_CLASSES]
    assert sorted(SUBMISSION_CLASSES) == sorted(CHALLENGE_CLASSES)


def test_the_command_writes_file_names_and_the_classes_that_it_predicts(fitted, cells, tmp_path):
    assert hemafast("predict", fitted, cells, "--output", tmp_path / "all.csv").returncode == 0
    result = hemafast("predict", fitted, cells, "--output", tmp_path / "sub.csv", "--submission")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "sub.csv").read_text().splitlines()[0] == "Image,Label,LabelID"
    full, table = pd.read_csv(tmp_path / "all.csv"), pd.read_csv(tmp_path / "sub.csv")
    assert table["Image"].tolist() == ["A_000.png", "A_001.png", "B_000.png"]
    assert table["Label"].tolist() == full["predicted"].tolist()
    assert table["LabelID"].tolist() == [LABEL_IDS[name] for name in full["predicted"]]
    assert np.issubdtype(table["LabelID"].dtype, np.integer)


def test_bad_images_are_left_out_and_said(fitted, cells, tmp_path):
    (cells / "a" / "bad.png").write_bytes(b"x")
    result = hemafast("predict", fitted, cells, "--output", tmp_path / "sub.csv", "--submission")
    assert result.returncode == 1
    assert "1 of 4 images" in result.stderr
    assert "left out of the submission" in result.stderr
    assert "bad.png" not in (tmp_path / "sub.csv").read_text()
    assert len(pd.read_csv(tmp_path / "sub.csv")) == 3


@pytest.mark.parametrize(
    ("images", "classes", "threshold", "words"),
    [
        (["a.png"], ("basophil", "größe"), None, "not those of the challenge"),
        (["a.png"], CHALLENGE_CLASSES[1:], None, "not those of the challenge"),
        (["a.png"], CHALLENGE_CLASSES, 0.5, "for every image"),
        (["x/1.TIF", "x/2.TIF", "d.zip/y/1.TIF"], CHALLENGE_CLASSES, None, r"x/1\.TIF and d\.zip/y/1\.TIF"),
        (["x/=1.TIF"], CHALLENGE_CLASSES, None, "formula"),
    ],
)
def test_what_cannot_be_submitted_is_refused(images, classes, threshold, words):
    with pytest.raises(HemafastError, match=words):
        refuse_submission(images, classes, threshold)


def test_classes_may_be_in_any_order():
    refuse_submission(["x/1.TIF", "x/2.TIF"], SUBMISSION_CLASSES, None)


@pytest.mark.parametrize("options", [["--abstain-below", "0.5"], ["--other"]])
def test_the_command_refuses_before_it_begins(fitted, cells, tmp_path, options):
    run = write_run(tmp_path / "other", CARD) if options == ["--other"] else fitted
    arguments = ["predict", run, cells, "--submission", "--output", tmp_path / "new" / "sub.csv"]
    result = hemafast(*arguments, *(options if run == fitted else []))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert not (tmp_path / "new").exists()
