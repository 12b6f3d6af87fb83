"""What every page shares: sections, what scrolls, and colours that can be told apart, light and dark."""

import re
from pathlib import Path

import pytest
from page import LOOKS, Page, needs_browser, wrong_with

import hemafast
from hemafast.pages import _with_contents, environment
from hemafast.pictures import contrast, heat_stops, ink_on, shades

PACKAGE = Path(hemafast.__file__).parent
STYLE = (PACKAGE / "pages.css").read_text(encoding="utf-8")


def colours(scheme):
    """The colours of the page by name."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    named = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{3,6})", light))
    if scheme == "dark":
        named |= dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{3,6})", dark))
    return {
        name: colour if len(colour) == 7 else "#" + "".join(2 * one for one in colour[1:])
        for name, colour in named.items()
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_stand_out_from_the_page(scheme):
    named = colours(scheme)
    for ink in ("ink", "faint", "link"):
        for ground in ("paper", "shade") if ink != "link" else ("paper",):
            assert contrast(named[ink], named[ground]) >= 4.5, (ink, ground)
    assert contrast(named["ink"], named["warn"]) >= 4.5


@pytest.mark.parametrize(("colour", "paper"), [("#005ea2", "#ffffff"), ("#56b4e9", "#16181b")])
def test_numbers_stand_out_from_every_shade(colour, paper):
    steps = shades(colour, paper)
    assert len(steps) == 11
    assert all(contrast(ground, ink) >= 4.5 for ground, ink in steps)
    assert steps[-1][0] == colour


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)
    assert all(
        contrast(ink_on(grey), grey) >= 4.5 for grey in (f"#{level:02x}{level:02x}{level:02x}" for level in range(256))
    )


def test_heat_is_ever_lighter():
    darkness = [contrast(stop, "#000000") for stop in heat_stops()]
    assert darkness == sorted(darkness)
    assert darkness[-1] > 5 * darkness[0]


def test_a_page_lists_its_sections_where_it_asks_for_it():
    page = _with_contents("<!-- contents --><h2>One &amp; two</h2><h3>deeper</h3><h2>Three</h2>")
    assert page == (
        '<nav aria-label="Contents"><ul><li><a href="#section-1">One &amp; two</a></li>'
        '<li><a href="#section-2">Three</a></li></ul></nav>'
        '<h2 id="section-1">One &amp; two</h2><h3>deeper</h3><h2 id="section-2">Three</h2>'
    )


def test_templates_count_and_name_what_scrolls():
    made = environment().from_string('{{ 1|counted("image") }}, {{ 2|counted("class") }} <div {{ wide("a \\" b") }}>')
    assert made.render() == '1 image, 2 classes <div class="wide" tabindex="0" role="region" aria-label="a &#34; b">'


def test_a_long_name_may_break_at_its_joints_and_is_read_as_it_is():
    page = environment().from_string("{{ name|jointed }}").render(name="lab/a-1_<b>_")
    assert page == "lab/<wbr>a-<wbr>1_&lt;b&gt;_"
    assert Page(page).text == "lab/a-1_<b>_"


def test_a_sentence_shows_commands_as_code():
    page = environment().from_string("{{ sentence|said }}").render(sentence="Run `hemafast <run>`; it's short")
    assert page == "Run <code>hemafast &lt;run&gt;</code>; it&#39;s short"


def test_no_template_shows_a_backtick_of_a_message():
    for file in PACKAGE.rglob("*.html.j2"):
        for shown in re.findall(r"{{ (warning|note|said|verdict|reason) }}", file.read_text("utf-8")):
            raise AssertionError(f"{file}: {shown} is not |said")


@needs_browser
@pytest.mark.slow
def test_what_is_wrong_with_a_page_is_found_and_said_where(tmp_path, open_page):
    page = tmp_path / "page.html"
    sound = '<!doctype html><html lang="en"><title>A page</title><style>{}</style><main><h1>A page</h1>{}</main></html>'
    page.write_text(sound.format("", ""), encoding="utf-8")
    assert wrong_with(open_page, page) == {}
    style = "p { width: 900px } @media (prefers-color-scheme: dark) { body { background: #333 } }"
    parts = '<p>dark on dark</p><img src="data:image/png;base64,AAAA" alt="broken"><script>nothing()</script>'
    page.write_text(sound.format(style, parts), encoding="utf-8")
    wrong = wrong_with(open_page, page)
    assert wrong.pop("console") == ["nothing is not defined"]
    assert wrong.pop("pictures") == ["broken"]
    assert {look for look, found in wrong.items() if "scrolls sideways" in found} == {
        look for look in LOOKS if look[0] < 900
    }
    assert {look for look, found in wrong.items() if any(one[0] == "color-contrast" for one in found)} == {
        look for look in LOOKS if look[1] == "dark"
    }


def test_every_picture_of_a_template_has_a_text():
    pictures = [
        tag for file in PACKAGE.rglob("*.html.j2") for tag in re.findall(r"<img\b[^>]*>", file.read_text("utf-8"))
    ]
    assert pictures
    assert all(re.search(r'alt="[^"]', tag) for tag in pictures), pictures


def test_whatever_may_be_wide_scrolls_by_keyboard():
    for file in PACKAGE.rglob("*.html.j2"):
        assert 'class="wide"' not in file.read_text("utf-8"), file
