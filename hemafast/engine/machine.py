"""Choose what is fast on this machine, with reasons: allocator, device, precision, layout, compiler, threads."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hemafast.config import Amp, Compile, Device, Input, TrainConfig
from hemafast.cores import cores
from hemafast.data.graph import Source, default_threads
from hemafast.engine.yielding import yield_to_others
from hemafast.errors import HemafastError
from hemafast.nvidia import card_on_bus, uses_gpu
from hemafast.versions import DALI, installed_versions
from hemafast.waiting import waiting_told
from hemafast.words import counted

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]

_AMPERE, _OLDEST_OF_TRITON = (8, 0), (7, 0)
_GPU_SHARE = 0.4  # of the free memory of a GPU for pixels; network and activations need the rest
_DECISIVE = ("avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "dot", "i8mm", "bf16")
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_HOST_SHARE = 0.8  # of the available memory of the host that the page cache can keep


@dataclass(frozen=True, slots=True)
class Choice:
    """One decision, and the reason for it."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class Room:
    """Free memory in bytes."""

    host: int
    gpu: int = 0
    """Of the GPU of this process."""

    def least(self, others: Sequence[Room]) -> Room:
        """What all of several processes have."""
        every = (self, *others)
        return Room(min(one.host for one in every), min(one.gpu for one in every))


@dataclass(frozen=True, slots=True)
class Machine:
    """How to run here."""

    device: str
    """ "cpu" or "cuda"."""
    precision: Precision
    compiled: bool
    loader_threads: int
    choices: tuple[Choice, ...]
    facts: dict[str, str]
    own_gradients: bool = False
    """Whether depthwise convolutions take their weight gradients from depthwise.py."""

    @property
    def loader_device(self) -> str:
        """The device's name in DALI."""
        return "gpu" if self.device == "cuda" else "cpu"

    @property
    def dtype(self) -> torch.dtype | None:
        """What autocast computes in; None for fp32."""
        import torch

        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)

    def with_choices(self, choices: Sequence[Choice]) -> Machine:
        """The same machine with these choices; they replace those of the same name."""
        ours = {choice.name: choice for choice in (*self.choices, *choices)}
        return replace(self, choices=tuple(ours.values()))


def tune_allocator() -> Choice:
    """Make the C library keep freed memory instead of returning it to the kernel. Call it before the first tensor.

    glibc maps and unmaps every large buffer. In a training step of a small network on a CPU, this costs about 200,000
    page faults: a third to half of the time. glibc up to 2.34 keeps none of more than 32 MiB.
    """
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # malloc.h
    name = "allocator"
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return Choice(name, "system default", "the C library is not glibc")
    largest = mallopt(m_mmap_threshold, 1 << 30) or mallopt(m_mmap_threshold, 32 << 20)
    if not (largest and mallopt(m_trim_threshold, 2**31 - 1) and mallopt(m_top_pad, 256 << 20)):
        return Choice(name, "system default", "glibc refused mallopt")
    return Choice(name, "glibc, keeps freed memory", "saves a page fault for every 4 KiB of every step on a CPU")


def choose_machine(
    *,
    device: Device,
    amp: Amp,
    compiled: Compile,
    threads: int | None = None,
    allocator: Choice | None = None,
    processes: int = 1,
    sync_norm: bool = False,
) -> Machine:
    """Decide how each of `processes` on this host runs. `allocator` is the choice of `tune_allocator`, if called.

    Sets the number of torch's threads where a quota grants fewer, and on a CPU lets them yield to other programs.
    Batch norm over all processes (`sync_norm`) is not compiled: it waits for the others in every layer.

    Raises HemafastError if this machine cannot do what was asked for.
    """
    on = _choose_device(device)
    precision = _choose_precision(on.value, amp)
    compiler = _choose_compiler(on.value, compiled, sync_norm=sync_norm)
    gradients = _choose_gradients(on.value, precision.value, compiled=compiler.value == "on")
    loader = _choose_loader_threads(threads, processes)
    layout = Choice("layout", "channels_last", "convolutions read NHWC from the loader without a copy")
    chosen = (on, precision, layout, compiler, gradients, _choose_torch_threads(), _waiting(on.value), loader)
    return Machine(
        device=on.value,
        precision=precision.value,  # type: ignore[arg-type] # _choose_precision yields nothing else
        compiled=compiler.value == "on",
        loader_threads=int(loader.value),
        choices=(allocator, *chosen) if allocator else chosen,
        facts=machine_facts(on.value),
        own_gradients=gradients.value == "own kernel",
    )


def machine_for(config: TrainConfig, device: Device, processes: int = 1) -> Machine:
    """How to run here under `config` but on `device`, with `processes` on this host. Tunes the allocator."""
    return choose_machine(
        device=device,
        amp=config.amp,
        compiled=config.compile,
        threads=config.threads,
        allocator=tune_allocator(),
        processes=processes,
        sync_norm=config.sync_norm,
    )


def room_of(machine: Machine) -> Room:
    """The free memory of this process's device and host."""
    import psutil
    import torch

    gpu = torch.cuda.mem_get_info()[0] if machine.device == "cuda" else 0
    return Room(psutil.virtual_memory().available, gpu)


def choose_input(asked: Input, machine: Machine, room: Room, *, packed_bytes: int, file_bytes: int) -> Choice:
    """Choose the source of the pixels: squares of `packed_bytes` in all, or encoded files of `file_bytes`."""
    squares, files = f"{packed_bytes / 2**20:,.0f} MiB of squares", f"{file_bytes / 2**20:,.0f} MiB of encoded images"
    if asked != "auto":
        size = files if asked in ("files", "webdataset") else squares
        return Choice("input", asked, f"as asked for; {size}")
    if machine.device == "cuda" and packed_bytes <= _GPU_SHARE * room.gpu:
        return Choice("input", "resident", f"{squares} fit into the {room.gpu / 2**20:,.0f} MiB free on the GPU")
    memory = f"the {room.host / 2**20:,.0f} MiB of available memory"
    if packed_bytes <= _HOST_SHARE * room.host:
        return Choice("input", "packed", f"{squares}, memory-mapped, fit into {memory}")
    return Choice("input", "files", f"{squares} do not fit into {memory}; {files} are decoded in each epoch")


def has_precision(precision: str, device: Device) -> bool:
    """Whether this machine computes in "fp32", "bf16" or "fp16" in hardware."""
    on_gpu = uses_gpu(device)
    if precision == "bf16":
        return _fast_precision("cuda" if on_gpu else "cpu")[0] == "bf16"
    return precision == "fp32" or (precision == "fp16" and on_gpu)


def amp_of(precision: str) -> Amp:
    """The setting that asks for a precision."""
    return "off" if precision == "fp32" else precision  # type: ignore[return-value] # bf16 and fp16 have one name


def reading(machine: Machine, source: Choice, *, threads: int | None, processes: int = 1) -> Machine:
    """The machine with an input from `choose_input`, and the loader threads for it, unless `threads` are asked for."""
    loader = _choose_loader_threads(threads, processes, source.value)  # type: ignore[arg-type] # a Source
    return replace(machine.with_choices([source, loader]), loader_threads=int(loader.value))


def machine_facts(device: str) -> dict[str, str]:
    """Processor, memory, GPU and versions, for reports."""
    import psutil
    import torch

    facts = {
        "processor": _processor(),
        "instructions": _instructions(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts | installed_versions(("hemafast", "torch", "torchvision", "timm", *DALI, "numpy"))


def cpu_flags() -> frozenset[str]:
    """Instruction sets of the processor, named as in /proc/cpuinfo; empty without that file."""
    return frozenset(_cpuinfo("flags").split())


def _choose_loader_threads(asked: int | None, processes: int, source: Source = "packed") -> Choice:
    name = "loader threads"
    if asked:
        return Choice(name, str(asked), "as asked for")
    shared = f", shared by {processes} processes" if processes > 1 else ""
    return Choice(
        name, str(default_threads(processes, source)), f"{counted(cores(), 'core is', 'cores are')} available{shared}"
    )


def _choose_torch_threads() -> Choice:
    """torch counts the cores it may use, but knows no quota; users change the count with OMP_NUM_THREADS."""
    import torch

    name, granted = "torch threads", cores()
    if granted < torch.get_num_threads() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(granted)
        return Choice(name, str(granted), "a quota grants no more cores")
    return Choice(name, str(torch.get_num_threads()), "the count of torch, or OMP_NUM_THREADS")


def _waiting(device: str) -> Choice:
    """Told, not chosen, as libraries have read it when they were loaded; but from now on they yield to others.

    Not beside a GPU: it does the sums that threads of torch would wait for each other in.
    """
    how, where = waiting_told(os.environ)
    sooner = ", at once while others want the cores" if device == "cpu" and yield_to_others() else ""
    return Choice("waiting threads", how + sooner, where)


def _choose_device(asked: Device) -> Choice:
    on_gpu = uses_gpu(asked)
    if asked != "auto":
        return Choice("device", asked, "as asked for")
    if on_gpu:
        return Choice("device", "cuda", "a GPU is there")
    without_driver = "; the NVIDIA card on the bus has no driver, or is hidden" if card_on_bus() else ""
    return Choice("device", "cpu", f"no CUDA device found{without_driver}")


def _choose_precision(device: str, amp: Amp) -> Choice:
    if amp == "off":
        return Choice("precision", "fp32", "as asked for")
    fast, reason = _fast_precision(device)
    if amp in ("auto", fast):
        return Choice("precision", fast, reason)
    if device == "cpu":
        raise HemafastError(f"--amp {amp} is slow or impossible on this CPU: {reason}.", "Use --amp auto.")
    if amp == "bf16" and fast == "fp16":
        raise HemafastError(f"--amp bf16: {reason}.", "Use --amp auto or --amp fp16.")
    return Choice("precision", amp, "as asked for")


def _fast_precision(device: str) -> tuple[Precision, str]:
    import torch

    if device == "cuda":
        capability = torch.cuda.get_device_capability()
        name = f"compute capability {capability[0]}.{capability[1]}"
        if capability >= _AMPERE:
            return "bf16", f"{name} has it in hardware, and it needs no gradient scaling"
        return "fp16", f"{name} has no bf16; gradients are scaled"
    hardware = cpu_flags() & {"amx_bf16", "avx512_bf16"}
    if hardware:
        return "bf16", f"the CPU has {' and '.join(sorted(hardware))}"
    return "fp32", "the CPU has neither AMX nor AVX512-BF16; without them, bf16 was measured 15 times slower"


def _choose_compiler(device: str, asked: Compile, *, sync_norm: bool) -> Choice:
    name = "torch.compile"
    if sync_norm and asked == "on":
        raise HemafastError(
            "--compile on with --sync-norm: every synchronised norm breaks the compiled graph in two.",
            "Leave one of them out.",
        )
    if sync_norm:
        return Choice(name, "off", "with --sync-norm, every norm would break the graph in two")
    if asked != "auto":
        return Choice(name, asked, "as asked for")
    if device == "cuda":
        import torch

        if torch.cuda.get_device_capability() < _OLDEST_OF_TRITON:
            return Choice(name, "off", "Triton, which it needs, knows no card older than compute capability 7.0")
        return Choice(name, "on", "fuses normalisation, activations and batch norm; shapes are static")
    return Choice(name, "off", "eager training was measured faster on CPUs, and compiling takes one to two minutes")


def _choose_gradients(device: str, precision: str, *, compiled: bool) -> Choice:
    import torch

    name, capability = "depthwise gradients", torch.backends.cpu.get_cpu_capability()
    if device == "cuda":
        return Choice(name, "torch", "the libraries of the GPU have kernels for them")
    if compiled or precision != "fp32":
        return Choice(name, "torch", "our own kernel is for fp32 without compiling")
    reasons = {
        "AVX2": "oneDNN has no kernel for AVX2; its matrix products are up to twenty times slower, by shape",
        "AVX512": "from 5 x 5 taps on; oneDNN's kernel for AVX-512 is two to eight times slower there",
    }
    if capability not in reasons:
        return Choice(name, "torch", f"our own kernel is for AVX2 and AVX-512, and this CPU has {capability}")
    return Choice(name, "own kernel", reasons[capability])


def _processor() -> str:
    """The processor's name with family and model, because virtual machines may only say "AMD EPYC".

    ARM's have no name in /proc/cpuinfo, but the numbers of their maker and design.
    """
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    keys = {"family": "cpu family", "model": "model", "implementer": "CPU implementer", "part": "CPU part"}
    told = [f"{word} {number}" for word, key in keys.items() if (number := _cpuinfo(key))]
    return f"{name} ({', '.join(told)})" if told else name


def _instructions() -> str:
    """What torch computes with here, other instructions that kernels are chosen by, and the user's limit for oneDNN."""
    import torch

    has = torch.cpu.get_capabilities()
    told = [torch.backends.cpu.get_cpu_capability(), *(name for name in _DECISIVE if has.get(name))]
    limits = [f"{name}={os.environ[name]}" for name in _LIMITS if name in os.environ]
    return ", ".join([*told, *limits])


def _cpuinfo(key: str) -> str:
    """The first value under `key` in /proc/cpuinfo; "" without one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in fields if name.strip() == key), "")
