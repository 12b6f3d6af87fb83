"""The main job as a user runs it: demo, prepare, train, resume, evaluate; and the README's own commands."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import forked
import pandas as pd
import pytest

from hemafast.preparation.schema import MANIFEST_COLUMNS

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    *("demo", "prepare", "verify", "eda", "augment-preview", "train", "pretrain", "lr-find", "runs"),
    *("evaluate", "predict", "adapt", "ensemble", "embed", "export", "push", "explain", "patients", "report"),
    *("audit", "crossdomain", "sweep", "tune", "bench", "doctor"),
)
TINY = ("--model", "test_resnet", "--pretrained", "no", "--image-size", "32", "--batch-size", "32")


def hemafast(*arguments, cwd, timeout=300):
    """What the command writes to standard output. It keeps in `cwd` what trials find."""
    done = forked.hemafast(*arguments, cwd=cwd, timeout=timeout, XDG_CACHE_HOME=str(Path(cwd) / "cache"))
    assert done.returncode == 0, done.stderr
    return done.stdout


SHRUNK = {
    "demo": ("--images", "130"),
    "prepare": ("--pack-size", "64"),
    "train": (*TINY, "--epochs", "1"),
    "pretrain": (*TINY, "--epochs", "1"),
    "lr-find": ("--model", "test_resnet", "--image-size", "32", "--batch-size", "16", "--steps", "12"),
    "crossdomain": ("--model", "test_resnet", "--epochs", "1", "--image-size", "32", "--device", "cpu"),
    "sweep": ("--only", "baseline", "--preset-scale", "0.01", "--image-size", "32", "--device", "cpu"),
    "tune": (*TINY, "--epochs", "1", "--trials", "2"),
    "doctor": ("--model", "test_resnet", "--image-size", "32"),
    "bench": ("--model", "test_resnet", "--image-size", "32", "--rounds", "3", "--seconds", "0.1"),
}


def readme_blocks():
    """The `hemafast ...` lines of each shell block of the README that has any, comments cut off."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [[line.partition("#")[0].strip() for line in block.splitlines()] for block in blocks]
    return [found for block in lines if (found := [line for line in block if line.startswith("hemafast ")])]


def shrink(command, options):
    """What makes it small when it stands at the end: the last of equal options counts."""
    if "--resume" in options:
        return ()
    fewer = {"--time-budget": "5s", "--seeds": "2"}
    return SHRUNK.get(command, ()) + tuple(part for pair in fewer.items() if pair[0] in options for part in pair)


def as_written(lines, folder):
    """Run lines of the README, only made small by options at the end, and with a real run for NAME."""
    for line in lines:
        _, command, *options = shlex.split(line)
        runs = sorted(file.parent.name for file in folder.glob("runs/*/config.json"))
        options = [option.replace("runs/NAME", f"runs/{runs[0]}" if runs else option) for option in options]
        hemafast(command, *options, *shrink(command, options), cwd=folder)


def thin_out(archive, images):
    """Leave so many images in each folder of an archive: what is done with every image is seen of a few."""
    with zipfile.ZipFile(archive) as whole:
        held = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(archive, "w") as thin:
        seen = Counter()
        for name, data in held.items():
            folder = name.rpartition("/")[0]
            seen[folder] += 1
            if seen[folder] <= images:
                thin.writestr(name, data)


BEGINNING = readme_blocks()[0][:2]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with drawn archives, prepared, as the README begins, and one finished run."""
    folder = tmp_path_factory.mktemp("workplace")
    assert BEGINNING == ["hemafast demo", "hemafast prepare"]
    as_written(BEGINNING, folder)
    said = json.loads(hemafast("train", *TINY, "--epochs", "2", "--onecycle", "--json", cwd=folder))
    return folder, said


@pytest.mark.slow
def test_demo_to_report(workplace):
    folder, said = workplace
    run = folder / said["run"]
    left = {path.name for path in run.iterdir()}
    assert left == {
        ".lock",
        "calibration.json",
        "command.txt",
        "config.json",
        "machine.json",
        "train.log",
        "training_log.csv",
        "tb",
        "best_model.safetensors",
        "last_model.ckpt",
        "last_model.ckpt.1",
        "metrics.json",
        "predictions.csv",
        "confusion_matrix.png",
        "report.html",
    }
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["domains"]) == {"Acevedo_20", "Matek_19"}
    for scores in (metrics["pooled"], *metrics["domains"].values()):
        assert 0 <= scores["macro_f1"] <= 1
        assert 0 <= scores["accuracy"] <= 1
    assert metrics["domains"]["Acevedo_20"]["classes"] == 10  # no myeloblast there
    assert metrics["pooled"]["classes"] == 11
    manifest = pd.read_parquet(folder / "Source" / "prepared" / "manifest.parquet")
    assert list(manifest.columns) == list(MANIFEST_COLUMNS)
    assert len(manifest) == 130
    validated = (manifest["split"] == "val").sum()
    assert metrics["pooled"]["images"] == validated == sum(part["images"] for part in metrics["domains"].values())


@pytest.mark.slow
def test_drawn_data_is_said_everywhere(workplace):
    folder, said = workplace
    run = folder / said["run"]
    assert json.loads((run / "metrics.json").read_text(encoding="utf-8"))["data"]["drawn"] is True
    for name in ("train.log", "report.html", "metrics.json"):
        assert "DRAWN, NOT PHOTOGRAPHED" in (run / name).read_text(encoding="utf-8"), name


@pytest.mark.slow
def test_a_second_demo_and_a_second_prepare_change_nothing(workplace):
    folder, _ = workplace
    source = folder / "Source"
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    assert "nothing drawn" in in_a_new_interpreter("demo", cwd=folder)
    assert "nothing changed" in hemafast("prepare", "--pack-size", "64", cwd=folder)
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before


def in_a_new_interpreter(*arguments, cwd):
    command = [sys.executable, "-m", "hemafast", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=True).stderr


@pytest.mark.slow
def test_a_finished_run_is_extended(workplace):
    folder, said = workplace
    extended = json.loads(hemafast("train", "--resume", said["run"], "--epochs", "3", "--json", cwd=folder))
    assert extended["run"] == said["run"]
    assert extended["training"]["epochs"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(readme_blocks())))
def test_every_command_of_the_readme_runs(workplace, tmp_path, number):
    shutil.copytree(workplace[0], tmp_path, dirs_exist_ok=True)
    for archive in tmp_path.glob("Source/*.zip"):
        thin_out(archive, images=2)
    as_written([line for line in readme_blocks()[number] if line not in BEGINNING], tmp_path)


def test_the_readme_has_every_command():
    assert {shlex.split(line)[1] for block in readme_blocks() for line in block} == set(COMMANDS)


def test_makefile_offers_what_the_readme_promises():
    for target in ("train", "test", "resume", "bench", "help"):
        subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=True)
    for line in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE):
        subprocess.run(["make", "-n", line], cwd=ROOT, capture_output=True, check=True)


def test_figures_in_the_readme_are_those_of_the_result_files():
    script = ROOT / "tools" / "render_readme.py"
    command = [sys.executable, str(script), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run: python tools/render_readme.py\n{done.stderr}"
