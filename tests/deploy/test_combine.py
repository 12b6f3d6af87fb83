"""Several runs become one model that looks like a run: what it answers, what it costs, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command import hemafast

import hemafast as hf
from hemafast.config import TrainConfig
from hemafast.deploy.combine import card_of, combine_runs
from hemafast.deploy.explain import explain
from hemafast.deploy.export import export_run
from hemafast.deploy.members import open_sources
from hemafast.deploy.model import load_models, open_model
from hemafast.deploy.plan import Options, make_plan
from hemafast.deploy.predict import advice, classify
from hemafast.engine.checkpoint import ensemble_of, load_best, save_best
from hemafast.ensemble import Ensemble
from hemafast.errors import HemafastError
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.run_folder import (
    BEST,
    ENSEMBLE,
    METRICS,
    PREDICTIONS,
    REPORT,
    is_run,
    read_ensemble,
    read_metrics,
    summarise,
)


@pytest.fixture(scope="module")
def weights(trained, tmp_path_factory):
    """First weights for seeds of one recipe."""
    network, _ = load_best(trained / BEST)
    file = tmp_path_factory.mktemp("weights") / "first.pth"
    torch.save(network.backbone.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def seeds(prepared, train_on, weights):
    """Two seeds of one recipe, evaluated; read them, never change them."""
    runs = [train_on(prepared.folder, weights=weights, seed=seed, image_size=48) for seed in (1, 2)]
    for run in runs:
        evaluate_run(run)
    return runs


@pytest.fixture(scope="module")
def made(seeds, scored, tmp_path_factory):
    """The mean of three runs, one of another image size."""
    return combine_runs([*seeds, scored], output=tmp_path_factory.mktemp("made"), device="cpu").folder


def answers(path, cells):
    return classify(make_plan([path], [str(cells)], Options(device="cpu")))


def probabilities(table):
    return table[[name for name in table if name.startswith("p_")]].to_numpy(float)


# What it is


def test_an_ensemble_looks_like_a_run_and_is_listed_as_finished_once_scored(made):
    assert is_run(made)
    evaluate_run(made)
    summary = summarise(made)
    assert (summary.state, summary.epochs) == ("finished", None)
    assert read_ensemble(made)["method"] == "mean"
    assert read_metrics(made)["model"]["backbone"] == "3 x test_resnet"


def test_its_answers_are_the_mean_of_those_of_its_members(made, seeds, scored, cells):
    file = made / BEST  # alone: the folder may hold a calibration
    network, card = load_best(file)
    pixels = torch.randint(0, 256, (5, 3, 56, 56), dtype=torch.uint8)
    with torch.inference_mode():
        found = network.eval()(pixels).softmax(1)
        each = [network.opinion(place, pixels)[0] for place in range(3)]
    np.testing.assert_allclose(found, torch.stack(each).mean(0), atol=1e-6)
    own, own_card = load_best(scored / BEST)
    with torch.inference_mode():
        alone = (own.eval()(pixels) / own_card.temperature).softmax(1)
    np.testing.assert_allclose(each[2], alone, atol=1e-6)
    assert card.image_size == 56
    assert [member.image_size for member in card.members] == [48, 48, 56]


def test_disagreement_is_a_column_and_zero_for_members_that_are_the_same(made, seeds, cells, tmp_path):
    table = answers(made, cells)
    assert (table["disagreement"] >= 0).all() and table["disagreement"].max() > 0
    assert (table["disagreement"] <= table["entropy"] + 0.2).all()
    twin = Path(shutil.copytree(seeds[0], tmp_path / "twin"))
    same = combine_runs([seeds[0], twin], output=tmp_path, device="cpu").folder
    assert answers(same, cells)["disagreement"].max() < 1e-5
    assert "disagreement" not in answers(seeds[0], cells)


def test_runs_behind_predict_disagree_as_the_ensemble_of_them_does(made, seeds, scored, cells, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copyfile(made / BEST, alone / BEST)  # not calibrated again
    together = classify(make_plan([*seeds, scored], [str(cells)], Options(device="cpu")))
    table = answers(alone / BEST, cells)
    sizes = {"rtol": 0, "atol": 0.02}  # the smaller members see images that are scaled twice
    np.testing.assert_allclose(probabilities(table), probabilities(together), **sizes)
    np.testing.assert_allclose(table["disagreement"], together["disagreement"], **sizes)


def test_the_single_file_answers_as_the_folder(made, cells, tmp_path):
    file = Path(shutil.copyfile(made / BEST, tmp_path / "alone.safetensors"))
    network, card = load_best(file)
    assert isinstance(network, Ensemble) and card.calibration is None
    alone, folder = (answers(one, cells) for one in (file, made))  # which may be calibrated: it changes no order
    np.testing.assert_array_equal(probabilities(alone).argmax(1), probabilities(folder).argmax(1))
    np.testing.assert_allclose(alone["disagreement"], folder["disagreement"], atol=1e-6)
    alone, folder = (open_model(one, device="cpu").embed(str(cells)) for one in (file, made))
    pd.testing.assert_frame_equal(pd.DataFrame(alone), pd.DataFrame(folder))
    assert all(one.picture.is_file() for one in explain(file, str(cells), tmp_path / "explained", device="cpu"))


def test_the_single_file_is_scored_as_the_folder_and_shown(made, prepared, tmp_path):
    file = Path(shutil.copyfile(made / BEST, tmp_path / "sent.safetensors"))
    done = hemafast("evaluate", file, "--data", prepared.folder, "--device", "cpu", "--json", cwd=tmp_path)
    said = json.loads(done.stdout)
    scores = evaluate_run(made)
    assert said["pooled"]["confusion"] == scores["pooled"]["confusion"]
    temperatures = [told["model"]["calibration"]["temperature"] for told in (said, scores)]
    np.testing.assert_allclose(*temperatures, rtol=1e-2)  # other batches, other sums
    (folder,) = (tmp_path / "runs").iterdir()
    page = (folder / REPORT).read_text(encoding="utf-8")
    assert f"hemafast evaluate {file} --data {prepared.folder}" in page
    assert "Settings" not in page  # which the file does not tell
    again = hf.open_run(file, tmp_path / "runs")
    assert again.folder.resolve() == folder
    assert again.evaluate(prepared.folder)["pooled"]["confusion"] == scores["pooled"]["confusion"]
    assert file.read_bytes() == (made / BEST).read_bytes()
    with pytest.raises(HemafastError, match="is a file, not the folder of a run"):
        hf.open_run(folder).report(file, output=tmp_path / "both.html")  # not yet


def test_evaluate_writes_scores_predictions_and_a_page(made):
    metrics = evaluate_run(made)
    table = pd.read_csv(made / PREDICTIONS)
    assert len(table) == metrics["pooled"]["images"] and "disagreement" in table
    found = hf.TrainedRun(made).predictions
    assert set(found["predicted"]) <= set(metrics["classes"])
    from hemafast.report.page import write_report

    page = write_report(made).read_text(encoding="utf-8")
    assert page and all(Path(run).name in page for run in metrics["model"]["combined"]["runs"])


@pytest.mark.parametrize("format", ["onnx", pytest.param("torch-export", marks=pytest.mark.nightly)])
def test_graphs_answer_as_the_ensemble(seeds, format, cells, tmp_path):
    run = combine_runs(seeds, output=tmp_path, device="cpu").folder
    exported = export_run(run, format=format)
    assert exported.agreement.same_class == exported.agreement.images
    (model,) = load_models([exported.path], "cpu", "auto")
    assert model.members == 1 and "disagreement" not in answers(exported.path, cells)


@pytest.mark.parametrize("format", ["safetensors", "onnx-int8"])
def test_formats_of_one_network_are_refused_by_name(made, format):
    with pytest.raises(HemafastError, match=r"ensemble, which cannot be exported as .*choose onnx"):
        export_run(made, format=format)


def test_its_heat_maps_are_those_of_its_members(made, cells, tmp_path):
    found = explain(made, str(cells), tmp_path / "explained", device="cpu")
    assert all(one.picture and one.picture.is_file() for one in found)


def test_it_embeds_the_features_of_all_members(made, seeds, cells):
    single = open_model(seeds[0], device="cpu").embed(str(cells)).shape[1]
    assert open_model(made, device="cpu").embed(str(cells)).shape[1] == 3 * single


# How it is made


def test_fitted_weights_are_chosen_on_one_half_and_the_page_says_so(seeds, scored, tmp_path):
    made = combine_runs([*seeds, scored], method="fitted", output=tmp_path, device="cpu")
    told = read_ensemble(made.folder)
    assert told["fitted_on"] and told["fitted_on"] + told["images"] == read_metrics(scored)["pooled"]["images"]
    assert sum(one["weight"] for one in told["members"]) == pytest.approx(1)
    metrics = evaluate_run(made.folder)
    assert any("were chosen on" in warning for warning in metrics["warnings"])
    assert metrics["pooled"]["calibrated"]["images"] == told["images"]


def test_a_largest_cost_leaves_members_out_and_names_them(seeds, scored, tmp_path):
    made = combine_runs([*seeds, scored], max_cost=1.0, output=tmp_path, device="cpu")
    told = made.result
    assert len(told["members"]) + len(told["left_out"]) == 3
    assert told["left_out"] and told["cost"] <= 1.0 + 1e-6
    assert "left out" in "\n".join(made.lines())


def test_a_soup_is_one_network_with_the_mean_of_the_weights(seeds, tmp_path):
    made = combine_runs(seeds, method="soup", output=tmp_path, device="cpu")
    soup, card = load_best(made.folder / BEST)
    one, other = (load_best(run / BEST)[0].state_dict() for run in seeds)
    name = "backbone.fc.weight"
    torch.testing.assert_close(soup.state_dict()[name], (one[name] + other[name]) / 2)
    mean = "backbone.bn1.running_mean"  # measured anew, not averaged
    assert not torch.allclose(soup.state_dict()[mean], (one[mean] + other[mean]) / 2, atol=1e-6)
    assert card.combined.method == "soup" and not card.members
    assert made.result["cost"] == pytest.approx(1)
    evaluate_run(made.folder)


def test_a_soup_of_probes_is_the_mean_of_their_last_layers_and_a_probe_has_no_snapshots(
    prepared, train_on, weights, tmp_path
):
    fields = {"weights": weights, "probe": 2, "policy": "basic", "lr": TrainConfig.lr, "epochs": 1}
    probes = [train_on(prepared.folder, seed=seed, **fields) for seed in (1, 2)]
    soup, one, other = (
        load_best(run / BEST)[0].state_dict()
        for run in (combine_runs(probes, method="soup", output=tmp_path, device="cpu").folder, *probes)
    )
    last = {"backbone.fc.weight", "backbone.fc.bias"}
    assert not any(torch.equal(one[name], other[name]) for name in last)
    for name, tensor in soup.items():
        torch.testing.assert_close(tensor, (one[name] + other[name]) / 2 if name in last else one[name])
    with pytest.raises(HemafastError, match="Name several probes"):
        combine_runs(probes[:1], method="snapshots", output=tmp_path, device="cpu")


def test_snapshots_are_the_checkpoints_that_a_run_kept(prepared, train_on, tmp_path):
    run = train_on(prepared.folder, keep=3)
    made = combine_runs([run], method="snapshots", output=tmp_path, device="cpu")
    epochs = [one["epoch"] for one in made.result["members"]]
    assert len(epochs) >= 2 and epochs == sorted(set(epochs))
    assert evaluate_run(made.folder)["pooled"]["images"]


def test_folds_are_combined_but_not_scored_on_images_that_a_member_was_trained_on(make_archive, train_on, tmp_path):
    make_archive(tmp_path / "source" / "Lab.zip", {"basophil": 9, "monocyte": 9}, seed=5)
    data = hf.prepare(tmp_path / "source", pack_sizes=(64,), folds=2)
    runs = [train_on(data.folder, fold=fold, epochs=1) for fold in (0, 1)]
    made = combine_runs(runs, output=tmp_path / "runs", device="cpu")
    assert not made.scored and "not known" in made.result["verdict"]
    with pytest.raises(HemafastError, match="ensemble of folds"):
        evaluate_run(made.folder)
    with pytest.raises(HemafastError, match="No validation image is held out"):
        combine_runs(runs, method="fitted", output=tmp_path / "runs", device="cpu")


def test_classes_in_another_order_are_mapped(seeds, tmp_path):
    turned = Path(shutil.copytree(seeds[0], tmp_path / "turned"))
    network, card = load_best(turned / BEST)
    order = [*range(1, len(card.classes)), 0]
    with torch.no_grad():
        for values in (network.backbone.fc.weight, network.backbone.fc.bias):
            values.copy_(values[order].clone())
    save_best(turned / BEST, network, replace(card, classes=tuple(card.classes[place] for place in order), home=None))
    sources = open_sources([seeds[0], turned], "mean")
    ensemble = ensemble_of([source.network for source in sources], card_of(sources, [0.5, 0.5])).eval()
    pixels = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8)
    with torch.inference_mode():
        one, other = (ensemble.opinion(place, pixels)[0] for place in (0, 1))
    torch.testing.assert_close(one, other)


# What is refused


def changed(run, folder, **fields):
    copied = Path(shutil.copytree(run, folder))
    network, card = load_best(copied / BEST)
    save_best(copied / BEST, network, replace(card, home=None, calibration=None, **fields))
    return copied


def test_other_classes_and_other_data_are_refused_by_name(seeds, tmp_path):
    _, card = load_best(seeds[0] / BEST)
    classes = (*card.classes[:-1], "smudge")
    with pytest.raises(HemafastError, match=r"other classes: .*smudge"):
        combine_runs([seeds[0], changed(seeds[1], tmp_path / "a", classes=classes)], output=tmp_path)
    with pytest.raises(HemafastError, match="other data"):
        combine_runs([seeds[0], changed(seeds[1], tmp_path / "b", data_fingerprint="0" * 64)], output=tmp_path)
    view = replace(card.view, field_of_view=10.0)
    with pytest.raises(HemafastError, match="other parts of an image"):
        combine_runs([seeds[0], changed(seeds[1], tmp_path / "c", view=view)], output=tmp_path)
    assert not [*tmp_path.glob("*_ensemble-of-*")]


@pytest.mark.parametrize(
    ("runs", "method", "said"),
    [
        ((0,), "mean", "two runs at least"),
        ((0, 0), "mean", "named twice"),
        ((0, 1), "snapshots", "checkpoints of one run"),
    ],
)
def test_a_wrong_number_of_runs_is_refused(seeds, runs, method, said, tmp_path):
    with pytest.raises(HemafastError, match=said):
        combine_runs([seeds[place] for place in runs], method=method, output=tmp_path)


def test_a_soup_of_two_recipes_is_refused_with_the_difference(seeds, scored, tmp_path):
    with pytest.raises(HemafastError, match=r"no seeds of one recipe: .*weights"):
        combine_runs([seeds[0], scored], method="soup", output=tmp_path)


def test_an_ensemble_is_no_member_and_cannot_be_adapted(made, seeds, cells, tmp_path):
    with pytest.raises(HemafastError, match="ensemble, which cannot be a member"):
        combine_runs([made, seeds[0]], output=tmp_path)
    with pytest.raises(HemafastError, match="ensemble, which cannot be adapted"):
        hf.adapt(made, str(cells), output=tmp_path)


def test_nobody_is_told_to_adapt_an_ensemble(made, seeds):
    assert "a member of the ensemble" in advice(open_model(made))
    assert f"hemafast adapt {seeds[0]}" in advice(open_model(seeds[0]))


def test_a_card_whose_members_are_not_in_the_file_is_refused(made, seeds, tmp_path):
    network, _ = load_best(seeds[0] / BEST)
    _, card = load_best(made / BEST)
    save_best(tmp_path / BEST, network, card)
    with pytest.raises(HemafastError, match="belongs to no member"):
        load_best(tmp_path / BEST)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight": 0.0}, r"\(the weights of the members add up to 0\.\d+, not to 1"),
        ({"std": (0.2, 0.0, 0.2)}, r"divided by the deviations \(0\.2, 0\.0, 0\.2\)"),
        ({"order": (0, 0)}, "no permutation of the classes"),
    ],
)
def test_members_that_cannot_answer_are_refused(made, tmp_path, changes, said):
    network, card = load_best(made / BEST)
    for name, value in changes.items():
        object.__setattr__(card.members[0], name, value)  # as a file may hold it
    save_best(tmp_path / BEST, network, card)
    with pytest.raises(HemafastError, match=said):
        load_best(tmp_path / BEST)


def test_nothing_is_left_of_an_ensemble_that_cannot_be_written(seeds, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hemafast.deploy.combine.save_best", full)
    with pytest.raises(HemafastError, match="No space"):
        combine_runs(seeds, output=tmp_path, device="cpu")
    assert not [*tmp_path.iterdir()]


def test_a_run_is_combined_with_others_in_python(seeds, tmp_path):
    run = hf.open_run(seeds[0]).ensemble(seeds[1], output=tmp_path, device="cpu")
    assert run.metrics["pooled"]["images"] and (run.folder / REPORT).parent == run.folder
    assert json.loads((run.folder / ENSEMBLE).read_text())["best_run"] in map(str, seeds)
    assert (run.folder / METRICS).is_file()
