"""Processor, cores, memory and limits of this process."""

from __future__ import annotations

import math
import re
import resource
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hemafast.doctor.finding import Finding, green, red, yellow
from hemafast.engine.machine import Choice, Machine
from hemafast.words import counted

_GIB = 2**30
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
_LEAST_MEMORY = 2 * _GIB  # the imported libraries alone take 0.9 GB
_GOOD_MEMORY = 8 * _GIB  # room for the 6.4 GB of packed images of both data sets
_NO_LIMIT = 2**60  # bytes: control groups of version 1 write "no limit" as a number near 2**63
_GOOD_SHM = 128 * 2**20  # Docker gives 64 MiB, too little for several GPU processes


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit that the shell sets."""

    name: str
    resource: int
    flag: str
    """Option of `ulimit`."""
    least: float
    """Lower values may fail; 0 if it is only shown for bug reports."""
    unit: int
    """Bytes per unit of `ulimit`; 1 for counts."""

    def shown(self, value: float) -> str:
        """A value from getrlimit as `ulimit` shows it."""
        return "unlimited" if value == math.inf else f"{value / self.unit:.0f}"


LIMITS = (
    Limit("open files", resource.RLIMIT_NOFILE, "-n", 1024, 1),  # the usual limit; archives, tars and logs share it
    Limit("processes", resource.RLIMIT_NPROC, "-u", 1024, 1),  # counts all threads of the user
    Limit("KiB of address space", resource.RLIMIT_AS, "-v", math.inf, 2**10),  # CUDA reserves much more than it uses
    Limit("KiB of locked memory", resource.RLIMIT_MEMLOCK, "-l", 0, 2**10),  # CUDA's pinned memory does not count
)


def check_processor(flags: frozenset[str], architecture: str, machine: Machine) -> Finding:
    """Instruction sets as /proc/cpuinfo names them, and the precision on this CPU."""
    has = " ".join(flag for flag in _FLAGS if flag in flags) or f"none of {' '.join(_FLAGS)}"
    found = f"{machine.facts['processor']}: {has}" + (f"; {precision(machine)}" if machine.device == "cpu" else "")
    if architecture == "x86_64" and "avx2" not in flags:
        remedy = "Use a processor with AVX2; in a virtual machine, pass through the host's processor."
        return yellow("processor", f"{found}; without AVX2 everything runs several times slower", remedy)
    return green("processor", found)


def check_cores(allowed: int, quota: int, threads: int, waiting: str) -> Finding:
    """Cores that the process may use, cores that a quota grants, threads of torch and how they wait for each other."""
    found = f"{allowed} may be used, {threads} for torch, whose waiting threads {waiting}"
    if quota < threads:
        found += f", but a quota grants {quota}: more threads slow each other down"
        remedy = f"Set OMP_NUM_THREADS={quota} and --threads {quota}, or pin the container to {counted(quota, 'core')}."
        return yellow("cores", found, remedy)
    if allowed == 1:
        return yellow("cores", found, "Add a second core: on one, loading and training take turns.")
    return green("cores", found)


def check_memory(available: int, limit: int | None) -> Finding:
    """Available memory in bytes, and the limit of the control group if there is one."""
    usable = available if limit is None else min(available, limit)
    found = f"{available / _GIB:.1f} GiB available" + (f", limited to {limit / _GIB:.1f} GiB" if limit else "")
    if usable < _LEAST_MEMORY:
        return red("memory", found, f"End other programs or raise the limit: {_LEAST_MEMORY // _GIB} GiB are needed.")
    if usable < _GOOD_MEMORY:
        remedy = f"Use {_GOOD_MEMORY // _GIB} GiB or more, so that all pixels of both data sets stay in memory."
        return yellow("memory", found, remedy)
    return green("memory", found)


def memory_limit(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """The lowest memory limit in bytes of the process's control groups (version 1 or 2)."""
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
    """Whether freed memory is kept, by a preloaded library or by the engine's settings of the C library."""
    loaded = re.search(r"lib(tcmalloc|jemalloc|mimalloc)[^/]*$", maps.read_text(encoding="utf-8"), re.MULTILINE)
    if loaded:
        return green("allocator", f"{loaded[1]}, preloaded")
    if "malloc" in environment.get("LD_PRELOAD", ""):
        found = "LD_PRELOAD names an allocator that is not loaded"
        return yellow("allocator", found, "Set LD_PRELOAD to the full path of an installed library.")
    if tuned.value == "system default":
        remedy = "Preload tcmalloc or jemalloc with LD_PRELOAD: training on a CPU takes up to half the time."
        return yellow("allocator", f"{tuned.value}: {tuned.reason}", remedy)
    return green("allocator", f"{tuned.value}: {tuned.reason}")


def check_shared_memory(folder: Path) -> Finding:
    """Space in /dev/shm. One process does not need it; several GPU processes communicate through it."""
    name, remedy = "shared memory", "For several GPUs, start the container with --shm-size 1g, or mount a larger tmpfs."
    if not folder.is_dir():
        return yellow(name, f"{folder} does not exist", remedy)
    size = shutil.disk_usage(folder)
    found = f"{folder}: {size.free / 2**20:,.0f} of {size.total / 2**20:,.0f} MiB free"
    return green(name, found) if size.free >= _GOOD_SHM else yellow(name, found, remedy)


def check_limits(limits: Mapping[Limit, int]) -> Finding:
    """Soft limits from getrlimit."""
    soft = {limit: math.inf if value == resource.RLIM_INFINITY else value for limit, value in limits.items()}
    found = ", ".join(f"{limit.shown(value)} {limit.name}" for limit, value in soft.items())
    low = [f"ulimit {limit.flag} {limit.shown(limit.least)}" for limit, value in soft.items() if value < limit.least]
    return yellow("ulimits", found, f"Run before hemafast: {'; '.join(low)}") if low else green("ulimits", found)


def precision(machine: Machine) -> str:
    """The precision of training here, and why."""
    chosen = choice(machine, "precision")
    return f"trains in {chosen.value}: {chosen.reason}"


def choice(machine: Machine, name: str) -> Choice:
    """The engine's choice of that name."""
    return next(made for made in machine.choices if made.name == name)


def memory_available() -> int:
    """Bytes that can be allocated without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)
