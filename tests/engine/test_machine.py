"""What this machine is asked to do, and that every decision has a reason."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from hemafast import nvidia
from hemafast.cores import cores
from hemafast.engine import machine as module
from hemafast.engine.machine import (
    Choice,
    Room,
    amp_of,
    choose_input,
    choose_machine,
    cpu_flags,
    has_precision,
    machine_facts,
    reading,
    room_of,
    tune_allocator,
)
from hemafast.errors import HemafastError

AMX = frozenset({"sse2", "avx2", "amx_bf16", "avx512_bf16"})
OLD = frozenset({"sse2", "avx2", "avx512f"})


@pytest.fixture
def without_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(nvidia, "ROOT", tmp_path)


@pytest.fixture
def with_gpu(monkeypatch):
    """Pretend that there is a GPU of this compute capability; torch has the kernels `built`."""

    def pretend(*capability, built=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a pretended GPU")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))

    return pretend


def _flags(monkeypatch, flags):
    monkeypatch.setattr(module, "cpu_flags", lambda: flags)


def _choose(**asked):
    return choose_machine(**{"device": "auto", "amp": "auto", "compiled": "auto", "threads": None, **asked})


def test_a_machine_without_gpu_trains_on_its_cpu(without_gpu, monkeypatch):
    _flags(monkeypatch, OLD)
    machine = _choose()
    assert (machine.device, machine.loader_device, machine.precision, machine.compiled) == ("cpu", "cpu", "fp32", False)


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_the_real_machine_can_be_chosen_for(device):
    machine = _choose(device=device)
    assert machine.precision in ("fp32", "bf16", "fp16")
    assert machine.device in ("cpu", "cuda")


def test_every_choice_has_a_reason(without_gpu):
    machine = _choose(allocator=tune_allocator())
    names = [choice.name for choice in machine.choices]
    assert names == [
        *("allocator", "device", "precision", "layout", "torch.compile", "depthwise gradients"),
        *("torch threads", "waiting threads", "loader threads"),
    ]
    assert all(choice.value and choice.reason for choice in machine.choices)


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        (AMX, "bf16"),
        (frozenset({"avx512_bf16"}), "bf16"),
        (frozenset({"amx_bf16"}), "bf16"),
        (OLD, "fp32"),
        (frozenset(), "fp32"),
    ],
)
def test_a_cpu_computes_in_bf16_where_it_has_it(without_gpu, monkeypatch, flags, precision):
    _flags(monkeypatch, flags)
    assert _choose().precision == precision


def test_bf16_may_be_asked_for_where_the_cpu_has_it(without_gpu, monkeypatch):
    _flags(monkeypatch, AMX)
    assert _choose(amp="bf16").precision == "bf16"
    assert _choose(amp="off").precision == "fp32"


@pytest.mark.parametrize(("amp", "flags"), [("bf16", OLD), ("bf16", frozenset()), ("fp16", OLD), ("fp16", AMX)])
def test_a_precision_that_the_cpu_lacks_is_refused(without_gpu, monkeypatch, amp, flags):
    _flags(monkeypatch, flags)
    with pytest.raises(HemafastError, match=f"--amp {amp}") as caught:
        _choose(amp=amp)
    assert "--amp auto" in caught.value.remedy


def test_a_gpu_that_is_not_there_is_refused(without_gpu):
    with pytest.raises(HemafastError, match="no CUDA device") as caught:
        _choose(device="cuda")
    assert "--device" in caught.value.remedy


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_a_gpu_is_taken_and_computes_in_what_it_has(with_gpu, capability, precision):
    with_gpu(*capability)
    machine = _choose()
    assert (machine.device, machine.loader_device, machine.precision) == ("cuda", "gpu", precision)
    assert machine.compiled
    assert machine.facts["gpu"] == "a pretended GPU"


def test_only_threads_beside_a_cpu_yield(with_gpu, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "yield_to_others", lambda: not asked.append("asked"))
    with_gpu(9, 0)
    for device, waits in (("cuda", False), ("cpu", True)):
        (choice,) = (one for one in _choose(device=device).choices if one.name == "waiting threads")
        assert ("while others want the cores" in choice.value) is waits
    assert len(asked) == 1


def test_a_gpu_does_what_it_is_asked_for(with_gpu):
    with_gpu(9, 0)
    assert _choose(amp="fp16").precision == "fp16"
    assert _choose(amp="off").precision == "fp32"
    assert _choose(device="cpu").device == "cpu"
    assert not _choose(compiled="off").compiled


def test_an_older_gpu_is_not_asked_for_bf16(with_gpu):
    with_gpu(7, 5)
    with pytest.raises(HemafastError, match="--amp bf16"):
        _choose(amp="bf16")


def test_a_card_of_which_torch_has_no_kernels_is_refused_before_training(with_gpu):
    with_gpu(7, 0)
    with pytest.raises(HemafastError, match=r"a pretended GPU of compute capability 7\.0; it has sm_75") as caught:
        _choose()
    assert "sm_70" in caught.value.remedy
    assert "--device cpu" in caught.value.remedy
    assert _choose(device="cpu").device == "cpu"


def test_an_older_build_of_torch_runs_an_older_card_in_fp16(with_gpu):
    with_gpu(7, 0, built=("sm_70", "sm_80"))
    assert (_choose().precision, _choose().compiled) == ("fp16", True)


def test_a_card_that_triton_does_not_know_runs_eagerly(with_gpu):
    with_gpu(6, 1, built=("sm_60",))
    machine = _choose()
    assert not machine.compiled
    assert "Triton" in next(choice.reason for choice in machine.choices if choice.name == "torch.compile")


def test_norms_over_all_processes_are_not_compiled(with_gpu):
    with_gpu(9, 0)
    machine = _choose(sync_norm=True)
    assert not machine.compiled
    assert "--sync-norm" in next(choice.reason for choice in machine.choices if choice.name == "torch.compile")
    with pytest.raises(HemafastError, match="--compile on with --sync-norm"):
        _choose(sync_norm=True, compiled="on")


def test_a_card_on_the_bus_without_a_driver_is_named_in_the_reason(without_gpu, tmp_path):
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    assert "no driver" in _choose().choices[0].reason


def test_compiling_may_be_asked_for_on_a_cpu(without_gpu):
    assert _choose(compiled="on").compiled


def test_loader_threads_are_as_asked_for_or_as_many_as_cores(without_gpu):
    assert _choose(threads=3).loader_threads == 3
    assert _choose().loader_threads == min(cores(), 8)


def test_a_machine_is_plain_data(without_gpu):
    content = json.loads(json.dumps(dataclasses.asdict(_choose())))
    assert content["device"] == "cpu"
    assert content["choices"][0] == {"name": "device", "value": "cpu", "reason": "no CUDA device found"}


def test_facts_name_the_processor_and_versions():
    facts = machine_facts("cpu")
    assert {"processor", "cores", "memory", "system", "python", "hemafast", "torch", "timm"} <= facts.keys()
    assert "gpu" not in facts
    assert all(facts.values())


def test_flags_are_read_from_cpuinfo(monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 amx_bf16\nvmx flags\t: vnmi\n")
    monkeypatch.setattr(module, "Path", lambda _: cpuinfo)
    assert cpu_flags() == {"fpu", "avx2", "amx_bf16"}
    assert machine_facts("cpu")["processor"] == "A CPU"
    cpuinfo.write_text("cpu family\t: 23\nmodel\t\t: 1\nmodel name\t: A CPU\n")
    assert machine_facts("cpu")["processor"] == "A CPU (family 23, model 1)"
    cpuinfo.write_text("Features\t: asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n")
    assert machine_facts("cpu")["processor"].endswith("(implementer 0x41, part 0xd40)")
    cpuinfo.unlink()
    assert cpu_flags() == frozenset()


def test_instructions_are_those_that_torch_uses_within_the_limit_of_the_user(monkeypatch):
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx_vnni": True, "avx512_vnni": False})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine_facts("cpu")["instructions"] == "AVX2, avx_vnni, ONEDNN_MAX_CPU_ISA=AVX2"


def test_tuning_the_allocator_says_what_came_of_it(monkeypatch):
    choice = tune_allocator()
    assert isinstance(choice, Choice)
    assert choice.name == "allocator"
    assert choice.reason

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(module.ctypes, "CDLL", missing)
    assert tune_allocator().value == "system default"


@pytest.mark.parametrize(("most", "value"), [(1 << 30, "glibc, keeps"), (32 << 20, "glibc, keeps"), (0, "system")])
def test_a_glibc_that_keeps_only_small_buffers_keeps_those(monkeypatch, most, value):
    m_mmap_threshold, set_to = -3, {}

    def mallopt(parameter, number):
        if parameter == m_mmap_threshold and number > most:
            return 0
        set_to[parameter] = number
        return 1

    monkeypatch.setattr(module.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    assert tune_allocator().value.startswith(value)
    assert set_to.get(m_mmap_threshold, 0) == most


# Where pixels come from

MEBI = 2**20


def _input(asked="auto", *, device="cpu", packed=100, files=40):
    machine = module.Machine(device, "fp32", False, 2, (), {})
    return choose_input(asked, machine, room_of(machine), packed_bytes=packed * MEBI, file_bytes=files * MEBI)


@pytest.fixture
def with_memory(monkeypatch):
    """Pretend that so many MiB are available on the host, and free on a GPU."""

    def pretend(host, gpu=0):
        monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": host * MEBI}))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (gpu * MEBI, 2 * gpu * MEBI))

    return pretend


@pytest.mark.parametrize(
    ("device", "host", "gpu", "chosen"),
    [
        ("cuda", 1000, 250, "resident"),
        ("cuda", 1000, 249, "packed"),
        ("cuda", 1, 250, "resident"),
        ("cuda", 1, 1, "files"),
        ("cpu", 125, 0, "packed"),
        ("cpu", 124, 0, "files"),
    ],
)
def test_pixels_come_from_where_there_is_room_for_them(with_memory, device, host, gpu, chosen):
    with_memory(host, gpu)
    choice = _input(device=device)
    assert choice.value == chosen
    assert "100 MiB of squares" in choice.reason


@pytest.mark.parametrize(
    ("asked", "size"), [("resident", "100 MiB"), ("packed", "100 MiB"), ("files", "40 MiB"), ("webdataset", "40 MiB")]
)
def test_an_input_that_is_asked_for_is_taken_and_its_bytes_are_said(with_memory, asked, size):
    with_memory(1)
    choice = _input(asked)
    assert choice.value == asked
    assert size in choice.reason


def test_an_input_for_several_processes_fits_into_the_memory_of_each():
    rooms = [Room(1000, 250), Room(100, 300), Room(2000, 200)]
    least = rooms[0].least(rooms)
    assert least == Room(100, 200)
    machine = module.Machine("cuda", "bf16", True, 2, (), {})
    chosen = [choose_input("auto", machine, room, packed_bytes=90, file_bytes=10).value for room in (*rooms, least)]
    assert chosen == ["resident", "resident", "packed", "files"]


@pytest.mark.parametrize(("capability", "has"), [((7, 5), ["fp32", "fp16"]), ((8, 0), ["fp32", "bf16", "fp16"])])
def test_precisions_of_a_card(with_gpu, capability, has):
    with_gpu(*capability)
    assert [name for name in ("fp32", "bf16", "fp16") if has_precision(name, "auto")] == has


@pytest.mark.parametrize(("flags", "has"), [(OLD, ["fp32"]), (AMX, ["fp32", "bf16"])])
def test_precisions_of_a_cpu(without_gpu, monkeypatch, flags, has):
    _flags(monkeypatch, flags)
    assert [name for name in ("fp32", "bf16", "fp16") if has_precision(name, "auto")] == has


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_precision_has_a_setting_that_asks_for_it(with_gpu, precision):
    with_gpu(9, 0)
    assert _choose(amp=amp_of(precision)).precision == precision


# Several processes, and decisions that come later


@pytest.mark.parametrize(("cores", "processes", "threads"), [(8, 1, 8), (64, 1, 8), (8, 2, 4), (64, 4, 8), (2, 4, 1)])
def test_processes_share_the_cores_among_their_loaders(without_gpu, monkeypatch, cores, processes, threads):
    for place in ("hemafast.data.graph", "hemafast.engine.machine"):
        monkeypatch.setattr(f"{place}.cores", lambda: cores)
    machine = _choose(processes=processes)
    assert machine.loader_threads == threads
    reason = machine.choices[-1].reason
    assert f"{cores} core" in reason
    assert (f"shared by {processes} processes" in reason) == (processes > 1)


@pytest.mark.parametrize(
    ("source", "asked", "threads"),
    [("packed", None, 8), ("resident", None, 8), ("files", None, 16), ("webdataset", None, 16), ("files", 3, 3)],
)
def test_decoding_takes_all_cores_of_a_process(without_gpu, monkeypatch, source, asked, threads):
    monkeypatch.setattr("hemafast.data.graph.cores", lambda: 32)
    machine = reading(_choose(), Choice("input", source, "as asked for"), threads=asked, processes=2)
    assert machine.loader_threads == threads
    assert {choice.name: choice.value for choice in machine.choices}["loader threads"] == str(threads)


def test_threads_that_are_asked_for_are_each_process_s_own(without_gpu):
    assert _choose(threads=3, processes=4).loader_threads == 3


def test_a_later_decision_takes_the_place_of_the_earlier_one_of_its_name(without_gpu):
    machine = _choose()
    names = [choice.name for choice in machine.choices]
    compiler, size = Choice("torch.compile", "on", "a trial"), Choice("batch size", "64", "a trial")
    decided = machine.with_choices([compiler, size])
    assert [choice.name for choice in decided.choices] == [*names, "batch size"]
    assert decided.choices[names.index("torch.compile")] == compiler
    assert [choice.name for choice in machine.choices] == names  # a machine does not change


@pytest.mark.parametrize(("granted", "asked", "threads"), [(1, None, 1), (1, "2", 2), (64, None, 2)])
def test_torch_has_no_more_threads_than_a_quota_grants(monkeypatch, granted, asked, threads):
    monkeypatch.setattr("hemafast.engine.machine.cores", lambda: granted)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    torch.set_num_threads(2)
    try:
        chosen = next(choice for choice in _choose().choices if choice.name == "torch threads")
        assert (torch.get_num_threads(), chosen.value) == (threads, str(threads))
        assert ("quota" in chosen.reason) is (threads == 1)
    finally:
        torch.set_num_threads(1)
