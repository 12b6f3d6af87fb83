"""What the library does around a trained run: embed, report, push, tune. The same as the commands."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import hemafast
from safetensors.torch import load_file

import hemafast as hf
from hemafast.deploy.push import PUSH, WEIGHTS
from hemafast.experiments import trials as running

TINY = {"model": "test_resnet", "pretrained": "no", "image_size": 32, "batch_size": 16, "epochs": 1}
TINY |= {"compile": "off", "amp": "off", "device": "cpu", "threads": 1, "track": ()}
SPACE = ["lr=1e-4..1e-2", "loss=cross-entropy,weighted"]


@pytest.fixture(scope="module")
def opened(scored):
    return hf.open_run(scored)


@pytest.fixture(scope="module")
def cells(tmp_path_factory, make_archive):
    """Class folders with eleven images."""
    return make_archive(tmp_path_factory.mktemp("cells") / "Lab", {"basophil": 6, "monocyte": 5}, seed=5)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """The working folder, in which nothing was written when the test ends."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.iterdir())


# Embed


def test_embed_returns_what_it_wrote(opened, cells, tmp_path):
    output = tmp_path / "new" / "cells.parquet"
    told = opened.embed(str(cells), output, labels="own", um_per_pixel=0.1, device="cpu")
    assert set(told) == {"output", "map", "images", "unreadable", "dimensions", "probe"}
    assert (told["output"], told["map"], told["images"], told["unreadable"]) == (str(output), None, 11, 0)
    assert told["probe"]["classes"] == ["basophil", "monocyte"]
    json.dumps(told)
    table = pd.read_parquet(output)
    features = opened.model(device="cpu").embed(str(cells), um_per_pixel=0.1)
    np.testing.assert_array_equal(np.stack(table["features"]), features)
    assert told["dimensions"] == features.shape[1]
    assert table["label"].value_counts().to_dict() == {"basophil": 6, "monocyte": 5}


def test_embed_without_labels_has_no_probe(opened, cells, tmp_path):
    assert opened.embed(str(cells), tmp_path / "cells.npz", um_per_pixel=0.1, device="cpu")["probe"] is None


def test_embed_is_the_command(opened, cells, tmp_path):
    told = opened.embed(str(cells), tmp_path / "one.parquet", labels="own", um_per_pixel=0.1, device="cpu")
    asked = ("--labels", "own", "--um-per-pixel", "0.1", "--device", "cpu", "--json")
    done = hemafast("embed", opened.folder, cells, *asked, "--output", tmp_path / "other.parquet")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {**told, "output": str(tmp_path / "other.parquet")}
    pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("one", "other")))


@pytest.mark.parametrize(
    ("images", "asked", "said"),
    [
        (None, {"output": "cells.csv"}, "ends in none of"),
        (None, {"labels": "nowhere.csv"}, "nowhere.csv"),
        (None, {"groups": "nowhere.csv"}, "nowhere.csv"),
        (None, {"bit_depth": 40}, "bit_depth"),
        (None, {"um_per_pixel": -1.0}, "um_per_pixel"),
        ("nowhere/*.png", {}, "nowhere"),
    ],
)
def test_embed_refuses_what_does_not_fit_and_writes_nothing(opened, cells, empty, images, asked, said):
    with pytest.raises(hf.HemafastError, match=said) as caught:
        opened.embed(images or str(cells), device="cpu", **asked)
    assert caught.value.remedy


# Report


def test_report_returns_the_page(opened, tmp_path):
    before = opened.folder.stat().st_mtime_ns
    page = opened.report(output=tmp_path / "pages" / "run.html")
    assert page == tmp_path / "pages" / "run.html"
    assert f"macro-F1 {opened.metrics['pooled']['macro_f1']:.3f}" in page.read_text(encoding="utf-8")
    assert opened.folder.stat().st_mtime_ns == before


def test_report_compares_with_runs_and_their_folders_as_the_command_does(opened, run, tmp_path):
    other = hf.open_run(run)
    other.evaluate()
    assert other.report() == run / "report.html"
    by_run, by_folder = (opened.report(one, output=tmp_path / "both.html").read_bytes() for one in (other, str(run)))
    done = hemafast("report", opened.folder, run, "--output", tmp_path / "command.html")
    assert done.returncode == 0, done.stderr
    assert by_run == by_folder == (tmp_path / "command.html").read_bytes()


def test_report_refuses_what_does_not_fit_and_writes_nothing(opened, trained, empty):
    for others, output, said in (
        ([trained], "page.html", "was not evaluated"),
        ([opened], "page.html", "is named twice"),
        (["runs/none"], "page.html", "There is no run runs/none"),
        ([trained], None, "needs a file name"),
    ):
        with pytest.raises(hf.HemafastError, match=said) as caught:
            opened.report(*others, output=output)
        assert caught.value.remedy


# Push


def test_push_returns_what_it_wrote_and_is_the_command(opened, tmp_path):
    pushed = hf.push_run(opened, tmp_path / "one", licence="cc-by-4.0")
    assert (pushed.folder, pushed.licence, pushed.address) == (tmp_path / "one", "cc-by-4.0", None)
    assert set(pushed.files) == {file.name for file in pushed.folder.iterdir()}
    done = hemafast("push", opened.folder, "--license", "cc-by-4.0", "--output", tmp_path / "other", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (tuple(told["files"]), told["bytes"]) == (pushed.files, pushed.bytes)
    for name in set(pushed.files) - {WEIGHTS}:
        assert (tmp_path / "other" / name).read_bytes() == (pushed.folder / name).read_bytes(), name
    # safetensors writes its metadata in any order
    one, other = (load_file(folder / WEIGHTS) for folder in (pushed.folder, tmp_path / "other"))
    assert one.keys() == other.keys()
    assert all(tensor.equal(other[name]) for name, tensor in one.items())


def test_a_run_is_named_by_itself_its_folder_its_file_or_latest(run, tmp_path, monkeypatch):
    monkeypatch.setattr("hemafast.deploy.push._contents", lambda file, folder, licence: {"model": bytes(file)})
    (tmp_path / "runs").mkdir()
    run = Path(run).rename(tmp_path / "runs" / run.name)
    monkeypatch.chdir(tmp_path)
    for named in (hf.open_run(run), run, str(run), run / "best_model.safetensors", "latest"):
        pushed = hf.push_run(named)
        assert pushed.folder.absolute() == run / PUSH
        assert (pushed.folder / "model").read_bytes().endswith(b"best_model.safetensors")


@pytest.mark.parametrize("call", [hf.push_run, hf.export_run, lambda run: hf.explain(run, ["cell.png"])])
def test_a_run_that_is_none_is_refused_and_nothing_is_written(empty, call):
    for named, said in (("nowhere", "There is no run nowhere"), ("latest", "holds no run yet")):
        with pytest.raises(hf.HemafastError, match=said) as caught:
            call(named)
        assert caught.value.remedy


def test_push_to_a_hub_is_refused_offline_and_nothing_is_written(opened, empty, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(hf.HemafastError, match="lab/cells is on a hub") as caught:
        hf.push_run(opened, empty / "pushed", to="lab/cells")
    assert "--to" in caught.value.remedy


# Tune


@pytest.fixture
def no_training(monkeypatch):
    """Runs that cost nothing: the macro-F1 follows from the settings."""

    def run_all(configs, *, progress):
        for name, config in configs.items():
            found = 0.5 + 10 * config.lr + 0.1 * (config.loss == "weighted")
            scores = {"pooled": {"macro_f1": found, "ci95": {"macro_f1": [found - 0.1, found]}}}
            yield name, running.Scored(config.output, scores | {"training": {"epochs": 1, "total_seconds": 1.0}})

    pytest.importorskip("optuna")
    monkeypatch.setattr(running, "run_all", run_all)


@pytest.mark.usefixtures("no_training")
def test_tune_returns_what_it_wrote_goes_on_and_is_the_command(prepared, tmp_path):
    data = hf.open_dataset(prepared.folder)
    found = hf.tune(data, space=SPACE, trials=3, output=tmp_path / "one", seed=3, **TINY)
    assert found == json.loads((tmp_path / "one" / "tune.json").read_text(encoding="utf-8"))
    assert [trial["state"] for trial in found["trials"]] == ["done"] * 3
    assert found["best"]["macro_f1"] == max(trial["macro_f1"] for trial in found["trials"])
    assert found["settings"]["preset"] == "fast"
    assert (found["test"], found["failures"]) == (None, {})

    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items() if name != "track"]
    asked = ["--data", prepared.folder, "--track", "none", "--seed", 3, *options, *(f"--space={one}" for one in SPACE)]
    done = hemafast("tune", *asked, "--trials", 3, "--output", tmp_path / "other", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["trials"]
    same = [{name: one[name] for name in ("trial", "settings", "macro_f1")} for one in found["trials"]]
    assert [{name: one[name] for name in ("trial", "settings", "macro_f1")} for one in told] == same

    more = hf.tune(prepared.folder, space=SPACE, trials=4, output=tmp_path / "one", seed=3, **TINY)
    assert more["trials"][:3] == found["trials"]


@pytest.mark.usefixtures("no_training")
def test_tune_takes_one_part_of_the_space_as_text_and_a_budget_as_seconds_or_words(prepared, tmp_path):
    for name, budget in (("a", 3600), ("b", "1h")):
        asked = {"space": "lr=1e-4..1e-2", "time_budget": budget, "output": tmp_path / name}
        (trial,) = hf.tune(prepared.folder, trials=1, **asked, **TINY)["trials"]
        assert set(trial["settings"]) == {"lr"}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"trials": 0}, "trials = 0"),
        ({"time_budget": 0}, "time_budget = 0"),
        ({"time_budget": float("nan")}, "time_budget = nan"),
        ({"time_budget": "soon"}, "soon"),
        ({"space": ["lr"]}, "NAME=VALUES"),
        ({"space": ["lr=2..1"]}, "the range is empty"),
        ({"space": ["leaning_rate=1e-4..1e-2"]}, "leaning_rate"),
        ({"space": ["loss=cross-entropy,wieghted"]}, "wieghted"),
        ({"preset": "fsat"}, "fsat"),
        ({"preset": "pretrain"}, "pretrain"),
        ({"epocs": 3}, "epocs"),
        ({"folds": 3}, "folds"),
        ({"test": True}, "test"),
    ],
)
def test_tune_refuses_what_does_not_fit_and_writes_nothing(prepared, empty, asked, said):
    with pytest.raises(hf.HemafastError, match=said) as caught:
        hf.tune(prepared.folder, **({"trials": 1, "space": SPACE} | TINY | asked))
    assert caught.value.remedy


@pytest.mark.usefixtures("no_training")
def test_tune_in_the_folder_of_another_search_is_refused_and_leaves_it(prepared, tmp_path):
    hf.tune(prepared.folder, space=SPACE, trials=1, output=tmp_path, **TINY)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    with pytest.raises(hf.HemafastError, match=str(tmp_path)) as caught:
        hf.tune(prepared.folder, space=SPACE[:1], trials=2, output=tmp_path, **TINY)
    assert caught.value.remedy
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before
