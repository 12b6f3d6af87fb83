"""Tables of predictions are read whole or refused in words."""

import numpy as np
import pytest

from hemafast.errors import HemafastError
from hemafast.evaluate.predictions import prediction_table, read_predictions

SHARES = np.array([[0.75, 0.25], [np.nan, np.nan]])


def _written(folder, shares, **columns):
    file = folder / "predictions.csv"
    names = [f"{row}.png" for row in range(len(shares))]
    table = prediction_table(("a", "7"), shares, {"image": names, "domain": ["A"] * len(shares), **columns})
    table.to_csv(file, index=False)
    return file


def test_confidences_and_probabilities_are_numbers_and_names_are_text(tmp_path):
    table, classes, found = read_predictions(_written(tmp_path, SHARES[:1], label=["7"]))
    assert (classes, found.tolist()) == (("a", "7"), [[0.75, 0.25]])
    assert table.loc[0, ["label", "predicted", "confidence"]].tolist() == ["7", "a", 0.75]


def test_an_image_without_an_answer_is_read_where_there_are_no_labels(tmp_path):
    table, _, found = read_predictions(_written(tmp_path, SHARES), labelled=False)
    assert table["predicted"].tolist() == ["a", ""]
    assert np.array_equal(found, SHARES, equal_nan=True)
    assert np.isnan(table["confidence"][1])


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        (",0.75,0.56", ",,0.56", "nan is no probability"),
        (",0.75,0.25", ",,0.25", "nan is no probability"),
        (",0.75,0.25", ",1.5,0.25", "1.5 is no probability"),
        ("A,7,a,", "A,7,,", "column predicted has ''"),
        ("A,7,a,", "A,b,a,", "column label has 'b'"),
        ("1.png", "0.png", "'0.png' is there twice"),
        ("confidence", "sure", "it has no column confidence"),
    ],
)
def test_a_labelled_table_with_a_gap_or_another_value_is_refused(tmp_path, was, becomes, said):
    file = _written(tmp_path, SHARES[[0, 0]], label=["7", "7"])
    whole = file.read_text()
    assert was in whole
    file.write_text(whole.replace(was, becomes, 1))
    with pytest.raises(HemafastError, match=rf"predictions.csv cannot be read \(.*{said}.*Run `hemafast evaluate`"):
        read_predictions(file)
