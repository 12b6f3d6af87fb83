"""A packed file or a tar that is cut in the middle of an epoch: one line that names it, and the run goes on later."""

import os
import shutil
from functools import partial
from pathlib import Path

import forked
import pytest

from hemafast.config import TrainConfig, checked, to_json
from hemafast.engine.checkpoint import load_last
from hemafast.engine.step import TrainStep
from hemafast.engine.trainer import resume
from hemafast.run_folder import LAST


def cut_behind(update: int, file: Path) -> None:
    """In the process that trains: the file is cut behind that update, counted from 0."""
    step = TrainStep.__call__

    def step_and_cut(self, *arguments, **named):
        step(self, *arguments, **named)
        if named["step"] == update:
            os.truncate(file, 3000)

    TrainStep.__call__ = step_and_cut


@pytest.mark.parametrize(("source", "cut"), [("packed", "packed/64-00000.npy"), ("webdataset", None)])
def test_a_file_that_is_cut_in_an_epoch_is_named_and_the_run_can_be_resumed(tarred_samples, tmp_path, source, cut):
    whole = Path(tarred_samples.paths[0].split("/images/")[0])
    folder = Path(shutil.copytree(whole, tmp_path / "prepared"))
    file = folder / cut if cut else next(folder.glob("webdataset/train-*.tar"))
    small = {"model": "test_resnet", "pretrained": "no", "epochs": 2, "batch_size": 8, "image_size": 56, "amp": "off"}
    fixed = {"data": folder, "output": tmp_path, "device": "cpu", "threads": 1, "input": source}
    settings = tmp_path / "settings.json"
    settings.write_text(to_json(checked(TrainConfig, small | fixed)), encoding="utf-8")
    done = forked.hemafast("train", "--config", settings, "--quiet", cwd=tmp_path, first=partial(cut_behind, 8, file))
    assert done.returncode == 2, done.stderr
    assert f"error: {file} was cut while it was read." in done.stderr
    assert "Traceback" not in done.stderr
    (run,) = tmp_path.glob("*_*/")
    assert load_last(run / LAST)["progress"]["epochs_done"] == 1
    shutil.copy(whole / file.relative_to(folder), file)
    resume(run)
    assert load_last(run / LAST)["progress"]["epochs_done"] == 2
