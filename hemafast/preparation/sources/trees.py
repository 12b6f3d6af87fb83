"""Find the folders and archives in a source: each is a tree of images, usually one laboratory."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hemafast.errors import HemafastError
from hemafast.preparation.publish import is_work_file
from hemafast.preparation.schema import is_for_outputs, is_prepared
from hemafast.preparation.sources import safety
from hemafast.preparation.sources.class_names import is_known
from hemafast.preparation.sources.containers import (
    ARCHIVES,
    Listing,
    archive_suffix,
    list_container,
    stem_of,
    without_top,
)
from hemafast.preparation.sources.entries import Entries, Entry
from hemafast.preparation.sources.layout import is_aside, splits_among
from hemafast.preparation.sources.names import fold, same_file
from hemafast.preparation.sources.sniff import HEAD_BYTES, kind_of
from hemafast.preparation.sources.survey import SYSTEM_FILE, PassedOver, survey
from hemafast.progress import SILENT, Progress, stage
from hemafast.regular import read_regular

DRAWN_MARKER = "DRAWN.txt"
"""A file of this name marks all cells in its folder and below as drawn, not photographed."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of one folder or archive, or of several that belong together."""

    name: str
    path: Path
    images: tuple[Entry, ...]
    passed: tuple[PassedOver, ...]
    notes: tuple[str, ...]

    @property
    def drawn(self) -> bool:
        """Whether all its cells are drawn rather than photographed."""
        names = [f"/{one.name}" for one in self.passed]
        marked = tuple(name.removesuffix(DRAWN_MARKER) for name in names if name.endswith(f"/{DRAWN_MARKER}"))
        return bool(marked) and all(f"/{entry.name}".startswith(marked) for entry in self.images)

    @property
    def flat(self) -> bool:
        """Whether it has images, and all of them lie at its top."""
        return bool(self.images) and not any("/" in entry.name for entry in self.images)


def find_trees(
    source: Path,
    output: Path,
    *,
    knows: Callable[[str], bool] = is_known,
    labelled: bool = False,
    progress: Progress = SILENT,
) -> list[Tree]:
    """The trees of a source: of each folder and archive in it, or of `source` itself if it is an archive.

    What belongs together forms one tree named after `source`: single files and folders or archives of a class, a split,
    a patient or a part such as `fold_1` that lie directly in it. `knows` tells the name of a class. With `labelled`, a
    table says the classes: a folder of images is then a tree. Raises HemafastError if `source` is missing
    or empty, or if two trees have the same name.
    """
    paths = _paths(source, output)
    trees: list[Tree] = []
    with stage(progress, "listing files", len(paths), unit="archives"):
        for path in paths:
            trees.append(_open_tree(path))
            progress.advance()
    if source.is_dir():
        trees = _join(source, trees, knows, flat=not labelled)
    _refuse_twins(source, trees)
    return trees


def _refuse_twins(source: Path, trees: Iterable[Tree]) -> None:
    """Raise HemafastError if two trees have one name; single files beside a folder named like `source` have it too."""
    names: dict[str, str] = {}
    for tree in trees:
        if tree.path != source and (other := names.setdefault(same_file(tree.name), tree.path.name)) != tree.path.name:
            problem = f"{source} holds two archives named {other} and {tree.path.name}."
            raise HemafastError(problem, "Remove or rename one.")


def list_archives(source: Path) -> list[Path]:
    """The archives and folders in `source`, in name order, without dot files and prepared data sets."""
    visible = [path for path in sorted(source.iterdir()) if not path.name.startswith(".")]
    return [path for path in visible if archive_suffix(path.name) or (path.is_dir() and not is_for_outputs(path))]


def _paths(source: Path, output: Path) -> list[Path]:
    """What to list. Raises HemafastError for a source that cannot be one."""
    if source.is_file() and archive_suffix(source.name):
        return [source]
    if not source.is_dir():
        raise _no_source(source)
    if is_prepared(source):
        raise HemafastError(f"{source} is a prepared data set already.", "Train on it with --data, or name its source.")
    whole = output.resolve()
    found = [path for path in list_archives(source) if path.resolve() != whole]
    around = next((path for path in found if path.is_dir() and whole.is_relative_to(path.resolve())), None)
    if around is not None and any(not path.name.startswith(".") for path in around.iterdir()):
        raise HemafastError(f"The output {output} lies within the archive {around}.", "Name another --output.")
    found = [path for path in found if path != around]  # an empty folder for the output, as a volume is
    files = [path for path in sorted(source.iterdir()) if path not in (*found, around) and path.resolve() != whole]
    found += [path for path in files if not is_work_file(path.name) and not is_for_outputs(path)]
    if not found:
        raise HemafastError(
            f"{source} is empty.",
            "Put Acevedo_20.zip, Matek_19.zip or a folder of class folders there, or draw cells with `hemafast demo`.",
        )
    return found


def _no_source(source: Path) -> HemafastError:
    remedy = "Name an archive, or the folder of your archives or class folders, with --source."
    if not source.is_file():
        return HemafastError(f"{source} is neither a folder nor an archive: it does not exist.", remedy)
    kind = kind_of(read_regular(source, HEAD_BYTES), source.name)
    if kind.endswith("archive"):
        remedy = f"Unpack it and name the folder. If it is one of {', '.join(ARCHIVES)}: add that to its name."
    if "table" in kind:
        remedy = f"Name the folder of the images with --source, and the table so: --labels {shlex.quote(str(source))}"
    return HemafastError(f"{source} is neither a folder nor an archive that can be read ({kind}).", remedy)


def _open_tree(path: Path) -> Tree:
    if not path.exists():
        raise HemafastError(f"{path} is a link to nothing.", "Remove it, or repair the link.")
    if safety.is_clutter(path.name):
        hidden = sorted(one for one in path.rglob("*") if not one.is_dir()) if path.is_dir() else [path]
        names = [one.relative_to(path.parent).as_posix() for one in hidden]
        return Tree(path.name, path, (), tuple(PassedOver(SYSTEM_FILE, name) for name in names), ())
    listing = list_container(path) if _holds_several(path) else Listing(Entries([_entry_of(path)]))
    name = stem_of(path)
    images, passed = survey(listing.entries if path.is_dir() else without_top(listing.entries, name))
    return Tree(name, path, tuple(images), tuple(passed), listing.notes)


def _entry_of(path: Path) -> Entry:
    if not path.is_file():
        raise HemafastError(f"{path} is not a regular file.", "Remove it.")
    status = path.stat()
    safety.refuse_nested_or_large(path.parent, path.name, status.st_size)
    return Entry(path.name, status.st_size, f"{status.st_mtime_ns}", path.parent, path.name)


def _join(source: Path, trees: Sequence[Tree], knows: Callable[[str], bool], *, flat: bool) -> list[Tree]:
    """Trees, those that are parts of one data set as one tree, in name order; `flat` ones are, if so asked."""
    names = [tree.name for tree in trees if _holds_several(tree.path)]
    asides = list(filter(is_aside, names))
    together = {*splits_among(names), *(asides if len(asides) > 1 else ())}
    joined = {tree.path for tree in trees if tree.name in together or _is_part(tree, knows, flat=flat)}
    if any(knows(tree.name) for tree in trees if tree.path in joined and _holds_several(tree.path)):
        # What lies beside class folders, and holds no class folder, is one too.
        joined |= {tree.path for tree in trees if not any(map(knows, _folders_in(tree)))}
    own = [tree for tree in trees if tree.path not in joined]
    parts = [tree for tree in trees if tree.path in joined]
    if parts:
        name = source.resolve().name or "source"
        images = [entry for part in parts for entry in _below(part)]
        passed = [one for part in parts for one in _passed_below(part)]
        notes = [note for part in parts for note in part.notes]
        own.append(Tree(name, source, tuple(images), tuple(passed), tuple(notes)))
    return sorted(own, key=lambda tree: tree.name)


def _is_part(tree: Tree, knows: Callable[[str], bool], *, flat: bool) -> bool:
    """Whether it is a single file or a class, rather than a data set of its own."""
    if not _holds_several(tree.path) or not tree.images:
        return True
    folders = {name for name in _folders_in(tree) if fold(name) != fold(tree.name)}
    if any(map(knows, folders)):
        return False
    return knows(tree.name) or (flat and all(map(is_aside, folders)))


def _folders_in(tree: Tree) -> set[str]:
    """Names of all folders around its images."""
    return {name for entry in tree.images for name in entry.name.split("/")[:-1]}


def _holds_several(path: Path) -> bool:
    return path.is_dir() or bool(archive_suffix(path.name))


def _below(part: Tree) -> Iterator[Entry]:
    """The images of a part, with the name of its folder or archive before theirs."""
    for entry in part.images:
        yield replace(entry, name=f"{part.name}/{entry.name}") if _holds_several(part.path) else entry


def _passed_below(part: Tree) -> Iterator[PassedOver]:
    """The other files of a part; those of what a system left have its name already."""
    inside = _holds_several(part.path) and not safety.is_clutter(part.path.name)
    for one in part.passed:
        yield replace(one, name=f"{part.name}/{one.name}") if inside else one
