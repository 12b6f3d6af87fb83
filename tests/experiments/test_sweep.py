"""A sweep: what ran beside what was published, what did not run said so, and a second call that only fills gaps."""

import csv
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from command import hemafast
from PIL import Image

from hemafast import presets
from hemafast.config import TrainConfig, checked
from hemafast.engine.layout import avoid_wrong_gradients
from hemafast.engine.machine import choose_machine
from hemafast.errors import HemafastError
from hemafast.experiments import sweep
from hemafast.experiments.plan import plan_sweep, scaled
from hemafast.experiments.published import SWEEPS
from hemafast.model import build_model
from hemafast.run_folder import read_metrics

PUBLISHED = {
    "baseline": 0.8948,
    "weighted_loss": 0.8904,
    "strong_augment": 0.8621,
    "b0": 0.9015,
    "onecycle": 0.9073,
}
NOT_THE_REFERENCE = "not the reference's experiments"


@pytest.fixture(scope="module", autouse=True)
def tiny_presets(tiny):
    """The five presets train for a second each, but for one, which fails."""
    own = {"b0": {"epochs": 2}, "onecycle": {"weights": "no_such_weights.pth"}, "weighted_loss": {"loss": "weighted"}}
    with pytest.MonkeyPatch.context() as patch:
        for name in PUBLISHED:
            patch.setitem(presets.PRESETS, name, partial(dict, **{**tiny, **own.get(name, {})}))
        yield


@pytest.fixture(scope="module")
def compared(tiny):
    """The answer about layouts is kept, which the first run on a machine asks for and logs."""
    config = checked(TrainConfig, tiny)
    machine = choose_machine(device=config.device, amp=config.amp, compiled=config.compile, threads=config.threads)
    avoid_wrong_gradients(build_model(config.model, 2, config.image_size), machine, config)


@pytest.fixture(scope="module")
def first(prepared, compared, tmp_path_factory):
    """The output of a first call, which ran three of the five, and what it printed; read it, never change it."""
    output = tmp_path_factory.mktemp("sweep") / "out"
    chosen = (word for name in ("baseline", "b0", "onecycle") for word in ("--only", name))
    return output, hemafast("sweep", "seed-table", "--data", prepared.folder, "--output", output, *chosen)


@pytest.fixture
def output(first, tmp_path):
    """A copy of that output, to go on with."""
    return Path(shutil.copytree(first[0], tmp_path / "out"))


def rows_of(output):
    with (output / "results_summary.csv").open(encoding="utf-8") as stream:
        return {row["experiment"]: row for row in csv.DictReader(stream)}


def lines_of(output):
    text = (output / "results.md").read_text(encoding="utf-8")
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return {row[0]: row for row in cells[2:]}


def test_the_presets_are_the_five_experiments_with_their_published_scores():
    assert {experiment.preset: experiment.published for experiment in SWEEPS["seed-table"]} == PUBLISHED


def test_each_score_is_that_of_its_run(first):
    rows = rows_of(first[0])
    for name in ("baseline", "b0"):
        (folder,) = (first[0] / name).glob("2*")
        metrics, row = read_metrics(folder), rows[name]
        assert row["run"] == str(folder)
        assert float(row["best_val_f1"]) == metrics["pooled"]["macro_f1"]
        assert [float(row["ci95_low"]), float(row["ci95_high"])] == metrics["pooled"]["ci95"]["macro_f1"]
        for domain, scores in metrics["domains"].items():
            assert float(row[f"macro_f1_{domain}"]) == scores["macro_f1"]
        assert int(row["epochs"]) == metrics["training"]["epochs"]
        assert float(row["images_per_second"]) == metrics["training"]["train_images_per_second"]
        assert (row["status"], row["note"]) == ("done", "")


def test_the_references_own_columns_come_first(first):
    header = (first[0] / "results_summary.csv").read_text(encoding="utf-8").partition("\n")[0]
    assert header.startswith("experiment,best_val_f1,ci95_low,ci95_high,")


def test_what_was_not_run_has_no_numbers(first):
    rows, lines = rows_of(first[0]), lines_of(first[0])
    expected = {"weighted_loss": "not run", "strong_augment": "not run", "onecycle": "failed"}
    titles = {experiment.preset: experiment.title for experiment in SWEEPS["seed-table"]}
    assert list(rows) == list(PUBLISHED)
    for name, status in expected.items():
        assert rows[name]["status"] == status
        assert not any(
            rows[name][column] for column in ("best_val_f1", "ci95_low", "seconds", "images_per_second", "run")
        )
        assert lines[titles[name]][1:4] == [status, "", f"{PUBLISHED[name]:.4f}"]
        assert not (first[0] / f"conf_matrix_{name}.png").exists()


def test_a_failure_is_reported_at_the_end_with_its_reason_and_exit_code_1(first):
    output, done = first
    assert done.returncode == 1
    assert "no_such_weights" in done.stdout.partition("failed")[2]
    assert "onecycle failed: " in (output / "results.md").read_text(encoding="utf-8")
    assert done.stdout.index("0.8948") < done.stdout.index("no_such_weights")


def test_what_will_run_is_said_before_it_runs_and_no_time_is_made_up(first):
    said = first[1].stderr.partition("run folder")[0]
    assert [said.count(name) for name in ("baseline", "b0", "onecycle", "weighted")] == [2, 1, 1, 0]
    assert said.count("to run") == 3
    assert " s " not in said


def test_the_table_says_where_published_scores_come_from_and_what_differs(first):
    output, done = first
    text = (output / "results.md").read_text(encoding="utf-8")
    for said in (" ".join(text.split()), " ".join(done.stdout.split())):
        assert "github.com/harefi/Hematology-Challenge-HIDA" in said
        assert "validation has no augmentation" in said
        assert "Scores are at home, in Acevedo_20 and Matek_19" in said
        assert "47 training images and 11 validation images" in said
        assert NOT_THE_REFERENCE not in said


def test_pictures_are_pictures(first):
    names = ("summary_f1.png", "conf_matrix_baseline.png", "conf_matrix_b0.png")
    assert {file.name for file in first[0].glob("*.png")} == set(names)
    for name in names:
        with Image.open(first[0] / name) as picture:
            picture.load()
            assert picture.width > 300


def test_a_later_call_fills_gaps_and_keeps_what_is_done(first, output, prepared, updates):
    done = hemafast("sweep", "seed-table", "--data", prepared.folder, "--output", output, "--only", "weighted_loss")
    assert done.returncode == 0, done.stderr
    assert len(updates) == 6  # one epoch of one run
    before, rows = rows_of(first[0]), rows_of(output)
    for name in ("baseline", "b0"):
        assert {**rows[name], "run": ""} == {**before[name], "run": ""}
    assert {name: row["status"] for name, row in rows.items()} == {
        "baseline": "done",
        "weighted_loss": "done",
        "strong_augment": "not run",
        "b0": "done",
        "onecycle": "not run",
    }


def test_the_same_call_again_trains_nothing_and_knows_how_long_it_took(first, output, prepared, updates, evaluations):
    chosen = ("--only", "baseline", "--only", "b0")
    done = hemafast("sweep", "seed-table", "--data", prepared.folder, "--output", output, *chosen, "--json")
    assert (done.returncode, updates, evaluations) == (0, [], [])
    result = json.loads(done.stdout)
    assert result == json.loads((output / "results.json").read_text(encoding="utf-8"))
    scores = {name: row["best_val_f1"] for name, row in rows_of(output).items()}
    assert scores == {name: row["best_val_f1"] for name, row in rows_of(first[0]).items()}
    planned = plan_sweep("seed-table", output=output, changes={"data": prepared.folder})
    assert planned.state("baseline") == f"done, took {result['experiments'][0]['seconds']:,.0f} s"


@pytest.mark.parametrize("changed", [{"changes": {"seed": 7}}, {"scale": 0.5}, {"base": "quick"}])
def test_a_score_under_other_settings_is_not_taken_for_one_of_these(output, prepared, changed):
    assert set(plan_sweep("seed-table", output=output, changes={"data": prepared.folder}).before) == {"baseline", "b0"}
    changes = {"data": prepared.folder} | changed.pop("changes", {})
    assert plan_sweep("seed-table", output=output, changes=changes, **changed).before == {}


@pytest.mark.parametrize("content", ["", "[]", '{"experiments": 1}', '{"experiments": [{"experiment": [], "run": 1}]}'])
def test_a_damaged_memory_is_forgotten(output, prepared, content):
    (output / "results.json").write_text(content, encoding="utf-8")
    assert plan_sweep("seed-table", output=output, changes={"data": prepared.folder}).before == {}


def test_every_output_says_that_a_scaled_run_is_not_the_references(prepared, tmp_path, monkeypatch):
    titles = []
    draw_summary, draw_confusion = sweep.plot_summary, sweep.confusion_figure
    monkeypatch.setattr(
        sweep, "plot_summary", lambda file, rows, title: (titles.append(title), draw_summary(file, rows, title))
    )
    monkeypatch.setattr(sweep, "confusion_figure", lambda *given: (titles.extend(given[0]), draw_confusion(*given))[1])
    where = ("--data", prepared.folder, "--output", tmp_path / "out")
    done = hemafast("sweep", "seed-table", *where, "--only", "b0", "--preset-scale", 0.5)
    assert done.returncode == 0, done.stderr
    row = rows_of(tmp_path / "out")["b0"]
    assert (row["epochs"], row["image_size"], row["preset_scale"]) == ("1", "64", "0.5")
    assert NOT_THE_REFERENCE in row["note"]
    page = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    kept = (tmp_path / "out" / "results.json").read_text(encoding="utf-8")
    for said in (done.stdout, done.stderr, page, kept, *titles):
        assert NOT_THE_REFERENCE in " ".join(said.split())
    assert len(titles) == 3


def test_options_change_every_experiment_and_results_say_so(prepared, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('label_smoothing = 0.2\nmodel = "resnet34"\n', encoding="utf-8")
    changes = {"data": prepared.folder, "seed": 7, "epochs": 3, "lr": None}
    planned = plan_sweep("seed-table", output=tmp_path, base="quick", file=file, changes=changes)
    for name, config in planned.configs.items():
        own = presets.PRESETS[name]()
        assert (config.preset, config.output, config.seed, config.epochs) == (name, tmp_path / name, 7, 3)
        assert config.label_smoothing == 0.2  # of the file
        assert config.schedule == "onecycle"  # of the preset it is laid on
        assert config.model == own["model"]  # of the experiment
    assert planned.caveat == (f"changed by --preset quick, --config {file}, --epochs: not the reference's experiments")
    same = plan_sweep("seed-table", output=tmp_path, changes={"data": prepared.folder, "seed": 7, "device": "cpu"})
    assert same.caveat == ""


@pytest.mark.parametrize(
    ("scale", "epochs", "image_size"), [(1, 30, 224), (0.5, 15, 160), (0.1, 3, 64), (0.2, 6, 96), (0.001, 1, 64)]
)
def test_a_scale_shrinks_epochs_and_pixels(scale, epochs, image_size):
    config = TrainConfig()
    assert scaled(config, scale) == replace(config, epochs=epochs, image_size=image_size)


@pytest.mark.parametrize("scale", ["0", "-1", "1.01", "nan"])
def test_a_scale_out_of_range_is_refused_in_one_line(prepared, tmp_path, scale):
    done = hemafast("sweep", "seed-table", "--data", prepared.folder, "--output", tmp_path, "--preset-scale", scale)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"--preset-scale {scale}" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "only", "words"),
    [
        ("seed-tabel", (), "Did you mean seed-table"),
        ("folds", (), "Choose from: seed-table"),
        ("seed-table", ("base",), "Did you mean baseline"),
        ("seed-table", ("best",), "baseline, weighted_loss, strong_augment"),
    ],
)
def test_an_unknown_name_is_answered_with_those_that_there_are(prepared, tmp_path, name, only, words):
    with pytest.raises(HemafastError, match=words):
        plan_sweep(name, output=tmp_path, only=only, changes={"data": prepared.folder})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked", [{"base": "probe"}, {"changes": {"probe": 4}}])
def test_a_probe_is_no_experiment_of_a_sweep(prepared, tmp_path, asked):
    changes = {"data": prepared.folder, **asked.pop("changes", {})}
    with pytest.raises(HemafastError, match=r"^probe = 4: .* Leave out the probe, or measure it with `hemafast train"):
        plan_sweep("seed-table", output=tmp_path, changes=changes, **asked)
    assert not list(tmp_path.iterdir())


def test_the_page_takes_names_that_would_break_a_table():
    result = {
        "headline": "x",
        "warnings": [],
        "domains": ["a|b", "<script>"],
        "experiments": [
            {"title": "t", "best_val_f1": None, "status": "not run", "published": 0.5, "epochs": 1, "image_size": 32}
        ],
        "notes": [],
        "failures": {"t": "a | b\nc"},
    }
    page = sweep.results_page(result)
    header, _, row = (line for line in page.splitlines() if line.startswith("|"))
    assert header.count("|") == row.count("|") == 11
    assert "<script" not in page
    assert "t failed: a &#124; b c" in page
