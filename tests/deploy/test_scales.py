"""The scale of images that nothing says: by nuclei, and then by those of the classes that models see in them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from exported import CARD, write_run

from hemafast.demo.cells import ACEVEDO_20, draw_cell
from hemafast.deploy import scales
from hemafast.deploy.inputs import list_inputs
from hemafast.deploy.model import open_model
from hemafast.deploy.plan import Options, plan_for
from hemafast.deploy.predict import classify
from hemafast.engine.checkpoint import Calibration

MONOCYTE = 15.5  # um: nuclei of drawn monocytes, which differ from real ones
SIZES = (9.0, None, MONOCYTE)


@pytest.fixture(scope="module")
def monocytes():
    """Drawn at 0.1 um/px."""
    return [draw_cell("monocyte", ACEVEDO_20, np.random.default_rng([5, number])) for number in range(8)]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return open_model(write_run(tmp_path_factory.mktemp("run")), device="cpu")


def answering(opened, logits, nuclei=SIZES, **view):
    """A model whose logits are what `logits` makes of images (n, 3, side, side)."""
    calibration = Calibration(temperature=1.0, threshold=None, target=0.95, images=40, nuclei=nuclei)
    card = replace(opened.card, calibration=calibration, view=replace(CARD.view, **view))
    return replace(opened, card=card, _logits_of=logits, likeness=None)


def always(*logits):
    return lambda images: torch.tensor([logits]).repeat(len(images), 1)


MONOCYTES, UNSURE = always(0.0, 0.0, 9.0), always(0.0, 0.0, 0.0)


def found(models, images):
    """The scale in um/px by which images are cut, and what is said of it."""
    group = plan_for(models, list_inputs(images), Options()).groups[0]
    return models[0].card.view.field_of_view / int(group.crops.sides[0]), group.crops.estimates[0]


def test_images_of_one_class_have_the_scale_that_the_nuclei_of_this_class_say(opened, monocytes):
    first, said = found([answering(opened, MONOCYTES, nuclei=None)], monocytes)
    assert first == pytest.approx(0.062, abs=0.005)
    assert "classes" not in said
    second, said = found([answering(opened, MONOCYTES)], monocytes)
    assert second == pytest.approx(ACEVEDO_20.um_per_px, rel=0.1)
    assert "by the nuclei of 8 cells and the predicted classes of 8" in said


def test_images_are_classified_again_at_the_better_scale(opened, monocytes):
    seen = []

    def by_size(images):  # smaller than they are, they look like the small class in part
        seen.append(float((images < 100).float().mean()))
        return torch.tensor([[0.0, -9.0, 0.2 if len(seen) == 1 else 9.0]]).repeat(len(images), 1)

    scale, _ = found([answering(opened, by_size)], monocytes)
    assert scale == pytest.approx(ACEVEDO_20.um_per_px, rel=0.1)
    assert 2 <= len(seen) <= 3
    assert seen[1] > 1.2 * seen[0]  # the crop became smaller, and the nucleus in it larger


@pytest.mark.parametrize(
    ("logits", "nuclei", "images"),
    [
        (UNSURE, SIZES, 8),
        (always(0.0, 9.0, 0.0), SIZES, 8),  # the class whose nuclei are not known
        (always(0.0, float("nan"), 9.0), SIZES, 8),
        (MONOCYTES, None, 8),
        (MONOCYTES, (None, None, None), 8),
    ],
)
def test_without_classes_to_go_by_the_first_estimate_stays(opened, monocytes, logits, nuclei, images):
    scale, said = found([answering(opened, logits, nuclei)], monocytes[:images])
    assert scale == pytest.approx(0.062, abs=0.005)
    assert "classes" not in said


def test_too_few_nuclei_are_no_measure_with_classes_either(opened, monocytes):
    plan = plan_for([answering(opened, MONOCYTES)], list_inputs(monocytes[:4]), Options())
    assert plan.groups[0].crops.unknown == 4


def test_a_scale_moves_no_further_than_a_set_of_one_class_may_be_off(opened, monocytes):
    first, _ = found([answering(opened, MONOCYTES, nuclei=None)], monocytes)
    scale, _ = found([answering(opened, MONOCYTES, nuclei=(None, None, 40.0))], monocytes)
    assert scale == pytest.approx(1.5 * first, rel=0.01)


def test_models_of_several_views_share_one_estimate_by_what_all_say(opened, monocytes, monkeypatch):
    measured, measure = [], scales.measure_encoded
    monkeypatch.setattr(scales, "measure_encoded", lambda *given: measured.append(1) or measure(*given))
    wide = answering(opened, always(0.0, -9.0, 0.0), field_of_view=50.0)
    models = [answering(opened, MONOCYTES), wide, answering(opened, UNSURE, None, packed_size=48)]
    plan = plan_for(models, list_inputs(monocytes), Options())
    assert len(measured) == 1
    assert len({group.crops.estimates for group in plan.groups}) == 1
    first, second, third = (int(group.crops.sides[0]) for group in plan.groups)
    assert (first, second) == (third, pytest.approx(2 * first, abs=1))
    assert 0.075 < 25.0 / first < 0.095  # three of four say monocyte, the rest the small class


def test_a_scale_that_is_given_needs_no_estimate(opened, monocytes, monkeypatch):
    monkeypatch.setattr(scales, "measure_encoded", lambda *given: pytest.fail("images were read for their scale"))
    for given in (0.1, "unknown"):
        plan = plan_for([answering(opened, MONOCYTES)], list_inputs(monocytes), Options(um_per_pixel=given))
        assert (classify(plan)["predicted"] == "monocyte").all()
