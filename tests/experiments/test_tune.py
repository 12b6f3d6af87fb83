"""A search for settings: resumed, pruned, out of time, failed, and refused where it does not fit."""

import json
import sqlite3
import sys

import pandas as pd
import pytest

from hemafast.config import train_config
from hemafast.errors import HemafastError, StoppedError
from hemafast.experiments import tune as tuning
from hemafast.experiments.space import parse_space
from hemafast.experiments.tune import PAGE, RESULT, STUDY, TABLE, tune

optuna = pytest.importorskip("optuna")
SPACE = parse_space(["lr=1e-4..1e-2", "loss=cross-entropy,weighted"])


@pytest.fixture
def settings(prepared, tmp_path):
    def make(**changes):
        tiny = {"model": "test_resnet", "pretrained": "no", "image_size": 32, "batch_size": 16, "epochs": 1}
        quiet = {"compile": "off", "device": "cpu", "threads": 1, "track": ()}
        named = {"data": prepared.folder, "output": tmp_path / "tune"}
        return train_config("quick", **(tiny | quiet | named | changes))

    return make


@pytest.fixture
def scored_by(monkeypatch):
    """Runs that cost nothing: `scored_by(function)` of settings and epoch, which gives the macro-F1 of the epoch."""

    def make(score):
        ran = []

        def run_all(configs, *, progress):
            ((name, config),) = configs.items()
            ran.append(name)
            for epoch in range(1, config.epochs + 1):
                progress.finish(epoch=epoch, rows={"val": {"f1_macro": score(config, epoch)}})
            last = score(config, config.epochs)
            metrics = {
                "pooled": {"macro_f1": last, "ci95": {"macro_f1": [last - 0.1, last]}},
                "training": {"epochs": config.epochs, "total_seconds": 1.0},
            }
            yield name, tuning.Scored(config.output, metrics)

        monkeypatch.setattr(tuning, "run_all", run_all)
        return ran

    return make


@pytest.mark.slow
def test_trials_are_trained_ranked_and_kept_by_a_second_call(settings):
    config = settings()
    result = tune(config, SPACE, trials=2)
    assert [trial["state"] for trial in result["trials"]] == ["done", "done"]
    assert result["best"]["macro_f1"] == max(trial["macro_f1"] for trial in result["trials"])
    runs = {trial["run"] for trial in result["trials"]}
    assert all((config.output / f"trial_{number:03d}").is_dir() for number in (1, 2))
    assert json.loads((config.output / RESULT).read_text(encoding="utf-8")) == result
    assert "too good" in (config.output / PAGE).read_text(encoding="utf-8")
    table = pd.read_csv(config.output / TABLE)
    assert list(table["lr"]) == [trial["settings"]["lr"] for trial in result["trials"]]
    again = tune(config, SPACE, trials=3)
    assert {trial["run"] for trial in again["trials"][:2]} == runs
    assert len({trial["settings"]["lr"] for trial in again["trials"]}) == 3


def test_the_search_finds_what_is_better(settings, scored_by):
    scored_by(lambda config, _: 0.9 if config.loss == "weighted" else 0.5)
    result = tune(settings(), SPACE, trials=12)
    assert result["best"]["settings"]["loss"] == "weighted"
    assert result["best"]["macro_f1"] == 0.9
    page = (settings().output / PAGE).read_text(encoding="utf-8")
    assert page.count("data:image/png") == 3
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_trial_that_falls_behind_is_pruned_and_says_how_far_it_came(settings, scored_by):
    order = []

    def score(config, _):  # each trial is worse than the one before
        if config.lr not in order:
            order.append(config.lr)
        return 0.9 - 0.1 * order.index(config.lr)

    scored_by(score)
    result = tune(settings(epochs=4), SPACE, trials=6)
    assert [trial["state"] for trial in result["trials"]] == ["done"] * 4 + ["pruned"] * 2
    assert result["trials"][-1]["epochs"] == 2
    assert result["trials"][-1]["macro_f1"] == pytest.approx(0.4)
    assert result["best"]["trial"] == 1


def test_an_interrupted_trial_is_taken_up_with_the_same_settings_and_folder(settings, scored_by):
    drawn, stop = [], [True]

    def score(config, _):
        drawn.append((config.lr, config.loss))
        if stop:
            raise StoppedError("Stopped.", "Go on.")
        return 0.5

    ran = scored_by(score)
    with pytest.raises(StoppedError):
        tune(settings(), SPACE, trials=2)
    stop.clear()
    result = tune(settings(), SPACE, trials=2)
    assert ran == ["trial_001", "trial_001", "trial_003"]
    assert drawn[0] == drawn[1]
    assert [trial["state"] for trial in result["trials"]] == ["done", "done"]


def test_a_trial_beyond_the_time_budget_is_finished_by_the_next_call(settings, scored_by):
    ran = scored_by(lambda *_: 0.5)
    config = settings(epochs=3)
    first = tune(config, SPACE, trials=1, time_budget=1e-9)
    assert ran == []
    assert first["best"] is None
    assert "No trial has come to its end" in (config.output / PAGE).read_text(encoding="utf-8")
    assert tune(config, SPACE, trials=1)["best"]["macro_f1"] == 0.5


def test_a_failed_trial_is_named_and_does_not_stop_the_others(settings, monkeypatch):
    def run_all(configs, *, progress):
        yield next(iter(configs)), tuning.Failed("too large")

    monkeypatch.setattr(tuning, "run_all", run_all)
    result = tune(settings(), SPACE, trials=2)
    assert result["failures"] == {"trial 1": "too large", "trial 2": "too large"}
    assert result["best"] is None


def test_a_study_of_other_settings_is_refused(settings, scored_by):
    scored_by(lambda *_: 0.5)
    tune(settings(), SPACE, trials=1)
    with pytest.raises(HemafastError, match="a study with other epochs"):
        tune(settings(epochs=2), SPACE, trials=1)
    with pytest.raises(HemafastError, match="a study with other space"):
        tune(settings(), parse_space(["lr=1e-4..1e-3"]), trials=1)
    tune(settings(threads=2), SPACE, trials=1)


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\x00" + b"\x00" * 200])
def test_a_study_that_is_none_is_refused(settings, content):
    settings().output.mkdir()
    (settings().output / STUDY).write_bytes(content)
    with pytest.raises(HemafastError, match=rf"{STUDY} cannot be used"):
        tune(settings(), SPACE, trials=1)


def test_a_database_of_something_else_is_refused(settings):
    settings().output.mkdir()
    with sqlite3.connect(settings().output / STUDY) as base:
        base.execute("create table studies (study_id text)")
    base.close()
    with pytest.raises(HemafastError, match=rf"{STUDY} cannot be used"):
        tune(settings(), SPACE, trials=1)


def test_without_optuna_its_name_is_told(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(HemafastError, match=r"optuna cannot be imported.*hemafast\[tune\]"):
        tune(settings(), SPACE, trials=1)
