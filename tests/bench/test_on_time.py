"""The benchmark of time budgets, on a small data set."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import on_time  # a script beside the package, not part of it

from hemafast.config import train_config


@pytest.mark.nightly
def test_a_budget_gives_a_run_and_its_score(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(on_time, "MODEL", "test_resnet")
    found = on_time.run("quick", 15, prepared.folder, seed=0, output=tmp_path)
    assert found["epochs"] >= 1
    assert found["seconds"] > 1
    assert 0 <= found["f1_macro"] <= 1
    assert len([*tmp_path.glob("*/report.html")]) == 1


@pytest.mark.parametrize("preset", sorted({preset for preset, _ in on_time.BUDGETS}))
def test_its_presets_are_there(preset):
    assert train_config(preset).preset == preset
