"""Which device `auto` means: a card that torch cannot use is an error and no silent CPU."""

import subprocess

import pytest
import torch

from hemafast import nvidia
from hemafast.data.dataset import open_dataset
from hemafast.deploy.model import load_models
from hemafast.engine.machine import choose_machine
from hemafast.errors import HemafastError
from hemafast.nvidia import Driver, card_present, hidden, runs_on, uses_gpu

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version."
)
OLD = Driver("470.57.02", (11, 4), 1, on_bus=True)


@pytest.fixture
def system(monkeypatch, tmp_path):
    """A system without a card, whose files a test adds; torch finds none, and no variable hides any."""
    monkeypatch.setattr(nvidia, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "dev").mkdir()
    return tmp_path


@pytest.fixture
def broken(system, monkeypatch):
    """A card with a driver that is too old for torch."""

    def init():
        raise RuntimeError(TOO_OLD)

    (system / "dev/nvidia0").touch()
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(nvidia, "read_driver", lambda: OLD)


def test_without_a_card_auto_is_the_cpu_and_cuda_is_refused(system):
    (system / "dev/nvidiactl").touch()  # the driver's control file says nothing of a card
    (system / "proc/driver/nvidia").mkdir(parents=True)
    assert not card_present()
    assert not uses_gpu("auto")
    with pytest.raises(HemafastError, match="no CUDA device"):
        uses_gpu("cuda")


@pytest.mark.parametrize("file", ["dev/nvidia0", "dev/nvidia12", "proc/driver/nvidia/gpus/0000:01:00.0"])
def test_a_card_shows_in_the_files_of_its_driver(system, file):
    (system / file).parent.mkdir(parents=True, exist_ok=True)
    (system / file).touch()
    assert card_present()


@pytest.mark.parametrize(
    ("says", "present"), [("GPU 0: NVIDIA T4 (UUID: GPU-1)", True), ("No devices were found", False)]
)
def test_under_wsl_nvidia_smi_is_asked_and_nowhere_else(system, monkeypatch, says, present):
    program = system / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(system), prepend=":")
    assert not card_present()
    (system / "dev/dxg").touch()
    assert card_present() is present


def test_a_program_that_hangs_lists_no_card(system, monkeypatch):
    def hangs(*arguments, **options):
        raise subprocess.TimeoutExpired("nvidia-smi", 10)

    monkeypatch.setattr(nvidia.shutil, "which", lambda name: name)
    monkeypatch.setattr(nvidia.subprocess, "run", hangs)
    (system / "dev/dxg").touch()
    assert not card_present()


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_card_with_an_old_driver_is_an_error_with_versions_and_remedy(broken, device):
    with pytest.raises(HemafastError, match=r"too old \(found version 11040\)") as caught:
        uses_gpu(device)
    assert "driver 470.57.02 for CUDA 11.4" in caught.value.problem
    assert "for CUDA 13.0" in caught.value.problem
    assert "driver 580 or newer" in caught.value.remedy
    assert "--device cpu" in caught.value.remedy


def test_everything_that_decides_for_auto_refuses_it(broken, prepared, tmp_path):
    deciding = (
        lambda: choose_machine(device="auto", amp="auto", compiled="auto"),
        lambda: open_dataset(prepared.folder).loader("train", size=32, device="auto"),
        lambda: load_models([tmp_path / "best_model.safetensors"], "auto", "auto"),
    )
    for decide in deciding:
        with pytest.raises(HemafastError, match="torch cannot use it"):
            decide()


def test_the_cpu_is_there_for_who_asks_for_it(broken):
    assert not uses_gpu("cpu")
    assert choose_machine(device="cpu", amp="off", compiled="off").device == "cpu"


@pytest.mark.parametrize(
    ("value", "hides"),
    [
        ("", True),
        ("-1", True),
        ("NoDevFiles", True),
        ("0", False),
        ("1,0", False),
        ("GPU-8932", False),
        ("MIG-1", False),
    ],
)
def test_a_card_that_is_hidden_on_purpose_is_none(broken, value, hides):
    assert hidden({"CUDA_VISIBLE_DEVICES": value}) is hides
    if hides:
        assert not uses_gpu("auto", {"CUDA_VISIBLE_DEVICES": value})


@pytest.mark.parametrize(
    ("driver", "cuda", "remedy"),
    [
        (OLD, "12.6", "driver 525 or newer"),
        (OLD, None, "Install torch for CUDA"),
        (Driver("550.54.15", None, 0, on_bus=True), "13.0", "--gpus all"),
        (Driver("580.10", (13, 0), 1, on_bus=True), "13.0", "nvidia-smi"),
    ],
)
def test_the_remedy_fits_what_is_wrong(broken, monkeypatch, driver, cuda, remedy):
    monkeypatch.setattr(nvidia, "read_driver", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(HemafastError) as caught:
        uses_gpu("auto")
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (["sm_75", "sm_80"], (7, 0), False),
        (["sm_75", "sm_80"], (7, 5), True),
        (["sm_80"], (8, 9), True),
        (["sm_80"], (9, 0), False),
        (["compute_80"], (9, 0), True),
        (["sm_90a"], (9, 0), True),
        (["nonsense"], (9, 0), False),
        ([], (9, 0), False),
    ],
)
def test_binary_code_runs_within_its_major_version_and_ptx_on_all_later_cards(built, capability, runs):
    assert runs_on(built, capability) is runs
