"""Peers of the races in virtual environments of their own, so that their requirements never touch ours.

    python benchmarks/peers.py install                # all of them, ahead of a race
    python benchmarks/peers.py install webdataset spdl
    python benchmarks/peers.py list

peers/NAME.txt pins the packages of the peer NAME. Packages that only CUDA builds of torch need are left to torch's own
pins, so that a CPU build from another index fits too. An environment is made at first use, and again when its file has
changed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

REQUIREMENTS = Path(__file__).with_name("peers")
PROBES = {"spdl": "import spdl.io.utils as utils; utils.get_ffmpeg_versions()"}
"""What a peer must be able to do where importing it is not enough: SPDL loads FFmpeg's libraries when first used."""
ENVIRONMENTS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hemafast" / "peers"

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


class PeerUnavailable(Exception):  # noqa: N818 - it is the peer that is at fault, and the race goes on
    """A peer that cannot be installed or imported here."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


def names() -> list[str]:
    """All peers, each with a file of requirements."""
    return sorted(file.stem for file in REQUIREMENTS.glob("*.txt"))


def pins(name: str) -> dict[str, str]:
    """Versions of a peer's packages."""
    lines = (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pinned = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {package: version for package, _, version in pinned}


def peer_python(name: str, folder: Path = ENVIRONMENTS) -> Path:
    """The interpreter of a peer's environment in `folder`, which is made unless it is there as pinned.

    Raises PeerUnavailable if it cannot be made, or the peer not be imported in it.
    """
    requirements, home = REQUIREMENTS / f"{name}.txt", folder / name
    python, made = home / "bin" / "python", home / "requirements.txt"
    wanted = requirements.read_text(encoding="utf-8")
    if made.is_file() and made.read_text(encoding="utf-8") == wanted:
        return python
    _run(name, sys.executable, "-m", "venv", "--clear", str(home))
    _run(name, str(python), "-m", "pip", "install", "--no-input", "--requirement", str(requirements))
    _run(name, str(python), "-c", PROBES.get(name, f"import {name}"))
    made.write_text(wanted, encoding="utf-8")  # last: an environment without it is made again
    return python


def _run(name: str, *command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise PeerUnavailable(name, str(error)) from error
    if done.returncode:
        raise PeerUnavailable(name, _reason(done.stderr or done.stdout))


def _reason(output: str) -> str:
    """The last line that names an error, as pip adds hints below it; or else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("ERROR:") or line.partition(":")[0].endswith("Error")]
    return (named or lines or ["no reason was given"])[-1]


@app.command()
def install(
    chosen: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", show_default="all of them")] = None,
    folder: Annotated[Path, typer.Option(help="Where environments lie.")] = ENVIRONMENTS,
) -> None:
    """Make the environments of some peers; exit with 1 if one of them cannot be had."""
    if unknown := set(chosen or ()) - set(names()):
        sys.exit(f"There is no peer {min(unknown)!r}; there are {', '.join(names())}.")
    failed = False
    for name in chosen or names():
        try:
            typer.echo(f"{name}: {peer_python(name, folder)}")
        except PeerUnavailable as error:
            failed = True
            typer.echo(str(error), err=True)
    raise typer.Exit(int(failed))


@app.command("list")
def list_peers(folder: Annotated[Path, typer.Option(help="Where environments lie.")] = ENVIRONMENTS) -> None:
    """Say which peers there are, in which version, and whether their environment has been made."""
    for name in names():
        state = "installed" if (folder / name / "requirements.txt").is_file() else "not installed"
        typer.echo(f"{name} {pins(name)[name]}, {len(pins(name))} packages pinned, {state}")


if __name__ == "__main__":
    app()
