"""The scores of a run: whole, by domain, and the same for anyone who counts again."""

import hashlib
import json
import pickle
import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import hemafast
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

from hemafast.config import PrepareConfig, checked
from hemafast.data.dataset import open_dataset
from hemafast.engine.checkpoint import load_best, load_last, read_card
from hemafast.engine.journal import read_rows
from hemafast.errors import HemafastError
from hemafast.evaluate.calibration import calibrate, soften
from hemafast.evaluate.evaluate import evaluate_run, scores_folder
from hemafast.evaluate.predictions import read_predictions
from hemafast.preparation.build import prepare
from hemafast.report.page import write_report
from hemafast.run_folder import read_metrics


@pytest.fixture(scope="module")
def probabilities(scored, val_samples):
    """Of the run's own model, called on the centre windows without any of the engine."""
    model, _ = load_best(scored / "best_model.safetensors")
    windows = np.ascontiguousarray(np.asarray(val_samples.packed)[:, 4:60, 4:60])
    with torch.inference_mode():
        return model.eval()(torch.from_numpy(windows).permute(0, 3, 1, 2)).softmax(dim=1).double().numpy()


@pytest.mark.parametrize("domain", [None, "Acevedo_20", "Matek_19"])
def test_the_scores_are_those_of_sklearn_on_the_models_own_predictions(scored, val_samples, probabilities, domain):
    metrics = read_metrics(scored)
    scores = metrics["pooled"] if domain is None else metrics["domains"][domain]
    rows = np.full(len(val_samples), True) if domain is None else val_samples.domains == domain
    actual, predicted = val_samples.labels[rows], probabilities.argmax(axis=1)[rows]
    present = np.unique(actual)
    assert scores["macro_f1"] == pytest.approx(
        f1_score(actual, predicted, labels=present, average="macro", zero_division=0)
    )
    assert scores["accuracy"] == pytest.approx(accuracy_score(actual, predicted))
    assert scores["classes"] == len(present) == len(scores["per_class"])
    assert scores["images"] == rows.sum()
    assert np.array_equal(scores["confusion"], confusion_matrix(actual, predicted, labels=range(11)))
    low, high = scores["ci95"]["macro_f1"]
    assert 0 <= low <= scores["macro_f1"] <= high <= 1


def test_the_model_learned_enough_for_the_comparison_to_mean_something(scored):
    confusion = np.array(read_metrics(scored)["pooled"]["confusion"])
    assert np.count_nonzero(confusion.sum(axis=0)) > 1
    assert np.trace(confusion) > 0


def test_the_domains_are_the_archives_and_partition_the_images(scored, val_samples):
    metrics = read_metrics(scored)
    assert set(metrics["domains"]) == {"Acevedo_20", "Matek_19"}
    parts = [np.array(scores["confusion"]) for scores in metrics["domains"].values()]
    assert np.array_equal(sum(parts), metrics["pooled"]["confusion"])
    assert metrics["pooled"]["images"] == len(val_samples)


def test_the_log_loss_is_that_of_the_probabilities(scored, val_samples, probabilities):
    expected = log_loss(val_samples.labels, probabilities / probabilities.sum(axis=1, keepdims=True), labels=range(11))
    assert read_metrics(scored)["pooled"]["log_loss"] == pytest.approx(expected, rel=1e-4)


def test_the_metrics_name_model_data_and_training(scored, dataset):
    metrics = read_metrics(scored)
    assert metrics["model"]["classes"] == list(dataset.info.classes)
    assert metrics["data"]["fingerprint"] == metrics["model"]["data_fingerprint"] == dataset.info.fingerprint
    assert metrics["training"]["epochs"] == 3
    assert metrics["training"]["total_seconds"] > metrics["training"]["train_seconds"] > 0
    assert metrics["warnings"] == []


def test_times_and_rate_are_those_of_the_training_log(scored):
    training, rows = read_metrics(scored)["training"], read_rows(scored)
    train, val = ([row for row in rows if row["phase"] == phase] for phase in ("train", "val"))
    assert training["train_seconds"] == pytest.approx(sum(row["seconds"] for row in train))
    assert training["total_seconds"] == pytest.approx(sum(row["seconds"] for row in train + val))
    assert training["train_images_per_second"] == pytest.approx(
        3 / sum(1 / row["images_per_second"] for row in train)  # the same images in each of the three epochs
    )


def test_evaluating_twice_writes_the_same_bytes(run):
    returned = evaluate_run(run)
    first = (run / "metrics.json").read_bytes()
    evaluate_run(run)
    assert (run / "metrics.json").read_bytes() == first
    assert json.loads(first) == json.loads(json.dumps(returned))


def test_the_score_is_that_which_training_saw_for_its_best_epoch(scored):
    metrics, state = read_metrics(scored), torch.load(scored / "last_model.ckpt", weights_only=True)
    assert metrics["pooled"]["macro_f1"] == pytest.approx(state["progress"]["best_f1"])


def test_the_confusion_plot_is_a_picture(scored):
    with Image.open(scored / "confusion_matrix.png") as picture:
        assert picture.format == "PNG"
        picture.load()
        assert picture.width > picture.height > 300  # three matrices beside each other
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def other(prepared, folder, **changes):
    fields = {"source": prepared.folder.parent, "output": folder, "pack_sizes": (64,)} | changes
    return prepare(checked(PrepareConfig, fields)).folder


def test_data_with_fewer_classes_in_another_order_is_scored_as_it_is(run, prepared, tmp_path):
    evaluate_run(run)
    data = other(prepared, tmp_path / "other", classes="from-data", class_map={"basophil": "Basophil"})
    metrics = evaluate_run(run, data=data)
    expected, found = read_metrics(run)["pooled"], metrics["pooled"]
    for name in ("macro_f1", "accuracy", "log_loss", "images", "classes"):
        assert found[name] == pytest.approx(expected[name])
    assert [name.casefold() for name in found["per_class"]] == list(expected["per_class"])
    assert read_predictions(scores_folder(run, metrics) / "predictions.csv")[1] == tuple(metrics["classes"])


@pytest.mark.parametrize("classes", ["from-data", "challenge"])
def test_it_says_what_the_score_would_be_without_classes_that_the_data_lacks(run, prepared, tmp_path, classes):
    evaluate_run(run)
    assert read_metrics(run)["folding"]["own_classes"] is None
    lacking = ("basophil", "monocyte", "erythroblast")
    data = other(prepared, tmp_path / "other", classes=classes, class_map=dict.fromkeys(lacking, ""))
    metrics = evaluate_run(run, data=data)
    own, known = metrics["folding"]["own_classes"], set(open_dataset(data).split("all")["label"])
    assert own["classes"] == [name for name in metrics["model"]["classes"] if name in known]
    assert not {*own["classes"]} & {*lacking}
    table, names, probabilities = read_predictions(scores_folder(run, metrics) / "predictions.csv")
    among = [names.index(name) for name in own["classes"]]
    predicted = np.array(own["classes"])[probabilities[:, among].argmax(axis=1)]
    present = sorted(set(table["label"]))
    expected = f1_score(table["label"], predicted, labels=present, average="macro", zero_division=0)
    assert own["macro_f1"] == pytest.approx(expected)
    assert own["accuracy"] == pytest.approx(accuracy_score(table["label"], predicted))
    low, high = own["ci95"]["macro_f1"]
    assert low <= own["macro_f1"] <= high
    said = f"macro-F1 would be {own['macro_f1']:.3f}"
    assert said in write_report(scores_folder(run, metrics)).read_text(encoding="utf-8")


def test_data_with_other_names_is_refused_with_a_command_that_works(run, prepared, tmp_path):
    named = {"promyelocyte": "Neutrophil", "monocyte": "mono"}
    data = other(prepared, tmp_path / "other", classes="from-data", class_map=named)
    with pytest.raises(HemafastError, match="image, probably neutrophil_banded and neutrophil_segmented") as refused:
        evaluate_run(run, data=data)
    assert not (run / "metrics.json").exists()
    remedy = refused.value.remedy
    done = hemafast(*shlex.split(remedy[remedy.index("hemafast evaluate") :])[1:], "--json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    table, classes, _ = read_predictions(Path(metrics["scores"]) / "predictions.csv")
    assert "Neutrophil" in classes
    assert "neutrophil_banded" not in classes
    compared = sorted(set(table["label"]))
    assert metrics["pooled"]["macro_f1"] == pytest.approx(
        f1_score(table["label"], table["predicted"], labels=compared, average="macro", zero_division=0)
    )
    page = Path(metrics["report"]).read_text(encoding="utf-8")
    assert "neutrophil_banded and neutrophil_segmented count as Neutrophil" in page


def test_merging_classes_of_the_runs_own_data_leaves_its_own_scores_alone(run):
    evaluate_run(run)
    before = contents(run)
    merged = evaluate_run(run, class_map={"myeloblast": "promyelocyte", "eosinophil": ""})
    after = contents(run)
    assert {name: after[name] for name in before} == before
    assert scores_folder(run, merged) == run / "evaluations" / "folded"
    table, _, found = read_predictions(run / "predictions.csv")
    folded, classes, added = read_predictions(run / "evaluations" / "folded" / "predictions.csv")
    kept = (table["label"] != "eosinophil").to_numpy()
    assert list(folded["image"]) == list(table["image"][kept])
    np.testing.assert_allclose(
        added[:, classes.index("promyelocyte")], found[kept][:, 6] + found[kept][:, 10], atol=1e-6
    )
    assert "myeloblast" not in set(folded["label"]) | set(folded["predicted"])


def test_classes_without_training_images_are_said(prepared, train_on, tmp_path):
    run = train_on(prepared.folder, epochs=1, domains=("Acevedo_20",))
    said = "The model had no training images of myeloblast and promyelocyte, and scores 0 there"
    assert said in evaluate_run(run)["warnings"]
    assert said in evaluate_run(run, data=other(prepared, tmp_path / "other", seed=7))["warnings"]


def test_other_data_with_the_same_classes_is_scored_with_a_warning(run, prepared, tmp_path):
    data = other(prepared, tmp_path / "other", seed=7)
    metrics = evaluate_run(run, data=data)
    assert len(metrics["warnings"]) == 1
    assert "not the data that the model was trained with" in metrics["warnings"][0]
    assert metrics["data"]["folder"] == str(data)
    assert metrics["data"]["split_seed"] == 7


def test_all_images_of_other_data_are_scored_on_request_and_those_of_its_own_are_not(run, prepared, tmp_path):
    data = other(prepared, tmp_path / "Bonn", seed=7)
    metrics = evaluate_run(run, data=data, split="all")
    assert metrics["pooled"]["images"] == 58
    assert scores_folder(run, metrics).name.endswith("-all")
    assert "58 labelled images" in write_report(scores_folder(run, metrics)).read_text(encoding="utf-8")
    with pytest.raises(HemafastError, match="was trained on most images"):
        evaluate_run(run, split="all")


def test_a_run_without_a_best_model_is_refused(run):
    (run / "best_model.safetensors").unlink()
    with pytest.raises(HemafastError, match="best_model"):
        evaluate_run(run)


def test_a_damaged_best_model_is_refused(run):
    best = run / "best_model.safetensors"
    best.write_bytes(best.read_bytes()[:-9])
    with pytest.raises(HemafastError, match="best_model"):
        evaluate_run(run)
    assert not (run / "metrics.json").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(HemafastError, match="is not a run"):
        evaluate_run(tmp_path)
    with pytest.raises(HemafastError, match="hemafast evaluate"):
        read_metrics(tmp_path)


def test_the_predictions_are_the_models_softened_by_the_temperature_it_now_carries(scored, val_samples, probabilities):
    table, classes, found = read_predictions(scored / "predictions.csv")
    card = read_card(scored / "best_model.safetensors")
    assert classes == card.classes
    np.testing.assert_allclose(found, soften(probabilities, card.calibration.temperature), atol=2e-5)
    assert list(table["label"]) == [classes[label] for label in val_samples.labels]
    assert list(table["predicted"]) == [classes[index] for index in probabilities.argmax(axis=1)]
    assert all(path.endswith(name) for path, name in zip(val_samples.paths, table["image"], strict=True))
    assert read_metrics(scored)["model"]["calibration"] == json.loads(json.dumps(asdict(card.calibration)))


def test_what_is_fitted_is_not_what_is_reported(scored, val_samples, probabilities):
    table, _, found = read_predictions(scored / "predictions.csv")
    fitted = (table["part"] == "calibration").to_numpy()
    pooled = read_metrics(scored)["pooled"]
    calibration = read_card(scored / "best_model.safetensors").calibration
    assert calibration.images == fitted.sum() > 0
    assert pooled["calibrated"]["images"] == (~fitted).sum() > 0
    again = calibrate(val_samples.labels[fitted], probabilities[fitted], blast=6)
    assert again.temperature == pytest.approx(calibration.temperature, rel=1e-3)
    reported = found[~fitted] / found[~fitted].sum(axis=1, keepdims=True)  # stored in fp32, whose sums are nearly 1
    loss = log_loss(val_samples.labels[~fitted], reported, labels=range(11))
    assert pooled["calibrated"]["after"]["log_loss"] == pytest.approx(loss, rel=1e-3)


def test_the_parts_keep_groups_whole(scored, dataset):
    table, _, _ = read_predictions(scored / "predictions.csv")
    groups = dataset.split("val").assign(part=table["part"].to_numpy()).groupby("group")["part"].nunique()
    assert (groups == 1).all()


def contents(folder):
    """A hash of every file below a folder, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_evaluating_adds_its_own_files_and_changes_no_other(run):
    before = contents(run)
    assert "best_model.safetensors" in before
    evaluate_run(run)
    after = contents(run)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {
        "calibration.json",
        "confusion_matrix.png",
        "metrics.json",
        "predictions.csv",
    }


def test_scores_on_other_data_have_a_folder_of_their_own_for_each_data_set(run, prepared, tmp_path):
    evaluate_run(run)
    write_report(run)
    before = contents(run)
    folders = []
    for seed in (7, 8):
        metrics = evaluate_run(run, data=other(prepared, tmp_path / f"{seed}" / "Bonn" / "prepared", seed=seed))
        folder = scores_folder(run, metrics)
        assert folder == run / "evaluations" / f"Bonn-{metrics['data']['fingerprint'][:8]}"
        assert read_metrics(folder) == json.loads(json.dumps(metrics))
        assert write_report(folder) == folder / "report.html"
        names = {"confusion_matrix.png", "metrics.json", "predictions.csv", "report.html"}
        assert {path.name for path in folder.iterdir()} == names
        folders.append(folder)
    assert len(set(folders)) == 2
    after = contents(run)
    assert {name: after[name] for name in before} == before


def test_the_page_about_other_data_names_run_and_data_and_shows_its_scores(run, prepared, tmp_path):
    metrics = evaluate_run(run, data=other(prepared, tmp_path / "Bonn", seed=7))
    folder = scores_folder(run, metrics)
    text = write_report(folder).read_text(encoding="utf-8").replace("<wbr>", "")
    assert f"<h1>{run.name}/evaluations/{folder.name}</h1>" in text
    assert metrics["data"]["fingerprint"] in text
    assert f"macro-F1 {metrics['pooled']['macro_f1']:.3f}" in text


def test_the_runs_own_data_in_another_place_gives_the_runs_own_scores(run, prepared, tmp_path):
    evaluate_run(run)
    expected = read_metrics(run)
    moved = shutil.copytree(prepared.folder, tmp_path / "moved")
    assert scores_folder(run, evaluate_run(run, data=moved)) == run
    expected["data"]["folder"] = str(moved)
    assert read_metrics(run) == expected
    assert not (run / "evaluations").exists()


def test_the_command_says_where_it_wrote(run, prepared, tmp_path):
    done = hemafast("evaluate", run, "--data", other(prepared, tmp_path / "Bonn", seed=7))
    assert done.returncode == 0, done.stderr
    (folder,) = (run / "evaluations").iterdir()
    assert f"{folder}\n" in done.stdout
    assert f"{folder / 'report.html'}\n" in done.stdout


def test_calibrating_leaves_the_weights_as_they_are(scored, trained):
    (before, card), (after, calibrated) = (load_best(run / "best_model.safetensors") for run in (trained, scored))
    assert card.calibration is None
    assert replace(calibrated, calibration=None) == card
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name])


def test_other_data_is_reported_whole_with_the_calibration_the_model_has(run, prepared, tmp_path):
    evaluate_run(run)
    calibration = read_card(run / "best_model.safetensors").calibration
    metrics = evaluate_run(run, data=other(prepared, tmp_path / "other", seed=7))
    assert read_card(run / "best_model.safetensors").calibration == calibration
    assert metrics["model"]["calibration"] == asdict(calibration)
    assert metrics["pooled"]["calibrated"]["images"] == metrics["pooled"]["images"]


def test_data_that_was_prepared_anew_under_the_run_is_refused_unless_it_is_named(run, prepared, tmp_path):
    data = other(prepared, tmp_path / "other", seed=7)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    (run / "config.json").write_text(json.dumps(config | {"data": str(data)}), encoding="utf-8")
    with pytest.raises(HemafastError, match="fingerprint"):
        evaluate_run(run)
    assert not (run / "metrics.json").exists()
    assert evaluate_run(run, data=data)["warnings"]


def test_a_run_on_one_domain_is_scored_on_all_and_calibrated_on_its_own(prepared, train_on):
    run = train_on(prepared.folder, epochs=1, domains=("Matek_19",))
    metrics = evaluate_run(run)
    table, _, _ = read_predictions(run / "predictions.csv")
    assert set(metrics["domains"]) == {"Acevedo_20", "Matek_19"}
    assert set(table.loc[table["part"] == "calibration", "domain"]) == {"Matek_19"}
    assert "not on Acevedo_20" in metrics["warnings"][0]
    assert metrics["model"]["domains"] == ("Matek_19",)


class Payload:
    """What a hostile pickle does when it is opened."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (type(self.file).touch, (self.file,))


def test_a_pickle_in_the_place_of_a_model_is_refused_and_not_run(run, tmp_path):
    proof = tmp_path / "proof"
    (run / "best_model.safetensors").write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(HemafastError, match="best_model"):
        evaluate_run(run)
    assert not proof.exists()
    pickle.loads((run / "best_model.safetensors").read_bytes())
    assert proof.exists()  # it would have been


def test_a_pickle_in_the_place_of_a_checkpoint_is_refused_and_not_run(run, tmp_path):
    proof = tmp_path / "proof"
    torch.save({"format": "hemafast-2", "model": Payload(proof)}, run / "last_model.ckpt")
    (run / "last_model.ckpt.1").unlink(missing_ok=True)
    with pytest.raises(HemafastError, match="last_model"):
        load_last(run / "last_model.ckpt")
    assert not proof.exists()
