"""Train on each, test on each: the matrix is what anyone would count, and one command makes it in the end."""

import csv
import io
import json
import signal
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from command import hemafast
from page import Page, needs_browser, wrong_with
from PIL import Image
from rich.console import Console
from sklearn.metrics import f1_score

from hemafast.cli.tables import matrix_table
from hemafast.config import PrepareConfig, to_json
from hemafast.data.dataset import open_dataset
from hemafast.engine.step import TrainStep
from hemafast.errors import HemafastError, StoppedError
from hemafast.evaluate.intervals import resample
from hemafast.evaluate.predictions import prediction_table, read_predictions
from hemafast.experiments import crossdomain, runs
from hemafast.experiments.crossdomain import cells_of, compare_domains, find_shortcuts
from hemafast.preparation.build import prepare

DOMAINS = ("Acevedo_20", "Matek_19")
NAMES = (*DOMAINS, "pooled")
SHARED = ("basophil", "monocyte")  # of the two domains


@pytest.fixture(scope="module")
def compared(tmp_path_factory, settings):
    """The output of a whole comparison; read it, never change it."""
    config = settings(tmp_path_factory.mktemp("cross") / "out", epochs=2)
    compare_domains(config, find_shortcuts(config))
    return config.output


@pytest.fixture(scope="module")
def result(compared):
    return json.loads((compared / "crossdomain.json").read_text(encoding="utf-8"))


def answers_of(result, trained_on):
    """Labels, answers and domains of the validation images, as the run wrote them down."""
    (row,) = [row for row in result["trained"] if row["name"] == trained_on]
    table, _, _ = read_predictions(Path(row["run"]) / "predictions.csv")
    return table


def rows_of(table, tested_on):
    return table if tested_on == "pooled" else table[table["domain"] == tested_on]


def test_there_is_a_cell_for_each_model_on_each_domain_and_pooled(result):
    assert set(cells_of(result)) == {(row, column) for row in NAMES for column in NAMES}
    assert [row["name"] for row in result["trained"]] == list(NAMES)
    assert result["failures"] == {}
    assert result["warnings"] == []


def test_each_model_was_trained_on_what_its_row_says(result, dataset):
    for row in result["trained"]:
        images = dataset.split("train")
        mine = images[images["domain"].isin(DOMAINS if row["name"] == "pooled" else [row["name"]])]
        assert row["images"] == len(mine)
        assert set(dataset.info.classes) - set(row["absent"]) == set(mine["label"])
        config = json.loads((Path(row["run"]) / "config.json").read_text(encoding="utf-8"))
        assert config["domains"] == row["domains"]


@pytest.mark.parametrize("trained_on", NAMES)
@pytest.mark.parametrize("tested_on", NAMES)
def test_scores_are_those_of_sklearn_on_the_images_that_stay(result, dataset, trained_on, tested_on):
    cell = cells_of(result)[trained_on, tested_on]
    table = rows_of(answers_of(result, trained_on), tested_on)
    trained = dataset.split("train")
    known = set(trained[trained["domain"].isin(DOMAINS if trained_on == "pooled" else [trained_on])]["label"])
    present = set(table["label"])
    for kind, classes in (("shared", known & present), ("every", present)):
        score, kept = cell[kind], table[table["label"].isin(classes)]
        assert set(score["classes"]) == classes
        assert score["images"] == len(kept)
        assert score["macro_f1"]["value"] == pytest.approx(
            f1_score(kept["label"], kept["predicted"], labels=sorted(classes), average="macro", zero_division=0)
        )
        low, high = score["macro_f1"]["ci95"]
        assert 0 <= low <= high <= 1


def test_only_what_both_have_is_shared(result):
    cells = cells_of(result)
    for pair in (DOMAINS, DOMAINS[::-1]):
        assert cells[pair]["shared"]["classes"] == list(SHARED)
        assert cells[pair]["shared"]["images"] < cells[pair]["every"]["images"]


def test_the_models_differ_enough_for_the_comparison_to_mean_something(result):
    calls = [tuple(answers_of(result, name)["predicted"]) for name in NAMES]
    assert len(set(calls)) == 3


def test_a_drop_is_the_difference_on_the_same_images_and_its_interval_is_paired(result):
    cell = cells_of(result)["Acevedo_20", "Matek_19"]
    own, other = (rows_of(answers_of(result, name), "Matek_19") for name in ("Matek_19", "Acevedo_20"))
    labels = own["label"].to_numpy()

    def score(table, rows):
        actual, called = labels[rows], table["predicted"].to_numpy()[rows]
        called, actual = called[np.isin(actual, SHARED)], actual[np.isin(actual, SHARED)]
        hits = {name: (called[actual == name] == name).sum() for name in set(actual)}
        return np.mean([2 * hits[name] / ((actual == name).sum() + (called == name).sum()) for name in hits])

    everything = np.arange(len(labels))
    assert cell["drop"]["in_domain"] == pytest.approx(score(own, everything))
    assert cell["drop"]["here"] == pytest.approx(score(other, everything))
    assert cell["drop"]["drop"]["value"] == pytest.approx(score(own, everything) - score(other, everything))
    weights = np.concatenate(list(resample(len(labels))), axis=1).astype(int)[:, 1:]
    drops = [
        score(own, rows) - score(other, rows)
        for rows in (np.repeat(everything, column) for column in weights.T)
        if np.isin(labels[rows], SHARED).any()
    ]
    assert cell["drop"]["drop"]["ci95"] == pytest.approx(list(np.percentile(drops, [2.5, 97.5])))


def test_a_model_has_no_drop_against_itself(result):
    assert [pair for pair, cell in cells_of(result).items() if cell["drop"] is None] == [(name, name) for name in NAMES]


def test_the_files_say_what_the_result_says(compared, result):
    with (compared / "crossdomain.csv").open(encoding="utf-8") as stream:
        rows = {(row["trained_on"], row["tested_on"]): row for row in csv.DictReader(stream)}
    cells = cells_of(result)
    assert rows.keys() == cells.keys()
    for pair, cell in cells.items():
        assert float(rows[pair]["shared_macro_f1"]) == cell["shared"]["macro_f1"]["value"]
        assert int(rows[pair]["all_classes"]) == len(cell["every"]["classes"])
        assert bool(rows[pair]["drop"]) == bool(cell["drop"])
    with Image.open(compared / "crossdomain.png") as picture:
        picture.load()
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_the_page_is_alone_and_has_every_score(compared, result):
    page = Page((compared / "crossdomain.html").read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    assert page.is_alone
    for cell in result["cells"]:
        low, high = cell["shared"]["macro_f1"]["ci95"]
        assert f"{cell['shared']['macro_f1']['value']:.3f} {low:.3f} to {high:.3f}" in text
    assert result["shortcuts"]["verdict"] in text


@needs_browser
@pytest.mark.slow
def test_the_page_is_sound_in_every_look(compared, open_page):
    assert wrong_with(open_page, compared / "crossdomain.html") == {}


def test_a_second_call_trains_and_evaluates_nothing_and_writes_the_same(compared, settings, updates, evaluations):
    config = settings(compared, epochs=2)
    before = {file.name: file.read_bytes() for file in compared.glob("crossdomain.*")}
    compare_domains(config, find_shortcuts(config))
    assert (updates, evaluations) == ([], [])
    assert {file.name: file.read_bytes() for file in compared.glob("crossdomain.*")} == before
    assert len(before) == 4


def test_a_call_after_a_stop_goes_on_where_it_was(tmp_path, settings, monkeypatch, updates):
    config, step = settings(tmp_path / "out", epochs=2), TrainStep.__call__
    with monkeypatch.context() as patch:

        def stop_in_the_second_run(self, *arguments, **named):
            step(self, *arguments, **named)
            if len(updates) == 9:  # 3 updates an epoch of Acevedo_20, 3 of Matek_19
                signal.raise_signal(signal.SIGINT)

        patch.setattr(TrainStep, "__call__", stop_in_the_second_run)
        with pytest.raises(StoppedError) as stopped:
            compare_domains(config)
    assert stopped.value.exit_code == 130
    assert not (config.output / "crossdomain.json").exists()
    before = len(updates)
    result = compare_domains(config)
    assert len(list((config.output / "train_Matek_19").glob("2*"))) == 1
    assert updates[before] == 3  # the fourth of the second run
    assert set(cells_of(result)) == {(row, column) for row in NAMES for column in NAMES}


def test_a_run_that_fails_is_said_and_the_others_are_done(tmp_path, settings, monkeypatch):
    config = settings(tmp_path / "out")
    train = runs.train

    def fail_on_matek(asked, *arguments, **named):
        if asked.domains == ("Matek_19",):
            raise MemoryError("not enough\nof it")
        return train(asked, *arguments, **named)

    monkeypatch.setattr(runs, "train", fail_on_matek)
    result = compare_domains(config)
    assert result["failures"] == {"Matek_19": "MemoryError: not enough of it"}
    cells = cells_of(result)
    assert set(cells) == {(row, column) for row in ("Acevedo_20", "pooled") for column in NAMES}
    assert cells["Acevedo_20", "Matek_19"]["drop"] is None
    page = Page((config.output / "crossdomain.html").read_text(encoding="utf-8"))
    assert "Matek_19 failed: MemoryError: not enough of it" in page.text


def test_a_domain_that_only_validates_is_tested_on(settings, tmp_path, make_archive):
    source = tmp_path / "source"
    for seed, name in enumerate(("A", "B")):
        make_archive(source / name, {"basophil": 13, "monocyte": 13}, seed=seed)
    config = PrepareConfig(source=source, output=tmp_path / "prepared", pack_sizes=(64,), holdout_domain="B")
    asked = settings(tmp_path / "out", data=prepare(config).folder)
    assert find_shortcuts(asked) is None
    result = compare_domains(asked)
    assert set(cells_of(result)) == {("A", "A"), ("A", "B")}
    assert cells_of(result)["A", "B"]["shared"]["images"] == 26
    assert result["tested_only"] == {"B": "0 training images of 0 classes; 20 images of 2 classes are the least"}
    assert result["left_out"] == {
        **cells_of(result)["A", "B"]["shared"]["macro_f1"], "domains": ["B"], "models": {"B": "A"},
    } | {"ci95": result["left_out"]["ci95"]}  # fmt: skip


FIVE = ("A", "B", "C", "D", "tiny")


@pytest.fixture(scope="module")
def five(tmp_path_factory, make_archive):
    """Four domains of 28 images, whose classes differ, and one of too few; patients are known in A alone."""
    room = tmp_path_factory.mktemp("five")
    for seed, name in enumerate(FIVE):
        stage = "neutrophil_banded" if name == "B" else "neutrophil_segmented"
        counts = {"basophil": 2, stage: 3} if name == "tiny" else {"basophil": 14, stage: 14}
        for patient in (1, 2, 3, 4) if name == "A" else ():
            some = dict.fromkeys(counts, 4)
            make_archive(room / "source" / name, some, seed=100 + patient, top=f"patient_{patient}/")
        if name != "A":
            make_archive(room / "source" / name, counts, seed=seed)
    fields = {"source": room / "source", "output": room / "prepared", "pack_sizes": (64,)}
    return prepare(PrepareConfig(**fields)).folder


@pytest.fixture
def answered(monkeypatch):
    """Runs that are not trained: each answers right in its own domains, and by chance elsewhere."""
    asked = {}

    def run_all(configs, **_):
        for name, config in configs.items():
            asked[name] = config.domains
            dataset, folder = open_dataset(config.data), config.output / "run"
            images, classes = dataset.split("val"), dataset.info.classes
            generator = np.random.default_rng(len(asked))
            given = generator.dirichlet(np.ones(len(classes)), len(images))
            for row, (label, domain) in enumerate(zip(images["label"], images["domain"], strict=True)):
                if domain in config.domains:
                    given[row] = np.eye(len(classes))[classes.index(label)]
            columns = {"image": images["path"].to_numpy(), "domain": images["domain"].to_numpy()}
            folder.mkdir(parents=True)
            table = prediction_table(classes, given, columns | {"label": images["label"].to_numpy()})
            table.to_csv(folder / "predictions.csv", index=False)
            model = {"epoch": 1, "started_from": "random weights", "drawn_data": False}
            training = {"epochs": 1, "total_seconds": 1.0, "train_images_per_second": 1.0}
            yield name, runs.Scored(folder, {"data": {"drawn": False}, "model": model, "training": training})

    monkeypatch.setattr(crossdomain, "run_all", run_all)
    return asked


def test_with_four_domains_each_is_also_left_out_and_a_small_one_is_only_tested_on(five, answered, settings, tmp_path):
    result = compare_domains(settings(tmp_path / "out", data=five))
    assert answered["all but B"] == ("A", "C", "D")
    assert [row["name"] for row in result["trained"]] == [*"ABCD", *(f"all but {name}" for name in "ABCD"), "pooled"]
    assert [test["name"] for test in result["tested"]] == [*FIVE, "pooled"]
    assert list(result["tested_only"]) == ["tiny"]
    assert result["left_out"]["models"] == {name: f"all but {name}" for name in "ABCD"} | {"tiny": "pooled"}
    cells = cells_of(result)
    values = [cells[model, name]["shared"]["macro_f1"]["value"] for name, model in result["left_out"]["models"].items()]
    assert result["left_out"]["value"] == pytest.approx(np.mean(values))
    low, high = result["left_out"]["ci95"]
    assert 0 <= low < result["left_out"]["value"] < high < 1
    unseen = {mean["trained_on"]: mean for mean in result["unseen"]}
    assert unseen["A"]["domains"] == ("B", "C", "D", "tiny")
    expected = [cells["A", name]["shared"]["macro_f1"]["value"] for name in unseen["A"]["domains"]]
    assert unseen["A"]["macro_f1"]["value"] == pytest.approx(np.mean(expected))
    assert cells["A", "A"]["shared"]["macro_f1"]["value"] == 1
    page = Page((tmp_path / "out" / "crossdomain.html").read_text(encoding="utf-8"))
    assert f"{result['left_out']['value']:.3f}" in page.text
    assert "tiny is only tested on: " in page.text


def test_a_class_map_merges_what_one_domain_does_not_tell_apart(five, answered, settings, tmp_path):
    apart = cells_of(compare_domains(settings(tmp_path / "apart", data=five)))
    result = compare_domains(
        settings(tmp_path / "out", data=five), class_map={"neutrophil_banded": "neutrophil_segmented"}
    )
    merged = cells_of(result)
    assert apart["A", "B"]["shared"]["classes"] == ("basophil",)
    assert merged["A", "B"]["shared"]["classes"] == ("basophil", "neutrophil_segmented")
    assert "neutrophil_banded" not in result["classes"]
    assert result["folding"]["merged"] == {"neutrophil_segmented": ["neutrophil_banded"]}


def test_the_matrix_of_seven_columns_stays_readable_in_a_terminal(five, answered, settings, tmp_path):
    result = compare_domains(settings(tmp_path / "out", data=five))
    for width in (60, 80):
        console = Console(width=width, file=io.StringIO())
        console.print(matrix_table(result))
        text = console.file.getvalue()
        for cell in result["cells"]:
            assert f"{cell['shared']['macro_f1']['value']:.3f}" in text
        assert max(map(len, text.splitlines())) <= width


def test_it_says_where_patients_are_apart_and_where_images_were_split(five, answered, settings, tmp_path):
    notes = compare_domains(settings(tmp_path / "out", data=five))["notes"]
    assert "In B and C and D and tiny, the split is by image, not by patient: scores at home may be too good" in notes
    assert "In A, groups such as patients are in training or in validation, not in both" in notes


HOSTILE = ("[bold]" + "w" * 60, '=1+1,"$_{x^$', "<script>alert(1)")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, settings, make_archive):
    """Two of three domains compared, by names that are meant to break something: settings, and what was printed."""
    room = tmp_path_factory.mktemp("hostile")
    for seed, name in enumerate(HOSTILE):
        make_archive(room / "source" / name, {"basophil": 13, "<b>{{ 7 * 7 }}": 13}, seed=seed)
    fields = {"source": room / "source", "output": room / "prepared", "pack_sizes": (64,), "classes": "from-data"}
    config = settings(room / "out", data=prepare(PrepareConfig(**fields)).folder)
    (room / "asked.json").write_text(to_json(config), encoding="utf-8")
    where = ("--config", room / "asked.json", "--data", config.data, "--output", config.output)
    return config, hemafast("crossdomain", *where, "--domain", HOSTILE[2], "--domain", HOSTILE[0])


def test_names_of_domains_break_neither_page_nor_table(hostile):
    config, done = hostile
    assert done.returncode == 0, done.stderr
    page = Page((config.output / "crossdomain.html").read_text(encoding="utf-8"))
    assert page.is_alone
    assert not {"b", "script"} & set(page.tags)
    for name in (HOSTILE[0], HOSTILE[2]):
        assert name in page.text
        assert name[:10] in done.stdout


def test_domains_can_be_chosen(hostile):
    config, _ = hostile
    result = json.loads((config.output / "crossdomain.json").read_text(encoding="utf-8"))
    chosen = [HOSTILE[2], HOSTILE[0]]
    assert [row["name"] for row in result["trained"]] == [*chosen, "pooled"]
    assert result["trained"][-1]["domains"] == chosen
    pooled = cells_of(result)[chosen[0], "pooled"]
    assert pooled["every"]["images"] == open_dataset(config.data, domains=chosen).counts("val").sum()


@pytest.mark.parametrize(
    ("domains", "words"),
    [(("Matek_19",), "one domain to compare, Matek_19"), (("Matek_19", "Bonn"), "no domain Bonn")],
)
def test_fewer_than_two_domains_and_unknown_ones_are_refused(settings, tmp_path, domains, words):
    with pytest.raises(HemafastError, match=words):
        compare_domains(settings(tmp_path / "out", domains=domains))
    assert not (tmp_path / "out").exists()


def test_data_of_one_domain_is_refused_in_one_line_and_nothing_is_written(tmp_path, make_archive):
    make_archive(tmp_path / "source" / "A", {"basophil": 6, "monocyte": 6})
    data = prepare(PrepareConfig(source=tmp_path / "source", output=tmp_path / "prepared", pack_sizes=(64,))).folder
    done = hemafast("crossdomain", "--data", data, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "one domain" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_domain_named_pooled_is_refused(settings, tmp_path, make_archive):
    for seed, name in enumerate(("A", "pooled")):
        make_archive(tmp_path / "source" / name, {"basophil": 6, "monocyte": 6}, seed=seed)
    data = prepare(PrepareConfig(source=tmp_path / "source", output=tmp_path / "prepared", pack_sizes=(64,))).folder
    with pytest.raises(HemafastError, match="named pooled"):
        compare_domains(settings(tmp_path / "out", data=data))


class TestCommand:
    """`hemafast crossdomain`."""

    def test_prints_the_matrix_or_json_and_finds_what_is_finished(self, compared, settings, tmp_path, updates, result):
        asked = tmp_path / "asked.json"
        asked.write_text(to_json(settings(compared, epochs=2)), encoding="utf-8")
        command = ("crossdomain", "--config", asked, "--output", compared)  # the file names the data
        shown, as_json = hemafast(*command), hemafast(*command, "--json")
        assert (shown.returncode, as_json.returncode, updates) == (0, 0, [])
        assert json.loads(as_json.stdout) == result
        for cell in result["cells"]:
            assert f"{cell['shared']['macro_f1']['value']:.3f}" in shown.stdout
        assert f"elsewhere: {result['left_out']['value']:.3f} (" in shown.stdout
        assert " ".join(result["shortcuts"]["verdict"].split()[:6]) in shown.stdout
        assert str(compared / "crossdomain.html") in shown.stdout

    def test_a_failure_is_exit_code_1_and_a_stop_130(self, settings, tmp_path, monkeypatch):
        config = settings(tmp_path / "out")
        asked = tmp_path / "asked.json"
        asked.write_text(to_json(config), encoding="utf-8")
        command = (
            *("crossdomain", "--config", asked, "--data", config.data, "--output", config.output),
            *("--no-shortcut", "--weights", "no_such_weights.pth"),
        )
        failed = hemafast(*command)
        assert failed.returncode == 1
        assert failed.stdout.count("no_such_weights") >= 3
        for error in (StoppedError("Stopped by SIGTERM.", "Go on with X.", exit_code=143), KeyboardInterrupt()):
            monkeypatch.setattr(runs, "train", Mock(side_effect=error))
            stopped = hemafast(*command)
            assert stopped.returncode == getattr(error, "exit_code", 130)
            assert "Run the same command to continue." in stopped.stderr
