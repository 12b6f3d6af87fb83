"""NVIDIA's driver and GPU, and whether the libraries support them."""

from __future__ import annotations

import ctypes
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hemafast.config import Device
from hemafast.doctor.finding import Finding, Verdict, green, red, yellow
from hemafast.doctor.resources import precision
from hemafast.engine.machine import Machine
from hemafast.versions import DALI, installed_versions

_GIB = 2**30
_OLDEST_DRIVER = {12: "525", 13: "580"}  # by major version of CUDA, from NVIDIA's "CUDA Compatibility" guide


@dataclass(frozen=True, slots=True)
class Driver:
    """NVIDIA's driver as the system shows it, without torch."""

    version: str
    """Version of the kernel module; empty if it is not loaded."""
    cuda: tuple[int, int] | None
    """The newest CUDA version that its library supports; None without the library."""
    devices: int
    """Number of device files."""
    on_bus: bool
    """Whether the PCI bus has an NVIDIA card."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as torch sees it."""

    name: str
    capability: tuple[int, int]
    memory: int
    architectures: Sequence[str]
    """Architectures that torch was compiled for, such as "sm_90" or "compute_120"."""


def check_driver(driver: Driver, needed: Mapping[str, tuple[int, int]]) -> Finding:
    """Whether the driver supports the CUDA versions that libraries need; `needed` is empty if none does."""
    version = f"driver {driver.version}" if driver.version else "no driver"
    built = [f"{name} for CUDA {_dotted(version)}" for name, version in needed.items()]
    if not needed or not (driver.version or driver.cuda or driver.on_bus):
        return green("driver", ", ".join([version, *built]))
    newest = max(needed.values())
    install = f"Install NVIDIA's driver {_OLDEST_DRIVER.get(newest[0], f'for CUDA {newest[0]}')} or newer"
    if driver.cuda is None:
        found = f"{version} and no libcuda.so.1, but there is an NVIDIA card"
        remedy = f"{install}; in a container, use --gpus all and the NVIDIA Container Toolkit."
        return Finding("driver", Verdict.RED if driver.version else Verdict.YELLOW, found, remedy)
    found = ", ".join([f"driver {driver.version} for CUDA {_dotted(driver.cuda)}", *built])
    if newest[0] > driver.cuda[0]:
        return red("driver", found, f"{install}: this driver is too old.")
    if newest > driver.cuda:
        return yellow("driver", found, "Install a newer driver: kernels compiled at run time may fail.")
    return green("driver", found)


def check_gpu(
    driver: Driver, card: Card | None, asked: Device, machine: Machine, environment: Mapping[str, str]
) -> Finding:
    """Whether torch can use the GPU, if one is asked for."""
    if asked == "cpu":
        return green("gpu", "not asked for")
    if card is not None:
        return _check_card(card, machine)
    if driver.devices and environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        verdict = Verdict.RED if asked == "cuda" else Verdict.YELLOW
        return Finding("gpu", verdict, "hidden by CUDA_VISIBLE_DEVICES", "Unset CUDA_VISIBLE_DEVICES to use it.")
    if driver.devices:
        remedy = "Fix the driver if it is red; otherwise install torch for CUDA. `nvidia-smi` must list the GPU."
        return red("gpu", "there is a GPU, but torch does not see it", remedy)
    if asked == "cuda":
        return red("gpu", "no CUDA device found", "Use --device auto or --device cpu.")
    return green("gpu", "no CUDA device found: all work runs on the CPU")


def _check_card(card: Card, machine: Machine) -> Finding:
    found = f"{card.name}, {card.memory / _GIB:.0f} GiB, compute capability {_dotted(card.capability)}"
    if not any(_runs_on(architecture, card.capability) for architecture in card.architectures):
        remedy = "Use --device cpu, a newer GPU, or a build of torch for this one."
        return red("gpu", f"{found}; torch has no kernels for it", remedy)
    return green("gpu", f"{found}; {precision(machine)}")


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Binary code runs on later cards of the same major version, PTX on all later cards."""
    parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", architecture)
    if parts is None:
        return False
    built = (int(parts[2]), int(parts[3]))
    return built <= capability and (parts[1] == "compute" or built[0] == capability[0])


def read_driver(
    dev: Path = Path("/dev"), proc: Path = Path("/proc/driver/nvidia"), bus: Path = Path("/sys/bus/pci/devices")
) -> Driver:
    """Ask the kernel, the PCI bus and the driver's library."""
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
    """Whether a device on the bus is a display controller (class 3) by NVIDIA."""
    vendor, kind = ((device / name).read_text(encoding="utf-8").strip() for name in ("vendor", "class"))
    return vendor == "0x10de" and kind.startswith("0x03")


def read_card() -> Card | None:
    """The first GPU as torch sees it, or None."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # check_driver reports a driver that is too old
        if not torch.cuda.is_available():
            return None
    about = torch.cuda.get_device_properties(0)
    return Card(about.name, (about.major, about.minor), about.total_memory, torch.cuda.get_arch_list())


def cuda_of_torch() -> str | None:
    """The CUDA version that torch was built for, as "13.0"; None if it is for CPUs."""
    import torch

    return torch.version.cuda


def cuda_versions() -> dict[str, tuple[int, int]]:
    """The CUDA versions that DALI and torch were built for; torch for CPUs has none."""
    built = {}
    for name in installed_versions(DALI):  # of both, which own the same files, the newer; `check_dali` tells
        built["DALI"] = f"{name[-3:-1]}.{name[-1]}"
    if cuda := cuda_of_torch():
        built["torch"] = cuda
    parts = {name: version.split(".") for name, version in built.items()}
    return {name: (int(numbers[0]), int(numbers[1])) for name, numbers in parts.items()}


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
