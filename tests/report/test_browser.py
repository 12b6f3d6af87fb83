"""The page in a real browser: clicked, filtered, narrow, printed."""

import shutil
from pathlib import Path

import pytest
from page import needs_browser, scrolls_sideways, wrong_with

from hemafast.evaluate.evaluate import evaluate_run
from hemafast.report.page import write_report
from hemafast.run_folder import read_metrics
from hemafast.words import counted

pytestmark = [needs_browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def report(scored):
    return write_report(scored)


@pytest.fixture(scope="module")
def hostile_report(hostile):
    return write_report(hostile)


@pytest.fixture(scope="module")
def both(scored, trained, tmp_path_factory):
    """The page of two runs."""
    room = tmp_path_factory.mktemp("both")
    second = Path(shutil.copytree(trained, room / "run"))
    evaluate_run(second)
    return write_report([scored, second], room / "both.html")


def confusion_of(scored, name):
    metrics = read_metrics(scored)
    return metrics["pooled"]["confusion"] if name == "pooled" else metrics["domains"][name]["confusion"]


def test_a_click_on_a_cell_shows_its_images(scored, report, open_page):
    page, complaints = open_page(report)
    matrix = confusion_of(scored, "Acevedo_20")
    page.select_option("[data-filter=set]", label="Acevedo_20")
    for true, row in enumerate(matrix):
        for predicted, count in enumerate(row):
            if count:
                page.click(f"[data-matrix='0'] button[data-true='{true}'][data-predicted='{predicted}']")
                assert page.inner_text("[data-count]") == f"{counted(count, 'cell')}, {min(count, 28)} shown"
                assert page.locator("[data-cells] figure").count() == min(count, 28)
    assert page.locator("[data-matrix='0'] button[aria-pressed=true]").count() == 1
    assert complaints == []


def test_a_click_shows_the_domain_of_the_matrix_whatever_was_filtered_before(scored, report, open_page):
    page, _ = open_page(report)  # the first matrix is that of Acevedo_20, and no filter is set
    matrix = confusion_of(scored, "Acevedo_20")
    true, predicted = next((t, p) for t, row in enumerate(matrix) for p, count in enumerate(row) if count)
    for before in ("any", "Matek_19"):
        page.select_option("[data-filter=domain]", label=before)
        page.click(f"[data-matrix='0'] button[data-true='{true}'][data-predicted='{predicted}']")
        assert page.inner_text("[data-count]").startswith(counted(matrix[true][predicted], "cell"))
        assert set(page.locator("[data-cells] figure").evaluate_all("all => all.map(one => one.title)")) == {
            "Acevedo_20"
        }
    page.select_option("[data-filter=domain]", label="any")
    assert page.locator("table.matrix button[aria-pressed=true]").count() == 0


def test_filters_narrow_what_is_shown(scored, report, open_page):
    page, complaints = open_page(report)
    pooled = confusion_of(scored, "pooled")
    images, right = sum(map(sum, pooled)), sum(row[index] for index, row in enumerate(pooled))
    assert page.inner_text("[data-count]").startswith(f"{images - right} cells")  # mistakes, to begin with
    page.uncheck("[data-filter=wrong]")
    assert page.inner_text("[data-count]").startswith(f"{images} cells")
    page.select_option("[data-filter=domain]", label="Matek_19")
    assert page.inner_text("[data-count]").startswith(f"{sum(map(sum, confusion_of(scored, 'Matek_19')))} cells")
    page.fill("[data-filter=name]", "no such file")
    assert page.inner_text("[data-count]").startswith("0 cells")
    assert complaints == []


def test_another_domain_shows_another_matrix(report, open_page):
    page, _ = open_page(report)
    for place, name in enumerate(("Acevedo_20", "Matek_19", "pooled")):
        page.select_option("[data-filter=set]", label=name)
        visible = [matrix.get_attribute("data-matrix") for matrix in page.locator("[data-matrix]:visible").all()]
        assert visible == [str(place)]


def test_more_cells_can_be_asked_for(report, open_page):
    page, _ = open_page(report)
    page.evaluate("document.querySelector('[data-filter=wrong]').click()")
    total = int(page.inner_text("[data-count]").split()[0])
    while page.locator("[data-more]").is_visible():
        page.click("[data-more]")
    assert page.locator("[data-cells] figure").count() == total


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_never_scrolls_sideways(report, open_page, width):
    page, _ = open_page(report, width)
    assert not scrolls_sideways(page)


def test_on_paper_there_are_all_matrices_and_no_controls(report, open_page):
    page, _ = open_page(report)
    page.emulate_media(media="print")
    assert page.locator("[data-matrix]:visible").count() == 3
    assert page.locator(".filters:visible").count() == 0


def test_side_by_side_all_runs_are_in_sight(both, open_page):
    page, _ = open_page(both, 992)
    box = page.locator(".wide").first
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth")


def test_the_page_is_sound_in_every_look(hostile_report, open_page):
    assert wrong_with(open_page, hostile_report) == {}


def test_the_page_of_several_runs_is_sound_in_every_look(both, open_page):
    assert wrong_with(open_page, both) == {}


def test_letters_of_plots_have_the_colour_of_the_page(report, open_page):
    page, _ = open_page(report)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        ink = page.locator("body").evaluate("body => getComputedStyle(body).color")
        letters = page.locator("svg.plot text").evaluate_all("all => all.map(one => getComputedStyle(one).fill)")
        assert letters
        assert set(letters) == {ink}


def test_runs_side_by_side_are_browsed_apart(both, open_page):
    page, complaints = open_page(both)
    page.click("details.run:nth-of-type(2) > summary")
    first, second = page.locator("[data-run]").all()
    second.locator("[data-filter=wrong]").uncheck()
    counts = [int(part.locator("[data-count]").inner_text().split()[0]) for part in (first, second)]
    assert counts[0] < counts[1]
    assert complaints == []


def test_names_meant_to_break_the_page_are_shown_as_they_are(hostile_report, open_page):
    page, complaints = open_page(hostile_report)
    page.uncheck("[data-filter=wrong]")
    assert "<b>bold" in page.inner_text("[data-cells]")
    assert page.locator("[data-cells] figcaption b b").count() == 0
    assert complaints == []
