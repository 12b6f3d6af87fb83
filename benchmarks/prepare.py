"""What preparing costs beside decoding alone, and how time and memory grow with the number of images.

    python benchmarks/prepare.py --source DIR_WITH_THE_ARCHIVES --json benchmarks/results/prepare.json

Speed: `hemafast prepare` (reading, hashing, strict verification, decoding, near duplicates, writing, waiting for the
disk) and DALI's decoding and resizing of the same files from memory, in turn, in one process, with the same threads;
once in the way of DALI's documentation, and once by the operators that prepare uses. All archives together, and each on
its own; an archive of few images then with its images turned and flipped besides.
Growth: archives of 300, 3,000 and 30,000 images, each prepared in a process of its own. The images are the real ones
turned, flipped, enlarged and encoded again (JPEG of quality 95), so that no two show the same picture. Each is prepared
a second time, which must change nothing; and the comparison of 33,000 perceptual hashes is timed alone.
Whatever is written stays to the end: ext4 looks through the files deleted in the last five minutes at every new one,
which makes writing ten times slower. So begin on a disk that has been left alone for that long, with 20 GB to spare.
Refuses drawn archives.
"""

from __future__ import annotations

import io
import os
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from output import JsonFile, machine_line, ranged, table, write_json
from PIL import Image
from processes import cost_of, cpu_seconds

from hemafast.config import AUTO_FIELD_OF_VIEW, PrepareConfig
from hemafast.engine.machine import machine_facts
from hemafast.preparation.build import prepare
from hemafast.preparation.duplicates import find_near
from hemafast.preparation.pixels import centre_windows, cut_window, decode_image
from hemafast.preparation.sources.containers import read_files
from hemafast.preparation.sources.gather import Member, gather
from hemafast.taxonomy import UM_PER_PIXEL

PREPARE, PLAIN, OURS = "prepare", "DALI, shorter side to 256 and centre crop", "DALI, the operators of prepare"
ALL = "all archives, as they are"
FULL = {"Acevedo_20": 14_291, "Matek_19": 18_321}
"""Images of the whole challenge archives."""
FULL_GB = 11.2
"""Size of the archives: 0.24 GB of JPEG and about 11 GB of TIFF."""
_BATCH = 64
_ENOUGH = 900  # images; of fewer, the cost of starting would be most of what is measured
_TURNS = 8
_ENLARGED = 0.85  # share of the side that is kept


@dataclass(frozen=True)
class Archive:
    """An archive with the images of one laboratory."""

    domain: str
    path: Path
    drawn: bool
    members: Sequence[Member]

    def read(self, members: Sequence[Member]) -> list[bytes]:
        """The encoded images of some of its members."""
        return read_files([member.entry for member in members])


def _archives(source: Path) -> list[Archive]:
    """The archives of a folder, or the one that `source` is."""
    found = gather(PrepareConfig(source=source, output=source.parent / "prepared", classes="from-data"))
    folder = source if source.is_dir() else source.parent
    return [
        Archive(name, folder / domain.archive, domain.drawn, [one for one in found.members if one.domain == name])
        for name, domain in found.domains.items()
    ]


def main(
    source: Annotated[Path, typer.Option(help="Folder with real archives.")],
    json_file: JsonFile,
    rounds: Annotated[int, typer.Option(min=3, help="Measurements of each side.")] = 5,
    sizes: Annotated[list[int] | None, typer.Option(help="Images to measure growth at.")] = None,
) -> None:
    """Measure, and write the result."""
    archives = _archives(source)
    if any(archive.drawn for archive in archives):
        sys.exit(f"{source} holds drawn cells; no speed on them is worth keeping.")
    largest = max(archives, key=lambda archive: len(archive.members))
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        result = {
            "machine": machine_facts("cpu"),
            "rounds": rounds,
            "speed": {
                name: {
                    "originals": sum(len(archive.members) for archive in chosen),
                    **_speed([_enough(archive, room) for archive in chosen] if name != ALL else chosen, rounds, room),
                }
                for name, chosen in ({ALL: archives} | {archive.domain: [archive] for archive in archives}).items()
            },
            "growth": [_growth(largest, size, room) for size in sizes or [300, 3_000, 30_000]],
            "comparison": _comparison(33_000),
        }
    write_json(result, json_file)


def _enough(archive: Archive, room: Path) -> Archive:
    """The archive, or where it is small, one of all turns and flips of its images."""
    images = len(archive.members)
    if images >= _ENOUGH:
        return archive
    path = Path(tempfile.mkdtemp(dir=room), archive.path.name)
    _write_variants(archive, path, images * min(_TURNS, -(-_ENOUGH // images)))
    return _archives(path)[0]


def _speed(archives: Sequence[Archive], rounds: int, room: Path) -> dict[str, Any]:
    """Images a second, and a CPU-second, of both sides."""
    encoded = [data for archive in archives for data in archive.read(archive.members)]
    size = np.array([Image.open(io.BytesIO(data)).size for data in encoded])
    sides = np.minimum([window for archive in archives for window in _windows(archive)], size.min(axis=1))
    windows = centre_windows(size[:, 0], size[:, 1], sides)
    threads = len(os.sched_getaffinity(0))
    ours = _our_pipeline(threads)

    def decode() -> None:
        for start in range(0, len(encoded), _BATCH):
            ours.feed_input("encoded", [np.frombuffer(data, np.uint8) for data in encoded[start : start + _BATCH]])
            ours.feed_input("window", windows[start : start + _BATCH])
            ours.run()

    plain = _plain_pipeline(threads)

    def decode_plainly() -> None:
        for start in range(0, len(encoded), _BATCH):
            plain.feed_input("encoded", [np.frombuffer(data, np.uint8) for data in encoded[start : start + _BATCH]])
            plain.run()

    contestants = {
        PREPARE: lambda folder: _prepare(archives, folder),
        PLAIN: lambda folder: decode_plainly(),
        OURS: lambda folder: decode(),
    }
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, work in contestants.items():
            time_taken = _timed(partial(work, Path(tempfile.mkdtemp(dir=room))))
            if number:  # the first round fills caches
                measured[name].append(time_taken)
    images = len(encoded)
    return {
        "images": images,
        "sides": {
            name: {
                "images_per_second": _spread([images / wall for wall, _ in times]),
                "images_per_cpu_second": _spread([images / cpu for _, cpu in times]),
            }
            for name, times in measured.items()
        },
        "shares": {
            name: _spread([alone / whole for (whole, _), (alone, _) in zip(measured[PREPARE], times, strict=True)])
            for name, times in measured.items()
            if name != PREPARE
        },
    }


def _windows(archive: Archive) -> list[int]:
    """Side in pixels of what prepare keeps of each image by default, where the image shows as much."""
    scale = UM_PER_PIXEL.get(archive.domain)
    return [round(AUTO_FIELD_OF_VIEW / scale) if scale else sys.maxsize] * len(archive.members)


def _prepare(archives: Sequence[Archive], folder: Path) -> None:
    for archive in archives:
        (folder / archive.path.name).symlink_to(archive.path.resolve())
    prepare(PrepareConfig(source=folder, output=folder / "prepared"))


def _plain_pipeline(threads: int) -> Any:
    """DALI as its documentation resizes: the shorter side to 256, then the centre."""
    from nvidia.dali import Pipeline, fn, types

    with Pipeline(_BATCH, threads, device_id=None, prefetch_queue_depth=1) as pipeline:
        encoded = fn.external_source(name="encoded", no_copy=True)
        pixels = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        pixels = fn.resize(pixels, resize_shorter=256, interp_type=types.INTERP_LINEAR, antialias=True)
        pipeline.set_outputs(fn.crop(pixels, crop=(256, 256)))
    return pipeline


def _our_pipeline(threads: int) -> Any:
    """DALI's decoder, and the operator that cuts squares in prepare."""
    from nvidia.dali import Pipeline, fn

    with Pipeline(_BATCH, threads, device_id=None, prefetch_queue_depth=1, exec_dynamic=True) as pipeline:
        pixels = decode_image(fn.external_source(name="encoded", no_copy=True), "cpu")
        window = fn.external_source(name="window", ndim=1)
        pipeline.set_outputs(pixels, cut_window(pixels, window, 256, compiled=True))
    return pipeline


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    """Wall-clock seconds, and CPU seconds of this process and its children: in one of them DALI reads for prepare."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    work()
    return time.perf_counter() - wall, cpu_seconds() - cpu


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _growth(archive: Archive, size: int, room: Path) -> dict[str, float]:
    """Seconds and peak memory of preparing images in a process of its own, and seconds of a second call."""
    source = Path(tempfile.mkdtemp(dir=room))
    _write_variants(archive, source / archive.path.name, size)
    command = ["-m", "hemafast", "prepare", "--source", str(source), "--json"]
    return {"images": size, **cost_of(command), "seconds_again": cost_of(command)["seconds"]}


def _comparison(images: int) -> dict[str, float]:
    """Seconds to compare the perceptual hashes of all pairs of images."""
    hashes = np.random.default_rng(0).integers(0, 2**63, (images, 4), dtype=np.uint64)
    started = time.perf_counter()
    find_near(hashes)
    return {"images": images, "seconds": time.perf_counter() - started}


def _write_variants(archive: Archive, path: Path, count: int) -> None:
    """A zip of `count` images, none like another."""
    members = archive.members
    with zipfile.ZipFile(path, "w") as file, ThreadPoolExecutor() as pool:
        for start in range(0, count, _BATCH):
            numbers = range(start, min(start + _BATCH, count))
            chosen = [members[number % len(members)] for number in numbers]
            data = archive.read(chosen)
            turns = [number // len(members) for number in numbers]
            for number, member, encoded in zip(numbers, chosen, pool.map(_variant, data, turns), strict=True):
                file.writestr(f"{member.label}/{number:06d}{Path(member.file).suffix}", encoded)


def _variant(data: bytes, number: int) -> bytes:
    """One of eight turns and flips, enlarged from the ninth on, in the format and layout that it had."""
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    edge = (1 - _ENLARGED) / 2 if number >= _TURNS else 0
    box = (edge * width, edge * height, (1 - edge) * width, (1 - edge) * height)
    pixels = np.rot90(np.asarray(image.resize(image.size, Image.Resampling.BICUBIC, box=box)), number % 4)
    flipped = pixels[:, ::-1] if number % _TURNS >= _TURNS // 2 else pixels
    stream = io.BytesIO()
    Image.fromarray(flipped).save(stream, image.format, **({"quality": 95} if image.format == "JPEG" else {}))
    return stream.getvalue()


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Speed beside decoding alone, growth with the number of images, and what the whole archives would take."""
    result = results["prepare"]
    speed = [
        [
            domain,
            name,
            ranged(side["images_per_second"]),
            ranged(side["images_per_cpu_second"]),
            _reached(part["shares"].get(name)),
        ]
        for domain, part in result["speed"].items()
        for name, side in part["sides"].items()
    ]
    growth = [
        [
            f"{part['images']:,}",
            f"{part['seconds']:.1f}",
            f"{1000 * part['cpu_seconds'] / part['images']:.1f}",
            f"{part['peak_memory_mb']:,.0f}",
            f"{part['seconds_again']:.1f}",
        ]
        for part in result["growth"]
    ]
    counts = " and ".join(
        f"{part['images']:,} of {domain}"
        + (f", made from {part['originals']} by turns and flips" if part["images"] > part["originals"] else "")
        for domain, part in result["speed"].items()
        if domain in FULL
    )
    beside = (
        f"Real images ({counts}), packed at 256 px; {result['rounds']} interleaved rounds, median (min to max). "
        f"{machine_line(result['machine'])}"
    )
    compared = result["comparison"]
    grown = (
        "Real images, turned, flipped, enlarged and encoded again, so that no two are alike; one process per row. "
        f"Comparing {compared['images']:,} perceptual hashes with each other takes {compared['seconds']:.1f} s."
    )
    speeds = table("images of | | images/s | images per CPU-second | prepare reaches", speed, beside)
    header = "images | seconds, imports included | CPU milliseconds an image | peak memory, MB | a second call, s"
    return {"prepare": f"{speeds}\n\n{table(header, growth, grown, _projection(result))}"}


def _reached(share: Mapping[str, float] | None) -> str:
    if share is None:
        return ""
    return f"**{100 * share['median']:.0f} %** ({100 * share['min']:.0f} to {100 * share['max']:.0f}) of it"


def _projection(result: Mapping[str, Any]) -> str:
    """The time that the whole archives would take at the measured rates."""
    seconds = {
        domain: images / result["speed"][domain]["sides"]["prepare"]["images_per_second"]["median"]
        for domain, images in FULL.items()
    }
    parts = ", ".join(f"{domain} {value:.0f} s" for domain, value in seconds.items())
    disk = FULL_GB + sum(FULL.values()) * 3 * 256**2 / 1e9
    return (
        f"> **Projection**, not a measurement: at these rates the full archives ({sum(FULL.values()):,} images, "
        f"{FULL_GB:.0f} GB) would take {sum(seconds.values()) / 60:.1f} minutes on this machine ({parts}), if the disk "
        f"keeps up, and {disk:.0f} GB of disk."
    )


if __name__ == "__main__":
    typer.run(main)
