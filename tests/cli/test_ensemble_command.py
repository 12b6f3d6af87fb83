"""`hemafast ensemble` on the command line: what it prints, and what it refuses."""

import json
import shutil

import pytest
from command import hemafast

from hemafast.run_folder import BEST, ENSEMBLE, METRICS, REPORT


@pytest.fixture(scope="module")
def runs(scored, tmp_path_factory):
    """A folder of runs with two of the same network."""
    folder = tmp_path_factory.mktemp("runs")
    return [shutil.copytree(scored, folder / name) for name in ("A", "B")]


@pytest.fixture
def cells(tmp_path, make_archive):
    return make_archive(tmp_path / "cells", {"a": 2})


def test_it_writes_a_scored_run_that_predict_takes(runs, tmp_path, cells):
    done = hemafast("ensemble", *map(str, runs), "--output", "out", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2.00 times the cost of one run" in done.stdout and "macro-F1" in done.stdout
    (folder,) = (tmp_path / "out").iterdir()
    assert all((folder / name).is_file() for name in (BEST, ENSEMBLE, METRICS, REPORT))
    assert (folder / "command.txt").read_text().startswith("hemafast ensemble ")
    done = hemafast("predict", str(folder), str(cells), "--output", "out.csv", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "disagreement" in (tmp_path / "out.csv").read_text().splitlines()[0]


def test_json_is_one_object(runs, tmp_path):
    done = hemafast("ensemble", *map(str, runs), "--max-cost", "2x", "--device", "cpu", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["fitted_on"] and (tmp_path / said["run"] / METRICS).is_file()


@pytest.mark.parametrize("given", ["twice", "0.5x", "x", "-1"])
def test_a_cost_that_is_none_is_refused(runs, given, tmp_path):
    done = hemafast("ensemble", *map(str, runs), f"--max-cost={given}", cwd=tmp_path)
    assert done.returncode == 2 and given in done.stderr and "Write it as 2x." in done.stderr
    assert not [*tmp_path.iterdir()]


def test_a_soup_has_no_largest_cost(runs, tmp_path):
    done = hemafast("ensemble", *map(str, runs), "--method", "soup", "--max-cost", "2x", cwd=tmp_path)
    assert done.returncode == 2 and "costs as much as one network" in done.stderr
