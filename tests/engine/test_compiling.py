"""Compiled steps: the numbers of eager ones, one compilation, a cache that is used, and no silence."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from steps import CLASSES, CPU, batch_of
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit
from torch._dynamo.utils import counters

from hemafast.engine.compiling import CACHE_VARIABLE, Compiled, Compiler, keep_cache_in, options_of
from hemafast.engine.optimizer import build_optimizer
from hemafast.engine.step import EvalStep, Totals, TrainStep
from hemafast.model import Classifier
from hemafast.objective import build_loss

SIZE = 8


def tiny_network() -> Classifier:
    """What a step has to get right and little to compile: convolution, batch norm, pooling, a classifier."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    backbone = nn.Sequential(*layers, nn.Linear(8, CLASSES))
    return Classifier(backbone, (0.5,) * 3, (0.25,) * 3).to(memory_format=torch.channels_last)


def losses_of(compiler: Compiler) -> tuple[list[float], float]:
    """Losses of five training steps, the last over a shorter batch, and of an evaluation step after them."""
    model, losses = tiny_network(), []
    loss = build_loss(np.arange(1, CLASSES + 1), "weighted", smoothing=0.1)
    step = TrainStep(model, loss, build_optimizer(model, weight_decay=0.01), CPU, compiler, clip_grad=1.0)
    for number, images in enumerate((SIZE, SIZE, SIZE, SIZE, SIZE - 3)):
        totals = Totals(CLASSES, "cpu")
        step(batch_of(images, number), 1e-2, totals, step=number)
        losses.append(totals.read()[0])
    totals = Totals(CLASSES, "cpu")
    EvalStep(model.eval(), loss, CPU, compiler)(batch_of(SIZE), totals)
    return losses, totals.read()[0]


def report() -> None:
    """What a process of its own finds, as JSON."""
    torch.set_num_threads(1)
    eager = losses_of(Compiler(enabled=False))
    compiler = Compiler(enabled=True, batch_size=SIZE)
    found = {
        "eager": eager,
        "compiled": losses_of(compiler),
        "compilations": [dataclasses.asdict(one) for one in compiler.compiled],
        "recompiles": compiler.recompiles,
        "frames": counters["frames"]["ok"],
        "misses": counters["inductor"]["fxgraph_cache_miss"],
        "hits": counters["inductor"]["fxgraph_cache_hit"],
    }
    print(json.dumps(found))


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Of two processes, one after the other, with the same cache."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no g++ here, which compiling for a CPU needs")
    environment = {**os.environ, CACHE_VARIABLE: str(tmp_path_factory.mktemp("cache"))}

    def run():
        command = [sys.executable, "-W", "ignore", __file__]
        done = subprocess.run(
            command, env=environment, cwd=Path(__file__).parent, text=True, capture_output=True, check=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    return run(), run()


@pytest.mark.nightly
def test_compiled_steps_have_the_losses_of_eager_ones(reports):
    for found in reports:
        (eager, eager_evaluation), (compiled, compiled_evaluation) = found["eager"], found["compiled"]
        assert compiled == pytest.approx(eager, rel=1e-4)
        assert compiled_evaluation == pytest.approx(eager_evaluation, rel=1e-4)
        assert len(set(eager)) == len(eager)


@pytest.mark.nightly
def test_each_step_is_compiled_once_and_a_shorter_batch_is_not(reports):
    for found in reports:
        assert [one["name"] for one in found["compilations"]] == ["training", "evaluation"]
        assert found["recompiles"] == 0
        assert found["frames"] == 2


@pytest.mark.nightly
def test_a_second_process_takes_all_of_it_from_the_cache(reports):
    cold, warm = reports
    assert [one["cached"] for one in cold["compilations"]] == [False, False]
    assert [one["cached"] for one in warm["compilations"]] == [True, True]
    assert (cold["misses"], cold["hits"]) == (3, 0)  # forward, backward, evaluation
    assert (warm["misses"], warm["hits"]) == (0, 3)


# What needs no compiler


@pytest.fixture
def by_dynamo_alone(monkeypatch):
    """Graphs are traced and guarded as ever, and run as they are: no minutes, no g++."""
    torch._dynamo.reset()
    counters.clear()
    plain = torch.compile
    asked = []

    def traced(function, *, dynamic, options):
        asked.append((dynamic, options))
        return plain(function, dynamic=dynamic, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    yield asked
    torch._dynamo.reset()


def forward_by(scale):
    """A function of a batch that has to be compiled again whenever scale[0] changes."""

    def forward(images, targets):
        return images.float().mean() * scale[0] + targets.sum(), images

    return forward


def pixels(images):
    return torch.ones(images, 3, 4, 4, dtype=torch.uint8), torch.zeros(images, dtype=torch.int64)


def test_a_compiler_that_is_off_leaves_a_function_alone(by_dynamo_alone):
    forward = forward_by([1])
    assert Compiler(enabled=False).compile(forward, "training") is forward
    assert by_dynamo_alone == []


def test_batches_of_another_size_run_as_they_are_and_cause_no_compilation(by_dynamo_alone):
    compiler = Compiler(enabled=True, batch_size=SIZE)
    run = compiler.compile(forward_by([2]), "training")
    run(*pixels(3))
    assert counters["frames"]["ok"] == 0
    assert compiler.compiled == []
    for images in (SIZE, 5, SIZE, 1, SIZE):
        assert run(*pixels(images))[0].item() == 2
    assert counters["frames"]["ok"] == 1
    assert [one.name for one in compiler.compiled] == ["training"]
    assert compiler.recompiles == 0


def test_compiling_again_is_counted_and_said(by_dynamo_alone, caplog):
    scale, compiler = [1], Compiler(enabled=True, batch_size=SIZE)
    run = compiler.compile(forward_by(scale), "training")
    for number, (scale[0], recompiles) in enumerate([(1, 0), (1, 0), (2, 1), (2, 1), (3, 2), (1, 2)]):
        assert run(*pixels(SIZE))[0].item() == scale[0], number
        assert compiler.recompiles == recompiles
    assert caplog.text.count("was compiled again") == 2
    assert len(compiler.compiled) == 1


def test_two_functions_are_two_compilations_and_no_repetition(by_dynamo_alone):
    compiler = Compiler(enabled=True, batch_size=SIZE)
    for name in ("training", "evaluation"):
        compiler.compile(forward_by([1]), name)(*pixels(SIZE))
    assert [one.name for one in compiler.compiled] == ["training", "evaluation"]
    assert compiler.recompiles == 0


def test_giving_up_compiling_is_an_error(by_dynamo_alone):
    scale, compiler = [0], Compiler(enabled=True, batch_size=SIZE)
    run = compiler.compile(forward_by(scale), "training")
    with torch._dynamo.config.patch(recompile_limit=2):
        run(*pixels(SIZE))
        scale[0] = 1
        run(*pixels(SIZE))
        scale[0] = 2
        with pytest.raises(FailOnRecompileLimitHit):
            run(*pixels(SIZE))


@pytest.mark.parametrize(
    ("mode", "option"),
    [
        ("default", None),
        ("reduce-overhead", "triton.cudagraphs"),
        ("max-autotune", "max_autotune"),
        ("max-autotune-no-cudagraphs", "max_autotune"),
    ],
)
def test_a_mode_goes_with_static_shapes_and_a_forced_layout(by_dynamo_alone, mode, option):
    Compiler(enabled=True, mode=mode, batch_size=SIZE).compile(forward_by([1]), "training")
    assert by_dynamo_alone == [(False, options_of(mode))]
    options = options_of(mode)
    assert options["force_layout_optimization"]
    assert option is None or options[option]
    assert options.get("triton.cudagraphs", False) == (mode in ("reduce-overhead", "max-autotune"))


def test_the_log_has_the_seconds_and_whether_they_were_cold():
    assert str(Compiled("training", 41.64, cached=False)).startswith("compiled the training step in 41.6 s (cold")
    assert "warm" in str(Compiled("evaluation", 2.0, cached=True))


def test_the_log_names_the_folder_of_the_cache(by_dynamo_alone, monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO", "hemafast")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    compiler = Compiler(enabled=True, batch_size=SIZE)
    compiler.compile(forward_by([1]), "training")(*pixels(SIZE))
    assert f"from {tmp_path}" in caplog.text


def test_it_is_said_before_each_size_is_compiled(by_dynamo_alone, caplog):
    caplog.set_level("INFO", "hemafast")
    run = Compiler(enabled=True, batch_size=SIZE).compile(forward_by([1]), "training")
    for _ in range(2):
        run(*pixels(SIZE))
    before, after = caplog.messages
    assert before.startswith("compiling the training step at ")
    assert after.startswith("compiled the training step in ")


def test_seconds_of_compiling_are_told_once_and_by_step(by_dynamo_alone):
    compiler = Compiler(enabled=True, batch_size=SIZE)
    run = compiler.compile(forward_by([1]), "training")
    run(*pixels(SIZE))
    assert compiler.new_seconds("evaluation") == 0
    assert compiler.new_seconds("training") == compiler.compiled[0].seconds > 0
    run(*pixels(SIZE))
    assert compiler.new_seconds("training") == 0


# A backend that fails, as that of a card that Triton does not know


@pytest.fixture
def failing(monkeypatch):
    """The backend refuses every graph; returns how often it was asked."""
    torch._dynamo.reset()
    plain, asked = torch.compile, []

    def refuse(graph, inputs):
        asked.append(graph)
        raise RuntimeError("Found an old card, which is too old to be supported")

    monkeypatch.setattr(torch, "compile", lambda function, **_: plain(function, dynamic=False, backend=refuse))
    yield asked
    torch._dynamo.reset()


def test_a_step_that_may_fail_to_compile_runs_without_and_says_so_once(failing, caplog):
    compiler = Compiler(enabled=True, batch_size=SIZE, may_fail=True)
    run = compiler.compile(forward_by([2]), "training")
    assert [run(*pixels(SIZE))[0].item() for _ in range(3)] == [2, 2, 2]
    assert len(failing) == 1
    assert caplog.text.count("the training step cannot be compiled and runs without") == 1
    assert "too old to be supported" in caplog.text
    assert (compiler.compiled, compiler.recompiles) == ([], 0)


def test_a_step_that_must_be_compiled_and_cannot_is_an_error(failing):
    run = Compiler(enabled=True, batch_size=SIZE).compile(forward_by([2]), "training")
    with pytest.raises(BackendCompilerFailed, match="too old"):
        run(*pixels(SIZE))


def test_the_cache_is_beside_the_runs_unless_the_environment_names_a_place(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, "unset afterwards")
    monkeypatch.delenv(CACHE_VARIABLE)
    place = keep_cache_in(tmp_path / "runs")
    assert place.is_absolute()
    assert place.parent == tmp_path / "runs"
    assert os.environ[CACHE_VARIABLE] == str(place)
    assert keep_cache_in(tmp_path / "others") == place


if __name__ == "__main__":
    report()
