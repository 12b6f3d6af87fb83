"""Files of a run that were edited: the error names file and field, and nothing comes of them."""

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
from sound_metrics import metrics

from hemafast.config import TrainConfig, to_plain
from hemafast.engine.checkpoint import load_last, save_last
from hemafast.engine.opening import open_stopped
from hemafast.engine.trainer import resume
from hemafast.errors import HemafastError
from hemafast.reading import cause
from hemafast.recorded import Adaptation, CrossDomain, MachineFile, Metrics, Results, read_recorded
from hemafast.run_folder import LAST, read_adaptation, read_config, read_ensemble, read_metrics

SOUND = metrics({"A": 0.9, "B": 0.8}, ["A"])
GONE = object()


def write(file, content):
    file.write_text(json.dumps(content), encoding="utf-8")


def changed(content: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    """The content with another value, or none, at a place such as `pooled.ci95`."""
    whole = deepcopy(content)
    *way, last = place.split(".")
    part: Any = whole
    for key in way:
        part = part[key]
    if value is GONE:
        del part[last]
    else:
        part[last] = value
    return whole


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("schema", 1),
        ("pooled", []),
        ("pooled.macro_f1", GONE),
        ("pooled.macro_f1", "0.5"),
        ("pooled.macro_f1", float("nan")),
        ("pooled.ci95.macro_f1", [0.1]),
        ("pooled.ci95.macro_f1", None),
        ("pooled.confusion", [[1], [2]]),
        ("pooled.images", -1),
        ("domains", {}),
        ("domains.A.per_class.monocyte.ci95", {}),
        ("model.calibration", None),
        ("model.classes", "ab"),
        ("data.domains.A", {}),
        ("data.counts", {"train": {"A": 3}}),
        ("training.total_seconds", None),
        ("warnings", "none"),
        ("folding", None),
        ("split", "train"),
    ],
)
def test_a_wrong_field_of_metrics_is_named_with_the_remedy(tmp_path, place, value):
    write(tmp_path / "metrics.json", changed(SOUND, place, value))
    with pytest.raises(HemafastError) as caught:
        read_metrics(tmp_path)
    assert "metrics.json" in caught.value.problem
    assert f"({place}" in caught.value.problem
    assert "hemafast evaluate" in caught.value.remedy


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("classes", ["one"], "the confusion of A has 2 rows, not 1"),
        ("classes", [], "the confusion of A has 2 rows, not 0"),
        ("model.calibration.set_thresholds", [0.1], "1 set_thresholds for 2 classes"),
        ("pooled.lineage", {"names": ["a"], "confusion": [], "macro_f1": 1.0, "ci95": {"macro_f1": [0, 1]}}, "1 names"),
    ],
)
def test_parts_of_metrics_that_do_not_belong_to_each_other_are_refused(tmp_path, place, value, said):
    write(tmp_path / "metrics.json", changed(SOUND, place, value))
    with pytest.raises(HemafastError, match=said):
        read_metrics(tmp_path)


def test_what_is_sound_comes_back_whole_with_fields_that_nothing_reads(tmp_path):
    whole = SOUND | {"of another version": [1, {"a": None}]}
    for name in ("classes", "folding", "likeness"):  # earlier versions lack these
        whole.pop(name)
    write(tmp_path / "metrics.json", whole)
    assert read_metrics(tmp_path) == whole


@pytest.mark.parametrize("value", [None, "three", -1, [], {}])
def test_a_wrong_setting_of_a_run_names_its_file(tmp_path, value):
    write(tmp_path / "config.json", to_plain(TrainConfig()) | {"epochs": value})
    with pytest.raises(HemafastError, match=r"config\.json: epochs = "):
        read_config(tmp_path)


OTHERS = {
    Adaptation: {
        "parent": {"folder": "runs/a", "epoch": 1, "data_fingerprint": "ab"},
        "data": "cells",
        "images": 3,
        "labels": 0,
        "new_classes": [],
        "kept_parent": True,
        "steps": [],
        "verdict": "nothing was better",
        "scores": None,
        "predicted": [],
    },
    MachineFile: {"choices": [{"name": "device", "value": "cpu", "reason": "as asked for"}], "facts": {"cores": "2"}},
    CrossDomain: {
        "left_out": {"value": 0.5, "ci95": [0.4, 0.6], "domains": ["A"]},
        "folding": {"class_map": {}},
        "settings": {"preset": "fast"},
        "data": {"fingerprint": "ab"},
    },
    Results: {"experiments": [{"experiment": "a", "run": None, "settings": {}}]},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_every_field_of_the_other_files_is_needed_and_has_one_type(tmp_path, kind):
    file, whole = tmp_path / "file.json", OTHERS[kind]
    write(file, whole)
    assert read_recorded(file, kind) == whole
    for name in whole:
        for value in (GONE, 7.5, [[]]):
            write(file, changed(whole, name, value))
            with pytest.raises(ValueError, match=name) as caught:
                read_recorded(file, kind)
            assert cause(caught.value).startswith(name)


def test_an_edited_ensemble_is_refused(tmp_path):
    write(tmp_path / "ensemble.json", {"method": "mean", "members": []})
    with pytest.raises(HemafastError, match=r"ensemble\.json \(members"):
        read_ensemble(tmp_path)


def test_an_edited_adaptation_is_refused(tmp_path):
    write(tmp_path / "adaptation.json", {"parent": None})
    with pytest.raises(HemafastError, match=r"adaptation\.json \(parent"):
        read_adaptation(tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("progress.epochs_done", "one"),
        ("progress.elapsed", float("nan")),
        ("optimizer", GONE),
        ("loader.epoch", -1),
        ("settings.epochs", torch.zeros(3)),
    ],
)
def test_a_checkpoint_of_other_fields_is_refused_by_name(run, place, value):
    save_last(run / LAST, changed(load_last(run / LAST), place, value))
    with pytest.raises(HemafastError, match=rf"last_model\.ckpt is no checkpoint that hemafast writes \({place}"):
        open_stopped(run, {}, allow_changes=False)


def test_moments_of_another_shape_are_refused(run):
    saved = load_last(run / LAST)
    saved["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    save_last(run / LAST, saved)
    with pytest.raises(HemafastError, match=r"does not fit the run .exp_avg of a tensor"):
        resume(run, {"epochs": 4}, allow_changes=True)


def test_fields_that_are_read_are_those_that_are_written(scored):
    """`evaluate` writes everything that reports read."""
    assert Metrics.model_validate(read_metrics(scored)).split == "val"
