"""Which column of a user's table holds the path, the label, the split and so on."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd

from hemafast.errors import HemafastError, name_some
from hemafast.preparation.tables.read import names_image

PATH, LABEL, SPLIT, GROUP, DOMAIN, UM_PER_PIXEL = "path", "label", "split", "group", "domain", "um_per_pixel"

_NAMES: dict[str, tuple[str, ...]] = {
    PATH: (
        "path image_path img_path file_path filepath relative_path rel_path full_path",
        "file file_name filename image_file image_file_name image_filename img_file image image_name img img_name",
        "image_id img_id id cell_id cell cell_name name sample sample_id key",
        "bild bildname bild_nr bildnummer datei dateiname pfad imagen archivo fichier immagine imagem arquivo",
    ),
    LABEL: (
        "label labels class classes class_name class_label label_name cell_type cell_class cell_label category "
        "diagnosis ground_truth annotation expert_label true_label",
        "target gt truth y label_id class_id type",
        "klasse zelltyp zellart zellklasse clase tipo_celular classe tipo type_cellulaire categoria etiqueta",
    ),
    SPLIT: ("split subset partition data_split", "set phase usage dataset"),
    GROUP: (
        "patient patient_id patient_no patient_number patient_nr pid mrn pat_id pat_nr patienten_id patientennummer "
        "paciente id_paciente paziente group group_id subject subject_id donor donor_id case case_id",
        "slide slide_id smear",
    ),
    DOMAIN: (
        "domain lab laboratory site hospital center centre institution clinic cohort",
        "source dataset data_set scanner",
    ),
    UM_PER_PIXEL: (
        "um_per_pixel um_per_px um/px um/pixel umpx mpp microns_per_pixel micrometers_per_pixel micrometres_per_pixel "
        "pixel_size pixel_size_um",
    ),
}
"""Names that columns of a role have, in tiers: a name counts if no column has a name of an earlier tier."""

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "holdout", "hold-out", "te"), "test"),
}
"""Splits by the words that tables and file names use, in lower case."""


_YES, _NO = frozenset({"1", "1.0", "true", "yes", "x"}), frozenset({"0", "0.0", "false", "no", ""})
"""Marks in columns that stand for one class each."""


def fold_name(name: str) -> str:
    """A column name without case, spaces and punctuation: `imageid` for `Image_ID`, `umpx` for `um/px`."""
    plain = (
        unicodedata.normalize("NFKC", name).casefold().replace("\u03bc", "u")
    )  # NFKC makes a Greek mu of the micro sign
    return "".join(letter for letter in plain if letter.isalnum())


_TIERS = {role: [{fold_name(name) for name in tier.split()} for tier in tiers] for role, tiers in _NAMES.items()}


def find_columns(
    file: Path, table: pd.DataFrame, *, needed: Collection[str], columns: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The column of each role, as far as the table has one.

    Args:
        file: what messages call the table.
        table: as `tables.read_table` reads it.
        needed: roles that the table must have.
        columns: what the user says with --columns: names of columns by role; an empty name leaves the role out. None
            if the table has no such option.

    Returns:
        Names of columns by role.

    Raises:
        HemafastError: a needed role has no column, several columns may have a role, or `columns` names none of them.
    """
    chosen = {_role(role): _named(file, table, name) for role, name in (columns or {}).items()}
    taken = set(chosen.values())
    for role in _TIERS:
        if role not in chosen:
            found = _guess(role, table.drop(columns=[name for name in taken if name]))
            if len(found) > 1:
                problem = f"{file}: the {role} may be in the column {name_some(found, 3, ' or ')}."
                choose = f"Choose with --columns {shlex.quote(f'{role}={found[0]}')}."
                raise HemafastError(problem, "Rename the others." if columns is None else choose)
            chosen[role] = found[0] if found else ""
            taken.add(chosen[role])
    chosen |= _without_header(table, chosen, needed)
    roles = {role: name for role, name in chosen.items() if name}
    if lacking := [role for role in needed if role not in roles]:
        problem = f"{file} has no column {' and '.join(lacking)}; it has {_listed(table)}."
        raise HemafastError(problem, _remedy(table, lacking, roles, may_choose=columns is not None))
    return roles


def _role(given: str) -> str:
    """The role that the user means, by its own name or any name of its columns."""
    for role, tiers in _TIERS.items():
        if any(fold_name(given) in tier for tier in (*tiers, {fold_name(role)})):
            return role
    raise HemafastError(f"--columns: {given} is nothing that is read from a table.", f"Choose {', '.join(_TIERS)}.")


def _named(file: Path, table: pd.DataFrame, name: str) -> str:
    """The column of this name, written exactly so or in another case or punctuation."""
    close = [column for column in table.columns if fold_name(column) == fold_name(name)]
    if not name or name in table.columns:
        return name
    if len(close) == 1:
        return str(close[0])
    raise HemafastError(f"{file} has no column {name}; it has {_listed(table)}.", "Choose one of them in --columns.")


def _guess(role: str, table: pd.DataFrame) -> list[str]:
    """The columns with the best names for a role. Of columns that say the same, the first."""
    for tier in _TIERS[role]:
        found = [name for name in table.columns if fold_name(name) in tier and _may_be(role, table[name])]
        if found:
            return [name for place, name in enumerate(found) if place == 0 or not table[name].equals(table[found[0]])]
    return []


def _may_be(role: str, values: pd.Series[str]) -> bool:
    """Whether the values suit the role: a column `dataset` holds splits in some tables, and domains in others."""
    if fold_name(str(values.name)) in _TIERS[SPLIT][0] or role not in (SPLIT, DOMAIN):
        return True
    are_splits = set(values.str.lower()) <= {*SPLIT_WORDS, ""}
    return are_splits == (role == SPLIT)


def _without_header(table: pd.DataFrame, chosen: Mapping[str, str], needed: Collection[str]) -> dict[str, str]:
    """The needed roles of a table whose columns have no names, one each: the path is what looks like an image."""
    lacking = [role for role in needed if not chosen[role]]
    plain = [f"column {place}" for place in range(1, len(table.columns) + 1)]
    if PATH not in lacking or table.columns.tolist() != plain or len(plain) != len(lacking):
        return {}
    paths = [name for name in plain if names_image(table[name])]
    others = [name for name in plain if name not in paths]
    rest = [role for role in lacking if role != PATH]
    return {PATH: paths[0], **dict(zip(rest, others, strict=True))} if len(paths) == 1 else {}


def _listed(table: pd.DataFrame) -> str:
    return name_some(list(table.columns), 12)


def _remedy(table: pd.DataFrame, lacking: Sequence[str], roles: Mapping[str, str], *, may_choose: bool) -> str:
    """How to name the columns that lack: by an option that names those that look like them, or in the table."""
    if len(table.columns) == 1:
        return "Separate its columns by commas, semicolons or tabs, and name them in its first line."
    chosen = dict(roles)
    for role in lacking:
        free = [str(name) for name in table.columns if name not in chosen.values() and not _has_marks(table[name])]
        fit = _path_like if role == PATH else _class_like
        if not free or not may_choose:
            return f"Name a column {' and another '.join(lacking)} in its first line."
        chosen[role] = min(free, key=lambda name: fit(table.loc[:, name]))
    pairs = [f"{role}={chosen[role]}" for role in (PATH, *lacking) if role in chosen]
    return f"Say which one it is with --columns {shlex.quote(','.join(dict.fromkeys(pairs)))}."


def _path_like(values: pd.Series[str]) -> float:
    """Less for a column that may name images: by names of files, else by different values."""
    return -values.nunique() - len(values) * names_image(values)


def _class_like(values: pd.Series[str]) -> float:
    """Less for a column that may name classes: words that come again."""
    one = len(values) * (values.nunique() < 2)  # one class alone is no choice
    return values.nunique() + one + len(values) * values.str.fullmatch(r"[\d.,]*").mean()


def with_one_label(table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """The table with a label of its columns that have a mark for one class each, as `0,1,0`, if no column is one."""
    if any(_role(role) == LABEL for role in columns) or _guess(LABEL, table):
        return table
    marks = [name for name in table.columns if _has_marks(table[name]) and name not in columns.values()]
    marked = pd.DataFrame({name: table[name].str.lower().isin(_YES) for name in marks})
    if len(marks) < 2 or not (marked.sum(axis=1) == 1).all():
        return table
    return table.assign(label=marked.idxmax(axis=1)).drop(columns=marks)


def _has_marks(values: pd.Series[str]) -> bool:
    return set(values.str.lower()) <= _YES | _NO
