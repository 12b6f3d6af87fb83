"""A link planted at the name of an output leads nothing out of the folder: it is replaced, or refused by name."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hemafast.config import PrepareConfig
from hemafast.deploy.export import export_run
from hemafast.engine.checkpoint import Calibration, load_best, save_best, save_calibration, save_last
from hemafast.engine.journal import Journal
from hemafast.engine.lr_find import RateCurve, write_curve
from hemafast.engine.trackers import LR, _TensorBoard
from hemafast.errors import HemafastError
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.files import TABLES, open_in_place, write_table, write_text, write_whole
from hemafast.pictures import save, subplots
from hemafast.preparation import schema
from hemafast.preparation.build import plan_preparation, prepare
from hemafast.preparation.publish import log_of
from hemafast.report.page import write_report
from hemafast.run_folder import (
    BEST,
    CALIBRATION,
    CONFUSION_PLOT,
    EVALUATIONS,
    LAST,
    LIKENESS,
    LOG,
    METRICS,
    PREDICTIONS,
    REPORT,
    TENSORBOARD,
    locked,
)

SECRET = b"not ours"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that nothing may be written to, with a file."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(SECRET)
    return folder


def untouched(outside: Path) -> bool:
    return [(path.name, path.read_bytes()) for path in outside.iterdir()] == [("secret", SECRET)]


def plant(outside: Path, *names: Path) -> None:
    """Links at names of outputs, and at those of the files that become them."""
    for name in names:
        for place in (name, name.with_name(f".{name.name}.part")):
            place.unlink(missing_ok=True)
            place.symlink_to(outside / "secret")


def _figure(file: Path) -> None:
    write_whole(file, lambda part: save(subplots(1, width=1, height=1, columns=1)[0], part))


WRITERS: dict[str, Callable[[Path], object]] = {
    "x.txt": lambda file: write_text(file, "ours"),
    "x.png": _figure,
    LAST: lambda file: save_last(file, {"a": torch.zeros(2)}, keep=2),
    **{f"x{kind}": lambda file: write_table(file, pd.DataFrame({"a": [1]})) for kind in TABLES},
    "lr_find.csv": lambda file: write_curve(RateCurve(np.arange(1, 9) / 8, np.ones(8)), file.parent),
    "lr_find.png": lambda file: write_curve(RateCurve(np.arange(1, 9) / 8, np.ones(8)), file.parent),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_replaces_a_link_of_its_name(tmp_path: Path, outside: Path, name: str) -> None:
    folder = tmp_path / "ours"
    folder.mkdir()
    plant(outside, folder / name)
    WRITERS[name](folder / name)
    assert untouched(outside)
    assert not (folder / name).is_symlink()
    assert (folder / name).stat().st_size
    assert not [path for path in folder.iterdir() if path.name.endswith(".part")]


def test_all_that_a_run_writes_stays_in_its_folder(run: Path, tmp_path: Path, outside: Path) -> None:
    """The folder itself may be a link of the user's."""
    model, card = load_best(run / BEST)
    own = tmp_path / "linked"
    own.symlink_to(run)
    names = (METRICS, PREDICTIONS, CONFUSION_PLOT, REPORT, CALIBRATION, LIKENESS)
    plant(outside, *(own / name for name in names))
    (own / CALIBRATION).unlink()  # these two are read before they are written
    (own / LIKENESS).unlink()
    evaluate_run(own)
    write_report([own])
    plant(outside, own / BEST, own / CALIBRATION)
    save_best(own / BEST, model, card)
    save_calibration(own / BEST, card, Calibration(temperature=1.5, threshold=None, target=0.95, images=40))
    assert untouched(outside)
    assert not [name for name in names if (run / name).is_symlink()]


def test_a_log_a_lock_and_other_files_written_in_place_refuse_a_link(tmp_path: Path, outside: Path) -> None:
    for name in (LOG, ".lock", "x"):
        (tmp_path / name).symlink_to(outside / "secret")
    with pytest.raises(OSError, match="a symbolic link has this name"):
        open_in_place(tmp_path / "x", "w")
    with pytest.raises(HemafastError, match=r"\.lock is a link"), locked(tmp_path):
        pass
    with pytest.raises(HemafastError, match=rf"{LOG} cannot be written .*symbolic link.*Remove it"):
        Journal(tmp_path).__enter__()
    assert untouched(outside)


def test_event_files_and_folders_of_a_run_refuse_a_link(tmp_path: Path, outside: Path) -> None:
    (tmp_path / TENSORBOARD).symlink_to(outside)
    with pytest.raises(OSError, match="a symbolic link has this name"):
        _TensorBoard(tmp_path, 1).scalars({LR: 0.1}, step=1)
    assert untouched(outside)


@pytest.mark.parametrize("name", [EVALUATIONS, "export"])
def test_folders_in_a_run_refuse_a_link(scored: Path, tmp_path: Path, outside: Path, name: str) -> None:
    run = Path(shutil.copytree(scored, tmp_path / "run"))
    (run / name).symlink_to(outside)
    with pytest.raises((HemafastError, OSError), match="a symbolic link has this name"):
        evaluate_run(run, class_map={"promyelocyte": "myeloblast"}) if name == EVALUATIONS else export_run(
            run, format="safetensors"
        )
    assert untouched(outside)


def test_preparing_goes_on_in_what_was_left_without_following_links_in_it(
    tmp_path: Path, outside: Path, make_archive: Any
) -> None:
    make_archive(tmp_path / "S" / "A.zip", {"basophil": 6, "monocyte": 6})
    settings = PrepareConfig(source=tmp_path / "S", output=tmp_path / "out", pack_sizes=(32,))
    staging = tmp_path / f".out-new-{plan_preparation(settings).ingest_key}"
    places = [schema.INFO, schema.MANIFEST, schema.QUARANTINE, schema.SPLIT, f"{schema.PACKED}/32-00000.npy"]
    for name in (*places, "images/A/basophil/BAS_000.png", "shards/train-00000-of-00008.txt"):
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).symlink_to(outside / "secret")
    (staging / "images" / "A" / "monocyte").symlink_to(outside)
    log_of(staging).touch()
    log_of(staging).with_name(f"{log_of(staging).name}.tmp").symlink_to(outside / "secret")
    assert prepare(settings).fresh
    assert untouched(outside)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("which", ["staging", "log", "old", "lock"])
def test_a_link_in_place_of_what_preparing_makes_is_not_followed(
    tmp_path: Path, outside: Path, make_archive: Any, which: str
) -> None:
    make_archive(tmp_path / "S" / "A.zip", {"basophil": 6, "monocyte": 6})
    settings = PrepareConfig(source=tmp_path / "S", output=tmp_path / "out", pack_sizes=(32,))
    staging = tmp_path / f".out-new-{plan_preparation(settings).ingest_key}"
    names = {"staging": staging, "log": log_of(staging), "old": tmp_path / ".out-old", "lock": tmp_path / ".out.lock"}
    names[which].symlink_to(outside if which in ("staging", "old") else outside / "secret")
    if which == "lock":
        with pytest.raises(HemafastError, match="a symbolic link has this name"):
            prepare(settings)
    else:
        assert prepare(settings).fresh
    assert untouched(outside)
