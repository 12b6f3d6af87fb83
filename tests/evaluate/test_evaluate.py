"""The scores of a run: whole, by domain, and the same for anyone who counts again."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

from hemafast.config import PrepareConfig, checked
from hemafast.engine.checkpoint import load_best
from hemafast.engine.journal import read_rows
from hemafast.errors import HemafastError
from hemafast.evaluate.evaluate import evaluate_run, read_metrics
from hemafast.prepare.build import prepare


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
    low, high = scores["macro_f1_ci95"]
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
    assert read_metrics(scored)["log_loss"] == pytest.approx(expected, rel=1e-4)


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


def test_data_with_other_classes_is_refused_and_nothing_written(run, prepared, tmp_path):
    data = other(prepared, tmp_path / "other", classes="from-data")
    with pytest.raises(HemafastError, match="classes"):
        evaluate_run(run, data=data)
    assert not (run / "metrics.json").exists()


def test_other_data_with_the_same_classes_is_scored_with_a_warning(run, prepared, tmp_path):
    data = other(prepared, tmp_path / "other", seed=7)
    metrics = evaluate_run(run, data=data)
    assert len(metrics["warnings"]) == 1
    assert "not the data that the model was trained with" in metrics["warnings"][0]
    assert metrics["data"]["folder"] == str(data)
    assert metrics["data"]["split_seed"] == 7


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
