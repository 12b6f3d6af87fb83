"""The sides of the race in loaders.py: each an endless stream of finished batches of 224 px, from the same images.

    python benchmarks/loader_sides.py SIDE DATA THREADS BATCH        # answers on standard output, see `serve`
    python benchmarks/loader_sides.py write-PEER DATA THREADS BATCH  # writes what that peer reads, see WRITERS

A side imports what it needs when it starts: peers run in environments of their own, without hemafast. DATA is what
loaders.py lays out: files.txt (a path and a label per line), squares.npy, labels.npy, prepared/, litdata/, jpeg.beton
and raw.beton.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
from processes import cpu_seconds  # a script beside this one

Batches = Iterator[int]
"""Yields the number of images of each batch once it is ready."""

SIZE, PACKED = 224, 256
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_FEWEST_BATCHES = 20  # workers deliver in bursts: fewer of them would measure luck
_DRAINED = 8  # batches that may lie ready when a round begins
_QUIET_SECONDS = 0.1
_LONGEST_WAIT = 120.0


@dataclass(frozen=True)
class Race:
    """What every side is given."""

    data: Path
    threads: int
    batch: int

    def files(self) -> tuple[list[str], list[int]]:
        """Paths and labels."""
        lines = (self.data / "files.txt").read_text(encoding="utf-8").splitlines()
        return [line.rpartition(" ")[0] for line in lines], [int(line.rpartition(" ")[2]) for line in lines]

    def squares(self) -> Any:
        """Packed pixels, (n, 256, 256, 3). A plain array over the map: indexing it costs a third of a np.memmap."""
        return np.asarray(np.load(self.data / "squares.npy", mmap_mode="r"))

    def labels(self) -> Any:
        """Labels of the packed pixels."""
        return np.load(self.data / "labels.npy")


def hemafast(race: Race, source: str, policy: str, *, normalised: bool = False, **changes: Any) -> Batches:
    """Our loader from JPEG files or packed pixels, to uint8 or, normalised, to fp32."""
    from hemafast.data.augment import named_policy
    from hemafast.data.dataset import open_dataset
    from hemafast.data.graph import GraphShape
    from hemafast.data.loader import train_loader

    samples = open_dataset(race.data / "prepared").samples("train", SIZE)
    shape = GraphShape("cpu", source, PACKED, SIZE, race.batch, race.threads)  # type: ignore[arg-type]
    loader = train_loader(samples, policy=named_policy(policy, **changes), seed=0, shape=shape)
    for batch in (batch for _ in count() for batch in loader.epoch()):
        if normalised:
            _normalise(batch.images)
        yield len(batch.labels)


class _Items:
    """A map-style data set of pairs: `load` makes an image of each item, then `transform` changes it."""

    def __init__(
        self, items: Any, labels: Any, load: Callable[[Any], Any], transform: Callable[[Any], Any] | None = None
    ) -> None:
        self._items, self._labels, self._load, self.transform = items, labels, load, transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self._load(self._items[index])
        return (self.transform(image) if self.transform else image), int(self._labels[index])


def _load_pil(path: str) -> Any:
    from PIL import Image

    return Image.open(path).convert("RGB")


def _decode(data: Any) -> Any:
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(data, mode=ImageReadMode.RGB)


def _crop_and_flip_v1() -> Any:
    from torchvision import transforms

    steps = [transforms.RandomResizedCrop(SIZE, AREA, RATIO), transforms.RandomHorizontalFlip()]
    return transforms.Compose([*steps, transforms.PILToTensor()])


def _crop_and_flip_v2() -> Any:
    """On tensors. Each worker keeps to one thread."""
    import torch
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    return v2.Compose([v2.RandomResizedCrop(SIZE, AREA, RATIO, antialias=True), v2.RandomHorizontalFlip()])


def _load_tensor(path: str) -> Any:
    from torchvision.io import read_file

    return _decode(read_file(path))


def _data_loader(race: Race, dataset: Any) -> Batches:
    from torch.utils.data import DataLoader

    batches: Any = DataLoader(
        dataset, batch_size=race.batch, shuffle=True, num_workers=race.threads, persistent_workers=True, drop_last=True
    )
    return _endless(batches)


def _endless(loader: Any) -> Batches:
    """Epoch after epoch of a loader of images and labels."""
    return (len(labels) for _ in count() for _, labels in loader)


def torchvision_v1(race: Race) -> Batches:
    """torchvision's first transforms on Pillow images."""
    return _data_loader(race, _Items(*race.files(), _load_pil, _crop_and_flip_v1()))


def torchvision_v2(race: Race) -> Batches:
    """torchvision's second transforms on tensors."""
    return _data_loader(race, _Items(*race.files(), _load_tensor, _crop_and_flip_v2()))


def torchvision_reference(race: Race) -> Batches:
    """The reference's loader: resize, random resized crop, flip, rotation by 10 degrees, normalised to fp32."""
    from torchvision import transforms

    steps = [
        transforms.Resize(PACKED),
        transforms.RandomResizedCrop(SIZE, AREA, RATIO),
        transforms.RandomHorizontalFlip(),
        transforms.RandomRotation(10),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return _data_loader(race, _Items(*race.files(), _load_pil, transforms.Compose(steps)))


def timm_loader(race: Race) -> Batches:
    """timm's loader, uint8 as it leaves the workers."""
    import torch
    from timm.data import create_loader

    loader: Any = create_loader(
        _Items(*race.files(), _load_pil),
        input_size=(3, SIZE, SIZE),
        batch_size=race.batch,
        is_training=True,
        scale=AREA,
        ratio=RATIO,
        hflip=0.5,
        color_jitter=None,
        interpolation="bilinear",
        num_workers=race.threads,
        device=torch.device("cpu"),
        persistent_workers=True,
    )
    return _endless(loader.loader)


def torch_packed(race: Race) -> Batches:
    """A DataLoader over the same memory map: crop and the eight symmetries in numpy."""
    return _data_loader(race, _Items(race.squares(), race.labels(), _crop_and_turn))


def _crop_and_turn(square: Any) -> Any:
    top, left, turns, mirror = np.random.randint([PACKED - SIZE + 1, PACKED - SIZE + 1, 4, 2])  # noqa: NPY002
    view = np.rot90(square[top : top + SIZE, left : left + SIZE], turns)
    return np.ascontiguousarray(view[:, ::-1] if mirror else view)


def dali_files(race: Race) -> Batches:
    """DALI as its documentation shows it: random crop in the decoder, resize, flip."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def  # type: ignore[untyped-decorator]
    def graph() -> Any:
        encoded, labels = fn.readers.file(file_list=str(race.data / "files.txt"), random_shuffle=True, name="reader")
        images = fn.decoders.image_random_crop(
            encoded, device="cpu", output_type=types.RGB, random_area=AREA, random_aspect_ratio=RATIO
        )
        images = fn.resize(images, resize_x=SIZE, resize_y=SIZE, interp_type=types.INTERP_TRIANGULAR)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    return _piped(graph(batch_size=race.batch, num_threads=race.threads, device_id=None))


def dali_packed(race: Race) -> Batches:
    """DALI's crop_mirror_normalize to uint8: crop and one flip, as it knows no quarter turns."""
    from nvidia.dali import fn, pipeline_def, types

    squares = race.squares()
    all_labels = race.labels()

    def batches() -> Iterator[Any]:
        while True:
            order = np.random.default_rng().permutation(len(squares))
            for start in range(0, len(order) - race.batch + 1, race.batch):
                rows = order[start : start + race.batch]
                yield [squares[row] for row in rows], all_labels[rows]

    @pipeline_def  # type: ignore[untyped-decorator]
    def graph() -> Any:
        images, labels = fn.external_source(source=batches(), num_outputs=2, no_copy=True)
        views = fn.crop_mirror_normalize(
            images,
            dtype=types.UINT8,
            output_layout="HWC",
            crop=(SIZE, SIZE),
            crop_pos_x=fn.random.uniform(range=(0, 1)),
            crop_pos_y=fn.random.uniform(range=(0, 1)),
            mirror=fn.random.coin_flip(),
            mean=[0.0],
            std=[1.0],
        )
        return views, labels

    return _piped(graph(batch_size=race.batch, num_threads=race.threads, device_id=None))


def dali_reference(race: Race, *, fused: bool) -> Batches:
    """DALI's own operators for the reference's policy: resize and nearest-neighbour warp, or one bilinear warp."""
    from nvidia.dali import fn, pipeline_def, types
    from torch.utils.dlpack import from_dlpack

    squares = race.squares()

    def batches() -> Iterator[Any]:
        for rows, window, turn in _seed_draws(race):
            scale = (window[:, 2:] - window[:, :2])[:, ::-1, None] / SIZE
            whole = np.concatenate([scale * turn[:, :, :2], scale * turn[:, :, 2:] + window[:, 1::-1, None]], axis=2)
            yield [squares[row] for row in rows], window, np.ascontiguousarray((whole if fused else turn), np.float32)

    @pipeline_def  # type: ignore[untyped-decorator]
    def graph() -> Any:
        images, window, turn = fn.external_source(source=batches(), num_outputs=3, no_copy=True)
        if not fused:
            images = fn.resize(images, roi_start=window[0:2], roi_end=window[2:4], size=(SIZE, SIZE), antialias=True)
        how = types.INTERP_LINEAR if fused else types.INTERP_NN
        return fn.warp_affine(images, matrix=turn, size=(SIZE, SIZE), interp_type=how, fill_value=0), window

    pipeline = graph(batch_size=race.batch, num_threads=race.threads, device_id=None)
    while True:
        images, _ = pipeline.run()
        _normalise(from_dlpack(images.as_tensor()).permute(0, 3, 1, 2))
        yield race.batch


def grid_sample(race: Race) -> Batches:
    """The reference's policy by torch's grid_sample, as a step on the device could do it, normalised to fp32."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(race.threads)
    squares = torch.from_numpy(race.squares().copy())
    for rows, window, turn in _seed_draws(race):
        whole = torch.from_numpy(_in_unit_square(window, turn))
        images = _normalise(squares[torch.from_numpy(rows)].permute(0, 3, 1, 2))
        grid = functional.affine_grid(whole, [len(rows), 3, SIZE, SIZE], align_corners=False)
        functional.grid_sample(images, grid, align_corners=False)
        yield len(rows)


def _in_unit_square(window: Any, turn: Any) -> Any:
    """Maps from a view to a square, both from -1 to 1, as affine_grid has them: (n, 2, 3) fp32."""
    side = (window[:, 2:] - window[:, :2])[:, ::-1, None] / PACKED
    centre = (window[:, 1::-1] + window[:, 3:1:-1])[:, :, None] / PACKED - 1
    return np.ascontiguousarray(np.concatenate([side * turn[:, :, :2], centre], axis=2), np.float32)


def _seed_draws(race: Race) -> Iterator[Any]:
    """Rows, windows and turns of batches under the reference's policy."""
    from hemafast.data.augment import POLICIES, draw_views

    images = len(race.labels())
    generator = np.random.default_rng(0)
    while True:
        views, order = draw_views(POLICIES["seed"], PACKED, SIZE, images, generator), generator.permutation(images)
        for start in range(0, images - race.batch + 1, race.batch):
            part = slice(start, start + race.batch)
            yield order[part], views.window[part], np.ascontiguousarray(views.turn[part])


def _normalise(images: Any) -> Any:
    """fp32 of uint8 (n, 3, height, width), as the network's first step does it."""
    import torch

    deviation = torch.tensor(STD)
    scale = (1 / (255 * deviation)).view(1, 3, 1, 1)
    shift = (-torch.tensor(MEAN) / deviation).view(1, 3, 1, 1)
    return torch.addcmul(shift, images.float(), scale)


def _piped(pipeline: Any) -> Batches:
    from torch.utils.dlpack import from_dlpack

    while True:
        images, _ = pipeline.run()
        yield len(from_dlpack(images.as_tensor()))


def webdataset(race: Race) -> Batches:
    """Tars, Pillow, torchvision's first transforms."""
    import webdataset as wds

    tars = sorted(str(path) for path in (race.data / "prepared" / "webdataset").glob("train-*.tar"))
    dataset = (
        wds.WebDataset(tars, shardshuffle=len(tars), resampled=True)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(_crop_and_flip_v1(), int)
    )
    loader: Any = wds.WebLoader(dataset, batch_size=race.batch, num_workers=race.threads)
    return (len(labels) for _, labels in loader)


def spdl(race: Race) -> Batches:
    """Decoding, cropping, scaling and flipping in FFmpeg."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    generator = np.random.default_rng()

    def paths() -> Iterator[str]:
        files, _ = race.files()
        while True:
            yield from (files[index] for index in generator.permutation(len(files)))

    def decode(path: str) -> Any:
        packets: Any = spdl.io.demux_image(path)
        top, left, height, width = _random_crop(packets.height, packets.width, generator)
        flip = ",hflip" if generator.random() < 0.5 else ""
        scale = f"crop={width}:{height}:{left}:{top},scale={SIZE}:{SIZE}:flags=bilinear{flip},format=pix_fmts=rgb24"
        return spdl.io.decode_packets(packets, filter_desc=scale)

    def convert(frames: Any) -> Any:
        return spdl.io.to_numpy(spdl.io.convert_frames(frames))

    pipeline: Any = (
        PipelineBuilder()
        .add_source(paths())
        .pipe(decode, concurrency=race.threads)
        .aggregate(race.batch)
        .pipe(convert)
        .add_sink(4)
        .build(num_threads=race.threads + 1)  # one of them puts batches together
    )
    with pipeline.auto_stop():
        for batch in pipeline:
            yield len(batch)


def _random_crop(height: int, width: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop by area and ratio."""
    for _ in range(10):
        target = height * width * generator.uniform(*AREA)
        ratio = float(np.exp(generator.uniform(*np.log(RATIO).tolist())))
        wide, high = round((target * ratio) ** 0.5), round((target / ratio) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            return int(generator.integers(height - high + 1)), int(generator.integers(width - wide + 1)), high, wide
    return 0, 0, height, width


def litdata(race: Race) -> Batches:
    """Chunks of JPEG bytes, torchvision's second transforms on tensors."""
    import torch
    from litdata import StreamingDataLoader, StreamingDataset

    steps = _crop_and_flip_v2()

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            item = super().__getitem__(index)
            return steps(_decode(torch.frombuffer(bytearray(item["image"]), dtype=torch.uint8))), item["label"]

    dataset = Images(str(race.data / "litdata"), shuffle=True, drop_last=True)
    loader: Any = StreamingDataLoader(
        dataset, batch_size=race.batch, num_workers=race.threads, persistent_workers=True, drop_last=True
    )
    return _endless(loader)


def ffcv(race: Race, beton: str, *, scaled: bool = True, flip: bool = True) -> Batches:
    """A random resized crop; or, not scaled, a crop of the view's own size, which is FFCV's fastest way."""
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    area, ratio = (AREA, RATIO) if scaled else (((SIZE / PACKED) ** 2,) * 2, (1.0, 1.0))
    crop = RandomResizedCropRGBImageDecoder((SIZE, SIZE), area, ratio)
    loader = Loader(
        str(race.data / beton),
        batch_size=race.batch,
        num_workers=race.threads,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={
            "image": [crop, *([RandomHorizontalFlip()] if flip else []), ToTensor()],
            "label": [IntDecoder(), ToTensor()],
        },
    )
    return _endless(loader)


def memory_copy(race: Race) -> Batches:
    """No loader: batches of views copied from one place of memory to another by all threads."""
    import torch

    torch.set_num_threads(race.threads)
    views = [torch.randint(0, 256, (race.batch, SIZE, SIZE, 3), dtype=torch.uint8) for _ in range(8)]
    target = torch.empty_like(views[0])
    for view in cycle(views):
        target.copy_(view)
        yield race.batch


@dataclass(frozen=True)
class Side:
    """A loader in the race."""

    title: str
    start: Callable[[Race], Batches]
    peer: str | None = None
    """The environment that it runs in; None for ours."""

    @property
    def ours(self) -> bool:
        """Whether it is hemafast."""
        return getattr(self.start, "func", None) is hemafast


TASKS: dict[str, dict[str, Side]] = {
    "JPEG, random resized crop and flip, to uint8": {
        "hemafast_files": Side("hemafast, files", partial(hemafast, source="files", policy="seed", rotation=0.0)),
        "torchvision_v1": Side("torchvision v1 + Pillow", torchvision_v1),
        "torchvision_v2": Side("torchvision v2 on tensors", torchvision_v2),
        "timm_loader": Side("timm", timm_loader),
        "dali_files": Side("DALI as documented", dali_files),
        "webdataset": Side("webdataset + torchvision v1", webdataset, "webdataset"),
        "spdl": Side("SPDL", spdl, "spdl"),
        "litdata": Side("litdata + torchvision v2", litdata, "litdata"),
        "ffcv_jpeg": Side("FFCV, JPEG", partial(ffcv, beton="jpeg.beton"), "ffcv"),
    },
    "stored pixels of 256 px to uint8": {
        "hemafast_packed": Side(
            "hemafast, packed: crop and eight symmetries", partial(hemafast, source="packed", policy="basic")
        ),
        "hemafast_packed_crop": Side(
            "hemafast, packed: crop alone", partial(hemafast, source="packed", policy="basic", symmetry="none")
        ),
        "hemafast_packed_resized": Side(
            "hemafast, packed: random resized crop and flip",
            partial(hemafast, source="packed", policy="seed", rotation=0.0),
        ),
        "torch_packed": Side("DataLoader on the memory map: crop and eight symmetries", torch_packed),
        "dali_packed": Side("DALI as documented: crop and flip", dali_packed),
        "ffcv_raw": Side("FFCV, raw: random resized crop and flip", partial(ffcv, beton="raw.beton"), "ffcv"),
        "ffcv_raw_crop": Side(
            "FFCV, raw: crop alone", partial(ffcv, beton="raw.beton", scaled=False, flip=False), "ffcv"
        ),
        "ffcv_raw_crop_flip": Side("FFCV, raw: crop and flip", partial(ffcv, beton="raw.beton", scaled=False), "ffcv"),
        "memory_copy": Side("(copying as many bytes in memory)", memory_copy),
    },
    "the reference's augmentation, to normalised fp32": {
        "torchvision_reference": Side("torchvision v1 + Pillow (the reference)", torchvision_reference),
        "hemafast_seed_files": Side(
            "hemafast, files", partial(hemafast, source="files", policy="seed", normalised=True)
        ),
        "hemafast_seed_packed": Side(
            "hemafast, packed", partial(hemafast, source="packed", policy="seed", normalised=True)
        ),
        "dali_two_operators": Side("DALI's resize and warp, packed", partial(dali_reference, fused=False)),
        "dali_one_warp": Side("one bilinear warp of DALI, packed", partial(dali_reference, fused=True)),
        "grid_sample": Side("torch grid_sample, packed", grid_sample),
    },
}
SIDES = {name: side for sides in TASKS.values() for name, side in sides.items()}


def write_ffcv(race: Race) -> None:
    """Write jpeg.beton and raw.beton. FFCV encodes JPEG anew, at its default quality of 90."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    files = _Items(*race.files(), _load_pil)
    squares = _Items(race.squares(), race.labels(), np.asarray)
    for name, mode, images in (("jpeg", "jpg", files), ("raw", "raw", squares)):
        fields = {"image": RGBImageField(write_mode=mode), "label": IntField()}
        DatasetWriter(str(race.data / f"{name}.beton"), fields, num_workers=race.threads).from_indexed_dataset(images)


def write_litdata(race: Race) -> None:
    """Write the files into chunks in litdata/."""
    from litdata import optimize

    items = list(zip(*race.files(), strict=True))
    optimize(fn=_litdata_item, inputs=items, output_dir=str(race.data / "litdata"), chunk_bytes="64MB", num_workers=1)


def _litdata_item(item: tuple[str, int]) -> dict[str, Any]:
    path, label = item
    return {"image": Path(path).read_bytes(), "label": label}


WRITERS: dict[str, Callable[[Race], None]] = {"ffcv": write_ffcv, "litdata": write_litdata}
"""Of the peers that read a format of their own."""


def serve(batches: Batches, answers: Any) -> None:
    """Answer each number of seconds on standard input with a measurement, as a line of JSON, until it ends.

    A measurement is [images, seconds, processor seconds of this process and its children] of whole batches.
    """
    for line in sys.stdin:
        answers.write(json.dumps(_measure(batches, float(line))) + "\n")
        answers.flush()


def _measure(batches: Batches, seconds: float) -> tuple[int, float, float]:
    for _ in range(_DRAINED):
        next(batches)
    images, cpu, started = 0, cpu_seconds(), time.perf_counter()
    for number in count():
        elapsed = time.perf_counter() - started
        if elapsed >= seconds and number >= _FEWEST_BATCHES:
            break
        images += next(batches)
    measured = images, elapsed, cpu_seconds() - cpu
    _settle()
    return measured


def _settle() -> None:
    """Wait until reading ahead is over, so that the next side has the machine to itself."""
    deadline, before = time.perf_counter() + _LONGEST_WAIT, cpu_seconds()
    while time.perf_counter() < deadline:
        time.sleep(_QUIET_SECONDS)
        now = cpu_seconds()
        if now - before < _QUIET_SECONDS / 5:
            return
        before = now


def main() -> None:
    """Run one side, or write what a peer reads."""
    name, data, threads, batch = sys.argv[1:]
    race = Race(Path(data), int(threads), int(batch))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    if name.startswith("write-"):
        WRITERS[name.removeprefix("write-")](race)
    else:
        _keep_freed_memory()
        serve(SIDES[name].start(race), answers)


def _keep_freed_memory() -> None:
    """What `hemafast train` does for itself, done for every side: glibc returns no large buffer to the kernel."""
    import ctypes

    mallopt = ctypes.CDLL("libc.so.6").mallopt
    for option, value in ((-3, 1 << 30), (-1, 2**31 - 1), (-2, 256 << 20)):
        mallopt(option, value)


if __name__ == "__main__":
    main()
