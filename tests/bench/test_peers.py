"""Environments of peers: pinned, made once, and reported where they cannot be had; the race goes on without them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import loader_sides  # scripts beside the package, not parts of it
import loaders
import peers


@pytest.fixture
def requirements(tmp_path, monkeypatch):
    """`requirements(name, text)` writes the file of a peer; there are no others."""
    folder = tmp_path / "requirements"
    folder.mkdir()
    monkeypatch.setattr(peers, "REQUIREMENTS", folder)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return lambda name, text: (folder / f"{name}.txt").write_text(text)


class Commands:
    """Stands in for subprocess.run: remembers, and fails where told to."""

    def __init__(self, **failing: str) -> None:
        self.run, self.failing = [], failing

    def __call__(self, command, **_):
        self.run.append(command)
        said = next((text for word, text in self.failing.items() if word in command), None)
        if said is None and "venv" in command:
            Path(command[-1]).mkdir(parents=True, exist_ok=True)
        return subprocess.CompletedProcess(command, int(said is not None), "", said or "")


@pytest.fixture
def commands(monkeypatch):
    stand_in = Commands()
    monkeypatch.setattr(peers.subprocess, "run", stand_in)
    return stand_in


@pytest.mark.parametrize("name", peers.names())
def test_every_line_pins_one_version(name):
    lines = (peers.REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    parts = [line.split("==") for line in lines]
    assert all(len(part) == 2 and all(part) and not set("<>~!*,; ") & set(part[1]) for part in parts), lines
    assert lines == sorted(lines, key=str.lower)
    assert peers.pins(name) == dict(parts)
    assert {name, "numpy", "psutil"} <= peers.pins(name).keys()  # what loader_sides imports


def test_peers_share_the_versions_of_what_they_share():
    versions = {}
    for name in peers.names():
        for package, version in peers.pins(name).items():
            versions.setdefault(package, set()).add(version)
    assert {package: found for package, found in versions.items() if len(found) > 1} == {}


def test_sides_and_requirements_agree():
    assert len(loader_sides.SIDES) == sum(map(len, loader_sides.TASKS.values()))
    of_peers = {name: side.peer for name, side in loader_sides.SIDES.items() if side.peer}
    assert sorted({*of_peers.values(), "fastai"}) == peers.names()  # fastai trains, in time_to_score.py
    assert loader_sides.WRITERS.keys() <= set(peers.names())
    assert all(name.startswith(peer) for name, peer in of_peers.items())
    assert {name for name, side in loader_sides.SIDES.items() if side.ours} == {
        name for name in loader_sides.SIDES if name.startswith("hemafast")
    }
    assert {side for pair in loaders.RATIOS for side in pair} <= loader_sides.SIDES.keys()
    assert len(set(loaders.RATIOS)) == len(loaders.RATIOS)


def test_an_environment_is_made_once_and_anew_when_its_pins_change(tmp_path, requirements, commands):
    requirements("some", "some==1\n")
    python = peers.peer_python("some", tmp_path / "environments")
    assert python == tmp_path / "environments" / "some" / "bin" / "python"
    made, installed, imported = commands.run
    assert made == (sys.executable, "-m", "venv", "--clear", str(python.parent.parent))
    assert installed[0] == imported[0] == str(python)
    assert installed[-2:] == ("--requirement", str(peers.REQUIREMENTS / "some.txt"))
    assert imported[1:] == ("-c", "import some")
    assert peers.peer_python("some", tmp_path / "environments") == python
    assert len(commands.run) == 3
    requirements("some", "some==2\n")
    peers.peer_python("some", tmp_path / "environments")
    assert len(commands.run) == 6


@pytest.mark.parametrize("step", ["venv", "pip", "import some"])
def test_an_environment_that_failed_is_not_taken_for_made(tmp_path, requirements, commands, step):
    requirements("some", "some==1\n")
    commands.failing = {step: "ERROR: broken\n"}
    for _ in range(2):
        with pytest.raises(peers.PeerUnavailable, match="some: ERROR: broken"):
            peers.peer_python("some", tmp_path)
    commands.failing = {}
    assert peers.peer_python("some", tmp_path).name == "python"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (
            "WARNING: old\nERROR: No matching distribution found for some==9\n",
            "ERROR: No matching distribution found for some==9",
        ),
        ("      RuntimeError: no opencv.\n\nnote: not pip.\nhint: See above.\n", "RuntimeError: no opencv."),
        ("Traceback:\nModuleNotFoundError: No module named 'some'\n", "ModuleNotFoundError: No module named 'some'"),
        ("killed\n", "killed"),
        ("", "no reason was given"),
    ],
)
def test_the_reason_is_the_last_line_that_names_an_error(output, reason):
    assert peers._reason(output) == reason


def test_a_version_that_there_is_not_is_reported_by_pip_itself(tmp_path, requirements):
    requirements("some", "webdataset==0.0.0.1\n")
    with pytest.raises(peers.PeerUnavailable) as raised:
        peers.peer_python("some", tmp_path)
    assert raised.value.name == "some"
    assert raised.value.reason == "ERROR: No matching distribution found for webdataset==0.0.0.1"
    assert not (tmp_path / "some" / "requirements.txt").exists()


def test_a_folder_that_cannot_be_written_is_a_reason_too(tmp_path, requirements):
    requirements("some", "some==1\n")
    (tmp_path / "file").touch()
    with pytest.raises(peers.PeerUnavailable, match="Error"):
        peers.peer_python("some", tmp_path / "file")


def test_install_names_what_failed_and_goes_on(tmp_path, requirements, commands):
    requirements("good", "good==1\n")
    requirements("bad", "bad==1\n")
    commands.failing = {"import bad": "ImportError: libbad.so"}
    invoke = CliRunner().invoke
    done = invoke(peers.app, ["install", "--folder", str(tmp_path)])
    assert done.exit_code == 1
    assert "bad: ImportError: libbad.so" in done.stderr
    assert f"good: {tmp_path / 'good' / 'bin' / 'python'}" in done.stdout
    assert invoke(peers.app, ["install", "good", "--folder", str(tmp_path)]).exit_code == 0
    listed = invoke(peers.app, ["list", "--folder", str(tmp_path)]).stdout.splitlines()
    assert listed == ["bad 1, 1 packages pinned, not installed", "good 1, 1 packages pinned, installed"]
    assert invoke(peers.app, ["install", "other"]).exit_code == 1


def test_sides_of_a_peer_that_is_missing_are_left_out_with_the_reason(tmp_path, monkeypatch):
    def python_of(name, folder):
        if name == "ffcv":
            raise peers.PeerUnavailable(name, "no opencv")
        return folder / name

    monkeypatch.setattr(peers, "peer_python", python_of)
    wanted = ["hemafast_files", "ffcv_jpeg", "spdl", "ffcv_raw", "memory_copy"]
    pythons, unavailable = loaders.find_pythons(wanted, tmp_path)
    assert pythons == {"hemafast_files": sys.executable, "spdl": str(tmp_path / "spdl"), "memory_copy": sys.executable}
    assert unavailable == {"ffcv": "no opencv"}


def test_a_race_goes_on_without_a_peer_and_says_so(tmp_path, make_archive, requirements):
    requirements("spdl", "spdl==0.0.0.1\n")
    archive = make_archive(tmp_path / "Acevedo_20.zip", {"basophil": 9, "monocyte": 9}, kind="JPEG")
    result = tmp_path / "loaders.json"
    loaders.main(
        archive, result, rounds=3, seconds=0.5, threads=1, batch=2, only=["spdl", "memory_copy"], environments=tmp_path
    )
    found = json.loads(result.read_text())
    assert found["unavailable"] == {"spdl": "ERROR: No matching distribution found for spdl==0.0.0.1"}
    assert found["peers"] == {}
    assert list(found["sides"]) == ["memory_copy"]
    assert len(found["sides"]["memory_copy"]["rounds"]) == 3


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory, make_archive):
    folder = tmp_path_factory.mktemp("loaders")
    archive = make_archive(folder / "Acevedo_20.zip", {"basophil": 9, "monocyte": 9}, kind="JPEG")
    loaders._lay_out(archive, folder)
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name, side in loader_sides.SIDES.items() if not side.peer])
def test_each_side_without_a_peer_gives_batches(laid_out, name):
    with loaders.Racer(sys.executable, name, laid_out, threads=1, batch=4) as racer:
        images, seconds, _ = racer.run(0.01)
    assert images > 2 * 20  # at least twenty batches; ours keeps the last, smaller one of an epoch
    assert seconds > 0.01
