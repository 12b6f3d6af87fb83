"""Spaces to search: how they are written, and what is refused."""

import pytest

from hemafast.config import train_config
from hemafast.errors import HemafastError
from hemafast.experiments.space import DEFAULT, Choice, Range, default_space, parse_space


def test_ranges_and_choices_are_read_and_told_as_they_are_typed():
    space = parse_space(["lr=1e-4..1e-2", "label-smoothing=0..0.2", "policy=basic, robust"])
    assert space.parts == {
        "lr": Range(1e-4, 1e-2),
        "label_smoothing": Range(0, 0.2),
        "policy": Choice(("basic", "robust")),
    }
    assert [part.log for part in space.parts.values() if isinstance(part, Range)] == [True, False]
    assert parse_space(f"{name}={part}" for name, part in space.to_plain().items()) == space


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["lr"], "not NAME=VALUES"),
        (["lr="], "not NAME=VALUES"),
        (["lr=1..x"], "not a range of numbers"),
        (["lr=2..1"], "the range is empty"),
        (["lr=1..inf"], "the range is empty"),
        (["lr=nan..1"], "the range is empty"),
        (["policy=basic"], "nothing to choose"),
        (["policy=basic,"], "nothing to choose"),
        (["lr=1..2", "lr=1..3"], "twice"),
    ],
)
def test_what_is_no_space_is_refused(texts, said):
    with pytest.raises(HemafastError, match=said):
        parse_space(texts)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lrr=1..2", "Did you mean lr"),
        ("lr=-1..1", "lr"),
        ("policy=basic,bright", "policy"),
        ("output=a,b", "does not change what is learned"),
        ("epochs=0..3", "epochs"),
    ],
)
def test_values_that_training_refuses_are_refused_before_it(text, said):
    with pytest.raises(HemafastError, match=said):
        parse_space([text]).check(train_config("fast"))


def test_the_default_fits_the_presets():
    for preset in ("quick", "fast", "robust", "best"):
        parse_space(DEFAULT).check(train_config(preset))


def test_the_default_for_a_probe_has_nothing_about_steps():
    config = train_config("probe")
    space = default_space(config)
    assert [*space.parts] == ["policy", "sampler"]
    space.check(config)
    with pytest.raises(HemafastError, match=r"lr = 0\.01 has no effect with probe = 4"):
        parse_space(["lr=1e-4..1e-2"]).check(config)


class Low:
    """A trial that draws the least of everything."""

    def __init__(self):
        self.drawn = {}

    def suggest_int(self, name, low, high, *, log):
        self.drawn[name] = ("int", low, high, log)
        return low

    def suggest_float(self, name, low, high, *, log):
        self.drawn[name] = ("float", low, high, log)
        return low

    def suggest_categorical(self, name, values):
        self.drawn[name] = values
        return values[0]


def test_whole_numbers_are_drawn_where_the_setting_takes_no_others():
    trial, space = Low(), parse_space(["epochs=1..50", "clip_grad=1..5", "sampler=mixed:0.5,natural"])
    settings = space.draw(trial, train_config("fast"))
    assert trial.drawn == {
        "epochs": ("int", 1, 50, True),
        "clip_grad": ("float", 1, 5, False),
        "sampler": ("mixed:0.5", "natural"),
    }
    assert (settings.epochs, settings.clip_grad, settings.sampler) == (1, 1.0, "mixed:0.5")
