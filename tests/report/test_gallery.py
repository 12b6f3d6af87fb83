"""The cells that the page shows."""

from pathlib import Path

import numpy as np
import pytest

from hemafast.config import TrainConfig, to_plain
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.report import gallery as module
from hemafast.report.compare import changed_settings
from hemafast.report.gallery import listing, open_gallery
from hemafast.run_folder import read_metrics


def gallery_of(run):
    data = read_metrics(run)["data"]
    return open_gallery(run / "predictions.csv", Path(data["folder"]), data["fingerprint"])


def test_mistakes_come_first_and_the_surest_of_them_before_the_others(scored):
    gallery = gallery_of(scored)
    wrong = gallery.wrong
    count = wrong.sum()
    assert 0 < count < len(wrong)
    assert wrong[:count].all()
    assert not wrong[count:].any()
    confidence = gallery.table["confidence"].astype(float).to_numpy()
    assert (np.diff(confidence[:count]) <= 0).all()
    assert (np.diff(confidence[count:]) >= 0).all()


def test_what_is_told_of_a_cell_are_its_likeliest_classes(scored):
    gallery = gallery_of(scored)
    for place, row in gallery.table.iterrows():
        told = gallery.told(place)
        assert told[0] == (row["predicted"], pytest.approx(float(row["confidence"])))
        assert [share for _, share in told] == sorted((share for _, share in told), reverse=True)


def test_the_pixels_are_those_of_the_file_that_is_named(scored, dataset):
    gallery = gallery_of(scored)
    rows = {path: row for row, path in enumerate(dataset.table["path"])}
    packed = dataset.files.packed[64]
    for place in (0, len(gallery.table) - 1):
        square = packed[rows[gallery.table["image"][place]]]
        assert np.array_equal(gallery.views([place], 56)[0], square[4:60, 4:60])


def test_pictures_and_names_are_capped_and_the_page_can_say_so(scored, monkeypatch):
    monkeypatch.setattr(module, "LISTED", 5)
    gallery = gallery_of(scored)
    assert len(gallery.table) == 5 < gallery.images
    pictures = gallery.thumbnails(3)
    said = listing(gallery, pictures)
    assert len(said["pictures"]) == 3
    assert len(said["cells"]) == 5


def test_without_its_data_set_there_are_names_and_no_pictures(scored, tmp_path):
    data = read_metrics(scored)["data"]
    for folder, fingerprint in ((tmp_path, data["fingerprint"]), (Path(data["folder"]), "0" * 64)):
        gallery = open_gallery(scored / "predictions.csv", folder, fingerprint)
        assert gallery.thumbnails(10) == []
        assert len(listing(gallery, [])["cells"]) == gallery.images


def test_predictions_about_files_that_are_not_there_get_no_pictures(run):
    evaluate_run(run)
    table = run / "predictions.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("images/", "../../etc/"), encoding="utf-8")
    assert gallery_of(run).thumbnails(10) == []


def test_only_settings_that_differ_are_compared():
    first, second = (to_plain(TrainConfig(epochs=epochs, output=f"runs{epochs}")) for epochs in (1, 2))
    assert changed_settings([first, second, first]) == {"epochs": [1, 2, 1]}
