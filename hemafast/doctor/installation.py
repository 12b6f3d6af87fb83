"""Python, packages and compiler: whether they are present and can be imported."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from hemafast.doctor.finding import Finding, Verdict, green, red, yellow
from hemafast.engine.machine import Machine
from hemafast.errors import name_some
from hemafast.versions import DALI

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_NAMED = ("torch", "torchvision", "timm", *DALI, "numpy")  # shown in every bug report
_IMPORT_SECONDS = 120.0  # a cold network disk takes a minute


def check_python(version: str, required: str) -> Finding:
    """Whether hemafast supports this version of Python."""
    from packaging.specifiers import SpecifierSet

    if SpecifierSet(required).contains(version, prereleases=True):
        return green("python", version)
    return red("python", f"{version}, but {required} is required", f"Install Python {required}.")


def check_packages(
    version_of: Callable[[str], str | None], requirements_of: Callable[[str], Sequence[Requirement]]
) -> Finding:
    """Whether hemafast's requirements are installed, and their requirements. Either build of DALI will do.

    `version_of` a missing package is None.
    """
    needed = [one.name for one in requirements_of("hemafast") if version_of(one.name)]
    wanting = [
        (owner, one)
        for owner in ("hemafast", *needed)
        for one in requirements_of(owner)
        if not any(_fits(version_of(name), one) for name in (DALI if one.name in DALI else (one.name,)))
    ]
    named = ", ".join(f"{name} {version_of(name)}" for name in _NAMED if version_of(name))
    if not wanting:
        return green("packages", named)
    faults = [f"{one.name} {version_of(one.name) or 'missing'}, {owner} requires {one}" for owner, one in wanting]
    verdict = Verdict.RED if wanting[0][0] == "hemafast" else Verdict.YELLOW
    install = " ".join(dict.fromkeys(shlex.quote(f"{one.name}{one.specifier}") for _, one in wanting))
    return Finding("packages", verdict, f"{name_some(faults, 4, '; ')}; {named}", f"pip install {install}")


def _fits(version: str | None, required: Requirement) -> bool:
    return version is not None and required.specifier.contains(version, prereleases=True)


def check_dali(installed: Mapping[str, str], cuda_of_torch: str | None, *, on_gpu: bool) -> Finding:
    """Which build of DALI is installed beside which torch; `installed` has the version of each of `DALI` that is."""
    built = {name: f"{name[-3:-1]}.{name[-1]}" for name in installed}
    said = ", ".join(f"{name} {installed[name]} for CUDA {cuda}" for name, cuda in built.items()) or "not installed"
    found = f"{said}; torch for {f'CUDA {cuda_of_torch}' if cuda_of_torch else 'CPUs'}"
    major = (cuda_of_torch or "12").partition(".")[0]
    right = next((name for name in DALI if name[-3:-1] == major), DALI[0])
    if not installed:
        return red("dali", found, f"pip install {right}")
    if len(installed) > 1:
        remedy = f"Both own the same files. pip uninstall -y {' '.join(installed)}, then pip install {right}"
        return yellow("dali", found, remedy)
    if on_gpu and right not in installed:
        remedy = f"Untested together on a GPU. To use one CUDA: pip uninstall -y {next(iter(installed))}, then "
        return yellow("dali", found, f"{remedy}pip install {right}")
    return green("dali", found)


def version_of(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements_of(name: str) -> list[Requirement]:
    """Requirements of an installed package on this machine, without extras. Raises PackageNotFoundError."""
    from packaging.requirements import Requirement

    declared = map(Requirement, metadata.requires(name) or ())
    return [one for one in declared if one.marker is None or one.marker.evaluate({"extra": ""})]


def start_imports(modules: Sequence[str]) -> subprocess.Popen[str]:
    """Import modules in another process, so that a crashing library does not end this one."""
    script = "import importlib, sys\nfor name in sys.argv[1:]: print(name, flush=True); importlib.import_module(name)"
    command = [sys.executable, "-P", "-c", script, *modules]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace")


def check_imports(importing: subprocess.Popen[str], seconds: float = _IMPORT_SECONDS) -> Finding:
    """The result of `start_imports`. It prints each name before importing it, so the last name failed."""
    try:
        tried, said = importing.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return red("imports", f"not done after {seconds:.0f} s", "Try again: a slow disk is faster the second time.")
    modules, code = tried.split(), importing.returncode
    if code == 0:
        return green("imports", ", ".join(modules))
    why = signal.Signals(-code).name if code < 0 else (said.strip().splitlines() or [f"exit code {code}"])[-1]
    remedy = "Reinstall a version that hemafast supports with `pip install --force-reinstall`."
    return red("imports", f"{modules[-1] if modules else 'Python'} does not import ({why})", remedy)


def check_compiler(machine: Machine, environment: Mapping[str, str], headers: Path) -> Finding:
    """Whether torch.compile finds a compiler and Python's headers. By default only GPUs use it."""
    variable, usual = ("CC", ("gcc", "clang")) if machine.device == "cuda" else ("CXX", ("g++", "clang++"))
    names = shlex.split(environment.get(variable, ""))[:1] or usual
    present = [name for name in names if shutil.which(name, path=environment.get("PATH"))]
    lacks = [*([] if present else [" or ".join(names)]), *([] if (headers / "Python.h").is_file() else ["Python.h"])]
    if not lacks:
        return green("compiler", f"{Path(present[0]).name} and Python.h, for torch.compile")
    found, remedy = f"{' and '.join(lacks)} not found", "Install them (Debian: apt-get install g++ python3-dev)"
    if machine.compiled:
        return red("compiler", f"{found}: training here uses torch.compile", f"{remedy}, or train with --compile off.")
    return yellow("compiler", f"{found}: --compile on would fail; the default here is off", f"{remedy}.")
