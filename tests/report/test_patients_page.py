"""The page of patients in a real browser."""

import pytest
from drawn_patients import learn_labels
from page import needs_browser, wrong_with

from hemafast.patients.written import PAGE

pytestmark = [needs_browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def page_of_patients(scored, tmp_path_factory, make_archive):
    folder = tmp_path_factory.mktemp("patients")
    learn_labels(scored, folder, make_archive)
    return folder / "out" / PAGE


def test_the_page_is_sound_in_every_look(page_of_patients, open_page):
    assert wrong_with(open_page, page_of_patients) == {}


def test_patients_open_and_show_their_cells(page_of_patients, open_page):
    page, complaints = open_page(page_of_patients)
    last = page.locator("details").last
    assert not last.locator("table").is_visible()
    last.locator("summary").click()
    assert last.locator("table").is_visible()
    assert last.locator("figure img").count() > 0
    assert complaints == []
