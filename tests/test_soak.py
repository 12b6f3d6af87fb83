"""The soak sees what grows, is not deceived by what others do on the machine, and writes what the page shows."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import run_soak  # a script beside the package, not a part of it
from run_soak import DRIFTS, Sample, measured

EPOCHS = 400
FLAT = dict.fromkeys(DRIFTS, 0.0)


def samples(**growth: float) -> list[Sample]:
    """Epochs whose measurements grow by these shares in all; a third of them is slow, and so are the first 30."""
    drawn, grown = np.random.default_rng(0).random(EPOCHS), FLAT | growth
    made = []
    for epoch, luck in enumerate(drawn):
        by = {name: 1 + share * epoch / EPOCHS for name, share in grown.items()}
        seconds = 0.1 * by["seconds"] * (1 + (luck < 1 / 3) + (epoch < 30))
        counts = round(100 * by["files"]), round(100 * by["threads"])
        made.append(Sample(round(1e9 * by["memory"]), *counts, seconds, 50_000 + 1_000 * epoch, 400 * epoch))
    return made


def test_what_stays_as_it_is_does_not_fail_though_others_disturb_it():
    result = measured(samples(), others=0.05)
    assert result["failed"] == []
    assert {name: one["drift"] for name, one in result["drifts"].items()} == pytest.approx(FLAT)
    assert result["bytes_an_epoch"] == pytest.approx({"tensorboard": 1000, "logs": 400})


@pytest.mark.parametrize("name", DRIFTS)
def test_what_grows_by_some_percent_fails(name):
    assert measured(samples(**{name: 0.04}), others=0.05)["failed"] == [name]


def test_what_shrinks_does_not_fail():
    assert measured(samples(**dict.fromkeys(DRIFTS, -0.04)), others=0.05)["failed"] == []


def test_the_time_of_epochs_is_not_judged_while_others_use_the_processor():
    result = measured(samples(seconds=0.5, files=0.04), others=0.6)
    assert (result["time_is_disturbed"], result["failed"]) == (True, ["files"])


def test_a_curve_has_few_points_and_ends_with_the_last_epoch():
    curve = measured(samples(), others=0.0)["curve"]
    assert {len(values) for values in curve.values()} == {EPOCHS // 2}
    assert (curve["epoch"][-1], curve["logs"][-1]) == (EPOCHS, 400 * (EPOCHS - 1))


def test_a_real_training_is_measured_at_the_end_of_each_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr("hemafast.engine.journal.Journal._draws", lambda *_: False)  # drawing takes most of the time
    result = run_soak.soak(tmp_path, run_soak.FEWEST)
    curve = result["curve"]
    assert result["epochs"] == len(curve["epoch"]) == run_soak.FEWEST
    assert min(curve["memory"]) > 50e6
    assert min(curve["files"]) >= 3
    assert min(curve["threads"]) >= 1
    assert all(0 < seconds < 60 for seconds in curve["seconds"])
    assert curve["tensorboard"] == sorted(curve["tensorboard"])
    assert curve["logs"] == sorted(set(curve["logs"]))
    assert result["other_cores"] >= 0
    run_soak.plot(result, picture := tmp_path / "soak.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run_soak.tables({"soak": result})["soak"].count("\n| ") == len(DRIFTS)


def test_the_page_shows_what_was_measured_and_that_others_disturbed_it():
    result = measured(samples(memory=0.04), others=1.04)
    facts = {"cores": "2", "processor": "one", "torch": "2"}
    shown = run_soak.tables({"soak": result | {"command": "run", "machine": facts}})["soak"]
    assert "| resident memory | 1,005.0 MB | 1,037.0 MB | +3.2% |" in shown
    assert "| time of an epoch | 100.0 ms | 100.0 ms | disturbed |" in shown
    assert "Other programs used 1.0 cores" in shown
    assert "`tb/` holds 0.4 MB, and the logs 0.2 MB; an epoch of the last tenth added 1.0 and 0.4 kB" in shown
