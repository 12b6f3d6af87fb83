"""The race to a score: its arithmetic on made-up runs, and both sides on a small data set."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from command import asked_of_training
from sklearn.metrics import f1_score

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import levers  # scripts beside the package, not parts of it
import output
import peers
import time_to_score

from hemafast.preparation.schema import DatasetInfo

PREPARATION = {"hemafast": 10.0, "others": 2.0}


def points(*pairs):
    return [{"seconds": seconds, "f1_macro": f1} for seconds, f1 in pairs]


OURS = [points((10, 0.62), (20, 0.76)), points((12, 0.55), (24, 0.9)), points((11, 0.71), (22, 0.65))]
REFERENCE = [points((100, 0.5), (200, 0.72)), points((110, 0.61), (220, 0.7)), points((90, 0.4), (180, 0.74))]


def test_a_threshold_is_reached_by_the_first_point_at_it():
    run = points((10, 0.5), (20, 0.7), (30, 0.6), (40, 0.8))
    assert time_to_score.reached(run, 0.7) == 20
    assert time_to_score.reached(run, 0.71) == 40
    assert time_to_score.reached(run, 0.81) is None


def test_a_summary_has_medians_and_ratios_with_and_without_preparation():
    found = time_to_score.summary({"hemafast": OURS, "reference": REFERENCE}, PREPARATION)
    assert list(found) == ["0.60", "0.70", "0.75", "0.80", "0.85"]
    assert found["0.60"]["hemafast"] == {"seconds": [10, 24, 11], "median": 11, "at_least": None}
    assert found["0.60"]["reference"]["ratio"] == pytest.approx(180 / 11)
    assert found["0.60"]["reference"]["ratio_with_preparation"] == pytest.approx(182 / 21)


def test_what_the_reference_does_not_reach_bounds_the_ratio_by_the_time_it_was_given():
    ours = [*OURS[:2], points((11, 0.5), (23, 0.77))]
    found = time_to_score.summary({"hemafast": ours, "reference": REFERENCE}, PREPARATION)["0.75"]
    assert found["hemafast"]["median"] == 23
    assert found["reference"]["seconds"] == [None, None, None]
    assert (found["reference"]["median"], found["reference"]["at_least"]) == (None, 180)
    assert found["reference"]["ratio"] == pytest.approx(180 / 23)


def test_what_our_side_does_not_reach_has_no_ratio():
    found = time_to_score.summary({"hemafast": OURS, "reference": REFERENCE}, PREPARATION)["0.85"]
    assert found["hemafast"]["median"] is None
    assert "ratio" not in found["reference"]


def test_one_side_alone_has_no_ratio():
    found = time_to_score.summary({"hemafast": OURS, "reference": []}, PREPARATION)["0.60"]
    assert list(found) == ["hemafast"]


def test_the_biggest_fall_is_looked_for_after_the_first_third():
    assert time_to_score.biggest_fall(points((1, 0.9), (1.5, 0.5), (3, 0.7), (4, 0.68), (5, 0.72), (6, 0.71))) == (
        pytest.approx(0.02)
    )
    assert time_to_score.biggest_fall(points((1, 0.5), (2, 0.6), (3, 0.7))) == 0
    assert time_to_score.biggest_fall(points((1, 0.5))) == 0


def test_results_of_two_processors_are_not_mixed(tmp_path):
    file = tmp_path / "result.json"
    assert output.before(file, {"processor": "this"}) == {}
    file.write_text(json.dumps({"machine": {"processor": "this"}, "runs": {}}))
    assert output.before(file, {"processor": "this"})["runs"] == {}
    with pytest.raises(SystemExit, match="was measured on this, and this is another: name another file"):
        output.before(file, {"processor": "another"})


def test_the_area_is_the_mean_score_of_the_best_model_so_far():
    assert levers.area(points((10, 0.6), (30, 0.5), (40, 0.8)), 60) == pytest.approx((30 * 0.6 + 20 * 0.8) / 60)
    assert levers.area(points((70, 0.6)), 60) == 0


def test_a_lever_is_summed_up_over_seeds():
    runs = {"0": points((10, 0.72), (20, 0.8)), "1": points((10, 0.6), (20, 0.7))}
    found = levers.summary(runs, 20, (0.6, 0.7, 0.75))
    assert found["seconds_to"] == {"0.60": 10, "0.70": 20, "0.75": None}
    assert found["best"] == found["last"] == pytest.approx(0.75)
    assert found["areas"] == pytest.approx([0.36, 0.3])
    assert found["area"] == pytest.approx(0.33)
    assert found["fall"] == 0
    assert found["seeds"] == 2


@pytest.mark.parametrize("lever", levers.LEVERS)
def test_a_lever_changes_the_preset(lever):
    base = ["--preset", levers.PRESET, *levers.AT_HOME.split()]
    changed = asked_of_training(*base, *levers.LEVERS[lever].split())
    assert (changed == asked_of_training(*base)) == (lever == "as it is")


def test_the_reference_sees_the_images_of_the_split(prepared, tmp_path):
    time_to_score.class_folders(prepared.folder, "Matek_19", tmp_path)
    manifest = pd.read_parquet(prepared.folder / "manifest.parquet")
    for split in ("train", "val"):
        ours = manifest[(manifest["domain"] == "Matek_19") & (manifest["split"] == split)]
        found = sorted(tmp_path.glob(f"{split}/*/*"))
        assert sorted(file.resolve() for file in found) == sorted(
            (prepared.folder / path).resolve() for path in ours["path"]
        )
        assert {(file.parent.name, file.name) for file in found} == {
            (label, Path(path).name) for label, path in zip(ours["label"], ours["path"], strict=True)
        }


def test_drawn_cells_are_refused_once_they_are_prepared(prepared, monkeypatch):
    monkeypatch.setattr(time_to_score, "prepare", lambda source, output, group_pattern: 0.0)
    dataset = time_to_score.prepare_real(Path("archives"), prepared.folder, None, "Matek_19")
    assert dataset.chosen == ("Matek_19",)
    assert time_to_score.prepare_real(Path("archives"), prepared.folder, None).chosen is None
    monkeypatch.setattr(DatasetInfo, "drawn", property(lambda self: True))
    with pytest.raises(SystemExit, match="archives holds drawn cells"):
        time_to_score.prepare_real(Path("archives"), prepared.folder, None)


@pytest.mark.nightly
def test_our_points_are_those_of_the_log(prepared, tmp_path):
    options = "--model test_resnet --pretrained no --epochs 2 --batch-size 8 --image-size 56 --lr 3e-3 --track none"
    command = ["hemafast", "train", "--data", str(prepared.folder), *options.split()]
    found = time_to_score.run_ours(command, tmp_path)
    (log,) = tmp_path.glob("*/training_log.csv")
    rows = pd.read_csv(log).query("phase == 'val'")
    assert [point["f1_macro"] for point in found] == pytest.approx(rows["f1_macro"].tolist(), abs=1e-4)
    assert 0 < found[0]["seconds"] < found[1]["seconds"]


@pytest.mark.nightly
def test_the_reference_trains_ends_in_time_and_tells_its_answers(prepared, tmp_path):
    time_to_score.class_folders(prepared.folder, "Acevedo_20", tmp_path)
    file = tmp_path / "answers.json"
    asked = {"model": "tf_efficientnet_lite0", "seed": 0, "seconds": 1, "answers": file}
    (point,) = time_to_score.run_loop(time_to_score.REFERENCE, tmp_path, **asked)
    assert point["seconds"] > 1
    (epoch,) = json.loads(file.read_text())
    actual = {image.name: image.parent.name for image in tmp_path.glob("val/*/*")}
    assert set(epoch["answers"]) == set(actual)
    answers = [epoch["answers"][name] for name in actual]
    labels = sorted(set(actual.values()))
    assert point["f1_macro"] == pytest.approx(f1_score([*actual.values()], answers, average="macro", labels=labels))


@pytest.mark.nightly
def test_the_timm_loop_trains_for_its_cycle(prepared, tmp_path):
    time_to_score.class_folders(prepared.folder, "Matek_19", tmp_path)
    time_to_score.write_weights("tf_efficientnet_lite0", tmp_path / "weights.pth")
    asked = {"weights": tmp_path / "weights.pth", "epochs": 2, "seed": 1}
    first, second = time_to_score.run_loop(time_to_score.LOOPS["timm loop"], tmp_path, **asked)
    assert 0 < first["seconds"] < second["seconds"]
    assert 0 <= second["f1_macro"] <= 1


def test_each_peer_of_the_race_has_its_packages_pinned():
    asked = {loop.peer for loop in time_to_score.LOOPS.values()} - {None}
    assert asked == {"fastai"}
    for name in asked:
        assert name in peers.pins(name)


def test_the_race_goes_on_without_a_peer_that_cannot_be_had(prepared, tmp_path, monkeypatch, capsys):
    def run_side(side, *args):
        if side == "fastai":
            raise time_to_score.PeerUnavailable(side, "no wheel")
        return points((1, 0.7))

    monkeypatch.setattr(time_to_score, "lay_out", lambda *args: PREPARATION)
    monkeypatch.setattr(time_to_score, "conditions", lambda *args: {"model": "m", "machine": {"processor": "this"}})
    monkeypatch.setattr(time_to_score, "write_weights", lambda *args: None)
    monkeypatch.setattr(time_to_score, "run_side", run_side)
    file = tmp_path / "result.json"
    time_to_score.main(Path("archives"), file, sides="hemafast,fastai", seeds=2)
    assert "fastai: no wheel; the race goes on without it" in capsys.readouterr().err
    runs = json.loads(file.read_text())["runs"]
    assert {side: len(found) for side, found in runs.items() if found} == {"hemafast": 2}
    time_to_score.main(Path("archives"), file, sides="reference", seeds=1)
    runs = json.loads(file.read_text())["runs"]
    assert {side: len(found) for side, found in runs.items() if found} == {"hemafast": 2, "reference": 1}
