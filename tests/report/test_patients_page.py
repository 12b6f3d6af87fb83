"""The page of patients in a real browser."""

import pytest
from drawn_patients import learn_labels
from page import needs_browser

from hemafast.patients.written import PAGE

AA = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]

pytestmark = [needs_browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def page_of_patients(scored, tmp_path_factory, make_archive):
    folder = tmp_path_factory.mktemp("patients")
    learn_labels(scored, folder, make_archive)
    return folder / "out" / PAGE


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
@pytest.mark.parametrize("width", [390, 992, 1440])
def test_axe_finds_nothing_at_aa_and_the_page_never_scrolls_sideways(page_of_patients, open_page, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed").Axe()
    page, complaints = open_page(page_of_patients, width)
    page.emulate_media(**({"media": "print"} if scheme == "print" else {"color_scheme": scheme}))
    found = axe.run(page, options={"runOnly": {"type": "tag", "values": AA}})
    assert [(one["id"], one["nodes"][0]["html"]) for one in found.response["violations"]] == []
    if (width, scheme) != (390, "print"):  # no paper is so narrow
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []


def test_patients_open_and_show_their_cells(page_of_patients, open_page):
    page, complaints = open_page(page_of_patients)
    last = page.locator("details").last
    assert not last.locator("table").is_visible()
    last.locator("summary").click()
    assert last.locator("table").is_visible()
    assert last.locator("figure img").count() > 0
    assert complaints == []
