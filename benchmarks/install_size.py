"""What takes room in an installation, what of it a machine without a card uses, and what each extra adds.

    python benchmarks/install_size.py --json benchmarks/results/install_size.json

Adds up the files of the packages that hemafast and its extras ask for, as they lie in the environment that runs this.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
from output import JsonFileOrNone, print_json, table
from packaging.requirements import Requirement

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
EXTRAS = {"explain", "export", "notebook", "tune", "weights"}
"""Those of `make install`."""
CUDA = "CUDA libraries of torch"
TORCH_CUDA = "torch: its CUDA part"
TRITON = "Triton"
TORCH = "torch: all else"
DALI = "DALI with its codecs"
REST = "all other packages"
USED = {
    CUDA: "no: nothing loads them without a card",
    TORCH_CUDA: "no: the CPU build of torch lacks it",
    TRITON: "no: it compiles for cards",
    TORCH: "yes",
    DALI: "yes: its CPU operators read and decode; the libraries that hold them hold those for cards too",
    REST: "yes",
}
_OF_DALI = re.compile(r"nvidia-(dali|nvimgcodec|libnvcomp|nvjpeg|nvjpeg2k|nvtiff)")


def packages(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> Iterator[str]:
    """Names of a package and of all that it asks for here, each once."""
    if (name, extras) in seen:
        return
    if not any(name == other for other, _ in seen):
        yield name
    seen.add((name, extras))
    for text in metadata.requires(name) or ():
        needed = Requirement(text)
        asked = needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras | {""})
        if asked and _is_here(needed.name):
            yield from packages(_plain(needed.name), frozenset(needed.extras), seen)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_here(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def group_of(package: str, file: str) -> str:
    """What a file of a package belongs to."""
    if package == "torch":
        return TORCH_CUDA if re.search(r"lib/lib(torch_cuda|torch_nvshmem|c10_cuda)", file) else TORCH
    if _OF_DALI.match(package):
        return DALI
    if package.startswith(("nvidia-", "cuda-")):
        return CUDA
    return TRITON if package == "triton" else REST


def files(package: str) -> Iterator[tuple[str, int]]:
    """Name and bytes of each file of a package, without those that Python compiles."""
    for file in metadata.files(package) or ():
        path = Path(str(file.locate()))
        if path.suffix != ".pyc" and path.is_file():
            yield str(file), path.stat().st_size


def sizes() -> dict[str, int]:
    """Bytes of each group."""
    found: Counter[str] = Counter()
    for package in packages("hemafast", frozenset(EXTRAS), set()):
        for file, size in files(package):
            found[group_of(package, file)] += size
    return dict(found)


def extras() -> dict[str, tuple[str, list[str]]]:
    """Purpose and requirements of each extra, from pyproject.toml: the comment above it says what it is for."""
    text = PROJECT.read_text(encoding="utf-8")
    found = tomllib.loads(text)["project"]["optional-dependencies"]
    purposes = dict(re.findall(r"^((?:# .*\n)+)(\w+) = \[", text, flags=re.MULTILINE))
    said = {name: re.sub(r"\s*# ", " ", comment).strip() for comment, name in purposes.items()}
    return {name: (said.get(name, ""), asked) for name, asked in found.items()}


def added(asked: Iterable[str], without: set[str]) -> dict[str, Any]:
    """What requirements add to the packages `without`: how many packages and bytes; which of them are not here."""
    wanted = [Requirement(text) for text in asked]
    seen: set[tuple[str, frozenset[str]]] = set()
    found = {
        package
        for one in wanted
        if _is_here(one.name)
        for package in packages(_plain(one.name), frozenset(one.extras), seen)
    } - without
    missing = [one.name for one in wanted if not _is_here(one.name)]
    return {
        "packages": len(found),
        "bytes": sum(size for package in found for _, size in files(package)),
        "missing": missing,
    }


def main(json_file: JsonFileOrNone = None) -> None:
    """Measure this environment."""
    versions = {name: metadata.version(name) for name in ("torch", "nvidia-dali-cuda120") if _is_here(name)}
    always = set(packages("hemafast", frozenset(), set()))
    more = {name: added(asked, always) for name, (_, asked) in extras().items()}
    print_json({"python": sys.version.split()[0], "versions": versions, "bytes": sizes(), "extras": more}, json_file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Size of each group, and whether a machine without a card uses it; what each extra adds."""
    result = results["install_size"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    here = f"Python {result['python']}, {versions}."
    return {"install_size": _groups(result["bytes"], here), "extras": _extras(result["extras"], here)}


def _groups(found: Mapping[str, int], here: str) -> str:
    there = {name: found.get(name, 0) for name in USED}
    used = sum(size for name, size in there.items() if USED[name].startswith("yes"))
    rows = [[name, f"{there[name] / 1e9:.2f}", said] for name, said in USED.items()]
    rows.append(["**together**", f"**{sum(there.values()) / 1e9:.2f}**", f"**{used / 1e9:.2f} GB of it**"])
    what = "Files of what `make install` asks for, without those that Python compiles"
    return table("part | GB | used without a card", rows, f"{what}. {here}")


def _extras(measured: Mapping[str, Any], here: str) -> str:
    rows = []
    for name, (purpose, asked) in extras().items():
        names = ", ".join(Requirement(text).name for text in asked) or "nothing"
        rows.append([f"`{name}`", purpose, names, *_weight(measured.get(name), asked)])
    what = "Installed files that an extra adds to hemafast alone, with all that its packages need"
    return table("extra | what it is for | asks for | packages | MB", rows, f"{what}. {here}")


def _weight(one: Mapping[str, Any] | None, asked: list[str]) -> list[str]:
    """Packages and megabytes; empty where it was not measured."""
    if one is None or (asked and one["missing"]):
        return ["", ""]
    return [str(one["packages"]), f"{one['bytes'] / 1e6:.0f}" if one["bytes"] >= 10e6 else f"{one['bytes'] / 1e6:.1f}"]


if __name__ == "__main__":
    typer.run(main)
