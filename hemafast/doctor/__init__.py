"""Check this machine. Each check gives a verdict, a finding and a remedy.

Checks judge facts; `diagnose` gathers the facts. It changes nothing, but writes an unnamed temporary file into the two
folders that it measures.
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
from hemafast.progress import SILENT, Progress, stage

SCHEMA = 1
"""Version of what `report` returns."""

IMPORTED = ("torch", "torchvision", "timm", "numba", "nvidia.dali")


def diagnose(
    source: Path,
    output: Path,
    device: Device = "auto",
    *,
    offline: bool = False,
    progress: Progress = SILENT,
) -> list[Finding]:
    """Check this machine for training.

    Args:
        source: folder of the archives and the prepared data set; its disk is measured.
        output: folder of the runs; its disk is measured.
        device: where models are to run.
        offline: do not use the network.
        progress: shows how many checks are done.

    Returns:
        A finding of each check.
    """
    with start_imports(IMPORTED) as importing:  # in a process of its own, meanwhile
        checks = _checks(source, output, device, importing, offline=offline)
        findings = []
        try:
            with stage(progress, "checking", len(checks), unit="checks"):
                for name, check in checks.items():
                    findings.append(safely(name, check))
                    progress.advance()
        finally:
            importing.kill()
    return findings


def _checks(
    source: Path, output: Path, device: Device, importing: subprocess.Popen[str], *, offline: bool
) -> dict[str, Callable[[], Finding]]:
    """The checks by name. Disks come last: imports must not read from them meanwhile."""
    asked: Device = "cpu" if device == "cpu" else "auto"  # check_gpu reports a missing GPU
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
    """The finding of a check; a check that fails becomes a finding itself."""
    try:
        return check()
    except Exception as error:  # a broken library can raise anything
        why = " ".join(str(error).split())
        return yellow(name, f"not checked ({type(error).__name__}: {why})", "Fix what is red; else report this.")


def report(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as plain data for a bug report, with ~ for the user's home."""
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
    """`text` with ~ for `home`, which contains the user's name."""
    if home == Path(home.anchor):
        return text
    return re.sub(rf"{re.escape(str(home))}(?![\w.-])", "~", text)
