"""A run that goes on where precisions differ keeps its own if it can, or says what changes."""

import pytest

from hemafast.engine import machine, plan, trial
from hemafast.engine.checkpoint import load_last, save_last
from hemafast.engine.trainer import resume, train
from hemafast.errors import StoppedError
from hemafast.run_folder import LAST, LOG

pytestmark = pytest.mark.filterwarnings("ignore:.*GradScaler is enabled, but CUDA is not available")

AMPERE, TURING, XEON = ("bf16", "fp16"), ("fp16",), ("bf16",)
"""Precisions of a device, the fastest first; all have fp32."""


@pytest.fixture
def on(monkeypatch):
    """`on(precisions)`: from now on, this CPU stands in for a device with these."""
    monkeypatch.setattr(trial, "decide_precision", lambda config, counts, processes: (config, []))

    def pretend(precisions):
        monkeypatch.setattr(machine, "_fast_precision", lambda device: (precisions[0], "a stand-in"))
        monkeypatch.setattr(machine, "_choose_precision", choose)
        monkeypatch.setattr(plan, "has_precision", lambda precision, device: precision in (*precisions, "fp32"))

    def choose(device, amp):
        value = machine._fast_precision(device)[0] if amp == "auto" else "fp32" if amp == "off" else amp
        return machine.Choice("precision", value, "a stand-in")

    return pretend


@pytest.fixture
def begun(on, settings, signal_at):
    """`begun(precisions)`: a run that was stopped on such a device."""

    def make(precisions):
        on(precisions)
        config = settings(amp="auto", track=())
        with signal_at(2), pytest.raises(StoppedError):
            train(config)
        (folder,) = config.output.iterdir()
        return folder

    return make


@pytest.mark.parametrize(
    ("first", "then", "told"),
    [
        (AMPERE, TURING, "WARNING precision: the run began in bf16; this CPU trains in fp16 with scaled gradients"),
        (TURING, XEON, "WARNING precision: the run began in fp16; this CPU trains in bf16"),
    ],
    ids=["bf16 to fp16", "fp16 to bf16"],
)
def test_a_precision_that_a_device_lacks_is_changed_and_told(on, begun, first, then, told):
    folder = begun(first)
    before = load_last(folder / LAST)
    assert (before["precision"], bool(before["scaler"])) == (first[0], first[0] == "fp16")
    on(then)
    resume(folder)
    after = load_last(folder / LAST)
    assert (after["precision"], bool(after["scaler"])) == (then[0], then[0] == "fp16")
    assert after["progress"]["epochs_done"] == 1
    assert told in (folder / LOG).read_text(encoding="utf-8")


def test_a_precision_and_its_scale_are_kept_where_the_device_has_them(on, begun):
    folder = begun(TURING)
    state = load_last(folder / LAST)
    state["scaler"]["scale"] = 8.0
    save_last(folder / LAST, state, keep=1)
    on(AMPERE)
    resume(folder)
    after, log = load_last(folder / LAST), (folder / LOG).read_text(encoding="utf-8")
    assert (after["precision"], after["scaler"]["scale"]) == ("fp16", 8.0)
    assert "precision: fp16 (the run began in it)" in log
    assert "WARNING precision" not in log


def test_an_old_checkpoint_that_does_not_say_its_precision_still_loads(on, begun):
    folder = begun(AMPERE)
    state = load_last(folder / LAST)
    del state["precision"]
    save_last(folder / LAST, state, keep=1)
    on(TURING)
    resume(folder)
    assert load_last(folder / LAST)["precision"] == "fp16"


@pytest.mark.parametrize(
    ("saved", "precision"),
    [({"precision": "bf16", "scaler": {}}, "bf16"), ({"scaler": {"scale": 1.0}}, "fp16"), ({"scaler": {}}, None)],
)
def test_the_precision_of_a_checkpoint_is_stated_or_shown_by_its_scale(saved, precision):
    assert plan._first_precision(saved) == precision
