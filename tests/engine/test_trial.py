"""Trials of the training step: what they choose, that their answers are kept, and that a broken store is survived."""

import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from steps import CPU

from hemafast.config import TrainConfig
from hemafast.data.dataset import open_dataset
from hemafast.engine import trial
from hemafast.engine.answers import Answers, forget_answers
from hemafast.engine.compiling import CACHE_VARIABLE, Compiled
from hemafast.engine.distributed import World
from hemafast.engine.load import Load
from hemafast.engine.machine import Choice
from hemafast.engine.step import TrainStep
from hemafast.engine.trial import Limits, Trial, choose_batch_size, decide, most_images
from hemafast.errors import HemafastError

GIBI = 2**30
FACTS = {"processor": "A CPU", "cores": "2", "torch": "2", "timm": "1"}


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path) -> Path:
    """Where answers are kept. The machine is quiet."""
    monkeypatch.setattr(Load, "now", Load)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hemafast" / "trials.json"


class Timed:
    """Seconds of a step, from a function of the batch size; notes what is asked."""

    def __init__(self, seconds) -> None:
        self.seconds, self.asked = seconds, []

    def __call__(self, size):
        self.asked.append(size)
        return self.seconds(size)


def decided(config):
    return decide(config, open_dataset(config.data), World())


# The batch size on a CPU


@pytest.mark.parametrize(
    ("rates", "chosen", "tried"),
    [
        ({8: 10, 16: 20, 32: 30, 64: 40, 128: 50}, "128", 5),
        ({8: 10, 16: 20, 32: 30, 64: 29, 128: 28}, "32", 5),  # a little worse may still get better
        ({8: 10, 16: 20, 32: 17.9, 64: 99, 128: 99}, "16", 3),  # much worse, and nothing larger is tried
        ({8: 50, 16: 40, 32: 99, 64: 99, 128: 99}, "8", 2),
    ],
)
def test_a_cpu_takes_the_batch_size_with_the_most_images_a_second(rates, chosen, tried):
    seconds = Timed(lambda size: size / rates[size])
    choice = choose_batch_size(seconds)
    assert choice.value == chosen
    assert choice.name == "batch size"
    assert seconds.asked == [8, 16, 32, 64, 128][:tried]
    assert f"{chosen}: {rates[int(chosen)]:.1f}" in choice.reason


# The batch size on a GPU


class FakeGpu:
    """A GPU of 80 GiB. A step takes `mebi` MiB and a millisecond an image, and at least `least` seconds."""

    def __init__(self, monkeypatch, mebi: float, least: float = 0.0) -> None:
        self.bytes, self.least, self.peak, self.asked = mebi * 2**20, least, 0.0, []
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (80 * GIBI, 80 * GIBI))
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: self.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.forget)
        monkeypatch.setattr(torch.cuda, "empty_cache", self.empty)
        monkeypatch.setattr(trial.gc, "collect", lambda: 0)  # nothing is held here, and it takes a third of a second
        self.cached = 0.0

    def forget(self) -> None:
        self.peak = self.cached

    def empty(self) -> None:
        self.cached = 0.0

    def __call__(self, size):
        self.asked.append(size)
        self.cached += size * self.bytes  # torch keeps what is freed, and it is too small for the next size
        self.peak = self.cached
        if self.peak > 80 * GIBI:
            raise torch.OutOfMemoryError
        return max(size / 1000, self.least)


@pytest.mark.parametrize(
    ("mebi", "squares", "chosen"),
    [
        (50, 0, "1024"),  # 2048 images take more than there is
        (75, 0, "512"),  # 1024 fit, but take over nine tenths
        (50, 30, "512"),  # 1024 fit, but not beside the squares
        (9000, 0, "8"),
        (1, 0, "4096"),  # larger ones are not tried
    ],
)
def test_a_batch_fits_into_the_memory_of_a_gpu_beside_the_squares(monkeypatch, mebi, squares, chosen):
    gpu = FakeGpu(monkeypatch, mebi, least=100.0)  # the larger the faster
    choice = choose_batch_size(gpu, Limits(10**6, squares * GIBI))
    assert choice.value == chosen
    assert gpu.asked == [2**power for power in range(3, 3 + len(gpu.asked))]
    assert max(gpu.asked) <= 4096


@pytest.mark.parametrize(
    ("least", "most", "chosen"),
    [
        (0.128, 10**6, "128"),  # larger ones are no faster
        (0.132, 10**6, "128"),  # 3 % slower than the fastest
        (0.140, 10**6, "256"),  # 9 % slower
        (0.0, 10**6, "8"),
        (0.128, 64, "64"),  # the data bounds it
    ],
)
def test_a_gpu_takes_the_knee_of_its_throughput(monkeypatch, least, most, chosen):
    gpu = FakeGpu(monkeypatch, 1, least)
    choice = choose_batch_size(gpu, Limits(most))
    assert choice.value == chosen
    assert max(gpu.asked) <= most
    assert f"{chosen}: {int(chosen) / max(int(chosen) / 1000, least):,.0f}" in choice.reason


@pytest.mark.parametrize(
    ("images", "batches", "most"),
    [(26_000, 1, 1024), (26_000, 8, 128), (26_000, 64, 16), (2_300, 1, 64), (2_560, 1, 128), (47, 1, 8)],
)
def test_an_epoch_keeps_twenty_updates(images, batches, most):
    assert most_images(images, batches) == most


@pytest.mark.parametrize("mebi", [10_000, 9500])
def test_a_network_of_which_nothing_fits_is_refused(monkeypatch, mebi):
    with pytest.raises(HemafastError, match="Not even 8") as caught:
        choose_batch_size(FakeGpu(monkeypatch, mebi), Limits(10**6))
    assert "--model" in caught.value.remedy


@pytest.fixture
def on_a_card(monkeypatch):
    """The plan is for a card of 80 GiB that is not there; returns it."""
    card = dataclasses.replace(CPU, device="cuda", precision="bf16", compiled=True, facts=FACTS | {"gpu": "a card"})
    monkeypatch.setattr(trial, "machine_for", lambda *_: card)
    gpu = FakeGpu(monkeypatch, 1, 0.128)
    monkeypatch.setattr(Trial, "__call__", lambda _, size: gpu(size))
    return gpu


def test_on_a_card_the_data_bounds_the_batch_and_resident_squares_count(settings, on_a_card, monkeypatch):
    limits, choose = [], trial.choose_batch_size
    monkeypatch.setattr(
        trial, "choose_batch_size", lambda *asked, **more: limits.append(asked[1]) or choose(*asked, **more)
    )
    config, choices = decided(settings(batch_size="auto", input="auto"))
    dataset = open_dataset(config.data)
    assert limits == [Limits(8, sum(dataset.samples(split, 32).packed.nbytes for split in ("train", "val")))]
    assert config.batch_size == 8  # of 47 images
    assert [choice.name for choice in choices] == ["batch size"]
    config, _ = decided(settings(batch_size="auto", input="files"))
    assert limits[1:] == [Limits(8, 0)]


@pytest.mark.parametrize(
    ("budget", "growing", "compile"), [(599, (), "off"), (600, (), "auto"), (600, (32,), "off"), (1200, (32,), "auto")]
)
def test_a_budget_on_a_card_is_not_eaten_by_compiling(settings, on_a_card, budget, growing, compile):
    config, (choice,) = decided(settings(compile="auto", time_budget=budget, growing_from=growing, image_size=64))
    assert config.compile == compile
    assert (choice.name, choice.value) == ("torch.compile", "off" if compile == "off" else "on")
    assert "an assumption" in choice.reason


def test_the_seconds_of_the_last_run_with_the_same_cache_decide(settings, on_a_card, monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    asked = settings(compile="auto", time_budget=100)
    card = trial.machine_for(asked)
    trial.keep_compile_seconds(asked, card, [Compiled("training", 6.0, True), Compiled("evaluation", 3.0, True)])
    config, (choice,) = decided(asked)
    assert config.compile == "auto"
    assert "about 9 s (as in the last run)" in choice.reason
    assert decided(settings(compile="auto", time_budget=100))[0].compile == "off"  # another folder, another cache
    trial.keep_compile_seconds(asked, card, [Compiled("training", 60.0, False)])
    assert decided(asked)[0].compile == "off"


def test_a_run_without_a_budget_compiles_on_a_card_as_ever(settings, on_a_card):
    config, choices = decided(settings(compile="auto"))
    assert (config.compile, choices) == ("auto", ())


def test_other_errors_on_a_gpu_come_through(monkeypatch):
    FakeGpu(monkeypatch, 1)

    def broken(size):
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side"):
        choose_batch_size(broken, Limits(64))


# Answers


@pytest.fixture
def answers(settings):
    def make(**changes):
        facts = changes.pop("facts", FACTS)
        precision, processes = changes.pop("precision", "fp32"), changes.pop("processes", 1)
        return Answers.of_training(
            dataclasses.replace(CPU, facts=facts, precision=precision), settings(**changes), processes
        )

    return make


def found(*choice: str, spread: float = 0.0) -> tuple[Choice, float]:
    return Choice(*choice), spread


def never() -> tuple[Choice, float]:
    raise AssertionError("asked again")


def test_an_answer_is_found_once(answers, store):
    assert answers().kept("size") is None
    first = answers().get("size", lambda: found("size", "64", "the fastest"))
    assert (first.value, first.reason) == ("64", "the fastest")
    again = answers().get("size", never)
    assert (again.name, again.value) == ("size", "64")
    assert again.reason.startswith("the fastest (found before, in ")
    assert str(store) in again.reason


@pytest.mark.parametrize(
    "other",
    [
        {"facts": FACTS | {"processor": "Another"}},
        {"facts": FACTS | {"instructions": "AVX2"}},
        {"facts": FACTS | {"torch": "3"}},
        {"facts": FACTS | {"gpu": "a GPU"}},
        {"precision": "bf16"},
        {"model": "test_vit"},
        {"freeze_stages": 1},
        {"freeze_norm": True},
        {"ema": 0.9},
        {"compile": "on"},
        {"compile_mode": "max-autotune"},
        {"input": "files"},
        {"processes": 2},
        {"image_size": 64},
    ],
)
def test_an_answer_is_of_its_machine_and_network_alone(answers, other):
    answers().get("size", lambda: found("size", "64", "here"))
    assert answers(**other).get("size", lambda: found("size", "8", "there")).value == "8"
    assert answers().get("size", never).value == "64"  # and the other is kept beside it
    assert answers(**other).get("size", never).value == "8"


def test_an_answer_is_of_its_number_of_threads_alone(answers, monkeypatch):
    answers().get("size", lambda: found("size", "64", "here"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert answers().kept("size") is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"null", b'"text"', b'{"other": "entry"}', b'{"KEY": 7}']
)
def test_a_store_that_cannot_be_read_is_written_anew(answers, store, content):
    store.parent.mkdir(parents=True)
    store.write_bytes(content.replace(b"KEY", answers()._key.encode()))
    assert answers().kept("size") is None
    assert answers().get("size", lambda: found("size", "64", "")).value == "64"
    assert answers().get("size", never).value == "64"


@pytest.mark.parametrize("entry", ["64", {}, {"value": "64"}, None])
def test_an_answer_that_is_not_whole_is_found_again(answers, store, entry):
    store.parent.mkdir(parents=True)
    store.write_text(json.dumps({answers()._key: {"size": entry}}))
    assert answers().get("size", lambda: found("size", "32", "")).value == "32"
    assert answers().get("size", never).value == "32"


@pytest.mark.parametrize(("waited", "spread"), [(30, 0.0), (0, 0.6)])
def test_an_answer_of_a_busy_machine_is_found_again(answers, store, monkeypatch, caplog, waited, spread):
    loads = iter([Load(), Load({"1": (70, waited)}), Load(), Load({"1": (100, 0)})])
    monkeypatch.setattr(Load, "now", lambda: next(loads))
    assert answers().get("size", lambda: found("size", "8", "beside others", spread=spread)).value == "8"
    assert "The next run tries again" in caplog.text
    (entries,) = json.loads(store.read_text()).values()
    assert (entries["size"]["load"], entries["size"]["spread"]) == (waited / 100, spread)
    assert answers().get("size", lambda: found("size", "64", "alone", spread=0.1)).value == "64"
    assert answers().get("size", never).value == "64"


def test_under_a_quota_an_answer_is_trusted_although_threads_waited(answers, monkeypatch):
    loads = iter([Load(), Load({"1": (70, 30)})])
    monkeypatch.setattr(Load, "now", lambda: next(loads))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr("hemafast.engine.answers.cores", lambda: 2)
    answers().get("size", lambda: found("size", "64", "in a container"))
    assert answers().get("size", never).value == "64"


def test_runs_that_begin_together_keep_all_their_answers(answers):
    together, names = threading.Barrier(8), [f"size {number}" for number in range(8)]

    def keep(name):
        together.wait()
        answers().keep(name, Choice(name, "64", "the fastest"))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(keep, names))
    assert all(answers().kept(name) for name in names)


def test_answers_are_forgotten_when_asked(answers, store):
    assert forget_answers() == 0
    answers().get("size", lambda: found("size", "64", ""))
    assert forget_answers() == 1
    assert not store.exists()
    assert answers().kept("size") is None


def test_a_place_that_cannot_be_written_is_a_warning(answers, store, caplog):
    store.parent.parent.mkdir(parents=True)
    store.parent.write_text("a file where a folder should be")
    assert answers().get("size", lambda: found("size", "64", "")).value == "64"
    assert "cannot be kept" in caplog.text


# What is decided before a run


@pytest.fixture
def timed(monkeypatch):
    """`timed(function)`: steps of a run take as long as the function says."""

    def make(seconds):
        measured = Timed(seconds)
        monkeypatch.setattr(Trial, "__call__", lambda _, size: measured(size))
        return measured

    return make


def test_numbers_come_in_the_place_of_auto_and_the_next_run_asks_no_more(settings, timed):
    seconds = timed(lambda size: 1.0 + abs(size - 32) / 8)
    config, choices = decided(settings(batch_size="auto", compile="off"))
    assert config.batch_size == 32
    assert [choice.name for choice in choices] == ["batch size"]
    seconds.asked.clear()
    again, choices = decided(settings(batch_size="auto", compile="off"))
    assert again.batch_size == 32
    assert seconds.asked == []
    assert "found before" in choices[0].reason


def test_what_was_asked_for_is_not_tried(settings, timed):
    seconds = timed(lambda size: 1.0)
    asked = settings(batch_size=8, compile="off")
    assert decided(asked) == (asked, ())
    assert seconds.asked == []


@pytest.fixture
def with_bf16(monkeypatch):
    """`with_bf16(bf16=..., off=...)`: a CPU that has bf16, and the seconds of its steps; returns what is timed."""

    def make(**seconds):
        asked = []

        def timed(self, size):
            asked.append((self._machine.precision, self._config.amp))
            return seconds[self._config.amp]

        monkeypatch.setattr("hemafast.engine.machine.cpu_flags", lambda: frozenset({"avx512_bf16"}))
        monkeypatch.setattr(Trial, "__call__", timed)
        return asked

    return make


@pytest.mark.parametrize(("bf16", "amp", "value"), [(0.5, "bf16", "bf16"), (0.95, "off", "fp32"), (2.0, "off", "fp32")])
def test_a_cpu_with_bf16_takes_it_if_it_is_clearly_faster_and_asks_once(settings, with_bf16, bf16, amp, value):
    asked = with_bf16(off=1.0, bf16=bf16)
    config, (choice,) = decided(settings(amp="auto", compile="off"))
    assert config.amp == amp
    assert (choice.name, choice.value) == ("precision", value)
    assert asked == [("fp32", "off"), ("bf16", "bf16")]
    again, (choice,) = decided(settings(amp="auto", compile="off"))
    assert again.amp == amp
    assert "found before" in choice.reason
    assert len(asked) == 2


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_precision_that_was_asked_for_is_not_tried(settings, with_bf16, amp):
    asked, config = with_bf16(), settings(amp=amp, compile="off")
    assert decided(config) == (config, ())
    assert asked == []


def test_a_cpu_without_bf16_tries_no_precision(settings, with_bf16, monkeypatch):
    asked = with_bf16()
    monkeypatch.setattr("hemafast.engine.machine.cpu_flags", lambda: frozenset({"avx2"}))
    config, choices = decided(settings(amp="auto", compile="off"))
    assert (config.amp, choices, asked) == ("auto", (), [])


def test_a_cpu_never_tries_compiling(settings, timed):
    seconds = timed(lambda size: 1e6)
    asked = settings(compile="auto", epochs=20)
    assert decided(asked) == (asked, ())  # which choose_machine answers with off
    assert seconds.asked == []


@pytest.mark.parametrize(("budget", "allowed"), [(None, 20.0), (3600, 20.0), (100, 5.0)])
def test_a_trial_never_takes_more_than_a_share_of_a_budget(settings, budget, allowed):
    assert Trial(settings(time_budget=budget), CPU, np.full(5, 10), 20.0).allowed == allowed


def test_a_budget_too_short_for_a_trial_gets_the_usual_batch_and_fp32(settings, with_bf16):
    asked = with_bf16()
    config, choices = decided(settings(amp="auto", batch_size="auto", compile="off", time_budget=30))
    assert (config.amp, config.batch_size, asked) == ("off", 32, [])
    assert all("too short for a trial" in choice.reason for choice in choices)


def test_a_trial_ends_when_its_time_is_up_and_says_before_how_long_it_takes(settings, caplog):
    trial = Trial(settings(image_size=32), CPU, np.full(5, 10), 0.0)
    with caplog.at_level("INFO", "hemafast"):
        trial.begin("batch sizes")
    assert "trying batch sizes, for at most 0 s" in caplog.text
    assert 0 < trial(4) < 60  # one step, the first
    assert trial.spread == 0
    assert trial.over()


def test_larger_batches_are_not_tried_when_the_time_is_up(monkeypatch):
    seconds = Timed(lambda size: 1.0)
    assert choose_batch_size(seconds, over=lambda: len(seconds.asked) == 2).value == "16"
    assert seconds.asked == [8, 16]
    gpu = FakeGpu(monkeypatch, 1, least=100.0)
    assert choose_batch_size(gpu, Limits(10**6), over=lambda: len(gpu.asked) == 2).value == "16"


def test_bf16_is_not_tried_when_fp32_took_all_the_time():
    class Slow(Trial):
        def __call__(self, size):
            self.until = 0.0
            return 30.0

    fp32 = Slow(TrainConfig(), CPU, np.full(5, 10), 20.0)
    choice, _ = trial._faster(fp32, None)
    assert (choice.value, choice.reason) == ("fp32", "a trial step took 30.0 s, so bf16 was not tried")


def test_a_trial_times_the_steps_of_a_run(settings, monkeypatch):
    seen, step = [], TrainStep.__call__

    def spy(self, batch, lr, totals, **named):
        seen.append((tuple(batch.images.shape), batch.images.dtype))
        step(self, batch, lr, totals, **named)

    monkeypatch.setattr(TrainStep, "__call__", spy)
    assert 0 < Trial(settings(image_size=32), CPU, np.full(5, 10), 20.0)(4) < 60
    assert set(seen) == {((4, 3, 32, 32), torch.uint8)}
    assert len(seen) > 1  # the first is not what a step takes
