"""Small files that would have torch make terabytes are refused before torch reads them."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hemafast.engine.checkpoint import load_last, save_last
from hemafast.errors import HemafastError
from hemafast.pickles import GreedyFileError, refuse_greedy
from hemafast.weights_file import read_weights

MANY = 10**13


class Calls:
    """Pickles as a call of a function, as `__reduce__` says."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Storage:
    """Pickles as a storage with so many elements, whatever the file holds."""

    def __init__(self, elements: int, key: str = "0", kind: type = torch.FloatStorage) -> None:
        self.pid = ("storage", kind, key, "cpu", elements)


class Pickler(pickle.Pickler):
    """Writes storages as torch does: by their place in the file."""

    def persistent_id(self, obj: object) -> Any:
        return obj.pid if isinstance(obj, Storage) else None


def pickled(content: object, *, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    if legacy:
        for head in (torch.serialization.MAGIC_NUMBER, 1001, {"little_endian": True}):
            pickle.dump(head, stream, protocol=2)
    Pickler(stream, protocol=2).dump(content)
    return stream.getvalue()


def zipped(content: bytes, *, more: dict[str, bytes] | None = None, stored: bool = True) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as archive:
        for name, data in {"data.pkl": content, "byteorder": b"little", "data/0": bytes(64), **(more or {})}.items():
            archive.writestr(f"archive/{name}", data)
        archive.writestr("archive/version", "3\n")
        for entry in archive.filelist:
            entry.external_attr = 0  # as torch writes it
    return stream.getvalue()


def rebuilt(storage: Storage, shape: tuple[int, ...] = (16,), stride: tuple[int, ...] = (1,)) -> Calls:
    return Calls(torch._utils._rebuild_tensor_v2, storage, 0, shape, stride, False, OrderedDict())


def claims(call: object) -> bytes:
    return pickled({"weight": rebuilt(Storage(16)), "more": call})


GREEDY = {
    "a bytearray": claims(Calls(bytearray, MANY)),
    "a tensor by its size": claims(Calls(torch.FloatTensor, 10**7, 10**6)),
    "a storage that is called": claims(Calls(torch.FloatStorage, MANY)),
    "a call of a call": claims(Calls(torch._tensor._rebuild_from_type_v2, bytearray, int, (MANY,), {})),
    "an empty quantized tensor": claims(
        Calls(torch._utils._rebuild_qtensor, Storage(16), 0, (MANY,), (1,), (), False, OrderedDict())
    ),
    "a storage beyond its entry": pickled({"weight": rebuilt(Storage(MANY))}),
    "a storage with no entry": pickled({"weight": rebuilt(Storage(16, "7"))}),
    "a storage of negative size": pickled({"weight": rebuilt(Storage(-1))}),
    "doubles in an entry for floats": pickled({"weight": rebuilt(Storage(16, kind=torch.DoubleStorage))}),
    "a bytearray of the protocol": b"\x80\x05\x96" + MANY.to_bytes(8, "little") + b".",
    "a text without end": b"\x80\x05\x8d" + MANY.to_bytes(8, "little") + b"x.",
    "a place in the memo": b"\x80\x02Nr\xff\xff\xff\xff",
    "more names than there are classes": b"\x80\x02("
    + b"".join(b"cm\nn%d\n" % number for number in range(20_000))
    + b"t.",
    "no pickle at all": b"",
}


@pytest.mark.parametrize("content", GREEDY.values(), ids=GREEDY)
@pytest.mark.parametrize("own", [False, True], ids=["weights", "checkpoint"])
def test_a_pickle_that_asks_for_more_than_the_file_holds_is_refused(tmp_path: Path, content: bytes, own: bool) -> None:
    file = tmp_path / "small.ckpt"
    file.write_bytes(zipped(content))
    with pytest.raises(GreedyFileError):
        refuse_greedy(file, own=own)
    with pytest.raises(HemafastError, match=r"small\.ckpt cannot be read.*(more|makes|stor|shape|pickle|holds)"):
        (load_last if own else read_weights)(file)


@pytest.mark.parametrize("content", [{"weight": rebuilt(Storage(MANY))}, Calls(bytearray, MANY)])
def test_so_is_a_file_of_the_old_format(tmp_path: Path, content: object) -> None:
    file = tmp_path / "small.pth"
    file.write_bytes(pickled(content, legacy=True))
    with pytest.raises(HemafastError, match=r"small\.pth cannot be read as weights \((a storage|it makes)"):
        read_weights(file)


@pytest.mark.parametrize(
    "content",
    [
        zipped(claims(None), stored=False),
        zipped(claims(None), more={"DATA.PKL": b"N."}),
        zipped(claims(None)).replace(b"archive/data.pkl", b"archive/data.PKL"),
    ],
    ids=["compressed", "twice but for capitals", "in capitals"],
)
def test_a_zip_that_torch_would_read_otherwise_than_it_was_looked_through_is_refused(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "small.ckpt"
    file.write_bytes(content)
    with pytest.raises(GreedyFileError):
        refuse_greedy(file)


def test_a_tensor_that_repeats_its_elements_is_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    """Loading it into an optimizer would make all of them."""
    file = tmp_path / "last_model.ckpt"
    save_last(file, {"large": torch.zeros(1).expand(MANY)})
    with pytest.raises(HemafastError, match="a tensor of shape"):
        load_last(file)


def test_what_torch_saves_is_not_refused(tmp_path: Path) -> None:
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)
    tensors = {str(kind): torch.ones(3, 5, dtype=kind)[1:, ::2] for kind in (*kinds, torch.complex64)}
    state = {**tensors, "one": torch.tensor(1.0), "list": [1, "two", None, (3.0, True)], "empty": torch.zeros(0)}
    for zipped_too in (True, False):
        torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped_too)
        refuse_greedy(tmp_path / "x.pt", own=True)
