"""The picture of the policies."""

import json

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from typer.testing import CliRunner

from hemafast.cli import app
from hemafast.data.augment import POLICIES, Policy, named_policy
from hemafast.data.preview import _choose, _draw, _views, write_preview
from hemafast.errors import HemafastError


def test_the_picture_has_a_row_for_every_draw_of_every_policy(prepared, tmp_path):
    heights = []
    for draws in (1, 2):
        target = tmp_path / "new" / f"{draws}.png"
        write_preview(prepared.folder, target, POLICIES, cells=3, draws=draws, image_size=56, seed=0)
        with Image.open(target) as picture:
            heights.append(picture.height)
    assert heights[1] == pytest.approx(2 * heights[0], rel=0.02)


def test_the_views_are_those_of_training(train_samples):
    """The same cells in the same order under each policy; `none` is the window in the middle."""
    some = train_samples.select(np.array([4, 0, 9]))
    for views in _views(some, POLICIES["none"], 2, 56, 0):
        np.testing.assert_array_equal(views, np.asarray(some.packed)[:, 4:60, 4:60])
    (alone,) = _views(train_samples.select(np.array([4])), POLICIES["none"], 1, 56, 0)
    np.testing.assert_array_equal(alone[0], views[0])
    first, second = _views(some, POLICIES["basic"], 2, 56, 0)
    assert not np.array_equal(first, second)
    for view, square in zip(first, np.asarray(some.packed), strict=True):
        assert abs(float(view.mean()) - float(square.mean())) < 20  # still that cell


@pytest.mark.parametrize(("rows", "cells"), [(1, 1), (18, 4), (12, 8)])
def test_no_word_of_the_picture_is_cut_off(rows, cells):
    views = np.zeros((cells, 128, 128, 3), np.uint8)
    figure = _draw(
        [(f"robust: {row}" if row % 2 else "a policy: brightness", views) for row in range(rows)], ["a"] * cells
    )
    figure.draw_without_rendering()
    words = [one for one in figure.findobj(Text) if one.get_text()]
    assert len(words) == rows + cells
    edges = np.array([one.get_window_extent().extents for one in words])
    assert edges[:, :2].min() >= 0
    assert (edges[:, 2:].max(axis=0) <= figure.bbox.size).all()


@pytest.mark.parametrize("cells", [1, 3, 5, 9, 500])
def test_few_cells_show_many_classes_and_domains(train_samples, cells):
    chosen = _choose(train_samples, cells)
    assert len(chosen) == min(cells, 47)
    assert len(set(chosen.paths)) == len(chosen)
    assert len(set(chosen.labels.tolist())) == min(cells, 5)
    if cells >= 5:
        assert len(set(chosen.domains.tolist())) == 2


def test_the_command_writes_it_and_says_what_it_shows(prepared, tmp_path):
    target = tmp_path / "preview.png"
    asked = ["--policy", "lineage", "--policy", "basic", "--stain", "0.2", "--cells", "2", "--image-size", "56"]
    done = CliRunner().invoke(
        app, ["augment-preview", "--data", str(prepared.folder), "--output", str(target), *asked, "--json"]
    )
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert target.is_file()
    assert said["picture"] == str(target)
    assert said["policies"] == {name: named_policy(name, stain=0.2).to_plain() for name in ("lineage", "basic")}


def test_each_change_of_a_policy_is_shown_alone(prepared, tmp_path):
    asked = ["--policy", "lineage", "--policy", "none", "--stain", "0.2", "--parts", "--cells", "2"]
    where = ["--data", str(prepared.folder), "--output", str(tmp_path / "parts.png"), "--image-size", "56"]
    done = CliRunner().invoke(app, ["augment-preview", *where, *asked, "--json"])
    assert done.exit_code == 0
    shown = json.loads(done.stdout)["policies"]
    assert [*shown] == ["lineage: shift", "lineage: zoom", "lineage: symmetry", "lineage: stain", "none: stain"]
    assert shown["lineage: stain"] == shown["none: stain"] == Policy(stain=0.2).to_plain()


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (["--policy", "none", "--parts"], "none has no changes"),
        (["--policy", "wild"], "no policy 'wild'"),
        (["--stain", "7"], "stain = 7"),
        (["--crop-area", "0.5", "0.2"], "crop_area"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_shown_is_said(prepared, tmp_path, asked, named):
    data = [] if "--data" in asked else ["--data", str(prepared.folder)]
    done = CliRunner().invoke(app, ["augment-preview", "--output", str(tmp_path / "p.png"), *data, *asked])
    assert isinstance(done.exception, HemafastError)
    assert named in str(done.exception)
    assert not (tmp_path / "p.png").exists()
