"""Training from resident squares needs no DALI: a machine with a card and torch alone can train."""

import json
import os
import subprocess
import sys

import pytest

from hemafast.config import to_json
from hemafast.engine.journal import read_rows
from hemafast.engine.trainer import train

SCRIPT = """
import json, sys
from pathlib import Path
for name in ("nvidia", "nvidia.dali"):
    sys.modules[name] = None  # importing it fails from now on
from hemafast.config import TrainConfig, checked
from hemafast.data import loader
from hemafast.data.batch import place
from hemafast.data.source import copy_squares
from hemafast.engine.trainer import train

def build(self, start):  # what a GPU is given, on the CPU
    policy = self._stream.policy
    batches = place(self._stream.onwards(*start), self._samples, self._shape, policy)
    squares = self._source.squares if hasattr(self._source, "squares") else copy_squares(self._samples, "cpu")
    return loader.GatherFeed(squares, batches, self._shape, policy)

loader.Loader._build = build
train(checked(TrainConfig, json.loads(Path(sys.argv[1]).read_text())))
"""


@pytest.mark.parametrize(
    ("changes", "tolerance"), [({"policy": "basic"}, 1e-6), ({"policy": "robust", "growing_from": (32,)}, 1e-2)]
)
def test_resident_squares_train_without_dali_as_with_it(settings, tmp_path, changes, tolerance):
    """Whole pixels are the same; scaled and recoloured ones differ by a level here and there."""
    asked = {"input": "resident", "image_size": 56, "epochs": 2, "ema": 0.9, **changes}
    with_dali = train(settings(**asked))
    config = settings(**asked)
    (tmp_path / "asked.json").write_text(to_json(config), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "asked.json")]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (without,) = config.output.glob("2*")
    rows, others = read_rows(with_dali), read_rows(without)
    assert len(rows) == 4
    for row, other in zip(rows, others, strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=tolerance)
    assert json.loads((without / "machine.json").read_text())["input"]["source"] == "resident"
