"""A run is adapted to another laboratory: the result is a run, the parent stays, and what is unknown is said."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from command import hemafast
from page import needs_browser, wrong_with

import hemafast as hf
from hemafast.engine import layout
from hemafast.engine.checkpoint import load_best, read_card, save_best
from hemafast.errors import HemafastError
from hemafast.logistic import Layer
from hemafast.progress import SILENT
from hemafast.run_folder import summarise
from hemafast.transfer.adapt import Adaptation, adapt_run, open_parent, without_labels
from hemafast.transfer.cells import Asked
from hemafast.transfer.steps import learned_shares

CPU = {"device": "cpu"}
BEST = "best_model.safetensors"


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def unlabelled(scored, laboratory, tmp_path_factory):
    """The run adapted without labels, and what the parent held before; read it, never change it."""
    before = content(scored)
    return adapt_run(scored, str(laboratory), output=tmp_path_factory.mktemp("adapted"), **CPU), before


def test_the_parent_stays_as_it_was(unlabelled, scored):
    assert content(scored) == unlabelled[1]


def test_without_labels_it_says_what_was_changed_and_that_nobody_knows_whether_it_is_better(unlabelled, scored):
    result = unlabelled[0].result
    assert result["images"] == 18
    assert result["labels"] == 0
    assert result["scores"] is None
    assert result["steps"]
    assert "not known without labels" in result["verdict"]
    assert f"hemafast adapt {scored}" in result["verdict"]
    assert result["parent"]["folder"] == str(scored)
    assert sum(row["after"] for row in result["predicted"]) == 18
    page = (unlabelled[0].folder / "adaptation.html").read_text()
    assert result["steps"][0] in page
    assert "not known without labels" in page


@needs_browser
@pytest.mark.slow
def test_the_page_is_sound_in_every_look(unlabelled, scored, laboratory, tmp_path, open_page):
    labelled = adapt_run(scored, str(laboratory), Asked(labels="own"), output=tmp_path, **CPU)
    for done in (unlabelled[0], labelled):
        assert wrong_with(open_page, done.folder / "adaptation.html") == {}


def test_images_like_those_of_home_change_nothing(scored, laboratory, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("hemafast.transfer.adapt._is_unlike", lambda model, pixels: False)
    with caplog.at_level("INFO"):
        done = adapt_run(scored, str(laboratory), output=tmp_path, **CPU)
    assert done.result["kept_parent"]
    assert "are like those of the training set" in caplog.text
    assert done.result["verdict"].startswith("Nothing is changed")


def test_norms_learn_with_right_gradients(scored, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # without what training has found
    monkeypatch.setattr("hemafast.transfer.adapt._is_unlike", lambda model, pixels: True)
    monkeypatch.setattr(layout, "compare", lambda found, _: layout.Comparison(frozenset(found[:1])))
    parent = open_parent(scored, "cpu")
    side = parent.card.image_size
    pixels = torch.randint(0, 256, (20, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    chosen, _ = without_labels(parent, pixels, SILENT)
    assert "have wrong gradients in channels_last" in caplog.text
    hooked = [one for one in chosen.network.modules() if layout._contiguous in one._forward_pre_hooks.values()]
    assert hooked


@pytest.fixture
def adapted(unlabelled, tmp_path):
    """A copy to change at will."""
    return hf.open_run(shutil.copytree(unlabelled[0].folder, tmp_path / "adapted"))


def test_an_adapted_run_is_a_run_like_any_other(adapted, laboratory, scored):
    run = adapted
    assert summarise(run.folder).state == summarise(scored).state
    assert run.adaptation == json.loads((run.folder / "adaptation.json").read_text())
    model = run.model(**CPU)
    assert model.card.adapted.images == 18
    assert len(model.predict(str(laboratory))) == 18


def told(run, images, folder):
    done = hemafast("predict", run.folder, images, "--output", folder / "out.csv", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return done


def test_evaluating_an_adapted_run_gives_it_a_calibration_and_a_likeness(adapted, laboratory, tmp_path, monkeypatch):
    before = adapted.model(**CPU)
    assert (before.card.calibration, before.likeness) == (None, None)
    assert f"hemafast evaluate {adapted.folder}" in told(adapted, laboratory, tmp_path).stdout
    monkeypatch.setattr("hemafast.evaluate.evaluate.LEAST_IMAGES", 5)
    assert adapted.evaluate(**CPU)["pooled"]["macro_f1"] >= 0
    assert (adapted.folder / "report.html").exists()
    after = adapted.model(**CPU)
    assert after.card.calibration.images == after.likeness.images >= 5
    said = told(adapted, laboratory, tmp_path)
    assert "unlike those of training" in said.stdout
    assert "hemafast evaluate" not in said.stdout
    assert "hemafast adapt" not in said.stderr


def test_what_is_written_answers_as_what_was_adapted(unlabelled, laboratory):
    _, card = load_best(unlabelled[0].folder / BEST)
    table = hf.open_model(unlabelled[0].folder, **CPU).predict(str(laboratory))
    counts = {row["class"]: row["after"] for row in unlabelled[0].result["predicted"] if row["after"]}
    assert table["label"].value_counts().to_dict() == counts
    assert card.calibration is None


def test_a_matched_white_point_is_saved_and_exported(run, tmp_path):
    model, card = load_best(run / BEST)
    mean, std = (tuple(factor * value for value in values) for factor, values in ((2, model.mean), (3, model.std)))
    model.normalise_by(mean, std)
    save_best(run / BEST, model, card)
    again, _ = load_best(run / BEST)
    assert again.mean == pytest.approx(mean)
    assert again.std == pytest.approx(std)
    hf.export_run(run, tmp_path / "export", format="safetensors")
    pixels = torch.randint(0, 256, (2, 3, card.image_size, card.image_size), dtype=torch.uint8)
    exported = hf.open_model(tmp_path / "export", **CPU)
    with torch.inference_mode():
        torch.testing.assert_close(exported.logits(pixels), model.eval()(pixels), atol=1e-4, rtol=1e-4)


def test_labels_of_class_folders_are_scored_before_and_after(scored, laboratory, tmp_path):
    done = adapt_run(scored, str(laboratory), Asked(labels="own"), output=tmp_path, **CPU)
    scores = done.result["scores"]
    assert done.result["labels"] == scores["cells"] == 18
    low, high = scores["difference"]["ci95"]
    assert low <= scores["difference"]["macro_f1"] <= high
    assert [row["cells"] for row in scores["per_class"]] == [6, 6, 6]
    if done.result["kept_parent"]:
        assert "No better" in done.result["verdict"]
        assert scores["difference"]["macro_f1"] == 0
    else:
        assert scores["difference"]["macro_f1"] > 0


@pytest.fixture
def blind(run):
    """A run whose last layer always answers the same, so that labels can only help."""
    model, card = load_best(run / BEST)
    torch.nn.init.zeros_(model.backbone.get_classifier().weight)
    save_best(run / BEST, model, card)
    return run


def bright_and_dark(draw, dark, bright):
    cells = [draw(seed) // 3 for seed in range(dark)] + [draw(seed) // 2 + 128 for seed in range(100, 100 + bright)]
    return cells, ["basophil"] * dark + ["bright cell"] * bright


def test_a_new_class_becomes_one_of_the_adapted_model(blind, draw, tmp_path):
    cells, labels = bright_and_dark(draw, 10, 10)
    adapted = hf.adapt(blind, cells, labels=labels, output=tmp_path, **CPU)
    said = adapted.adaptation
    assert said["new_classes"] == ["bright cell"]
    assert any(
        "new classes: bright cell" in line and "--class-map 'bright cell=CLASS'" in line
        for line in Adaptation(tmp_path, said).lines()
    )
    assert said["scores"]["after"]["macro_f1"] > 0.9
    assert not said["kept_parent"]
    model = adapted.model(**CPU)
    assert model.classes == (*read_card(blind / BEST).classes, "bright cell")
    assert (model.predict(cells)["label"] == labels).mean() > 0.9
    assert adapted.evaluate(**CPU)["folding"]["compared"]
    assert adapted.model(**CPU).card.calibration.set_thresholds[-1] is None  # home has no such cells


def test_a_parent_that_is_never_beaten_keeps_its_weights_and_says_so(run, draw, tmp_path, monkeypatch):
    cells, labels = bright_and_dark(draw, 8, 8)
    labels = ["monocyte" if label == "bright cell" else label for label in labels]
    places = [read_card(run / BEST).classes.index(label) for label in labels]

    def perfect(self, features):  # every layer, the parent's among them
        answers = np.zeros((len(features), 11))
        answers[np.arange(len(features)), places[: len(features)]] = 1
        return answers

    (run / "likeness.safetensors").write_text("of these weights")
    monkeypatch.setattr("hemafast.deploy.model.load_likeness", lambda *_: None)
    monkeypatch.setattr(Layer, "__call__", perfect)
    monkeypatch.setattr("hemafast.transfer.head.cross_entropy", lambda logits, labels, weights: 0.0)
    done = adapt_run(run, cells, Asked(labels=labels), output=tmp_path, **CPU)
    assert done.result["kept_parent"]
    assert (done.folder / "likeness.safetensors").read_text() == "of these weights"
    assert done.result["verdict"].startswith("No better: macro-F1 1.000")
    before, after = load_best(run / BEST)[0].state_dict(), load_best(done.folder / BEST)[0].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_labels_too_few_to_hold_some_out_are_used_and_not_scored(run, draw, tmp_path):
    cells, _ = bright_and_dark(draw, 9, 9)
    some = ["basophil"] + [""] * 8 + ["monocyte"] + [""] * 8
    done = adapt_run(run, cells, Asked(labels=some), output=tmp_path, **CPU)
    assert done.result["scores"] is None
    assert "2 labels are too few" in done.result["verdict"]
    assert any("last layer from 2 labels" in step for step in done.result["steps"])


def test_the_training_rows_of_a_prepared_data_set_are_taken(scored, cut_lab, tmp_path):
    done = adapt_run(scored, cut_lab, Asked(labels="own"), output=tmp_path, **CPU)
    assert done.result["labels"] == done.result["images"] == len(cut_lab.split("train"))


@pytest.fixture(scope="module")
def cut_lab(laboratory, tmp_path_factory):
    """The laboratory as a prepared data set."""
    folder = tmp_path_factory.mktemp("cut-lab")
    shutil.copytree(laboratory, folder / "source" / "Lab")
    return hf.prepare(folder / "source", pack_sizes=(64,))


@pytest.fixture
def alone(run, tmp_path):
    """A run whose data set is gone."""
    config = json.loads((run / "config.json").read_text()) | {"data": str(tmp_path / "gone")}
    (run / "config.json").write_text(json.dumps(config))
    return run


def as_older(run):
    """Its model as an earlier version wrote it, whose card says nothing of the training images."""
    model, card = load_best(run / BEST)
    save_best(run / BEST, model, replace(card, home=None))
    return run


def test_the_run_folder_alone_knows_what_its_data_set_says(alone, scored, prepared, caplog):
    from_card, from_data = open_parent(alone, "cpu"), open_parent(scored, "cpu")
    counts = hf.open_dataset(prepared.folder).counts("train")
    assert from_card.home.counts == tuple(counts)
    assert from_card.dataset is None
    np.testing.assert_array_equal(from_card.shares, learned_shares(counts, 0, 0))
    assert from_card.home == from_data.home
    assert not [one for one in caplog.records if one.levelname == "WARNING"]


def test_a_run_of_an_earlier_version_asks_its_data_set(run, scored):
    old, new = open_parent(as_older(run), "cpu"), open_parent(scored, "cpu")
    assert old.card.home is None
    assert old.home == new.home


def test_white_point_and_frequencies_are_left_out_where_nothing_knows_them(alone, draw, tmp_path, caplog):
    parent = open_parent(as_older(alone), "cpu")
    assert (parent.home, parent.shares) == (None, None)
    done = adapt_run(alone, [draw(1), draw(2)], output=tmp_path / "runs", **CPU)
    assert done.result["kept_parent"]
    assert "adapting goes without them" in caplog.text
    assert "too few" in caplog.text
    assert (done.folder / BEST).exists()


def test_labels_that_cannot_be_compared_with_the_training_set_are_taken_with_a_warning(alone, draw, tmp_path, caplog):
    adapt_run(alone, [draw(1), draw(2)], Asked(labels=["basophil", "monocyte"]), output=tmp_path / "runs", **CPU)
    assert "whether some of the 2 labelled images are in it is not known" in caplog.text


def refused(match, *given, **more):
    with pytest.raises(HemafastError, match=match):
        hf.adapt(*given, **CPU, **more)


def test_what_cannot_be_adapted_is_named(scored, laboratory, unlabelled, prepared, tmp_path, draw):
    to = {"output": tmp_path / "runs"}
    refused("is not a run folder", laboratory, str(laboratory), **to)
    refused("was itself adapted from", unlabelled[0].folder, str(laboratory), **to)
    refused("is the data set that .* was trained on", scored, str(prepared.folder), **to)
    refused("There is no nowhere", scored, "nowhere", **to)
    own = str(prepared.folder.parent / "Acevedo_20.zip")
    refused("are among those that the model was trained on", scored, own, labels="own", **to)
    refused("None of 2 images has a label", scored, [draw(1), draw(2)], labels=["", ""], **to)
    refused(r"All labels \(1\) are monocyte", scored, [draw(1), draw(2)], labels=["monocyte", ""], **to)
    refused("1 label for 2 images", scored, [draw(1), draw(2)], labels=["x"], **to)
    refused("is in a class folder", scored, [draw(1), draw(2)], labels="own", **to)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    refused("None of 1 image can be read", scored, str(broken), **to)
    assert not (tmp_path / "runs").exists()


def test_nothing_is_left_behind_if_the_disk_is_full(run, draw, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hemafast.transfer.written.save_best", full)
    with pytest.raises(HemafastError, match="cannot be written"):
        adapt_run(run, [draw(1), draw(2)], output=tmp_path / "runs", **CPU)
    assert list((tmp_path / "runs").iterdir()) == []


def test_the_command_adapts_suggests_and_takes_the_labels(scored, laboratory, tmp_path):
    done = hemafast("adapt", scored, laboratory, "--suggest", 6, "--device", "cpu", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = tmp_path / "to-label" / "labels.csv"
    assert f"--labels {table.relative_to(tmp_path)}" in done.stdout
    filled = pd.read_csv(table)
    told = filled["path"].str.split("/").str[-2].replace("monocyte", "Mono")
    pd.DataFrame({"Foto": filled["path"], "Was": told}).to_csv(table, index=False)
    how = ("--labels", table, "--columns", "path=Foto,label=Was", "--class-map", "Mono=monocyte")
    again = hemafast("adapt", scored, laboratory, *how, "--device", "cpu", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["labels"] == 6
    assert (tmp_path / "runs").is_dir()


def test_a_suggestion_takes_no_labels(scored, laboratory):
    done = hemafast("adapt", scored, laboratory, "--suggest", 6, "--labels", "own")
    assert done.returncode == 2
    assert "--suggest 6 chooses cells" in done.stderr


@pytest.fixture(scope="module")
def narrowed(scored, laboratory, tmp_path_factory):
    """The run adapted to a laboratory that does not know its first class, and the names of the others."""
    names = read_card(scored / BEST).classes[1:]
    asked = Asked(classes=[name.upper() for name in reversed(names)])
    done = adapt_run(scored, str(laboratory), asked, output=tmp_path_factory.mktemp("narrowed"), **CPU)
    return done, names


def test_classes_that_the_laboratory_does_not_tell_apart_are_no_answers(narrowed, scored, laboratory):
    done, names = narrowed
    card = read_card(done.folder / BEST)
    assert card.classes == names
    assert done.result["dropped_classes"] == [read_card(scored / BEST).classes[0]]
    assert done.result["steps"][0] == f"only {', '.join(names)} can be answers"
    assert f"--classes {','.join(names)}" in done.result["command"]
    table = hf.open_model(done.folder, **CPU).predict(str(laboratory))
    assert set(table["label"]) <= set(names)
    assert table[list(names)].sum(axis=1).to_numpy() == pytest.approx(1)
    after = {row["class"]: row["after"] for row in done.result["predicted"]}
    assert {name: after[name] for name in names} == table["label"].value_counts().reindex(names, fill_value=0).to_dict()
    assert sum(row["before"] for row in done.result["predicted"]) == len(table)


def test_fewer_classes_are_the_same_answers_without_the_others(scored, laboratory):
    whole, names = open_parent(scored, "cpu"), read_card(scored / BEST).classes[:2]
    start = open_parent(scored, "cpu", names).start
    size = whole.card.image_size
    pixels = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    with torch.inference_mode():
        among = whole.network(pixels).softmax(1)[:, :2]
        assert torch.allclose(start(pixels).softmax(1), among / among.sum(1, keepdim=True), atol=1e-5)
    assert start.classes == 2
    assert open_parent(scored, "cpu").start is not None


def test_a_run_with_fewer_classes_is_scored_and_calibrated_at_home_on_those(narrowed, tmp_path, monkeypatch):
    monkeypatch.setattr("hemafast.evaluate.evaluate.LEAST_IMAGES", 5)
    run = hf.open_run(shutil.copytree(narrowed[0].folder, tmp_path / "adapted"))
    scores = run.evaluate(**CPU)
    assert scores["classes"] == list(narrowed[1])
    assert sum(scores["folding"]["left_out"].values()) > 0
    calibration = run.model(**CPU).card.calibration
    assert 0 < calibration.images <= scores["pooled"]["images"]
    hf.export_run(run.folder, tmp_path / "export", format="safetensors")
    assert hf.open_model(tmp_path / "export", **CPU).classes == narrowed[1]


def test_labels_and_fewer_classes_are_compared_with_the_parent_and_all_its_classes(scored, laboratory, tmp_path):
    names = hf.open_model(scored, **CPU).classes
    labels = [names[0], names[1]] * 9
    done = adapt_run(scored, str(laboratory), Asked(labels=labels, classes=names[:2]), output=tmp_path, **CPU)
    scores = done.result["scores"]
    assert scores["cells"] == 18
    assert scores["after"]["accuracy"] >= scores["before"]["accuracy"]
    whole = hf.open_model(scored, **CPU).predict(str(laboratory))["label"]
    assert scores["before"]["accuracy"] == pytest.approx(np.mean(whole.to_numpy() == np.array(labels)), abs=0.06)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["monocyte", "Monozyt"], "'Monozyt' is no class of the model"),
        (["basophil"], "'basophil' alone is no choice"),
        ([" "], "nothing is no choice"),
    ],
)
def test_classes_that_do_not_fit_are_refused_by_name(scored, laboratory, tmp_path, classes, said):
    with pytest.raises(HemafastError, match=said):
        adapt_run(scored, str(laboratory), Asked(classes=classes), output=tmp_path, **CPU)
    assert not list(tmp_path.iterdir())


def test_a_label_of_a_class_that_is_left_out_is_refused(scored, laboratory, tmp_path):
    names = hf.open_model(scored, **CPU).classes
    asked = Asked(labels=[names[2], names[0]] * 9, classes=names[:2])
    with pytest.raises(HemafastError, match=f"9 labels are {names[2]}, which classes leaves out"):
        adapt_run(scored, str(laboratory), asked, output=tmp_path, **CPU)


def test_the_command_takes_classes(scored, laboratory, tmp_path):
    names = read_card(scored / BEST).classes[:2]
    done = hemafast(
        "adapt", scored, laboratory, "--classes", ",".join(names), "--output", tmp_path, "--device", "cpu", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"][0].startswith(f"only {names[0]}")
