"""Pictures of gains show what the tables beside them say."""

import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import gains  # a script beside the package, not a part of it
from output import Results

RESULTS = Results(Path(gains.__file__).parent / "results")
ONE = {"one": {"side": gains.Gain(0.1, 0.0, 0.2)}}


def test_each_picture_has_the_gains_of_its_result():
    drawn = dict(gains.pictures(RESULTS))
    assert [*drawn] == ["lineage_loss", "lineage_policy", "ensembles"]
    scores = RESULTS["lineage"]["scores"]["policy"]
    ((title, panel),) = drawn["lineage_policy"].items()
    assert title == "gain in macro-F1 over lineage"
    assert [*panel] == [side for side in scores if side != "lineage"]
    strong = scores["strong"]["macro_f1"]["gain"]
    assert panel["strong"] == (strong["mean"], *strong["ci95"])
    made = RESULTS["ensembles"]
    assert len(drawn["ensembles"]) == len(made["data"])
    soup = drawn["ensembles"]["Acevedo_20: gain in macro-F1 over one seed"]["soup, 44 images/s"]
    assert soup.mean == made["sides"]["soup"]["scores"]["Acevedo_20"]["difference"]["macro_f1"]


@pytest.mark.parametrize("panels", [ONE, dict(gains.pictures(RESULTS))["ensembles"]])
def test_they_can_be_drawn(panels, tmp_path):
    gains.draw(panels, tmp_path / "gains.png")
    with Image.open(tmp_path / "gains.png") as picture:
        assert picture.width == 770
