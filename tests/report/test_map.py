"""The map of cells: what the page holds, and what a browser does with it."""

import csv
import json
import re

import numpy as np
import pandas as pd
import pytest
from page import Page, needs_browser, scrolls_sideways, wrong_with

from hemafast.errors import HemafastError
from hemafast.report.map import plane_of, tile_side, write_map

NAMES = ["=1+1.png", '</script><b>"x".png', *(f"cells/{number}.png" for number in range(28))]


@pytest.fixture(scope="module")
def map_page(tmp_path_factory):
    """Thirty cells of three classes in three corners; the first ten are predicted as something else."""
    places = np.repeat(np.array([[0, 0], [9, 0], [0, 9]], np.float32), 10, axis=0)
    points = places + np.random.default_rng(0).uniform(size=(30, 2)).astype(np.float32)
    labels = np.repeat(["monocyte", "basophil", ""], 10)
    table = pd.DataFrame(
        {
            "image": NAMES,
            "label": labels,
            "domain": ["Lab"] * 30,
            "predicted": ["eosinophil"] * 10 + ["basophil"] * 20,
            "confidence": np.linspace(0, 1, 30, dtype=np.float32),
        }
    )
    tiles = np.random.default_rng(1).integers(0, 256, (30, 96, 96, 3), dtype=np.uint8)
    return write_map(tmp_path_factory.mktemp("map") / "map.html", table, points, tiles, title="Cells of <i>Lab</i>")


def listing_of(page):
    return json.loads(re.search(r"data-listing>(.*?)</script>", page.read_text(encoding="utf-8"), re.DOTALL)[1])


def test_the_page_is_alone_and_escapes_names(map_page):
    page = Page(map_page.read_text(encoding="utf-8"))
    assert page.is_alone
    assert "b" not in page.tags
    assert "i" not in page.tags
    assert "Map of 30 cells" in page.text


def test_cells_are_coloured_by_what_differs_and_mistakes_are_told(map_page):
    listing = listing_of(map_page)
    colours = listing["colours"]
    assert listing["columns"] == ["label", "predicted", "mistake"]  # one domain tells nothing
    assert colours["label"]["names"] == ["monocyte", "basophil", "not known"]
    assert colours["mistake"]["of"] == [
        colours["mistake"]["names"].index(name) for name in ["mistake"] * 10 + ["right"] * 10 + ["not known"] * 10
    ]


def test_points_are_whole_numbers_with_the_proportions_of_the_map(map_page):
    points = np.array(listing_of(map_page)["points"]).reshape(-1, 2)
    assert points.min() == 0
    assert points.max() == 65535
    assert np.ptp(points, axis=0).min() > 60000


def test_tiles_shrink_so_that_many_cells_fit_a_page():
    sides = [tile_side(cells) for cells in (10, 2000, 2001, 10_000, 50_000)]
    assert sides == sorted(sides, reverse=True)
    assert 50_000 * sides[-1] ** 2 < 1e8  # pixels


@pytest.mark.nightly
def test_features_of_two_groups_lie_apart_on_the_plane():
    pytest.importorskip("umap")
    generator = np.random.default_rng(0)
    features = generator.normal(size=(40, 64)).astype(np.float32)
    features[:20] += 8
    plane = plane_of(features)
    assert plane.shape == (40, 2)
    first, second = plane[:20], plane[20:]
    between = np.linalg.norm(first.mean(axis=0) - second.mean(axis=0))
    assert between > 2 * max(first.std(axis=0).max(), second.std(axis=0).max())
    np.testing.assert_array_equal(plane, plane_of(features))


def test_a_plane_of_too_few_cells_is_refused():
    with pytest.raises(HemafastError, match="A map needs 10 images"):
        plane_of(np.zeros((9, 4), np.float32))


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_the_cell_under_the_pointer_is_shown_and_a_region_is_saved(map_page, open_page, tmp_path, width):
    page, complaints = open_page(map_page, width)
    room = page.locator(".map > canvas").bounding_box()
    assert not scrolls_sideways(page)
    page.mouse.move(room["x"] + 2, room["y"] + 2)
    page.mouse.down()
    page.mouse.move(room["x"] + room["width"] / 2, room["y"] + room["height"] / 2, steps=3)
    page.mouse.up()
    assert page.locator("[data-count]").inner_text() == "10 cells are selected"
    with page.expect_download() as saved:
        page.locator("[data-save]").click()
    saved.value.save_as(tmp_path / "cells.csv")
    rows = list(csv.DictReader((tmp_path / "cells.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert [row["image"] for row in rows] == ["'=1+1.png", *NAMES[1:10]]
    assert {row["label"] for row in rows} == {"monocyte"}
    assert page.locator("[data-selected] figure").count() == 10
    page.locator("[data-legend] button").first.click()  # monocytes are hidden now
    page.mouse.move(room["x"] + room["width"] / 2, room["y"] + room["height"] / 2)
    assert page.locator(".tip").is_hidden()
    assert complaints == []


@needs_browser
@pytest.mark.slow
def test_the_page_is_sound_in_every_look(map_page, open_page):
    assert wrong_with(open_page, map_page, lambda page: page.locator("[data-legend] button").last.click()) == {}


@needs_browser
@pytest.mark.slow
def test_buttons_zoom_about_the_middle_and_show_all_again(map_page, open_page):
    page, _ = open_page(map_page)
    seen = [page.evaluate("document.querySelector('.map > canvas').toDataURL()")]
    for name in ("Zoom in", "Zoom out", "Zoom in", "Show all"):
        page.get_by_role("button", name=name).click()
        page.evaluate("() => new Promise(go => requestAnimationFrame(() => requestAnimationFrame(go)))")
        seen.append(page.evaluate("document.querySelector('.map > canvas').toDataURL()"))
    assert seen[0] == seen[2] == seen[4] != seen[1] == seen[3]


@needs_browser
@pytest.mark.slow
def test_a_frame_of_50000_cells_takes_less_than_50_ms_of_the_processor(tmp_path, open_page):
    cells = 50_000
    points = np.random.default_rng(0).normal(size=(cells, 2)).astype(np.float32)
    names = pd.Series(np.arange(cells)).astype(str)
    columns = {"image": names, "label": names.str[-1], "predicted": names.str[-1], "confidence": 0.5}
    tiles = np.zeros((cells, 8, 8, 3), np.uint8)
    page, _ = open_page(write_map(tmp_path / "map.html", pd.DataFrame(columns), points, tiles, title="Many"))
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent():
        told = devtools.send("Performance.getMetrics")["metrics"]
        return next(one["value"] for one in told if one["name"] == "TaskDuration")

    room = page.locator(".map > canvas").bounding_box()
    page.mouse.move(room["x"] + room["width"] / 2, room["y"] + room["height"] / 2)
    frames = []
    for _ in range(10):
        before = spent()
        page.mouse.wheel(0, 100)
        page.evaluate("() => new Promise(go => requestAnimationFrame(() => requestAnimationFrame(go)))")
        frames.append(spent() - before)
    assert np.median(frames) < 0.05
