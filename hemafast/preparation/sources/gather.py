"""From what lies in a source to images with domain, class, split and group; everything else is named."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from hemafast.command import command_to_prepare
from hemafast.config import PrepareConfig
from hemafast.errors import ClassesError, HemafastError, name_some
from hemafast.preparation.sources.class_names import ASKED, UnknownClassesError, challenge_class, is_known, rename
from hemafast.preparation.sources.containers import read_files, stem_of
from hemafast.preparation.sources.entries import Entry
from hemafast.preparation.sources.layout import read_layout
from hemafast.preparation.sources.names import fold, plain_name, same_file
from hemafast.preparation.sources.survey import SYSTEM_FILE, PassedOver
from hemafast.preparation.sources.trees import Tree, find_trees
from hemafast.preparation.tables import lists
from hemafast.preparation.tables.matching import AmbiguousPathError
from hemafast.progress import SILENT, Progress
from hemafast.taxonomy import CHALLENGE_CLASSES, UNLABELLED
from hemafast.words import counted

NO_CLASS, NOT_LISTED, LEFT_OUT = "image outside class folders", "image not in the labels", "class left out"
"""Kinds of images that are passed over."""
TABLES = ("table (csv)", "table (tsv)", "Excel table", "Parquet table")
"""Kinds of files, as `sniff.kind_of` names them, that may be a table of labels."""
LOST = (NO_CLASS, NOT_LISTED)
"""Those that nobody asked to leave out."""

_TRIED = 20  # files of a source that may be a table of labels
_MOST_TYPED = 20  # classes of a map that one would type
_MAX_NAME_BYTES = 200  # of a file name: file systems allow 255


@dataclass(frozen=True, slots=True)
class Member:
    """One image: where it comes from, and what the source says about it."""

    domain: str
    label: str
    """Its class."""
    file: str
    """Its file name, which is unique within class and domain."""
    entry: Entry
    source: str = ""
    """Path in the source, as the user has it: TREE/FOLDERS/FILE."""
    split: str = ""
    """train, val or test if the source says so."""
    group: str = ""
    """Patient or slide if the source says so."""

    @property
    def name(self) -> str:
        """`domain/class/file`."""
        return f"{self.domain}/{self.label}/{self.file}"


@dataclass(frozen=True, slots=True)
class Domain:
    """One laboratory: where its images come from."""

    archive: str
    """Name of the folder or archive."""
    drawn: bool


@dataclass(frozen=True, slots=True)
class Gathered:
    """Everything in a source."""

    members: tuple[Member, ...]
    domains: Mapping[str, Domain]
    passed: tuple[PassedOver, ...]
    notes: tuple[str, ...]
    um_per_pixel: Mapping[str, float] = field(default_factory=dict)
    """By domain, where a table of labels says it."""
    labels_sha256: str | None = None


def gather(config: PrepareConfig, progress: Progress = SILENT) -> Gathered:
    """List everything in `config.source`, and say of each image what folders and tables say.

    Raises HemafastError for what is unsafe, for classes that are unknown, and if there is no image in any class.
    """
    class_map = {} if config.class_map is None else lists.read_class_map(config.class_map)
    knows = _knower(class_map)
    labelled = config.labels is not None
    trees = find_trees(config.source, config.output, knows=knows, labelled=labelled, progress=progress)
    labels, sha256 = _read_labels(trees, config)
    passed = [replace(one, name=f"{tree.name}/{one.name}") for tree in trees for one in tree.passed]
    listed = frozenset(labels.label if labels else ())
    members: list[Member] = []
    more: list[str] = []
    of_folders: set[str] = set()
    for tree in trees:
        found, said = _of_tree(tree, listed, knows, resplit=config.resplit)
        members += found
        more += [f"{tree.name}: {note}" for note in said]
        of_folders |= {one.source for one in found if one.label}
    notes = [*(note for tree in trees for note in tree.notes), *(labels.notes(of_folders) if labels else ())]
    notes += [*_closed_note(passed), *more]
    members = _apart(members)
    if labels is not None:
        members = [_of_table(member, labels, config) for member in members]
    if config.ignore_labels:
        members = [replace(member, label=UNLABELLED) for member in members]
    members, lost = _without_class(members, NOT_LISTED if labels else NO_CLASS)
    passed += lost
    if not members:
        raise _nothing(config, trees, passed)
    if config.labels_fix is not None:
        members, corrected = _corrected(members, config.labels_fix, class_map, config)
        notes += corrected
    members, lost, renamed = _in_classes(members, class_map, config, trees)
    passed, notes = passed + lost, [*notes, *renamed, *(_contradictions(members) if labels else ())]
    scales = labels.um_per_pixel if labels else {}
    return Gathered(tuple(_unique(members)), _domains_of(members, trees), tuple(passed), tuple(notes), scales, sha256)


def _read_labels(trees: Sequence[Tree], config: PrepareConfig) -> tuple[lists.Labels | None, str | None]:
    """What --labels says, and the sha256 of that table."""
    if config.labels is None:
        return None, None
    if config.labels.exists():
        whole, source = config.labels.resolve(), config.source.resolve()
        inside = whole.relative_to(source).as_posix() if whole.is_relative_to(source) else ""
        return _read_table(config.labels, inside, trees, config), lists.sha256_of(config.labels)
    return _read_inside(*_table_called(config.labels, trees, config), trees, config)


def _read_inside(place: str, entry: Entry, trees: Sequence[Tree], config: PrepareConfig) -> tuple[lists.Labels, str]:
    """What a table in the source says, and its sha256."""
    with tempfile.TemporaryDirectory(prefix="hemafast-") as room:
        copy = Path(room, place.rpartition("/")[2])
        copy.write_bytes(read_files([entry])[0])
        try:
            return _read_table(copy, place, trees, config), lists.sha256_of(copy)
        except HemafastError as error:  # the user knows the table by its place
            raise HemafastError(
                error.problem.replace(str(copy), place), error.remedy.replace(str(copy), place)
            ) from error


def _read_table(file: Path, place: str, trees: Sequence[Tree], config: PrepareConfig) -> lists.Labels:
    """Read a table of labels that lies at `place` in the source.

    A path that means several images is one of those beside the table, where there are any.
    """
    images = {
        f"{tree.name}/{entry.name}": _from_top(tree, entry.name, config) for tree in trees for entry in tree.images
    }
    try:
        return lists.read_labels(file, config.columns, {name: (name,) for name in images})
    except AmbiguousPathError:
        folder = place.rpartition("/")[0]
        near = {name: (name,) for name, path in images.items() if folder and path.startswith(f"{folder}/")}
        if not near:
            raise
        return lists.read_labels(file, config.columns, near)


def _table_called(file: Path, trees: Sequence[Tree], config: PrepareConfig) -> tuple[str, Entry]:
    """The file of a source that --labels means, with its path: of that path, else the only one whose path ends so.

    Raises HemafastError if there is none, or several.
    """
    others = _others(trees, config)
    wanted = plain_name(str(file)).removeprefix(f"{stem_of(config.source.resolve())}/")  # as the account names it
    found = [wanted] if wanted in others else [path for path in others if f"/{path}".endswith(f"/{wanted}")]
    if len(found) == 1:
        return found[0], others[found[0]]
    tables = name_some(found or list(_others(trees, config, TABLES)), 3, " or ")
    remedy = f"Tables in there: {tables}." if tables else "Name a csv, tsv, xlsx or parquet file."
    raise HemafastError(f"There is {'more than one' if found else 'no'} {file}, also in {config.source}.", remedy)


def _others(trees: Sequence[Tree], config: PrepareConfig, kinds: Collection[str] = ()) -> dict[str, Entry]:
    """Files of these kinds that are no images, all but those of a system by default, by their path in the source."""
    return {
        _from_top(tree, one.name, config): one.entry
        for tree in trees
        for one in tree.passed
        if one.entry is not None and (one.kind in kinds if kinds else one.kind != SYSTEM_FILE)
    }


def _from_top(tree: Tree, name: str, config: PrepareConfig) -> str:
    """The path of a file of a tree from the source."""
    return name if tree.path == config.source else f"{tree.name}/{name}"


def _table_in(trees: Sequence[Tree], config: PrepareConfig) -> str | None:
    """The table of the source that says the class of the most images, else any, by its path there."""
    tables, best, most = _others(trees, config, TABLES), None, 0
    for path, entry in list(_others(trees, config, (*TABLES, "text")).items())[:_TRIED]:
        try:
            labels, _ = _read_inside(path, entry, trees, config)
        except HemafastError:
            continue
        if len(labels.label) > most:
            best, most = path, len(labels.label)
    return best or next(iter(tables), None)


def _closed_note(passed: Sequence[PassedOver]) -> list[str]:
    """Archives that cannot be read, or that are not named as archives, may hold images."""
    closed = [f"{one.name} ({one.kind})" for one in passed if one.kind.endswith("archive")]
    return [f"{name_some(closed, 3)}: not opened; unpack what holds images"] if closed else []


def _knower(class_map: Mapping[str, str]) -> Callable[[str], bool]:
    """Tells whether a name is that of a class: one that the field or --class-map knows."""
    mapped = {fold(name) for name in class_map}
    return lambda name: is_known(name) or fold(name) in mapped


def _of_tree(
    tree: Tree, listed: Collection[str], knows: Callable[[str], bool], *, resplit: bool
) -> tuple[list[Member], Sequence[str]]:
    """The images of a tree. A table of labels (`listed`: its images) leaves their classes to the table.

    A tree that the table is silent about, and whose folders all have names of classes, is another laboratory beside
    the table's: its folders say the classes.
    """
    members, notes = _of_folders(tree, knows, resplit=resplit, labelled=bool(listed))
    if not listed or any(one.source in listed for one in members):
        return members, notes
    others, more = _of_folders(tree, knows, resplit=resplit, labelled=False)
    classes = {one.label for one in others} - {""}
    if not classes or not all(map(knows, classes)):
        return members, notes
    return others, (*more, "no image is in the labels; the folders say the classes")


def _of_folders(
    tree: Tree, knows: Callable[[str], bool], *, resplit: bool, labelled: bool
) -> tuple[list[Member], Sequence[str]]:
    """The images of a tree, with what the folders say; those outside class folders have no label."""
    names = [entry.name for entry in tree.images]
    layout = read_layout(names, knows, resplit=resplit, labelled=labelled)
    members = [
        Member(
            domain=place.domain or tree.name,
            label=place.label,
            file=entry.name.rpartition("/")[2],
            entry=entry,
            source=f"{tree.name}/{entry.name}",
            split=place.split,
            group=place.group and f"{place.domain or tree.name}/{place.group}",
        )
        for entry, place in zip(tree.images, layout.places, strict=True)
    ]
    return members, layout.notes


def _apart(members: Sequence[Member]) -> list[Member]:
    """Folders of one name in two trees are two laboratories: the name of the tree tells them apart."""
    homes: dict[str, set[str]] = defaultdict(set)
    for member in members:
        homes[member.domain].add(_tree_of(member))
    clear = {name for name, trees in homes.items() if len(trees) == 1}
    return [one if one.domain in clear else replace(one, domain=_prefixed(one)) for one in members]


def _prefixed(member: Member) -> str:
    tree = _tree_of(member)
    return member.domain if member.domain == tree else f"{tree}_{member.domain}"


def _tree_of(member: Member) -> str:
    return member.source.partition("/")[0]


def _domains_of(members: Sequence[Member], trees: Sequence[Tree]) -> dict[str, Domain]:
    """Each domain, and the archive that its first image comes from."""
    by_name = {tree.name: tree for tree in reversed(trees) if tree.images}
    homes = {member.domain: by_name[_tree_of(member)] for member in reversed(members)}
    return {name: Domain(homes[name].path.name, homes[name].drawn) for name in sorted(homes)}


def _of_table(member: Member, labels: lists.Labels, config: PrepareConfig) -> Member:
    """The same image with what the table says, which overrides the folders."""
    key = member.source
    return replace(
        member,
        label=labels.label.get(key, member.label),
        domain=labels.domain.get(key, member.domain),
        split="" if config.resplit else labels.split.get(key, member.split),
        group=labels.group.get(key, member.group),
    )


def _corrected(
    members: Sequence[Member], file: Path, class_map: Mapping[str, str], config: PrepareConfig
) -> tuple[list[Member], list[str]]:
    """The images with the labels that a table of corrections gives, and what it says, in sentences.

    Raises HemafastError for a path that is no image, because a correction must not be lost, and for a class that no
    image had before, which is a slip of the pen.
    """
    fixes = lists.read_corrections(file, [member.source for member in members])
    if fixes.missing:
        raise HemafastError(
            f"{file} corrects images that are not in the source: {name_some(fixes.missing, 3)}.",
            "Prepare the source that was audited, or remove these lines.",
        )
    known = {fold(name) for name in (*class_map, *(member.label for member in members))}
    unknown = [name for name in fixes.values.values() if fold(name) not in known]
    if unknown and config.classes == "from-data":  # those of the challenge are checked with all others
        raise HemafastError(f"{file}: no image was of the class {unknown[0]!r} before.", "Correct its name.")
    corrected = [replace(member, label=fixes.values.get(member.source, member.label)) for member in members]
    changed = sum(fold(old.label) != fold(new.label) for old, new in zip(members, corrected, strict=True))
    return corrected, [f"{file.name}: {counted(changed, 'label')} corrected"]


def _without_class(members: Sequence[Member], kind: str) -> tuple[list[Member], list[PassedOver]]:
    lost = [PassedOver(kind, member.source) for member in members if not member.label]
    return [member for member in members if member.label], lost


def _nothing(config: PrepareConfig, trees: Sequence[Tree], passed: Sequence[PassedOver]) -> HemafastError:
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(one.kind for one in passed).most_common())
    return HemafastError(
        f"{config.source} holds no image of a class: {kinds or 'no files'}.", _way_in(config, trees, passed)
    )


def _way_in(config: PrepareConfig, trees: Sequence[Tree], passed: Sequence[PassedOver]) -> str:
    around = config.source.resolve()
    if is_known(around.name) and around.is_dir():
        return f"{around.name} is the folder of a class: {command_to_prepare(config, source=str(config.source.parent))}"
    closed = _closed_note(passed)
    return f"{closed[0]}." if closed else _belong(config, trees)


def _belong(config: PrepareConfig, trees: Sequence[Tree]) -> str:
    """Where images belong, and the command that takes them if they are in a table."""
    if config.labels is not None:
        return "Images belong in a folder per class, as basophil/BA_1.jpg."
    table = _table_in(trees, config)
    named = command_to_prepare(config, labels=table) if table else "add --labels FILE"
    return f"Put them into a folder per class, as basophil/BA_1.jpg. If the classes are in a table: {named}"


def _in_classes(
    members: Sequence[Member], class_map: Mapping[str, str], config: PrepareConfig, trees: Sequence[Tree]
) -> tuple[list[Member], list[PassedOver], Sequence[str]]:
    """The images under the names of their classes, and those whose class is left out."""
    try:
        renamed, notes = rename([member.label for member in members], class_map, config.classes)
    except UnknownClassesError as error:
        raise ClassesError(f"{config.source}: {error.problem}", _way_out(config, error, trees)) from error
    left_out = [PassedOver(LEFT_OUT, member.source) for member in members if not renamed[member.label]]
    kept = [replace(member, label=renamed[member.label]) for member in members if renamed[member.label]]
    for name in {part for member in kept for part in (member.label, member.domain)}:
        _refuse_unusable(name, config)
    if not kept:
        given = config.class_map if isinstance(config.class_map, Path) else "--class-map"
        raise HemafastError(f"{given} leaves out every class.", "Give at least one class a name.")
    return kept, left_out, notes


def _contradictions(members: Sequence[Member]) -> list[str]:
    """A note if a table gives images other classes than the folders that they lie in."""
    told = {one.source: challenge_class(one.source.split("/")[-2]) for one in members}
    other = [one for one in members if (folder := told[one.source]) is not None and folder != one.label]
    if not other:
        return []
    first = other[0]
    said = f"{first.source} is {first.label} in the table"
    return [f"the labels contradict the folders of {counted(len(other), 'image')}: {said}"]


def _way_out(config: PrepareConfig, error: UnknownClassesError, trees: Sequence[Tree]) -> str:
    """A command that takes classes that are unknown."""
    own = command_to_prepare(config, classes="from-data")
    if error.suggested is not None:
        return f"{_agreeing(config, error.suggested)} (or keep the names: {own})"
    if config.labels is None and (len(error.meanings) == 1 or _table_in(trees, config)):
        return f"{_belong(config, trees)} (or keep the names: {own})"
    if None not in error.meanings.values():
        return f"To keep the names as they are: {own}"
    if len(error.meanings) > _MOST_TYPED:
        return f"Say which class each is in a table with the columns from and to: --class-map FILE. To keep them: {own}"
    kind = "number" if all(map(str.isdecimal, error.meanings)) else "name"
    asked = {name: ASKED if meant is None else meant for name, meant in error.meanings.items()}
    meaning = command_to_prepare(config, class_map=asked)
    classes = ", ".join(CHALLENGE_CLASSES)
    return f"Say which class each {kind} is: {meaning} (or keep the {kind}s: {own}). Classes are {classes}."


def _agreeing(config: PrepareConfig, suggested: Mapping[str, str]) -> str:
    """The command with the suggested class map. Names that cover several classes stay, with --classes from-data."""
    asked = [name for name, meant in suggested.items() if meant == ASKED]
    coarse = [name for name, meant in suggested.items() if meant == name]
    opening = f"Say for {ASKED} what {name_some(asked, 3, ' and ')} is" if asked else "If you agree"
    leaving = " (NAME= leaves a class out)" if asked or not all(suggested.values()) else ""
    renamed = {name: meant for name, meant in suggested.items() if meant != name}
    given = {"class_map": renamed or None, **({"classes": "from-data"} if coarse else {})}
    return f"{opening}{leaving}: {command_to_prepare(config, **given)}"


def _refuse_unusable(name: str, config: PrepareConfig) -> None:
    """Classes and domains become folders."""
    if "/" in name or "\\" in name or name.startswith(".") or not name.isprintable():
        remedy = f"Rename it, for a class with --class-map '{name}=NAME'."
        raise HemafastError(f"{config.labels or config.source}: {name!r} cannot be the name of a folder.", remedy)


def _unique(members: Sequence[Member]) -> Iterator[Member]:
    """The images, in the order of their names, with file names that are unique within class and domain.

    Where two would be the same on some file system, the folders around them become part of the name.
    """
    times = Counter(same_file(member.name) for member in members)
    taken: set[str] = set()
    for member in sorted(members, key=lambda one: (one.domain, one.label, one.file, one.source)):
        alone = times[same_file(member.name)] == 1
        file = _short(member.file if alone else "__".join(member.source.split("/")[1:]))
        named, number = replace(member, file=file), 2
        while (key := same_file(named.name)) in taken:
            path = PurePosixPath(file)
            named, number = replace(member, file=f"{path.stem}~{number}{path.suffix}"), number + 1
        taken.add(key)
        yield named


def _short(file: str) -> str:
    """A file name that every file system takes; a long one is cut, and a hash keeps it unique."""
    if len(file.encode()) <= _MAX_NAME_BYTES:
        return file
    suffix = Path(file).suffix[:20]
    cut = file.encode()[: _MAX_NAME_BYTES - 16 - len(suffix.encode())].decode(errors="ignore")
    return f"{cut}~{hashlib.sha256(file.encode()).hexdigest()[:12]}{suffix}"
