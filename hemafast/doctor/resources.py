"""What the machine and the shell let a process have: processor, cores, memory and limits."""

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

_GIB = 2**30
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
_LEAST_MEMORY = 2 * _GIB  # the libraries alone take 0.9 GB once they are imported
_GOOD_MEMORY = 8 * _GIB  # of which the 6.4 GB of squares of both data sets are the share that may stay in memory
_NO_LIMIT = 2**60  # bytes: control groups of version 1 say "none" with a number near 2**63
_GOOD_SHM = 128 * 2**20  # Docker gives 64 MiB, which several processes on GPUs use up


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


def check_processor(flags: frozenset[str], architecture: str, machine: Machine) -> Finding:
    """Instruction sets, by the names of /proc/cpuinfo, and the precision that follows from them on a CPU."""
    has = " ".join(flag for flag in _FLAGS if flag in flags) or f"none of {' '.join(_FLAGS)}"
    found = f"{machine.facts['processor']}: {has}" + (f"; {precision(machine)}" if machine.device == "cpu" else "")
    if architecture == "x86_64" and "avx2" not in flags:
        remedy = "Use a processor with AVX2; in a virtual machine, pass the host's processor through."
        return yellow("processor", f"{found}; without AVX2 everything is several times slower", remedy)
    return green("processor", found)


def check_cores(allowed: int, quota: int, threads: int) -> Finding:
    """Cores that the process may run on, those that a quota lets it use at once, and the threads of torch."""
    found = f"{allowed} may be used, {threads} threads of torch"
    if quota < threads:
        found += f", but a quota pays for {quota}: more threads than that slow each other down"
        remedy = f"Set OMP_NUM_THREADS={quota} and --threads {quota}, or bind the container to as many cores."
        return yellow("cores", found, remedy)
    if allowed == 1:
        return yellow("cores", found, "Give it a second core: loading and training take turns on one.")
    return green("cores", found)


def check_memory(available: int, limit: int | None) -> Finding:
    """Memory that is available, in bytes, and the limit of the control group if there is one."""
    usable = available if limit is None else min(available, limit)
    found = f"{available / _GIB:.1f} GiB available" + (f", limited to {limit / _GIB:.1f} GiB" if limit else "")
    if usable < _LEAST_MEMORY:
        return red("memory", found, f"End other programs or raise the limit: {_LEAST_MEMORY // _GIB} GiB are needed.")
    if usable < _GOOD_MEMORY:
        remedy = f"With {_GOOD_MEMORY // _GIB} GiB all pixels of both data sets stay in memory; with less they may not."
        return yellow("memory", found, remedy)
    return green("memory", found)


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
        return green("allocator", f"{loaded[1]}, preloaded")
    if "malloc" in environment.get("LD_PRELOAD", ""):
        found = "LD_PRELOAD names an allocator that is not loaded"
        return yellow("allocator", found, "Give the whole path of a library that is there.")
    if tuned.value == "system default":
        remedy = "Preload tcmalloc or jemalloc by LD_PRELOAD: training on a CPU takes up to half the time."
        return yellow("allocator", f"{tuned.value}: {tuned.reason}", remedy)
    return green("allocator", f"{tuned.value}: {tuned.reason}")


def check_shared_memory(folder: Path) -> Finding:
    """Room in /dev/shm. One process needs none of it; several processes on GPUs talk through it."""
    name, remedy = "shared memory", "For several GPUs, start the container with --shm-size 1g, or mount a larger tmpfs."
    if not folder.is_dir():
        return yellow(name, f"{folder} is not there", remedy)
    size = shutil.disk_usage(folder)
    found = f"{folder}: {size.free / 2**20:,.0f} of {size.total / 2**20:,.0f} MiB free"
    return green(name, found) if size.free >= _GOOD_SHM else yellow(name, found, remedy)


def check_limits(limits: Mapping[Limit, int]) -> Finding:
    """Soft limits as getrlimit tells them."""
    soft = {limit: math.inf if value == resource.RLIM_INFINITY else value for limit, value in limits.items()}
    found = ", ".join(f"{limit.shown(value)} {limit.name}" for limit, value in soft.items())
    low = [f"ulimit {limit.flag} {limit.shown(limit.least)}" for limit, value in soft.items() if value < limit.least]
    return yellow("ulimits", found, f"Before hemafast: {'; '.join(low)}") if low else green("ulimits", found)


def precision(machine: Machine) -> str:
    """What training computes in here, and why."""
    chosen = choice(machine, "precision")
    return f"trains in {chosen.value}: {chosen.reason}"


def choice(machine: Machine, name: str) -> Choice:
    """The choice of that name that the engine makes here."""
    return next(made for made in machine.choices if made.name == name)


def cores_by_quota() -> int:
    """Cores that a quota of the control group pays for; all of them if there is none."""
    import joblib  # type: ignore[import-untyped] # it reads the quotas of control groups, and the affinity

    return int(joblib.cpu_count())


def memory_available() -> int:
    """Bytes that can be had without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)
