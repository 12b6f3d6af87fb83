"""The script of the first minutes on a card: order, limits, and results whatever happens. Its steps run on a CPU."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import gpu_day_one  # scripts beside the package, not parts of it
import gpu_steps
from gpu_day_one import STEPS, Step, run_step

NAMES = [step.name for step in STEPS]


def read(file):
    return json.loads(file.read_text())


def run(*arguments):
    """The script in this process."""
    return CliRunner().invoke(gpu_day_one.app, ["run", *map(str, arguments)])


@pytest.fixture
def day(monkeypatch, tmp_path):
    """`day(code_of_a, code_of_b, *arguments)`: a day of two steps that run Python code; `PART` is what they write."""

    def start(first, second, *arguments, limit=20, needs=()):
        codes = {"a": first, "b": second}
        steps = tuple(Step(name, limit, needs if name == "b" else ()) for name in codes)
        monkeypatch.setattr(gpu_day_one, "STEPS", steps)

        def spoken(step, command, out, *more):
            code = f"from pathlib import Path; PART = Path({str(out / step.name)!r} + '.part'); {codes[step.name]}"
            return run_step(step, [sys.executable, "-c", code], out, *more)

        monkeypatch.setattr(gpu_day_one, "run_step", spoken)
        return run("--data", tmp_path, "--out", tmp_path / "out", *arguments)

    return start


MEASURES = "PART.write_text('{\"rate\": 7}')"
FAILS = f"{MEASURES}; raise ValueError('the card fell out')"


# Order, limits, pieces


def test_every_step_is_there_in_the_order_of_its_value():
    assert list(gpu_steps.STEPS) == NAMES
    assert NAMES.index("tests") < NAMES.index("train_fast") < NAMES.index("bench") < NAMES.index("profile")
    assert all(NAMES.index(needed) < NAMES.index(step.name) for step in STEPS for needed in step.needs)


def test_all_of_it_takes_less_than_eight_minutes():
    assert sum(step.seconds for step in STEPS) <= gpu_day_one.WHOLE_SECONDS


@pytest.mark.parametrize("count", [4, 6])
def test_pieces_are_short_and_together_the_whole_in_order(count):
    groups = gpu_day_one.pieces(STEPS, count)
    assert len(groups) <= count
    assert [step for group in groups for step in group] == list(STEPS)
    assert all(sum(step.seconds for step in group) <= gpu_day_one.PIECE_SECONDS for group in groups)


def test_commands_are_shown_and_nothing_is_run(tmp_path):
    done = run("--dry-run", "--data", tmp_path / "My data", "--out", tmp_path / "out")
    lines = done.output.splitlines()
    assert [line.split()[4] for line in lines] == NAMES
    assert all(line.startswith(f"timeout {step.seconds} ") for line, step in zip(lines, STEPS, strict=True))
    assert not list(tmp_path.iterdir())
    alone = [run("--dry-run", "--piece", f"{number}/4").output.split("gpu_steps.py ")[1:] for number in range(1, 5)]
    assert [command.split()[0] for piece in alone for command in piece] == NAMES


@pytest.mark.parametrize("wrong", [("--piece", "5/4"), ("--piece", "0/4"), ("--piece", "x"), ("--only", "everything")])
def test_what_there_is_not_is_refused(wrong):
    done = run("--dry-run", *wrong)
    assert done.exit_code == 2


# Results, whatever happens


def test_a_step_that_fails_leaves_what_it_had_and_stops_no_other(day, tmp_path):
    done = day(FAILS, MEASURES)
    first, second = (read(tmp_path / "out" / f"{name}.json") for name in "ab")
    assert (first["state"], first["result"]) == ("failed", {"rate": 7})
    assert first["reason"] == "exit code 1: ValueError: the card fell out"
    assert (second["state"], second["result"], second["reason"]) == ("passed", {"rate": 7}, "")
    assert done.exit_code == 1


def test_a_step_that_takes_too_long_leaves_what_it_had_and_no_process(day, tmp_path):
    child = f"import subprocess, sys, time; subprocess.Popen(['sh', '-c', 'sleep 3; touch {tmp_path}/alive'])"
    started = time.monotonic()
    day(f"{MEASURES}; {child}; time.sleep(60)", MEASURES, "--patience", "0.1")
    assert time.monotonic() - started < 30
    first, second = (read(tmp_path / "out" / f"{name}.json") for name in "ab")
    assert (first["state"], first["result"]) == ("out of time", {"rate": 7})
    assert second["state"] == "passed"
    time.sleep(max(0.0, started + 4.5 - time.monotonic()))
    assert not (tmp_path / "alive").exists()


def test_what_is_lacking_is_skipped_with_the_reason_and_never_passes(day, tmp_path):
    done = day('PART.write_text(\'{"skipped": "needs a card"}\'); raise SystemExit(3)', MEASURES, needs=("a",))
    first, second = (read(tmp_path / "out" / f"{name}.json") for name in "ab")
    assert (first["state"], first["reason"]) == ("skipped", "needs a card")
    assert (second["state"], second["reason"]) == ("skipped", "needs the step a, which has not passed")
    assert done.exit_code == 0


def test_a_step_that_measures_nothing_does_not_pass(day, tmp_path):
    day("pass", MEASURES)
    assert read(tmp_path / "out/a.json")["state"] == "failed"


def test_what_has_passed_is_not_run_again_and_the_rest_is(day, tmp_path):
    day(MEASURES, FAILS)
    done = day(FAILS, MEASURES, "--skip-done")
    assert done.exit_code == 0
    assert [read(tmp_path / "out" / f"{name}.json")["state"] for name in "ab"] == ["passed", "passed"]


def test_nothing_of_an_earlier_call_is_taken_for_a_result(day, tmp_path):
    day(MEASURES, MEASURES)
    day("raise SystemExit(1)", MEASURES, "--only", "a")
    assert read(tmp_path / "out/a.json")["result"] == {}


def test_no_step_finds_what_another_has_compiled(tmp_path):
    first, second = (gpu_day_one.environment_of(Step(name, 1), tmp_path, [Path("carried")]) for name in "ab")
    for variable in ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        assert first[variable] != second[variable]
    assert first["PYTHONPATH"].split(":") == [str(gpu_day_one.ROOT), str(Path("carried").absolute())]


# The steps


def step(name, tmp_path, *more):
    command = ["--data", str(tmp_path / "data"), "--out", str(tmp_path), *more]
    app = gpu_day_one.typer.Typer()
    app.command()(gpu_steps.main)
    done = CliRunner().invoke(app, [name, *command])
    return done.exit_code, read(tmp_path / f"{name}.part")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a card")
def test_without_a_card_a_step_says_so(tmp_path):
    assert step("bench", tmp_path) == (3, {"skipped": "needs a CUDA device, and torch finds none"})


def test_without_data_a_step_says_so(tmp_path):
    code, found = step("train_b0", tmp_path, "--device", "cpu")
    assert code == 3
    assert found["skipped"] == f"needs a prepared data set, and {tmp_path / 'data'} is none"


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    def lacking(_):
        import no_such_package  # noqa: F401

    monkeypatch.setitem(gpu_steps.STEPS, "bench", lacking)
    assert step("bench", tmp_path, "--device", "cpu") == (
        3,
        {"skipped": "needs no_such_package, which is not installed"},
    )


@pytest.fixture
def context(prepared, tmp_path):
    return gpu_steps.Context("step", prepared.folder, tmp_path, "cpu", tiny=True)


def test_a_measurement_that_fails_stops_none_of_its_step(context):
    def work(name):
        if name == "64":
            raise torch.OutOfMemoryError("too large")
        return {"rate": int(name)}

    with pytest.raises(SystemExit):
        gpu_steps.several(context, ["32", "64", "128"], work)
    assert context.found == {"32": {"rate": 32}, "64": {"failed": "OutOfMemoryError: too large"}, "128": {"rate": 128}}
    assert read(context.out / "step.part") == context.found


def event(name, start, end, kind="CUDA", **more):
    return SimpleNamespace(
        name=name, time_range=SimpleNamespace(start=start, end=end), device_type=SimpleNamespace(name=kind), **more
    )


def test_a_timeline_has_the_dearest_kernels_the_launches_and_the_idle_share():
    kernels = [
        event("conv", 0, 400),
        event("norm", 300, 500),
        event("conv", 700, 1000),
        event("ProfilerStep#1", 0, 9999),
    ]
    host = [event("cudaLaunchKernel", 0, 1, "CPU")] * 6 + [event("cudaGraphLaunch", 0, 1, "CPU")] * 2
    found = gpu_steps.timeline([*kernels, *host, event("aten::mm", 0, 9, "CPU")], on_gpu=True, steps=2)
    assert found["idle_share"] == pytest.approx(0.2)  # of 1,000 us, 500 to 700
    assert (found["launches_a_step"], found["kernels_a_step"]) == (4, 1.5)
    assert found["kernels"] == [
        {"name": "conv", "milliseconds_a_step": 0.35, "calls_a_step": 1.0},
        {"name": "norm", "milliseconds_a_step": 0.1, "calls_a_step": 0.5},
    ]


def test_a_step_of_training_is_traced(context):
    found = gpu_steps.trace(context.bench(batch_size=4))
    assert any("convolution_backward" in kernel["name"] for kernel in found["kernels"])
    assert found["launches_a_step"] > 100


def test_decoders_are_compared_level_by_level(monkeypatch):
    import numpy as np

    pixels = {"cpu": np.array([[10, 10, 10, 200]], np.uint8), "cuda": np.array([[10, 11, 10, 195]], np.uint8)}
    monkeypatch.setattr(gpu_steps, "decoded", lambda paths, device: [pixels[device]] * len(paths))
    found = gpu_steps.differences([Path("a.jpg")] * 30, "cuda")
    assert (found["images"], found["equal_share"], found["largest_levels"]) == (30, 0.5, 5)
    assert found["mean_levels"] == pytest.approx(1.5)
    assert found["share_by_levels"][:6] == [0.5, 0.25, 0, 0, 0, 0.25]


def test_pixels_of_files_are_those_of_pillow(make_archive, tmp_path):
    import numpy as np
    from PIL import Image

    make_archive(tmp_path / "cells", {"basophil": 2}, kind="TIFF")
    paths = sorted((tmp_path / "cells").rglob("*.tiff"))
    for path, pixels in zip(paths, gpu_steps.decoded(paths, "cpu"), strict=True):
        assert np.array_equal(pixels, np.asarray(Image.open(path)))


def test_a_training_from_squares_on_a_gpu_needs_no_dali(prepared, tmp_path, monkeypatch):
    """From the first batch to the scores: on a CPU, on the way of a GPU, with imports of DALI that fail."""
    import hemafast as hf
    from hemafast.data import loader
    from hemafast.data.source import Resident

    def build(self, start):
        policy = self._stream.policy
        squares = self._source if isinstance(self._source, Resident) else Resident(self._samples, "cpu")
        batches = loader.place(self._stream.onwards(*start), self._samples, self._shape, policy)
        return loader.GatherFeed(squares.squares, batches, self._shape, policy)

    monkeypatch.setattr(loader.Loader, "_build", build)
    for name in ("nvidia.dali", "imagecodecs", *(name for name in sys.modules if name.startswith("nvidia.dali"))):
        monkeypatch.setitem(sys.modules, name, None)
    small = {"model": "test_resnet", "image_size": 32, "batch_size": 8, "epochs": 1, "pretrained": "no", "threads": 1}
    run = hf.train(prepared.folder, preset="fast", input="resident", device="cpu", output=tmp_path, **small)
    assert 0 <= run.metrics["pooled"]["macro_f1"] <= 1
