"""The line that says what a run scores at home and elsewhere, from nothing but the files of its folder."""

import json

import pytest
from command import hemafast
from sound_metrics import metrics

from hemafast.evaluate.elsewhere import home_and_elsewhere, note_on_elsewhere

UNKNOWN = "not known: one domain"


def write(folder, domains, trained, *, fingerprint="home", **more):
    """metrics.json of a run, or of its evaluation on other data; `model`, `data` and `folding` change some fields."""
    folder.mkdir(parents=True, exist_ok=True)
    found = metrics(domains, trained, fingerprint=fingerprint)
    for name, value in more.items():
        found[name] = found[name] | value if isinstance(value, dict) else value
    (folder / "metrics.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


def elsewhere(run):
    return home_and_elsewhere(run).partition("; elsewhere: ")[2]


def test_one_laboratory_says_nothing_about_others(tmp_path):
    line = home_and_elsewhere(write(tmp_path, {"A": 0.9}, ["A"]))
    assert line == (
        "at home: A 0.500 (0.400 to 0.600; 300 images, 2 classes), split by image, not by patient; "
        f"elsewhere: {UNKNOWN}"
    )


def test_a_run_that_was_not_evaluated_claims_nothing(tmp_path):
    assert home_and_elsewhere(tmp_path) == "at home: not known: not evaluated; elsewhere: not known"


def test_domains_that_were_not_trained_on_are_elsewhere_and_not_at_home(tmp_path):
    line = home_and_elsewhere(write(tmp_path, {"A": 0.9, "B": 0.3}, ["A"]))
    assert line.startswith("at home: A 0.900 (0.800 to 1.000; 100 images, 2 classes)")
    assert line.endswith("elsewhere: B 0.300 (0.200 to 0.400; 100 images, 2 classes)")


def test_evaluations_on_other_laboratories_count_and_those_of_home_do_not(tmp_path):
    write(tmp_path, {"A": 0.9}, ["A"])
    write(tmp_path / "evaluations" / "Bonn-1", {"Bonn": 0.4}, ["A"], fingerprint="1")
    write(tmp_path / "evaluations" / "Ulm-2", {"Ulm": 0.2, "A": 0.8}, ["A"], fingerprint="2")
    folding = {"class_map": {"a": "b"}}
    write(tmp_path / "evaluations" / "Jena-3", {"Jena": 0.6}, ["A"], fingerprint="3", folding=folding, split="test")
    write(tmp_path / "evaluations" / "test", {"A": 0.7}, ["A"], split="test")
    older = {"domains": ["A"], "epoch": 1, "data_fingerprint": "home"}
    write(tmp_path / "evaluations" / "Kiel-4", {"Kiel": 0.1}, ["A"], fingerprint="4", model=older)
    (tmp_path / "evaluations" / "broken").mkdir()
    assert elsewhere(tmp_path) == (
        "Bonn 0.400 (0.300 to 0.500; 100 images, 2 classes), Jena 0.600 (0.500 to 0.700; 100 images, 2 classes, test "
        "images, classes merged), Ulm 0.200 (0.100 to 0.300; 100 images, 2 classes)"
    )


def test_the_table_of_runs_says_that_scores_are_of_home(scored):
    assert "Scores are at home" in hemafast("runs", "--output", scored.parent).stdout


def test_scores_of_several_runs_say_that_they_are_of_home():
    assert note_on_elsewhere(["A"]) == "Scores are at home, in A. In other laboratories: not known: one domain"
    assert "in A and B" in note_on_elsewhere(["A", "B"])
    assert "`hemafast crossdomain` measures it" in note_on_elsewhere(["A", "B"])


def test_a_run_on_all_domains_names_the_command_that_measures(tmp_path):
    assert "`hemafast crossdomain` measures it" in elsewhere(write(tmp_path, {"A": 0.9, "B": 0.8}, ["A", "B"]))


@pytest.mark.parametrize("place", ["crossdomain/crossdomain.json", "../crossdomain.json"])
def test_leaving_out_domains_tells_of_unseen_ones_where_it_was_the_same_data(tmp_path, place):
    run = write(tmp_path / "runs" / "2026", {"A": 0.9, "B": 0.8}, ["A", "B"])
    file = run.parent / place
    file.parent.mkdir(exist_ok=True)
    found = {"value": 0.45, "ci95": [0.4, 0.5], "domains": ["A", "B"]}
    result = {"left_out": found, "data": {"fingerprint": "home"}, "settings": {"preset": "fast"}}
    result["folding"] = {"class_map": {}}
    file.write_text(json.dumps(result), encoding="utf-8")
    said = "0.450 (0.400 to 0.500), mean of 2 domains, each tested with a model of the others, preset fast"
    assert elsewhere(run) == said
    for damaged in (result | {"data": {"fingerprint": "other"}}, {"left_out": None}, []):
        file.write_text(json.dumps(damaged), encoding="utf-8")
        assert "measures it" in elsewhere(run)


@pytest.mark.parametrize(
    ("grouped", "said"),
    [
        (["A", "B"], ", groups such as patients kept apart;"),
        (["A"], ", split by image, not by patient in B;"),
        ([], ", split by image, not by patient;"),
        (None, "classes);"),
    ],
)
def test_it_says_whether_patients_were_kept_apart(tmp_path, grouped, said):
    run = write(tmp_path, {"A": 0.9, "B": 0.8}, ["A", "B"], data={"grouped": grouped})
    assert said in home_and_elsewhere(run)
