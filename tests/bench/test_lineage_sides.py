"""The ablation of the lineage loss and policy: how sides are judged, and that each side is what its name says."""

import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import lineage as sides  # a script beside the package, not a part of it

from hemafast.config import train_config
from hemafast.engine.plan import policy_of
from hemafast.evaluate.lineage import maturation_scores
from hemafast.evaluate.metrics import confusions
from hemafast.lineage import packaged_lineage
from hemafast.taxonomy import CHALLENGE_CLASSES

TREE = packaged_lineage()
GENERATOR = np.random.default_rng(0)
LABELS = GENERATOR.integers(0, 11, 220)


def answers(right, seed):
    generator = np.random.default_rng(seed)
    return np.where(generator.random(len(LABELS)) < right, LABELS, generator.integers(0, 11, len(LABELS))).tolist()


def test_scores_are_those_of_sklearn_and_of_the_package():
    predicted = np.array(answers(0.6, 1))
    found = {name: values[0] for name, values in sides.scores_of(LABELS, predicted, CHALLENGE_CLASSES, TREE).items()}
    assert found["macro_f1"] == pytest.approx(f1_score(LABELS, predicted, average="macro"))
    whole = confusions(LABELS, predicted, np.ones((len(LABELS), 1), np.float32), 11)
    said = maturation_scores(whole, CHALLENGE_CLASSES, TREE)
    assert found["adjacent"] == pytest.approx(said["adjacent"])
    assert found["within_series"] == pytest.approx((said["neighbour"] + said["far"]) / said["images"])
    assert 1 <= found["mistake_distance"] <= 2


def test_sides_are_compared_seed_by_seed_with_the_first():
    runs = {
        "first": {"0": answers(0.5, 1), "1": answers(0.5, 2)},
        "better": {"0": answers(0.9, 3)},
        "same": {"0": answers(0.5, 1), "1": answers(0.5, 2)},
        "not run": {},
    }
    found = sides.judged(LABELS, runs, CHALLENGE_CLASSES, TREE)
    assert found.keys() == {"first", "better", "same"}
    assert "gain" not in found["first"]["macro_f1"]
    better, first = found["better"]["macro_f1"], found["first"]["macro_f1"]
    assert better["gain"]["mean"] == pytest.approx(better["by_seed"][0] - first["by_seed"][0])
    assert 0 < better["gain"]["ci95"][0] < better["gain"]["mean"] < better["gain"]["ci95"][1]
    assert found["same"]["macro_f1"]["gain"] == {"mean": 0, "ci95": [0, 0], "by_seed": [0, 0]}


def test_every_side_is_a_training_that_differs_from_the_first_of_its_question():
    for question in sides.QUESTIONS.values():
        configs = [train_config(sides.PRESET, **{**sides.SHORT, **changes}) for changes in question.values()]
        for config in configs[1:]:
            assert config != configs[0]


def test_the_parts_of_the_policy_are_left_out_one_at_a_time():
    policies = {
        name: policy_of(train_config(sides.PRESET, **{**sides.SHORT, **changes})).to_plain()
        for name, changes in sides.QUESTIONS["policy"].items()
    }
    whole = policies["lineage"]
    for part, field in (("shift", "shift"), ("zoom", "zoom"), ("symmetries", "symmetry"), ("stain", "stain")):
        found = policies[f"lineage without {part}"]
        assert {name for name in whole if found[name] != whole[name]} == {field}


def test_the_table_has_a_row_for_each_side_that_was_run():
    runs = {"cross-entropy": {"0": answers(0.5, 1)}, "soft labels": {"0": answers(0.6, 2)}}
    result = {
        "command": "python benchmarks/lineage.py",
        "preset": sides.PRESET,
        "changes": {"image_size": 96, "track": []},
        "machine": {"cores": "2", "processor": "P", "torch": "2"},
        "domain": "Acevedo_20",
        "images": {"train": 2291, "val": 220},
        "scores": {"loss": sides.judged(LABELS, runs, CHALLENGE_CLASSES, TREE)},
    }
    text = sides.tables({"lineage": result})["lineage_loss"]
    assert "--image-size 96 --track none" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows] == ["| loss", "| cross-entropy", "| soft labels"]
    assert sides.tables({"lineage": result}).keys() == {"lineage_loss"}
