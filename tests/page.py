"""Read a page as a browser would, without one and with one."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")

LOOKS = [(width, scheme) for width in (390, 992, 1440) for scheme in ("light", "dark")] + [(794, "print")]
"""In which the pages are looked at: width in pixels, and scheme. A4 is 794 pixels wide."""

_AA = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]

_LOOK = """<script>
addEventListener("load", () => {
  const images = [...document.images];
  const broken = images.filter(image => !image.complete || image.naturalWidth === 0);
  const wide = document.documentElement.scrollWidth > innerWidth;
  document.title = `SEEN ${images.length} ${broken.length} ${wide} ${performance.getEntriesByType("resource").length}`;
});
</script>"""


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._in_script = tag == "script"
        self.text += " " if tag == "br" else ""
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [value for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]

    def handle_data(self, data):
        self.text += "" if self._in_script else data

    def handle_endtag(self, tag):
        self._in_script = False
        self.text += " " if tag in {"td", "th"} else ""

    @property
    def pictures(self) -> list[str]:
        """Addresses of pictures; the others lead to places on the page."""
        return [address for address in self.addresses if not address.startswith("#")]

    @property
    def is_alone(self) -> bool:
        """Whether it needs no other file and no network, and runs no script but one that is part of it."""
        return (
            all(re.match(r"data:image/(png|jpeg);base64,|#", address) for address in self.addresses)
            and not {"link", "iframe", "object", "base", "form"} & set(self.tags)
            and not self.handlers
            and "@import" not in self.source
            and not re.search(r"url\((?!#)", self.source)
        )


def dress(page, scheme):
    """Show an open page as light, dark or on paper."""
    page.emulate_media(
        media="print" if scheme == "print" else "screen", color_scheme="dark" if scheme == "dark" else "light"
    )


def found_by_axe(page):
    """What axe-core finds at AA on an open page: rule and first element. Skips the test where it is not installed."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed").Axe()
    options = {"runOnly": {"type": "tag", "values": _AA}, "resultTypes": ["violations"]}
    return [(one["id"], one["nodes"][0]["html"]) for one in axe.run(page, options=options).response["violations"]]


def scrolls_sideways(page):
    """Whether an open page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth > innerWidth")


def wrong_with(open_page, file, act=None):
    """What is wrong with a page, by where it is seen; nothing if axe-core finds nothing at AA and it never scrolls
    sideways in any of LOOKS, every picture is whole, and the browser neither complains nor fetches anything.

    `act` is done to the open page before.
    """
    page, complaints = open_page(file)
    if act:
        act(page)
    broken = page.evaluate("[...document.images].filter(one => one.naturalWidth === 0).map(one => one.alt)")
    wrong = {look: _wrong_in(page, *look) for look in LOOKS} | {"console": complaints, "pictures": broken}
    return {where: found for where, found in wrong.items() if found}


def _wrong_in(page, width, scheme):
    page.set_viewport_size({"width": width, "height": 900})
    dress(page, scheme)
    return found_by_axe(page) + (["scrolls sideways"] if scrolls_sideways(page) else [])


@dataclass(frozen=True)
class Seen:
    """What a browser made of a page."""

    console: list[str]
    images: int
    broken: int
    sideways: bool
    """Whether it must be scrolled to the right."""
    fetched: int
    """Resources that were asked for by address."""


def open_in_browser(page: Path, room: Path, *, width: int = 1200) -> Seen:
    """Load a page in a headless browser that has no network."""
    copy = room / "looked-at.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{_LOOK}</body>"), encoding="utf-8")
    done = subprocess.run(
        [
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={room / 'browser'}",
            f"--window-size={width},900",
            "--enable-logging=stderr",
            "--virtual-time-budget=20000",
            "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"HOME": str(room)},
    )
    found = re.search(r"<title>SEEN (\d+) (\d+) (\w+) (\d+)</title>", done.stdout)
    assert found, done.stderr
    images, broken, sideways, fetched = found.groups()
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(console, int(images), int(broken), sideways == "true", int(fetched))
