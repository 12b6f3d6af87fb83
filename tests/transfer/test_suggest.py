"""Which cells to label first: different ones, of all predicted classes; and what is handed over."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from page import needs_browser, wrong_with

from hemafast.errors import HemafastError
from hemafast.transfer.suggest import choose_cells, suggest


@pytest.fixture
def answers():
    """90 cells in nine clusters, three for each predicted class; the third class is rare."""
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(9), [20, 12, 8, 16, 14, 11, 3, 3, 3])
    features = 20 * np.eye(9)[clusters] + generator.normal(0, 0.5, (90, 9))
    probabilities = np.full((90, 3), 0.2)
    probabilities[np.arange(90), clusters // 3] = 0.6
    return features, probabilities, clusters


def test_the_first_cells_are_of_all_clusters_and_classes(answers):
    features, probabilities, clusters = answers
    rows = choose_cells(features, probabilities, 9)
    assert len(set(rows)) == 9
    assert len(set(clusters[rows])) == 9
    assert np.bincount(clusters[rows] // 3).tolist() == [3, 3, 3]


def test_all_cells_are_chosen_if_there_are_fewer_than_asked_for(answers):
    features, probabilities, _ = answers
    assert sorted(choose_cells(features, probabilities, 1000)) == list(range(90))


def test_copies_of_one_cell_are_chosen_last():
    features = np.repeat(np.arange(4.0)[:, None], [5, 1, 1, 1], axis=0)
    rows = choose_cells(features, np.full((8, 2), 0.5), 8)
    assert sorted(features[rows[:4], 0]) == [0, 1, 2, 3]
    assert sorted(rows) == list(range(8))


def test_doubtful_cells_are_preferred(answers):
    _, probabilities, _ = answers
    generator = np.random.default_rng(1)
    doubtful = generator.random(90) < 0.5
    probabilities[~doubtful] = np.where(probabilities[~doubtful] > 0.5, 0.998, 0.001)
    rows = choose_cells(generator.normal(0, 1, (90, 9)), probabilities, 30)
    assert doubtful[rows].mean() > 0.65


def test_copies_a_table_and_a_page_are_handed_over(scored, laboratory, tmp_path):
    done = suggest(scored, str(laboratory), tmp_path / "to-label", count=5, device="cpu")
    table = pd.read_csv(tmp_path / "to-label" / "labels.csv", keep_default_na=False)
    assert list(table.columns) == ["path", "label", "predicted", "confidence", "copy"]
    assert (table["label"] == "").all()
    for path, copy in zip(table["path"], table["copy"], strict=True):
        assert (tmp_path / "to-label" / copy).read_bytes() == Path(path).read_bytes()
    page = (tmp_path / "to-label" / "label.html").read_text()
    assert page.count("<figure>") == 5
    assert done.to_plain()["next"].endswith("labels.csv")
    with pytest.raises(HemafastError, match="is not an empty folder"):
        suggest(scored, str(laboratory), tmp_path / "to-label", count=5, device="cpu")


@needs_browser
@pytest.mark.slow
def test_the_page_is_sound_in_every_look(scored, laboratory, tmp_path, open_page):
    done = suggest(scored, str(laboratory), tmp_path / "to-label", count=12, device="cpu")
    assert wrong_with(open_page, done.folder / "label.html") == {}


def test_arrays_are_handed_over_as_pictures(scored, draw, tmp_path):
    from PIL import Image

    suggest(scored, [draw(1), draw(2), draw(3)], tmp_path / "to-label", count=2, device="cpu")
    pictures = sorted((tmp_path / "to-label" / "cells").iterdir())
    assert len(pictures) == 2
    number = int(pictures[0].stem.partition("_")[2])
    np.testing.assert_array_equal(np.asarray(Image.open(pictures[0])), draw(number + 1))
