"""A data set that somebody edited and sealed again is refused by name, before anything relies on it."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from hemafast.errors import HemafastError
from hemafast.preparation import schema
from hemafast.preparation.build import Prepared
from hemafast.preparation.reader import read_info, read_manifest
from hemafast.preparation.shards import digest, fingerprint
from hemafast.preparation.verify import verify

Edit = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.fixture
def folder(prepared: Prepared, tmp_path: Path) -> Path:
    """dataset.json and the manifest, to edit at will; opening them needs no other file."""
    for name in (schema.INFO, schema.MANIFEST):
        shutil.copy(prepared.folder / name, tmp_path)
    return tmp_path


def reseal(folder: Path, **changes: Any) -> None:
    """Change fields of dataset.json, take the manifest as it is, and compute all hashes anew."""
    info = json.loads((folder / schema.INFO).read_text()) | changes
    if "files" not in changes:
        for name in info["files"]:
            if (folder / name).is_file():
                info["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    sealed = {**info, "seal": digest({name: value for name, value in info.items() if name != "seal"})}
    (folder / schema.INFO).write_text(json.dumps(sealed))


def edit(folder: Path, change: Callable[[pd.DataFrame], object]) -> None:
    """Change the manifest, and compute all hashes anew."""
    table = pd.read_parquet(folder / schema.MANIFEST)
    changed = change(table)
    table = changed if isinstance(changed, pd.DataFrame) else table
    table.to_parquet(folder / schema.MANIFEST, index=False)
    info = json.loads((folder / schema.INFO).read_text())
    reseal(folder, fingerprint=fingerprint(table, info["classes"], info["pack_sizes"]))


def put(column: str, value: object, row: int = 7) -> Edit:
    """An edit of one cell."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        values = table[column].tolist()
        values[row] = value
        return table.assign(**{column: values})

    return change


def open_both(folder: Path) -> pd.DataFrame:
    return read_manifest(folder, read_info(folder))


def test_an_edit_that_changes_nothing_is_no_fault(folder: Path) -> None:
    before = pd.read_parquet(folder / schema.MANIFEST)
    edit(folder, lambda table: table)
    pd.testing.assert_frame_equal(open_both(folder), before)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("width", -1, "between"),
        ("height", 0, "between"),
        ("width", 2**62, "between"),
        ("window", -250, "between"),
        ("window", 2**40, "between"),
        ("bytes", 0, "between"),
        ("fold", 3, "no fold"),
        ("fold", -2, "no fold"),
        ("label", "lymphoma", "no class"),
        ("label", "", "no class"),
        ("domain", "Elsewhere", "no domain"),
        ("split", "training", "no split"),
        ("split", "", "no split"),
        ("verdict", "fine", "none of"),
        ("path", "/etc/passwd", "outside"),
        ("path", "images/../../x.png", "outside"),
        ("path", "images/./x.png", "outside"),
        ("path", "images//x.png", "outside"),
        ("path", "images/x\0.png", "outside"),
        ("path", "shards/x.png", "not in the folder"),
        ("path", "quarantined/x.png", "not in the folder"),
        ("path", "images/" + "x" * 40_000, "too long"),
        ("sha256", "0" * 63, "hexadecimal"),
        ("pixels_xxh128", "", "hexadecimal"),
        ("phash", "z" * 64, "hexadecimal"),
        ("mean_red", math.inf, "between"),
        ("mean_blue", math.nan, "between"),
        ("contrast", -0.5, "between"),
        ("group", None, "no value"),
    ],
)
def test_an_impossible_value_is_refused_with_its_column_and_row(
    folder: Path, column: str, value: object, told: str
) -> None:
    edit(folder, put(column, value))
    with pytest.raises(HemafastError, match=f"column {column}, row 7: .*{told}") as error:
        open_both(folder)
    assert str(folder / schema.MANIFEST) in error.value.problem
    assert error.value.remedy == schema.PREPARE_AGAIN


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda table: table.assign(width=table["width"].astype(float)),
            "column width: .* of type double",
        ),
        (lambda table: table.assign(mode=table["mode"].str.encode("utf-8")), "column mode: it holds .* binary"),
        (lambda table: table.assign(label=[[name] for name in table["label"]]), "column label: it holds .* list"),
        (lambda table: table.assign(bytes=table["bytes"].astype("Int32")), "column bytes: it holds .* int32"),
        (lambda table: table.drop(columns="height").assign(tall=1), "0 columns height"),
        (lambda table: table.head(50), "50 rows"),
        (lambda table: pd.concat([table, table.head(1)]), "59 rows"),
        (lambda table: pd.concat([table.head(57), table.head(1)]), "column path, row 57: .* twice"),
        (lambda table: table.assign(split="train"), "counts"),
        (lambda table: table.assign(label="basophil"), "counts"),
    ],
)
def test_a_table_of_another_form_is_refused(folder: Path, change: Edit, told: str) -> None:
    edit(folder, change)
    with pytest.raises(HemafastError, match=told):
        open_both(folder)


def test_what_is_no_parquet_file_is_refused(folder: Path) -> None:
    for content in (b"", b"PAR1", b"PAR1" + b"\xff" * 60 + b"PAR1", b'{"a": 1}'):
        (folder / schema.MANIFEST).write_bytes(content)
        reseal(folder)
        with pytest.raises(HemafastError, match=r"manifest\.parquet cannot be read"):
            open_both(folder)


def test_text_that_is_no_text_is_refused(folder: Path) -> None:
    table = parquet.read_table(folder / schema.MANIFEST)
    place = table.column_names.index("path")
    raw = pa.array([b"\xf1", *(path.encode() for path in table["path"].to_pylist()[1:])], pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    parquet.write_table(table.set_column(place, "path", text), folder / schema.MANIFEST)
    reseal(folder)
    with pytest.raises(HemafastError, match=r"manifest\.parquet cannot be read .*UTF8"):
        open_both(folder)


def test_metadata_of_pandas_in_the_manifest_is_not_read(folder: Path) -> None:
    table = parquet.read_table(folder / schema.MANIFEST)
    hostile = {b"pandas": b'{"index_columns":' + b"[" * 200_000}
    parquet.write_table(table.replace_schema_metadata(hostile), folder / schema.MANIFEST)
    reseal(folder)
    assert len(open_both(folder)) == 58


def test_a_manifest_that_unpacks_to_far_more_than_its_rows_is_refused(folder: Path) -> None:
    table = parquet.read_table(folder / schema.MANIFEST)
    texts = pa.array(["x" * 10**6] * 58, pa.large_string())
    table = table.set_column(table.column_names.index("reason"), "reason", texts)
    parquet.write_table(table, folder / schema.MANIFEST, use_dictionary=False, compression="zstd")
    reseal(folder)
    assert (folder / schema.MANIFEST).stat().st_size < 10**6
    with pytest.raises(HemafastError, match="unpacks to"):
        open_both(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pack_sizes", [-64]),
        ("pack_sizes", [10**9]),
        ("pack_sizes", []),
        ("rows_per_file", {"64": 0}),
        ("rows_per_file", {}),
        ("classes", []),
        ("classes", ["basophil", "basophil"]),
        ("folds", -1),
        ("folds", 10**9),
        ("counts", {"train": {"Acevedo_20": {"basophil": -4}}, "val": {}}),
        ("counts", {"train": {}}),
        ("counts", {"train": {}, "val": {}, "secret": {}}),
        ("files", {}),
        ("files", {"manifest.parquet": "", "../../x": ""}),
        ("files", {"manifest.parquet": "", "/etc/passwd": ""}),
        ("settings", {}),
        ("schema_version", "many"),
    ],
)
def test_an_impossible_field_of_the_description_is_refused_by_name(folder: Path, field: str, value: object) -> None:
    reseal(folder, **{field: value})
    with pytest.raises(HemafastError, match=field) as error:
        open_both(folder)
    assert str(folder / schema.INFO) in error.value.problem


@pytest.mark.parametrize(
    "change",
    [
        {"um_per_pixel": -0.1},
        {"um_per_pixel": math.inf},
        {"images": -1},
        {"ranges": {"integer": {"low": 5.0, "high": 5.0}}},
    ],
)
def test_an_impossible_domain_is_refused(folder: Path, change: dict[str, Any]) -> None:
    domains = json.loads((folder / schema.INFO).read_text())["domains"]
    reseal(folder, domains=domains | {"Matek_19": domains["Matek_19"] | change})
    with pytest.raises(HemafastError, match="Matek_19"):
        open_both(folder)
    reseal(folder, domains={"..": domains["Acevedo_20"]})
    with pytest.raises(HemafastError, match="cannot be the name of a folder"):
        open_both(folder)


def test_file_lists_that_were_edited_and_sealed_again_are_found(prepared: Prepared, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(prepared.folder, tmp_path / "prepared"))
    name = schema.shard_file("train", 0, 3).as_posix()
    lines = (folder / name).read_text().splitlines(keepends=True)
    (folder / name).write_text("".join([*lines[1:], "images/../../secret.png 0\n"]))
    reseal(folder)
    assert [(one.file, one.problem) for one in verify(folder).problems] == [
        (name, f"it lists other images than {schema.MANIFEST}")
    ]
