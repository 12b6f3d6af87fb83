"""JSON and TOML of unknown origin: bounded before they are parsed, in one place for the whole package."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hemafast
from hemafast import reading
from hemafast.bench.result import read_result
from hemafast.config import read_settings
from hemafast.errors import HemafastError
from hemafast.preparation.reader import read_info
from hemafast.preparation.schema import INFO
from hemafast.preparation.tables.read import read_table
from hemafast.run_folder import (
    ADAPTATION,
    CONFIG,
    ENSEMBLE,
    METRICS,
    read_adaptation,
    read_config,
    read_ensemble,
    read_metrics,
)
from hemafast.weights_file import read_weights

LEVELS = 200_000
DEEP_LISTS = "[" * LEVELS + "]" * LEVELS
DEEP_OBJECTS = '{"a":' * LEVELS + "1" + "}" * LEVELS
DOTTED = "a" + ".a" * 20_000

_PARSERS = re.compile(r"json\.loads?\(|JSONDecoder|tomllib|literal_eval|yaml\.|HTMLParser|ElementTree|minidom|lxml")
_OWN_TEXT = {
    "reading.py": "the reader itself",
    "deploy/model_card.py": "turns tuples into lists by writing JSON and reading it back",
}


def test_no_module_parses_a_file_without_the_reader() -> None:
    package = Path(hemafast.__file__).parent
    files = {file.relative_to(package).as_posix(): file.read_text(encoding="utf-8") for file in package.rglob("*.py")}
    assert {name for name, text in files.items() if _PARSERS.search(text)} == set(_OWN_TEXT)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("read", [reading.read_json, reading.read_json_text, reading.read_toml])
def test_a_pipe_a_device_and_a_folder_are_errors_and_never_waited_for(
    tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="no regular file"):
            read(file)
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


@pytest.mark.parametrize("text", [DEEP_LISTS, DEEP_OBJECTS, DEEP_LISTS[:LEVELS]])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        (CONFIG, lambda file: read_config(file.parent)),
        (METRICS, lambda file: read_metrics(file.parent)),
        (ADAPTATION, lambda file: read_adaptation(file.parent)),
        (ENSEMBLE, lambda file: read_ensemble(file.parent)),
        (INFO, lambda file: read_info(file.parent)),
        ("settings.json", read_settings),
        ("bench.json", read_result),
        ("weights.bin.index.json", read_weights),
        ("classes.csv", read_table),
    ],
)
def test_a_deeply_nested_json_is_an_error_with_a_remedy(
    tmp_path: Path, name: str, read: Callable[[Path], Any], text: str
) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(HemafastError):
        read(file)


@pytest.mark.parametrize(
    "text",
    [
        f"{DOTTED} = 1",
        f"[{DOTTED}]",
        f"[[{DOTTED}]]",
        f"x = {{{DOTTED} = 1}}",
        f"x = {{y = '''''''', {DOTTED} = 1}}",
        f'x = {{y = """a""""", {DOTTED} = 1}}',
        'x = {"#" = 1, ' + ".".join(['"a"'] * 20_000) + " = 1}",
        f"x = {DEEP_LISTS}",
        "x = " + "{a = " * LEVELS,
        "x = 1 #" + "y" * 2**20,
    ],
)
def test_a_toml_that_would_exhaust_memory_or_stack_is_refused_before_it_is_parsed(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"^(a key has|it (nests|holds)) more than"):
        reading.read_toml(file)
    with pytest.raises(HemafastError, match=re.escape(str(file))):
        read_settings(file)


def test_quoted_text_and_comments_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    brackets, dots = "[{" * 500, "a." * 500
    file.write_text(f'model = "{brackets}{dots}" # {brackets}\na.b.c = 1.5\nx = [0.5, {"0.1, " * 100}]\n')
    assert reading.read_toml(file)["a"] == {"b": {"c": 1.5}}
    assert reading.parse_json(f'["{brackets}\\"{brackets}", {"[1], " * 1000} 2]')[-1] == 2


def test_a_json_of_too_many_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_VALUES", 1000)
    with pytest.raises(ValueError, match="more than 1,000 values"):
        reading.parse_json("[" + "1," * 1000 + "1]")


def test_a_json_file_that_is_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / CONFIG
    with file.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(ValueError, match="more than 1 MiB"):
        reading.read_json(file, 2**20)


@pytest.mark.parametrize("text", ["null", "[]", "1", '"x"'])
def test_a_run_whose_files_hold_no_object_is_refused(tmp_path: Path, text: str) -> None:
    for name, read in ((METRICS, read_metrics), (CONFIG, read_config)):
        (tmp_path / name).write_text(text)
        with pytest.raises(HemafastError, match="it holds no object"):
            read(tmp_path)
