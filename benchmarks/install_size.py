"""What takes room in an installation, and what of it a machine without a card uses.

    python benchmarks/install_size.py --json benchmarks/results/install_size.json

Adds up the files of the packages that hemafast and its extras ask for, as they lie in the environment that runs this.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
from output import JsonFileOrNone, print_json, table
from packaging.requirements import Requirement

EXTRAS = {"explain", "export", "notebook", "weights"}
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


def sizes() -> dict[str, int]:
    """Bytes of each group."""
    found: Counter[str] = Counter()
    for package in packages("hemafast", frozenset(EXTRAS), set()):
        for file in metadata.files(package) or ():
            path = Path(str(file.locate()))
            if path.is_file():
                found[group_of(package, str(file))] += path.stat().st_size
    return dict(found)


def main(json_file: JsonFileOrNone = None) -> None:
    """Measure this environment."""
    versions = {name: metadata.version(name) for name in ("torch", "nvidia-dali-cuda120") if _is_here(name)}
    print_json({"python": sys.version.split()[0], "versions": versions, "bytes": sizes()}, json_file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Size of each group, and whether a machine without a card uses it."""
    result = results["install_size"]
    there = {name: result["bytes"].get(name, 0) for name in USED}
    used = sum(size for name, size in there.items() if USED[name].startswith("yes"))
    rows = [[name, f"{there[name] / 1e9:.2f}", said] for name, said in USED.items()]
    rows.append(["**together**", f"**{sum(there.values()) / 1e9:.2f}**", f"**{used / 1e9:.2f} GB of it**"])
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    what = "Files of what `make install` asks for, without those that Python compiles"
    note = f"{what}. Python {result['python']}, {versions}."
    return {"install_size": table("part | GB | used without a card", rows, note)}


if __name__ == "__main__":
    typer.run(main)
