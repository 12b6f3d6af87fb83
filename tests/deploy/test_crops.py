"""Which part of an image is seen, by the scale that its path or the user gives."""

import logging

import numpy as np
import pytest

from hemafast.deploy.crops import choose_crops, log_scales
from hemafast.deploy.inputs import Image
from hemafast.engine.checkpoint import View
from hemafast.errors import HemafastError
from hemafast.preparation.scale import ScaleEstimate

VIEW = View(packed_size=64, field_of_view=25.0, um_per_pixel={"Acevedo_20": 0.1, "Matek_19": 0.0725, "Lab": None})


NOTHING = ScaleEstimate(None, None, None, 1, 9)


def sides(*names, view=VIEW, um_per_pixel=None):
    """Sides in pixels; scales are logged. No scale can be estimated."""
    chosen = choose_crops([Image(name) for name in names], view, um_per_pixel, lambda images: NOTHING)
    log_scales([chosen, chosen])
    return chosen.sides.tolist()


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("Acevedo_20/basophil/a.jpg", 250),
        ("prepared/images/Matek_19/basophil/a.tiff", 345),
        ("/data/Acevedo_20.zip/basophil/a.jpg", 250),
        ("/data/Matek_19.ZIP/a.jpg", 345),
        ("Matek_19/Acevedo_20.zip/a.jpg", 250),
        ("Acevedo_20/../Matek_19/a.jpg", 345),
        ("Lab/a.jpg", 0),
    ],
)
def test_the_scale_is_that_of_the_innermost_domain_in_the_path(name, side, caplog):
    with caplog.at_level(logging.WARNING, "hemafast"):
        assert sides(name) == [side]
    assert not caplog.records


@pytest.mark.parametrize("name", ["cells/a.jpg", "acevedo_20/a.jpg", "cells/Acevedo_20.jpg", "Acevedo_20.rar/a.jpg"])
def test_without_a_domain_in_the_path_the_image_is_seen_whole_under_a_warning(name, caplog):
    with caplog.at_level(logging.WARNING, "hemafast"):
        assert sides(name, "Matek_19/b.jpg", name) == [0, 345, 0]
    (record,) = caplog.records
    assert record.getMessage().startswith("2 images are of unknown scale")
    assert "um_per_pixel (--um-per-pixel)" in record.getMessage()


def test_the_folder_that_one_stands_in_counts_too(tmp_path, monkeypatch):
    (tmp_path / "Acevedo_20").mkdir()
    monkeypatch.chdir(tmp_path / "Acevedo_20")
    assert sides("./a.jpg", "a.jpg") == [250, 250]


def test_a_scale_that_is_given_goes_before_all_domains(caplog):
    with caplog.at_level(logging.WARNING, "hemafast"):
        assert sides("Acevedo_20/a.jpg", "cells/b.jpg", um_per_pixel=0.125) == [200, 200]
    assert not caplog.records


def test_a_scale_that_is_given_and_far_from_those_of_training_is_doubted_once(caplog):
    with caplog.at_level(logging.WARNING, "hemafast"):
        assert sides("Acevedo_20/a.jpg", "cells/b.jpg", um_per_pixel=0.2) == [125, 125]
    assert [one.getMessage().partition(", and")[0] for one in caplog.records] == [
        "um_per_pixel = 0.2: the model was trained at 0.0725 to 0.1 um/px"
    ]


def test_a_scale_that_leaves_a_few_pixels_is_refused():
    with pytest.raises(HemafastError, match="12 pixels at 2 um/px"):
        sides("a.jpg", um_per_pixel=2.0)


@pytest.mark.parametrize(
    ("view", "given"),
    [
        (View(packed_size=64, field_of_view=None, um_per_pixel={"Acevedo_20": 0.1}), None),
        (View(packed_size=64, field_of_view=None, um_per_pixel={"Acevedo_20": 0.1}), 0.1),
        (View(packed_size=64, field_of_view=25.0, um_per_pixel={"Acevedo_20": None}), None),
        (View(packed_size=64, field_of_view=25.0, um_per_pixel={"Acevedo_20": None}), "unknown"),
    ],
)
def test_a_model_that_knows_no_scale_sees_whole_images_without_a_word(view, given, caplog):
    with caplog.at_level(logging.INFO, "hemafast"):
        assert sides("Acevedo_20/a.jpg", "cells/b.jpg", view=view, um_per_pixel=given) == [0, 0]
    assert not caplog.records


def test_the_scale_that_a_path_stands_for_is_told_once(caplog):
    with caplog.at_level(logging.INFO, "hemafast"):
        sides("Acevedo_20/a.jpg", "Lab/b.jpg", "Acevedo_20/c.jpg")
    assert [record.getMessage() for record in caplog.records] == [
        "1 image of Lab: seen whole, as in training",
        "2 images of Acevedo_20: 0.1 um/px, as in training",
    ]


def test_a_user_can_have_images_seen_whole_under_a_warning(caplog):
    with caplog.at_level(logging.INFO, "hemafast"):
        assert sides("Acevedo_20/a.jpg", "cells/b.jpg", um_per_pixel="unknown") == [0, 0]
    (record,) = caplog.records
    assert record.getMessage().startswith("2 images are of unknown scale")


# Estimates


def estimated(images, scales, caplog, by_side=None):
    """The crops by scales that are estimated of sets, by the name of their first image; and what is logged."""

    def estimate(some):
        scale = scales.get(some[0].named)
        return ScaleEstimate(scale, scale * 0.8, scale * 1.2, 50, 60, by_side or {}) if scale else NOTHING

    chosen = choose_crops(images, VIEW, None, estimate)
    with caplog.at_level(logging.WARNING, "hemafast"):
        log_scales([chosen, chosen])
    return chosen, [record.getMessage() for record in caplog.records]


def test_images_that_are_named_together_get_one_estimate_unless_a_folder_says_more(caplog):
    images = [
        Image("new/mono/a.jpg", named="new"),
        Image("Acevedo_20/b.jpg", named="Acevedo_20"),
        Image("new/baso/c.jpg", named="new"),
        Image("other/d.jpg", named="other"),
        Image("cells/e.jpg"),
    ]
    chosen, said = estimated(images, {"new": 0.08, "other": 0.09}, caplog)
    assert chosen.sides.tolist() == [312, 250, 312, 278, 0]
    assert chosen.unknown == 1
    assert [words.partition(":")[0] for words in said[:2]] == ["1 image of other", "2 images of new"]
    assert "about 0.08 um/px (0.064 to 0.096), by the nuclei of 50 cells" in said[1]
    assert all("--um-per-pixel" in words for words in said)
    assert said[2].startswith("1 image is of unknown scale")


@pytest.mark.parametrize(("scale", "outside"), [(0.049, False), (0.14, False), (0.16, True), (0.045, True)])
def test_a_scale_far_from_those_of_training_is_said(caplog, scale, outside):
    _, (said,) = estimated([Image("cells/a.jpg")], {"": scale}, caplog)
    assert ("trained at 0.0725 to 0.1 um/px" in said) == outside


def test_sizes_that_differ_in_scale_are_each_cut_by_their_own(caplog):
    images = [Image("new/a.jpg", named="new"), Image("Acevedo_20/b.jpg"), Image("new/c.jpg", named="new")]
    chosen, (said,) = estimated(images, {"new": 0.1}, caplog, by_side={200: 0.2, 400: 0.1})
    assert "sizes differ in scale" in said
    assert chosen.asked([0, 1, 2], np.array([200, 200, 300])).tolist() == [125, 250, 250]
    assert chosen.asked([2], np.array([400])).tolist() == [250]
