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

from hemafast import __version__, nvidia, weights
from hemafast.config import Device, TrainConfig
from hemafast.cores import cores
from hemafast.doctor import gpu, installation, resources, storage
from hemafast.doctor.finding import Finding, Verdict, worst, yellow
from hemafast.engine.machine import Machine, choose_machine, cpu_flags, tune_allocator
from hemafast.progress import SILENT, Progress, stage
from hemafast.versions import DALI, installed_versions

SCHEMA = 1
"""Version of what `report` returns."""

IMPORTED = ("torch", "torchvision", "timm", "numba", "nvidia.dali")


def diagnose(
    source: Path,
    output: Path,
    device: Device = "auto",
    *,
    network: tuple[str, int] = (TrainConfig.model, TrainConfig.image_size),
    offline: bool = False,
    progress: Progress = SILENT,
) -> list[Finding]:
    """Check this machine for training.

    Args:
        source: folder of the archives and the prepared data set; its disk is measured.
        output: folder of the runs; its disk is measured.
        device: where models are to run.
        network: timm model, and side in pixels of what it sees; its convolutions are compared in two layouts.
        offline: do not use the network.
        progress: shows how many checks are done.

    Returns:
        A finding of each check.
    """
    with installation.start_imports(IMPORTED) as importing:  # in a process of its own, meanwhile
        checks = _checks(source, output, device, importing, network=network, offline=offline)
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
    source: Path,
    output: Path,
    device: Device,
    importing: subprocess.Popen[str],
    *,
    network: tuple[str, int],
    offline: bool,
) -> dict[str, Callable[[], Finding]]:
    """The checks by name. Disks come last: imports must not read from them meanwhile."""
    driver, card = cache(nvidia.read_driver), cache(nvidia.read_card)
    machine = cache(lambda: choose_machine(device=_usable(device, card()), amp="auto", compiled="auto"))
    environment, headers = os.environ, Path(sysconfig.get_paths()["include"])
    return {
        "python": lambda: installation.check_python(
            platform.python_version(), metadata.metadata("hemafast")["Requires-Python"]
        ),
        "packages": lambda: installation.check_packages(installation.version_of, installation.requirements_of),
        "dali": lambda: installation.check_dali(
            installed_versions(DALI), gpu.cuda_of_torch(), on_gpu=machine().device == "cuda"
        ),
        "processor": lambda: resources.check_processor(cpu_flags(), platform.machine(), machine()),
        "cores": lambda: resources.check_cores(
            len(os.sched_getaffinity(0)),
            cores(),
            int(resources.choice(machine(), "torch threads").value),
            resources.choice(machine(), "waiting threads").value,
        ),
        "memory": lambda: resources.check_memory(resources.memory_available(), resources.memory_limit()),
        "allocator": lambda: resources.check_allocator(tune_allocator(), Path("/proc/self/maps"), environment),
        "shared memory": lambda: resources.check_shared_memory(Path("/dev/shm")),
        "ulimits": lambda: resources.check_limits(
            {limit: resource.getrlimit(limit.resource)[0] for limit in resources.LIMITS}
        ),
        "driver": lambda: gpu.check_driver(driver(), {} if device == "cpu" else gpu.cuda_versions()),
        "gpu": lambda: gpu.check_gpu(driver(), card(), device, machine(), environment),
        "compiler": lambda: installation.check_compiler(machine(), environment, headers),
        "caches": lambda: storage.check_caches(storage.cache_folders(output, environment)),
        "weights": lambda: storage.check_weights(
            weights.packaged_models(), weights.cached_repositories(), storage.ask_hub(offline=offline)
        ),
        "imports": lambda: installation.check_imports(importing),
        "convolutions": lambda: _compare_convolutions(network, machine()),
        "data folder": lambda: storage.check_folder(
            "data folder", source, storage.read_disk(source), unwritable=Verdict.YELLOW
        ),
        "runs folder": lambda: storage.check_folder(
            "runs folder", output, storage.read_disk(output), unwritable=Verdict.RED
        ),
    }


def _usable(asked: Device, card: nvidia.Card | None) -> Device:
    """The device that a machine can be chosen for; `check_gpu` reports a GPU that is missing or cannot be used."""
    return "auto" if asked != "cpu" and card is not None and card.supported else "cpu"


def _compare_convolutions(network: tuple[str, int], machine: Machine) -> Finding:
    from hemafast.doctor.convolutions import compare_convolutions  # torch and timm may be broken

    return compare_convolutions(*network, machine)


def safely(name: str, check: Callable[[], Finding]) -> Finding:
    """The finding of a check; a check that fails becomes a finding itself."""
    try:
        return check()
    except Exception as error:  # a broken library can raise anything
        why = " ".join(str(error).split())
        return yellow(name, f"not checked ({type(error).__name__}: {why})", "Fix what is red; else report this.")


def report(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as plain data for a bug report, with ~ for the user's home."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - of a user id without a home, "~" stays
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
