"""Whether this machine can do the work: each check is a verdict, what was found, and what to do about it.

Checks take facts and judge them; `diagnose` gathers the facts of this machine. Nothing is changed but for an unnamed
file in the two folders that are asked about, which is gone when it is closed.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from hemafast import __version__, weights
from hemafast.config import Device
from hemafast.doctor.finding import Finding, Verdict, worst, yellow
from hemafast.doctor.gpu import check_driver, check_gpu, cuda_versions, read_card, read_driver
from hemafast.doctor.installation import (
    check_compiler,
    check_imports,
    check_packages,
    check_python,
    requirements_of,
    start_imports,
    version_of,
)
from hemafast.doctor.resources import (
    LIMITS,
    check_allocator,
    check_cores,
    check_limits,
    check_memory,
    check_processor,
    check_shared_memory,
    choice,
    cores_by_quota,
    memory_available,
    memory_limit,
)
from hemafast.doctor.storage import ask_hub, cache_folders, check_caches, check_folder, check_weights, read_disk
from hemafast.engine.machine import choose_machine, cpu_flags, tune_allocator

SCHEMA = 1
"""Version of what `report` returns."""

IMPORTED = ("torch", "torchvision", "timm", "numba", "nvidia.dali")


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
            len(os.sched_getaffinity(0)), cores_by_quota(), int(choice(machine(), "torch threads").value)
        ),
        "memory": lambda: check_memory(memory_available(), memory_limit()),
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
        return yellow(name, f"not checked ({type(error).__name__}: {why})", "Mend what is red first; else report it.")


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
