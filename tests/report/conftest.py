"""A run whose names are meant to break a page, and pages in a real browser."""

import contextlib

import pytest
from hostile import HOSTILE_CLASSES, HOSTILE_DOMAINS
from page import BROWSER

from hemafast.config import PrepareConfig
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.preparation.build import prepare


@pytest.fixture(scope="session")
def hostile(tmp_path_factory, make_archive, train_on):
    """A scored run on drawn cells, from random weights that nobody asked for."""
    source = tmp_path_factory.mktemp("hostile")
    counts = dict.fromkeys(HOSTILE_CLASSES, 6)
    drawn = {"DRAWN.txt": b"drawn"}
    for seed, domain in enumerate(HOSTILE_DOMAINS):
        make_archive(source / domain, counts, seed=seed, extra=drawn)
    config = PrepareConfig(source=source, output=source / "prepared", pack_sizes=(64,), classes="from-data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(source / ".cache"))
        folder = train_on(prepare(config).folder, epochs=1, pretrained="auto")
    evaluate_run(folder)
    return folder


@pytest.fixture(scope="module")
def open_page():
    """`open_page(file, width=1200)`: the page and what it complained of, without a network."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with contextlib.ExitStack() as stack:
        playwright = stack.enter_context(sync_api.sync_playwright())
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        stack.callback(browser.close)

        def load(file, width=1200):
            page = browser.new_page(viewport={"width": width, "height": 900}, offline=True)
            complaints = []
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: complaints.append(request.url) if "data:" not in request.url else None)
            page.goto(file.as_uri())
            return page, complaints[1:]  # the first request is the page itself

        yield load
