"""NVIDIA's driver and cards, and whether torch can use them. Here `auto` becomes a device."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hemafast.errors import HemafastError

ROOT = Path("/")
"""Where the files of the system are."""

OLDEST_DRIVER = {12: "525", 13: "580"}
"""By major version of CUDA, from NVIDIA's "CUDA Compatibility" guide."""


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

    @property
    def supported(self) -> bool:
        """Whether torch has kernels for it."""
        return runs_on(self.architectures, self.capability)


def uses_gpu(device: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether "auto", "cpu" or "cuda" means a GPU here.

    Args:
        device: what was asked for.
        environment: CUDA_VISIBLE_DEVICES may hide all cards; "auto" then means the CPU.

    Returns:
        True for a GPU, False for the CPU.

    Raises:
        HemafastError: "cuda" without a GPU; or there is a card that torch cannot use, or has no kernels for.
    """
    if device == "cpu":
        return False
    if _torch_finds_one():
        _refuse_without_kernels()
        return True
    if card_present() and not hidden(environment):
        raise _unusable()
    if device == "cuda":
        raise HemafastError("--device cuda: there is no CUDA device here.", "Use --device auto or --device cpu.")
    return False


def hidden(environment: Mapping[str, str]) -> bool:
    """Whether CUDA_VISIBLE_DEVICES names no card, as "" or -1. Schedulers also write words, as NoDevFiles."""
    first = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return not re.match(r"\d|GPU-|MIG-", first)


def card_present() -> bool:
    """Whether the system shows an NVIDIA card with a driver, without asking torch."""
    if any((ROOT / "dev").glob("nvidia[0-9]*")) or any((ROOT / "proc/driver/nvidia/gpus").glob("*")):
        return True
    return (ROOT / "dev/dxg").exists() and _listed()  # WSL has no files of its own for each card


def _listed() -> bool:
    """Whether nvidia-smi lists a card."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.stdout.startswith("GPU ")


def runs_on(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code for one of the architectures runs on a card of this capability.

    Binary code ("sm_90") runs on later cards of the same major version, PTX ("compute_120") on all later cards.
    """
    return any(_serves(architecture, capability) for architecture in architectures)


def _serves(architecture: str, capability: tuple[int, int]) -> bool:
    parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", architecture)
    if parts is None:
        return False
    built = (int(parts[2]), int(parts[3]))
    return built <= capability and (parts[1] == "compute" or built[0] == capability[0])


def card_on_bus() -> bool:
    """Whether the PCI bus has an NVIDIA card, with a driver or without."""
    return any(_is_card(device) for device in (ROOT / "sys/bus/pci/devices").glob("*"))


def read_driver() -> Driver:
    """Ask the kernel, the PCI bus and the driver's library."""
    file = ROOT / "proc/driver/nvidia/version"
    told = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", file.read_text(encoding="utf-8")) if file.is_file() else None
    return Driver(
        version=told[0] if told else "",
        cuda=_cuda_of_driver(),
        devices=len(list((ROOT / "dev").glob("nvidia[0-9]*"))),
        on_bus=card_on_bus(),
    )


def read_card() -> Card | None:
    """The first GPU as torch sees it, or None."""
    import torch

    if not _torch_finds_one():
        return None
    about = torch.cuda.get_device_properties(0)
    return Card(about.name, (about.major, about.minor), about.total_memory, torch.cuda.get_arch_list())


def dotted(version: tuple[int, int]) -> str:
    """A version or capability as text: 9.0."""
    return f"{version[0]}.{version[1]}"


def _torch_finds_one() -> bool:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an old driver is a warning of torch; here it becomes an error
        return torch.cuda.is_available()


def _refuse_without_kernels() -> None:
    """Raise HemafastError if this build of torch has no kernels for the card of this process."""
    import torch

    built = torch.cuda.get_arch_list()
    if not built:  # unknown
        return
    capability = torch.cuda.get_device_capability()
    if runs_on(built, capability):
        return
    raise HemafastError(
        f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name()} of compute capability "
        f"{dotted(capability)}; it has {', '.join(built)}.",
        f"Install a build of torch with sm_{capability[0]}{capability[1]} (older wheels have older cards), "
        "or use --device cpu.",
    )


def _unusable() -> HemafastError:
    """Says why torch cannot use the card that is there, and what to do."""
    import torch

    driver, built = read_driver(), torch.version.cuda
    serves = f" for CUDA {dotted(driver.cuda)}" if driver.cuda else ""
    found = f"driver {driver.version or 'unknown'}{serves}, torch {torch.__version__} for {_words(built)}"
    return HemafastError(
        f"There is an NVIDIA card, but torch cannot use it: {_reason()} ({found}).",
        f"{_remedy(driver, built)}, or use --device cpu.",
    )


def _words(cuda: str | None) -> str:
    return f"CUDA {cuda}" if cuda else "CPUs"


def _remedy(driver: Driver, built: str | None) -> str:
    if built is None:
        return "Install torch for CUDA"
    if not driver.devices:
        return "In a container, add --gpus all; otherwise see that `nvidia-smi` lists the card"
    major = int(built.partition(".")[0])
    if driver.cuda and driver.cuda[0] >= major:
        return "See that `nvidia-smi` lists the card, and that this process may open /dev/nvidia*"
    oldest = OLDEST_DRIVER.get(major, f"for CUDA {major}")
    return f"Install NVIDIA's driver {oldest} or newer, or torch for the CUDA of this driver"


def _reason() -> str:
    """Why torch cannot use CUDA, in its own words and one sentence."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # torch raises RuntimeError and AssertionError, a broken library anything
        return " ".join(str(error).split()).partition(". ")[0].rstrip(".") or type(error).__name__
    return "torch.cuda.is_available() is false"


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
    try:
        vendor, kind = ((device / name).read_text(encoding="utf-8").strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == "0x10de" and kind.startswith("0x03")
