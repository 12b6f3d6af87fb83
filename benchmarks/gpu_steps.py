"""The steps of gpu_day_one.py, each a process: `python benchmarks/gpu_steps.py NAME --data DATA --out OUT`.

A step writes `OUT/NAME.part` anew whenever it has measured something, so that what it had is there if it is stopped. It
ends with code 3, and says what is missing, if it cannot run here.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from gpu_day_one import ROOT, SKIPPED_CODE, Data, DeviceName, read, write

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hemafast.bench.settings import Bench
    from hemafast.bench.worker import Station

_ROUNDS, _SECONDS = 3, 0.5
_BATCHES = (32, 64, 128, 256, 512)
_TRACED = 10  # training steps
_KERNELS = 20
_MODES = {
    "eager": {"capture": "off"},
    "eager, one graph": {},
    "default, one graph": {"compile": "on"},
    "default": {"compile": "on", "capture": "off"},
    "reduce-overhead": {"compile": "on", "compile_mode": "reduce-overhead"},
}
"""Settings of the training step, the most promising early."""
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")
_DECODED_AT_ONCE = 25
_JPEGS, _TIFFS = 500, 100


class SkippedError(Exception):
    """This machine lacks what a step needs."""


@dataclass
class Context:
    """What a step is asked for, and what it has measured."""

    name: str
    data: Path
    out: Path
    device: str
    tiny: bool
    found: dict[str, Any] = field(default_factory=dict)

    def note(self, **facts: Any) -> None:
        """Add to the result, and write it."""
        self.found |= facts
        write(self.out / f"{self.name}.part", self.found)

    def bench(self, network: str = "efficientnet_b0", **settings: Any) -> Bench:
        """What is measured: a network at 224 px in the fastest precision; a tiny one in a rehearsal."""
        from hemafast.bench.settings import Bench, bench_settings

        usual = {"model": network, "image_size": 224, "batch_size": 256, "compile": "off"}
        if self.tiny:
            usual |= {"model": "test_efficientnet", "image_size": 32, "batch_size": 8}
        where = {"data": self.data, "output": self.out / "runs", "device": self.device}
        return Bench(bench_settings(**{**usual, **where, **settings}))


def machine(context: Context) -> None:
    """Card, driver, versions, and which packages are missing."""
    import torch

    wanted = ("torch", "torchvision", "triton", "timm", "nvidia.dali", "pydantic", "simplejpeg", "onnx", "pytest")
    context.note(
        torch=torch.__version__,
        torch_cuda=torch.version.cuda,
        missing=[name for name in wanted if not present(name)],
        cores=len(os.sched_getaffinity(0)),
        python=sys.version.split()[0],
    )
    if context.device == "cuda":
        need_card()
        card = torch.cuda.get_device_properties(0)
        context.note(card=card.name, capability=[card.major, card.minor], memory=card.total_memory)
    from hemafast.doctor import diagnose, report

    context.note(doctor=report(diagnose(context.data.parent, context.out, context.device, offline=True)))  # type: ignore[arg-type]


def tests(context: Context) -> None:
    """The quick tests of tests/gpu, one by one as they end."""
    need("pytest")
    import pytest

    class Notes:
        """Counts outcomes."""

        def __init__(self) -> None:
            self.counts, self.said = {"passed": 0, "failed": 0, "skipped": 0}, dict[str, str]()

        def pytest_runtest_logreport(self, report: Any) -> None:
            """Note the outcome of a test; of one that passed, only its call."""
            if report.when == "call" or not report.passed:
                self.counts[report.outcome] += 1
            if report.failed:
                self.said[report.nodeid] = str(report.longrepr).strip().splitlines()[-1]
            context.note(**self.counts, failures=self.said)

    notes = Notes()
    asked = ["-q", "tests/gpu", "-m", "gpu and not slow", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    code = pytest.main(asked, plugins=[notes])
    if not notes.counts["passed"] and not notes.counts["failed"]:
        raise SkippedError(f"no test ran: {notes.counts['skipped']} were skipped")
    if code:
        raise SystemExit(int(code))


def train_fast(context: Context) -> None:
    """One training with the preset `gpu_fast`, to its score."""
    smaller = {"model": "test_efficientnet", "image_size": 32, "epochs": 1, "pretrained": "no"} if context.tiny else {}
    _train(context, preset="gpu_fast", compile="off", **smaller)


def train_b0(context: Context) -> None:
    """One training of EfficientNet-B0 at 224 px for 25 seconds, to its score."""
    asked = {"model": "efficientnet_b0", "image_size": 224, "batch_size": 256, "lr": 2e-3, "epochs": 60}
    if context.tiny:
        asked |= {"model": "test_efficientnet", "image_size": 32, "batch_size": 8}
    _train(context, preset="b0", compile="off", schedule="onecycle", time_budget=4 if context.tiny else 25, **asked)


def _train(context: Context, **settings: Any) -> None:
    need_data(context)
    import hemafast as hf

    started = time.monotonic()
    context.note(settings=settings)
    trained = hf.train(context.data, output=context.out / "runs" / context.name, device=context.device, **settings)
    context.note(
        seconds=time.monotonic() - started,
        run=str(trained.folder),
        pooled=trained.metrics["pooled"],
        history=trained.history.to_dict(orient="records"),
        machine=read(trained.folder / "machine.json"),
    )


def bench(context: Context) -> None:
    """Every station of `hemafast bench` at a batch of 256."""
    need_data(context)
    need("nvidia.dali")
    from hemafast.bench.run import run_bench

    context.note(bench=run_bench(context.bench(), rounds=_ROUNDS, seconds=0.1 if context.tiny else 0.3, peers=False))


def profile(context: Context) -> None:
    """Where a training step spends its time: at a large and a small batch, and the small one kernel by kernel."""
    need_data(context)
    large, small = (8, 4) if context.tiny else (256, 32)
    asked = {
        f"batch {large}": (large, "auto"),
        f"batch {small}": (small, "auto"),
        f"batch {small}, eager": (small, "off"),
    }

    def traced(name: str) -> dict[str, Any]:
        batch, capture = asked[name]
        return trace(context.bench(batch_size=batch, capture=capture))

    several(context, list(asked), traced)


def trace(measured: Bench) -> dict[str, Any]:
    """The most expensive kernels of some training steps, idle share of the device, launches a step."""
    import torch
    from torch.profiler import ProfilerActivity

    from hemafast.bench.training import step

    on_gpu = measured.machine().device == "cuda"
    steps = step(measured)
    list(islice(steps, 8))
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * on_gpu)]) as profiler:
        list(islice(steps, _TRACED))
        if on_gpu:
            torch.cuda.synchronize()
    return timeline(list(profiler.events() or ()), on_gpu=on_gpu, steps=_TRACED)


def timeline(events: Sequence[Any], *, on_gpu: bool, steps: int) -> dict[str, Any]:
    """Kernels by time, idle share and launches a step, from the events of torch's profiler.

    On a CPU, operators of torch by their own time stand for kernels, and there is no idle share.
    """
    kernels = [event for event in events if _is_kernel(event, on_gpu)]
    if not kernels:
        raise SkippedError("the profiler saw no kernel")
    by_name: dict[str, list[float]] = {}
    for event in kernels:
        by_name.setdefault(event.name, []).append(_length(event) if on_gpu else event.self_cpu_time_total)
    busiest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:_KERNELS]
    launches = [event for event in events if event.name.startswith(_LAUNCHES)] if on_gpu else kernels
    return {
        "idle_share": idle_share(kernels) if on_gpu else None,
        "launches_a_step": len(launches) / steps,
        "kernels_a_step": len(kernels) / steps,
        "kernels": [
            {"name": name, "milliseconds_a_step": sum(times) / 1000 / steps, "calls_a_step": len(times) / steps}
            for name, times in busiest
        ],
    }


def _is_kernel(event: Any, on_gpu: bool) -> bool:
    if on_gpu:
        return bool(event.device_type.name == "CUDA" and not event.name.startswith("ProfilerStep"))
    return bool(event.name.startswith("aten::"))


def _length(event: Any) -> float:
    return float(event.time_range.end - event.time_range.start)


def idle_share(kernels: Sequence[Any]) -> float:
    """Share of the time from the first to the last kernel in which none ran."""
    spans = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    return float(1 - covered(spans) / (max(end for _, end in spans) - spans[0][0]))


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length that sorted intervals cover; what overlaps counts once."""
    total, reached = 0.0, float("-inf")
    for begin, end in spans:
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def compile_modes(context: Context) -> None:
    """The training step eager and compiled, launched kernel by kernel and as one CUDA graph."""
    need_data(context)
    from hemafast.bench.training import step

    several(context, list(_MODES), lambda mode: measured(step, context.bench(**_MODES[mode])))


def batch_sweep(context: Context) -> None:
    """Loader and step together at growing batches: images/s and peak memory. The two networks of the goals."""
    need_data(context)
    from hemafast.bench.training import end_to_end

    sizes = (4, 8) if context.tiny else _BATCHES
    asked = {f"efficientnet_b0, {size}": ("efficientnet_b0", size) for size in sizes}
    asked |= {f"resnet18, {sizes[-1]}": ("resnet18", sizes[-1])}

    def measure_one(name: str) -> dict[str, Any]:
        network, size = asked[name]
        return measured(end_to_end, context.bench(network, batch_size=size))

    several(context, list(asked), measure_one)


def inputs(context: Context) -> None:
    """Loader and step together from squares on the device, and from squares and files through DALI."""
    need_data(context)
    need("nvidia.dali")
    from hemafast.bench.training import end_to_end

    names = ("resident", "packed", "files")
    several(context, names, lambda source: measured(end_to_end, context.bench(input=source)))


def decode_parity(context: Context) -> None:
    """Images decoded on the device beside the same images decoded on the CPU, and what that does to a score."""
    need_data(context)
    need("nvidia.dali")
    from hemafast.data.dataset import open_dataset

    paths = [Path(path) for path in open_dataset(context.data).samples("all").paths]
    for kind, endings, most in (("jpeg", (".jpg", ".jpeg"), _JPEGS), ("tiff", (".tif", ".tiff"), _TIFFS)):
        some = [path for path in paths if path.suffix.lower() in endings][:most]
        facts = differences(some, context.device) if some else {"skipped": "the data set has no such file"}
        context.note(**{kind: facts})
    context.note(score=score_of_both(context))


def differences(paths: Sequence[Path], device: str) -> dict[str, Any]:
    """How many levels of 0 to 255 the pixels of both decoders are apart."""
    import numpy as np

    levels = np.zeros(256, np.int64)
    for start in range(0, len(paths), _DECODED_AT_ONCE):
        some = paths[start : start + _DECODED_AT_ONCE]
        for ours, theirs in zip(decoded(some, device), decoded(some, "cpu"), strict=True):
            levels += np.bincount(np.abs(ours.astype(np.int16) - theirs).ravel(), minlength=256)
    share = levels / levels.sum()
    beyond = np.flatnonzero(levels)
    return {
        "images": len(paths),
        "equal_share": float(share[0]),
        "mean_levels": float((share * np.arange(256)).sum()),
        "largest_levels": int(beyond[-1]),
        "share_by_levels": [float(one) for one in share[:16]],
    }


def decoded(paths: Sequence[Path], device: str) -> list[npt.NDArray[np.uint8]]:
    """Pixels of images, decoded by DALI on "cpu" or "cuda"."""
    import numpy as np
    from nvidia.dali import Pipeline, fn

    from hemafast.data.graph import current_device
    from hemafast.preparation.pixels import decode_image

    where = "gpu" if device == "cuda" else "cpu"
    encoded = [np.frombuffer(path.read_bytes(), np.uint8) for path in paths]
    with Pipeline(len(paths), 2, device_id=current_device(where)) as pipeline:
        pipeline.set_outputs(decode_image(fn.external_source(source=[encoded], batch=True), where))
    (pixels,) = pipeline.run()
    on_host = pixels.as_cpu()
    return [np.array(on_host[index]) for index in range(len(paths))]


def score_of_both(context: Context) -> dict[str, Any]:
    """Macro-F1 of the model of train_fast on validation files, decoded on the CPU and on the device."""
    import numpy as np
    from sklearn.metrics import f1_score

    cpu, device = (_answers(context, where) for where in ("cpu", context.device))
    labels = cpu[1]
    return {
        "images": len(labels),
        "macro_f1_cpu": float(f1_score(labels, cpu[0].argmax(1), average="macro")),
        "macro_f1_device": float(f1_score(labels, device[0].argmax(1), average="macro")),
        "changed_classes": int((cpu[0].argmax(1) != device[0].argmax(1)).sum()),
        "largest_difference_of_a_probability": float(np.abs(cpu[0] - device[0]).max()),
    }


def _answers(context: Context, decoder: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Probabilities and labels of the validation images; the network always runs on the device asked for."""
    import numpy as np
    import torch

    from hemafast.data.dataset import open_dataset
    from hemafast.engine.checkpoint import load_best, model_file
    from hemafast.engine.learner import build_eval_step
    from hemafast.engine.machine import choose_machine
    from hemafast.engine.step import Totals

    run = Path(read(context.out / "train_fast.json")["result"]["run"])
    model, card = load_best(model_file(run))
    where = choose_machine(device=context.device, amp="off", compiled="off")  # type: ignore[arg-type]
    step = build_eval_step(model.eval(), where)
    loader = open_dataset(context.data).loader("val", size=card.image_size, device=decoder, source="files")
    found, labels = [], []
    for batch in loader.epoch():
        there = replace(batch, images=batch.images.to(where.device), labels=batch.labels.to(where.device))
        found.append(step(there, Totals(len(card.classes), where.device)).cpu())
        labels.append(batch.labels.cpu())
    return np.asarray(torch.cat(found)), np.asarray(torch.cat(labels))


def one_rank(context: Context) -> None:
    """The command under torchrun with one process: all of DistributedDataParallel but the exchange."""
    need_data(context)
    smaller = ["--model", "test_efficientnet", "--image-size", "32", "--pretrained", "no"] if context.tiny else []
    where = ["--data", str(context.data), "--output", str(context.out / "runs" / context.name)]
    train = ["train", "--preset", "fast", "--epochs", "2", "--compile", "off", "--device", context.device]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command = [*torchrun, "-m", "hemafast", *train, *where, *smaller]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    context.note(seconds=time.monotonic() - started, code=done.returncode, said=(done.stdout + done.stderr)[-3000:])
    if done.returncode:
        raise SystemExit(1)


def export(context: Context) -> None:
    """The model of train_fast as torch-export and, with its packages, as ONNX."""
    from hemafast.deploy.export import export_run

    run = Path(read(context.out / "train_fast.json")["result"]["run"])
    formats = ["torch-export", *(["onnx"] if present("onnx") and present("onnxruntime") else [])]

    def exported(kind: str) -> dict[str, Any]:
        return export_run(run, context.out / "export" / kind, format=kind).to_plain()  # type: ignore[arg-type]

    several(context, formats, exported)


def several(context: Context, names: Sequence[str], work: Callable[[str], dict[str, Any]]) -> None:
    """Do each of several measurements, even if another fails. Raises SystemExit at the end if one did."""
    failed = False
    for name in names:
        try:
            facts = work(name)
        except SkippedError:
            raise
        except Exception as error:  # anything may go wrong on a machine that is new
            facts, failed = {"failed": f"{type(error).__name__}: {error}"}, True
        context.note(**{name: facts})
        release()
    if failed:
        raise SystemExit(1)


def measured(make: Callable[[Bench], Station], asked: Bench) -> dict[str, Any]:
    """A station of the bench alone: its rate, step, compile seconds and memory."""
    from hemafast.bench.run import summary
    from hemafast.bench.worker import measure

    station, seconds = make(asked), 0.05 if asked.settings.image_size < 64 else _SECONDS
    warm_up, *rounds = (measure(station, seconds, drain=True) for _ in range(1 + _ROUNDS))
    found = summary(warm_up, rounds, "images")
    found.pop("rounds")
    return found


def release() -> None:
    """Give back what the last measurement kept on the device."""
    import torch

    from hemafast.bench.settings import resident_squares
    from hemafast.bench.training import ready_batches

    ready_batches.cache_clear()
    resident_squares.cache_clear()
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def present(name: str) -> bool:
    """Whether a module can be found."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def need(name: str) -> None:
    """Raises SkippedError if a module is missing."""
    if not present(name):
        raise SkippedError(f"needs {name}, which is not installed")


def need_card() -> None:
    """Raises SkippedError without a CUDA device."""
    import torch

    if not torch.cuda.is_available():
        raise SkippedError("needs a CUDA device, and torch finds none")


def need_data(context: Context) -> None:
    """Raises SkippedError without a prepared data set."""
    if not (context.data / "dataset.json").is_file():
        raise SkippedError(f"needs a prepared data set, and {context.data} is none")


STEPS: dict[str, Callable[[Context], None]] = {
    work.__name__: work
    for work in (
        machine,
        tests,
        train_fast,
        train_b0,
        bench,
        profile,
        compile_modes,
        batch_sweep,
        inputs,
        decode_parity,
        one_rank,
        export,
    )
}


def main(
    name: Annotated[str, typer.Argument(help="Name of the step.")],
    data: Data,
    out: Annotated[Path, typer.Option()],
    device: DeviceName = "cuda",
    tiny: Annotated[bool, typer.Option("--tiny")] = False,
) -> None:
    """Run one step."""
    context = Context(name, data, out, device, tiny)
    try:
        if device == "cuda" and name != "machine":  # which first says what there is
            need_card()
        STEPS[name](context)
    except SkippedError as lacking:
        reason = str(lacking)
    except ModuleNotFoundError as missing:  # on a machine without our packages
        reason = f"needs {missing.name}, which is not installed"
    else:
        return
    context.note(skipped=reason)
    raise typer.Exit(SKIPPED_CODE)


if __name__ == "__main__":
    typer.run(main)
