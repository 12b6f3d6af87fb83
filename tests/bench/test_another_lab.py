"""Another laboratory: runs are found again, and means say what they are of."""

import sys
from pathlib import Path

import pytest

from hemafast.config import train_config
from hemafast.data.augment import POLICIES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import another_lab  # scripts beside the package, not parts of it
import levers_elsewhere
import library

TINY = {"model": "test_resnet", "pretrained": "no", "epochs": 1, "batch_size": 16, "image_size": 32, "compile": "off"}


@pytest.mark.nightly
def test_a_finished_run_of_the_same_preset_and_seed_is_found_again_and_no_other(dataset, tmp_path):
    small = TINY | {"device": "cpu", "threads": 1, "amp": "off", "track": ()}
    first = library.trained(dataset, tmp_path, "quick", 1, **small)
    assert library.trained(dataset, tmp_path, "quick", 1, **small).folder == first.folder
    scored = library.scored(first.evaluate(class_map={"myeloblast": ""}), "macro_f1")
    assert "myeloblast" not in scored["classes"]
    assert scored["left_out"] == {"myeloblast": 2}
    assert library.trained(dataset, tmp_path, "quick", 2, **small).folder != first.folder


def test_the_mean_over_unseen_laboratories_leaves_home_out():
    def run(home, one, two):
        return {"scores": {"Acevedo_20": {"macro_f1": home}, "A": {"macro_f1": one}, "B": {"macro_f1": two}}}

    means = another_lab.means([run(0.9, 0.2, 0.4), run(0.8, 0.4, 0.6)])
    assert means["unseen"] == pytest.approx({"mean": 0.4, "min": 0.3, "max": 0.5})
    assert means["Acevedo_20"] == pytest.approx({"mean": 0.85, "min": 0.8, "max": 0.9})


@pytest.mark.parametrize(
    "lever", [lever for levers in levers_elsewhere.RACES.values() for lever in levers.values()], ids=repr
)
def test_each_lever_changes_settings_and_the_policy_alone(lever):
    train_config(lever.preset, **lever.settings)
    before = dict(POLICIES)
    with levers_elsewhere.changed_policy(lever.policy):
        assert (before != POLICIES) == bool(lever.policy)
    assert before == POLICIES


def test_gains_are_of_pairs_of_one_seed_and_counted_by_laboratory():
    def run(home, one, two):
        return {"scores": {"Acevedo_20": {"macro_f1": home}, "A": {"macro_f1": one}, "B": {"macro_f1": two}}}

    plain = {"1": run(0.9, 0.2, 0.4), "2": run(0.9, 0.4, 0.6)}
    changed = {"2": run(0.8, 0.5, 0.6)}
    row = levers_elsewhere._row("x", ["A", "B"], changed, plain)
    assert row == ["x", "1", "**0.800**", "**0.500**", "**0.600**", "**0.550**", "+0.050", "1 of 2"]
