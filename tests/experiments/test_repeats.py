"""The same settings on each fold and with several seeds: each image answered once, found again, added to, failed."""

import json

import numpy as np
import pandas as pd
import pytest
from command import hemafast
from page import needs_browser, wrong_with
from sklearn.metrics import f1_score

from hemafast.config import PrepareConfig, checked, to_json
from hemafast.data.dataset import open_dataset
from hemafast.errors import HemafastError, StoppedError
from hemafast.evaluate.predictions import read_predictions
from hemafast.experiments import repeats as room
from hemafast.experiments.repeats import PAGE, RESULT, TABLE, read_repeats, repeat_training
from hemafast.preparation.build import prepare
from hemafast.run_folder import read_config


@pytest.fixture(scope="module")
def folded(prepared, tmp_path_factory):
    """Three folds over what is left of 58 images after some are held out."""
    folder = tmp_path_factory.mktemp("folded") / "prepared"
    fields = {"source": prepared.folder.parent, "output": folder, "pack_sizes": (64,), "folds": 3}
    return prepare(checked(PrepareConfig, fields | {"test_fraction": 0.2})).folder


@pytest.fixture(scope="module")
def over_folds(settings, folded, tmp_path_factory):
    """Three runs, and what was written."""
    config = settings(tmp_path_factory.mktemp("runs"), data=folded)
    return config, repeat_training(config, folds=3, parallel=1)


def test_every_image_that_is_not_held_out_is_answered_once_by_a_model_that_has_not_seen_it(over_folds, folded):
    _, folder = over_folds
    result, data = read_repeats(folder), open_dataset(folded)
    rest = set(data.split("train")["path"]) | set(data.split("val")["path"])
    table, classes, _ = read_predictions(folder / "out_of_fold_seed_42.csv")
    assert set(table["image"]) == rest
    assert len(table) == len(rest)
    assert not set(table["image"]) & set(data.split("test")["path"])
    for row in result["runs"]:
        own = set(open_dataset(folded, row["fold"]).split("val")["path"])
        assert set(table.loc[table["fold"] == row["fold"], "image"]) == own
        assert read_config(folder.parent / row["folder"]).fold == row["fold"]
    expected = f1_score(table["label"], table["predicted"], average="macro", labels=sorted(set(table["label"])))
    assert result["score"]["macro_f1"]["value"] == pytest.approx(expected)
    assert result["score"]["images"] == len(rest)
    assert list(classes) == data.classes
    assert result["score"]["macro_f1"]["both"] is None


def test_the_table_has_a_row_for_each_run_and_the_spread_is_that_of_the_runs(over_folds):
    _, folder = over_folds
    result, table = read_repeats(folder), pd.read_csv(folder / TABLE)
    assert list(table["run"]) == ["fold_0_seed_42", "fold_1_seed_42", "fold_2_seed_42"]
    assert list(table["status"]) == ["done"] * 3
    np.testing.assert_allclose(table["macro_f1"], [row["macro_f1"] for row in result["runs"]])
    assert result["spread"]["mean"] == pytest.approx(table["macro_f1"].mean())
    assert result["spread"]["sd"] == pytest.approx(table["macro_f1"].std())
    for row in result["runs"]:
        logged = pd.read_csv(f"{row['folder']}/training_log.csv").query("phase == 'val'")["f1_macro"]
        assert row["epoch_gain"] == pytest.approx(logged.max() - logged.iloc[-1])


def test_the_page_says_what_varies_and_what_does_not(over_folds, folded):
    _, folder = over_folds
    text = " ".join((folder / PAGE).read_text(encoding="utf-8").split())
    assert "each answered by a model that has not seen it (3 folds)" in text
    assert "This is a spread and no interval" in text
    assert "They do not include chance in training" in text
    assert "that choice gains" not in text  # of one epoch
    assert f"scores {len(open_dataset(folded).split('test'))} held-out test images: once" in text
    assert "split is by image, not by patient" in text
    assert "Scores are at home, in Acevedo_20 and Matek_19" in text
    assert "http" not in text.replace("http://www.w3.org", "")


def test_what_the_choice_of_an_epoch_gains_is_said_where_there_is_one():
    done = [{"epoch_gain": 0.0, "epochs": 1}, {"epoch_gain": 0.02, "epochs": 3}, {"epoch_gain": None, "epochs": 3}]
    assert [*room._of_epochs(done[:1])] == []
    assert "gains 0.020 macro-F1 on average" in "".join(room._of_epochs(done))


@needs_browser
@pytest.mark.slow
def test_the_page_is_sound_in_every_look(over_folds, open_page):
    assert wrong_with(open_page, over_folds[1] / PAGE) == {}


def test_the_same_call_finds_its_runs(over_folds, updates, evaluations):
    config, folder = over_folds
    before = (folder / RESULT).read_bytes()
    assert repeat_training(config, folds=3, parallel=1) == folder
    assert repeat_training(config, folds=3, parallel=2) == folder  # nothing is left to do apart
    assert (updates, evaluations) == ([], [])
    assert json.loads(before) == read_repeats(folder)


def test_other_settings_and_other_folds_have_a_folder_of_their_own(over_folds, monkeypatch, folded):
    config, folder = over_folds
    monkeypatch.setattr(room, "run_all", lambda *_, **__: iter(()))
    others = [
        repeat_training(checked(type(config), {**vars(config), **changes}), **asked)
        for changes, asked in (({"lr": 0.5}, {"folds": 3}), ({"epochs": 2}, {"folds": 3}), ({}, {"seeds": 2}))
    ]
    assert len({folder, *others}) == 4
    assert others[2].name.endswith("_seeds")
    assert all(row["status"] == "not run" for row in read_repeats(others[0])["runs"])
    assert "No set of folds is complete yet" in (others[0] / PAGE).read_text(encoding="utf-8")


def test_more_seeds_add_to_those_that_there_are(settings, tmp_path, updates):
    config = settings(tmp_path / "runs", seed=5)
    folder = repeat_training(config, seeds=2, parallel=1)
    first = len(updates)
    assert [row["run"] for row in read_repeats(folder)["runs"]] == ["seed_5", "seed_6"]
    assert repeat_training(config, seeds=3, parallel=1) == folder
    assert len(updates) == first + first // 2
    result = read_repeats(folder)
    score = result["score"]["macro_f1"]
    assert score["by_pass"] == pytest.approx([row["macro_f1"] for row in result["runs"]])
    assert score["sd"] == pytest.approx(np.std(score["by_pass"], ddof=1))
    assert score["both"][0] <= score["value"] <= score["both"][1]
    assert not list(folder.glob("out_of_fold*"))
    text = " ".join((folder / PAGE).read_text(encoding="utf-8").split())
    assert "other cells and other seeds" in text


def test_the_command_prints_the_table_or_json(over_folds, tmp_path, updates):
    config, folder = over_folds
    (tmp_path / "same.json").write_text(to_json(config))
    asked = ("train", "--config", tmp_path / "same.json", "--folds", "3", "--parallel", "1")
    done = hemafast(*asked)
    assert done.returncode == 0, done.stderr
    for said in ("fold_2_seed_42", "all folds together", "95 % interval for other cells", str(folder / PAGE)):
        assert said in done.stdout
    told = json.loads(hemafast(*asked, "--json").stdout)
    assert told == {"folder": str(folder)} | read_repeats(folder)
    assert not updates


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--parallel", "2"), "--parallel has no effect on one run"),
        (("--resume", "runs/one", "--seeds", "2"), "--resume RUN is about one run"),
        (("--folds", "1"), "--folds"),
        (("--folds", "3", "--fold", "1"), "exclude each other"),
        (("--folds", "4"), "has 3 folds, not 4"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(folded, tmp_path, options, said):
    done = hemafast("train", "--data", folded, "--output", tmp_path / "runs", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_failed_run_is_the_exit_code(over_folds, tmp_path, monkeypatch):
    config, _ = over_folds
    (tmp_path / "same.json").write_text(to_json(config))
    monkeypatch.setattr(room, "run_all", lambda *_, **__: iter([("fold_0_seed_42", room.Failed("too large"))]))
    done = hemafast("train", "--config", tmp_path / "same.json", "--folds", "3", "--output", tmp_path / "runs")
    assert done.returncode == 1
    assert "too large" in done.stdout


def test_seeds_add_to_folds_and_folds_keep_to_theirs(over_folds, monkeypatch):
    config, folder = over_folds
    asked = {}
    monkeypatch.setattr(room, "run_all", lambda configs, **_: asked.update(configs) or iter(()))
    assert repeat_training(config, folds=3, seeds=2) == folder
    assert {one.output.name: (one.fold, one.seed) for one in asked.values()} == {
        f"fold_{fold}_seed_{seed}": (fold, seed) for fold in range(3) for seed in (42, 43)
    }


def test_seeds_on_one_fold_validate_on_it(settings, folded, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(room, "run_all", lambda configs, **_: asked.update(configs) or iter(()))
    folder = repeat_training(settings(tmp_path, data=folded, fold=2), seeds=2)
    assert {name: (one.fold, one.seed) for name, one in asked.items()} == {"seed_42": (2, 42), "seed_43": (2, 43)}
    val = len(open_dataset(folded, 2).split("val"))
    assert f"the same {val} validation images" in (folder / PAGE).read_text(encoding="utf-8")


def test_a_failed_fold_is_named_and_there_is_no_score_without_it(settings, folded, tmp_path, monkeypatch):
    run_all = room.run_all

    def fail_one(configs, **more):
        yield from run_all({name: config for name, config in configs.items() if name != "fold_1_seed_42"}, **more)
        yield "fold_1_seed_42", room.Failed("too large")

    monkeypatch.setattr(room, "run_all", fail_one)
    folder = repeat_training(settings(tmp_path / "runs", data=folded), folds=3, seeds=2, parallel=1)
    result = read_repeats(folder)
    assert result["failures"] == {"fold_1_seed_42": "too large"}
    assert [row["status"] for row in result["runs"]] == ["done", "failed", "done", "done", "done", "done"]
    assert len(result["score"]["macro_f1"]["by_pass"]) == 1  # of the seed whose folds are complete
    assert [path.name for path in folder.glob("out_of_fold*")] == ["out_of_fold_seed_43.csv"]


def test_what_was_stopped_goes_on(settings, tmp_path, monkeypatch):
    config, run_all = settings(tmp_path / "runs"), room.run_all

    def stop(configs, **more):
        yield from run_all({"seed_42": configs["seed_42"]}, **more)
        raise StoppedError("Stopped.", "Go on.")

    with monkeypatch.context() as patch:
        patch.setattr(room, "run_all", stop)
        with pytest.raises(StoppedError):
            repeat_training(config, seeds=2, parallel=1)
    (folder,) = (tmp_path / "runs").iterdir()
    assert [row["status"] for row in read_repeats(folder)["runs"]] == ["done", "not run"]
    assert repeat_training(config, seeds=2, parallel=1) == folder
    assert [row["status"] for row in read_repeats(folder)["runs"]] == ["done", "done"]


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_that_the_data_lacks_are_refused_with_the_command_that_makes_them(settings, folded, tmp_path, folds):
    config = settings(tmp_path / "runs", data=folded)
    with pytest.raises(HemafastError, match=rf"has 3 folds, not {folds}\.") as caught:
        repeat_training(config, folds=folds)
    assert f"--folds {folds}" in caught.value.remedy
    assert "--test-fraction 0.2" in caught.value.remedy
    with pytest.raises(HemafastError, match="has no folds, not 3"):
        repeat_training(settings(tmp_path / "runs"), folds=3)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "asked", "said"),
    [
        ({"fold": 1}, {"folds": 3}, "exclude each other"),
        ({}, {"seeds": 0}, "out of range"),
        ({}, {"seeds": 101}, "101"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, tmp_path, changes, asked, said):
    with pytest.raises(HemafastError, match=said):
        repeat_training(settings(tmp_path / "runs", **changes), **asked)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(HemafastError, match=f"holds no readable {RESULT}"):
        read_repeats(tmp_path)
