"""NVIDIA's driver and GPU, and whether the libraries support them."""

from __future__ import annotations

from collections.abc import Mapping

from hemafast.config import Device
from hemafast.doctor.finding import Finding, Verdict, green, red, yellow
from hemafast.doctor.resources import precision
from hemafast.engine.machine import Machine
from hemafast.nvidia import OLDEST_DRIVER, Card, Driver, dotted, hidden
from hemafast.versions import DALI, installed_versions

_GIB = 2**30


def check_driver(driver: Driver, needed: Mapping[str, tuple[int, int]]) -> Finding:
    """Whether the driver supports the CUDA versions that libraries need; `needed` is empty if none does."""
    version = f"driver {driver.version}" if driver.version else "no driver"
    built = [f"{name} for CUDA {dotted(version)}" for name, version in needed.items()]
    if not needed or not (driver.version or driver.cuda or driver.on_bus):
        return green("driver", ", ".join([version, *built]))
    newest = max(needed.values())
    install = f"Install NVIDIA's driver {OLDEST_DRIVER.get(newest[0], f'for CUDA {newest[0]}')} or newer"
    if driver.cuda is None:
        found = f"{version} and no libcuda.so.1, but there is an NVIDIA card"
        remedy = f"{install}; in a container, use --gpus all and the NVIDIA Container Toolkit."
        return Finding("driver", Verdict.RED if driver.version else Verdict.YELLOW, found, remedy)
    found = ", ".join([f"driver {driver.version} for CUDA {dotted(driver.cuda)}", *built])
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
    if driver.devices and hidden(environment):
        verdict = Verdict.RED if asked == "cuda" else Verdict.YELLOW
        return Finding("gpu", verdict, "hidden by CUDA_VISIBLE_DEVICES", "Unset CUDA_VISIBLE_DEVICES to use it.")
    if driver.devices:
        remedy = "Fix the driver if it is red; otherwise install torch for CUDA. `nvidia-smi` must list the GPU."
        return red("gpu", "there is a GPU, but torch does not see it", remedy)
    if asked == "cuda":
        return red("gpu", "no CUDA device found", "Use --device auto or --device cpu.")
    return green("gpu", "no CUDA device found: all work runs on the CPU")


def _check_card(card: Card, machine: Machine) -> Finding:
    found = f"{card.name}, {card.memory / _GIB:.0f} GiB, compute capability {dotted(card.capability)}"
    if not card.supported:
        remedy = "Use --device cpu, a newer GPU, or a build of torch for this one."
        return red("gpu", f"{found}; torch has no kernels for it", remedy)
    return green("gpu", f"{found}; {precision(machine)}")


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
