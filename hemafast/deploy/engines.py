"""Programs that run the int8 graph of a run in place of its network, and the choice of the fastest here."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import metadata as packages
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hemafast.deploy import graph_trial
from hemafast.deploy.choices import Engine
from hemafast.deploy.formats import FEATURES, INPUT, INT8, KINDS, card_of, laid_out, require_onnx
from hemafast.engine.answers import Answers
from hemafast.engine.checkpoint import ModelCard
from hemafast.engine.machine import Choice, Machine
from hemafast.errors import HemafastError, require
from hemafast.reading import parse_json
from hemafast.regular import read_regular

Quick = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From uint8 (n, 3, height, width) to logits (n, classes) and features (n, d), float32."""
Run = Callable[[npt.NDArray[np.uint8]], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""The same on arrays in the layout of a graph."""
Torch = Callable[[Tensor], Any]

TORCH = "torch"
EXPORT = "export"
"""The folder within a run that exports are written into."""
MOST_LOST = 0.005
"""Macro-F1 on the validation images that an int8 graph may lose: at export, and when it is used, as it may come from
elsewhere."""
_BATCH, _ROUNDS, _SECONDS = 64, 5, 20.0
"""Images, rounds and seconds of a trial at most. A round that has begun is waited for."""

logger = logging.getLogger("hemafast")


def open_onnxruntime(content: bytes) -> Run:
    """A graph in ONNX Runtime on the CPU. Raises HemafastError if onnxruntime is not installed."""
    require_onnx("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # decoders need the cores meanwhile
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [session.get_outputs()[0].name, FEATURES]
    return lambda pixels: tuple(session.run(names, {INPUT: pixels}))


def open_openvino(content: bytes) -> Run:
    """A graph in OpenVINO on the CPU. Raises HemafastError if openvino is not installed."""
    require_openvino()
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = core.compile_model(core.read_model(content, b""), "CPU", options)  # not bf16 where int8 is not
    request = model.create_infer_request()
    first, features = model.output(0), model.output(FEATURES)

    def run(pixels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        found = request.infer({INPUT: pixels})
        return found[first].copy(), found[features].copy()

    return run


def require_openvino() -> None:
    """Import openvino. It would send usage data to its maker when it is imported, so that its sender is kept away."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # then it takes a stub of its own
    require("openvino", "openvino")


OPENERS: dict[str, Callable[[bytes], Run]] = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}


def available(engine: str) -> bool:
    """Whether the package of an engine is installed."""
    try:
        return importlib.util.find_spec(engine) is not None
    except ValueError:  # it is kept away
        return False


def saturates() -> bool:
    """Whether this processor may cut off sums of products of int8: x86 adds them in 16 bits where it has no VNNI."""
    has = torch.cpu.get_capabilities()
    return has["architecture"] == "x86_64" and not (has.get("avx512_vnni") or has.get("avx_vnni"))


def choose_engine(
    file: Path, card: ModelCard, network: Torch, machine: Machine, asked: Engine
) -> tuple[str, Quick | None]:
    """What runs a model: its name, and the function unless it is torch.

    Args:
        file: of the model; the graph lies in the folder EXPORT beside it.
        card: of the model.
        network: the model in torch.
        machine: where torch runs it.
        asked: an engine, or "auto" for the fastest of those that lost no score at the export.

    Raises:
        HemafastError: an engine is asked for that cannot run this model.
    """
    graph = file.parent / EXPORT / KINDS["onnx-int8"].file
    if asked == TORCH or (asked == "auto" and (machine.device != "cpu" or not graph.is_file())):
        return TORCH, None
    try:
        return _choose(graph, file, card, network, machine, asked)
    except HemafastError as error:
        if asked != "auto":
            raise
        logger.warning("torch predicts: %s", error)
        return TORCH, None


def _choose(
    graph: Path, file: Path, card: ModelCard, network: Torch, machine: Machine, asked: Engine
) -> tuple[str, Quick | None]:
    if machine.device != "cpu":
        raise HemafastError(f"--engine {asked} runs on a CPU, not on {machine.device}.", "Leave --engine at auto.")
    content, metadata = _opened(graph)
    said = _measured(graph, metadata, file, card)
    if saturates() and not said.get("seven_bits"):
        problem = f"{graph} was made on a processor with VNNI. This one has none, and its sums may overflow."
        raise HemafastError(problem, "Export it again on this machine, or use --engine torch.")
    good = [name for name, lost in said["lost"].items() if name in OPENERS and lost <= MOST_LOST]
    if asked != "auto" and asked not in good:
        problem = f"{graph} was not measured in {asked}, or lost more than {MOST_LOST} of macro-F1 there."
        raise HemafastError(problem, "Leave --engine at auto, or export it again where the package is installed.")
    names = [name for name in good if available(name)] if asked == "auto" else [asked]

    @cache
    def opened(name: str) -> Quick:
        if name != "onnxruntime":  # by which its metadata was read
            _refuse_greedy(graph, name)
        return _on_tensors(OPENERS[name](content), metadata.get("layout"))

    if asked != "auto":
        choice = Choice("engine", asked, "as asked for")
    else:
        choice = _remembered(names, card, machine, lambda: fastest({TORCH: network, **_some(names, opened)}, card))
    lost = f"; int8 lost {said['lost'][choice.value]:.4f} of macro-F1 at export" if choice.value in names else ""
    logger.info("engine %s: %s%s", choice.value, choice.reason, lost)
    return choice.value, opened(choice.value) if choice.value in names else None


def _some(names: Sequence[str], opened: Callable[[str], Quick]) -> dict[str, Quick]:
    """Those of the engines that can open the graph. Logs a warning for the others."""
    found = {}
    for name in names:
        try:
            found[name] = opened(name)
        except HemafastError as error:
            logger.warning("%s is not tried: %s", name, error)
    return found


def _remembered(
    names: Sequence[str], card: ModelCard, machine: Machine, find: Callable[[], tuple[Choice, float]]
) -> Choice:
    """The fastest of torch and these engines, tried once for a network on this machine."""
    versions = [f"{name} {packages.version(name)}" for name in names]
    network = [card.backbone, f"{card.image_size} px", f"turns {card.quarter_turns}"]
    return Answers(machine, [*versions, *network]).get("engine", find)


def fastest(
    runs: Mapping[str, Callable[[Tensor], Any]], card: ModelCard, clock: Callable[[], float] = time.perf_counter
) -> tuple[Choice, float]:
    """The fastest of several functions on a batch of noise, and the spread of its rounds.

    They take turns, and medians are compared. The spread is the range as a share of the median, the largest of all.
    """
    logger.info("trying %s, for at most %.0f s", " and ".join(runs), _SECONDS)
    rates, spread = rates_of(runs, card.image_size, clock, most=_SECONDS)
    tried = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    reason = f"the fastest in a trial; images/s: {tried}; rounds differ by {spread:.0%} at most"
    return Choice("engine", max(rates, key=lambda name: rates[name]), reason), spread


def rates_of(
    runs: Mapping[str, Callable[[Tensor], Any]],
    image_size: int,
    clock: Callable[[], float] = time.perf_counter,
    device: str = "cpu",
    *,
    most: float = math.inf,
) -> tuple[dict[str, float], float]:
    """Images per second of the clock of each of several functions on a batch of noise, and the spread as `fastest`.

    After `most` seconds of the clock, no further round begins. The first one warms up, and counts only if it is alone.
    """
    draw = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (_BATCH, 3, image_size, image_size), dtype=torch.uint8, generator=draw)
    images = noise.to(device).contiguous(memory_format=torch.channels_last)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    until = clock() + most
    for number in range(1 + _ROUNDS):
        if number and clock() >= until:
            break
        for name, run in runs.items():
            started = clock()
            run(images)
            seconds[name].append(clock() - started)
    seconds = {name: times[1:] or times for name, times in seconds.items()}
    rates = {name: _BATCH / median(times) for name, times in seconds.items()}
    return rates, max((max(times) - min(times)) / median(times) for times in seconds.values())


def _opened(graph: Path) -> tuple[bytes, dict[str, str]]:
    """Content and metadata of a graph of unknown origin."""
    if not graph.is_file():
        run = graph.parent.parent
        raise HemafastError(f"There is no {graph}.", f"Run `hemafast export {run} --format onnx-int8`.")
    require_onnx("onnxruntime")
    _refuse_greedy(graph, "onnxruntime")  # its metadata is read by it, whatever runs it
    content = read_regular(graph)
    return content, KINDS["onnx-int8"].load(content).metadata


def _refuse_greedy(graph: Path, engine: str) -> None:
    """Raise HemafastError for a graph that an engine cannot run in a process of its own."""
    if why := graph_trial.why_not(graph, engine):
        raise HemafastError(f"{graph} cannot be loaded by {engine} ({why}).", "Export it again, or use --engine torch.")


def _measured(graph: Path, metadata: dict[str, str], file: Path, card: ModelCard) -> dict[str, Any]:
    """What was measured at the export. Raises HemafastError unless it was made of these weights."""
    try:
        said: dict[str, Any] = parse_json(metadata[INT8])
        lost = {str(name): float(value) for name, value in said["lost"].items()}
        weights, classes = said["weights"], card_of(metadata).classes
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HemafastError(f"{graph} does not say what was measured ({error}).", "Export it again.") from error
    if weights != hashlib.sha256(read_regular(file)).hexdigest() or classes != card.classes:
        raise HemafastError(f"{graph} was made of other weights than {file}.", "Export it again.")
    return {**said, "lost": lost}


def _on_tensors(run: Run, layout: str | None) -> Quick:
    def quick(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = run(laid_out(images, layout).numpy())
        return torch.from_numpy(logits), torch.from_numpy(features)

    return quick
