"""Wheels in pieces: what arrives is what was sent, or nothing."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HERE = f"{sys.version_info.major}{sys.version_info.minor}"
FILES = {
    "big/part/__init__.py": b"SIZE = 7",
    f"big/part/core.cpython-{HERE}-x86_64-linux-gnu.so": b"ours" * 999,
    "big/part/core.cpython-309-x86_64-linux-gnu.so": bytes(range(256)) * 40,
    f"big/part/core.cpython-{HERE}t-x86_64-linux-gnu.so": b"free-threaded",
    "big/part/.libs/libz-6b38d87b.so.1": b"zipped",
}


@pytest.fixture
def wheel(tmp_path) -> Path:
    file = tmp_path / "big-1.0-py3-none-any.whl"
    record = "".join(f"{name},sha256=x,{len(content)}\n" for name, content in FILES.items())
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {**FILES, "big-1.0.dist-info/RECORD": record.encode()}.items():
            archive.writestr(name, content)
    return file


def tool(*arguments):
    command = [sys.executable, "tools/slice_wheel.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def pieces(wheel, tmp_path) -> Path:
    assert tool("split", wheel, tmp_path / "pieces", "--mb", "0.004").returncode == 0
    return tmp_path / "pieces"


def test_a_wheel_arrives_as_it_was_sent(wheel, pieces):
    parts = sorted(pieces.glob("*.whl.[0-9]*"))
    assert len(parts) > 2
    assert all(part.stat().st_size <= 4000 for part in parts)
    done = tool("join", pieces / f"{wheel.name}.json")
    assert done.returncode == 0, done.stderr
    assert (pieces / wheel.name).read_bytes() == wheel.read_bytes()


@pytest.mark.parametrize("accident", ["missing", "damaged"])
def test_nothing_is_joined_from_pieces_that_are_missing_or_damaged(wheel, pieces, accident):
    victim = pieces / f"{wheel.name}.01"
    if accident == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[::-1])
    done = tool("join", pieces / f"{wheel.name}.json")
    assert done.returncode == 2
    assert f"{victim} is {accident}" in done.stderr
    assert not (pieces / wheel.name).exists()


def test_modules_of_other_pythons_are_left_out_and_forgotten(wheel, tmp_path):
    assert tool("keep", wheel, tmp_path / "small.whl").returncode == 0
    others = {"big/part/core.cpython-309-x86_64-linux-gnu.so", f"big/part/core.cpython-{HERE}t-x86_64-linux-gnu.so"}
    with zipfile.ZipFile(tmp_path / "small.whl") as small:
        record = small.read("big-1.0.dist-info/RECORD").decode()
        assert {*small.namelist()} == {*FILES, "big-1.0.dist-info/RECORD"} - others
        assert {line.partition(",")[0] for line in record.splitlines()} == FILES.keys() - others
        assert all(small.read(name) == FILES[name] for name in FILES.keys() - others)


def test_an_unpacked_package_is_found_beside_an_installed_one_of_the_same_name(wheel, tmp_path):
    """As nvidia.dali beside the nvidia of torch's libraries, which has an __init__.py."""
    installed = tmp_path / "installed/big"
    (installed / "other").mkdir(parents=True)
    for package in (installed, installed / "other"):
        (package / "__init__.py").write_text("")
    assert tool("unpack", wheel, tmp_path / "carried").returncode == 0
    code = "import big.part, big.other; print(big.part.SIZE)"
    there = {"PYTHONPATH": f"{tmp_path / 'carried'}:{installed.parent}"}
    done = subprocess.run([sys.executable, "-c", code], env=there, capture_output=True, text=True, check=False)
    assert done.stdout == "7\n", done.stderr


def test_a_wheel_does_not_write_outside_of_the_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr("../escaped.py", "")
    done = tool("unpack", tmp_path / "bad.whl", tmp_path / "inside/carried")
    assert done.returncode == 2
    assert "escaped.py, which lies outside" in done.stderr
    assert not list(tmp_path.rglob("escaped.py"))
