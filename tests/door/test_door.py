"""Every file of a stranger's source trains, validates, is held out, is quarantined or is passed over, and is named."""

import re
import shlex

import numpy as np
import pytest
from cases import REFUSED, TAKEN
from command import hemafast
from door import SIDE, Room, count_files, squares_of, tally

from hemafast.config import PrepareConfig
from hemafast.deploy.inputs import list_images
from hemafast.errors import HemafastError
from hemafast.preparation.build import plan_preparation, prepare
from hemafast.preparation.sources.gather import LEFT_OUT, NO_CLASS, NOT_LISTED

COMMAND = re.compile(r"""hemafast prepare(?: (?:'[^']*'|"[^"]*"|[^\s()'"])+)*""")
STILL_IMAGES = (LEFT_OUT, NO_CLASS, NOT_LISTED)


def settings(room, options):
    usual = {"pack_sizes": (SIDE,), "shards": 1, "max_quarantined": 1.0}
    return PrepareConfig(**{"source": room.source, "output": room.output, **usual, **options})


@pytest.mark.parametrize("build", TAKEN.values(), ids=TAKEN)
def test_every_file_is_accounted_for(tmp_path, build):
    room = Room(tmp_path)
    expected = build(room)
    config, found = settings(room, expected.options), count_files(room.source)
    plan = plan_preparation(config)
    prepared = prepare(config, plan, workers=1)
    account, manifest = prepared.info.account, prepared.files.manifest
    assert account.found == sum(count for _, count, _ in account.rows()) == found

    kinds = manifest["kind"].where(manifest["verdict"] == "quarantined", "")
    became = dict(zip(manifest["source"], kinds, strict=True)) | {one.name: one.kind for one in plan.passed}
    became = {room.plain(name): kind for name, kind in became.items()}
    assert sorted(became) == sorted(map(room.plain, room.written))
    assert {name: kind for name, kind in became.items() if kind} == {
        room.plain(name): kind for name, kind in expected.others.items()
    }
    assert account.quarantined == tally([kind for kind in kinds if kind])
    assert {kind: one.files for kind, one in account.passed_over.items()} == tally([one.kind for one in plan.passed])

    good = manifest[manifest["verdict"] != "quarantined"]
    assert tally((good["domain"] + "/" + good["label"]).tolist()) == expected.images
    splits = {"train": account.train, "val": account.val, "test": account.test}
    if expected.splits is not None:
        assert {split: count for split, count in splits.items() if count} == expected.splits
    assert splits["train"] and splits["val"]
    for words in expected.notes:
        assert any(words in note for note in prepared.info.notes), (words, prepared.info.notes)
    _check_pixels(room, prepared, expected.pixels)
    if expected.also is not None:
        expected.also(prepared)


def _check_pixels(room, prepared, pixels):
    names = [room.plain(name) for name in prepared.files.manifest["source"]]
    for name, wanted in pixels.items():
        np.testing.assert_array_equal(squares_of(prepared)[names.index(name)], wanted, err_msg=name)


@pytest.mark.parametrize("build", REFUSED.values(), ids=REFUSED)
def test_a_refusal_helps(tmp_path, build):
    room = Room(tmp_path)
    expected = build(room)
    with pytest.raises(HemafastError) as caught:
        prepare(settings(room, expected.options), workers=1)
    said = str(caught.value)
    for words in expected.words:
        assert words in said, said
    assert not room.output.exists()
    commands = COMMAND.findall(caught.value.remedy)
    assert len(commands) == expected.commands, said
    for command in commands:
        done = hemafast(*_filled_in(command), "--quiet", "--workers", 1)
        assert done.returncode == 0, done.stderr
    if expected.then is not None:
        prepare(settings(room, {**expected.options, **expected.then}), workers=1)


def _filled_in(command):
    """The arguments of a command, with classes of the challenge in the place of CLASS."""
    classes = iter(("basophil", "monocyte", "eosinophil", "myelocyte"))
    return shlex.split(re.sub("CLASS", lambda _: next(classes), command))[1:]


@pytest.mark.parametrize("build", TAKEN.values(), ids=TAKEN)
def test_predict_sees_the_same_images(tmp_path, build):
    room = Room(tmp_path)
    expected = build(room)
    plan = plan_preparation(settings(room, expected.options))
    images = [member.source for member in plan.members]
    images += [one.name for one in plan.passed if one.kind in STILL_IMAGES]
    seen = [image.name.removeprefix(f"{room.source}/") for image in list_images([str(room.source)])]
    assert sorted(map(room.plain, seen)) == sorted(map(room.plain, images))


def test_the_corpus_has_cases_of_every_kind():
    kinds = tally([name.partition("-")[0] for name in (*TAKEN, *REFUSED)])
    assert len(kinds) == 11
    assert min(kinds.values()) >= 5
    assert sum(kinds.values()) >= 80
