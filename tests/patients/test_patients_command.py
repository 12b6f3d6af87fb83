"""`hemafast patients` and `hf.count_patients`: files, page, JSON, hostile names, mistakes."""

import json

import numpy as np
import pandas as pd
import pytest
from command import hemafast
from drawn_patients import learn_labels
from page import Page

import hemafast as hf
from hemafast.evaluate.predictions import read_predictions
from hemafast.patients.written import HEAD, PAGE, RESULT, TABLE
from hemafast.run_folder import PREDICTIONS

HOSTILE = ("<script>alert(1)</script>", "[red]../../etc[/red]", "=1+1", "{{ 7 * 7 }}", "a/b\\c", "007", "-3")


@pytest.fixture(scope="module")
def predictions(scored, tmp_path_factory):
    """Predictions of a run with labels, and hostile names of patients."""
    table = read_predictions(scored / PREDICTIONS)[0]
    file = tmp_path_factory.mktemp("predictions") / "predictions.csv"
    table.assign(patient=np.resize(HOSTILE, len(table))).to_csv(file, index=False)
    return file


@pytest.fixture(scope="module")
def learned(scored, tmp_path_factory, make_archive):
    folder = tmp_path_factory.mktemp("learned")
    return folder, learn_labels(scored, folder, make_archive)


def test_a_table_a_page_and_the_result_are_written(predictions, tmp_path):
    done = hemafast("patients", predictions, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {TABLE, RESULT, PAGE}
    table = pd.read_csv(tmp_path / "out" / TABLE, dtype={"patient": str}, keep_default_na=False)
    assert set(table["patient"]) == {name if name[0] not in "=-" else f"'{name}" for name in HOSTILE}
    result = json.loads((tmp_path / "out" / RESULT).read_text(encoding="utf-8"))
    assert {one["patient"] for one in result["patients"]} == set(HOSTILE)
    assert sum(one["images"] for one in result["patients"]) == len(read_predictions(predictions)[0])
    assert (table["leukocytes"].sum(), table["monocyte"].sum()) == tuple(
        sum(counts)
        for counts in zip(
            *((one["leukocytes"], one["classes"]["monocyte"]["count"]) for one in result["patients"]), strict=True
        )
    )
    assert "[red]../../etc[/red]: " in done.stdout
    assert str(tmp_path / "out" / PAGE) in done.stdout
    assert not [path for path in tmp_path.rglob("*") if path.name not in {"out", TABLE, RESULT, PAGE}]


def test_the_page_is_alone_and_shows_names_as_they_are(predictions, tmp_path):
    hemafast("patients", predictions, "--output", tmp_path / "out")
    page = Page((tmp_path / "out" / PAGE).read_text(encoding="utf-8"))
    assert page.is_alone
    assert "script" not in page.tags
    for name in HOSTILE:
        assert name in page.text
    assert "Against labels" in page.text


def test_the_command_and_the_library_say_the_same(predictions, tmp_path):
    done = hemafast(
        "patients", predictions, "--output", tmp_path / "a", "--cells", "200", "--call", "monocyte=30", "--json"
    )
    result = hf.count_patients(predictions, tmp_path / "b", cells=200, calls={"monocyte": 30.0})
    assert json.loads(done.stdout) == {"output": str(tmp_path / "a"), **result}
    assert result["limits"] == {"monocyte": 30.0}
    for name in (TABLE, RESULT, PAGE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_unreadable_image_is_said_and_the_exit_code_is_1(scored, slides, tmp_path):
    done = hemafast("patients", scored, slides, "--output", tmp_path / "out", "--um-per-pixel", "unknown")
    assert done.returncode == 1
    result = json.loads((tmp_path / "out" / RESULT).read_text(encoding="utf-8"))
    assert [one["unreadable"] for one in result["patients"]] == [0, 1]
    assert "1 of 7 images cannot be read" in result["patients"][1]["notes"]


def test_labels_of_patients_are_learned_scored_and_given_to_others(learned):
    folder, result = learned
    scores = result["labels"]["scores"]
    assert scores["patients"] == {"<i>ill": 6, "well": 5}
    low, high = scores["ci95"]["auroc"]
    assert low <= scores["auroc"] <= high
    assert "11 patients are few" in scores["verdict"]
    assert result["patients"][11]["label"]["likeliest"] in ("<i>ill", "well")
    assert result["patients"][0]["adjusted"] is not None
    assert result["agreement"]["patients"] == 12
    page = Page((folder / "out" / PAGE).read_text(encoding="utf-8"))
    assert "Cells that count most for the label" in page.text
    assert "i" not in page.tags
    assert page.is_alone


def test_a_stored_head_labels_new_patients(learned, scored, tmp_path):
    folder, result = learned
    arguments = (scored, folder / "slides" / "011", "--um-per-pixel", "unknown", "--device", "cpu")
    done = hemafast("patients", *arguments, "--head", folder / "out" / HEAD, "--output", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["labels"] == {"names": ["<i>ill", "well"], "scores": None}
    assert again["patients"][0]["label"]["probabilities"] == pytest.approx(
        result["patients"][11]["label"]["probabilities"], abs=1e-5
    )
    assert not (tmp_path / "out" / HEAD).exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["TABLE", "more"], "is a table"),
        (["TABLE", "--call", "monocyte"], "is not CLASS=PERCENT"),
        (["TABLE", "--call", "=20"], "is not CLASS=PERCENT"),
        (["TABLE", "--call", "blast=20"], "no class blast"),
        (["TABLE", "--adjust"], "mistakes at home are not known"),
        (["TABLE", "--patient-labels", "TABLE"], "holds no features"),
        (["TABLE", "--patient-labels", "TABLE", "--head", "TABLE"], "trains another head"),
        (["nowhere"], "There is no run nowhere"),
        (["nowhere.csv"], "There is no run nowhere.csv"),
        (["TABLE", "--output", "TABLE"], "is a file"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(predictions, tmp_path, arguments, words):
    given = [str(predictions) if one == "TABLE" else one for one in arguments]
    done = hemafast("patients", *given, *([] if "--output" in given else ["--output", "out"]), cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
