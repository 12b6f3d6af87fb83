"""Checks of the machine, each with facts made up; and the whole command, with the network left alone."""

import http.server
import json
import math
import os
import resource
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock, call

import pytest
from command import hemafast
from packaging.requirements import Requirement

from hemafast import doctor, nvidia, weights
from hemafast.doctor import convolutions, gpu, installation, resources, storage
from hemafast.doctor.convolutions import check_convolutions, compare_convolutions
from hemafast.doctor.finding import Finding, Verdict, worst
from hemafast.doctor.storage import Disk
from hemafast.engine.compiling import CACHE_VARIABLE
from hemafast.engine.layout import Comparison, Convolution
from hemafast.engine.machine import Choice, choose_machine
from hemafast.nvidia import Card, Driver

GREEN, YELLOW, RED = Verdict.GREEN, Verdict.YELLOW, Verdict.RED
NO_DRIVER = Driver(version="", cuda=None, devices=0, on_bus=False)
DRIVER = Driver(version="570.86.10", cuda=(12, 8), devices=1, on_bus=True)
H100 = Card("NVIDIA H100", (9, 0), 80 * 2**30, ["sm_80", "sm_90", "compute_120"])


@pytest.fixture(scope="module")
def machine():
    return choose_machine(device="cpu", amp="auto", compiled="auto")


@pytest.fixture
def no_network(monkeypatch):
    def ask(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(weights, "hub_answers", ask)


def verdict_of(found: Finding, *parts: str) -> Verdict:
    """The verdict of a finding that names `parts`; green needs no remedy, all else has one."""
    assert bool(found.remedy) == (found.verdict is not GREEN)
    for part in parts:
        assert part in f"{found.found}\n{found.remedy}"
    return found.verdict


# The whole command


def test_this_machine_can_do_the_work_and_no_finding_names_a_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://jane:password@hub.example")
    monkeypatch.setattr(weights, "hub_answers", lambda: False)
    done = hemafast("doctor", "--json", "--source", tmp_path / "s", "--output", tmp_path / "o")
    told = json.loads(done.stdout)
    findings = {finding["name"]: finding for finding in told["findings"]}
    assert set(told) == {"schema", "hemafast", "date", "system", "verdict", "findings"}
    assert {
        *("python", "packages", "dali", "processor", "cores", "memory", "allocator", "shared memory", "ulimits"),
        *("driver", "gpu", "compiler", "caches", "weights", "imports", "convolutions", "data folder", "runs folder"),
    } == set(findings)
    assert {findings[name]["verdict"] for name in ("python", "packages", "imports")} == {"green"}
    assert "MB/s" in findings["runs folder"]["found"]
    assert done.returncode == (told["verdict"] == "red")
    assert not list(tmp_path.iterdir())  # nothing is made, nothing is left
    for secret in ("hf_secret", "password", "hub.example", os.uname().nodename):
        assert secret not in done.stdout


def test_table_counts_the_verdicts(tmp_path, no_network, monkeypatch):
    found = [Finding("one", GREEN, "fine"), Finding("two", YELLOW, "slow [red]", "Buy a faster one.")]
    monkeypatch.setattr(doctor, "diagnose", lambda *_, **__: found)
    done = hemafast("doctor", "--source", tmp_path)
    assert done.returncode == 0
    assert "1 green, 1 yellow, 0 red" in done.stdout
    assert "slow [red]" in done.stdout
    assert "Buy a faster one." in done.stdout


def test_red_is_exit_code_1(monkeypatch):
    monkeypatch.setattr(doctor, "diagnose", lambda *_, **__: [Finding("one", RED, "broken", "Mend it.")])
    assert hemafast("doctor").returncode == 1
    assert hemafast("doctor", "--json").returncode == 1


def test_runs_folder_that_is_a_file_is_red(tmp_path, no_network, monkeypatch):
    checks = doctor._checks  # the others, of imports and convolutions, take seconds
    monkeypatch.setattr(
        doctor, "_checks", lambda *given, **named: {"runs folder": checks(*given, **named)["runs folder"]}
    )
    (tmp_path / "file").write_text("")
    done = hemafast("doctor", "--json", "--offline", "--source", tmp_path, "--output", tmp_path / "file" / "runs")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    assert findings["runs folder"]["verdict"] == "red"
    assert "Not a directory" in findings["runs folder"]["found"]


def test_a_check_that_fails_is_a_finding_of_its_own():
    def check():
        raise RuntimeError("no\nsuch thing")

    assert verdict_of(doctor.safely("strange", check), "RuntimeError: no such thing") is YELLOW


def test_report_does_not_name_the_user(monkeypatch):
    monkeypatch.setenv("HOME", "/home/jane")
    found = doctor.report([Finding("runs folder", YELLOW, "/home/jane/runs, /home/janet", "Use /home/jane.d/x")])
    assert found["findings"][0]["found"] == "~/runs, /home/janet"
    assert found["findings"][0]["remedy"] == "Use /home/jane.d/x"


def test_progress_counts_the_checks(tmp_path, no_network, monkeypatch):
    checks = {"one": lambda: Finding("one", GREEN, "fine"), "two": lambda: 1 / 0}
    monkeypatch.setattr(doctor, "_checks", lambda *_, **__: checks)
    progress = Mock()
    found = doctor.diagnose(tmp_path, tmp_path, progress=progress)
    assert [finding.verdict for finding in found] == [GREEN, YELLOW]
    start, *rest = progress.mock_calls
    assert start == call.start("checking", 2, unit="checks")
    assert rest == [call.advance(), call.advance(), call.finish()]


def test_home_at_the_root_is_not_replaced():
    assert doctor.without_home("/data/runs", Path("/")) == "/data/runs"


def test_the_worst_verdict_counts():
    assert worst([]) is GREEN
    assert worst([GREEN, YELLOW, GREEN]) is YELLOW
    assert worst([RED, YELLOW]) is RED


# Convolutions


def test_convolutions_are_right_wrong_or_not_compared():
    strided = Convolution(4, 8, 32, 32, 1, (1, 1), (2, 2), (0, 0), (1, 1))
    right, wrong, late = Comparison(frozenset()), Comparison(frozenset({strided}), 2), Comparison(frozenset(), 2)
    assert verdict_of(check_convolutions("11 of resnet18", right), "11 of resnet18") is GREEN
    said = "1 with wrong gradients in channels_last (1x1, stride 2x2, 4 to 8 channels, 32 x 32 px)"
    assert verdict_of(check_convolutions("11", wrong), said, "contiguous layout") is YELLOW
    assert verdict_of(check_convolutions("11", late), "2 were not compared in 20 s (the time was up)") is YELLOW


def test_the_convolutions_of_the_chosen_network_are_compared(machine, monkeypatch):
    asked = []

    def compare(convolutions, precision):
        asked.extend(convolutions)
        return Comparison(frozenset())

    monkeypatch.setattr(convolutions, "compare", compare)
    assert f"{13} of test_resnet at 56 px" in compare_convolutions("test_resnet", 56, machine).found
    assert {one.height for one in asked} >= {56, 28}
    assert "cuDNN" in compare_convolutions("test_resnet", 56, replace(machine, device="cuda")).found


# The installation


@pytest.mark.parametrize(("version", "verdict"), [("3.12.1", GREEN), ("3.13.0rc1", GREEN), ("3.10.9", RED)])
def test_python_is_as_new_as_required(version, verdict):
    assert verdict_of(installation.check_python(version, ">=3.11"), version) is verdict


@pytest.mark.parametrize(
    ("installed", "verdict", "named"),
    [
        ({"torch": "2.7", "timm": "1.0", "numpy": "2.0"}, GREEN, "torch 2.7"),
        ({"torch": "2.1", "timm": "1.0", "numpy": "2.0"}, RED, "pip install 'torch>=2.6'"),
        ({"torch": "2.7", "numpy": "2.0"}, RED, "timm missing, hemafast requires timm"),
        ({"torch": "2.7", "timm": "1.0", "numpy": "1.20"}, YELLOW, "torch requires numpy>=1.26"),
    ],
)
def test_packages_are_what_is_required(installed, verdict, named):
    required = {"hemafast": ["torch>=2.6", "timm"], "torch": ["numpy>=1.26"]}
    found = installation.check_packages(
        installed.get, lambda name: [Requirement(one) for one in required.get(name, [])]
    )
    assert verdict_of(found, named) is verdict


@pytest.mark.parametrize(
    ("dali", "verdict"), [("nvidia-dali-cuda120", GREEN), ("nvidia-dali-cuda130", GREEN), ("", RED)]
)
def test_either_build_of_dali_will_do(dali, verdict):
    found = installation.check_packages({dali: "2.4.0"}.get, lambda _: [Requirement("nvidia-dali-cuda120>=2.4")])
    assert verdict_of(found, "nvidia-dali-cuda120" if verdict is RED else dali) is verdict


TWELVE, THIRTEEN = {"nvidia-dali-cuda120": "2.4.0"}, {"nvidia-dali-cuda130": "2.4.0"}


@pytest.mark.parametrize(
    ("installed", "torch", "on_gpu", "verdict", "named"),
    [
        (THIRTEEN, "13.0", True, GREEN, "nvidia-dali-cuda130 2.4.0 for CUDA 13.0; torch for CUDA 13.0"),
        (TWELVE, "12.8", True, GREEN, "nvidia-dali-cuda120 2.4.0 for CUDA 12.0; torch for CUDA 12.8"),
        (TWELVE, "13.0", False, GREEN, "torch for CUDA 13.0"),
        (TWELVE, None, False, GREEN, "torch for CPUs"),
        (TWELVE, "13.0", True, YELLOW, "uninstall -y nvidia-dali-cuda120, then pip install nvidia-dali-cuda130"),
        (TWELVE | THIRTEEN, "13.0", False, YELLOW, "cuda120 nvidia-dali-cuda130, then pip install nvidia-dali-cuda130"),
        (TWELVE | THIRTEEN, None, False, YELLOW, "then pip install nvidia-dali-cuda120"),
        ({}, "13.0", True, RED, "pip install nvidia-dali-cuda130"),
    ],
)
def test_dali_is_named_beside_torch(installed, torch, on_gpu, verdict, named):
    assert verdict_of(installation.check_dali(installed, torch, on_gpu=on_gpu), named) is verdict


def test_requirements_of_extras_are_left_out():
    names = {one.name for one in installation.requirements_of("hemafast")}
    assert {"torch", "timm", "nvidia-dali-cuda120"} <= names
    assert not {"pytest", "ruff", "mypy"} & names


@pytest.mark.parametrize(
    ("modules", "verdict", "named"),
    [
        (("json", "csv"), GREEN, "json, csv"),
        (("json", "no_such_module"), RED, "no_such_module does not import (ModuleNotFoundError"),
        (("crashes",), RED, "crashes does not import (SIGSEGV)"),
    ],
)
def test_imports_that_fail_are_named(modules, verdict, named, tmp_path, monkeypatch):
    (tmp_path / "crashes.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with installation.start_imports(modules) as importing:
        assert verdict_of(installation.check_imports(importing), named) is verdict


def test_imports_that_never_end_are_given_up(tmp_path, monkeypatch):
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with installation.start_imports(("hangs",)) as importing:
        assert verdict_of(installation.check_imports(importing, seconds=0.5), "not done") is RED
        importing.kill()


# The machine


def test_processor_without_avx2_is_slow(machine):
    assert (
        verdict_of(resources.check_processor(frozenset({"avx2", "amx_bf16"}), "x86_64", machine), "amx_bf16") is GREEN
    )
    assert verdict_of(resources.check_processor(frozenset({"sse2"}), "x86_64", machine), "AVX2") is YELLOW
    assert verdict_of(resources.check_processor(frozenset(), "aarch64", machine)) is GREEN


@pytest.mark.parametrize(
    ("allowed", "quota", "threads", "verdict", "named"),
    [
        (8, 8, 8, GREEN, "8 may be used"),
        (64, 2, 64, YELLOW, "OMP_NUM_THREADS=2"),
        (1, 1, 1, YELLOW, "second core"),
    ],
)
def test_threads_are_no_more_than_a_quota_pays_for(allowed, quota, threads, verdict, named):
    assert verdict_of(resources.check_cores(allowed, quota, threads, "sleep after 7 spins"), named) is verdict


@pytest.mark.parametrize(
    ("available", "limit", "verdict"),
    [(32, None, GREEN), (32, 16, GREEN), (32, 4, YELLOW), (5, None, YELLOW), (1, None, RED), (32, 1, RED)],
)
def test_memory_is_the_smaller_of_free_and_allowed(available, limit, verdict):
    limit_bytes = None if limit is None else limit * 2**30
    assert verdict_of(resources.check_memory(available * 2**30, limit_bytes), f"{available}.0 GiB") is verdict


@pytest.mark.parametrize(
    ("files", "membership", "limit"),
    [
        ({"memory.max": "max", "a/memory.max": "4096", "a/b/memory.max": "max"}, "0::/a/b\n", 4096),
        ({"memory.max": "1024", "a/memory.max": "4096"}, "0::/a\n", 1024),
        ({"memory/a/memory.limit_in_bytes": "512"}, "3:cpu:/a\n2:memory:/a\n", 512),
        ({"memory/memory.limit_in_bytes": str(2**63 - 4096)}, "2:memory:/\n", None),
        ({}, "0::/a\n", None),
    ],
)
def test_memory_limits_of_both_versions_of_control_groups(files, membership, limit, tmp_path):
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(f"{text}\n")
    (tmp_path / "own").write_text(membership)
    assert resources.memory_limit(tmp_path / "cgroup", tmp_path / "own") == limit


@pytest.mark.parametrize(
    ("tuned", "loaded", "preload", "verdict", "named"),
    [
        ("glibc", "/usr/lib/libc.so.6", "", GREEN, "keeps"),
        ("glibc", "/usr/lib/libtcmalloc_minimal.so.4", "", GREEN, "tcmalloc, preloaded"),
        ("glibc", "/usr/lib/libc.so.6", "libjemalloc.so", YELLOW, "not loaded"),
        ("system default", "/lib/ld-musl.so.1", "", YELLOW, "Preload"),
    ],
)
def test_freed_memory_is_kept(tuned, loaded, preload, verdict, named, tmp_path):
    (tmp_path / "maps").write_text(f"7f00-7f01 r-xp 00000000 00:00 0 {loaded}\n")
    choice = Choice("allocator", tuned, "keeps freed memory")
    assert verdict_of(resources.check_allocator(choice, tmp_path / "maps", {"LD_PRELOAD": preload}), named) is verdict


def test_small_or_missing_shared_memory(tmp_path, monkeypatch):
    assert verdict_of(resources.check_shared_memory(tmp_path / "none"), "does not exist") is YELLOW
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=2**26, free=2**26))
    assert verdict_of(resources.check_shared_memory(tmp_path), "64 of 64 MiB", "--shm-size") is YELLOW


def test_low_limits_are_told_as_ulimit_sets_them():
    ample = dict.fromkeys(resources.LIMITS, resource.RLIM_INFINITY)
    assert verdict_of(resources.check_limits(ample), "unlimited open files") is GREEN
    files, space = (next(one for one in resources.LIMITS if one.flag == flag) for flag in ("-n", "-v"))
    found = resources.check_limits({**ample, files: 256, space: 2**30})
    assert verdict_of(found, "256 open files", "ulimit -n 1024; ulimit -v unlimited", f"{2**20} KiB") is YELLOW
    assert space.shown(math.inf) == "unlimited"


def test_compiler_is_needed_only_where_training_compiles(machine, tmp_path):
    for name in ("gcc", "g++"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "Python.h").write_text("")
    here, bare = {"PATH": str(tmp_path)}, {"PATH": str(tmp_path / "none")}
    compiling = replace(machine, device="cuda", compiled=True)
    assert verdict_of(installation.check_compiler(machine, here, tmp_path), "g++") is GREEN
    assert verdict_of(installation.check_compiler(compiling, here, tmp_path), "gcc") is GREEN
    assert verdict_of(installation.check_compiler(machine, bare, tmp_path), "g++ or clang++ not found") is YELLOW
    assert (
        verdict_of(installation.check_compiler(compiling, here, tmp_path / "none"), "Python.h", "--compile off") is RED
    )
    assert verdict_of(installation.check_compiler(machine, {**here, "CXX": "icpx -O2"}, tmp_path), "icpx") is YELLOW


# The GPU


@pytest.mark.parametrize(
    ("driver", "needed", "verdict", "named"),
    [
        (NO_DRIVER, {"torch": (13, 0)}, GREEN, "no driver"),
        (DRIVER, {}, GREEN, "570.86.10"),
        (DRIVER, {"torch": (12, 6), "DALI": (12, 0)}, GREEN, "DALI for CUDA 12.0"),
        (DRIVER, {"torch": (12, 9), "DALI": (12, 0)}, YELLOW, "newer driver"),
        (DRIVER, {"torch": (13, 0), "DALI": (12, 0)}, RED, "driver 580 or newer"),
        (replace(DRIVER, cuda=None), {"torch": (12, 6)}, RED, "--gpus all"),
        (replace(NO_DRIVER, on_bus=True), {"torch": (12, 6)}, YELLOW, "driver 525 or newer"),
    ],
)
def test_driver_serves_the_cuda_of_the_libraries(driver, needed, verdict, named):
    assert verdict_of(gpu.check_driver(driver, needed), named) is verdict


@pytest.mark.parametrize(
    ("driver", "card", "asked", "environment", "verdict", "named"),
    [
        (NO_DRIVER, None, "auto", {}, GREEN, "on the CPU"),
        (NO_DRIVER, None, "cuda", {}, RED, "no CUDA device"),
        (DRIVER, None, "cpu", {}, GREEN, "not asked for"),
        (DRIVER, None, "auto", {}, RED, "torch does not see it"),
        (DRIVER, None, "auto", {"CUDA_VISIBLE_DEVICES": ""}, YELLOW, "hidden"),
        (DRIVER, None, "cuda", {"CUDA_VISIBLE_DEVICES": "-1"}, RED, "hidden"),
        (DRIVER, H100, "auto", {}, GREEN, "NVIDIA H100, 80 GiB, compute capability 9.0"),
        (DRIVER, replace(H100, capability=(6, 1)), "auto", {}, RED, "no kernels"),
        (DRIVER, replace(H100, capability=(8, 9)), "auto", {}, GREEN, "8.9"),  # sm_80 serves all of 8.x
        (DRIVER, replace(H100, capability=(12, 1)), "cuda", {}, GREEN, "12.1"),  # by PTX
        (DRIVER, replace(H100, capability=(10, 0)), "cuda", {}, RED, "no kernels"),  # sm_90 is of another family
    ],
)
def test_gpu_is_one_that_torch_can_use(driver, card, asked, environment, verdict, named, machine):
    assert verdict_of(gpu.check_gpu(driver, card, asked, machine, environment), named) is verdict


@pytest.mark.parametrize(
    ("asked", "card", "device"),
    [
        ("auto", H100, "auto"),
        ("cuda", H100, "auto"),
        ("cpu", H100, "cpu"),
        ("auto", None, "cpu"),
        ("auto", replace(H100, capability=(6, 1)), "cpu"),
    ],
)
def test_other_checks_go_on_for_the_cpu_if_a_gpu_cannot_be_used(asked, card, device):
    assert doctor._usable(asked, card) == device


def test_driver_is_read_from_the_system(tmp_path, monkeypatch):
    proc, bus = "proc/driver/nvidia", "sys/bus/pci/devices"
    for folder in ("dev", proc, f"{bus}/0000:01:00.0", f"{bus}/0000:00:1f.0"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "dev/nvidia0").write_text("")
    (tmp_path / "dev/nvidiactl").write_text("")
    (tmp_path / proc / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar 5\n")
    for place, vendor, kind in (("0000:01:00.0", "0x10de", "0x030200"), ("0000:00:1f.0", "0x8086", "0x030000")):
        (tmp_path / bus / place / "vendor").write_text(f"{vendor}\n")
        (tmp_path / bus / place / "class").write_text(f"{kind}\n")
    monkeypatch.setattr(nvidia, "ROOT", tmp_path)
    found = nvidia.read_driver()
    assert (found.version, found.devices, found.on_bus) == ("550.54.15", 1, True)
    monkeypatch.setattr(nvidia, "ROOT", tmp_path / "none")
    bare = nvidia.read_driver()
    assert (bare.version, bare.devices, bare.on_bus) == ("", 0, False)


def test_cuda_of_dali_is_in_its_name():
    assert gpu.cuda_versions()["DALI"] == (12, 0)


# Folders and weights


@pytest.mark.parametrize(
    ("disk", "verdict", "named"),
    [
        (Disk(50 * 10**9, 4e8, 2e9), GREEN, "writes 400 MB/s, reads 2,000 MB/s"),
        (Disk(5 * 10**9, 4e8, 2e9), YELLOW, "Free some space"),
        (Disk(10**8), RED, "0.1 GB free"),
        (Disk(50 * 10**9, 5e6, 2e9), YELLOW, "faster disk"),
        (Disk(50 * 10**9, 4e8, 1e7), YELLOW, "faster disk"),
        (Disk(50 * 10**9, refusal="Permission denied"), RED, "cannot be written to (Permission denied)"),
    ],
)
def test_folder_has_room_speed_and_permission(disk, verdict, named):
    assert verdict_of(storage.check_folder("runs folder", Path("runs"), disk, unwritable=RED), named) is verdict


def test_disk_is_that_of_the_nearest_folder_that_exists(tmp_path):
    disk = storage.read_disk(tmp_path / "not" / "yet")
    assert disk.free > 0
    assert disk.written > 0
    assert disk.read > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("packaged", "cached", "answers", "verdict", "named"),
    [
        (["lite0"], [], True, GREEN, "lite0 (package)"),
        ([], [], True, GREEN, "here: none"),
        (["lite0"], ["timm/resnet18"], None, GREEN, "timm/resnet18 (cache)"),
        ([], [], None, YELLOW, "was not asked"),
        (["lite0"], [], False, YELLOW, "does not answer"),
    ],
)
def test_weights_are_here_or_can_be_fetched(packaged, cached, answers, verdict, named):
    assert verdict_of(storage.check_weights(packaged, cached, answers), named) is verdict


def test_caches_that_cannot_be_written_are_named(monkeypatch):
    folders = {"numba": Path("/a"), "weights": Path("/b")}
    assert verdict_of(storage.check_caches(folders)) is (GREEN if os.access("/", os.W_OK) else YELLOW)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert verdict_of(storage.check_caches(folders), "numba (/a), weights (/b)", "NUMBA_CACHE_DIR") is YELLOW


def test_variables_name_the_caches(tmp_path):
    given = {"XDG_CACHE_HOME": "/x", "NUMBA_CACHE_DIR": "/n", CACHE_VARIABLE: "/t"}
    found = storage.cache_folders(tmp_path, given)
    assert [found[name] for name in ("numba", "torch.compile", "trials")] == [
        Path("/n"),
        Path("/t"),
        Path("/x/hemafast"),
    ]


def test_hub_is_asked_unless_offline(monkeypatch):
    class Fine(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), Fine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert storage.ask_hub(offline=False) is True
        server.shutdown()
    assert storage.ask_hub(offline=False) is False
    assert storage.ask_hub(offline=True) is None
