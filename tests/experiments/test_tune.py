"""A search for settings: resumed, pruned, out of time, failed, and refused where it does not fit."""

import json
import re
import sqlite3
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib import rcParams
from page import Page, needs_browser, wrong_with

from hemafast.config import PrepareConfig, checked, train_config
from hemafast.data.dataset import open_dataset
from hemafast.errors import HemafastError, StoppedError
from hemafast.evaluate.looks import looks_file
from hemafast.experiments import trials as running
from hemafast.experiments.space import parse_space
from hemafast.experiments.study import STUDY
from hemafast.experiments.tune import PAGE, RESULT, TABLE, tune
from hemafast.preparation.build import prepare
from hemafast.run_folder import read_metrics

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


@pytest.fixture(autouse=True)
def undrawn():
    """Optuna's plots take longer than trials that cost nothing. `undrawn.undo()` where a page is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hemafast.experiments.tune._pictures", lambda study: {})
        yield patch


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
            yield name, running.Scored(config.output, metrics)

        monkeypatch.setattr(running, "run_all", run_all)
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


def test_the_search_finds_what_is_better(settings, scored_by, undrawn):
    scored_by(lambda config, _: 0.9 if config.loss == "weighted" else 0.5)
    tune(settings(), SPACE, trials=11)
    undrawn.undo()
    result = tune(settings(), SPACE, trials=12)
    assert result["best"]["settings"]["loss"] == "weighted"
    assert result["best"]["macro_f1"] == 0.9
    page = (settings().output / PAGE).read_text(encoding="utf-8")
    assert Page(page).is_alone
    assert page.count('<svg class="plot"') == 3
    assert not re.search("Objective Value|Hyperparameter|ggplot", page)
    assert "Scores are at home, in Acevedo_20 and Matek_19" in page
    (history, *_) = page.partition('aria-label="Macro-F1 over each setting')
    trials = [int(tick) for tick in re.findall(r"<text[^>]*>(\d+)</text>", history)]
    assert trials == sorted(set(trials))  # whole ones, as the table counts them
    assert set(trials) <= set(range(1, 13))
    assert rcParams["axes.facecolor"] == "white"  # Optuna sets a style for the whole process


@needs_browser
@pytest.mark.slow
def test_the_page_is_sound_in_every_look(settings, scored_by, open_page):
    scored_by(lambda config, _: 0.9 - config.lr)
    tune(settings(), parse_space(["lr=1e-4..1e-2"]), trials=3)  # one setting: Optuna draws it another way
    assert wrong_with(open_page, settings().output / PAGE) == {}


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
        yield next(iter(configs)), running.Failed("too large")

    monkeypatch.setattr(running, "run_all", run_all)
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


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("folder", "../elsewhere", "folder: String should match pattern"),
        ("folder", 7, "folder: Input should be a valid string"),
        ("facts", {"run": "x"}, "facts.ci95: Field required"),
        ("by_fold", [float("inf")], "by_fold.0: Input should be a finite number"),
    ],
)
def test_a_study_that_was_changed_is_refused(settings, scored_by, name, value, said):
    scored_by(lambda *_: 0.5)
    tune(settings(), SPACE, trials=1)
    file = settings().output / STUDY
    study = optuna.load_study(study_name="hemafast", storage=f"sqlite:///{file}")
    trial = study.ask()
    trial.set_user_attr(name, value)
    with pytest.raises(HemafastError, match=rf"{STUDY} cannot be used \({said}"):
        tune(settings(), SPACE, trials=2)
    assert not (settings().output.parent / "elsewhere").exists()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("asked", "nothing", "asked: Input should be a valid dictionary"),
        ("tested", {"look": 3}, "tested.trial: Field required"),
    ],
)
def test_attributes_of_a_study_that_were_changed_are_refused(settings, scored_by, name, value, said):
    scored_by(lambda *_: 0.5)
    tune(settings(), SPACE, trials=1)
    study = optuna.load_study(study_name="hemafast", storage=f"sqlite:///{settings().output / STUDY}")
    study.set_user_attr(name, value)
    with pytest.raises(HemafastError, match=rf"cannot be used \({said}"):
        tune(settings(), SPACE, trials=2)


def test_a_study_is_not_written_through_a_link(settings, scored_by, tmp_path):
    scored_by(lambda *_: 0.5)
    settings().output.mkdir()
    (settings().output / STUDY).symlink_to(tmp_path / "victim.db")
    with pytest.raises(HemafastError, match="it is a link, which is not followed"):
        tune(settings(), SPACE, trials=1)
    assert not (tmp_path / "victim.db").exists()


def test_without_optuna_its_name_is_told(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(HemafastError, match=r"optuna cannot be imported.*hemafast\[tune\]"):
        tune(settings(), SPACE, trials=1)


@pytest.fixture
def nested(prepared, tmp_path):
    """Three folds of what is left of 58 images after some are held out."""
    fields = {"source": prepared.folder.parent, "output": tmp_path / "nested", "pack_sizes": (64,), "folds": 3}
    return prepare(checked(PrepareConfig, fields | {"test_fraction": 0.2})).folder


def test_the_score_of_a_trial_is_the_mean_over_its_folds(settings, scored_by, nested):
    ran = scored_by(lambda config, _: {0: 0.3, 1: 0.6, 2: 0.9}[config.fold] + config.lr)
    result = tune(settings(data=nested), SPACE, trials=2, folds=3)
    assert ran == ["fold_0", "fold_1", "fold_2"] * 2
    for trial in result["trials"]:
        rate = trial["settings"]["lr"]
        assert trial["macro_f1"] == pytest.approx(0.6 + rate)
        assert trial["by_fold"] == pytest.approx([0.3 + rate, 0.6 + rate, 0.9 + rate])
        assert (trial["epochs"], trial["seconds"], trial["ci95"]) == (1, 3.0, [None, None])
    assert result["best"] == max(result["trials"], key=lambda trial: trial["macro_f1"])
    page = (settings().output / PAGE).read_text(encoding="utf-8")
    assert "mean over 3 folds" in page
    assert result["test"] is None


def test_a_trial_that_falls_behind_is_pruned_between_folds(settings, scored_by, nested):
    order = []

    def score(config, _):  # each trial is worse than the one before
        if config.lr not in order:
            order.append(config.lr)
        return 0.9 - 0.1 * order.index(config.lr)

    ran = scored_by(score)
    result = tune(settings(data=nested), SPACE, trials=6, folds=3)
    assert [trial["state"] for trial in result["trials"]] == ["done"] * 4 + ["pruned"] * 2
    assert ran.count("fold_2") == 4
    assert result["trials"][-1]["by_fold"] == pytest.approx([0.4, 0.4])


def test_an_interrupted_trial_goes_on_with_its_settings_and_folds(settings, scored_by, nested):
    drawn, stop = [], [True]

    def score(config, _):
        drawn.append((config.lr, config.output))
        if stop and config.fold == 1:
            raise StoppedError("Stopped.", "Go on.")
        return 0.5

    scored_by(score)
    with pytest.raises(StoppedError):
        tune(settings(data=nested), SPACE, trials=1, folds=3)
    stop.clear()
    first = set(drawn)
    result = tune(settings(data=nested), SPACE, trials=1, folds=3)
    assert first < set(drawn)
    assert len({rate for rate, _ in drawn}) == 1
    assert {output.name for _, output in drawn} == {"fold_0", "fold_1", "fold_2"}
    assert result["best"]["macro_f1"] == 0.5


def test_a_failed_fold_is_named(settings, nested, monkeypatch):
    def run_all(configs, *, progress):
        yield next(iter(configs)), running.Failed("too large")

    monkeypatch.setattr(running, "run_all", run_all)
    assert tune(settings(data=nested), SPACE, trials=1, folds=3)["failures"] == {"trial 1": "fold_0: too large"}


def test_what_the_data_does_not_have_is_refused_before_anything_is_written(settings, prepared, nested):
    with pytest.raises(HemafastError, match=r"has no folds, not 3.*--folds 3"):
        tune(settings(), SPACE, trials=1, folds=3)
    with pytest.raises(HemafastError, match="has no split 'test'"):
        tune(settings(), SPACE, trials=1, test=True)
    with pytest.raises(HemafastError, match="fold = 1 and folds = 3 exclude each other"):
        tune(settings(data=nested, fold=1), SPACE, trials=1, folds=3)
    assert not settings().output.exists()


@pytest.mark.slow
def test_the_best_trial_is_scored_on_test_images_once(settings, nested):
    config = settings(data=nested)
    before = tune(config, SPACE, trials=1, folds=3)
    assert before["test"] is None
    assert not looks_file(nested).exists()
    tested = tune(config, SPACE, trials=1, folds=3, test=True)["test"]
    score = tested["macro_f1"]
    runs = [config.output / "trial_001" / f"fold_{fold}" for fold in range(3)]
    own = [read_metrics(scored) for run in runs for scored in run.glob("*/evaluations/test")]
    assert len(own) == 3
    assert score["by_run"] == pytest.approx([one["pooled"]["macro_f1"] for one in own])
    assert score["value"] == pytest.approx(np.mean(score["by_run"]))
    assert score["cells"][0] <= score["value"] <= score["cells"][1]
    assert tested["images"] == len(open_dataset(nested).split("test"))
    looks = looks_file(nested).read_text(encoding="utf-8")
    assert len(looks.splitlines()) == 1 + 3
    again = tune(config, SPACE, trials=1, folds=3, test=True)
    assert again["test"] == tested
    assert looks_file(nested).read_text(encoding="utf-8") == looks
    page = " ".join((config.output / PAGE).read_text(encoding="utf-8").split())
    assert "no trial has seen them" in page
    assert f"{score['cells'][0]:.3f} to {score['cells'][1]:.3f}" in page
