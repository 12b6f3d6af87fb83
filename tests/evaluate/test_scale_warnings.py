"""Cells of other data that appear larger, smaller or less sharp than in training are said before their scores."""

import pytest

from hemafast.config import PrepareConfig
from hemafast.engine.checkpoint import View
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.evaluate.scale_warnings import scale_warnings
from hemafast.preparation.build import prepare

TRAINED = {"Acevedo_20": 0.1, "Bonn": None}


@pytest.fixture
def said(dataset):
    """`said(scales, asked="auto", trained=TRAINED, field=25.0)`: the warnings about a data set of these domains."""

    def told(scales, asked="auto", trained=TRAINED, field=25.0):
        one = next(iter(dataset.info.domains.values()))
        domains = {name: one.model_copy(update={"um_per_pixel": scale}) for name, scale in scales.items()}
        settings = dataset.info.settings | {"field_of_view": asked}
        info = dataset.info.model_copy(update={"domains": domains, "settings": settings})
        return scale_warnings(View(packed_size=64, field_of_view=field, um_per_pixel=trained), info)

    return told


def test_a_scale_near_those_of_training_is_no_warning_and_one_far_from_them_is(said):
    (far,) = said({"New": 0.14, "Tecom": 0.208, "Acevedo_20": 0.1})
    assert far.startswith("Tecom: 0.208 um/px; the model was trained at 0.1 um/px")


def test_an_unknown_scale_is_never_silent_unless_it_was_unknown_in_training(said):
    (unknown,) = said({"New lab": None, "Bonn": None})
    assert "New lab: um/px unknown, images are seen whole" in unknown
    assert "--um-per-pixel 'New lab'=NUMBER" in unknown
    assert said({"New lab": None}, trained={"Bonn": None}) == []


def test_a_model_of_whole_images_is_not_shown_cut_ones_in_silence(said):
    (cut,) = said({"New": 0.1}, trained={"Bonn": None})
    assert "prepare with --um-per-pixel New=unknown" in cut


@pytest.mark.parametrize(
    ("asked", "field", "words"),
    [
        ("whole", 25.0, "show whole images, those of training showed their central 25 um"),
        (40.0, 25.0, "show their central 40 um, those of training showed their central 25 um"),
        ("auto", None, "--field-of-view whole"),
        (25.0, 25.0, None),
        ("whole", None, None),
    ],
)
def test_another_field_of_view_is_said_once_with_the_option(said, asked, field, words):
    found = said({"New": 0.1, "Newer": 0.1}, asked, field=field)
    assert len(found) == (words is not None)
    assert all(words in one for one in found)


def test_scores_on_data_of_unknown_scale_have_the_warning(run, prepared, tmp_path):
    source, scales = prepared.folder.parent, {"Acevedo_20": "unknown"}
    prepare(PrepareConfig(source=source, output=tmp_path / "other", pack_sizes=(64,), um_per_pixel=scales, seed=7))
    warnings = evaluate_run(run, data=tmp_path / "other")["warnings"]
    assert [one for one in warnings if one.startswith("Acevedo_20: um/px unknown")]
    assert not [one for one in warnings if one.startswith("Matek_19")]
