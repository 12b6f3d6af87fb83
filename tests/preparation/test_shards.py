"""Hashes over lists that are never whole in memory."""

import hashlib
import json

import pandas as pd
import pytest

from hemafast.preparation.shards import Streamed, digest, fingerprint

ROWS = [["images/A/ü.png", 3, None, 0.1], ["b", 4, True, 1e-9]]


@pytest.mark.parametrize("content", [[1, ROWS], [], [[]], {"b": 1, "a": [2]}, [ROWS, {"b": 1, "a": 2}]])
def test_a_hash_is_that_of_the_whole_text(content):
    assert digest(content) == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def test_what_is_streamed_hashes_as_the_list_does():
    assert digest([3, Streamed(iter(ROWS)), {"a": 1}]) == digest([3, ROWS, {"a": 1}])
    assert digest([Streamed([0, Streamed(ROWS), []])]) == digest([[0, ROWS, []]])
    assert digest([Streamed([])]) == digest([[]])


def test_a_fingerprint_is_the_hash_of_its_rows():
    columns = ["path", "label", "domain", "split", "fold", "window", "sha256", "pixels_xxh128", "verdict"]
    manifest = pd.DataFrame([[f"{name}{row}" for name in columns] for row in range(3)], columns=columns)
    manifest["fold"], manifest["window"] = [-1, 0, 1], [250, 345, 16]
    assert fingerprint(manifest, ["a"], [256]) == digest([["a"], [256], manifest[columns].to_numpy().tolist()])
