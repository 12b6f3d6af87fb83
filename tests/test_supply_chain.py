"""What is installed is known: versions, hashes, licences, a bill of materials, and the actions of CI."""

import json
import re
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import lock  # scripts beside the package, not parts of it
import third_party

ROOT = third_party.ROOT
PURL = {"type": "string", "pattern": r"^pkg:pypi/[a-z0-9-]+@[\w.+!-]+$"}
LICENCES = {
    "type": "array",
    "maxItems": 1,
    "items": {
        "oneOf": [
            {
                "type": "object",
                "required": ["expression"],
                "additionalProperties": False,
                "properties": {"expression": {}},
            },
            {"type": "object", "required": ["license"], "additionalProperties": False, "properties": {"license": {}}},
        ]
    },
}
COMPONENT = {
    "type": "object",
    "required": ["type", "name", "bom-ref", "purl", "version"],
    "additionalProperties": False,
    "properties": {
        "type": {"enum": ["application", "library"]},
        "bom-ref": PURL,
        "purl": PURL,
        "name": {"type": "string", "minLength": 1},
        "version": {"type": "string", "minLength": 1},
        "scope": {"enum": ["required", "optional", "excluded"]},
        "licenses": LICENCES,
        "hashes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["alg", "content"],
                "properties": {"alg": {"const": "SHA-256"}, "content": {"pattern": "^[0-9a-f]{64}$"}},
            },
        },
        "externalReferences": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["url", "type"],
                "properties": {"type": {"const": "website"}, "url": {"pattern": "^https?://"}},
            },
        },
    },
}
CYCLONEDX = {
    "type": "object",
    "required": ["bomFormat", "specVersion"],
    "additionalProperties": False,
    "properties": {
        "bomFormat": {"const": "CycloneDX"},
        "specVersion": {"const": "1.6"},
        "version": {"type": "integer", "minimum": 1},
        "metadata": {"type": "object", "properties": {"component": COMPONENT}},
        "components": {"type": "array", "uniqueItems": True, "items": COMPONENT},
        "dependencies": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["ref"],
                "properties": {"ref": PURL, "dependsOn": {"type": "array", "uniqueItems": True, "items": PURL}},
            },
        },
    },
}
"""What of the schema of CycloneDX 1.6 concerns the parts that are written."""


def pinned(lines):
    """Version by name, of lines `name==version ...`."""
    found = {}
    for line in filter(None, (line.partition("#")[0].partition("--hash")[0].strip() for line in lines)):
        requirement = Requirement(line)
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        found[canonicalize_name(requirement.name)] = pin.version
    return found


@pytest.fixture(scope="module")
def locked():
    return (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()


def test_every_pinned_version_has_a_hash(locked):
    assert pinned(locked) == pinned((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    hashed = re.compile(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}")
    assert all(hashed.fullmatch(line) for line in locked if not line.startswith("#"))


def test_the_lock_names_no_index(locked):
    assert not re.search(r"://|--(extra-)?index|--find-links", "\n".join(locked))


def test_all_that_users_install_is_locked(locked):
    missing = {one.name for one in third_party.packages()} - pinned(locked).keys()
    assert not missing, "run: make lock"


def test_the_lock_is_made_of_the_report_of_pip():
    report = {
        "environment": {"python_version": "3.11", "sys_platform": "linux", "platform_machine": "x86_64"},
        "install": [
            {
                "metadata": {"name": name, "version": "1.0"},
                "download_info": {"archive_info": {"hashes": {"sha256": digit * 64}}},
            }
            for name, digit in (("Typing_Extensions", "a"), ("attrs", "b"))
        ],
    }
    _, *lines = lock.locked(report)
    assert lines == [f"attrs==1.0 --hash=sha256:{'b' * 64}", f"typing-extensions==1.0 --hash=sha256:{'a' * 64}"]
    del report["install"][0]["download_info"]["archive_info"]["hashes"]["sha256"]
    with pytest.raises(KeyError):
        list(lock.locked(report))


def test_the_bill_of_materials_is_valid_whole_and_the_same_each_time(locked):
    bill = third_party.bill_of_materials()
    jsonschema.validate(bill, CYCLONEDX)
    assert json.dumps(bill) == json.dumps(third_party.bill_of_materials())
    known = {bill["metadata"]["component"]["bom-ref"], *(one["bom-ref"] for one in bill["components"])}
    assert len(known) == len(bill["components"]) + 1
    assert {one["ref"] for one in bill["dependencies"]} == known
    assert {name for one in bill["dependencies"] for name in one["dependsOn"]} < known
    assert all(one["hashes"] for one in bill["components"])
    names = {one["name"]: one["scope"] for one in bill["components"]}
    assert names["torch"] == "required"
    assert names["onnx"] == "optional"
    assert "pytest" not in names


def test_the_licence_is_what_the_metadata_state(tmp_path):
    for name, lines in {
        "expression": "License-Expression: MIT\nLicense: other",
        "short": "License: BSD",
        "long": "License: Terms of use\n        You may",
        "classified": "License: Terms\n        You may\nClassifier: License :: OSI Approved :: MIT License",
        "none": "Summary: nothing",
    }.items():
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{lines}\n")
    found = {
        one.metadata["Name"]: third_party.Package(one.metadata["Name"], one, (), False).licence
        for one in distributions(path=[str(tmp_path)])
    }
    assert found == {
        "expression": "MIT",
        "short": "BSD",
        "long": "Terms of use",
        "classified": "MIT License",
        "none": third_party.UNSTATED,
    }


def test_continuous_integration_may_only_read_and_runs_pinned_actions():
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        flow = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert flow["permissions"] == {"contents": "read"}
        for job in flow["jobs"].values():
            assert "permissions" not in job
            used = [step for step in job["steps"] if "uses" in step]
            assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"]) for step in used)
            checkouts = [step for step in used if step["uses"].startswith("actions/checkout@")]
            assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_warnings_are_errors_and_no_module_silences_those_of_what_libraries_will_drop():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["pytest"]["ini_options"]["filterwarnings"] == ["error"]
    all_kinds = re.compile(r"""simplefilter\("ignore"\)|action="ignore"\)|filterwarnings\("ignore"\)""")
    silent = [file for file in (ROOT / "hemafast").rglob("*.py") if all_kinds.search(file.read_text(encoding="utf-8"))]
    assert not silent, "name a category"
