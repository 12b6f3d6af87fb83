"""Patients with drawn cells and labels, as `hemafast patients` counts them and learns from them."""

import json

import numpy as np
import pandas as pd
import pytest
from command import hemafast

from hemafast.patients import learned


def learn_labels(run, folder, make_archive):
    """What the command says of twelve patients with four cells each and labels for eleven; it writes `folder`/out."""
    for number in range(12):
        make_archive(folder / "slides" / f"{number:03d}", {"basophil": 2, "monocyte": 2}, seed=20 + number)
    labels = pd.DataFrame({"patient": [f"{n:03d}" for n in range(11)], "diagnosis": np.resize(["<i>ill", "well"], 11)})
    labels.to_csv(folder / "diagnoses.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "PERMUTATIONS", 3)  # each trains five heads
        done = hemafast(
            *("patients", run, folder / "slides", "--patient-labels", folder / "diagnoses.csv", "--device", "cpu"),
            *("--um-per-pixel", "unknown", "--output", folder / "out", "--labels", "own", "--adjust", "--json"),
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
