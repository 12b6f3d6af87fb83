"""Carry a large wheel to a machine that reaches no package index, in pieces.

    python tools/slice_wheel.py keep BIG.whl SMALL.whl          # without the modules for other Pythons
    python tools/slice_wheel.py split BIG.whl PIECES --mb 50    # PIECES/BIG.whl.00, .01, ... and PIECES/BIG.whl.json
    python tools/slice_wheel.py join PIECES/BIG.whl.json        # on the other machine: checks and joins them
    python tools/slice_wheel.py unpack BIG.whl PACKAGES         # a folder for PYTHONPATH, where pip cannot install
    python tools/slice_wheel.py loaded Source/prepared          # the libraries of DALI that our graph loads, with sizes

`loaded` shows why `keep` leaves out no more: importing DALI loads all its libraries but the modules of other Pythons.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Annotated, Any

import typer

_MEGABYTE = 10**6
_CHUNK = 2**20
_MODULE = re.compile(r"\.cpython-(?P<python>\d+t?)-[\w-]+\.so$")
_NAMESPACE = '__path__ = __import__("pkgutil").extend_path(__path__, __name__)\n'
"""What lets `nvidia.dali` lie elsewhere than the `nvidia` of torch's libraries."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
File = Annotated[Path, typer.Argument(exists=True, dir_okay=False)]


@app.command()
def split(wheel: File, folder: Path, mb: Annotated[float, typer.Option(min=0.000001)] = 50) -> None:
    """Cut a wheel into pieces of at most so many megabytes, with a list of them and their checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    size = max(int(mb * _MEGABYTE), 1)
    names: list[str] = []
    with wheel.open("rb") as whole:
        while part := whole.read(size):
            names.append(f"{wheel.name}.{len(names):02d}")
            (folder / names[-1]).write_bytes(part)
    pieces = {name: _checksum(folder / name) for name in names}
    listed = {"wheel": wheel.name, "sha256": _checksum(wheel), "pieces": pieces}
    (folder / f"{wheel.name}.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    typer.echo(f"{len(names)} pieces in {folder}")


@app.command()
def join(list_file: File) -> None:
    """Join the pieces of a list beside it. Nothing is written if a piece is missing or damaged."""
    listed: dict[str, Any] = json.loads(list_file.read_text(encoding="utf-8"))
    pieces = {list_file.parent / Path(name).name: checksum for name, checksum in listed["pieces"].items()}
    for piece, checksum in pieces.items():
        if not piece.is_file():
            _fail(f"{piece} is missing. Send it again, then join.")
        if _checksum(piece) != checksum:
            _fail(f"{piece} is damaged: its checksum is not the one in {list_file.name}. Send it again, then join.")
    wheel = list_file.parent / Path(listed["wheel"]).name
    part = wheel.with_name(f"{wheel.name}.part")
    with part.open("wb") as whole:
        for piece in pieces:
            whole.write(piece.read_bytes())
    if _checksum(part) != listed["sha256"]:
        part.unlink()
        _fail(f"{wheel} would not be the wheel that was split. Split it again.")
    part.replace(wheel)
    typer.echo(str(wheel))


@app.command()
def unpack(wheel: File, folder: Path) -> None:
    """Unpack a wheel into a folder for PYTHONPATH. Its packages may be installed in part, as `nvidia` is."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        if outside := [name for name in names if name.startswith("/") or ".." in Path(name).parts]:
            _fail(f"{wheel} has the file {outside[0]}, which lies outside of it. Name another wheel.")
        archive.extractall(folder)
    tops = {Path(name).parts[0] for name in names if len(Path(name).parts) > 1}
    for top in sorted(tops):
        if top.isidentifier() and not (folder / top / "__init__.py").is_file():
            (folder / top / "__init__.py").write_text(_NAMESPACE, encoding="utf-8")
    typer.echo(f"{len(names)} files in {folder}")


@app.command()
def keep(wheel: File, smaller: Path) -> None:
    """Write a wheel without the modules that other Pythons would load."""
    smaller.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as new:
        left_out = {name for name in old.namelist() if not kept(name)}
        for entry in old.infolist():
            if entry.filename not in left_out:
                new.writestr(entry, _content(old, entry.filename, left_out), zipfile.ZIP_DEFLATED)
    before, after = (file.stat().st_size / _MEGABYTE for file in (wheel, smaller))
    typer.echo(f"{before:.1f} MB to {after:.1f} MB, {len(left_out)} files left out")


def kept(name: str) -> bool:
    """Whether this Python may need a file of a wheel."""
    module = _MODULE.search(name)
    return module is None or module["python"] == f"{sys.version_info.major}{sys.version_info.minor}"


def _content(archive: zipfile.ZipFile, name: str, left_out: set[str]) -> bytes:
    """The content of a file; of RECORD, without the files that are left out."""
    content = archive.read(name)
    if not name.endswith(".dist-info/RECORD"):
        return content
    lines = content.decode("utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if line.partition(",")[0] not in left_out).encode("utf-8")


@app.command()
def loaded(data: Path) -> None:
    """Print the libraries of DALI that our graph loads on a CPU, the largest first."""
    import nvidia.dali

    from hemafast.data.dataset import open_dataset

    for source, policy in (("packed", "robust"), ("files", "strong")):
        next(open_dataset(data).loader(source=source, policy=policy, batch_size=8, threads=1).epoch(0))  # type: ignore[arg-type]
    folder = Path(nvidia.dali.__file__).parent
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    used = {path for path in folder.rglob("*.so*") if any(line.endswith(str(path)) for line in maps)}
    for path in sorted(used, key=lambda one: -one.stat().st_size):
        typer.echo(f"{path.stat().st_size / _MEGABYTE:8.1f} MB  {path.relative_to(folder)}")
    some, whole = (sum(path.stat().st_size for path in paths) / _MEGABYTE for paths in (used, folder.rglob("*.so*")))
    typer.echo(f"{some:8.1f} MB of {whole:.1f} MB")


def _checksum(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _fail(why: str) -> None:
    typer.echo(f"error: {why}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
