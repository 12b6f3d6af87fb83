"""How large the map of many cells is, what it takes to make, and how long a browser needs for a frame of it.

    python benchmarks/map_page.py RUN IMAGES... --json benchmarks/results/map_page.json

Embeds IMAGES with RUN, as `hemafast embed --map` does, and repeats cells until there are CELLS of them: features get
noise of NOISE of their spread, pictures stay as they are. The page is opened in Chromium without a graphics card. Times
are seconds of the processor, so that other work on the machine counts little: those of the page's own thread, which
keeps a hand waiting, and those of all processes of the browser, which also paint and decode.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from output import JsonFile, write_json
from playwright.sync_api import CDPSession, Page, sync_playwright

from hemafast.config import Device
from hemafast.deploy.embed import Embeddings, embed_images
from hemafast.deploy.inputs import list_inputs
from hemafast.deploy.labels import read_told
from hemafast.deploy.model import open_model
from hemafast.engine.machine import machine_facts
from hemafast.report.map import plane_of, tile_side, write_map

NOISE = 0.05
SIZES = {"desk": (1440, 900), "phone": (390, 844)}
STEPS = 40
"""Events of each kind; each is a frame of its own."""
_TIMES = ("page", "worst", "browser")
_FRAME = "() => new Promise(go => requestAnimationFrame(() => requestAnimationFrame(go)))"


def main(
    run: Annotated[Path, typer.Argument(help="A run, or its model.")],
    images: Annotated[list[Path], typer.Argument(help="Zips or folders with one folder per class.")],
    json_file: JsonFile,
    cells: Annotated[int, typer.Option(min=10, help="Points of the map.")] = 50_000,
    keep: Annotated[Path | None, typer.Option(help="Keep the page as this file.")] = None,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = "auto",
) -> None:
    """Make a map, open it, and write the result."""
    embedded = _embedded(run, images, cells, device)
    found = _repeated(embedded, cells)
    with tempfile.TemporaryDirectory() as room:
        page = Path(room) / "map.html"
        plane, planning = _timed(lambda: plane_of(found.features))
        _, writing = _timed(lambda: write_map(page, found.table, plane, found.tiles, title=f"Seen by {run.name}"))
        result = {
            "command": f"python benchmarks/map_page.py RUN IMAGES --cells {cells}",
            "machine": machine_facts("cpu"),
            "cells": cells,
            "different": len(embedded.table),
            "dimensions": found.features.shape[1],
            "tile_px": found.tiles.shape[1],
            "megabytes": round(page.stat().st_size / 1e6, 1),
            "umap_s": round(planning, 1),
            "writing_s": round(writing, 1),
            "browser": {name: _watched(page, *size) for name, size in SIZES.items()},
        }
        if keep is not None:
            shutil.copyfile(page, keep)
    write_json(result, json_file)


def _embedded(run: Path, images: list[Path], cells: int, device: Device) -> Embeddings:
    listed = list_inputs(images)
    names = [image.name for image in listed]
    model = open_model(run, device=device)
    told = read_told(names, "own", columns=None, groups=None, classes=model.classes)
    return embed_images(model, listed, tile=tile_side(cells)).told(told).of_readable()


def _repeated(found: Embeddings, cells: int) -> Embeddings:
    places = np.arange(cells) % len(found.table)
    noise = np.random.default_rng(0).normal(scale=NOISE, size=(cells, found.features.shape[1])).astype(np.float32)
    noise *= found.features.std(axis=0)
    noise[: len(found.table)] = 0
    table = found.table.iloc[places].reset_index(drop=True)
    return replace(found, table=table, features=found.features[places] + noise, tiles=found.tiles[places])


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    made = work()
    return made, time.process_time() - started


def _watched(file: Path, width: int, height: int) -> dict[str, Any]:
    """Milliseconds of the processor of each thing that a user does on the page, a frame each."""
    browser_file = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_file, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": height}, offline=True)
        page.set_default_timeout(600_000)
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        clock = _Clock(page, devtools)
        found = {"open": clock.of(lambda _: page.goto(file.as_uri()), 1)}
        room = page.locator(".map > canvas").bounding_box()
        assert room is not None
        found |= {name: clock.of(do, steps) for name, (do, steps) in _deeds(page, room).items()}
        browser.close()
    return found


class _Clock:
    """Processor time of a page and of its browser."""

    def __init__(self, page: Page, devtools: CDPSession) -> None:
        self._page, self._devtools = page, devtools

    def of(self, do: Callable[[int], object], steps: int) -> dict[str, float]:
        """Milliseconds a step: of the page's own thread, mean and worst, and of all processes of the browser."""
        frames = []
        before = _browser_seconds()
        for step in range(steps):
            started = self._page_seconds()
            do(step)
            self._page.evaluate(_FRAME)
            frames.append(1000 * (self._page_seconds() - started))
        browser = 1000 * (_browser_seconds() - before) / steps
        return {name: round(value, 1) for name, value in zip(_TIMES, (mean(frames), max(frames), browser), strict=True)}

    def _page_seconds(self) -> float:
        told = {one["name"]: one["value"] for one in self._devtools.send("Performance.getMetrics")["metrics"]}
        return float(told["TaskDuration"])


def _browser_seconds() -> float:
    mine = [one for one in psutil.Process().children(recursive=True) if "chrom" in one.name()]
    return sum(sum(one.cpu_times()[:2]) for one in mine)


def _deeds(page: Page, room: Mapping[str, float]) -> dict[str, tuple[Callable[[int], object], int]]:
    """What a user does, and in how many steps."""
    spots = np.random.default_rng(0).uniform(0.2, 0.8, size=(STEPS, 2)).tolist()

    def to(x: float, y: float) -> None:
        page.mouse.move(room["x"] + x * room["width"], room["y"] + y * room["height"])

    def drag(step: int) -> None:
        if step == 0:
            to(0.2, 0.2)
            page.mouse.down()
        to(*[0.2 + 0.6 * step / STEPS] * 2)

    def save(_: int) -> None:
        with page.expect_download() as one:
            page.locator("[data-save]").click()
        assert one.value.path().stat().st_size > 0

    return {
        "hide": (lambda _: page.locator("[data-legend] button").first.click(), 2),
        "hover": (lambda step: to(*spots[step]), STEPS),
        "zoom": (lambda step: page.mouse.wheel(0, -100 if step < STEPS / 2 else 100), STEPS),
        "select": (drag, STEPS),
        "release": (lambda _: page.mouse.up(), 1),
        "save": (save, 1),
        "mode": (lambda _: page.locator("[value=move]").check(), 1),
        "move": (drag, STEPS),
        "drop": (lambda _: page.mouse.up(), 1),
        "colour": (lambda _: page.locator("[data-colour]").select_option("predicted"), 1),
    }


if __name__ == "__main__":
    typer.run(main)
