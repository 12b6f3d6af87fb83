"""The wheel: small, whole, and enough to work with in an environment that holds nothing else of hemafast."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import hemafast as hf

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MOST_BYTES = 2_000_000
JOURNEY = """
import sys
from hemafast.cli import main
for words in ("demo --images 130", "prepare --pack-size 64", "eda"):
    sys.argv[1:] = words.split()
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""
"""A program that draws, prepares and looks: the table that it reads and the page that it fills lie beside the code."""


def run(*command, cwd):
    """What a program writes. No variable leads it to this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = {**kept, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cwd / "cache")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built without a network, from a copy that holds what git would hand out."""
    folder = tmp_path_factory.mktemp("wheel")
    clean = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "hemafast", folder / "source" / "hemafast", ignore=clean)
    for name in ("pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]):
        shutil.copy(ROOT / name, folder / "source")
    build = ("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, folder / "source")
    run(sys.executable, "-m", "pip", *build, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A virtual environment with the wheel and nothing else; the folder of its packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return folder / "venv"


def test_the_version_is_the_same_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["version"] == hf.__version__ == cited["version"]
    assert f"hemafast-{hf.__version__}-py3" in (ROOT / "docs" / "install.md").read_text(encoding="utf-8")


def test_the_citation_holds_what_is_required():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= cited.keys()
    assert cited["authors"]
    assert (cited["title"], cited["license"]) == (PROJECT["name"], PROJECT["license"])


def test_the_changelog_begins_with_what_is_not_released():
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line[:3] == "## "]
    assert headings[0] == "## Unreleased"


@pytest.mark.nightly
def test_the_wheel_is_small_and_holds_every_file_of_the_package(wheel):
    assert wheel.stat().st_size <= MOST_BYTES
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    listed = subprocess.run(["git", "ls-files", "-z", "hemafast"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert held == set(listed.stdout.split("\0")) - {""}


@pytest.mark.nightly
def test_the_wheel_says_what_the_project_says(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        said = Parser().parsestr(archive.read(name).decode("utf-8"))
    assert (said["Name"], said["Version"]) == (PROJECT["name"], PROJECT["version"])
    assert set(said.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


@pytest.mark.nightly
def test_the_wheel_alone_is_imported_and_works_with_its_packages(environment, tmp_path):
    """Packages of others are those of this environment, without what leads to this checkout."""
    said = run(
        environment / "bin" / "python", "-c", "import hemafast as h; print(h.__file__, h.__version__)", cwd=tmp_path
    )
    file, version = said.split()
    assert version == PROJECT["version"]
    assert Path(file).is_relative_to(environment)
    others = environment / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages" / "others.pth"
    others.write_text(sysconfig.get_path("purelib"))
    assert "prepare" in run(environment / "bin" / "hemafast", "--help", cwd=tmp_path)
    run(environment / "bin" / "python", "-c", JOURNEY, cwd=tmp_path)
    assert list(tmp_path.rglob("*.html"))
