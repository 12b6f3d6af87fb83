"""Test images: held out from every batch of training and validation, and scored on request."""

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command import hemafast
from rich.console import Console

from hemafast.api import TrainedRun
from hemafast.cli.tables import dataset_table
from hemafast.config import PrepareConfig, TrainConfig, checked
from hemafast.data.dataset import open_dataset
from hemafast.data.loader import Loader
from hemafast.deploy.export import export_run
from hemafast.eda import measure
from hemafast.eda.page import write_eda
from hemafast.engine.checkpoint import load_best, read_card
from hemafast.engine.lr_find import find_rate
from hemafast.errors import HemafastError
from hemafast.evaluate.evaluate import evaluate_run, scores_folder
from hemafast.evaluate.predictions import read_predictions
from hemafast.preparation import build
from hemafast.preparation.build import Prepared, prepare
from hemafast.preparation.verify import verify
from hemafast.report.page import write_report
from hemafast.run_folder import read_metrics

HELD_OUT = 14


@pytest.fixture(scope="module")
def published(prepared: Prepared, tmp_path_factory) -> Path:
    """A published split: a quarter of all images is for testing, and validation is left to draw."""
    table = pd.read_csv(prepared.folder / "split.csv").drop(columns="fold")
    table["split"] = np.where(np.arange(len(table)) % 4 == 2, "test", "train")
    path = tmp_path_factory.mktemp("published") / "split.csv"
    table.to_csv(path, index=False)
    return path


def _prepare(prepared: Prepared, folder: Path, **options) -> Prepared:
    fields = {"source": prepared.folder.parent, "output": folder, "pack_sizes": (64,), "shards": 2}
    return prepare(checked(PrepareConfig, fields | options))


@pytest.fixture(scope="module")
def data(prepared: Prepared, published: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    return _prepare(prepared, folder, split_file=published, format="webdataset").folder


@pytest.fixture(scope="module")
def tested(published: Path) -> set[str]:
    """The names of the test images, as the published split has them."""
    table = pd.read_csv(published)
    names = set(table.loc[table["split"] == "test", "path"])
    assert len(names) == HELD_OUT
    return names


def _name(path: str) -> str:
    return "/".join(path.split("/")[-3:])


def _names(table: pd.DataFrame) -> set[str]:
    return set(table["path"].map(_name))


@pytest.fixture
def fed(monkeypatch) -> Iterator[set[str]]:
    """The names of all images in batches of any loader, from here on."""
    names: set[str] = set()
    make = Loader._epoch

    def noting(loader: Loader, start):
        for batch in make(loader, start):
            names.update(_name(loader._samples.paths[row]) for row in batch.rows.tolist())
            yield batch

    monkeypatch.setattr(Loader, "_epoch", noting)
    return names


@pytest.fixture(scope="module")
def run(data, train_on) -> Path:
    folder = train_on(data, epochs=1)
    evaluate_run(folder)
    return folder


@pytest.mark.parametrize("sampler", ["natural", "balanced"])
def test_no_test_image_is_in_a_batch_of_a_training(data, tested, train_on, fed, sampler):
    folder = train_on(data, epochs=2, sampler=sampler)
    assert len(fed) >= (58 - HELD_OUT if sampler == "natural" else 40)
    assert not fed & tested
    evaluate_run(folder)
    assert not fed & tested
    fed.clear()
    evaluate_run(folder, split="test")
    assert fed == tested


def test_the_search_for_a_learning_rate_feeds_no_test_image(data, tested, fed):
    small = {"model": "test_resnet", "pretrained": "no", "batch_size": 8, "image_size": 32, "device": "cpu"}
    find_rate(checked(TrainConfig, {"data": data, "amp": "off", "compile": "off", "threads": 1} | small), steps=12)
    assert fed
    assert not fed & tested


@pytest.mark.parametrize("sampler", ["natural", "balanced", "mixed:0.5"])
@pytest.mark.parametrize("source", ["packed", "resident", "files", "webdataset"])
def test_loaders_keep_to_their_split(data, tested, fed, sampler, source):
    dataset = open_dataset(data)
    for split in ("train", "val"):
        for _ in dataset.loader(split, sampler=sampler, source=source, size=56, threads=1):
            pass
    assert fed
    assert not fed & tested
    fed.clear()
    labels = torch.cat([batch for _, batch in dataset.loader("test", source=source, size=56, threads=1)])
    assert fed == tested
    assert [dataset.classes[label] for label in labels] == dataset.split("test")["label"].tolist()


@pytest.fixture(scope="module")
def folders(prepared: Prepared, published: Path, tmp_path_factory) -> Path:
    """The same images as a stranger has them: DOMAIN/train and DOMAIN/test, each with class folders."""
    source = tmp_path_factory.mktemp("folders")
    for path, split in pd.read_csv(published).itertuples(index=False):
        domain, label, file = path.split("/")
        place = source / domain / split / label / file
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(prepared.folder / "images" / path, place)
    return source


@pytest.fixture(scope="module")
def folded(folders: Path, tmp_path_factory) -> Path:
    """Three folds, of images in folders named train and test."""
    output = tmp_path_factory.mktemp("folded") / "prepared"
    fields = {"source": folders, "output": output, "pack_sizes": (64,), "shards": 2, "folds": 3, "format": "webdataset"}
    return prepare(checked(PrepareConfig, fields)).folder


def test_folders_named_test_are_held_out_and_resplit_draws_anew(folders, tested, tmp_path):
    for resplit, held_out in ((False, tested), (True, set())):
        output = tmp_path / str(resplit)
        fields = {"source": folders, "output": output, "pack_sizes": (64,), "resplit": resplit}
        table = prepare(checked(PrepareConfig, fields)).files.manifest
        assert _names(table[table["split"] == "test"]) == held_out
        assert set(table["split"]) - {"test"} == {"train", "val"}
        assert len(table) == 58


def test_folders_without_training_images_are_refused_and_the_remedy_works(folders, tmp_path):
    source = tmp_path / "source"
    for domain in ("Acevedo_20", "Matek_19"):
        shutil.copytree(folders / domain / "train", source / domain / "val")
        shutil.copytree(folders / domain / "test", source / domain / "test")
    fields = {"source": source, "output": tmp_path / "prepared", "pack_sizes": (64,)}
    with pytest.raises(HemafastError, match="no image for training: 44 validation, 14 test images") as caught:
        prepare(checked(PrepareConfig, fields))
    assert "--resplit" in caught.value.remedy
    assert prepare(checked(PrepareConfig, fields | {"resplit": True})).info.counts.keys() == {"train", "val"}


def test_no_fold_holds_a_test_image(folded, tested):
    validated: list[str] = []
    for fold in range(3):
        dataset = open_dataset(folded, fold)
        train, val, test = (_names(dataset.split(split)) for split in ("train", "val", "test"))
        assert test == tested
        assert not (train | val) & tested
        assert len(train) + len(val) == 58 - HELD_OUT
        validated += val
        samples = dataset.samples("test")
        assert {_name(path) for path in samples.paths} == tested
        assert len(samples.members().paths) == HELD_OUT
    assert len(validated) == len(set(validated)) == 58 - HELD_OUT


def test_no_list_of_a_fold_names_a_test_image(folded, tested):
    lists = {path.name: path.read_text().splitlines() for path in (folded / "shards").iterdir()}
    assert len([name for name in lists if name.startswith("test-")]) == 2
    assert not [name for name in lists if name.startswith("fold") and "-test-" in name]
    for name, lines in lists.items():
        listed = {_name(line.rsplit(" ", 1)[0]) for line in lines}
        assert listed
        assert listed <= tested if name.startswith("test-") else not listed & tested
    assert not verify(folded).problems


def test_training_on_a_fold_feeds_no_test_image(folded, tested, train_on, fed):
    folder = train_on(folded, epochs=1, fold=1)
    assert len(fed) == 58 - HELD_OUT
    assert not fed & tested
    fed.clear()
    evaluate_run(folder, split="test")
    assert fed == tested


def test_counts_of_test_are_there_only_with_test_images(prepared, data, tested):
    assert set(prepared.info.counts) == {"train", "val"}
    assert not list((prepared.folder / "shards").glob("test-*"))
    info = open_dataset(data).info
    assert sum(sum(labels.values()) for labels in info.counts["test"].values()) == HELD_OUT
    assert {
        "split.csv: its split is kept: 44 training, 14 test images",
        "split.csv: its split has no validation images, so 20% of its training images validate",
    } <= set(info.notes)
    assert open_dataset(data).counts("train").sum() + open_dataset(data).counts("val").sum() == 58 - HELD_OUT


def test_a_split_with_test_images_can_be_taken_over(prepared, data, tmp_path):
    again = _prepare(prepared, tmp_path / "again", split_file=data / "split.csv", seed=7).files.manifest
    pd.testing.assert_series_equal(again["split"], open_dataset(data).table["split"])


def test_without_test_images_the_answer_says_how_to_hold_some_out(dataset, scored):
    for ask in (dataset.split, dataset.samples, dataset.loader, lambda split: evaluate_run(scored, split=split)):
        with pytest.raises(HemafastError, match="no split 'test': its splits are train and val") as caught:
            ask("test")
        assert "--split-file" in caught.value.remedy
    with pytest.raises(HemafastError, match="no split 'tests'"):
        dataset.split("tests")
    with pytest.raises(HemafastError, match="split = 'train'"):
        evaluate_run(scored, split="train")
    assert not (scored / "evaluations").exists()


def test_domains_without_test_images_are_named(prepared, tmp_path):
    table = pd.read_csv(prepared.folder / "split.csv")
    table.loc[table["path"].str.startswith("Matek_19/basophil"), "split"] = "test"
    table.to_csv(tmp_path / "split.csv", index=False)
    folder = _prepare(prepared, tmp_path / "prepared", split_file=tmp_path / "split.csv").folder
    assert len(open_dataset(folder, domains=["Matek_19"]).samples("test")) == 5
    with pytest.raises(HemafastError, match="no test images of Acevedo_20"):
        open_dataset(folder, domains=["Acevedo_20"]).loader("test")


# Scores


def _contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_scores_of_the_test_lie_beside_those_of_the_run_and_name_their_split(run, tested, tmp_path):
    run = Path(shutil.copytree(run, tmp_path / "run"))
    before, card = _contents(run), read_card(run / "best_model.safetensors")
    metrics = TrainedRun(run).evaluate(split="test", device="cpu")
    folder = run / "evaluations" / "test"
    assert scores_folder(run, metrics) == folder
    after = _contents(run)
    assert {name: after[name] for name in before} == before
    assert {path.name for path in folder.iterdir()} == {
        "confusion_matrix.png",
        "metrics.json",
        "predictions.csv",
        "report.html",
    }
    assert read_metrics(folder) == json.loads(json.dumps(metrics))
    assert (metrics["split"], metrics["pooled"]["images"]) == ("test", HELD_OUT)
    table, _, _ = read_predictions(folder / "predictions.csv")
    assert {_name(path) for path in table["image"]} == tested
    assert set(table["part"]) == {"report"}
    assert metrics["model"]["calibration"]["images"] == card.calibration.images > 0
    assert metrics["pooled"]["calibrated"]["images"] == HELD_OUT
    text = " ".join(write_report(folder).read_text(encoding="utf-8").replace("<wbr>", "").split())
    assert f"macro-F1 {metrics['pooled']['macro_f1']:.3f} on test images" in text
    assert f"{HELD_OUT} test images of" in text
    assert "<h1>run/evaluations/test</h1>" in text
    assert "The epoch was chosen on these same images" not in text


def test_the_scores_are_those_of_the_model_on_the_test_images(run, data):
    evaluate_run(run, split="test")
    _, _, found = read_predictions(run / "evaluations" / "test" / "predictions.csv")
    samples = open_dataset(data).samples("test")
    model, card = load_best(run / "best_model.safetensors")
    views = torch.from_numpy(np.ascontiguousarray(np.asarray(samples.packed)[:, 4:60, 4:60])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits = model.eval()(views).double() / card.calibration.temperature
    np.testing.assert_allclose(found, logits.softmax(dim=1).numpy(), atol=2e-4)
    right = (found.argmax(axis=1) == samples.labels).mean()
    assert read_metrics(run / "evaluations" / "test")["pooled"]["accuracy"] == pytest.approx(right)


def test_the_test_of_other_data_has_a_folder_of_its_own(scored, data, tmp_path):
    run = Path(shutil.copytree(scored, tmp_path / "run"))
    metrics = evaluate_run(run, data=data, split="test")
    folder = scores_folder(run, metrics)
    assert folder.name.endswith(f"-{metrics['data']['fingerprint'][:8]}-test")
    assert folder != scores_folder(run, evaluate_run(run, data=data))


def test_the_command_names_the_split(run):
    done = hemafast("evaluate", run, "--split", "test")
    assert done.returncode == 0, done.stderr
    assert "test_resnet, test images" in done.stdout
    assert f"{run / 'evaluations' / 'test'}\n" in done.stdout


# Pages and tables


def test_the_table_of_a_data_set_counts_test_images_where_there_are_any(data, prepared):
    for info, columns in ((open_dataset(data).info, "train │ val │ test"), (prepared.info, "train │ val │ converted")):
        text = io.StringIO()
        Console(file=text, width=160).print(dataset_table(info))
        row = next(line for line in text.getvalue().splitlines() if "Matek_19" in line)
        cells = [cell.strip() for cell in row.split("│")[2:]]
        counts = [str(sum(labels.get("Matek_19", {}).values())) for labels in info.counts.values()]
        assert cells[: len(counts)] == counts
        assert columns in " ".join(text.getvalue().replace("┃", "│").split())


def test_the_model_card_counts_the_test_images_that_are_held_out(run, data, scored, tmp_path):
    card = export_run(run, tmp_path / "a", format="safetensors").card.read_text(encoding="utf-8")
    for domain, labels in open_dataset(data).info.counts["test"].items():
        assert f"{domain}: {sum(labels.values())} test images are held out" in card
    other = export_run(scored, tmp_path / "b", format="safetensors").card.read_text(encoding="utf-8")
    assert "held out" not in other


def test_the_page_about_data_counts_test_images_and_shows_none(data, tested, tmp_path):
    dataset = open_dataset(data)
    parts, paths = measure.count_parts(dataset), dataset.table["path"]
    assert int(parts["test"].to_numpy().sum()) == HELD_OUT
    chosen = {
        row for domains in measure.choose_samples(dataset, 50).values() for rows in domains.values() for row in rows
    }
    assert {_name(paths[row]) for row in chosen} == _names(dataset.table) - tested
    assert sum(map(len, measure.mean_colours(dataset).values())) == 58 - HELD_OUT
    text = write_eda(data, tmp_path).read_text(encoding="utf-8")
    assert "<h3>test</h3>" in text
    assert "Test images are left out" in text


def test_the_page_about_folds_shows_the_test_images_apart(folded):
    assert list(measure.count_parts(open_dataset(folded))) == ["fold 0", "fold 1", "fold 2", "test"]


def test_patients_in_several_splits_are_said_wherever_a_score_is(prepared, train_on, published, tmp_path):
    select, patients = build.select_images, prepared.files.manifest["path"].str.extract(r"(\d)\.")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            build, "select_images", lambda images, config: select(images.assign(listed_group=patients), config)
        )
        folder = _prepare(prepared, tmp_path / "prepared", split_file=published).folder
    run = train_on(folder, epochs=1)
    (said,) = [warning for warning in evaluate_run(run)["warnings"] if "patients" in warning]
    divided = patients.groupby(open_dataset(folder).table["split"] == "test").unique().map(set)
    expected = f"{len(divided[True] & divided[False])} patients or slides have images in several splits"
    assert said.startswith(expected)
    assert not said.startswith("0 ")
    card = export_run(run, tmp_path / "card", format="safetensors").card.read_text(encoding="utf-8")
    assert expected in card
    assert "The split keeps groups" not in card
