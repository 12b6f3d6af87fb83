"""The page of patients in a real browser."""

import pytest
from drawn_patients import learn_labels
from page import WIDTHS, dressed, found_by_axe, needs_browser, scrolls_sideways

from hemafast.patients.written import PAGE

pytestmark = [needs_browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def page_of_patients(scored, tmp_path_factory, make_archive):
    folder = tmp_path_factory.mktemp("patients")
    learn_labels(scored, folder, make_archive)
    return folder / "out" / PAGE


@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing_at_aa_and_the_page_never_scrolls_sideways(page_of_patients, open_page, width):
    page, complaints = open_page(page_of_patients, width)
    for scheme in dressed(page):
        assert (scheme, found_by_axe(page)) == (scheme, [])
        if (width, scheme) != (390, "print"):  # no paper is so narrow
            assert (scheme, scrolls_sideways(page)) == (scheme, False)
    assert complaints == []


def test_patients_open_and_show_their_cells(page_of_patients, open_page):
    page, complaints = open_page(page_of_patients)
    last = page.locator("details").last
    assert not last.locator("table").is_visible()
    last.locator("summary").click()
    assert last.locator("table").is_visible()
    assert last.locator("figure img").count() > 0
    assert complaints == []
