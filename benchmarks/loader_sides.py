"""The sides of the race in loaders.py: each an endless stream of finished batches of 224 px, from the same images.

    python benchmarks/loader_sides.py SIDE DATA THREADS BATCH      # answers on standard output, see `serve`
    python benchmarks/loader_sides.py write-PEER DATA THREADS BATCH      # what WRITERS has for it

Every side imports what it needs when it is asked for, so that peers can run in environments of their own, where
hemafast is not installed. DATA is what loaders.py lays out:
files.txt (path and label a line), squares.npy and labels.npy, prepared/, litdata/, jpeg.beton and raw.beton.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil

Side = Iterator[int]
"""Yields the number of images of each batch once it is there."""

SIZE, PACKED = 224, 256
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_FEWEST_BATCHES = 20  # workers deliver in bursts: fewer would be measured by their luck
_DRAINED = 8  # batches that may lie ready when a round begins
_QUIET_SECONDS = 0.1
_LONGEST_WAIT = 120.0


@dataclass(frozen=True)
class Race:
    """What every side is given."""

    data: Path
    threads: int
    batch: int

    def files(self) -> list[tuple[str, int]]:
        """Paths and labels."""
        lines = (self.data / "files.txt").read_text(encoding="utf-8").splitlines()
        return [(path, int(label)) for path, _, label in (line.rpartition(" ") for line in lines)]


# hemafast


def _hemafast(race: Race, source: str, policy: Any) -> Iterator[Any]:
    from hemafast.data.dataset import open_dataset
    from hemafast.data.graph import GraphShape
    from hemafast.data.loader import train_loader

    samples = open_dataset(race.data / "prepared").samples("train", SIZE)
    shape = GraphShape("cpu", source, PACKED, SIZE, race.batch, race.threads)  # type: ignore[arg-type]
    loader = train_loader(samples, policy=policy, seed=0, shape=shape)
    return (batch for _ in count() for batch in loader.epoch())


def hemafast_files(race: Race) -> Side:
    """Our loader from JPEG: random resized crop and flip, uint8."""
    from hemafast.data.augment import named_policy

    policy = named_policy("seed", rotation=0.0)
    return (len(batch.labels) for batch in _hemafast(race, "files", policy))


def hemafast_packed(race: Race) -> Side:
    """Our loader from packed pixels under the default policy: crop and the eight symmetries, uint8."""
    from hemafast.data.augment import POLICIES

    return (len(batch.labels) for batch in _hemafast(race, "packed", POLICIES["basic"]))


def hemafast_packed_crop(race: Race) -> Side:
    """Our loader from packed pixels: crop alone, uint8."""
    from hemafast.data.augment import named_policy

    return (len(batch.labels) for batch in _hemafast(race, "packed", named_policy("basic", symmetry="none")))


def hemafast_packed_resized(race: Race) -> Side:
    """Our loader from packed pixels: random resized crop and flip, uint8."""
    from hemafast.data.augment import named_policy

    return (len(batch.labels) for batch in _hemafast(race, "packed", named_policy("seed", rotation=0.0)))


def _hemafast_seed(race: Race, source: str) -> Side:
    from hemafast.data.augment import POLICIES

    for batch in _hemafast(race, source, POLICIES["seed"]):
        _normalise(batch.images)
        yield len(batch.labels)


def hemafast_seed_files(race: Race) -> Side:
    """Our loader from JPEG under the reference's policy, normalised to fp32."""
    return _hemafast_seed(race, "files")


def hemafast_seed_packed(race: Race) -> Side:
    """Our loader from packed pixels under the reference's policy, normalised to fp32."""
    return _hemafast_seed(race, "packed")


# torchvision and timm


class _Files:
    """A map-style data set: what `load` makes of a path, then `transform`."""

    def __init__(self, race: Race, load: Callable[[str], Any], transform: Callable[[Any], Any] | None) -> None:
        self._files, self._load, self.transform = race.files(), load, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self._files[index]
        image = self._load(path)
        return (self.transform(image) if self.transform else image), label


def _load_pil(path: str) -> Any:
    from PIL import Image

    return Image.open(path).convert("RGB")


def _load_tensor(path: str) -> Any:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    return decode_jpeg(read_file(path), mode=ImageReadMode.RGB)


def _loaded(race: Race, dataset: Any) -> Side:
    from torch.utils.data import DataLoader

    batches: Any = DataLoader(
        dataset, batch_size=race.batch, shuffle=True, num_workers=race.threads, persistent_workers=True, drop_last=True
    )
    return (len(labels) for _ in count() for _, labels in batches)


def torchvision_v1(race: Race) -> Side:
    """torchvision's first transforms on Pillow images: random resized crop and flip, uint8."""
    from torchvision import transforms

    steps = [transforms.RandomResizedCrop(SIZE, AREA, RATIO), transforms.RandomHorizontalFlip()]
    return _loaded(race, _Files(race, _load_pil, transforms.Compose([*steps, transforms.PILToTensor()])))


def torchvision_v2(race: Race) -> Side:
    """torchvision's second transforms on tensors: random resized crop and flip, uint8."""
    import torch
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    steps = [v2.RandomResizedCrop(SIZE, AREA, RATIO, antialias=True), v2.RandomHorizontalFlip()]
    return _loaded(race, _Files(race, _load_tensor, v2.Compose(steps)))


def torchvision_reference(race: Race) -> Side:
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
    return _loaded(race, _Files(race, _load_pil, transforms.Compose(steps)))


def timm_loader(race: Race) -> Side:
    """timm's loader: random resized crop and flip, uint8 as it leaves the workers."""
    import torch
    from timm.data import create_loader

    loader: Any = create_loader(
        _Files(race, _load_pil, None),
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
    return (len(labels) for _ in count() for _, labels in loader.loader)


def torch_packed(race: Race) -> Side:
    """A DataLoader over the same memory map: crop and the eight symmetries in numpy, uint8."""
    return _loaded(race, _Squares(race))


def _squares(race: Race) -> Any:
    """A plain array over the map: indexing it costs a third of indexing a np.memmap."""
    return np.asarray(np.load(race.data / "squares.npy", mmap_mode="r"))


class _Squares:
    """Packed squares as a map-style data set."""

    def __init__(self, race: Race) -> None:
        self._squares = _squares(race)
        self._labels = np.load(race.data / "labels.npy")

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        top, left, turns, mirror = np.random.randint([PACKED - SIZE + 1, PACKED - SIZE + 1, 4, 2])  # noqa: NPY002
        view = np.rot90(self._squares[index, top : top + SIZE, left : left + SIZE], turns)
        return np.ascontiguousarray(view[:, ::-1] if mirror else view), int(self._labels[index])


# DALI


def dali_files(race: Race) -> Side:
    """DALI from JPEG as its documentation shows it: random crop in the decoder, resize, flip, uint8."""
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


def dali_packed(race: Race) -> Side:
    """DALI from the packed pixels: crop_mirror_normalize to uint8 (crop and one flip; it knows no quarter turns)."""
    from nvidia.dali import fn, pipeline_def, types

    squares = _squares(race)
    all_labels = np.load(race.data / "labels.npy")

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


def _dali_seed(race: Race, *, fused: bool) -> Side:
    """DALI's own operators for the reference's policy: resize and nearest-neighbour warp, or one bilinear warp."""
    from nvidia.dali import fn, pipeline_def, types
    from torch.utils.dlpack import from_dlpack

    squares = _squares(race)

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


def dali_two_operators(race: Race) -> Side:
    """The reference's policy from packed pixels by DALI's resize and warp, normalised to fp32."""
    return _dali_seed(race, fused=False)


def dali_one_warp(race: Race) -> Side:
    """The reference's policy from packed pixels by one bilinear warp of DALI, normalised to fp32."""
    return _dali_seed(race, fused=True)


def grid_sample(race: Race) -> Side:
    """The reference's policy from packed pixels by torch's grid_sample, as a step on the device could, to fp32."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(race.threads)
    squares = torch.from_numpy(_squares(race).copy())
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

    images = len(np.load(race.data / "labels.npy"))
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


def _piped(pipeline: Any) -> Side:
    from torch.utils.dlpack import from_dlpack

    while True:
        images, _ = pipeline.run()
        yield len(from_dlpack(images.as_tensor()))


# Other loaders


def webdataset(race: Race) -> Side:
    """webdataset: tars, Pillow, torchvision's transforms, uint8."""
    import webdataset as wds
    from torchvision import transforms

    steps = [transforms.RandomResizedCrop(SIZE, AREA, RATIO), transforms.RandomHorizontalFlip()]
    tars = sorted(str(path) for path in (race.data / "prepared" / "webdataset").glob("train-*.tar"))
    dataset = (
        wds.WebDataset(tars, shardshuffle=len(tars), resampled=True)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(transforms.Compose([*steps, transforms.PILToTensor()]), int)
    )
    loader: Any = wds.WebLoader(dataset, batch_size=race.batch, num_workers=race.threads)
    return (len(labels) for _, labels in loader)


def spdl(race: Race) -> Side:
    """SPDL: decoding, cropping, scaling and flipping in FFmpeg, uint8."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    generator = np.random.default_rng()

    def paths() -> Iterator[str]:
        files = race.files()
        while True:
            yield from (files[index][0] for index in generator.permutation(len(files)))

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


def litdata(race: Race) -> Side:
    """litdata: chunks of JPEG bytes, torchvision's second transforms on tensors, uint8."""
    import torch
    from litdata import StreamingDataLoader, StreamingDataset
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    steps = v2.Compose([v2.RandomResizedCrop(SIZE, AREA, RATIO, antialias=True), v2.RandomHorizontalFlip()])
    torch.set_num_threads(1)

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            item = super().__getitem__(index)
            data = torch.frombuffer(bytearray(item["image"]), dtype=torch.uint8)
            return steps(decode_jpeg(data, mode=ImageReadMode.RGB)), item["label"]

    dataset = Images(str(race.data / "litdata"), shuffle=True, drop_last=True)
    loader: Any = StreamingDataLoader(
        dataset, batch_size=race.batch, num_workers=race.threads, persistent_workers=True, drop_last=True
    )
    return (len(labels) for _ in count() for _, labels in loader)


def _ffcv(race: Race, beton: str, decoder: Any, *, mirror: bool) -> Side:
    from ffcv.fields.decoders import IntDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    loader = Loader(
        str(race.data / beton),
        batch_size=race.batch,
        num_workers=race.threads,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={
            "image": [decoder, *([RandomHorizontalFlip()] if mirror else []), ToTensor()],
            "label": [IntDecoder(), ToTensor()],
        },
    )
    return (len(labels) for _ in count() for _, labels in loader)


def ffcv_jpeg(race: Race) -> Side:
    """FFCV from JPEG: random resized crop and flip, uint8."""
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder

    return _ffcv(race, "jpeg.beton", RandomResizedCropRGBImageDecoder((SIZE, SIZE), AREA, RATIO), mirror=True)


def ffcv_raw(race: Race) -> Side:
    """FFCV from raw squares: random resized crop and flip, uint8."""
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder

    return _ffcv(race, "raw.beton", RandomResizedCropRGBImageDecoder((SIZE, SIZE), AREA, RATIO), mirror=True)


def _ffcv_crop(race: Race, *, mirror: bool) -> Side:
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder

    area = (SIZE / PACKED) ** 2  # a crop that has the size of the view already: its fastest way
    crop = RandomResizedCropRGBImageDecoder((SIZE, SIZE), (area, area), (1.0, 1.0))
    return _ffcv(race, "raw.beton", crop, mirror=mirror)


def ffcv_raw_crop(race: Race) -> Side:
    """FFCV from raw squares: crop alone, uint8."""
    return _ffcv_crop(race, mirror=False)


def ffcv_raw_crop_flip(race: Race) -> Side:
    """FFCV from raw squares: crop and flip, uint8; it knows no quarter turns."""
    return _ffcv_crop(race, mirror=True)


def memory_copy(race: Race) -> Side:
    """No loader: batches of views copied from one place of memory to another by all threads."""
    import torch

    torch.set_num_threads(race.threads)
    views = [torch.randint(0, 256, (race.batch, SIZE, SIZE, 3), dtype=torch.uint8) for _ in range(8)]
    target = torch.empty_like(views[0])
    for view in cycle(views):
        target.copy_(view)
        yield race.batch


SIDES: dict[str, Callable[[Race], Side]] = {
    side.__name__: side
    for side in (
        hemafast_files,
        torchvision_v1,
        torchvision_v2,
        timm_loader,
        dali_files,
        webdataset,
        spdl,
        litdata,
        ffcv_jpeg,
        hemafast_packed,
        hemafast_packed_crop,
        hemafast_packed_resized,
        torch_packed,
        dali_packed,
        ffcv_raw,
        ffcv_raw_crop,
        ffcv_raw_crop_flip,
        memory_copy,
        torchvision_reference,
        hemafast_seed_files,
        hemafast_seed_packed,
        dali_two_operators,
        dali_one_warp,
        grid_sample,
    )
}


def write_ffcv(race: Race) -> None:
    """Write jpeg.beton and raw.beton. FFCV encodes JPEG anew, at its default quality of 90."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    squares, labels = _squares(race), np.load(race.data / "labels.npy")

    class Raw:
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return np.asarray(squares[index]), int(labels[index])

    for name, mode, images in (("jpeg", "jpg", _Files(race, _load_pil, None)), ("raw", "raw", Raw())):
        fields = {"image": RGBImageField(write_mode=mode), "label": IntField()}
        DatasetWriter(str(race.data / f"{name}.beton"), fields, num_workers=race.threads).from_indexed_dataset(images)


def write_litdata(race: Race) -> None:
    """Write the files into chunks in litdata/."""
    from litdata import optimize

    optimize(
        fn=_litdata_item, inputs=race.files(), output_dir=str(race.data / "litdata"), chunk_bytes="64MB", num_workers=1
    )


def _litdata_item(item: tuple[str, int]) -> dict[str, Any]:
    path, label = item
    return {"image": Path(path).read_bytes(), "label": label}


WRITERS: dict[str, Callable[[Race], None]] = {"ffcv": write_ffcv, "litdata": write_litdata}
"""Of those peers that read a format of their own."""


def serve(side: Side, answers: Any) -> None:
    """Answer each number of seconds on standard input with a measurement, as a line of JSON, until it ends.

    A measurement is [images, seconds, processor seconds of this process and its children] of whole batches.
    """
    for line in sys.stdin:
        answers.write(json.dumps(_measure(side, float(line))) + "\n")
        answers.flush()


def _measure(side: Side, seconds: float) -> tuple[int, float, float]:
    for _ in range(_DRAINED):
        next(side)
    images, cpu, started = 0, _cpu_seconds(), time.perf_counter()
    for batches in count():
        elapsed = time.perf_counter() - started
        if elapsed >= seconds and batches >= _FEWEST_BATCHES:
            break
        images += next(side)
    measured = images, elapsed, _cpu_seconds() - cpu
    _settle()
    return measured


def _cpu_seconds() -> float:
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return float(sum(part.user + part.system for part in times))


def _settle() -> None:
    """Wait until reading ahead is over, so that the next side has the machine to itself."""
    deadline, before = time.perf_counter() + _LONGEST_WAIT, _cpu_seconds()
    while time.perf_counter() < deadline:
        time.sleep(_QUIET_SECONDS)
        now = _cpu_seconds()
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
        serve(SIDES[name](race), answers)


def _keep_freed_memory() -> None:
    """What `hemafast train` does for itself, done for every side: glibc returns no large buffer to the kernel."""
    import ctypes

    mallopt = ctypes.CDLL("libc.so.6").mallopt
    for option, value in ((-3, 1 << 30), (-1, 2**31 - 1), (-2, 256 << 20)):
        mallopt(option, value)


if __name__ == "__main__":
    main()
