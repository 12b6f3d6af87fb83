"""The site of the pages: built without a network, whole, and with no link that leads nowhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from page import BROWSER, found_by_axe, needs_browser

import hemafast as hf
from hemafast.presets import PRESETS

pytest.importorskip("material", reason="mkdocs-material is not installed")

ROOT = Path(__file__).resolve().parent.parent
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}
"""Elements that make a browser fetch something by itself."""


class Page(HTMLParser):
    """Names that a page can be entered at, links on it, and what it loads."""

    def __init__(self, text):
        super().__init__()
        self.names, self.links, self.loads = {""}, set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.names.add(found.get("id"))
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        if tag in LOADED and LOADED[tag] in found:
            self.loads.add(found[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site, and its pages by path. No socket is opened for it."""
    folder = tmp_path_factory.mktemp("site")
    build = "import socket, runpy, sys; socket.socket.connect = None; runpy.run_module('mkdocs', run_name='__main__')"
    command = [sys.executable, "-c", build, "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, {path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}


def leads_nowhere(folder, pages, path, link):
    """Whether there is no such file in the site, or no such name on its page."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return False
    there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    there = there / "index.html" if there.is_dir() else there
    known = pages[there].names if there in pages else {""}
    return not there.is_relative_to(folder) or not there.is_file() or unquote(parts.fragment) not in known


def test_every_page_is_there_and_every_link_leads_somewhere(site):
    folder, pages = site
    built = {path.relative_to(folder).as_posix() for path in pages}
    assert {"index.html", "docs/start.html", "benchmarks/index.html"} <= built
    assert {f"docs/{page.stem}.html" for page in (ROOT / "docs").glob("*.md")} <= built
    wrong = [
        (path.relative_to(folder).as_posix(), link)
        for path, page in pages.items()
        if path.name != "404.html"  # its links are those of a server's root
        for link in page.links | page.loads
        if leads_nowhere(folder, pages, path, link)
    ]
    assert not wrong


def test_a_page_loads_nothing_from_elsewhere(site):
    folder, pages = site
    assert not {one for page in pages.values() for one in page.loads if urlsplit(one).netloc}
    styles = "".join(file.read_text(encoding="utf-8") for file in folder.rglob("*.css"))
    assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", styles)


def test_the_reference_holds_every_public_name_and_every_command(site):
    folder, pages = site
    assert {f"hemafast.{name}" for name in hf.__all__} <= pages[folder / "docs" / "api.html"].names
    commands = (folder / "docs" / "commands.html").read_text(encoding="utf-8")
    assert {"train", "prepare", "predict"} <= pages[folder / "docs" / "commands.html"].names
    assert all(option in commands for option in ("--time-budget", "--um-per-pixel", "--part"))


def test_the_list_of_messages_is_that_of_the_code(site):
    folder, _ = site
    text = (folder / "docs" / "troubleshooting.html").read_text(encoding="utf-8")
    assert "There is no preset …." in text
    assert all(name not in text for name in ("<!-- site", "{path}"))
    assert len(re.findall("<tr>", text)) > 250


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_among_the_recipes(name):
    assert f"| `{name}` |" in (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


@needs_browser
@pytest.mark.nightly
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_at_aa_on_a_phone(site, scheme):
    folder, _ = site
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 900}, offline=True, color_scheme=scheme)
        found = []
        for name in ("index.html", "docs/api.html", "docs/distributed.html", "docs/recipes.html"):
            page.goto((folder / name).as_uri())
            found += [(name, *one) for one in found_by_axe(page)]
        browser.close()
    assert found == []
