"""What hemafast installs of others: the tables of docs/third-party.md and a software bill of materials.

python tools/third_party.py > hemafast.cdx.json    # CycloneDX; `make sbom` calls this

All comes from pyproject.toml, requirements.lock and the metadata of what is installed. The same installation gives the
same bytes.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("explain", "export", "map", "notebook", "ssl", "tune", "weights")
"""Optional dependencies of users; the others are of those who develop hemafast."""

UNSTATED = "not stated"
_HOMES = ("homepage", "home", "repository", "source", "source code", "documentation")
_LOCKED = re.compile(r"^(?P<name>[^=\s]+)==\S+ --hash=sha256:(?P<digest>[0-9a-f]{64})$", flags=re.MULTILINE)


@dataclass(frozen=True)
class Package:
    """One installed distribution of others."""

    name: str
    found: Distribution
    needs: tuple[str, ...]
    optional: bool

    @property
    def version(self) -> str:
        """The version that is installed."""
        return self.found.version

    @property
    def purl(self) -> str:
        """The package URL, which identifies name and version."""
        return f"pkg:pypi/{self.name}@{self.version}"

    @property
    def expression(self) -> str | None:
        """The SPDX expression of the licence, of newer metadata."""
        return self._field("License-Expression")

    @cached_property
    def licence(self) -> str:
        """The licence as the metadata states it: expression, short text, classifiers, or first line of a long text."""
        text = (self._field("License") or "").strip().removeprefix("UNKNOWN")  # what old tools wrote for none
        classified = [one.rpartition(" :: ")[2] for one in self._fields("Classifier") if one.startswith("License ::")]
        short = text if "\n" not in text and len(text) <= 60 else ""
        return self.expression or short or ", ".join(classified) or text.partition("\n")[0] or UNSTATED

    @cached_property
    def home(self) -> str | None:
        """Address of the project."""
        labelled = dict(one.split(", ", 1) for one in self._fields("Project-URL"))
        lower = {label.lower(): address for label, address in labelled.items()}
        return self._field("Home-page") or next((lower[label] for label in _HOMES if label in lower), None)

    def _field(self, name: str) -> str | None:
        return next(iter(self._fields(name)), None)

    def _fields(self, name: str) -> list[str]:
        return self.found.metadata.get_all(name) or []


def required(lines: Iterable[str], extras: Iterable[str] = ()) -> Iterator[Requirement]:
    """The requirements that hold on this platform, with those of the named optional dependencies."""
    for one in map(Requirement, lines):
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield one


def packages() -> list[Package]:
    """All that hemafast needs, directly or not, by name.

    Raises PackageNotFoundError for a package that is not installed.
    """
    project = project_table()
    needs: dict[str, set[str]] = {}
    _gather(project["dependencies"], needs)
    always = set(needs)
    for extra in EXTRAS:
        _gather(project["optional-dependencies"][extra], needs)
    return [Package(name, distribution(name), tuple(sorted(needs[name])), name not in always) for name in sorted(needs)]


def project_table() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def _gather(lines: Iterable[str], needs: dict[str, set[str]], extras: Iterable[str] = ()) -> set[str]:
    """Names that the requirements ask for; enters into `needs` what each of them needs in turn."""
    names: set[str] = set()
    for one in required(lines, extras):
        name = canonicalize_name(one.name)
        names.add(name)
        if name not in needs or one.extras:
            needs.setdefault(name, set())  # first, for packages that need each other
            needs[name] |= _gather(distribution(name).requires or (), needs, one.extras)
    return names


def tables(_: Mapping[str, Any]) -> dict[str, str]:
    """The tables of docs/third-party.md by name."""
    known = packages()
    return {
        "third_party": _table(one for one in known if not one.optional),
        "third_party_extras": _table(one for one in known if one.optional),
    }


def _table(rows: Iterable[Package]) -> str:
    cells = [f"| {one.name} | {one.version} | {one.licence.replace('|', '/')} | {one.home or ''} |" for one in rows]
    return "\n".join(["| package | version | licence | home |", "|---|---|---|---|", *cells])


def bill_of_materials() -> dict[str, Any]:
    """All packages in the form of CycloneDX 1.6, with the sha256 of the archives of requirements.lock."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    digests = {one["name"]: one["digest"] for one in _LOCKED.finditer(lock)}
    project = project_table()
    own = f"pkg:pypi/{project['name']}@{project['version']}"
    known = packages()
    purls = {one.name: one.purl for one in known}
    direct = [canonicalize_name(one.name) for one in required(project["dependencies"])]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": project["name"],
                "version": project["version"],
                "purl": own,
                "licenses": [{"expression": project["license"]}],
            }
        },
        "components": [_component(one, digests) for one in known],
        "dependencies": [
            {"ref": own, "dependsOn": sorted(purls[name] for name in direct)},
            *({"ref": one.purl, "dependsOn": [purls[name] for name in one.needs]} for one in known),
        ],
    }


def _component(package: Package, digests: Mapping[str, str]) -> dict[str, Any]:
    licence = {"expression": package.expression} if package.expression else {"license": {"name": package.licence}}
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": package.purl,
        "name": package.name,
        "version": package.version,
        "scope": "optional" if package.optional else "required",
        "purl": package.purl,
        "licenses": [] if package.licence == UNSTATED else [licence],
        "hashes": [{"alg": "SHA-256", "content": digests[package.name]}] if package.name in digests else [],
    }
    if package.home:
        component["externalReferences"] = [{"type": "website", "url": package.home}]
    return component


if __name__ == "__main__":
    print(json.dumps(bill_of_materials(), indent=2))
